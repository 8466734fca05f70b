"""Deep Q-network, with double and dueling Q-learning, n-step returns and prioritised replay as settings.

Source: Mnih et al. 2015 (https://doi.org/10.1038/nature14236); double: van Hasselt, Guez & Silver 2016
(https://arxiv.org/abs/1509.06461); dueling: Wang et al. 2016 (https://arxiv.org/abs/1511.06581); prioritised: Schaul et
al. 2016 (https://arxiv.org/abs/1511.05952). Not in the notes, whose conservative Q-learning (2.1) builds on it.

    repeat
      1. play train_every steps of the greedy action, or with probability epsilon of any, into the replay buffer
                                                                                      distributions.epsilon_greedy
      2. for a minibatch of the buffer, one step of Adam on the mean of weight huber(Q(s, a) - y)
                                                                          losses.chosen_q_value, losses.huber_loss
             y = r + gamma (1 - terminated) max_a' Q'(s', a')                                     losses.dqn_target
             double:                        Q'(s', argmax_a' Q(s', a'))                    losses.double_dqn_target
      3. every target_update_every-th time, Q' <- (1 - rate) Q' + rate Q                 agents.replay_updates.track

Reward and gamma are those of n steps; the weight is 1, or what undoes prioritised drawing. Illegal actions are neither
played nor the maximum.

Differences from the papers: Adam instead of RMSProp. The dueling network's gradients are not scaled down where its
streams meet, and epsilon falls in stairs of steps_per_iteration.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from steepest.agents.agent import normalization
from steepest.agents.config import OffPolicyConfig
from steepest.agents.replay_updates import Batch, Noise, ReplayAgent, batch_obs, descend, sample_weight, track
from steepest.errors import require
from steepest.fields import Count, Positive, PositiveShare, Share
from steepest.learner.functional import FunctionalModule
from steepest.learner.step import Gradient, Hyper, Metrics, State
from steepest.losses import chosen_q_value, double_dqn_target, dqn_target, huber_loss
from steepest.networks.config import NetworkFactory
from steepest.networks.critics import QNetwork
from steepest.types import Obs


@dataclass(frozen=True, kw_only=True)
class DQNConfig(OffPolicyConfig):
    """Deep Q-network. Defaults not taken from the papers suit small control problems."""

    max_gradient_norm: Positive | None = 10.0
    """The gradient is scaled down to this norm if it is longer; none leaves it. 10 as for the dueling network."""
    batch_size: Count = 128
    """Transitions per gradient step. The papers take 32; without convolutions a larger one costs little."""
    train_every: Count = 4
    """Steps of every environment between updates, as in the papers."""
    update_ratio: Positive = 0.25
    """Gradient steps per environment step, as in the papers: one in four."""
    target_update_rate: PositiveShare = 1.0
    """Weight of the new where the target network is moved: 1 copies the network."""
    target_update_every: Count = 250
    """Gradient steps between these moves, by default about 1,000 environment steps. The papers take 10,000 on Atari; 1,
    with a small target_update_rate, makes the target a moving average."""
    double: bool = True
    """The network that learns picks the next action and the target network values it, which takes away most of the
    overestimation of a maximum over errors; else the target network does both."""
    dueling: bool = False
    """State value and advantages in streams of their own from the last hidden layer on: pays with many actions that
    matter little."""
    huber_threshold: Positive | None = 1.0
    """TD errors count by their square up to here and linearly beyond, so that one surprise cannot throw the network;
    none squares them all. In reward units."""
    initial_epsilon: Share = 1.0
    """Share of actions that are drawn uniformly, at the start."""
    final_epsilon: Share = 0.05
    """That share at the end: what is left keeps the buffer from forgetting what bad actions do."""
    exploration_fraction: Share = 0.1
    """Share of the run in which it falls from the one to the other, linearly."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.final_epsilon <= self.initial_epsilon,
            "final_epsilon",
            self.final_epsilon,
            f"at most initial_epsilon ({self.initial_epsilon})",
        )


