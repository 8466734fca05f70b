"""Rewards of control from what people say of clips: an ensemble of networks, learned as the reward of a language model.

The reward of a clip is the sum of the rewards of its steps, as that of a response is the sum over its tokens; the loss
is the same Bradley-Terry loss. Of a reward that is learned so, only differences between clips of one length are known:
a constant may be added to every step. Where episodes end early that constant decides how much longer ones are worth
(Christiano et al. 2017, section 2.2.3), so environments without early ends suit it best.

    r_c(o_t, a_t)          the network of member c
    R_c = sum_t r_c(o_t, a_t)                                              a clip
    p_c(1 preferred to 2) = exp(R_c(1)) / (exp(R_c(1)) + exp(R_c(2)))      a pair without ties
    r(o, a) = mean_c (r_c(o, a) - mean_c) / deviation_c                    what an agent learns from
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from steepest.agents.initial import build
from steepest.environments.spaces import convert_obs
from steepest.errors import UsageError
from steepest.fields import Checked, Count, NonNegative, Positive
from steepest.losses.ranking import davidson_preference_loss, davidson_tie_loss, plackett_luce_loss
from steepest.networks.config import NetworkConfig
from steepest.networks.critics import QEnsemble
from steepest.networks.inputs import Normalization
from steepest.numerics import are_equal
from steepest.preferences.answers import Comparisons, comparisons
from steepest.preferences.judged import Judged
from steepest.types import ActionSpec, Obs, ObsSpec

Array = NDArray[Any]

ROWS = 8192
"""Steps that pass the networks at once, where no gradient is taken."""


class Recorded(Protocol):
    """A clip as it is read here; ``records.Clip`` is one."""

    @property
    def id(self) -> int: ...
    @property
    def observations(self) -> Array | Mapping[str, Array]: ...
    @property
    def actions(self) -> Array: ...


@dataclass(frozen=True, kw_only=True)
class RewardConfig(Checked):
    """How rewards are learned from clips."""

    members: Count = 3
    """Networks of the ensemble; where they disagree, labels are worth most."""
    hidden_sizes: tuple[Count, ...] = (64, 64)
    """Widths of the hidden layers of each."""
    learning_rate: Positive = 1e-3
    """Step size of AdamW."""
    weight_decay: NonNegative = 1e-2
    """Of AdamW: what keeps rewards small where few labels say how large they are."""
    batch_size: Count = 32
    """Comparisons per gradient step."""
    first_steps: Count = 300
    """Gradient steps when the first labels have come."""
    steps: Count = 100
    """Gradient steps whenever more have come, from the parameters of before."""


class Clips(NamedTuple):
    """N clips of T steps, as the networks take them."""

    obs: Obs  # each (N, T, ...): what was seen before each action
    action: Tensor  # (N, T, F)

    def at(self, index: Tensor) -> Clips:
        """Some of the clips, (..., T, ...) for an index (...)."""
        return Clips({name: x[index] for name, x in self.obs.items()}, self.action[index])

    def joined(self, other: Clips) -> Clips:
        """These clips and others after them."""
        return Clips(
            {name: torch.cat([x, other.obs[name]]) for name, x in self.obs.items()},
            torch.cat([self.action, other.action]),
        )


def clip_score(reward: Float[Tensor, "*shape steps"]) -> Float[Tensor, "*shape"]:
    """Return the score of a clip: the sum of its rewards.

    Equation:  R = sum_t r_t
    Source:    Christiano et al. 2017, Eq. 1; undiscounted, as there.
    Args:      reward (..., T) reward units, carries gradient
    Returns:   (...) reward units
    Verified:  tests/exact/test_clip_rewards.py::test_the_learned_reward_is_the_true_one_but_for_a_constant
    """
    return reward.sum(-1)


def comparison_loss(
    score: Float[Tensor, "members p k"], said: Comparisons, tie_weight: float | Tensor
) -> Float[Tensor, "members p"]:
    """Negative log-likelihood of what was said: of preferences and ties Davidson's, of longer rankings Plackett-Luce's.

    Equation:  of a pair without ties -log sigmoid(R_1 - R_2), the Bradley-Terry loss
    Source:    Christiano et al. 2017, Eq. 1; Davidson 1970; Plackett 1975.
    Args:      score (C, P, K) reward units, of what was compared, best first, carries gradient; tie_weight nu, carries
               gradient, a number or (C, 1)
    Returns:   (C, P) nats
    Verified:  tests/unit/test_clip_rewards.py::test_each_kind_of_comparison_has_its_loss
    """
    first, second = score[..., 0], score[..., 1]
    pair = davidson_preference_loss(first, second, tie_weight)
    if bool(said.tie.any()):
        pair = torch.where(said.tie, davidson_tie_loss(first, second, tie_weight), pair)
    if score.shape[-1] == 2:
        return pair
    return torch.where(said.size == 2, pair, plackett_luce_loss(score, candidates=said.size))


def action_features(spec: ActionSpec, action: Array) -> Tensor:
    """Return actions as numbers of the size of one, (..., F): boxes in [-1, 1] where bounded, choices one-hot.

    Args:      action (..., *shape) as the environment takes it
    Raises:    ValueError where the shape is another one
    Verified:  tests/unit/test_clip_rewards.py::test_actions_of_every_space
    """
    lead = action.shape[: action.ndim - len(spec.shape)]
    if action.shape != (*lead, *spec.shape):
        raise ValueError(f"the actions have shape {action.shape}; expected (..., {', '.join(map(str, spec.shape))})")
    parts = max(1, len(spec.low) if spec.kind == "box" else len(spec.sizes))
    flat = torch.as_tensor(action.astype(np.float64).reshape(*lead, parts))
    if spec.kind == "box":
        low, high = torch.tensor(spec.low, dtype=torch.float64), torch.tensor(spec.high, dtype=torch.float64)
        bounded = low.isfinite() & high.isfinite() & (high > low)
        unit = 2.0 * (flat - low) / (high - low) - 1.0
        return torch.where(bounded, unit, flat).float()
    if spec.kind == "multi_binary":
        return flat.float()
    choice = flat.long() - torch.tensor(spec.start)
    hot = [x.unsqueeze(-1) == torch.arange(n) for x, n in zip(choice.unbind(-1), spec.sizes, strict=True)]
    return torch.cat(hot, -1).float()


def feature_size(spec: ActionSpec) -> int:
    """Return the length F of an action's features."""
    return sum(spec.sizes) if spec.kind in ("discrete", "multi_discrete") else spec.dimension


