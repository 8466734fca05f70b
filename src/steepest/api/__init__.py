"""Everything that the command does, as one Python call each."""
