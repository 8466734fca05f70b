"""Sentiment classifiers: logistic regression on hashed n-grams, one on words and one on characters."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from steepest.files.tensors import load_tensors, save_tensors

BUCKETS = 2**18
Kind = Literal["words", "characters"]


def grams(kind: Kind, text: str) -> set[int]:
    """Which n-grams a text has, as buckets: its words and pairs of them, or three to five characters."""
    words = re.findall(r"[a-z0-9']+|[!?]", text.lower())
    if kind == "words":
        found = {*words, *(f"{a} {b}" for a, b in pairwise(words))}
    else:
        text = f" {' '.join(words)} "
        found = {text[i : i + n] for n in (3, 4, 5) for i in range(len(text) - n + 1)}
    return {zlib.crc32(gram.encode()) % BUCKETS for gram in found}


@dataclass(frozen=True)
class Classifier:
    """How favourable a text is: the logit of a linear model of its n-grams."""

    kind: Kind
    weight: Tensor  # (BUCKETS,)
    idf: Tensor  # (BUCKETS,)
    bias: float
    mean: float = 0.0
    deviation: float = 1.0
    """Scores are (logit - mean) / deviation."""

    def scores(self, texts: Sequence[str]) -> Tensor:
        """Standardised logits (texts,)."""
        row, column, value = features([grams(self.kind, t) for t in texts], self.idf)
        logit = torch.zeros(len(texts)).index_add(0, row, value * self.weight[column]) + self.bias
        return (logit - self.mean) / self.deviation

    def standardized(self, texts: Sequence[str]) -> Classifier:
        """The same, with scores of mean 0 and deviation 1 on these texts."""
        plain = Classifier(self.kind, self.weight, self.idf, self.bias)
        scores = plain.scores(texts)
        return Classifier(self.kind, self.weight, self.idf, self.bias, float(scores.mean()), float(scores.std()))

    def accuracy(self, texts: Sequence[str], positive: Sequence[bool]) -> float:
        """Share of texts whose logit has the sign of their label."""
        logit = self.scores(texts) * self.deviation + self.mean
        return float(((logit > 0) == torch.tensor(positive)).float().mean())

    def save(self, path: Path) -> None:
        """Write it to a file."""
        numbers = {"bias": self.bias, "mean": self.mean, "deviation": self.deviation}
        save_tensors(path, {"weight": self.weight, "idf": self.idf}, {"kind": self.kind, **numbers})

    @classmethod
    def load(cls, path: Path) -> Classifier:
        """Read it back."""
        tensors, meta = load_tensors(path)
        return cls(meta["kind"], tensors["weight"], tensors["idf"], meta["bias"], meta["mean"], meta["deviation"])


def features(texts: Sequence[set[int]], idf: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, columns and values of the sparse matrix of texts, each row of length 1."""
    sizes = torch.tensor([len(t) for t in texts])
    row = torch.arange(len(texts)).repeat_interleave(sizes)
    column = torch.tensor([i for t in texts for i in sorted(t)], dtype=torch.int64)
    value = idf[column]
    norm = torch.zeros(len(texts)).index_add(0, row, value**2).sqrt().clamp(min=1e-12)
    return row, column, value / norm[row]


def train_classifier(kind: Kind, texts: Sequence[str], positive: Sequence[bool]) -> Classifier:
    """Logistic regression to its optimum.

    Equation:  minimise  1/n sum_i log(1 + exp(-y_i (w . x_i + b))) + |w|^2 / 2n,
               x_i = idf of the n-grams that text i has, at length 1;  idf = 1 + log((1 + n) / (1 + n_gram))
    Verified:  tests/unit/test_demonstrations.py::test_the_classifier_is_at_the_optimum_of_its_loss
    """
    found = [grams(kind, t) for t in texts]
    n = len(texts)
    count = torch.bincount(torch.tensor([i for t in found for i in t]), minlength=BUCKETS)
    idf = 1 + torch.log((1 + n) / (1 + count))
    row, column, value = features(found, idf)
    sign = torch.tensor(positive).float() * 2 - 1
    weight, bias = torch.zeros(BUCKETS, requires_grad=True), torch.zeros((), requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=100, history_size=10, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        logit = torch.zeros(n).index_add(0, row, value * weight[column]) + bias
        total = torch.nn.functional.softplus(-sign * logit).mean() + (weight**2).sum() / (2 * n)
        total.backward()
        return total

    optimizer.step(loss)
    return Classifier(kind, weight.detach(), idf, float(bias.detach()))
