"""Twin delayed deep deterministic policy gradient.

Source: notes 1.11, off-policy, with networks for mu and Q; Fujimoto et al. 2018 (https://arxiv.org/abs/1802.09477).

    repeat
      1. play a step with a = mu(s) + exploration_std eps, put it into the replay buffer
      2. for a minibatch of the buffer, one step of Adam on both critics' means of 1/2 (Q_i(s, a) - y)^2
                                                                                          losses.value_loss
             a' = clip(mu'(s') + clip(target_noise eps, -c, c), -1, 1)                    losses.smoothed_action
             y = r + gamma (1 - terminated) min_i Q'_i(s', a')                            losses.q_learning_target
      3. every policy_delay-th time, one step of Adam on the policy's mean of -Q_1(s, mu(s))
                                                                                  losses.deterministic_policy_loss
         and mu', Q' move towards mu, Q                                                   agents.replay_updates.track

Differences from the notes, all the paper's: two critics and their minimum, smoothed target actions, slower policy and
targets. grad_theta Q is dropped, as in the notes. Actions are in units of half their range throughout.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import ClassVar

from torch import Tensor, nn

from steepest.agents.deterministic import critic_loss, mean_action, policy_loss, q_values
from steepest.agents.replay_updates import Batch, Noise, ReplayAgent, batch_obs
from steepest.algorithms.configs.td3 import TD3Config
from steepest.learner.step import Gradient, Hyper, Metrics, State
from steepest.losses import q_learning_target, smoothed_action
from steepest.networks.config import NetworkFactory
from steepest.networks.critics import QEnsemble, subset_minimum
from steepest.networks.policies import DeterministicPolicy


class TD3(ReplayAgent):
    """TD3 over one or several members."""

    algorithm = "td3"
    Config = TD3Config
    config: TD3Config
    action_kinds = ("box",)
    bounded = True
    squash = "clip"
    critics = 2
    targets: ClassVar[Mapping[str, str]] = {"target/": "critic/", "target_policy/": ""}
    hyper_fields = (*ReplayAgent.hyper_fields, "target_noise", "target_noise_clip")

    def networks(self, network: NetworkFactory | None) -> dict[str, nn.Module]:
        config, specs, actions = self.config, (self.obs_spec, self.action_spec), self.action_spec.dimension
        return {
            "": DeterministicPolicy(config, *specs, network, exploration_std=config.exploration_std),
            "critic/": QEnsemble(config, self.obs_spec, network, critics=self.critics, actions=actions),
        }

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
            loss = partial(policy_loss, agent=self, state=state, batch=batch)
            state, found = self.policy_step(gradient, state, loss, hyper)
            state, metrics = self.track(state, hyper), {**metrics, **found}
        return state, metrics, error

    def target(self, state: State, batch: Batch, noise: Noise, hyper: Hyper) -> Tensor:
        """Return y = r + gamma (1 - terminated) min_i Q'_i(s', a'), a' smoothed, (B,)."""
        obs = batch_obs(batch, "next_obs/")
        action = mean_action(self, state["target_policy/params"], state, obs)
        action = smoothed_action(action, noise["next_action"], hyper["target_noise"], hyper["target_noise_clip"])
        q = subset_minimum(q_values(self, state["target/params"], state, obs, action), None)
        return q_learning_target(batch["reward"], q, batch["terminated"], batch["discount"])
