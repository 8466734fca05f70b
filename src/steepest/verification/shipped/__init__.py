"""Statements about shipped functions, one file per idea."""
