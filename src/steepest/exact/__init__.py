"""Ground truth: exact solutions in float64 that share no code with what learns, so that agreement means something."""
