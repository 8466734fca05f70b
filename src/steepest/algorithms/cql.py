"""Conservative Q-learning for continuous actions: soft actor-critic whose critics are held below what data supports.

Source: notes 2.1.2; Kumar et al. 2020 (https://arxiv.org/abs/2006.04779). Calibrated as Nakamoto et al. 2023
(https://arxiv.org/abs/2303.05479), "Cal-QL". `discrete_cql` is for discrete actions.

    repeat
      1. for a minibatch of the data, one step of Adam on the sum over critics of the means of
             1/2 (Q_i(s, a) - y)^2 + weight (max_mu E_mu Q_i(s, .) + R(mu) - Q_i(s, a))
                                                                      losses.value_loss, losses.conservative_gap
             y = r + gamma (1 - terminated) min_i Q'_i(s', a'), a' ~ pi(.|s')         losses.q_learning_target
             CQL(H)    log integral exp Q_i(s, a) da, from uniform proposals and the policy's
                                                         losses.mixture_log_density, losses.sampled_soft_maximum
             CQL(rho)  log E_rho exp Q_i(s, a), from rho's own proposals
             one's own  E_mu Q_i, mu any function of the proposals' values            losses.best_response_value
      2. with gap_threshold, one step on log(weight) (threshold - gap)                losses.conservative_weight_loss
      3. one step of Adam each on the policy's loss and the temperature's, as in `sac`        agents.soft.SoftAgent
      4. rho fitted to the data: one step of Adam on the mean of -log rho(a|s)        losses.score_function_loss
      5. Q' <- (1 - rate) Q' + rate Q                                                 agents.replay_updates.track

Differences from the notes: R is scaled by the weight too. From the authors' code: the log-sum-exp is averaged over
proposals, whose densities are of actions in [-1, 1]^D whatever the bounds (uniform ones 2^-D), and of both kinds
together, so that no weight explodes; proposals are drawn at s alone, as in the paper; the squared error has its 1/2, so
that a weight here is half of theirs. Like theirs, y has no entropy term (entropy_backup adds it). Calibrated, the
policy's proposals count as at least the data's return from s on. At weight 0, with entropy_backup, this is `sac`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from steepest.agents.agent import normalization
from steepest.agents.conservative import (
    conservative_weight,
    initial_weight,
    own_pushed_down,
    read_regulariser,
    rho,
    rho_step,
    weight_step,
)
from steepest.agents.likelihood import data_policy
from steepest.agents.replay_updates import Batch, Noise, batch_obs, regress, sample_weight
from steepest.agents.soft import SoftAgent, soft_q, squashed_policy
from steepest.algorithms.configs.cql import CQLConfig
from steepest.distributions import Distribution, action_noise
from steepest.learner.step import Gradient, Hyper, Metrics, State
from steepest.learner.trees import tree_map
from steepest.losses import (
    calibrated_q_value,
    conservative_gap,
    mixture_log_density,
    q_learning_target,
    sampled_soft_maximum,
    soft_value_target,
    uniform_log_density,
)
from steepest.networks.config import NetworkFactory
from steepest.networks.critics import action_critics
from steepest.networks.policies import unit_action


class CQL(SoftAgent):
    """Conservative Q-learning over one or several members."""

    algorithm = "cql"
    Config = CQLConfig
    config: CQLConfig
    action_kinds = ("box",)
    hyper_fields = (*SoftAgent.hyper_fields, "conservative_weight", "gap_threshold")

    def __init__(self, config: CQLConfig, *args: Any, **kwargs: Any) -> None:
        self._regulariser = read_regulariser(config, "entropy", "previous", "behaviour")
        super().__init__(config, *args, **kwargs)

    def networks(self, network: NetworkFactory | None) -> dict[str, nn.Module]:
        config, given = self.config, (self.config, self.obs_spec, self.action_spec, network)
        critics = action_critics(*given, critics=config.num_critics, layer_norm=config.layer_norm)
        found: dict[str, nn.Module] = {"": squashed_policy(*given), "critic/": critics}
        if config.regulariser == "behaviour":
            found["behaviour/"] = data_policy(*given)
        return found

    def _initial_state(self, modules: list[dict[str, nn.Module]]) -> State:
        return super()._initial_state(modules) | initial_weight(self.population.configs, self.device)

    def prepare_data(self, rows: Any) -> None:
        if self.config.calibrated:
            rows.add_returns_to_go(self.config.gamma)

    def update_noise(self, updates: int) -> Noise:
        """Draw actions' noise, and proposals', of so many gradient steps of every member."""
        shape = (updates, self.config.proposals, self.config.batch_size)
        drawn = [action_noise(self.action_spec, shape, g) for g in self.generators]
        noise = {**self.action_noise(updates, "action", "next_action"), "proposal": torch.stack(drawn).to(self.device)}
        if self.config.regulariser not in ("previous", "behaviour"):
            unit = 2.0 * self.draw_uniform(*shape, self.action_spec.dimension) - 1.0
            noise["uniform"] = unit.clamp(-1.0 + 1e-6, 1.0 - 1e-6)  # a bound itself has no draw before tanh
        return noise

    def gradient_step(
        self, gradient: Gradient, hyper: Hyper, state: State, batch: Batch, noise: Noise, with_policy: bool
    ) -> tuple[State, Metrics, Tensor]:
        """Take one step of critics, weight, rho and, if due, policy and temperature; then of the target. Pure."""
        target = self.target(state, batch, noise, hyper)
        proposed, log_ratio = self.propose(state, batch, noise)
        known = {"state": state, "batch": batch, "target": target, "hyper": hyper}
        loss = partial(self.critic_loss, proposed=proposed, log_ratio=log_ratio, **known)
        state, metrics, error = self.critic_step(gradient, state, loss, hyper)
        state = weight_step(gradient, hyper, state, metrics["conservative_gap"])
        state, found = rho_step(self, gradient, hyper, state, batch, unit_action(self.action_spec, batch["action"]))
        metrics |= found
        if with_policy:
            state, found = self.policy_and_temperature_step(gradient, hyper, state, batch, noise)
            metrics |= found
        return self.track(state, hyper), metrics, error

    def target(self, state: State, batch: Batch, noise: Noise, hyper: Hyper) -> Tensor:
        """Return the targets of the critics, (B,)."""
        obs = batch_obs(batch, "next_obs/")
        policy = self.policy(state["params"], state, obs, None)
        action = policy.sample(noise["next_action"])
        value = soft_q(self, state["target/params"], state, obs, action).amin(0)
        if self.config.entropy_backup:
            value = soft_value_target(value, policy.log_prob(action), self.temperature(state, hyper))
        return q_learning_target(batch["reward"], value, batch["terminated"], batch["discount"])

    def propose(self, state: State, batch: Batch, noise: Noise) -> tuple[Tensor, Tensor]:
        """Return proposals (n, B, D) in [-1, 1], and their log importance weights (n, B), without gradient."""
        obs = batch_obs(batch, "obs/")
        if self.config.regulariser == "behaviour":
            fitted = repeated(rho(self, state["behaviour/params"], state, obs), self.config.proposals)
            proposed = fitted.sample(noise["proposal"]).clamp(-1.0, 1.0)
            return proposed, torch.zeros_like(proposed[..., 0])
        policy = repeated(self.policy(state["params"], state, obs, None), self.config.proposals)
        draw = policy.sample(noise["proposal"])
        if self.config.regulariser == "previous":
            return unit_action(self.action_spec, draw), torch.zeros_like(draw[..., 0])
        draws = torch.stack([draw, torch.atanh(noise["uniform"])])
        by_policy = torch.stack([policy.log_prob(x) for x in draws])
        by_uniform = torch.full_like(by_policy, uniform_log_density(self.action_spec.dimension))
        log_density = mixture_log_density(torch.stack([by_policy, by_uniform]))
        return unit_action(self.action_spec, draws).flatten(0, 1), -log_density.flatten(0, 1)

    def critic_loss(
        self,
        vector: Tensor,
        state: State,
        batch: Batch,
        target: Tensor,
        proposed: Tensor,
        log_ratio: Tensor,
        hyper: Hyper,
    ) -> tuple[Tensor, Metrics]:
        """Return the sum over critics of their mean losses and penalties; gradient through ``vector`` alone."""
        data = unit_action(self.action_spec, batch["action"])
        actions = torch.cat([data.unsqueeze(0), proposed])
        q = self.calls["critic/"](vector, state, batch_obs(batch, "obs/"), normalization(state), actions)
        data_q, others = q[:, 0], q[:, 1:]
        if "return_to_go" in batch:  # the policy's come first
            mine = self.config.proposals
            others = torch.cat([calibrated_q_value(others[:, :mine], batch["return_to_go"]), others[:, mine:]], 1)
        others, weights = others.movedim(1, -1), log_ratio.movedim(0, -1)
        if self._regulariser is None:
            pushed = sampled_soft_maximum(others, weights)
        else:
            pushed = own_pushed_down(self._regulariser, others, weights)
        loss, metrics = regress(data_q, target, batch)
        gap = (sample_weight(batch) * conservative_gap(pushed, data_q)).mean(-1)
        weight = conservative_weight(state, hyper)
        metrics |= {"conservative_gap": gap.mean(), "conservative_weight": weight}
        return loss + weight * gap.sum(), metrics


def repeated(policy: Distribution, number: int) -> Distribution:
    """Return the distributions (B,) as (number, B), to draw several actions each."""
    return tree_map(lambda x: x.expand(number, *x.shape), policy)
