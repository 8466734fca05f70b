"""Preferences from people: things to compare, the page on which people compare them, and what they said."""
