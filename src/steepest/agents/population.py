"""The settings of a population: one config for all of its members, or members that differ in some of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from steepest.agents.config import scheduled
from steepest.errors import UsageError
from steepest.learner.step import Hyper
from steepest.networks.config import NetworkConfig

Value = float | tuple[float, ...]
"""One for all members, or one for each."""


class Population:
    """The configs of an agent's members, and what of them an update takes as tensors.

    One update is one pass over all members, whatever their settings: what differs has an axis of members.

    Args:      config: of every member, but for ``varied``: field -> one value per member; fields: those of the config
               that an update takes as tensors, which alone can be varied
    Raises:    UsageError for another field, another number of values, or a value that the field does not accept
    Verified:  tests/conformance/test_agents.py::test_members_with_settings_of_their_own_learn_as_if_alone
    """

    def __init__(
        self,
        config: NetworkConfig,
        members: int,
        fields: Sequence[str],
        varied: Mapping[str, Sequence[Any]],
        device: torch.device,
    ) -> None:
        self.varied: dict[str, tuple[float, ...]] = {name: tuple(values) for name, values in varied.items()}
        self.device = device
        self._made: dict[str, tuple[Value, torch.Tensor]] = {}
        algorithm = type(config).__name__.removesuffix("Config")
        for name, values in varied.items():
            if name not in fields:
                raise UsageError(
                    f"{name} cannot differ between the members of a population; of {algorithm} these can: "
                    f"{', '.join(sorted(fields))}"
                )
            if len(values) != members:
                raise UsageError(f"{name} has {len(values)} values for {members} members; give one for each (seeds)")
            if getattr(config, name) is None or None in values:
                raise UsageError(f"{name} cannot differ between members where it is off for one; set it for all first")
        self.configs: tuple[Any, ...] = tuple(
            dataclasses.replace(config, **{name: values[i] for name, values in self.varied.items()})
            for i in range(members)
        )

    def summary(self) -> dict[str, Any]:
        """Return the settings that differ, as plain JSON; nothing where none does."""
        return {"varied": {name: list(values) for name, values in self.varied.items()}} if self.varied else {}

    def value(self, name: str, progress: float) -> Value:
        """Return a field's value at a progress in [0, 1] of the run, after its schedule."""
        if name not in self.varied:
            return scheduled(self.configs[0], name, progress)
        return tuple(scheduled(config, name, progress) for config in self.configs)

    def tensors(self, values: Mapping[str, Value]) -> Hyper:
        """Return hyper-parameters as tensors on the device, 0-d or (M,), so that a schedule never recompiles.

        Those that do not change are made once: with rollouts of a few steps, making them anew shows.
        """
        for name, value in values.items():
            if name not in self._made or self._made[name][0] != value:
                self._made[name] = value, torch.tensor(value, dtype=torch.float32, device=self.device)
        return {name: self._made[name][1] for name in values}
