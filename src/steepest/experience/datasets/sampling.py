"""Minibatches of a dataset, in the form in which a replay buffer gives them."""

from __future__ import annotations

import numpy as np
import torch

from steepest.environments.spaces import convert_obs, to_unit_action
from steepest.errors import UsageError
from steepest.experience.datasets.dataset import Array, Dataset, parts
from steepest.experience.transitions import Batch, Transitions, hash_of
from steepest.types import ActionSpec, ObsSpec


class DatasetRows(Transitions):
    """The rows of a dataset as agents take them; every member of a population draws its own minibatches of them.

    Actions are in units of half their range, [-1, 1] (discrete ones counted from 0), whatever the bounds of the
    environment. ``more`` names what a batch takes along: ``return_to_go``.

    Args:      obs_spec, action_spec: of the agent
    Raises:    UsageError where observations or actions are not of these spaces, or an action leaves its bounds
    Verified:  tests/unit/test_datasets.py::test_minibatches_hold_what_was_recorded,
               tests/unit/test_datasets.py::test_a_dataset_of_other_spaces_is_refused
    """

    def __init__(self, dataset: Dataset, obs_spec: ObsSpec, action_spec: ActionSpec) -> None:
        self.dataset = dataset
        self.length = self.written = len(dataset.valid)
        self.envs = 1
        self.obs_fields = obs_spec.fields
        self.stacked = set()
        self.flat = {f"obs/{name}": x for name, x in _observations(dataset, obs_spec).items()}
        self.flat["action"] = unit_actions(dataset, action_spec)
        self.flat["reward"] = np.where(dataset.valid, dataset.reward, 0.0).astype(np.float32)
        self.flat |= {name: getattr(dataset, name) for name in ("terminated", "truncated", "valid")}
        self.decided = np.flatnonzero(dataset.valid)

    def add_returns_to_go(self, gamma: float) -> None:
        """Let every transition take ``return_to_go`` along, see ``Dataset.returns_to_go``."""
        self.flat["return_to_go"] = self.dataset.returns_to_go(gamma).astype(np.float32)
        self.more = (*self.more, "return_to_go")

    def add_next_actions(self) -> None:
        """Let every transition take ``next_action`` along, and ``next_known``, 0 where the recording ends there."""
        self.flat["next_action"] = np.roll(self.flat["action"], -1, axis=0)
        self.flat["next_known"] = np.roll(self.flat["valid"], -1).astype(np.float32)
        self.more = (*self.more, "next_action", "next_known")

    def keep_best(self, fraction: float) -> None:
        """Draw from the episodes with the highest returns alone, at least one of them.

        Verified:  tests/unit/test_datasets.py::test_the_best_episodes_are_kept
        """
        returns = self.dataset.returns
        best = np.argsort(-returns, kind="stable")[: max(1, round(fraction * len(returns)))]
        first, last = self.dataset.bounds
        kept = np.zeros(self.length, np.bool_)
        for episode in best:
            kept[first[episode] : last[episode]] = True
        self.decided = np.flatnonzero(kept)

    def moments(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Return mean and variance of every vector field over all steps that are drawn from, float64.

        Verified:  tests/integration/test_offline_runs.py::test_observations_are_normalised_by_the_dataset
        """
        found: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        for field in self.obs_fields:
            if field.kind == "vector":
                x = np.asarray(self.flat[f"obs/{field.name}"][self.decided], np.float64)
                found[field.name] = torch.as_tensor(x.mean(0)), torch.as_tensor(x.var(0))
        return found

    def sample(
        self, generators: list[torch.Generator], batches: int, batch_size: int, *, gamma: float, n_steps: int = 1
    ) -> Batch:
        """Return uniform minibatches (M, K, B, ...) as ``ReplayBuffer.sample`` does, every member's from its generator.

        Verified:  tests/unit/test_datasets.py::test_minibatches_hold_what_was_recorded,
                   tests/unit/test_datasets.py::test_minibatches_are_uniform_over_steps
        """
        shape = (len(generators), batches, batch_size)
        drawn = [torch.randint(len(self.decided), shape[1:], generator=g).numpy() for g in generators]
        row = self.decided[np.stack(drawn).ravel()]
        out = self.transitions(row, np.zeros_like(row), gamma=gamma, n_steps=n_steps)
        return {k: x.view(*shape, *x.shape[1:]) for k, x in out.items()}

    def fingerprint(self) -> str:
        """Return a hash of all that is learned from, by which a resumed run knows that it has the same."""
        return hash_of(self.flat)


def _observations(dataset: Dataset, spec: ObsSpec) -> dict[str, Array]:
    """Return the observations as the agent's networks take them."""
    try:
        return convert_obs(spec, dataset.obs, len(dataset.valid))
    except ValueError as error:
        held = ", ".join(f"{name} {array.shape[1:]}" for name, array in parts(dataset.obs))
        raise UsageError(
            f"{dataset.source}: the observations are not those of the environment: {error} The dataset holds {held}"
        ) from error


def unit_actions(dataset: Dataset, spec: ActionSpec) -> Array:
    """Return the executed actions (R, D) float32 in units of half their range, [-1, 1]; discrete ones counted from 0.

    A component without two finite bounds keeps its own units.

    Raises:    UsageError where an action is of another shape, or lies outside its bounds by more than rounding
    Verified:  tests/unit/test_datasets.py::test_actions_come_in_units_of_half_their_range
    """
    action, source, valid = dataset.action, dataset.source, dataset.valid
    if tuple(action.shape[1:]) not in {tuple(spec.shape), *(((1,),) if spec.kind == "discrete" else ())}:
        raise UsageError(
            f"{source}: the actions have the shape {tuple(action.shape[1:])}; the environment takes {tuple(spec.shape)}"
        )
    flat = action.reshape(len(action), -1)
    if spec.kind != "box":
        counted = flat - np.array(spec.start)
        if action.dtype.kind == "f" and (flat[valid] != np.rint(flat[valid])).any():
            raise UsageError(f"{source}: the environment's actions are whole numbers; the dataset has others")
        _check_bounds(source, valid, flat, np.array(spec.start), np.array(spec.start) + np.array(spec.sizes) - 1)
        counted = np.where(valid[:, None], counted, 0).astype(np.int64)
        return counted[:, 0] if spec.kind == "discrete" else counted
    low, high = np.array(spec.low), np.array(spec.high)
    # An action that was clipped in float32 may lie a rounding beyond bounds that are kept in float64.
    slack_low, slack_high = (1e-6 * np.maximum(1.0, np.abs(bound)) for bound in (low, high))
    _check_bounds(source, valid, flat, low - slack_low, high + slack_high)
    return np.where(valid[:, None], to_unit_action(spec, flat), 0.0).astype(np.float32)


def _check_bounds(source: str, valid: Array, action: Array, low: Array, high: Array) -> None:
    outside = valid[:, None] & ((action < low) | (action > high))
    if outside.any():
        row, component = (int(x) for x in np.argwhere(outside)[0])
        raise UsageError(
            f"{source}: action component {component} is {action[row, component]} in row {row:,}; the environment "
            f"takes {low[component]:.6g} to {high[component]:.6g}"
        )
