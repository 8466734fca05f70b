"""Reinforcement learning from a score of whole responses, held near a reference: PPO, RLOO and GRPO over tokens.

Source: notes 2.2.1; Ziegler et al. 2019 (PPO), Ahmadian et al. 2024 (RLOO), Shao et al. 2024 (GRPO).

    repeat
      1. draw prompts x and responses y ~ pi_old(.|x); score r(x, y), by any function of them
      2. one pass of policy and reference over the batch: log pi_old, log ref, V                  language.tokens
      3. PPO   r_t = -kl_coef (log pi_old - log ref) + [last] r(x, y)            returns.token_rewards
               A_t, R_t over the tokens of the response                          returns.generalized_advantage
         RLOO  A = r(x, y) - kl_coef sum_t (log pi_old - log ref),
               less the mean of the group's others                               returns.leave_one_out_advantage
         GRPO  A = r(x, y), less the group's mean, over its deviation            returns.group_standardized_advantage
      4. for every epoch, for every minibatch: one step of Adam on the mean over responses of
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

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from steepest.errors import UsageError
from steepest.language.gradient import Figures, mean_gradient_step, parts_of
from steepest.language.tokens import TokenActorCritic, TokenModel, check_tokens, last_steps, token_log_probs
from steepest.losses import adapted_kl_coef, clipped_surrogate_loss, k1_estimate, k3_estimate, kl_estimate, value_loss
from steepest.networks import Schedule, require, schedule_factor
from steepest.numerics import standardize
from steepest.returns import (
    generalized_advantage,
    group_standardized_advantage,
    leave_one_out_advantage,
    scaled_token_rewards,
    token_rewards,
)
from steepest.types import TokenBatch


class Steps(NamedTuple):
    """What policy and reference said about B responses before the update, by step; see language.tokens. Detached."""

    valid: Tensor  # (B, T) bool: the steps that decide a token of the response
    log_prob: Tensor  # (B, T) nats, 0 where not valid
    ref_log_prob: Tensor  # (B, T) nats, 0 where not valid
    value: Tensor | None  # (B, T) reward units: of the state in which the step decides

    def rows(self, index: Tensor) -> Steps:
        """Some of the responses."""
        value = None if self.value is None else self.value[index]
        return Steps(self.valid[index], self.log_prob[index], self.ref_log_prob[index], value)


@dataclass(frozen=True, kw_only=True)
class RLHFConfig:
    """What PPO, RLOO and GRPO share."""

    kl_coef: float = 0.05
    """Price of a nat of KL from the reference (beta), in units of the score."""
    target_kl: float | None = None
    """Adapt kl_coef after every batch towards this KL per response, in nats; none leaves it as it is."""
    kl_horizon: float = 10_000.0
    """Responses after which a KL far off target has changed kl_coef by a fifth."""
    learning_rate: float = 1e-5
    """Adam's step size at the start."""
    learning_rate_schedule: Schedule = "constant"
    """"linear" goes to 0 over the run."""
    epochs: int = 1
    """Passes over a batch."""
    minibatches: int = 1
    """Gradient steps per epoch."""
    microbatch_size: int | None = None
    """Responses per forward and backward pass, to fit memory; changes nothing else."""
    clip_epsilon: float = 0.2
    """How far the probability ratio may move before its gradient is cut (epsilon)."""
    max_gradient_norm: float = 1.0
    """The gradient is scaled down to this norm if it is longer."""
    temperature: float = 1.0
    """That responses are drawn at. The policy is trained, and the reference read, at this temperature."""

    def __post_init__(self) -> None:
        require(self.kl_coef >= 0, "kl_coef", self.kl_coef, "zero or more")
        for name in ("kl_horizon", "learning_rate", "clip_epsilon", "max_gradient_norm", "temperature"):
            require(getattr(self, name) > 0, name, getattr(self, name), "a positive number")
        for name in ("epochs", "minibatches"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("target_kl", "microbatch_size"):
            value = getattr(self, name)
            require(value is None or value > 0, name, value, "a positive number or none")


class RLHF:
    """A policy that learns from scored responses; what PPO, RLOO and GRPO share.

    ``policy`` maps (tokens, attention_mask) to logits, PPO's to (logits, values); its parameters that require grad are
    trained. ``reference`` does the same; it is the policy before training, or the policy without its adapters.
    Both are put in evaluation mode: dropout would make the ratio of a policy to itself differ from 1.
    """

    Config = RLHFConfig

    def __init__(self, config: RLHFConfig, policy: nn.Module, reference: TokenModel | TokenActorCritic) -> None:
        self.config = config
        self.policy = policy.eval()
        self.reference = reference.eval() if isinstance(reference, nn.Module) else reference
        trained = [p for p in policy.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(trained, lr=config.learning_rate)
        self.kl_coef = config.kl_coef

    def targets(self, steps: Steps, score: Tensor) -> dict[str, Tensor]:
        """What the losses of a batch hold fixed: advantages, and for PPO the values' targets."""
        raise NotImplementedError

    def sequence_loss(
        self, log_prob: Tensor, value: Tensor | None, steps: Steps, fixed: dict[str, Tensor]
    ) -> tuple[Tensor, Figures]:
        """The loss of every response (B,), and figures (B,) to watch."""
        raise NotImplementedError

    def forward(self, batch: TokenBatch) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities (B, T) of the response's tokens, 0 elsewhere, and values (B, T) if the policy has them."""
        logits, value = _logits_and_values(self.policy(batch.tokens, batch.attended))
        log_prob = self._log_prob(logits, batch)
        return log_prob, None if value is None else value[:, :-1].to(log_prob.dtype)

    def _log_prob(self, logits: Tensor, batch: TokenBatch) -> Tensor:
        log_prob = token_log_probs(logits, batch.tokens, self.config.temperature)
        return torch.where(batch.response_mask[:, 1:], log_prob, torch.zeros_like(log_prob))

    @torch.no_grad()
    def steps(self, batch: TokenBatch) -> Steps:
        """One pass of policy and reference over a batch."""
        found: list[Steps] = []
        everything = torch.arange(len(batch.tokens), device=batch.tokens.device)
        for part in parts_of(everything, self.config.microbatch_size):
            rows = batch.rows(part)
            log_prob, value = self.forward(rows)
            ref_logits, _ = _logits_and_values(self.reference(rows.tokens, rows.attended))
            ref_log_prob = self._log_prob(ref_logits, rows)
            found.append(Steps(rows.response_mask[:, 1:], log_prob, ref_log_prob, value))
        values = [x.value for x in found if x.value is not None]
        return Steps(
            torch.cat([x.valid for x in found]),
            torch.cat([x.log_prob for x in found]),
            torch.cat([x.ref_log_prob for x in found]),
            torch.cat(values) if values else None,
        )

    def _rewards(self, steps: Steps, score: Tensor, *, scaled: bool) -> Tensor:
        """(T, B): time first, as in returns."""
        last = last_steps(steps.valid)
        reward = token_rewards(score, steps.log_prob.T, steps.ref_log_prob.T, steps.valid.T, last.T, self.kl_coef)
        return scaled_token_rewards(reward) if scaled else reward

    def update(
        self, batch: TokenBatch, score: Tensor, *, generator: torch.Generator, progress: float = 0.0
    ) -> dict[str, float]:
        """Improve the policy on responses that it drew itself.

        Args:      batch: B responses of the present policy, as it was when they were drawn; score (B,) reward units;
                   generator (CPU) for the order of minibatches; progress 0 to 1 through the run, for the schedule
        Returns:   figures of the batch before the update, and means over its gradient steps
        Raises:    UsageError for masks that cannot be meant, or a score of another shape or not finite
        Verified:  tests/exact/test_rlhf.py::test_sampled_updates_reach_the_optimum
        """
        check_tokens(batch)
        if score.shape != batch.tokens.shape[:1]:
            raise UsageError(f"score has shape {tuple(score.shape)} for {len(batch.tokens)} responses; one each")
        if len(score) < self.config.minibatches:
            raise UsageError(f"{len(score)} responses do not fill {self.config.minibatches} minibatches")
        if not bool(torch.isfinite(score).all()):
            raise UsageError(f"score has {int((~torch.isfinite(score)).sum())} entries that are not finite numbers")
        steps = self.steps(batch)
        score = score.to(steps.log_prob)  # its type and its device
        fixed = self.targets(steps, score)
        learning_rate = self.config.learning_rate * schedule_factor(self.config.learning_rate_schedule, progress)
        history: list[Figures] = []
        for _ in range(self.config.epochs):
            order = torch.randperm(len(score), generator=generator).to(score.device)
            for index in order.tensor_split(self.config.minibatches):
                history.append(self._gradient_step(batch, steps, fixed, index, learning_rate))
        figures = {**self._figures(steps, score), **{k: sum(h[k] for h in history) / len(history) for k in history[0]}}
        result = {k: float(x) for k, x in figures.items()} | {"kl_coef": self.kl_coef}
        if self.config.target_kl is not None:
            horizon = max(self.config.kl_horizon, len(score))
            self.kl_coef = adapted_kl_coef(self.kl_coef, result["kl"], self.config.target_kl, len(score), horizon)
        return result

    def _gradient_step(
        self, batch: TokenBatch, steps: Steps, fixed: dict[str, Tensor], index: Tensor, learning_rate: float
    ) -> Figures:
        def loss(part: Tensor) -> tuple[Tensor, Figures]:
            log_prob, value = self.forward(batch.rows(part))
            return self.sequence_loss(log_prob, value, steps.rows(part), {k: x[part] for k, x in fixed.items()})

        return mean_gradient_step(
            self.optimizer,
            loss,
            index,
            microbatch_size=self.config.microbatch_size,
            learning_rate=learning_rate,
            max_gradient_norm=self.config.max_gradient_norm,
        )

    def _figures(self, steps: Steps, score: Tensor) -> Figures:
        """Means over responses of what the batch was like before the update."""
        k1 = k1_estimate(steps.log_prob, steps.ref_log_prob).sum(-1)
        return {
            "score": score.mean(),
            "kl": k1.mean(),
            "kl_k3": k3_estimate(steps.log_prob, steps.ref_log_prob).sum(-1).mean(),
            "objective": (score - self.kl_coef * k1).mean(),
            "entropy": -steps.log_prob.sum(-1).mean(),
            "response_length": steps.valid.sum(-1).to(score.dtype).mean(),
        }

    def state_dict(self) -> dict[str, Any]:
        """What continues this besides the policy's own parameters."""
        return {"optimizer": self.optimizer.state_dict(), "kl_coef": self.kl_coef}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of state_dict."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.kl_coef = float(state["kl_coef"])


def _logits_and_values(output: Any) -> tuple[Tensor, Tensor | None]:
    return output if isinstance(output, tuple) else (output, None)


def _ratio_figures(log_prob: Tensor, old: Tensor, valid: Tensor, clip_epsilon: float) -> Figures:
    """How far the policy moved on each response (B,): k3 summed over tokens, and the share of clipped ratios."""
    log_prob = log_prob.detach()
    outside = ((torch.exp(log_prob - old) - 1.0).abs() > clip_epsilon) & valid
    return {
        "approx_kl": kl_estimate(log_prob, old).sum(-1),
        "clip_fraction": outside.sum(-1) / valid.sum(-1),
    }


@dataclass(frozen=True, kw_only=True)
class TokenPPOConfig(RLHFConfig):
    """PPO over tokens, with a value head."""

    epochs: int = 4
    minibatches: int = 4
    gamma: float = 1.0
    """Discount factor; below 1 it prices length."""
    gae_lambda: float = 0.95
    """GAE's trade of bias (0) against variance (1)."""
    value_coef: float = 0.1
    """Weight of the value loss."""
    normalize_advantage: bool = True
    """Standardise advantages over the batch's tokens."""
    scale_rewards: bool = False
    """Divide rewards, score and penalty together, by the deviation of the responses' totals."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("gamma", "gae_lambda"):
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "in [0, 1]")
        require(self.value_coef >= 0, "value_coef", self.value_coef, "zero or more")


class TokenPPO(RLHF):
    """Proximal policy optimisation, a token being an action."""

    Config = TokenPPOConfig
    config: TokenPPOConfig

    def targets(self, steps: Steps, score: Tensor) -> dict[str, Tensor]:
        if steps.value is None:
            raise UsageError("PPO needs values: the policy must return (logits, values); RLOO and GRPO need none")
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


@dataclass(frozen=True, kw_only=True)
class RLOOConfig(RLHFConfig):
    """REINFORCE with a leave-one-out baseline: no critic."""

    group_size: int = 4
    """Responses to each prompt; their rows follow each other."""
    scale_rewards: bool = False
    """Divide rewards, score and penalty together, by the deviation of the responses' totals."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.group_size >= 2, "group_size", self.group_size, "at least 2")


def grouped(score: Tensor, group_size: int, baseline: Callable[[Tensor], Tensor]) -> Tensor:
    """Advantages (B,) from scores (B,), each group of consecutive rows by itself."""
    if len(score) % group_size:
        raise UsageError(f"{len(score)} responses are no whole number of groups of {group_size}")
    return baseline(score.reshape(-1, group_size)).reshape(-1)


class RLOO(RLHF):
    """REINFORCE with a leave-one-out baseline, a response being an action."""

    Config = RLOOConfig
    config: RLOOConfig

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


@dataclass(frozen=True, kw_only=True)
class GRPOConfig(RLHFConfig):
    """Group-relative policy optimisation: no critic, the KL in the loss."""

    group_size: int = 8
    """Responses to each prompt; their rows follow each other."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.group_size >= 2, "group_size", self.group_size, "at least 2")


class GRPO(RLHF):
    """Group-relative policy optimisation."""

    Config = GRPOConfig
    config: GRPOConfig

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
