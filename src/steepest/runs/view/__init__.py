"""Views of a run: progress, plots and videos."""