def read_clips(clips: Sequence[Recorded], obs_spec: ObsSpec, action_spec: ActionSpec) -> Clips:
    """Return recorded clips as tensors.

    Raises:    UsageError where there are none, they differ in length, or they are not of these spaces
    Verified:  tests/unit/test_clip_rewards.py::test_clips_of_another_kind_are_refused
    """
    lengths = sorted({len(clip.actions) for clip in clips})
    if len(lengths) != 1:
        raise UsageError(
            f"the clips have {lengths} steps; expected one length: sums of rewards compare only over equal times"
            if lengths
            else "there are no clips to learn a reward from; steepest sample RUN --clips N makes some"
        )
    try:
        seen = [_observations(obs_spec, clip) for clip in clips]
        action = torch.stack([_actions(action_spec, np.asarray(clip.actions)) for clip in clips])
    except (ValueError, TypeError) as error:
        raise UsageError(f"the clips are not of this environment: {error}") from error
    obs = {f.name: torch.stack([x[f.name] for x in seen]) for f in obs_spec.fields}
    return Clips(obs, action)


def _actions(spec: ActionSpec, actions: Array) -> Tensor:
    if actions.ndim != 1 + len(spec.shape):
        raise ValueError(f"the actions have shape {actions.shape}; expected (steps, *{spec.shape})")
    return action_features(spec, actions)


def _observations(spec: ObsSpec, clip: Recorded) -> Obs:
    """What was seen before each action, from fields as ``EnvBatch`` gives them: discrete ones count from 0 already."""
    number = len(clip.actions) + 1
    named = clip.observations if isinstance(clip.observations, Mapping) else {spec.fields[0].name: clip.observations}
    if named.keys() != {f.name for f in spec.fields}:
        raise ValueError(f"their observations are {sorted(named)}; expected {sorted(f.name for f in spec.fields)}")
    found: Obs = {}
    for f in spec.fields:
        from_zero = ObsSpec((replace(f, start=()),), is_dict=False)
        array = convert_obs(from_zero, named[f.name], number)[f.name]
        found[f.name] = torch.as_tensor(np.array(array[:-1]))
    return found


