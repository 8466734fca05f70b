"""Responses watched while RLHF trains: their metrics, and alarms."""

from __future__ import annotations

from collections.abc import Sequence

from steepest.language.scoring.generation import Response

REPEATED = 4
"""Stretches of so many tokens are looked for again."""
WATCHED = 64
"""Figures are means over so many responses at least before they can alarm: the mean length of 64 varies by an eighth of
the lengths' own deviation."""
FEWEST_ENDED, MOST_REPEATED, LENGTH_FACTOR = 0.05, 0.3, 2.0
"""Bounds of what is not alarming. Text hardly reaches that repetition: of these sources and their documentation, which
are full of tables, 4 to 18 % of a piece of 64 to 512 tokens (of up to four characters) occurred before in it."""


def response_figures(drawn: Sequence[Response]) -> dict[str, float]:
    """Return alarming shares: of responses that end, and of repeated stretches of tokens.

    Equation:  ended = share that ended by an end token; repetition = mean over responses of the share of their
               stretches of four tokens that occurred before in the same response
    Verified:  tests/unit/test_rlhf.py::test_alarms_by_hand
    """
    shares: list[float] = []
    for response in drawn:
        tokens = response.tokens
        stretches = [tokens[i : i + REPEATED] for i in range(len(tokens) - REPEATED + 1)]
        shares.append(1.0 - len(set(stretches)) / len(stretches) if stretches else 0.0)
    return {"ended": sum(response.ended for response in drawn) / len(drawn), "repetition": sum(shares) / len(shares)}


def alarms(figures: dict[str, float], first_length: float, max_new_tokens: int) -> dict[str, str]:
    """Return what is alarming about responses, by kind, for a reader.

    Args:      figures: means of ``response_length``, ``ended`` and ``repetition``; first_length: the mean length, in
               tokens, that the run began with
    Verified:  tests/unit/test_rlhf.py::test_alarms_by_hand
    """
    found: dict[str, str] = {}
    ended, repetition, length = figures["ended"], figures["repetition"], figures["response_length"]
    if ended < FEWEST_ENDED:
        found["ended"] = (
            f"{ended:.0%} of the responses end by themselves; max_new_tokens ({max_new_tokens}) cuts the rest"
        )
    if repetition > MOST_REPEATED:
        found["repetition"] = (
            f"responses repeat themselves: {repetition:.0%} of their stretches of {REPEATED} tokens occurred before"
        )
    if length > LENGTH_FACTOR * first_length or length < first_length / LENGTH_FACTOR:
        found["length"] = f"responses have {length:.0f} tokens on average; at first they had {first_length:.0f}"
    return found
