"""The agent, the settings that several algorithms share, and the updates of each data regime."""
