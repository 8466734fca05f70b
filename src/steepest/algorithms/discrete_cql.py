"""Conservative Q-learning for discrete actions: a deep Q-network whose values are held below what data supports.

Source: notes 2.1.2; Kumar et al. 2020 (https://arxiv.org/abs/2006.04779), section 6.3. `cql` is for continuous actions.

    repeat
      1. for a minibatch of the data, one step of Adam on the mean of
             huber(Q(s, a) - y) + weight (max_mu E_mu Q(s, .) + R(mu) - Q(s, a))
                                                    losses.huber_loss, losses.soft_maximum, losses.conservative_gap
             y = r + gamma (1 - terminated) Q'(s', argmax_a' Q(s', a'))                  losses.double_dqn_target
             CQL(H)    log sum_a exp Q(s, a)
             CQL(rho)  log sum_a rho(a|s) exp Q(s, a)
             one's own  E_mu Q, mu any function of the values                            losses.best_response_value
      2. with gap_threshold, one step on log(weight) (threshold - gap)                   losses.conservative_weight_loss
      3. rho fitted to the data: one step of Adam on the mean of -log rho(a|s)           losses.score_function_loss
      4. every target_update_every-th time, Q' <- (1 - rate) Q' + rate Q                 agents.replay_updates.track

All sums are over legal actions, and exact. Differences from the notes: R is scaled by the weight too. From the paper,
which takes a distributional network: the mean of the return alone. With weight 0 this is `dqn` on data.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from steepest.agents.conservative import (
    conservative_weight,
    initial_weight,
    own_pushed_down,
    read_regulariser,
    rho,
    rho_step,
    weight_step,
)
from steepest.agents.greedy import GreedyAgent
from steepest.agents.replay_updates import Batch, Noise, batch_obs, descend, sample_weight
from steepest.algorithms.configs.discrete_cql import DiscreteCQLConfig
from steepest.distributions import Categorical, masked_logits
from steepest.learner.step import Gradient, Hyper, Metrics, State
from steepest.losses import chosen_q_value, conservative_gap, huber_loss, soft_maximum
from steepest.networks.config import NetworkFactory
from steepest.networks.policies import BoundedPolicy


class DiscreteCQL(GreedyAgent):
    """Conservative Q-learning over one or several members."""

    algorithm = "discrete_cql"
    Config = DiscreteCQLConfig
    config: DiscreteCQLConfig
    hyper_fields = (*GreedyAgent.hyper_fields, "conservative_weight", "gap_threshold")

    def __init__(self, config: DiscreteCQLConfig, *args: Any, **kwargs: Any) -> None:
        self._regulariser = read_regulariser(config, "entropy", "behaviour")
        super().__init__(config, *args, **kwargs)

    def networks(self, network: NetworkFactory | None) -> dict[str, nn.Module]:
        found = super().networks(network)
        if self.config.regulariser == "behaviour":
            given = (self.config, self.obs_spec, self.action_spec, network)
            found["behaviour/"] = BoundedPolicy(*given, log_std=(0.0, 0.0), min_probability=1e-6)
        return found

    def _initial_state(self, modules: list[dict[str, nn.Module]]) -> State:
        return super()._initial_state(modules) | initial_weight(self.population.configs, self.device)

    def gradient_step(
        self, gradient: Gradient, hyper: Hyper, state: State, batch: Batch, noise: Noise, with_policy: bool
    ) -> tuple[State, Metrics, Tensor]:
        """Take one step of the network, the weight and rho, and of the target if that is due; pure, one member."""
        del noise, with_policy  # nothing here is random, and the policy is the network
        known = {"state": state, "batch": batch, "target": self.target(state, batch), "hyper": hyper}
        slope, (_, metrics) = gradient(partial(self.loss, **known), state["params"])
        error = metrics.pop("error")
        rates = (hyper["learning_rate"], hyper["max_gradient_norm"])
        state, metrics["gradient_norm"] = descend(state, "", slope, *rates)
        state = weight_step(gradient, hyper, state, metrics["conservative_gap"])
        state, found = rho_step(self, gradient, hyper, state, batch, batch["action"])
        metrics |= found
        return self.follow(state, hyper), metrics, error

    def loss(self, vector: Tensor, state: State, batch: Batch, target: Tensor, hyper: Hyper) -> tuple[Tensor, Metrics]:
        """Return the mean loss and penalty; gradient through ``vector`` alone."""
        obs, mask = batch_obs(batch, "obs/"), batch.get("action_mask")
        q = self.q(vector, state, obs)
        data_q = chosen_q_value(q, batch["action"])
        if self._regulariser is not None:
            legal = q if mask is None else masked_logits(q, mask)
            pushed = own_pushed_down(self._regulariser, legal, torch.zeros_like(q))
        else:
            prior = rho(self, state["behaviour/params"], state, obs, mask) if "behaviour/params" in state else None
            pushed = soft_maximum(q, prior.log_probs if isinstance(prior, Categorical) else None, mask)
        loss = (sample_weight(batch) * huber_loss(data_q, target, hyper["huber_threshold"])).mean()
        gap = (sample_weight(batch) * conservative_gap(pushed, data_q)).mean()
        weight = conservative_weight(state, hyper)
        metrics = {"q_loss": loss, "q_mean": data_q.mean(), "error": (data_q - target).abs()}
        return loss + weight * gap, {**metrics, "conservative_gap": gap, "conservative_weight": weight}
