"""Deep deterministic policy gradient.

Source: notes 1.11, off-policy, with networks for mu and Q; Lillicrap et al. 2016 (https://arxiv.org/abs/1509.02971).

    repeat
      1. play a step with a = mu(s) + noise, an Ornstein-Uhlenbeck process, put it into the replay buffer
                                                                                          numerics.correlated
      2. for a minibatch of the buffer, one step of Adam on the critic's mean of 1/2 (Q(s, a) - y)^2
                                                                                          losses.value_loss
             y = r + gamma (1 - terminated) Q'(s', mu'(s'))                               losses.q_learning_target
      3. one step of Adam on the policy's mean of -Q(s, mu(s))                    losses.deterministic_policy_loss
      4. Q' and mu' move towards Q and mu                                                 agents.replay_updates.track

Differences from the notes: networks, a replay buffer and target networks. grad_theta Q is dropped, as in the notes.
Differences from the paper: no weight decay, no batch normalisation, and actions enter the critic's first layer.
Actions are in units of half their range throughout.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import ClassVar

from torch import Tensor, nn

from steepest.agents.deterministic import critic_loss, mean_action, policy_loss, q_values
from steepest.agents.replay_updates import Batch, Noise, ReplayAgent, batch_obs
from steepest.algorithms.configs.ddpg import DDPGConfig
from steepest.learner.step import Gradient, Hyper, Metrics, State
from steepest.losses import q_learning_target
from steepest.networks.config import NetworkFactory
from steepest.networks.critics import QEnsemble
from steepest.networks.policies import DeterministicPolicy


class DDPG(ReplayAgent):
    """DDPG over one or several members."""

    algorithm = "ddpg"
    Config = DDPGConfig
    config: DDPGConfig
    action_kinds = ("box",)
    bounded = True
    squash = "clip"
    targets: ClassVar[Mapping[str, str]] = {"target/": "critic/", "target_policy/": ""}

    def networks(self, network: NetworkFactory | None) -> dict[str, nn.Module]:
        config, specs = self.config, (self.obs_spec, self.action_spec)
        return {
            "": DeterministicPolicy(config, *specs, network, exploration_std=config.exploration_std),
            "critic/": QEnsemble(config, self.obs_spec, network, critics=1, actions=self.action_spec.dimension),
        }

    def gradient_step(
        self, gradient: Gradient, hyper: Hyper, state: State, batch: Batch, noise: Noise, with_policy: bool
    ) -> tuple[State, Metrics, Tensor]:
        """Take one step of the critic, of the policy and of their targets; pure, one member."""
        del noise, with_policy  # nothing here is random, and the policy is never left out
        loss = partial(critic_loss, agent=self, state=state, batch=batch, target=self.target(state, batch))
        state, metrics, error = self.critic_step(gradient, state, loss, hyper)
        loss = partial(policy_loss, agent=self, state=state, batch=batch)
        state, found = self.policy_step(gradient, state, loss, hyper)
        return self.track(state, hyper), {**metrics, **found}, error

    def target(self, state: State, batch: Batch) -> Tensor:
        """Return y = r + gamma (1 - terminated) Q'(s', mu'(s')), (B,)."""
        obs = batch_obs(batch, "next_obs/")
        action = mean_action(self, state["target_policy/params"], state, obs)
        q = q_values(self, state["target/params"], state, obs, action)[0]
        return q_learning_target(batch["reward"], q, batch["terminated"], batch["discount"])
