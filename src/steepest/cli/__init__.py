"""The command ``steepest``."""
