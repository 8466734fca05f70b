"""A reward learned from people in the place of the environment's: from a project, or from labels asked for live.

The agent never sees the environment's reward; returns that a run reports are still the environment's, to compare with.
Live, an iteration is

    1. the rollout is cut into clips; as many labels are due as the schedule says
    2. pairs are chosen, by disagreement and a share uniformly from episodes kept aside (``selection``), and asked about
    3. the ensemble learns from all labels so far but those kept aside, which measure it
    4. the rollout's rewards are replaced, and the agent learns from them

Everything random comes from generators that a checkpoint holds, and the labels are in it too, so that a run resumes to
the same bits if its labeller gives the same answers to the same questions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor

from steepest.errors import RunError
from steepest.fields import Checked, Count, Share
from steepest.preferences.answers import Comparisons
from steepest.preferences.clips import ClipRewards, Clips, RewardConfig, action_features
from steepest.preferences.film import Film, Picture
from steepest.preferences.people import AT_ONCE, LivePage, People
from steepest.preferences.selection import choose_pairs, preference_disagreement, reserved_groups
from steepest.types import Rollout

Array = NDArray[Any]
Answer = Literal["first", "second", "tie", "skip"]
ANSWERS: tuple[Answer, ...] = ("first", "second", "tie", "skip")
ToEnv = Callable[[Array], Array]
"""From actions as the policy drew them, (N, ...), to those that the environment takes."""


CLIPS_PER_LABEL = 4
"""Clips of a rollout among which pairs are made, for every label that is due."""

MOST_FILMED = 200
"""Clips of which a rollout has pictures, at most: their pairs are more than anybody is asked about at once."""


class Segment(NamedTuple):
    """A clip of the agent's own play."""

    observations: dict[str, Array]  # each (T+1, ...)
    actions: Array  # (T, ...), as the environment took them
    rewards: Array  # (T,) the environment's own: for scripted labellers, never for the agent
    episode: int = 0  # its number in the run
    start: int = 0  # steps of the episode before it
    pictures: Sequence[Picture] = ()  # T+1 where people are asked


Labeller = Callable[[Sequence[tuple[Segment, Segment]], int], Sequence[Answer]]
"""Answers which of each pair is better. The number says how many were asked before: a labeller that draws should draw
from it, so that a resumed run gets the same answers."""


@dataclass(frozen=True, kw_only=True)
class LiveLabels(Checked):
    """Labels that are asked for while an agent trains."""

    labeller: Labeller | People
    """Who answers: a function, or people on a page that the run serves."""
    labels: Count = 700
    """How many are asked for in all."""
    clip_steps: Count = 25
    """Steps of a clip: one to two seconds."""
    first_share: Share = 0.25
    """Share of the labels that is asked before the agent learns anything."""
    evaluation_share: Share = 0.2
    """Share of the labels, and of the episodes, that is kept aside to measure the reward."""
    offered: Count = 10
    """Pairs among which each one that is asked is chosen."""
    at_once: Count | None = None
    """Labels that are asked for together, at least, after the first (default: 1, of people 10)."""
    reward: RewardConfig = field(default_factory=RewardConfig)
    """How the reward is learned."""

    def due(self, progress: float) -> int:
        """Return how many labels should have been asked for at a progress in [0, 1].

        Equation:  labels (f + (1 - f) log2(1 + progress)), rounded up, and then down to the first ones and whole rounds
        Source:    Christiano et al. 2017, section 3.1: a quarter first, then at a rate falling as T / (T + t); here T
                   is the length of the run, so that the last label is asked at its end.
        Verified:  tests/unit/test_learned_reward.py::test_labels_are_asked_for_less_and_less
        """
        later = (1.0 - self.first_share) * math.log2(1.0 + progress)
        first = math.ceil(self.labels * self.first_share - 1e-9)
        due = min(self.labels, math.ceil(self.labels * (self.first_share + later) - 1e-9))
        if due == self.labels:
            return due
        together = self.at_once or (AT_ONCE if isinstance(self.labeller, People) else 1)
        together = max(1, min(together, first))  # few labels in all come in rounds as small as the first
        return first + (due - first) // together * together


