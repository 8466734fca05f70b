"""Acting: observations as environments give them, and one step of a policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from steepest.distributions import Distribution
from steepest.environments.spaces import convert_obs, flatten_mask
from steepest.errors import UsageError
from steepest.learner.trees import tree_map
from steepest.networks.inputs import PolicyInput, PolicyOutput
from steepest.types import ActionSpec, Obs, ObsSpec

Actor = Callable[
    [Obs, Tensor | None, Tensor | None, Tensor | None, Tensor | None],
    tuple[Tensor, Tensor | None],
]
"""(obs, noise, action_mask, episode_start, memory) -> (action, memory), see ``Agent.actor``."""


class Given(NamedTuple):
    """Observations and a mask (1, N, ...) as a policy takes them."""

    obs: Obs
    mask: Tensor | None
    number: int  # N
    single: bool  # one observation, without a batch axis


def read_observation(spec: ObsSpec, action_spec: ActionSpec, obs: Any, action_mask: Any) -> Given:
    """Read what an environment, or a batch of them, has given.

    Raises:    UsageError where the observation is not one of the space, or not finite, or the mask does not fit
    Verified:  tests/unit/test_agent.py::test_what_cannot_be_acted_on_is_refused
    """
    pair = isinstance(obs, tuple) and len(obs) == 2 and isinstance(obs[1], Mapping)
    if pair and not any(field.name.startswith("1") for field in spec.fields):
        raise UsageError(
            "the observation is a pair, as env.reset() returns it: (observation, info); give its first part"
        )
    if action_mask is None and isinstance(obs, Mapping):
        action_mask = cast(Mapping[str, Any], obs).get("action_mask")
    try:
        single = not _is_batched(spec, obs)
        batch = (_add_axis(obs) if spec.is_dict else np.asarray(obs)[None]) if single else obs
        count = len(_first_field(spec, batch))
        arrays = convert_obs(spec, batch, count)
    except (ValueError, TypeError, RuntimeError, LookupError, AttributeError) as error:
        raise UsageError(f"the observation does not fit this agent: {error}") from error
    for name, x in arrays.items():
        if x.dtype.kind == "f" and not np.isfinite(x).all():
            raise UsageError(f"the observation{f' ({name})' if spec.is_dict else ''} is not finite")
    mask = None
    if action_mask is not None:
        try:
            raw = _add_axis(action_mask) if single else action_mask
            mask = torch.as_tensor(np.array(flatten_mask(action_spec, raw)))[None]
        except (ValueError, TypeError, RuntimeError, LookupError) as error:
            raise UsageError(f"the action mask does not fit this agent: {error}") from error
        if mask.shape[1] != count:
            raise UsageError(f"{mask.shape[1]} action masks are given for {count} observations")
    return Given({k: torch.as_tensor(np.array(v))[None] for k, v in arrays.items()}, mask, count, single)


def act_once(
    forward: Callable[[PolicyInput], PolicyOutput],
    obs: Obs,
    noise: Tensor | None,
    mask: Tensor | None,
    start: Tensor | None,
    memory: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """One step of one member's policy (N, ...); a recurrent one sees it as a sequence of one. No noise: the mode."""
    valid = None
    if memory is not None and start is not None:
        obs = {k: x.unsqueeze(0) for k, x in obs.items()}
        mask = None if mask is None else mask.unsqueeze(0)
        start = start.unsqueeze(0)
        valid = torch.ones_like(start)
    output = forward(PolicyInput(obs, mask, start, valid, memory))
    policy = output.distribution
    if memory is not None:
        policy = cast(Distribution, tree_map(first_member, policy))
    return (policy.mode() if noise is None else policy.sample(noise)), output.memory


def first_member(x: Tensor) -> Tensor:
    """Return a tensor of one member without its member axis."""
    return x.squeeze(0)


def _is_batched(spec: ObsSpec, obs: Any) -> bool:
    """Return whether an observation has a batch axis, from the rank of its first field."""
    value = _first_field(spec, obs)
    field = spec.fields[0]
    ndim = np.ndim(value)
    scalar = field.kind == "discrete" and field.shape == ()
    expected = 0 if scalar else len(field.shape)
    if field.kind == "image" and field.shape[0] == 1 and ndim in (2, 3):  # grey frames may lack their channel axis
        height_and_width = field.shape[1:]
        return ndim == 3 and np.shape(value) not in ((1, *height_and_width), (*height_and_width, 1))
    if ndim not in (expected, expected + 1):
        raise UsageError(
            f"the observation has shape {np.shape(value)}; this agent takes {field.shape} or a batch of them"
        )
    return ndim == expected + 1


def _first_field(spec: ObsSpec, obs: Any) -> Any:
    """The part of a raw observation that is the first field."""
    name = spec.fields[0].name
    if not spec.is_dict:
        return obs
    try:
        for key in name.split("/"):
            obs = obs[int(key)] if isinstance(obs, (tuple, list)) else obs[key]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise UsageError(f"the observation has no field {name!r}; it is a {type(obs).__name__}") from error
    return obs


def _add_axis(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _add_axis(v) for k, v in cast(Mapping[str, Any], value).items()}
    if isinstance(value, (tuple, list)):
        return tuple(_add_axis(v) for v in cast(Any, value))
    return np.asarray(value)[None]
