"""Training runs: the loop of each data regime, and the options, files and views around it."""