class Labels(NamedTuple):
    """What was asked and answered; skipped pairs are not kept."""

    clips: Clips
    pairs: Tensor  # (P, 2) int64 into the clips, the preferred one first
    tie: Tensor  # (P,) bool
    evaluation: Tensor  # (P,) bool: never learned from
    weight: Tensor  # (C, P) how often each counts for each member

    def comparisons(self, rows: Tensor) -> Comparisons:
        """Some of them, for the ensemble."""
        return Comparisons(self.pairs[rows], torch.full((int(rows.sum()),), 2), self.tie[rows])


class LearnedReward:
    """What takes the place of the environment's reward in the on-policy loop.

    Args:      rewards: the ensemble, already fitted unless labels are asked for; live: who is asked, and how often;
               page, film: where people are asked, and what takes the pictures that they see
    """

    def __init__(
        self,
        rewards: ClipRewards,
        live: LiveLabels | None = None,
        *,
        seed: int = 0,
        page: LivePage | None = None,
        film: Film | None = None,
    ) -> None:
        self.rewards = rewards
        self.live = live
        self.page = page
        self.film = film
        self.seed = seed
        self.asked = 0
        self.ended: Tensor | None = None  # (N,) episodes of every environment that are over
        self.generator = torch.Generator().manual_seed(seed)
        self.labels: Labels | None = None

    def begin(self, progress: float) -> None:
        """Prepare for the rollout that comes: serve the page, and film as much of it as will be asked about."""
        if self.live is None or self.page is None or self.film is None:
            return
        self.page.open()
        self.film.begin(min(CLIPS_PER_LABEL * (self.live.due(progress) - self.asked), MOST_FILMED), self.generator)

    def tell(self, say: Callable[[str], None]) -> None:
        """Say to ``say`` where the page is, once it is served."""
        if self.page is not None:
            self.page.say = say

    def close(self) -> None:
        """End the page. Further calls do nothing."""
        if self.page is not None:
            self.page.close()

    def replace(self, rollout: Rollout, to_env: ToEnv, progress: float) -> tuple[Rollout, dict[str, float]]:
        """Ask what is due about a rollout, learn from it, and return the rollout with the learned reward.

        Args:      rollout with leading axes (M, T, N); progress of the run in [0, 1]
        Returns:   the rollout, its rewards 0 until anything was said; metrics of the reward where something was learned
        Raises:    RunError where labels are due and no episode is as long as a clip, or the labeller answers otherwise
                   than asked
        Verified:  tests/unit/test_learned_reward.py::test_the_agent_sees_the_learned_reward_alone
        """
        action = self._features(rollout, to_env)
        metrics: dict[str, float] = {}
        if self.live is not None:
            due = self.live.due(progress) - self.asked
            if due > 0 and self._ask(self.live, rollout, action, to_env, due):
                metrics = self._learn()
            self.ended = self._before(rollout) + _ends(rollout).sum(0)
        if not self.knows:
            return rollout._replace(reward=torch.zeros_like(rollout.reward)), metrics
        obs = {name: x[:, :-1] for name, x in rollout.obs.items()}
        learned = self.rewards.rewards(obs, action).to(rollout.reward)
        # A row without a decision has no reward, as in the environment's own.
        return rollout._replace(reward=torch.where(rollout.valid, learned, 0.0)), metrics

    @property
    def knows(self) -> bool:
        """Return whether anything was learned yet."""
        return self.live is None or (self.labels is not None and not bool(self.labels.evaluation.all()))

    def _features(self, rollout: Rollout, to_env: ToEnv) -> Tensor:
        """(M, T, N, F)"""
        lead = rollout.reward.shape
        taken = to_env(rollout.action.reshape(lead.numel(), *rollout.action.shape[3:]).cpu().numpy())
        return action_features(self.rewards.action_spec, taken).view(*lead, -1)

    # Asking

    def _ask(self, live: LiveLabels, rollout: Rollout, action: Tensor, to_env: ToEnv, due: int) -> bool:
        """Ask about ``due`` pairs of the rollout's clips; return whether anything new can be learned from."""
        windows, episode = clip_windows(rollout, live.clip_steps, self._before(rollout))
        if len(windows) < 2:
            if self.labels is None:
                raise RunError(
                    f"no two clips of {live.clip_steps} steps fit into the episodes that were played: the episodes, or "
                    "rollout_steps, are shorter; set clip_steps to less"
                )
            return False
        if self.film is not None:
            seen = self._filmed(windows, rollout.valid.shape[2])
            windows, episode = windows[seen], episode[seen]
        kept = torch.randperm(len(windows), generator=self.generator)[: CLIPS_PER_LABEL * due]
        windows, episode = windows[kept], episode[kept]
        clips = self._cut(rollout, action, windows, live.clip_steps)
        aside = reserved_groups(episode, live.evaluation_share, self.seed)
        # Within each side: a pair with one clip of an episode kept aside would let that episode be learned from.
        pairs = torch.cat([self._offer(side.nonzero().flatten(), live.offered * due) for side in (aside, ~aside)])
        score = self.rewards.clip_scores(clips).cpu()
        disputed = preference_disagreement(score[:, pairs[:, 0]], score[:, pairs[:, 1]])
        chosen = choose_pairs(disputed, aside[pairs[:, 0]], due, self.generator, uniform_share=live.evaluation_share)
        pairs = pairs[chosen.pairs]
        segments = {i: self._segment(rollout, to_env, windows[i], episode[i]) for i in pairs.unique().tolist()}
        ask = live.labeller if self.page is None else self.page
        assert not isinstance(ask, People)
        answers = ask([(segments[i], segments[j]) for i, j in pairs.tolist()], self.asked)
        self._check(answers, len(pairs))
        self.asked += len(pairs)
        return self._keep(clips, pairs, chosen.evaluation, answers)

    def _filmed(self, windows: Tensor, envs: int) -> Tensor:
        """(W,) bool: of which places of clips there are pictures."""
        assert self.film is not None
        kept = torch.tensor([row * envs + column for row, column in self.film.kept], dtype=torch.int64)
        return torch.isin(windows[:, 0] * envs + windows[:, 1], kept)

    def _before(self, rollout: Rollout) -> Tensor:
        """(N,) episodes that ended before the rollout: one that goes on from the last keeps its number and side."""
        return torch.zeros(rollout.valid.shape[2], dtype=torch.int64) if self.ended is None else self.ended

    def _offer(self, clips: Tensor, count: int) -> Tensor:
        """At most ``count`` different pairs of some of the clips, (P, 2)."""
        if len(clips) < 2:
            return torch.zeros((0, 2), dtype=torch.int64)
        pairs = clips[torch.randint(len(clips), (count, 2), generator=self.generator)].sort(-1).values
        pairs = torch.unique(pairs[pairs[:, 0] != pairs[:, 1]], dim=0)
        # Sorted by now: which of two stands first must say nothing about when it was played.
        swapped = torch.rand(len(pairs), generator=self.generator) < 0.5
        return torch.where(swapped.unsqueeze(-1), pairs.flip(-1), pairs)

    @staticmethod
    def _check(answers: Sequence[Answer], asked: int) -> None:
        wrong = [x for x in answers if x not in ANSWERS]
        if wrong or len(answers) != asked:
            raise RunError(
                f"the labeller gave {len(answers)} answers to {asked} pairs"
                + (f", among them {wrong[0]!r}" if wrong else "")
                + f"; expected one of {', '.join(ANSWERS)} for each"
            )

    def _keep(self, clips: Clips, pairs: Tensor, evaluation: Tensor, answers: Sequence[Answer]) -> bool:
        said = torch.tensor([answer != "skip" for answer in answers], dtype=torch.bool)
        if not bool(said.any()):
            return False
        second = torch.tensor([answer == "second" for answer in answers], dtype=torch.bool)
        tie = torch.tensor([answer == "tie" for answer in answers], dtype=torch.bool)[said]
        pairs = torch.where(second.unsqueeze(-1), pairs.flip(-1), pairs)[said]
        used, pairs = torch.unique(pairs, return_inverse=True)
        weight = self.rewards.draw_weights(len(pairs))
        new = Labels(clips.at(used), pairs, tie, evaluation[said], weight)
        self.labels = new if self.labels is None else _joined(self.labels, new)
        return self.knows

    def _learn(self) -> dict[str, float]:
        assert self.labels is not None
        labels = self.labels
        learned = ~labels.evaluation
        found = self.rewards.learn(labels.clips, labels.comparisons(learned), labels.weight[:, learned])
        metrics = {"reward_labels": float(len(labels.tie)), "reward_loss": found["loss"]}
        held_out = labels.evaluation & ~labels.tie
        if bool(held_out.any()):
            metrics["reward_accuracy"] = self.rewards.accuracy(labels.clips, labels.comparisons(held_out))
        return metrics

    def _cut(self, rollout: Rollout, action: Tensor, windows: Tensor, steps: int) -> Clips:
        rows = windows[:, 0:1] + torch.arange(steps)
        column = windows[:, 1:2]
        obs = {name: x[0].cpu()[rows, column] for name, x in rollout.obs.items()}
        return Clips(obs, action[0].cpu()[rows, column])

    def _segment(self, rollout: Rollout, to_env: ToEnv, window: Tensor, episode: Tensor) -> Segment:
        assert self.live is not None
        start, column = (int(x) for x in window)
        rows = slice(start, start + self.live.clip_steps)
        return Segment(
            {name: x[0, start : rows.stop + 1, column].cpu().numpy() for name, x in rollout.obs.items()},
            to_env(rollout.action[0, rows, column].cpu().numpy()),
            rollout.reward[0, rows, column].cpu().numpy(),
            int(episode),
            int(rollout.episode_step[0, start, column]),
            () if self.film is None else self.film.kept[start, column],
        )

    # Saving

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return what a checkpoint holds: the ensemble, and where labels are asked for, all of them."""
        named = {f"reward/{name}": x for name, x in self.rewards.tensors().items()}
        if self.live is not None:
            named["reward/asking"] = self.generator.get_state()
            named |= {} if self.ended is None else {"reward/ended": self.ended}
        if self.labels is not None:
            clips, *rest = self.labels
            named |= {f"reward/labels/obs/{name}": x for name, x in clips.obs.items()}
            named["reward/labels/action"] = clips.action
            named |= {f"reward/labels/{k}": x for k, x in zip(Labels._fields[1:], rest, strict=True)}
        return named, {"asked": self.asked}

    def load_state(self, tensors: Mapping[str, Tensor], figures: Mapping[str, Any]) -> None:
        """Take over what ``state`` gave.

        Verified:  tests/integration/test_learned_reward_runs.py::test_a_run_resumes_to_the_same_bits
        """
        mine = {name.removeprefix("reward/"): x for name, x in tensors.items() if name.startswith("reward/")}
        self.rewards.load_tensors(mine)
        self.asked = int(figures["asked"])
        if self.live is not None:
            self.generator.set_state(mine["asking"])
            self.ended = mine.get("ended")
        if "labels/pairs" in mine:
            obs = {f.name: mine[f"labels/obs/{f.name}"] for f in self.rewards.obs_spec.fields}
            rest = (mine[f"labels/{name}"] for name in Labels._fields[1:])
            self.labels = Labels(Clips(obs, mine["labels/action"]), *rest)


def _joined(one: Labels, other: Labels) -> Labels:
    return Labels(
        one.clips.joined(other.clips),
        torch.cat([one.pairs, other.pairs + len(one.clips.action)]),
        torch.cat([one.tie, other.tie]),
        torch.cat([one.evaluation, other.evaluation]),
        torch.cat([one.weight, other.weight], 1),
    )


def _ends(rollout: Rollout) -> Tensor:
    """(T, N) bool of the one member: an episode ended here."""
    return (rollout.terminated[0] | rollout.truncated[0]).cpu()


def clip_windows(rollout: Rollout, steps: int, before: Tensor) -> tuple[Tensor, Tensor]:
    """Return every place of a clip of ``steps`` decisions within one episode of a rollout (1, T, N).

    Nothing is decided in the row after an episode's end, so that decisions in a row are of one episode.

    Args:      before (N,) int64: how many episodes of each environment had ended
    Returns:   (W, 2) int64: the first row, and the environment; (W,) int64: the number of the episode
    Verified:  tests/unit/test_learned_reward.py::test_clips_lie_within_episodes
    """
    valid, done = rollout.valid[0].cpu(), _ends(rollout)
    length, number = valid.shape
    if length < steps:
        return torch.zeros((0, 2), dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    windows = valid.unfold(0, steps, 1).all(-1).nonzero()
    ends = before + done.long().cumsum(0) - done.long()  # before each row
    episode = ends[windows[:, 0], windows[:, 1]] * number + windows[:, 1]
    return windows, episode
