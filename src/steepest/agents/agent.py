"""The agent: parameters, statistics and generators of one policy, or of a population that trains together.

State is one flat dict of tensors with a leading member axis, so a checkpoint is that dict and nothing else. An
algorithm subclasses ``Agent`` once and adds ``update``.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from steepest.agents.acting import Actor, act_once, first_member, read_observation
from steepest.agents.config import config_from_json
from steepest.agents.initial import build_members, check_start, described_agent, initial_parameters, refusal
from steepest.agents.population import Population, Value
from steepest.agents.statistics import initial_observation_statistics, initial_return_statistics
from steepest.distributions import action_noise
from steepest.environments.spaces import ActionMap, Squash
from steepest.errors import UsageError
from steepest.files.tensors import save_tensors
from steepest.learner.functional import FunctionalModule
from steepest.learner.lifting import Learner, Lift, Lifted
from steepest.learner.step import Hyper, Layout, State
from steepest.learner.trees import tree_map
from steepest.networks.actor_critic import ActorCritic
from steepest.networks.config import NetworkConfig, NetworkFactory, PolicyConfig
from steepest.networks.inputs import Normalization, PolicyInput, PolicyOutput
from steepest.seeding import stream_seed
from steepest.types import (
    ActionKind,
    ActionSpec,
    Obs,
    ObsSpec,
    action_spec_from_json,
    obs_spec_from_json,
    spec_to_json,
)

VECTORS = ("params", "adam_mean", "adam_square")
"""State entries that are parameter-shaped vectors; they are saved under the parameters' names."""


def normalization(state: State) -> Normalization:
    """The observation statistics in a state, in the precision of its parameters."""
    kind = state["params"].dtype if "params" in state else torch.float32
    mean = {k.removeprefix("obs_mean/"): v.to(kind) for k, v in state.items() if k.startswith("obs_mean/")}
    return Normalization(mean, {name: state[f"obs_variance/{name}"].to(kind) for name in mean})


