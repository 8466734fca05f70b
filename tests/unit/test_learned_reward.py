"""Labels asked for while an agent trains: when, about which clips, and what the agent then sees."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from helpers import box, vector
from steepest.errors import RunError, UsageError
from steepest.preferences.clips import ClipRewards, RewardConfig
from steepest.preferences.learned import Answer, LearnedReward, LiveLabels, Segment, clip_windows
from steepest.types import Rollout

QUICK = RewardConfig(hidden_sizes=(8,), first_steps=20, steps=20)
Pairs = Sequence[tuple[Segment, Segment]]


def to_env(action: Any) -> Any:
    return 2.0 * np.clip(action, -1.0, 1.0)


def played(steps: int = 40, envs: int = 4, length: int = 10, seed: int = 0) -> Rollout:
    """A rollout of one member whose episodes end every ``length`` rows; the row after an end restarts."""
    g = torch.Generator().manual_seed(seed)
    row = torch.arange(steps) % (length + 1)
    valid = (row != length).unsqueeze(-1).expand(steps, envs)
    done = (row == length - 1).unsqueeze(-1).expand(steps, envs)
    obs = torch.randn((1, steps + 1, envs, 2), generator=g)
    return Rollout(
        obs={"obs": obs},
        action=torch.randn((1, steps, envs, 1), generator=g),
        reward=torch.where(valid, 100.0 + torch.randn((steps, envs), generator=g), 0.0)[None],
        terminated=torch.zeros((1, steps, envs), dtype=torch.bool),
        truncated=done[None],
        valid=valid[None],
        episode_step=row.unsqueeze(-1).expand(steps, envs)[None],
        action_mask=None,
        memory=None,
    )


class Scripted:
    """Prefers the clip whose first observed numbers sum to more; notes what it was asked."""

    def __init__(self, answer: Answer | None = None) -> None:
        self.answer = answer
        self.asked: list[tuple[Segment, Segment]] = []
        self.before: list[int] = []

    def __call__(self, pairs: Pairs, asked: int) -> list[Answer]:
        self.asked += pairs
        self.before.append(asked)
        worth = [[float(s.observations["obs"][:-1, 0].sum()) for s in pair] for pair in pairs]
        return [self.answer or ("first" if a > b else "second") for a, b in worth]


def live(labeller: Any, **options: Any) -> LiveLabels:
    return LiveLabels(labeller=labeller, **{"labels": 40, "clip_steps": 5, "reward": QUICK, **options})


def source(settings: LiveLabels, seed: int = 0) -> LearnedReward:
    return LearnedReward(ClipRewards(vector(2), box(1, 2.0), settings.reward, seed=seed), settings, seed=seed)


def test_labels_are_asked_for_less_and_less() -> None:
    settings = live(Scripted(), labels=700)
    due = [settings.due(p) for p in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert due[0] == 175
    assert due[-1] == 700
    asked = [b - a for a, b in itertools.pairwise(due)]
    assert asked == sorted(asked, reverse=True)
    assert asked[0] > 1.5 * asked[-1] > 0
    assert live(Scripted(), first_share=1.0).due(0.0) == 40
    assert live(Scripted(), first_share=0.0).due(0.0) == 0
    for wrong in ({"labels": 0}, {"clip_steps": 0}, {"first_share": 1.5}, {"evaluation_share": -0.1}):
        with pytest.raises(UsageError):
            live(Scripted(), **wrong)


def test_clips_lie_within_episodes() -> None:
    """Every place of five decisions in a row, and no other: none over an end, a restart or the rollout's last row."""
    rollout = played(steps=40, envs=3, length=8)
    windows, episode = clip_windows(rollout, 5, torch.zeros(3, dtype=torch.int64))
    valid, done = rollout.valid[0], (rollout.terminated | rollout.truncated)[0]
    expected = {
        (t, n)
        for n in range(3)
        for t in range(36)
        if bool(valid[t : t + 5, n].all()) and not bool(done[t : t + 4, n].any())
    }
    assert {(int(t), int(n)) for t, n in windows} == expected
    assert any(bool(done[t + 4, n]) for t, n in expected)  # a clip may end with its episode
    number = {(t // 9, n) for t, n in expected}
    assert len(set(episode.tolist())) == len(number)
    for (t, n), e in zip(windows.tolist(), episode.tolist(), strict=True):
        assert e == (t // 9) * 3 + n
    single, episode_of = clip_windows(rollout, 1, torch.zeros(3, dtype=torch.int64))
    assert len(single) == int(valid.sum())  # the last step of an episode is of that episode
    assert episode_of.tolist() == [(t // 9) * 3 + n for t, n in single.tolist()]
    for steps in (9, 41):
        assert len(clip_windows(rollout, steps, torch.zeros(3, dtype=torch.int64))[0]) == 0
    later = clip_windows(rollout, 5, torch.tensor([7, 0, 2]))[1]
    assert torch.equal(later, episode + 3 * torch.tensor([7, 0, 2])[windows[:, 1]])


def test_the_agent_sees_the_learned_reward_alone() -> None:
    """Whatever the environment pays, the replaced rewards are the same; rows without a decision have none."""
    rollout = played()
    paid = rollout._replace(reward=torch.where(rollout.valid, 7.0 * rollout.reward - 3.0, 0.0))
    found = []
    for given in (rollout, paid):
        learned = source(live(Scripted()))
        replaced, metrics = learned.replace(given, to_env, 0.0)
        assert metrics.keys() == {"reward_labels", "reward_loss", "reward_accuracy"}
        assert replaced.reward.shape == rollout.reward.shape
        assert not replaced.reward[~rollout.valid].any()
        assert torch.equal(replaced.obs["obs"], rollout.obs["obs"])
        found.append(replaced.reward)
    assert torch.equal(*found)
    assert float(found[0].abs().max()) < 20.0  # not the environment's hundreds
    assert float(found[0][rollout.valid].std()) > 0.1


def test_the_labeller_sees_clips_as_they_were_played() -> None:
    labeller = Scripted()
    rollout = played()
    source(live(labeller)).replace(rollout, to_env, 0.0)
    assert len(labeller.asked) == 10
    assert labeller.before == [0]
    for segment in (s for pair in labeller.asked for s in pair):
        assert segment.observations["obs"].shape == (6, 2)
        assert segment.actions.shape == (5, 1)
        rows = (rollout.reward[0] == float(segment.rewards[0])).nonzero()
        (t, n) = rows[0].tolist()
        assert segment.rewards.tolist() == rollout.reward[0, t : t + 5, n].tolist()
        assert segment.observations["obs"].tolist() == rollout.obs["obs"][0, t : t + 6, n].tolist()
        np.testing.assert_array_equal(segment.actions, to_env(rollout.action[0, t : t + 5, n].numpy()))


def test_labels_add_up_and_some_are_kept_aside() -> None:
    """Asked as the schedule says; a fifth is for evaluation, of episodes that nothing is learned from."""
    labeller = Scripted()
    learned = source(live(labeller, labels=200))
    for i, progress in enumerate((0.0, 0.3, 0.6, 0.9)):
        _, metrics = learned.replace(played(steps=88, seed=i), to_env, progress)
        assert learned.asked == learned.live.due(progress)  # pyright: ignore[reportOptionalMemberAccess]
        assert metrics["reward_labels"] == learned.asked
    again, metrics = learned.replace(played(seed=9), to_env, 0.9)
    assert metrics == {}  # nothing was due, and nothing is learned anew
    assert bool(again.reward.any())
    labels = learned.labels
    assert labels is not None
    assert 0.08 < float(labels.evaluation.float().mean()) < 0.35
    kept, rest = labels.pairs[labels.evaluation], labels.pairs[~labels.evaluation]
    assert not set(kept.flatten().tolist()) & set(rest.flatten().tolist())
    assert labeller.before == sorted(set(labeller.before))
    worth = labels.clips.obs["obs"][..., 0].sum(-1)
    assert bool((worth[labels.pairs[:, 0]] > worth[labels.pairs[:, 1]]).all())  # the preferred one first


@pytest.mark.parametrize("ends", [0, 1])
def test_an_episode_that_goes_on_keeps_its_side(ends: int) -> None:
    """Over four rollouts, whether each environment has one episode, or a new one begins within every rollout."""
    learned = source(live(Scripted(), labels=400, evaluation_share=0.5))
    sides: dict[int, set[bool]] = {}
    number = torch.zeros(8)  # of the episode, as it is observed
    for i in range(4):
        rollout = played(steps=40, envs=8, length=39 if ends else 1000, seed=i)
        obs = rollout.obs["obs"]
        obs[0, :, :, 1] = 100.0 * torch.arange(8) + number
        if ends:
            obs[0, 39:, :, 1] += 1.0  # the row that restarts shows the next one's first observation
        learned.replace(rollout._replace(obs={"obs": obs}), to_env, 0.25 * i)
        number += ends
        assert learned.ended is not None
        assert learned.ended.tolist() == number.tolist()
    assert learned.labels is not None
    for side in (True, False):
        for i in learned.labels.pairs[learned.labels.evaluation == side].unique().tolist():
            sides.setdefault(int(learned.labels.clips.obs["obs"][i, 0, 1]), set()).add(side)
    assert all(len(found) == 1 for found in sides.values())
    assert {x for found in sides.values() for x in found} == {True, False}


def test_reserved_labels_are_never_learned_from() -> None:
    """Opposite answers about the pairs kept aside change nothing that is learned."""

    class Liar(Scripted):
        def __init__(self, evaluation: torch.Tensor | None) -> None:
            super().__init__()
            self.evaluation = evaluation

        def __call__(self, pairs: Pairs, asked: int) -> list[Answer]:
            found = super().__call__(pairs, asked)
            if self.evaluation is None:
                return found
            other: dict[Answer, Answer] = {"first": "second", "second": "first"}
            return [other[x] if lie else x for x, lie in zip(found, self.evaluation.tolist(), strict=True)]

    honest = source(live(Liar(None)))
    rollout = played()
    expected, metrics = honest.replace(rollout, to_env, 0.0)
    assert honest.labels is not None
    assert bool(honest.labels.evaluation.any())
    lying = source(live(Liar(honest.labels.evaluation)))
    found, other_metrics = lying.replace(rollout, to_env, 0.0)
    assert torch.equal(found.reward, expected.reward)
    assert other_metrics["reward_accuracy"] == pytest.approx(1.0 - metrics["reward_accuracy"])


def test_what_was_skipped_is_asked_and_forgotten() -> None:
    learned = source(live(Scripted("skip")))
    replaced, metrics = learned.replace(played(), to_env, 0.0)
    assert learned.asked == 10
    assert learned.labels is None
    assert metrics == {}
    assert not replaced.reward.any()  # nothing is known, and the environment's reward is not shown instead
    ties = source(live(Scripted("tie")))
    _, metrics = ties.replace(played(), to_env, 0.0)
    assert metrics["reward_labels"] == 10.0
    assert "reward_accuracy" not in metrics


def test_episodes_shorter_than_clips_are_an_error() -> None:
    learned = source(live(Scripted(), clip_steps=11))
    with pytest.raises(RunError, match="no two clips of 11 steps"):
        learned.replace(played(), to_env, 0.0)
    later = source(live(Scripted()))
    later.replace(played(), to_env, 0.0)
    asked = later.asked
    later.replace(played(length=3), to_env, 0.5)  # waits for longer episodes
    assert later.asked == asked


@pytest.mark.parametrize("answers", [["first"], ["left"] * 10, []], ids=["too few", "unknown", "none"])
def test_other_answers_than_asked_are_an_error(answers: list[Any]) -> None:
    learned = source(live(lambda pairs, asked: answers))
    with pytest.raises(RunError, match=r"answers to 10 pairs.*expected one of first, second, tie, skip"):
        learned.replace(played(), to_env, 0.0)


def test_state_resumes_to_the_same_bits() -> None:
    one, other = (source(live(Scripted()), seed=1) for _ in range(2))
    other.replace(played(seed=5, length=7), to_env, 0.1)  # of which nothing is left
    one.replace(played(), to_env, 0.0)
    tensors, figures = one.state()
    other.load_state({k: v.clone() for k, v in tensors.items()}, figures)
    for i, progress in enumerate((0.2, 0.5)):
        found = [x.replace(played(seed=i + 1), to_env, progress) for x in (one, other)]
        assert torch.equal(found[0][0].reward, found[1][0].reward)
        assert found[0][1] == found[1][1]
    assert one.asked == other.asked
