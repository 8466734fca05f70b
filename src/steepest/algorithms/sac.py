"""Soft actor-critic with several Q-functions and a learned temperature, for continuous and discrete actions.

Source: notes 1.7; Haarnoja et al. 2018b (https://arxiv.org/abs/1812.05905); discrete actions as Christodoulou 2019
(https://arxiv.org/abs/1910.07207). `sac_v` has the V-network of the notes.

    repeat
      1. play a step with a ~ pi, put it into the replay buffer
      2. for a minibatch of the buffer, with a' ~ pi(.|s'):
             one step of Adam on every critic's mean of 1/2 (Q_i(s, a) - y)^2                  losses.value_loss
             y = r + gamma (1 - terminated) (min_i Q'_i(s', a') - temperature log pi(a'|s'))   losses.soft_q_target
      3. one step of Adam on the policy's mean of temperature log pi(a|s) - min_i Q_i(s, a), a ~ pi(.|s) with gradient
                                                                                               losses.soft_policy_loss
      4. one step of Adam on log(temperature) (H - target)                                     losses.temperature_loss
      5. Q' <- (1 - rate) Q' + rate Q                                                        agents.replay_updates.track

Differences from the notes: the soft value is sampled at s' instead of being a network; the minimum of two Q-functions
(Fujimoto et al. 2018); the temperature, 1 in the notes, is learned unless it is given. With discrete actions all
expectations over them are sums (losses.expected_soft_value).

Actions are tanh of a Gaussian draw u and travel as u; log pi is the density of tanh(u) in [-1, 1]^D, whatever the
bounds of the environment, and the target entropy is of that density. Critics see tanh(u).

More critics, of which a random subset gives the target, and dropout and layer normalisation in them, serve high update
ratios: REDQ (Chen et al. 2021), DroQ (Hiraoka et al. 2022).
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from steepest.agents.replay_updates import Batch, Noise, batch_obs, chosen, regress
from steepest.agents.soft import SoftAgent, soft_q, squashed_policy
from steepest.algorithms.configs.sac import SACConfig
from steepest.distributions import Categorical
from steepest.learner.step import Gradient, Hyper, Metrics, State
from steepest.losses import expected_soft_value, soft_q_target, soft_value_target
from steepest.networks.config import NetworkFactory
from steepest.networks.critics import action_critics, subset_minimum
from steepest.types import Obs

_USES = ("target", "critic", "policy")
"""The three forward passes of the critics in one gradient step, each with dropout of its own."""


class SAC(SoftAgent):
    """Soft actor-critic over one or several members."""

    algorithm = "sac"
    Config = SACConfig
    config: SACConfig

    def networks(self, network: NetworkFactory | None) -> dict[str, nn.Module]:
        config, given = self.config, (self.config, self.obs_spec, self.action_spec, network)
        options: Any = {"layer_norm": config.layer_norm, "dropout": config.dropout}
        critics = action_critics(*given, critics=config.num_critics, **options)
        return {"": squashed_policy(*given), "critic/": critics}

    def update_noise(self, updates: int) -> Noise:
        """Draw actions' noise, the target's critics and dropout, of so many gradient steps of every member."""
        config = self.config
        noise = self.action_noise(updates, "action", "next_action") if self.continuous else {}
        if config.target_critics < config.num_critics:
            orders = self.draw_uniform(updates, config.num_critics).argsort(-1)
            noise["subset"] = orders[..., : config.target_critics].contiguous()
        for i, width in enumerate(config.hidden_sizes if config.dropout > 0.0 else ()):
            noise[f"dropout/{i}"] = self.draw_uniform(updates, len(_USES), config.num_critics, config.batch_size, width)
        return noise

    def gradient_step(
        self, gradient: Gradient, hyper: Hyper, state: State, batch: Batch, noise: Noise, with_policy: bool
    ) -> tuple[State, Metrics, Tensor]:
        """Take one step of the critics and, if it is due, of policy and temperature; then of the target. Pure."""
        target = self.target(state, batch, noise, hyper)
        loss = partial(self.critic_loss, state=state, batch=batch, noise=noise, target=target)
        state, metrics, error = self.critic_step(gradient, state, loss, hyper)
        if with_policy:
            state, found = self.policy_and_temperature_step(gradient, hyper, state, batch, noise)
            metrics |= found
        return self.track(state, hyper), metrics, error

    def target(self, state: State, batch: Batch, noise: Noise, hyper: Hyper) -> Tensor:
        """Return the targets of the critics, (B,)."""
        obs, temperature = batch_obs(batch, "next_obs/"), self.temperature(state, hyper)
        policy = self.policy(state["params"], state, obs, batch.get("next_action_mask"))
        if isinstance(policy, Categorical):
            q = subset_minimum(self.q(state["target/params"], state, obs, None, noise, "target"), noise.get("subset"))
            value = expected_soft_value(q, policy.log_probs, temperature)
        else:
            action = policy.sample(noise["next_action"])
            q = subset_minimum(self.q(state["target/params"], state, obs, action, noise, "target"), noise.get("subset"))
            value = soft_value_target(q, policy.log_prob(action), temperature)
        return soft_q_target(batch["reward"], value, batch["terminated"], batch["discount"])

    def critic_loss(
        self, vector: Tensor, state: State, batch: Batch, noise: Noise, target: Tensor
    ) -> tuple[Tensor, Metrics]:
        """The sum over critics of their mean losses; gradient through ``vector`` alone."""
        action = batch["action"]
        q = self.q(vector, state, batch_obs(batch, "obs/"), action if self.continuous else None, noise, "critic")
        return regress(q if self.continuous else chosen(q, action), target, batch)

    def q(self, vector: Tensor, state: State, obs: Obs, action: Tensor | None, noise: Noise, use: str) -> Tensor:
        """Q (C, B) of actions as the policy draws them, or (C, B, choices) of all discrete ones."""
        layers = range(len(self.config.hidden_sizes)) if self.config.dropout > 0.0 else ()
        dropout = [noise[f"dropout/{i}"][_USES.index(use)] for i in layers]
        return soft_q(self, vector, state, obs, action, dropout)