class Agent(ABC):
    """A policy with everything that training it needs; ``steepest.train`` makes one, ``steepest.load`` reads one."""

    algorithm: ClassVar[str]
    Config: ClassVar[type[NetworkConfig]]
    lifts: ClassVar[Mapping[str, Lift]] = {}
    """The pure functions of one member that an update calls for all members, as ``self.over_members[name]``."""
    hyper_fields: ClassVar[tuple[str, ...]] = ()
    """Fields of the config that an update takes as 0-d tensors, after their schedules."""
    action_kinds: ClassVar[tuple[ActionKind, ...]] = ("discrete", "multi_discrete", "multi_binary", "box")
    """The action spaces that the algorithm is defined for."""
    bounded: ClassVar[bool] = False
    """True where a box of actions needs finite bounds."""
    squash: ClassVar[Squash | None] = None
    """The algorithm's way from actions to the bounds of a box; None leaves it to the config."""
    learns_from_logs: ClassVar[bool] = False
    """True where it can learn from another policy's actions, given their log-probabilities."""
    learns_by_playing: ClassVar[bool] = True
    """False where only data teaches."""
    per_environment: ClassVar[tuple[str, ...]] = ("return_carry",)
    """State entries (M, N, ...) that start afresh where the number of environments differs."""

    def __init__(
        self,
        config: NetworkConfig,
        obs_spec: ObsSpec,
        action_spec: ActionSpec,
        *,
        num_envs: int = 1,
        seeds: tuple[int, ...] = (0,),
        varied: Mapping[str, Sequence[float]] | None = None,
        network: NetworkFactory | None = None,
        compile: bool = False,
        device: torch.device | str = "cpu",
        note: Callable[[str], None] | None = None,
    ) -> None:
        """Build the networks and their state.

        Args:      num_envs: environments per member; seeds: one per member; varied: see ``population.Population``;
                   network: see ``networks.config.NetworkFactory``;
                   compile, device, note: see ``learner.lifting.Learner``
        """
        refused = self.refuses(action_spec)
        if refused:
            raise UsageError(refused)
        self.action_map = ActionMap(action_spec, self.squash or cast(PolicyConfig, config).squash)
        self.config = config
        self.obs_spec = obs_spec
        self.action_spec = action_spec
        self.num_envs = num_envs
        self.trained_on: dict[str, Any] = {}
        self.seeds = seeds
        self.members = len(seeds)
        self.custom_network = network is not None
        self.device = torch.device(device)
        self.population = Population(config, self.members, self.hyper_fields, varied or {}, self.device)
        self.learner = Learner(self.members, compile=compile, device=self.device, note=note or (lambda _: None))
        modules = build_members(self, network)
        self.modules = modules[0]
        self.layouts = {prefix: Layout(module) for prefix, module in self.modules.items()}
        self.calls = {k: FunctionalModule(module, self.layouts[k], k) for k, module in self.modules.items()}
        self.module, self.layout, self.call = self.modules[""], self.layouts[""], self.calls[""]
        self.generators = [torch.Generator().manual_seed(stream_seed(seed, "noise")) for seed in seeds]
        self.acting_generator = torch.Generator().manual_seed(stream_seed(seeds[0], "acting"))
        self.state = self._initial_state(modules)
        self.over_members = {name: self._lift(lift) for name, lift in self.lifts.items()}
        self._act = {
            (fused, deterministic): self.learner.lift(self._act_function(deterministic), compile=fused)
            for fused in (False, True)
            for deterministic in (False, True)
        }

    def __repr__(self) -> str:
        return described_agent(self)

    def _lift(self, lift: Lift) -> Lifted:
        function = getattr(self, lift.function) if isinstance(lift.function, str) else lift.function
        compiles = lift.compiles and not (lift.unrolls and self.memory_size)
        return self.learner.lift(function, differentiates=lift.differentiates, compile=compiles)

    @classmethod
    def refuses(cls, spec: ActionSpec) -> str | None:
        """Return why the algorithm cannot act in this space, for people; None if it can.

        Verified:  tests/conformance/test_agents.py::test_refuses_what_it_is_not_defined_for
        """
        return refusal(cls.algorithm, cls.action_kinds, cls.bounded, spec)

    def networks(self, network: NetworkFactory | None) -> dict[str, nn.Module]:
        """New networks by the prefix of their entries in the state, "" being the one that acts.

        That one is called as ``ActorCritic`` is. Each has its parameters, and Adam's moments, in vectors of its own.
        """
        config = cast(PolicyConfig, self.config)
        return {"": ActorCritic(config, self.obs_spec, self.action_spec, network)}

    def _initial_state(self, modules: list[dict[str, nn.Module]]) -> State:
        """Return the state before any update; an algorithm adds what it alone keeps."""
        rewards = isinstance(self.config, PolicyConfig) and self.config.normalize_reward
        state = initial_parameters(modules, self.layouts)
        if self.config.normalize_obs:
            state |= initial_observation_statistics(self.obs_spec, self.members, self.device)
        return state | (initial_return_statistics(self.members, self.num_envs, self.device) if rewards else {})

    @property
    def memory_size(self) -> int:
        return cast(Any, self.module).memory_size

    @property
    def sequence_length(self) -> int:
        """Steps per training sequence of a recurrent policy, 0 for a feed-forward one."""
        return cast(PolicyConfig, self.config).sequence_length if self.memory_size else 0

    def hyper(self, **values: Value) -> Hyper:
        """Return hyper-parameters as tensors; see ``Population.tensors``."""
        return self.population.tensors(values)

    def hyperparameters(self, progress: float) -> Hyper:
        """Return everything of an update that a schedule may change, at a progress in [0, 1]."""
        return self.hyper(**{name: self.population.value(name, progress) for name in self.hyper_fields})

    @property
    def parameters(self) -> dict[str, Tensor]:
        """Named parameters, each with a leading member axis; views of the parameter vector."""
        return self.layout.unflatten(self.state["params"])

    # Acting

    def forward(self, vector: Tensor, state: State, inputs: PolicyInput, with_value: bool = True) -> PolicyOutput:
        """Distribution, value and new memory for one member; pure."""
        return self.call(vector, state, inputs, normalization(state), with_value)

    def actor(self, *, deterministic: bool = False, fused: bool = False) -> Actor:
        """The policy as it is now, ready to act until the next update.

        Args:      deterministic: the mode of the distribution instead of a draw; fused: act in the learner's mode,
                   compiled if it compiles
        Returns:   a function of (obs, noise, action_mask, episode_start, memory), all with leading axes (M, N), that
                   gives actions as the policy draws them and the new memory
        """
        state = {k: v for k, v in self.state.items() if k == "params" or k.startswith(("buffers/", "obs_"))}
        # A module may write its buffers as it runs; only an update may change the agent, so acting has copies.
        state |= {k: v.clone() for k, v in state.items() if k.startswith("buffers/")}
        if fused or self.members > 1:
            lifted = self._act[fused, deterministic].bind(state)

            def act_together(*arguments: Any) -> tuple[Tensor, Tensor | None]:
                action, *memory = lifted(*arguments, None)
                return action, memory[0] if memory else None

            return act_together
        # Alone and eager, the parameters are put into the module once instead of on every call.
        one = tree_map(first_member, state)
        module = self.call.bind(one["params"], one)
        statistics = normalization(one)

        def forward(inputs: PolicyInput) -> PolicyOutput:
            return module(inputs, statistics, False)

        def act(*arguments: Any) -> tuple[Tensor, Tensor | None]:
            action, memory = act_once(forward, *tree_map(first_member, arguments))
            return action.unsqueeze(0), None if memory is None else memory.unsqueeze(0)

        return act

    def behaviour(self, *, fused: bool = False) -> Actor:
        """The policy that collects experience: the agent's own, unless the algorithm learns off-policy."""
        return self.actor(fused=fused)

    def read_others(self, read: Callable[[Path], Agent]) -> None:
        """Take in the saved agents that learning needs besides this one, before a run begins; most need none.

        Raises:    UsageError if one is not there or does not fit
        """
        del read

    def _act_function(self, deterministic: bool) -> Callable[..., tuple[Tensor, ...]]:
        """Acting as a pure function of one member's state."""

        def act(
            state: State,
            obs: Obs,
            noise: Tensor | None,
            mask: Tensor | None,
            start: Tensor | None,
            memory: Tensor | None,
            hyper: None,
        ) -> tuple[Tensor, ...]:
            del hyper
            forward = partial(self.forward, state["params"], state, with_value=False)
            action, memory = act_once(forward, obs, noise, mask, start, memory)
            return (action,) if memory is None else (action, memory)  # vmap returns tensors only

        return act

    def draw_noise(self, leading: tuple[int, ...]) -> Tensor:
        """Action noise (T, M, N, ...) for leading = (T, N), every member's from its own generator."""
        drawn = [action_noise(self.action_spec, leading, g) for g in self.generators]
        return torch.stack(drawn, dim=1).to(self.device)

    def initial_memory(self, num_envs: int) -> Tensor | None:
        """(M, N, K) zeros for a recurrent policy, else None."""
        if self.memory_size == 0:
            return None
        return torch.zeros((self.members, num_envs, self.memory_size), device=self.device)

    def to_env(self, action: NDArray[Any]) -> NDArray[Any]:
        """Return what the environments take, from actions (M N, ...) as the policy drew them."""
        return self.action_map(action)

    def act(
        self,
        obs: Any,
        *,
        memory: Tensor | None = None,
        episode_start: NDArray[np.bool_] | bool | None = None,
        action_mask: Any = None,
        deterministic: bool = False,
    ) -> tuple[Any, Tensor | None]:
        """Return an action for one observation, or a batch of actions for a batch of them.

        Args:      obs: as the environment gave it; memory: what the previous call returned (recurrent policies; None
                   at the start); episode_start: forget the memory first; action_mask: True where legal
        Returns:   (action as the environment takes it, new memory or None)
        Raises:    UsageError if the agent is a population (take one with ``member``) or the observation does not fit
        Verified:  tests/conformance/test_agents.py::test_acts_inside_the_space
        """
        if self.members != 1:
            raise UsageError(f"this agent holds {self.members} members; pick one with agent.member(i) to act with it")
        given = read_observation(self.obs_spec, self.action_spec, obs, action_mask)
        start = None
        if self.memory_size:
            memory = self.initial_memory(given.number) if memory is None else memory
            flags = np.broadcast_to(np.asarray(False if episode_start is None else episode_start), (given.number,))
            start = torch.as_tensor(flags.copy())[None].to(self.device)
        noise = None
        if not deterministic:  # from a generator of its own: acting leaves training as it was
            noise = action_noise(self.action_spec, (1, given.number), self.acting_generator).to(self.device)
        tensors = {k: x.to(self.device) for k, x in given.obs.items()}
        mask = None if given.mask is None else given.mask.to(self.device)
        with torch.no_grad():
            action, memory = self.actor(deterministic=deterministic)(tensors, noise, mask, start, memory)
        out = self.to_env(action[0].cpu().numpy())
        return (out[0] if given.single else out), memory

    # Learning

    @classmethod
    @abstractmethod
    def planned_work(cls, config: Any, total_steps: int, num_envs: int) -> tuple[int, int]:
        """(rows per gradient step, gradient steps) of a whole run of one member, from which ``auto`` is decided."""

    @abstractmethod
    def update(self, *args: Any, **kwargs: Any) -> Any:
        """Learn from a rollout or from minibatches, as ``rollout_updates``, ``replay_updates`` or ``stepwise`` say."""

    def begin_pass(self) -> None:
        """Forget what led to the step at hand, where a pass over a log begins; most agents remember nothing."""
        return

    def lifted(self) -> dict[str, Lifted]:
        """Every function that the learner runs for this agent, by name."""
        acting = {
            f"act{', deterministic' if deterministic else ''}{', fused' if fused else ''}": function
            for (fused, deterministic), function in self._act.items()
        }
        return acting | self.over_members

    def modes(self) -> dict[str, str]:
        """Return the mode of each function that has run: "compiled", "vmapped", "ordinary autograd", ..."""
        return {name: function.modes[0][0] for name, function in self.lifted().items() if function.calls}

    def repeat_modes(self, modes: Mapping[str, str]) -> list[str]:
        """Restore execution modes from ``modes()``; return the names that are unavailable.

        Verified:  tests/unit/test_agent.py::test_modes_are_repeated
        """
        lifted = self.lifted()
        found = {
            k: [i for i, (name, _) in enumerate(lifted[k].modes) if name == modes[k]] for k in lifted if k in modes
        }
        for name, places in found.items():
            lifted[name].modes = lifted[name].modes[places[0] :] if places else lifted[name].modes
        return [name for name in modes if not found.get(name)]

    # Saving

    def _layout_of(self, key: str) -> Layout | None:
        """Return the layout of a state entry that is a parameter vector; None for any other."""
        prefix, slash, name = key.rpartition("/")
        return self.layouts.get(prefix + slash) if name in VECTORS else None

    def tensors(self) -> dict[str, Tensor]:
        """Return everything needed to resume, as named tensors with a leading member axis."""
        named: dict[str, Tensor] = {}
        for key, value in self.state.items():
            layout = self._layout_of(key)
            if layout is not None:
                named |= {f"{key}/{name}": part for name, part in layout.unflatten(value).items()}
            else:
                named[key] = value
        for i, generator in enumerate(self.generators):
            named[f"generator/{i}"] = generator.get_state()
        return named

    def take_over(self, other: Agent) -> None:
        """Take over another agent's parameters, optimiser and statistics, with this one's seeds."""
        check_start(self, other)
        generators = {k: v for k, v in self.tensors().items() if k.startswith("generator/")}
        self.load_tensors({**other.tensors(), **generators})

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take over what ``tensors`` gave; the shapes must be this agent's."""
        expected = {k: tuple(v.shape) for k, v in self.tensors().items()}
        for name, shape in expected.items():
            if name in self.per_environment:
                continue
            found = tuple(tensors[name].shape) if name in tensors else None
            if found != shape:
                raise UsageError(
                    f"the saved agent does not fit: {name} is {'missing' if found is None else found}, "
                    f"expected {shape}. "
                    "Was it trained with another network, or another number of seeds?"
                )
        for key in self.state:
            layout = self._layout_of(key)
            if layout is not None:
                self.state[key] = layout.flatten({k: tensors[f"{key}/{k}"] for k in layout.names}).to(self.device)
            elif key not in self.per_environment or tuple(tensors[key].shape) == tuple(self.state[key].shape):
                self.state[key] = tensors[key].to(self.device, self.state[key].dtype, copy=True)  # float32 ones too
        for i, generator in enumerate(self.generators):
            generator.set_state(tensors[f"generator/{i}"])

    def metadata(self) -> dict[str, Any]:
        """Return a description of the agent, as plain JSON."""
        return {
            "algorithm": self.algorithm,
            "config": asdict(self.config),
            "obs_spec": spec_to_json(self.obs_spec),
            "action_spec": spec_to_json(self.action_spec),
            "num_envs": self.num_envs,
            "seeds": list(self.seeds),
            "custom_network": self.custom_network,
            "trained_on": self.trained_on,
            "varied": self.population.varied,
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the agent into one safetensors file, atomically; ``steepest.load`` reads it."""
        save_tensors(Path(path), self.tensors(), self.metadata(), kind="agent")

    @classmethod
    def from_saved(
        cls,
        tensors: dict[str, Tensor],
        metadata: dict[str, Any],
        *,
        network: NetworkFactory | None = None,
        device: torch.device | str = "cpu",
    ) -> Self:
        """Rebuild an agent from what was saved."""
        if metadata["custom_network"] and network is None:
            raise UsageError(
                "this agent was trained with a custom network; pass the same factory: load(path, network=...)"
            )
        config = config_from_json(cls.Config, metadata["config"])
        agent = cls(
            config,
            obs_spec_from_json(metadata["obs_spec"]),
            action_spec_from_json(metadata["action_spec"]),
            num_envs=metadata["num_envs"],
            seeds=tuple(metadata["seeds"]),
            varied=metadata.get("varied"),
            network=network,
            device=device,
        )
        agent.load_tensors(tensors)
        agent.trained_on = metadata["trained_on"]
        return agent

    def member(self, index: int, network: NetworkFactory | None = None) -> Self:
        """One member of a population as an agent of its own (pass the factory again if the network is custom)."""
        if not 0 <= index < self.members:
            raise UsageError(f"member {index} of a population of {self.members}; count from 0")
        tensors = {k: v[index : index + 1] for k, v in self.tensors().items() if not k.startswith("generator/")}
        tensors["generator/0"] = self.generators[index].get_state()
        own = {"config": asdict(self.population.configs[index]), "seeds": [self.seeds[index]], "varied": {}}
        return type(self).from_saved(tensors, {**self.metadata(), **own}, network=network, device=self.device)
