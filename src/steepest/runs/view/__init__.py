"""What a run shows: progress, plots and videos."""
