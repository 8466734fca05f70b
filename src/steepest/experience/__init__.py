"""Data to learn from: rollouts, replay buffers and logs."""
