"""Preferences from people: a project of things to compare, the page where people do so, and what they said."""
