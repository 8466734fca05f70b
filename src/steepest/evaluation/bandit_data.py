"""Logged rounds of the Open Bandit Dataset (Saito et al. 2020): real clicks and the probabilities of what was shown."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from steepest.errors import UsageError

COLUMNS = ("timestamp", "item_id", "position", "click", "propensity_score")
"""What a file must have; features of users and items may stand beside them, and are not read."""


class LoggedRounds(NamedTuple):
    """N rounds in the order of time: an item was shown at a position of the page, and clicked or not."""

    item: Tensor  # (N,) int64
    position: Tensor  # (N,) int64, from 0
    click: Tensor  # (N,) float64, 0 or 1
    log_prob: Tensor  # (N,) nats, of the item at that position under the policy that chose it
    num_items: int  # of the campaign
    num_positions: int


def read_rounds(folder: str | Path, policy: str, campaign: str) -> LoggedRounds:
    """Return the rounds of one policy and campaign from the dataset's folder.

    The layout is that of the dataset: FOLDER/POLICY/CAMPAIGN/CAMPAIGN.csv, policies ``random`` and ``bts``, campaigns
    ``all``, ``men`` and ``women``, with ``item_context.csv`` beside it, one row per item. ``position`` counts from 1
    in the file. ``propensity_score`` belongs to the position too: it is P(item | position, time).

    Raises:    UsageError if a file or column is missing, or a row is no round: click not 0 or 1, propensity not in
               (0, 1], an item that the campaign does not have
    Verified:  tests/unit/test_bandit_data.py::test_rounds_are_read_in_the_order_of_time,
               tests/unit/test_bandit_data.py::test_files_that_hold_no_rounds_are_refused
    """
    path = Path(folder) / policy / campaign / f"{campaign}.csv"
    num_items = len(_columns(path.parent / "item_context.csv", ()))
    try:
        chosen = sorted((row[0], *map(float, row[1:])) for row in _columns(path, COLUMNS))
    except (IndexError, ValueError) as error:
        raise UsageError(f"{path} has a row that is no round: {error}") from error
    if not chosen:
        raise UsageError(f"{path} holds no rounds")
    item, position, click, propensity = torch.tensor([row[1:] for row in chosen], dtype=torch.float64).unbind(-1)
    for name, good, expected in (
        ("item_id", (item >= 0) & (item < num_items) & (item == item.round()), f"0 to {num_items - 1}"),
        ("position", (position >= 1) & (position == position.round()), "1, 2, ..."),
        ("click", (click == 0) | (click == 1), "0 or 1"),
        ("propensity_score", (propensity > 0) & (propensity <= 1), "a probability above 0"),
    ):
        if not bool(good.all()):
            raise UsageError(f"{path} has {name} that is wrong; expected {expected}")
    position = position.long() - 1
    return LoggedRounds(item.long(), position, click, propensity.log(), num_items, int(position.max()) + 1)


def _columns(path: Path, names: tuple[str, ...]) -> list[list[str]]:
    """Some columns of all rows below the header; the rest of a row, which is most of it, is not kept."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.reader(file)
            header = next(rows, [])
            missing = [name for name in names if name not in header]
            if missing:
                raise UsageError(f"{path} lacks {', '.join(missing)}; expected {', '.join(names)}")
            places = [header.index(name) for name in names]
            return [[row[i] for i in places] for row in rows]
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error}. Give the folder that holds random/ and bts/.") from error
