"""Options of runs: what they are, what is decided for the user, and presets."""
