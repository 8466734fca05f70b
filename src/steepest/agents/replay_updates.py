"""Updates from a replay buffer: what off-policy algorithms share.

``ReplayAgent`` is what the loop asks for; the functions below are its steps. They are pure and see one member. A batch
is a dict of tensors over B transitions, as ``experience.replay.ReplayBuffer`` gives them; what is random about an
update comes in a dict beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from steepest.agents.agent import Agent
from steepest.agents.config import OffPolicyConfig
from steepest.distributions import Distribution, action_noise
from steepest.learner.lifting import Lift
from steepest.learner.onednn import multiplies_bfloat16
from steepest.learner.step import Gradient, Hyper, Metrics, State, adam_step
from steepest.losses import value_loss
from steepest.networks.inputs import PolicyInput
from steepest.types import Obs

Batch = dict[str, Tensor]
Noise = dict[str, Tensor]
Loss = Callable[[Tensor], tuple[Tensor, Metrics]]


class ReplayAgent(Agent):
    """An agent that learns from a replay buffer; an algorithm adds ``gradient_step`` and its losses."""

    targets: ClassVar[Mapping[str, str]] = {}
    """Target networks by prefix, and the network that each is a slow copy of."""
    critics: ClassVar[int] = 1
    """Q-functions, where the config does not say."""
    lifts: ClassVar[Mapping[str, Lift]] = {"steps": Lift("gradient_steps", differentiates=True)}
    hyper_fields = ("learning_rate", "critic_learning_rate", "max_gradient_norm", "target_update_rate")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.half and not multiplies_bfloat16(self.device):
            self.learner.note("precision bfloat16: this processor does not multiply in it; float32 is faster here")

    @classmethod
    def planned_work(cls, config: Any, total_steps: int, num_envs: int) -> tuple[int, int]:
        rows = config.batch_size * getattr(config, "num_critics", cls.critics)
        return rows, int(max(0, total_steps - config.learning_starts) * config.update_ratio)

    def _initial_state(self, modules: list[dict[str, nn.Module]]) -> State:
        state = super()._initial_state(modules)
        for target, source in self.targets.items():
            state[f"{target}params"] = state[f"{source}params"].clone()
            self.layouts[target] = self.layouts[source]
        return state

    @property
    def half(self) -> bool:
        """True where hidden layers are computed in bfloat16."""
        return cast(OffPolicyConfig, self.config).precision == "bfloat16"

    @property
    def noise_correlation(self) -> float:
        """Return the share of the exploration noise of one step that stays in the next; 0 for independent noise."""
        return getattr(self.config, "noise_correlation", 0.0)

    @property
    def policy_delay(self) -> int:
        """Gradient steps of the critics per step of the policy."""
        return getattr(self.config, "policy_delay", 1)

    def prepare_data(self, rows: Any) -> None:
        """Ask a dataset (``experience.datasets.sampling.DatasetRows``) for what this algorithm needs besides."""
        del rows

    def update_noise(self, updates: int) -> Noise:
        """Draw what is random about so many gradient steps, (M, updates, ...): nothing, by default."""
        del updates
        return {}

    def update(self, batch: Batch, noise: Noise, hyper: Hyper) -> tuple[Metrics, Tensor]:
        """Take gradient steps on minibatches (M, updates, B, ...).

        Returns:   metrics (M,), still on the device, and absolute TD errors (M, updates, B)
        """
        self.state, metrics, errors = self.over_members["steps"](self.state, batch, noise, hyper)
        return metrics, errors

    def gradient_steps(
        self, gradient: Gradient, state: State, batch: Batch, noise: Noise, hyper: Hyper
    ) -> tuple[State, Metrics, Tensor]:
        """Take the gradient steps of one call, on minibatches (K, B, ...); pure, one member."""
        # A cast is not kept for the next use: under vmap and while compiling it would belong to another trace.
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half, cache_enabled=False):
            return unrolled(partial(self.gradient_step, gradient, hyper), state, batch, noise, self.policy_delay)

    def gradient_step(
        self, gradient: Gradient, hyper: Hyper, state: State, batch: Batch, noise: Noise, with_policy: bool
    ) -> tuple[State, Metrics, Tensor]:
        """Take one gradient step, of the policy too where ``with_policy``; pure, one member.

        Returns:   the state, metrics, and the absolute TD errors (B,)
        """
        raise NotImplementedError

    def policy(self, vector: Tensor, state: State, obs: Obs, mask: Tensor | None = None) -> Distribution:
        """Return the policy (B,) with the parameters ``vector`` in these observations; pure, one member."""
        return self.forward(vector, state, PolicyInput(obs, mask, None, None, None), with_value=False).distribution

    def action_noise(self, updates: int, *names: str) -> Noise:
        """Draw noise for actions (M, updates, B, ...) under these names, every member's from its own generator."""
        leading = (updates, cast(OffPolicyConfig, self.config).batch_size)
        drawn = [{name: action_noise(self.action_spec, leading, g) for name in names} for g in self.generators]
        return {name: torch.stack([noise[name] for noise in drawn]).to(self.device) for name in names}

    def draw_uniform(self, *shape: int) -> Tensor:
        """Draw uniform numbers (M, *shape), every member's from its own generator."""
        return torch.stack([torch.rand(shape, generator=g) for g in self.generators]).to(self.device)

    def critic_step(self, gradient: Gradient, state: State, loss: Loss, hyper: Hyper) -> tuple[State, Metrics, Tensor]:
        """Take one step of Adam on the critics' loss, as ``regress`` gives it; pure, one member."""
        slope, (_, metrics) = gradient(loss, state["critic/params"])
        error = metrics.pop("error")
        rates = (hyper["critic_learning_rate"], hyper["max_gradient_norm"])
        state, metrics["critic_gradient_norm"] = descend(state, "critic/", slope, *rates)
        return state, metrics, error

    def policy_step(self, gradient: Gradient, state: State, loss: Loss, hyper: Hyper) -> tuple[State, Metrics]:
        """Take one step of Adam on the policy's loss; pure, one member."""
        slope, (_, metrics) = gradient(loss, state["params"])
        state, norm = descend(state, "", slope, hyper["learning_rate"], hyper["max_gradient_norm"])
        return state, {**metrics, "policy_gradient_norm": norm}

    def track(self, state: State, hyper: Hyper) -> State:
        """Move every target network towards its source; pure, one member."""
        for target, source in self.targets.items():
            state = track(state, f"{target}params", f"{source}params", hyper["target_update_rate"])
        return state


