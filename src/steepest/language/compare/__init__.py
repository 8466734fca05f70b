"""Two language models compared on the same prompts."""
