"""Beyond one run: sweeps over settings, shared by any number of processes."""
