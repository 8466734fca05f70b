"""Behaviour cloning: raise the likelihood of the actions of the data, of all episodes or of the best ones.

Source: Pomerleau 1991 (https://doi.org/10.1162/neco.1991.3.1.88); filtered by return as "10% BC" of Chen et al. 2021
(https://arxiv.org/abs/2106.01345). Not in the notes, whose offline methods (2.1) are measured against it.

    repeat
      for a minibatch of the data, one step of Adam on the mean of -log pi(a|s)             losses.score_function_loss

The policy is a Gaussian with its mean in [-1, 1], in units of half the action's range, and one deviation per component;
or a categorical one. A Gaussian's density is of the action before clipping, so that actions at their bounds have one.
Only the data teaches: there is nothing to learn from playing.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from steepest.agents.likelihood import LikelihoodAgent, no_error
from steepest.agents.replay_updates import Batch, Noise, sample_weight
from steepest.algorithms.configs.bc import BCConfig
from steepest.learner.step import Gradient, Hyper, Metrics, State


class BC(LikelihoodAgent):
    """Behaviour cloning over one or several members."""

    algorithm = "bc"
    Config = BCConfig
    config: BCConfig
    hyper_fields = ("learning_rate", "max_gradient_norm")
    learns_by_playing = False

    def prepare_data(self, rows: Any) -> None:
        rows.keep_best(self.config.best_fraction)

    def gradient_step(
        self, gradient: Gradient, hyper: Hyper, state: State, batch: Batch, noise: Noise, with_policy: bool
    ) -> tuple[State, Metrics, Tensor]:
        """Take one step of the policy; pure, one member."""
        del noise, with_policy  # nothing here is random, and there is nothing but the policy
        loss = partial(self.likelihood_loss, state=state, batch=batch, weight=sample_weight(batch))
        state, metrics = self.policy_step(gradient, state, loss, hyper)
        return state, metrics, no_error(batch)
