"""Policies, value functions and their parts."""
