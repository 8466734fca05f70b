"""Greedy policies of a Q-network over discrete actions: acting, exploring and the target network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from steepest.agents.agent import normalization
from steepest.agents.config import GreedyConfig
from steepest.agents.replay_updates import Batch, Noise, ReplayAgent, batch_obs, track
from steepest.learner.functional import FunctionalModule
from steepest.learner.step import Gradient, Hyper, Metrics, State
from steepest.losses import double_dqn_target, dqn_target
from steepest.networks.config import NetworkFactory
from steepest.networks.critics import QNetwork
from steepest.types import Obs


class GreedyAgent(ReplayAgent):
    """An agent that takes the best action of its Q-network; an algorithm adds its loss and ``gradient_step``."""

    action_kinds = ("discrete",)
    squash = "clip"  # no discrete action meets a bound
    targets: ClassVar[Mapping[str, str]] = {"target/": ""}
    hyper_fields = (
        "learning_rate", "max_gradient_norm", "target_update_rate", "target_update_every", "huber_threshold",
    )  # fmt: skip

    def __init__(self, config: GreedyConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self._q = FunctionalModule(self.module, self.layout, function=cast(QNetwork, self.module).q_values)

    @property
    def settings(self) -> GreedyConfig:
        """Return the config, as far as it is shared."""
        return cast(GreedyConfig, self.config)

    def networks(self, network: NetworkFactory | None) -> dict[str, nn.Module]:
        return {"": QNetwork(self.settings, self.obs_spec, self.action_spec, network, dueling=self.settings.dueling)}

    def _initial_state(self, modules: list[dict[str, nn.Module]]) -> State:
        state = super()._initial_state(modules)
        state["buffers/epsilon"].fill_(self.settings.initial_epsilon)
        state["target/age"] = torch.zeros(self.members, dtype=torch.int64, device=self.device)
        return state

    def hyperparameters(self, progress: float) -> Hyper:
        return super().hyperparameters(progress) | self.hyper(epsilon=self.epsilon(progress))

    def epsilon(self, progress: float) -> float:
        """The share of exploration when a fraction ``progress`` of the run is over."""
        config = self.settings
        fallen = min(1.0, progress / config.exploration_fraction) if config.exploration_fraction else 1.0
        return config.initial_epsilon + fallen * (config.final_epsilon - config.initial_epsilon)

    def gradient_steps(
        self, gradient: Gradient, state: State, batch: Batch, noise: Noise, hyper: Hyper
    ) -> tuple[State, Metrics, Tensor]:
        """Take the gradient steps of one call, and set the exploration of what is played next; pure, one member."""
        epsilon = state["buffers/epsilon"]
        state = {**state, "buffers/epsilon": torch.zeros_like(epsilon) + hyper["epsilon"].to(epsilon.dtype)}
        return super().gradient_steps(gradient, state, batch, noise, hyper)

    def target(self, state: State, batch: Batch) -> Tensor:
        """Return the targets of the network, (B,)."""
        obs = batch_obs(batch, "next_obs/")
        q = self.q(state["target/params"], state, obs)
        ends = (batch["terminated"], batch["discount"], batch.get("next_action_mask"))
        if self.settings.double:
            return double_dqn_target(batch["reward"], q, self.q(state["params"], state, obs), *ends)
        return dqn_target(batch["reward"], q, *ends)

    def follow(self, state: State, hyper: Hyper) -> State:
        """The target network moved towards the network, if that is due; ``target/age`` counts steps since."""
        age = state["target/age"] + 1
        due = age >= hyper["target_update_every"]
        state = track(state, "target/params", "params", torch.where(due, hyper["target_update_rate"], 0.0))
        return {**state, "target/age": torch.where(due, 0, age)}

    def q(self, vector: Tensor, state: State, obs: Obs) -> Tensor:
        """Q (B, choices) of all actions."""
        return self._q(vector, state, obs, normalization(state))
