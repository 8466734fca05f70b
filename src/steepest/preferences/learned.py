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
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor

from steepest.agents.agent import Agent
from steepest.agents.replay_updates import ReplayAgent
from steepest.errors import RunError, UsageError
from steepest.fields import Checked, Count, Share
from steepest.preferences.answers import Comparisons, comparisons
from steepest.preferences.clips import ClipRewards, Clips, RewardConfig, action_features, read_clips
from steepest.preferences.selection import choose_pairs, preference_disagreement, reserved_groups
from steepest.seeding import stream_seed
from steepest.types import ActionSpec, ObsSpec, Rollout

Array = NDArray[Any]
Answer = Literal["first", "second", "tie", "skip"]
ANSWERS: tuple[Answer, ...] = ("first", "second", "tie", "skip")
ToEnv = Callable[[Array], Array]
"""From actions as the policy drew them, (N, ...), to those that the environment takes."""


class Segment(NamedTuple):
    """A clip of the agent's own play."""

    observations: dict[str, Array]  # each (T+1, ...)
    actions: Array  # (T, ...), as the environment took them
    rewards: Array  # (T,) the environment's own: for scripted labellers, never for the agent


Labeller = Callable[[Sequence[tuple[Segment, Segment]], int], Sequence[Answer]]
"""Answers which of each pair is better. The number says how many were asked before: a labeller that draws should draw
from it, so that a resumed run gets the same answers."""