def chosen(q: Tensor, action: Tensor) -> Tensor:
    """Return Q (C, B) of the actions (B,) that were taken, from those of all choices (C, B, choices)."""
    return q.gather(-1, action.expand(len(q), -1).unsqueeze(-1)).squeeze(-1)


def regress(q: Tensor, target: Tensor, batch: Batch) -> tuple[Tensor, Metrics]:
    """Return the sum over critics of their mean losses, and what is logged of them.

    Equation:  sum_i mean over B of weight 1/2 (Q_i(s, a) - y)^2
    Args:      q (C, B), carries gradient; target (B,), detached
    Returns:   the loss; with it "error", the absolute TD errors (B,) in the mean over critics
    Verified:  tests/unit/test_off_policy.py::test_regress_is_the_weighted_sum_over_critics
    """
    loss = (sample_weight(batch) * value_loss(q, target)).mean(-1).sum()
    return loss, {"critic_loss": loss, "q_mean": q.mean(), "error": (q - target).abs().mean(0)}


def group(state: State, prefix: str) -> State:
    """A network's own entries of the state, without its prefix: what ``adam_step`` takes."""
    return {k: state[f"{prefix}{k}"] for k in ("params", "adam_mean", "adam_square", "adam_count")}


def descend(
    state: State, prefix: str, gradient: Tensor, learning_rate: Tensor, max_gradient_norm: Tensor
) -> tuple[State, Tensor]:
    """One step of Adam for one of several networks; the state, and the norm of the gradient."""
    # Adam's own epsilon: these algorithms were published with it.
    new, norm = adam_step(group(state, prefix), gradient, learning_rate, max_gradient_norm, epsilon=1e-8)
    return {**state, **{f"{prefix}{k}": v for k, v in new.items()}}, norm


def track(state: State, target: str, source: str, rate: Tensor) -> State:
    """Polyak averaging: the target's parameters move a share of the way to the source's.

    Equation:  psi_bar <- (1 - rate) psi_bar + rate psi
    Source:    notes 1.7 (psi_bar); Polyak & Juditsky 1992; Lillicrap et al. 2016.
    Verified:  tests/unit/test_off_policy.py::test_track_is_the_moving_average
    """
    return {**state, target: torch.lerp(state[target], state[source], rate.to(state[target].dtype))}


def batch_obs(batch: Batch, prefix: str) -> Obs:
    """The observations of a batch by field name; prefix "obs/" or "next_obs/"."""
    return {k.removeprefix(prefix): x for k, x in batch.items() if k.startswith(prefix)}


def sample_weight(batch: Batch) -> Tensor:
    """Return the weight of each transition in the critic's loss, (B,): 1, or what undoes prioritised drawing."""
    return batch["weight"] if "weight" in batch else torch.ones_like(batch["reward"])


def unrolled(
    step: Callable[[State, Batch, Noise, bool], tuple[State, Metrics, Tensor]],
    state: State,
    batch: Batch,
    noise: Noise,
    delay: int,
) -> tuple[State, Metrics, Tensor]:
    """Gradient steps on minibatches (K, B, ...) one after another, the policy's only every ``delay`` th time.

    Returns:   the state, the mean of every figure over the steps that have it, and the absolute TD errors (K, B)
    """
    totals: dict[str, list[Tensor]] = {}
    errors: list[Tensor] = []
    for k in range(batch["reward"].shape[0]):
        one, drawn = ({key: x[k] for key, x in tree.items()} for tree in (batch, noise))
        state, metrics, error = step(state, one, drawn, (k + 1) % delay == 0)
        errors.append(error)
        for key, value in metrics.items():
            totals.setdefault(key, []).append(value)
    return state, {k: torch.stack(v).mean(0) for k, v in totals.items()}, torch.stack(errors)
