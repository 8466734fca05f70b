"""ReBRAC, and TD3+BC as a setting of it: TD3 whose policy, and whose critics' targets, stay close to the data.

Source: Tarasov et al. 2023 (https://arxiv.org/abs/2305.09836); Fujimoto & Gu 2021 (https://arxiv.org/abs/2106.06860).
Not in the notes; the deterministic gradient is that of 1.11, the offline setting that of 2.1.

    repeat
      1. for a minibatch of the data, one step of Adam on both critics' means of 1/2 (Q_i(s, a) - y)^2
                                                                                          losses.value_loss
             a' = clip(mu'(s') + clip(target_noise eps, -c, c), -1, 1)                    losses.smoothed_action
             y = r + gamma (1 - terminated) (min_i Q'_i(s', a') - critic_penalty ||a' - a'_data||^2)
                                                           losses.penalised_next_value, losses.q_learning_target
      2. every policy_delay-th time, one step of Adam on the policy's mean of
             policy_penalty ||mu(s) - a||^2 - min_i Q_i(s, mu(s)) / mean |Q|          losses.behaviour_regularised_loss
         and mu', Q' move towards mu, Q                                               agents.replay_updates.track

a'_data is the action that the data took after s'; where the recording ends there is none, and no penalty. TD3+BC is the
same with critic_penalty 0, without layer normalisation, the first critic instead of the least in 2, and the squared
distance averaged over components, so that policy_penalty is 1 / alpha of its paper. Actions are in units of half their
range throughout. Differences from the papers: none that we know.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

from torch import Tensor, nn

from steepest.agents.deterministic import critic_loss, mean_action, q_values
from steepest.agents.replay_updates import Batch, Noise, ReplayAgent, batch_obs
from steepest.algorithms.configs.rebrac import ReBRACConfig, TD3BCConfig
from steepest.learner.step import Gradient, Hyper, Metrics, State
from steepest.losses import (
    behaviour_distance,
    behaviour_regularised_loss,
    penalised_next_value,
    q_learning_target,
    smoothed_action,
)
from steepest.networks.config import NetworkFactory
from steepest.networks.critics import QEnsemble, subset_minimum
from steepest.networks.policies import DeterministicPolicy


class ReBRAC(ReplayAgent):
    """ReBRAC over one or several members."""

    algorithm = "rebrac"
    Config = ReBRACConfig
    config: ReBRACConfig
    action_kinds = ("box",)
    bounded = True
    squash = "clip"
    critics = 2
    targets: ClassVar[Mapping[str, str]] = {"target/": "critic/", "target_policy/": ""}
    hyper_fields = (
        *ReplayAgent.hyper_fields, "target_noise", "target_noise_clip", "policy_penalty", "critic_penalty",
    )  # fmt: skip

    def networks(self, network: NetworkFactory | None) -> dict[str, nn.Module]:
        config, specs, actions = self.config, (self.obs_spec, self.action_spec), self.action_spec.dimension
        critics = QEnsemble(
            config, self.obs_spec, network, critics=self.critics, actions=actions, layer_norm=config.layer_norm
        )
        policy = DeterministicPolicy(config, *specs, network, exploration_std=config.exploration_std)
        return {"": policy, "critic/": critics}

    def prepare_data(self, rows: Any) -> None:
        if self.config.critic_penalty > 0.0:
            rows.add_next_actions()

    def update_noise(self, updates: int) -> Noise:
        return self.action_noise(updates, "next_action")

    def gradient_step(
        self, gradient: Gradient, hyper: Hyper, state: State, batch: Batch, noise: Noise, with_policy: bool
    ) -> tuple[State, Metrics, Tensor]:
        """Take one step of the critics and, if it is due, of the policy and the targets; pure, one member."""
        target = self.target(state, batch, noise, hyper)
        loss = partial(critic_loss, agent=self, state=state, batch=batch, target=target)
        state, metrics, error = self.critic_step(gradient, state, loss, hyper)
        if with_policy:
            loss = partial(self.policy_loss, state=state, batch=batch, hyper=hyper)
            state, found = self.policy_step(gradient, state, loss, hyper)
            state, metrics = self.track(state, hyper), {**metrics, **found}
        return state, metrics, error

    def target(self, state: State, batch: Batch, noise: Noise, hyper: Hyper) -> Tensor:
        """Return the targets of the critics, (B,)."""
        obs = batch_obs(batch, "next_obs/")
        action = mean_action(self, state["target_policy/params"], state, obs)
        action = smoothed_action(action, noise["next_action"], hyper["target_noise"], hyper["target_noise_clip"])
        value = subset_minimum(q_values(self, state["target/params"], state, obs, action), None)
        if "next_action" in batch:
            distance = behaviour_distance(action, batch["next_action"].clamp(-1.0, 1.0)) * batch["next_known"]
            value = penalised_next_value(value, distance, hyper["critic_penalty"])
        return q_learning_target(batch["reward"], value, batch["terminated"], batch["discount"])

    def policy_loss(self, vector: Tensor, state: State, batch: Batch, hyper: Hyper) -> tuple[Tensor, Metrics]:
        """Return the policy's mean loss; gradient through ``vector`` alone, the critics' parameters fixed."""
        obs = batch_obs(batch, "obs/")
        action = mean_action(self, vector, state, obs)
        q = q_values(self, state["critic/params"], state, obs, action)
        q = q.amin(0) if self.config.policy_q == "min" else q[0]
        distance = behaviour_distance(action, batch["action"].clamp(-1.0, 1.0))
        if self.config.average_components:
            distance = distance / self.action_spec.dimension
        scale = q.abs().mean().clamp(min=1e-6)
        loss = behaviour_regularised_loss(q, distance, hyper["policy_penalty"], scale).mean()
        return loss, {"policy_loss": loss, "data_distance": distance.mean(), "q_policy": q.mean()}


class TD3BC(ReBRAC):
    """TD3+BC over one or several members."""

    algorithm = "td3_bc"
    Config = TD3BCConfig
