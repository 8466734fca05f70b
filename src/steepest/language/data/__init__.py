"""Rows of text as sequences of tokens."""
