"""One training loop per data regime."""