class DQN(ReplayAgent):
    """DQN over one or several members."""

    algorithm = "dqn"
    Config = DQNConfig
    config: DQNConfig
    action_kinds = ("discrete",)
    squash = "clip"  # no discrete action meets a bound
    targets: ClassVar[Mapping[str, str]] = {"target/": ""}
    hyper_fields = (
        "learning_rate", "max_gradient_norm", "target_update_rate", "target_update_every", "huber_threshold",
    )  # fmt: skip

    def __init__(self, config: DQNConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self._q = FunctionalModule(self.module, self.layout, function=cast(QNetwork, self.module).q_values)

    def networks(self, network: NetworkFactory | None) -> dict[str, nn.Module]:
        return {"": QNetwork(self.config, self.obs_spec, self.action_spec, network, dueling=self.config.dueling)}

    def _initial_state(self, modules: list[dict[str, nn.Module]]) -> State:
        state = super()._initial_state(modules)
        state["buffers/epsilon"].fill_(self.config.initial_epsilon)
        state["target/age"] = torch.zeros(self.members, dtype=torch.int64, device=self.device)
        return state

    def hyperparameters(self, progress: float) -> Hyper:
        return super().hyperparameters(progress) | self.hyper(epsilon=self.epsilon(progress))

    def epsilon(self, progress: float) -> float:
        """The share of exploration when a fraction ``progress`` of the run is over."""
        config = self.config
        fallen = min(1.0, progress / config.exploration_fraction) if config.exploration_fraction else 1.0
        return config.initial_epsilon + fallen * (config.final_epsilon - config.initial_epsilon)

    def gradient_steps(
        self, gradient: Gradient, state: State, batch: Batch, noise: Noise, hyper: Hyper
    ) -> tuple[State, Metrics, Tensor]:
        """Take the gradient steps of one call, and set the exploration of what is played next; pure, one member."""
        epsilon = state["buffers/epsilon"]
        state = {**state, "buffers/epsilon": torch.zeros_like(epsilon) + hyper["epsilon"].to(epsilon.dtype)}
        return super().gradient_steps(gradient, state, batch, noise, hyper)

    def gradient_step(
        self, gradient: Gradient, hyper: Hyper, state: State, batch: Batch, noise: Noise, with_policy: bool
    ) -> tuple[State, Metrics, Tensor]:
        """One step of the network, and of its target if that is due."""
        del noise, with_policy  # nothing here is random, and the policy is the network
        loss = partial(self.loss, state=state, batch=batch, target=self.target(state, batch), hyper=hyper)
        slope, (_, metrics) = gradient(loss, state["params"])
        error = metrics.pop("error")
        state, norm = descend(state, "", slope, hyper["learning_rate"], hyper["max_gradient_norm"])
        metrics |= {"gradient_norm": norm, "epsilon": state["buffers/epsilon"]}
        return self.follow(state, hyper), metrics, error

    def target(self, state: State, batch: Batch) -> Tensor:
        """Return the targets of the network, (B,)."""
        obs = batch_obs(batch, "next_obs/")
        q = self.q(state["target/params"], state, obs)
        ends = (batch["terminated"], batch["discount"], batch.get("next_action_mask"))
        if self.config.double:
            return double_dqn_target(batch["reward"], q, self.q(state["params"], state, obs), *ends)
        return dqn_target(batch["reward"], q, *ends)

    def loss(self, vector: Tensor, state: State, batch: Batch, target: Tensor, hyper: Hyper) -> tuple[Tensor, Metrics]:
        """The mean loss of the actions that were taken; gradient through ``vector`` alone."""
        q = chosen_q_value(self.q(vector, state, batch_obs(batch, "obs/")), batch["action"])
        loss = (sample_weight(batch) * huber_loss(q, target, hyper["huber_threshold"])).mean()
        return loss, {"q_loss": loss, "q_mean": q.mean(), "error": (q - target).abs()}

    def follow(self, state: State, hyper: Hyper) -> State:
        """The target network moved towards the network, if that is due; ``target/age`` counts steps since."""
        age = state["target/age"] + 1
        due = age >= hyper["target_update_every"]
        state = track(state, "target/params", "params", torch.where(due, hyper["target_update_rate"], 0.0))
        return {**state, "target/age": torch.where(due, 0, age)}

    def q(self, vector: Tensor, state: State, obs: Obs) -> Tensor:
        """Q (B, choices) of all actions."""
        return self._q(vector, state, obs, normalization(state))
