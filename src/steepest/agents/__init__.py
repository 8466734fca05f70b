"""What several algorithms share: the agent itself, its settings, and how it is updated in each data regime."""
