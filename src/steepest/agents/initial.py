"""Networks and state of an agent before its first update."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd  # pyright: ignore[reportPrivateUsage]

from steepest.errors import UsageError
from steepest.files.space import require_space
from steepest.learner.step import Layout, State, adam_state
from steepest.learner.threads import one_thread
from steepest.seeding import drawing_from, stream_seed
from steepest.types import ActionKind, ActionSpec, described

CPU = torch.device("cpu")


def refusal(algorithm: str, kinds: tuple[ActionKind, ...], bounded: bool, spec: ActionSpec) -> str | None:
    """Return why an algorithm cannot act in a space, for people; None if it can.

    Args:      kinds: the spaces that it is defined for; bounded: whether a box needs finite bounds
    Verified:  tests/conformance/test_agents.py::test_refuses_what_it_is_not_defined_for
    """
    names = {"discrete": "Discrete", "multi_discrete": "MultiDiscrete", "multi_binary": "MultiBinary", "box": "Box"}
    if spec.kind not in kinds:
        known = " or ".join(names[kind] for kind in kinds)
        return f"{algorithm} takes {known} actions; this environment has {names[spec.kind]} actions"
    if bounded and not np.isfinite([*spec.low, *spec.high]).all():
        return (
            f"{algorithm} needs actions with finite bounds; this environment's go from {list(spec.low)} to "
            f"{list(spec.high)} (gymnasium.wrappers.TransformAction can give it some)"
        )
    return None


def build_members(agent: Any, network: Any) -> list[dict[str, nn.Module]]:
    """Build the networks of an agent's members, once their need of memory is compared with what is free."""
    if network is None:
        require_networks(agent.config.hidden_sizes, agent.members, agent.device)
    return [build(lambda: agent.networks(network), seed, agent.device) for seed in agent.seeds]


def require_networks(hidden_sizes: tuple[int, ...], members: int = 1, device: torch.device = CPU) -> None:
    """Refuse networks whose layers do not fit into memory; the layers to their inputs and outputs are not counted.

    Raises:    UsageError, before anything is taken
    Verified:  tests/unit/test_space.py::test_so_are_networks
    """
    copies = 4 if device.type == "cpu" else 1  # weights, gradients and Adam's two moments, where they are trained
    weights = sum(one * following for one, following in pairwise((1, *hidden_sizes)))
    require_space(
        4 * copies * weights * members,
        f"training networks of hidden_sizes {', '.join(map(str, hidden_sizes))}"
        + (f" for {members:,} seeds" if members > 1 else ""),
        "give smaller hidden_sizes" + (", or fewer seeds" if members > 1 else ""),
    )


def build(networks: Callable[[], dict[str, nn.Module]], seed: int, device: torch.device) -> dict[str, nn.Module]:
    """Build networks with weights from the member's own seed, and leave the process's generator as it was.

    Raises:    UsageError where no network can be built for the spaces, or a user's torso draws numbers of its own
    """
    # An orthogonal matrix has other last bits by two threads, and another run beside this one may have set theirs.
    with drawing_from(stream_seed(seed, "weights"), devices=()), one_thread():
        try:
            modules = networks()
            for module in modules.values():
                Layout(module)
        except ValueError as error:  # spaces or a user's torso that no network can be built for
            raise UsageError(str(error)) from error
    parts = [named for module in modules.values() for named in module.named_modules()]
    dropout = next((name for name, part in parts if isinstance(part, _DropoutNd) and part.p), None)
    if dropout is not None:
        raise UsageError(
            f"the network has a dropout layer ({dropout}): it draws numbers that the run neither seeds nor saves, "
            "so neither seeds nor resuming would mean anything; leave it out"
        )
    return {prefix: module.to(device) for prefix, module in modules.items()}


def check_start(mine: Any, other: Any) -> None:
    """Compare the spaces and shared settings of an agent with those of the agent that it is to start from.

    Raises:    UsageError where they differ: tensors of equal shapes would be taken over, and mean something else
    Verified:  tests/unit/test_agent.py::test_an_agent_of_other_spaces_is_no_start
    """
    if not hasattr(other, "obs_spec"):
        raise UsageError(f"agent is {other!r}; expected an agent, such as steepest.load(RUN)")
    same_kind = replace(mine.action_spec, dtype=other.action_spec.dtype)  # EnvPool's float64 for Gymnasium's float32
    for what, here, there in (
        ("observations", mine.obs_spec, other.obs_spec), ("actions", same_kind, other.action_spec)
    ):  # fmt: skip
        if here != there:
            raise UsageError(
                f"the agent to start from has other {what}: {described(there)}; here they are {described(here)}"
            )
    for name in ("normalize_obs", "normalize_reward", "objective"):
        known = [
            getattr(x.config, name, False if name.startswith("normalize") else "discounted") for x in (mine, other)
        ]
        if known[0] != known[1]:
            raise UsageError(f"{name} is {known[0]}, but the agent to start from was trained with {known[1]}")
    known = [(x.config.activation, x.action_map.squash) for x in (mine, other)]
    for name, here, there in zip(("activation", "squash"), *known, strict=True):  # tensors of the same shapes
        if here != there and not (name == "activation" and mine.custom_network):
            raise UsageError(f"{name} is {here}, but the agent to start from was trained with {there}")


def initial_parameters(modules: list[dict[str, nn.Module]], layouts: dict[str, Layout]) -> State:
    """Return the parameters, Adam's moments and buffers of all members' networks, with a leading member axis."""
    state: State = {}
    for prefix, layout in layouts.items():
        alike = [x[prefix] for x in modules]
        vectors = torch.stack([layout.flatten({k: p.detach() for k, p in x.named_parameters()}) for x in alike])
        state |= {f"{prefix}{k}": v for k, v in adam_state(vectors).items()}
        frozen = [name for name, p in alike[0].named_parameters() if not p.requires_grad]
        for name in [*frozen, *(name for name, _ in alike[0].named_buffers())]:
            parts = [dict([*x.named_parameters(), *x.named_buffers()])[name].detach() for x in alike]
            state[f"buffers/{prefix}{name}"] = torch.stack(parts)
    return state


def described_agent(agent: Any) -> str:
    """An agent in a line: its algorithm, what it was trained on, its seeds and its spaces.

    Verified:  tests/unit/test_agent.py::test_an_agent_is_readable
    """
    env, seeds = agent.trained_on.get("env"), ", ".join(map(str, agent.seeds))
    on = f"trained on {env}, " if env else ""
    spaces = f"observations {described(agent.obs_spec)}, actions {described(agent.action_spec)}"
    return f"{type(agent).__name__}({on}seed{'s' if agent.members > 1 else ''} {seeds}; {spaces})"
