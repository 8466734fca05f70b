"""Reinforcement learning from a score of whole responses, held near a reference: PPO, RLOO and GRPO over tokens.

Source: notes 2.2.1; Ziegler et al. 2019 (PPO), Ahmadian et al. 2024 (RLOO), Shao et al. 2024 (GRPO).

    repeat
      1. draw prompts x and responses y ~ pi_old(.|x); score r(x, y), by any function of them    generation, rewards
      2. one pass of policy and reference over the batch: log pi_old, log ref, V                  language.scoring
      3. PPO   r_t = -kl_coef (log pi_old - log ref) + [last] r(x, y)            returns.token_rewards
               A_t, R_t over the tokens of the response                          returns.generalized_advantage
         RLOO  A = r(x, y) - kl_coef sum_t (log pi_old - log ref),
               less the mean of the group's others                               returns.leave_one_out_advantage
         GRPO  A = r(x, y), less the group's mean, over its deviation            returns.group_standardized_advantage
      4. for every epoch, for every minibatch: one step of AdamW on the mean over responses of
         PPO   sum_t -min(rho_t A_t, clip(rho_t) A_t) + c_v 1/2 (V_t - R_t)^2    losses.clipped_surrogate_loss
         RLOO  -min(rho A, clip(rho) A), rho of the whole response
         GRPO  sum_t -min(rho_t A, clip(rho_t) A) + kl_coef k3_t                 losses.k3_estimate

A token is an action, EOS among them. A response ends with its last token, be it EOS or the token limit: that token
carries the score, and nothing is bootstrapped past it. Tokens are summed and responses averaged, since the objective is
an expectation over responses; a mean over tokens would weigh them by the inverse of their length.

Differences from the sources: Ziegler et al. and most PPO code average over tokens; GRPO divides each response's sum by
its length and this one does not (Liu et al. 2025 show the bias); GRPO's k3 in the loss is as published, though its
gradient is that of the other KL (losses.kl). The old log-probabilities are computed by the pass that training
differentiates, never taken from a generator, so that the ratio starts at 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from steepest.errors import UsageError
from steepest.language.data.examples import Prompt
from steepest.language.data.tokens import last_steps
from steepest.language.models.language_model import LanguageModel
from steepest.language.training.configs.rlhf import GRPOConfig, RLOOConfig, TokenPPOConfig
from steepest.language.training.reward_model import hidden_width, reward_head
from steepest.language.training.rlhf_base import RLHF, Figures, Steps
from steepest.losses import clipped_surrogate_loss, k3_estimate, kl_estimate, value_loss
from steepest.numerics import standardize
from steepest.returns import generalized_advantage, group_standardized_advantage, leave_one_out_advantage
from steepest.seeding import stream_seed


def _ratio_figures(log_prob: Tensor, old: Tensor, valid: Tensor, clip_epsilon: float) -> Figures:
    """Return the policy's move on each response (B,): k3 summed over tokens, and the share of clipped ratios."""
    log_prob = log_prob.detach()
    outside = ((torch.exp(log_prob - old) - 1.0).abs() > clip_epsilon) & valid
    return {"approx_kl": kl_estimate(log_prob, old).sum(-1), "clip_fraction": outside.sum(-1) / valid.sum(-1)}


