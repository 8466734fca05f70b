"""Texts that a project takes, from people and from files; checked without NumPy, which the command does without."""

from __future__ import annotations

from steepest.errors import UsageError

LONGEST_NAME = 80
"""Characters of a labeller's name."""


def plain_text(value: object, what: str) -> str:
    """Return a text without half pairs of surrogates, which no file can hold."""
    if not isinstance(value, str):
        raise UsageError(f"{what} is a {type(value).__name__}; expected a text")
    return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def checked_name(name: object) -> str:
    """Return a labeller's name without surrounding space.

    Raises:    UsageError where it is empty, long, or holds characters that cannot be seen
    Verified:  tests/unit/test_preference_store.py::test_a_labeller_s_name_can_be_read
    """
    text = " ".join(plain_text(name, "the name").split())
    if not text or len(text) > LONGEST_NAME or not text.isprintable() or "\ufffd" in text:
        raise UsageError(
            f"the name is {text[:LONGEST_NAME]!r}; expected 1 to {LONGEST_NAME} characters that can be seen"
        )
    return text