class ClipRewards:
    """An ensemble of rewards learned from judgements of clips.

    Every member learns from its own draw of the comparisons, each of which counts for it a Poisson number of times
    (mean 1), the bootstrap of data that come one by one (Oza & Russell 2001). Rewards are normalised per member over
    the steps of the compared clips: mean zero and deviation one (Christiano et al. 2017, section 2.2.1). Observations
    are scaled by their mean and deviation there.

    Args:      obs_spec, action_spec: spaces of the environment; seed: of weights and draws
    """

    def __init__(
        self,
        obs_spec: ObsSpec,
        action_spec: ActionSpec,
        config: RewardConfig | None = None,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.config = config = config or RewardConfig()
        self.obs_spec = obs_spec
        self.action_spec = action_spec
        self.device = torch.device(device)
        self.generator = torch.Generator().manual_seed(seed)
        network = NetworkConfig(hidden_sizes=config.hidden_sizes)
        features = feature_size(action_spec)
        self.module = build(
            lambda: {"": QEnsemble(network, obs_spec, None, critics=config.members, actions=features)},
            seed,
            self.device,
        )[""]
        self.log_tie = nn.Parameter(torch.zeros((config.members, 1), device=self.device))
        vectors = [f for f in obs_spec.fields if f.kind == "vector"]
        self.normalization = Normalization(
            {f.name: torch.zeros(f.shape, device=self.device) for f in vectors},
            {f.name: torch.ones(f.shape, device=self.device) for f in vectors},
        )
        self.mean = torch.zeros((config.members, 1), device=self.device)
        self.deviation = torch.ones((config.members, 1), device=self.device)
        self.times = 0  # that it has learned

    # Rewards

    def member_rewards(self, obs: Obs, action: Tensor) -> Tensor:
        """Return every member's reward as it comes out of its network, (C, ...), of obs and actions (..., F)."""
        lead = action.shape[:-1]
        flat = {f.name: obs[f.name].reshape(-1, *f.shape).to(self.device) for f in self.obs_spec.fields}
        found = self.module(flat, self.normalization, action.reshape(-1, action.shape[-1]).to(self.device))
        return found.view(-1, *lead)

    @torch.no_grad()
    def found_rewards(self, obs: Obs, action: Tensor) -> Tensor:
        """Return ``member_rewards`` without gradient, some rows at a time, so that images fit into memory.

        Verified:  tests/unit/test_clip_rewards.py::test_rewards_of_many_steps_are_found_in_parts
        """
        lead = action.shape[:-1]
        flat = {f.name: obs[f.name].reshape(-1, *f.shape).split(ROWS) for f in self.obs_spec.fields}
        taken = action.reshape(-1, action.shape[-1]).split(ROWS)
        parts = [self.member_rewards({k: x[i] for k, x in flat.items()}, part) for i, part in enumerate(taken)]
        return torch.cat(parts, 1).view(-1, *lead)

    @torch.no_grad()
    def rewards(self, obs: Obs, action: Tensor) -> Tensor:
        """Return what an agent learns from: the mean of the members' normalised rewards, (...) of actions (..., F).

        Verified:  tests/unit/test_clip_rewards.py::test_rewards_are_normalised_by_member
        """
        each = self.found_rewards(obs, action)
        shape = (-1, *(1,) * (each.ndim - 1))
        return ((each - self.mean.view(shape)) / self.deviation.view(shape)).mean(0)

    @torch.no_grad()
    def scores(self, observations: Array | Mapping[str, Array], actions: Array) -> Tensor:
        """Return every member's rewards of one clip, (C, T), from what was recorded: (T+1, ...) and (T, ...).

        The probability that a clip is preferred is a sigmoid of a difference of sums of these.
        """
        clips = read_clips([_Unnamed(0, observations, actions)], self.obs_spec, self.action_spec)
        return self.member_rewards(clips.obs, clips.action)[:, 0]

    @torch.no_grad()
    def clip_scores(self, clips: Clips) -> Tensor:
        """Return every member's score of every clip, (C, N)."""
        return clip_score(self.found_rewards(clips.obs, clips.action))

    # Learning

    def fit(self, clips: Sequence[Recorded], judgements: Sequence[Judged]) -> dict[str, float]:
        """Learn from judgements of recorded clips; see ``learn``.

        Raises:    UsageError where nothing was said, or of clips that are not given, differ in length, or are of other
                   spaces
        Verified:  tests/unit/test_clip_rewards.py::test_a_linear_reward_is_learned_from_labels
        """
        data = read_clips(clips, self.obs_spec, self.action_spec)
        said = comparisons(judgements, [clip.id for clip in clips])
        if len(said.size) == 0:
            raise UsageError(
                f"nothing was said of the {len(clips)} clips: a reward needs at least one preference, tie or ranking"
            )
        return self.learn(data, said, self.draw_weights(len(said.size)))

    def draw_weights(self, count: int) -> Tensor:
        """Return how often each comparison counts for each member, (C, count): the bootstrap."""
        return torch.poisson(torch.ones((self.config.members, count)), generator=self.generator)

    def learn(self, clips: Clips, said: Comparisons, weight: Tensor) -> dict[str, float]:
        """Take gradient steps on comparisons, from the parameters as they are, and normalise anew.

        Args:      clips that ``said`` speaks of; weight (C, P) of every comparison for every member
        Returns:   loss (nats per comparison, over the last tenth of the steps) and accuracy on these comparisons
        """
        config, compared = self.config, clips.at(torch.unique(said.members))
        self._measure_observations(compared)
        weights = {"params": [*self.module.parameters()], "weight_decay": config.weight_decay}
        ties = {"params": [self.log_tie], "weight_decay": 0.0}  # which would pull nu to 1
        optimizer = torch.optim.AdamW([weights, ties], lr=config.learning_rate)
        recent: list[Tensor] = []
        steps = config.steps if self.times else config.first_steps
        for step in range(steps):
            rows = torch.randint(len(said.size), (config.batch_size,), generator=self.generator)
            batch = Comparisons(*(x[rows] for x in said))
            part = clips.at(batch.members)
            score = clip_score(self.member_rewards(part.obs, part.action))
            batch = Comparisons(*(x.to(self.device) for x in batch))
            w = weight[:, rows].to(self.device)
            each = comparison_loss(score, batch, self._tie_weight(said))
            loss = ((w * each).sum(-1) / w.sum(-1).clamp(min=1.0)).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step >= steps - max(1, steps // 10):
                recent.append(each.detach().mean())
        self._measure_rewards(compared)
        self.times += 1
        return {"loss": float(torch.stack(recent).mean()), "accuracy": self.accuracy(clips, said)}

    def accuracy(self, clips: Clips, said: Comparisons) -> float:
        """Return the share of strict preferences in which the ensemble scores the preferred clip higher; NaN of none.

        Verified:  tests/unit/test_clip_rewards.py::test_accuracy_counts_pairs_of_rankings
        """
        reward = self.rewards(clips.obs, clips.action)
        score = clip_score(reward).cpu()[said.members]  # (P, K)
        place = torch.arange(score.shape[-1])
        real = place < said.size.unsqueeze(-1)
        pairs = real.unsqueeze(-2) & (place.unsqueeze(-1) < place) & ~said.tie.view(-1, 1, 1)
        right = score.unsqueeze(-1) > score.unsqueeze(-2)
        return float(right[pairs].float().mean())

    def _tie_weight(self, said: Comparisons) -> float | Tensor:
        """Davidson's nu: learned where there are ties, and 0, the likeliest, where there are none."""
        return self.log_tie.exp() if bool(said.tie.any()) else 0.0

    @torch.no_grad()
    def _measure_observations(self, clips: Clips) -> None:
        for name in self.normalization.mean:
            x = clips.obs[name].flatten(0, 1).double()
            low, high = x.amin(0), x.amax(0)
            variance = torch.where(are_equal(low, high), torch.ones_like(low), x.var(0, correction=0))
            self.normalization.mean[name] = x.mean(0).float().to(self.device)
            self.normalization.variance[name] = variance.float().to(self.device)

    @torch.no_grad()
    def _measure_rewards(self, clips: Clips) -> None:
        each = self.found_rewards(clips.obs, clips.action).flatten(1)  # (C, N T)
        equal = are_equal(each.amin(1), each.amax(1))
        self.mean = each.mean(1, keepdim=True)
        self.deviation = torch.where(equal.unsqueeze(1), 1.0, each.std(1, correction=0, keepdim=True))

    # Saving

    def tensors(self) -> dict[str, Tensor]:
        """Return everything needed to go on to the same bits."""
        named = {f"module/{name}": x.detach() for name, x in self.module.state_dict().items()}
        named |= {f"obs_mean/{name}": x for name, x in self.normalization.mean.items()}
        named |= {f"obs_variance/{name}": x for name, x in self.normalization.variance.items()}
        return named | {
            "log_tie": self.log_tie.detach(),
            "mean": self.mean,
            "deviation": self.deviation,
            "times": torch.tensor(self.times),
            "generator": self.generator.get_state(),
        }

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what ``tensors`` gave.

        Raises:    UsageError where something is missing or has another shape
        Verified:  tests/unit/test_clip_rewards.py::test_saved_rewards_go_on_with_the_same_bits
        """
        for name, here in self.tensors().items():
            there = tensors.get(name)
            if there is None or there.shape != here.shape:
                found = "missing" if there is None else tuple(there.shape)
                raise UsageError(f"the saved reward does not fit: {name} is {found}, expected {tuple(here.shape)}")
        given = {name: x.to(self.device) for name, x in tensors.items() if name != "generator"}
        self.module.load_state_dict({name: given[f"module/{name}"] for name in self.module.state_dict()})
        for name in self.normalization.mean:
            self.normalization.mean[name] = given[f"obs_mean/{name}"].clone()
            self.normalization.variance[name] = given[f"obs_variance/{name}"].clone()
        with torch.no_grad():
            self.log_tie.copy_(given["log_tie"])
        self.mean, self.deviation = given["mean"].clone(), given["deviation"].clone()
        self.times = int(tensors["times"])
        self.generator.set_state(tensors["generator"].cpu())


class _Unnamed(NamedTuple):
    """A clip that is in no project."""

    id: int
    observations: Array | Mapping[str, Array]
    actions: Array