class TokenPPO(RLHF[TokenPPOConfig]):
    """Proximal policy optimisation, a token being an action; ``head`` is the value head, by default a fresh one."""

    algorithm = "ppo"
    Config = TokenPPOConfig

    def __init__(
        self,
        lm: LanguageModel,
        config: TokenPPOConfig,
        prompts: Sequence[Prompt],
        reward: Any,
        *,
        head: nn.Module | None = None,
        seed: int = 0,
        **more: Any,
    ) -> None:
        if head is None:
            head = reward_head(hidden_width(lm), seed=stream_seed(seed, "value head")).to(lm.device)
        super().__init__(lm, config, prompts, reward, head=head, seed=seed, **more)

    def targets(self, steps: Steps, score: Tensor) -> dict[str, Tensor]:
        assert steps.value is not None
        valid, last = steps.valid.T, last_steps(steps.valid).T
        reward = self._rewards(steps, score, scaled=self.config.scale_rewards)
        value = torch.cat([steps.value.T, torch.zeros_like(steps.value.T[:1])])  # past the end, where nothing reads it
        never = torch.zeros_like(last)
        advantage = generalized_advantage(reward, value, last, never, valid, self.config.gamma, self.config.gae_lambda)
        target = advantage + value[:-1]
        if self.config.normalize_advantage:
            advantage = standardize(advantage, valid.to(advantage.dtype))
        return {"advantage": advantage.T, "target": target.T}

    def sequence_loss(
        self, log_prob: Tensor, value: Tensor | None, steps: Steps, fixed: dict[str, Tensor]
    ) -> tuple[Tensor, Figures]:
        assert value is not None
        epsilon, weight = self.config.clip_epsilon, steps.valid.to(log_prob.dtype)
        surrogate = clipped_surrogate_loss(log_prob, steps.log_prob, fixed["advantage"], epsilon) * weight
        regression = value_loss(value, fixed["target"]) * weight
        figures = {"policy_loss": surrogate.sum(-1), "value_loss": regression.sum(-1) / weight.sum(-1)}
        moved = _ratio_figures(log_prob, steps.log_prob, steps.valid, epsilon)
        return (surrogate + self.config.value_coef * regression).sum(-1), {**figures, **moved}


def grouped(score: Tensor, group_size: int, baseline: Callable[[Tensor], Tensor]) -> Tensor:
    """Advantages (B,) from scores (B,), each group of consecutive rows by itself."""
    if len(score) % group_size:
        raise UsageError(f"{len(score)} responses are no whole number of groups of {group_size}")
    return baseline(score.reshape(-1, group_size)).reshape(-1)


class RLOO(RLHF[RLOOConfig]):
    """REINFORCE with a leave-one-out baseline, a response being an action."""

    algorithm = "rloo"
    Config = RLOOConfig

    def targets(self, steps: Steps, score: Tensor) -> dict[str, Tensor]:
        reward = self._rewards(steps, score, scaled=self.config.scale_rewards)
        return {"advantage": grouped(reward.sum(0), self.config.group_size, leave_one_out_advantage)}

    def sequence_loss(
        self, log_prob: Tensor, value: Tensor | None, steps: Steps, fixed: dict[str, Tensor]
    ) -> tuple[Tensor, Figures]:
        new, old = log_prob.sum(-1), steps.log_prob.sum(-1)
        loss = clipped_surrogate_loss(new, old, fixed["advantage"], self.config.clip_epsilon)
        whole = torch.ones_like(steps.valid[:, :1])
        moved = _ratio_figures(new.unsqueeze(-1), old.unsqueeze(-1), whole, self.config.clip_epsilon)
        return loss, {"policy_loss": loss, **moved}


class GRPO(RLHF[GRPOConfig]):
    """Group-relative policy optimisation."""

    algorithm = "grpo"
    Config = GRPOConfig

    def targets(self, steps: Steps, score: Tensor) -> dict[str, Tensor]:
        return {"advantage": grouped(score, self.config.group_size, group_standardized_advantage)}

    def sequence_loss(
        self, log_prob: Tensor, value: Tensor | None, steps: Steps, fixed: dict[str, Tensor]
    ) -> tuple[Tensor, Figures]:
        epsilon, weight = self.config.clip_epsilon, steps.valid.to(log_prob.dtype)
        advantage = fixed["advantage"].unsqueeze(-1)
        surrogate = clipped_surrogate_loss(log_prob, steps.log_prob, advantage, epsilon) * weight
        penalty = k3_estimate(log_prob, steps.ref_log_prob) * weight
        figures = {"policy_loss": surrogate.sum(-1), "kl_loss": penalty.sum(-1)}
        moved = _ratio_figures(log_prob, steps.log_prob, steps.valid, epsilon)
        return (surrogate + self.kl_coef * penalty).sum(-1), {**figures, **moved}
