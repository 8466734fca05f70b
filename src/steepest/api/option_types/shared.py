"""The options of every run, for editors and type checkers.

Written from the configs by `make options`; tests/unit/test_option_types.py fails where it is not current. What an
option means stands in its config, and in the help of the command.
"""

# fmt: off
# ruff: noqa: D101

from __future__ import annotations

from typing import TypedDict


class SharedOptions(TypedDict, total=False):
    seed: int
    threads: int | None
    eval_every: int | None
    checkpoint_every: int | None
    keep_checkpoints: int
    tensorboard: bool
    wandb: bool
