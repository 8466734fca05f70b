"""Log-probabilities of responses, and drawing responses."""
