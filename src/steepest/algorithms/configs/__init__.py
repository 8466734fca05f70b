"""Settings of the algorithms, one file each, apart from the updates: showing and checking them loads no torch."""
