"""Learning from preferences with language models: a prompt is a start, a token an action, a response an episode."""