@dataclass(frozen=True, kw_only=True)
class LiveLabels(Checked):
    """Labels that are asked for while an agent trains."""

    labeller: Labeller
    """Who answers."""
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
    reward: RewardConfig = field(default_factory=RewardConfig)
    """How the reward is learned."""

    def due(self, progress: float) -> int:
        """Return how many labels should have been asked for at a progress in [0, 1].

        Equation:  labels (f + (1 - f) log2(1 + progress)), rounded up
        Source:    Christiano et al. 2017, section 3.1: a quarter first, then at a rate falling as T / (T + t); here T
                   is the length of the run, so that the last label is asked at its end.
        Verified:  tests/unit/test_learned_reward.py::test_labels_are_asked_for_less_and_less
        """
        later = (1.0 - self.first_share) * math.log2(1.0 + progress)
        return min(self.labels, math.ceil(self.labels * (self.first_share + later) - 1e-9))


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

    Args:      rewards: the ensemble, already fitted unless labels are asked for; live: who is asked, and how often
    """

    def __init__(self, rewards: ClipRewards, live: LiveLabels | None = None, *, seed: int = 0) -> None:
        self.rewards = rewards
        self.live = live
        self.seed = seed
        self.asked = 0
        self.ended: Tensor | None = None  # (N,) episodes of every environment that are over
        self.generator = torch.Generator().manual_seed(seed)
        self.labels: Labels | None = None

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
        kept = torch.randperm(len(windows), generator=self.generator)[: 4 * due]
        windows, episode = windows[kept], episode[kept]
        clips = self._cut(rollout, action, windows, live.clip_steps)
        aside = reserved_groups(episode, live.evaluation_share, self.seed)
        # Within each side: a pair with one clip of an episode kept aside would let that episode be learned from.
        pairs = torch.cat([self._offer(side.nonzero().flatten(), live.offered * due) for side in (aside, ~aside)])
        score = self.rewards.clip_scores(clips).cpu()
        disputed = preference_disagreement(score[:, pairs[:, 0]], score[:, pairs[:, 1]])
        chosen = choose_pairs(disputed, aside[pairs[:, 0]], due, self.generator, uniform_share=live.evaluation_share)
        pairs = pairs[chosen.pairs]
        segments = {i: self._segment(rollout, to_env, windows[i], live.clip_steps) for i in pairs.unique().tolist()}
        answers = live.labeller([(segments[i], segments[j]) for i, j in pairs.tolist()], self.asked)
        self._check(answers, len(pairs))
        self.asked += len(pairs)
        return self._keep(clips, pairs, chosen.evaluation, answers)

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

    def _segment(self, rollout: Rollout, to_env: ToEnv, window: Tensor, steps: int) -> Segment:
        start, column = (int(x) for x in window)
        rows = slice(start, start + steps)
        return Segment(
            {name: x[0, start : start + steps + 1, column].cpu().numpy() for name, x in rollout.obs.items()},
            to_env(rollout.action[0, rows, column].cpu().numpy()),
            rollout.reward[0, rows, column].cpu().numpy(),
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


def reward_of(project: Any, rewards: ClipRewards, env: str | None, note: Callable[[str], None]) -> LearnedReward:
    """Return the reward that the labels of a project teach, told with its accuracy on episodes kept aside.

    It is learned twice: without a fifth of the episodes, to say how good it is on those, and then from everything.

    Args:      project: ``store.Project``, or anything else with its ``clips()``, ``items()`` and ``judgements()``;
               rewards not yet fitted; env: the id that the clips should be of, None: unknown
    Raises:    UsageError where the clips are of another environment, or nothing was said of them
    Verified:  tests/integration/test_learned_reward_runs.py::test_a_finished_project_is_learned_from
    """
    clips = list(project.clips())
    of_clips = {item.id for item in project.items() if item.kind == "clip"}
    judgements = [j for j in project.judgements() if j.item in of_clips and not j.repeat]
    others = sorted({clip.env for clip in clips} - {env})
    if env is not None and others:
        raise UsageError(f"the project's clips are of {', '.join(others)}, but the agent is to learn in {env}")
    start = {name: x.clone() for name, x in rewards.tensors().items()}
    episodes = {clip.id: (clip.source, clip.episode) for clip in clips}
    numbers = {episode: i for i, episode in enumerate(sorted(set(episodes.values())))}
    group = torch.tensor([numbers[episodes[clip.id]] for clip in clips], dtype=torch.int64)
    aside = {clip.id for clip, kept in zip(clips, reserved_groups(group, 0.2, 0).tolist(), strict=True) if kept}
    known = [j for j in judgements if not aside & set(j.ranking)]
    unseen = [j for j in judgements if j.ranking and aside >= set(j.ranking) and j.kind != "tie"]
    measured = ""
    if any(j.kind != "skip" for j in known) and unseen:
        rewards.fit(clips, known)
        data = read_clips(clips, rewards.obs_spec, rewards.action_spec)
        found = rewards.accuracy(data, comparisons(unseen, [clip.id for clip in clips]))
        measured = f"; {found:.0%} of {len(unseen)} preferences in episodes kept aside are foretold"
        rewards.load_tensors(start)
    rewards.fit(clips, judgements)
    said = sum(j.kind != "skip" for j in judgements)
    note(f"the reward is learned from {said} judgements of {len(clips)} clips{measured}")
    return LearnedReward(rewards)


def learned_reward(
    given: Any,
    obs_spec: ObsSpec,
    action_spec: ActionSpec,
    *,
    env: str | None,
    seed: int,
    device: torch.device | str,
    note: Callable[[str], None] | None,
) -> LearnedReward:
    """Return the reward that a user asks for: from a project, or from labels asked for live.

    Args:      given: the file of a project, a project, or ``LiveLabels``; note: takes what a user should know; None: a
               run resumes, so that nothing is learned here and its checkpoint says all
    Raises:    UsageError where a project has nothing to learn from, or clips of another environment
    Verified:  tests/integration/test_learned_reward_runs.py::test_a_finished_project_is_learned_from
    """
    live = given if isinstance(given, LiveLabels) else None
    own = stream_seed(seed, "reward") % 2**31
    config = None if live is None else live.reward
    rewards = ClipRewards(obs_spec, action_spec, config, seed=own, device=device)
    if live is not None or note is None:
        return LearnedReward(rewards, live, seed=own)
    if not isinstance(given, (str, Path)):
        return reward_of(given, rewards, env, note)
    from steepest.preferences.store import Project

    with Project.open(given) as project:
        return reward_of(project, rewards, env, note)


def check_reward(agent_class: type[Agent], data: Any, reward: Any, seeds: int) -> None:
    """Raise UsageError unless a reward from labels can take the place of the environment's.

    Verified:  tests/integration/test_learned_reward_runs.py::test_what_cannot_learn_from_labels_is_refused
    """
    if reward is None:
        return
    if data is not None:
        raise UsageError("reward and data are both given: a reward from labels is of what an agent plays, not of data")
    if issubclass(agent_class, ReplayAgent):
        raise UsageError(
            f"{agent_class.algorithm} learns from a replay buffer, whose rewards would be those of labels long ago; a "
            "reward from labels needs an on-policy algorithm, such as ppo"
        )
    if isinstance(reward, LiveLabels) and seeds > 1:
        raise UsageError(f"labels are asked for about one agent's clips, but seeds is {seeds}; train one seed")
