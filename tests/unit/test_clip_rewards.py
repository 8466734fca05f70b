"""The reward ensemble: what enters it, which loss each answer has, what is normalised, and what is saved."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers import F64, bits, box, discrete, vector
from steepest import UsageError
from steepest.losses import bradley_terry_loss, davidson_tie_loss, plackett_luce_loss
from steepest.preferences.answers import Comparisons, comparisons
from steepest.preferences.clips import (
    ClipRewards,
    Clips,
    RewardConfig,
    action_features,
    comparison_loss,
    feature_size,
    read_clips,
)
from steepest.types import ActionSpec, ObsField, ObsSpec

QUICK = RewardConfig(hidden_sizes=(16,), first_steps=60, steps=60)


class Said(NamedTuple):
    kind: str
    ranking: tuple[int, ...] = ()
    item: int = 1
    labeller: str = "a"
    shown: tuple[int, ...] = ()
    repeat: bool = False


class Recorded(NamedTuple):
    id: int
    observations: Any
    actions: Any


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def linear_clips(count: int, steps: int = 10, seed: int = 0) -> tuple[list[Recorded], Tensor]:
    """Clips of two observed and one acted number, and what each is worth under r = 2 o_1 - o_2 + a."""
    draw = np.random.default_rng(seed)
    clips = [
        Recorded(7 + 3 * i, draw.normal(size=(steps + 1, 2)) * (1.0, 5.0), draw.uniform(-1, 1, (steps, 1)))
        for i in range(count)
    ]
    worth = [float((2 * c.observations[:-1, 0] - c.observations[:-1, 1] / 5.0 + c.actions[:, 0]).sum()) for c in clips]
    return clips, torch.tensor(worth)


def labelled(clips: list[Recorded], worth: Tensor, count: int, seed: int = 0) -> list[Said]:
    """Preferences drawn from the Bradley-Terry model."""
    g = generator(seed)
    found: list[Said] = []
    for _ in range(count):
        i, j = torch.randperm(len(clips), generator=g)[:2].tolist()
        first = bool(torch.rand((), generator=g) < torch.sigmoid(worth[i] - worth[j]))
        found.append(Said("prefer", (clips[i].id, clips[j].id) if first else (clips[j].id, clips[i].id)))
    return found


# What is said


def test_judgements_become_comparisons() -> None:
    said = [
        Said("prefer", (9, 5)),
        Said("skip"),
        Said("rank", (5, 7, 9)),
        Said("tie", (7, 5)),
        Said("retract", (5, 9)),
    ]
    found = comparisons(said, [5, 7, 9])
    assert found.members.tolist() == [[2, 0, 0], [0, 1, 2], [1, 0, 0]]
    assert found.size.tolist() == [2, 3, 2]
    assert found.tie.tolist() == [False, False, True]
    assert comparisons([], [5]).members.shape == (0, 2)
    with pytest.raises(UsageError, match=r"speak of \[9\]"):
        comparisons(said, [5, 7])


def test_each_kind_of_comparison_has_its_loss() -> None:
    score = torch.randn((3, 4, 3), generator=generator(), dtype=F64)
    said = Comparisons(
        torch.zeros((4, 3), dtype=torch.int64), torch.tensor([2, 3, 2, 3]), torch.tensor([False, False, True, False])
    )
    nu = torch.tensor([[0.3], [1.0], [2.0]], dtype=F64)
    found = comparison_loss(score, said, nu)
    win, lose = score[:, 0, 0] - score[:, 0, 1], score[:, 2, 0] - score[:, 2, 1]
    expected = torch.stack(
        [
            torch.log(1 + torch.exp(-win) + nu[:, 0] * torch.exp(-win / 2)),
            plackett_luce_loss(score[:, 1]),
            davidson_tie_loss(lose, torch.zeros_like(lose), nu[:, 0]),
            plackett_luce_loss(score[:, 3]),
        ],
        -1,
    )
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    pairs = Comparisons(said.members[:1, :2], said.size[:1], said.tie[:1])
    plain = comparison_loss(score[:, :1, :2], pairs, 0.0)
    assert torch.equal(plain, bradley_terry_loss(score[:, :1, 0], score[:, :1, 1]))  # as of language, to the bit


def test_the_likelihood_of_a_tie_has_slopes_everywhere() -> None:
    """Where some of a batch are ties, and where none is, gradients are numbers."""
    for ties in ([True, False], [False, False], [True, True]):
        score = torch.randn((2, 2, 2), generator=generator(1), requires_grad=True)
        log_nu = torch.zeros((2, 1), requires_grad=True)
        said = Comparisons(torch.zeros((2, 2), dtype=torch.int64), torch.tensor([2, 2]), torch.tensor(ties))
        comparison_loss(score, said, log_nu.exp()).sum().backward()
        assert score.grad is not None
        assert log_nu.grad is not None
        assert bool(score.grad.isfinite().all())
        assert bool(log_nu.grad.isfinite().all())


# What enters


def test_actions_of_every_space() -> None:
    def of(spec: ActionSpec, action: Any) -> list[Any]:
        found = action_features(spec, np.asarray(action))
        assert found.shape[-1] == feature_size(spec)
        assert found.dtype == torch.float32
        return found.tolist()

    assert of(box(2, 2.0), [[2.0, -2.0], [0.0, 1.0]]) == [[1.0, -1.0], [0.0, 0.5]]
    uneven = ActionSpec("box", (2,), "float32", low=(0.0, -math.inf), high=(4.0, 1.0))
    assert of(uneven, [[4.0, -7.0]]) == [[1.0, -7.0]]
    assert of(discrete(3), [0, 2]) == [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    counted = ActionSpec("discrete", (), "int64", (2,), (5,))
    assert of(counted, [[5, 6]]) == [[[1.0, 0.0], [0.0, 1.0]]]
    assert of(discrete(2, 3), [[1, 0]]) == [[0.0, 1.0, 1.0, 0.0, 0.0]]
    assert of(bits(3), [[1, 0, 1]]) == [[1.0, 0.0, 1.0]]
    square = ActionSpec("box", (2, 2), "float32", low=(-1.0,) * 4, high=(1.0,) * 4)
    assert of(square, [[[0.5, 0.0], [1.0, -1.0]]]) == [[0.5, 0.0, 1.0, -1.0]]
    with pytest.raises(ValueError, match="expected"):
        action_features(box(2), np.zeros((4, 3)))


def test_observations_are_those_before_each_action() -> None:
    """A bare array, or the fields of a dictionary; discrete ones count from 0, whatever the space begins with."""
    raw, actions = np.arange(8.0).reshape(4, 2), np.array([0, 1, 1])
    for observations in (raw, {"obs": raw}):
        found = read_clips([Recorded(1, observations, actions)] * 2, vector(2), discrete(2))
        assert found.obs["obs"].shape == (2, 3, 2)
        assert found.obs["obs"][0].tolist() == raw[:3].tolist()
        assert found.action.shape == (2, 3, 2)
    spec = ObsSpec(
        (ObsField("arm/angle", "vector", (1,), "float32"), ObsField("mode", "discrete", (), "int64", (3,), (5,))),
        is_dict=True,
    )
    found = read_clips(
        [Recorded(1, {"arm/angle": np.zeros((4, 1)), "mode": np.array([0, 1, 2, 0])}, actions)], spec, discrete(2)
    )
    assert found.obs["mode"].tolist() == [[0, 1, 2]]
    assert found.obs["arm/angle"].shape == (1, 3, 1)


def test_clips_of_another_kind_are_refused() -> None:
    raw, actions = np.zeros((4, 2)), np.array([0, 1, 1])
    longer = Recorded(2, np.zeros((6, 2)), np.zeros(5, dtype=np.int64))
    for clips, said in (
        ([], "no clips to learn"),
        ([Recorded(1, raw, actions), longer], r"\[3, 5\] steps"),
        ([Recorded(1, np.zeros((4, 3)), actions)], "not of this environment"),
        ([Recorded(1, raw, np.zeros((3, 2)))], "not of this environment"),
        ([Recorded(1, {"wheel": raw, "arm": raw}, actions)], "not of this environment"),
    ):
        with pytest.raises(UsageError, match=said):
            read_clips(clips, vector(2), discrete(2))
    rewards = ClipRewards(vector(2), discrete(2), QUICK)
    clip = Recorded(1, raw, actions)
    for judgements in ([], [Said("skip")]):
        with pytest.raises(UsageError, match="nothing was said of the 1 clips"):
            rewards.fit([clip], judgements)


@pytest.mark.parametrize("field", ["image", "discrete"])
def test_other_observations_are_learned_from(field: str) -> None:
    spec = {
        "image": ObsField("obs", "image", (1, 36, 36), "uint8"),
        "discrete": ObsField("obs", "discrete", (), "int64", (4,), (0,)),
    }[field]
    draw = np.random.default_rng(0)
    shape = (3, 1, 36, 36) if field == "image" else (3,)
    clips = [Recorded(i, draw.integers(0, 4, shape).astype(spec.dtype), draw.integers(0, 2, 2)) for i in range(3)]
    rewards = ClipRewards(ObsSpec((spec,), is_dict=False), discrete(2), RewardConfig(hidden_sizes=(8,), first_steps=3))
    found = rewards.fit(clips, [Said("prefer", (0, 1)), Said("tie", (1, 2)), Said("rank", (2, 1, 0))])
    assert math.isfinite(found["loss"])
    scores = rewards.scores(clips[0].observations, clips[0].actions)
    assert scores.shape == (3, 2)
    assert bool(scores.isfinite().all())


# What is learned


def test_a_linear_reward_is_learned_from_labels() -> None:
    """From 300 labels of 100 clips: rewards of new clips correlate with the true ones, and more labels help."""
    clips, worth = linear_clips(100)
    others, true = linear_clips(200, seed=1)

    def correlation(count: int) -> float:
        rewards = ClipRewards(vector(2), box(1), RewardConfig(hidden_sizes=(32,), first_steps=200))
        rewards.fit(clips, labelled(clips, worth, count))
        found = rewards.clip_scores(read_clips(others, vector(2), box(1))).mean(0)
        return float(torch.corrcoef(torch.stack([found, true]))[0, 1])

    few, many = correlation(10), correlation(300)
    assert many > 0.95
    assert few < many
    untrained = ClipRewards(vector(2), box(1)).clip_scores(read_clips(others, vector(2), box(1))).mean(0)
    assert abs(float(torch.corrcoef(torch.stack([untrained, true]))[0, 1])) < 0.9


def test_ties_draw_scores_together() -> None:
    """Clips that are called equal again and again end nearer than the same ones that nobody compared."""
    clips, worth = linear_clips(12)
    said = labelled(clips, worth, 60)
    best, worst = int(worth.argmax()), int(worth.argmin())
    ties = [Said("tie", (clips[best].id, clips[worst].id))] * 60

    def gap(judgements: list[Said]) -> float:
        rewards = ClipRewards(vector(2), box(1), QUICK)
        rewards.fit(clips, judgements)
        score = rewards.clip_scores(read_clips(clips, vector(2), box(1))).mean(0)
        return float(score[best] - score[worst])

    assert abs(gap(said + ties)) < 0.6 * gap(said)


def test_the_tie_weight_follows_the_share_of_ties() -> None:
    """It rises where most answers are ties, falls where few are, and is not touched where none is."""
    clips, worth = linear_clips(12)
    said = labelled(clips, worth, 60)

    def log_tie(ties: int) -> Tensor:
        rewards = ClipRewards(vector(2), box(1), QUICK)
        rewards.fit(clips, [*said[ties:], *(Said("tie", j.ranking) for j in said[:ties])])
        return rewards.log_tie.detach()

    assert float(log_tie(60).min()) > 0.01
    assert float(log_tie(2).max()) < -0.01
    assert not log_tie(0).any()


def test_members_learn_from_draws_of_their_own() -> None:
    """Their weights begin apart, and comparisons count a Poisson number of times; they disagree most where none was."""
    rewards = ClipRewards(vector(2), box(1), RewardConfig(members=4, hidden_sizes=(16,), first_steps=100))
    weight = ClipRewards(vector(2), box(1)).draw_weights(4000)
    assert weight.shape == (3, 4000)
    assert float(weight.mean()) == pytest.approx(1.0, abs=0.05)
    assert float(weight.var()) == pytest.approx(1.0, abs=0.1)
    clips, worth = linear_clips(40)
    rewards.fit(clips, labelled(clips, worth, 100))
    near = rewards.clip_scores(read_clips(clips, vector(2), box(1)))
    assert float(near.std(0).max()) > 0.0
    far = [Recorded(0, 20.0 * c.observations, c.actions) for c in clips]
    away = rewards.clip_scores(read_clips(far, vector(2), box(1)))
    assert float(away.var(0).mean()) > float(near.var(0).mean())


def test_rewards_are_normalised_by_member() -> None:
    """Over the steps of the compared clips every member's rewards have mean zero and deviation one."""
    clips, worth = linear_clips(30)
    said = labelled(clips[:20], worth[:20], 60)  # ten clips that nobody compared
    rewards = ClipRewards(vector(2), box(1), QUICK)
    rewards.fit(clips, said)
    data = read_clips(clips[:20], vector(2), box(1))
    compared = sorted({i for j in said for i in j.ranking})
    assert compared == [c.id for c in clips[:20]]
    each = rewards.member_rewards(data.obs, data.action).detach().flatten(1)
    normalised = (each - each.mean(1, keepdim=True)) / each.std(1, correction=0, keepdim=True)
    found = rewards.rewards(data.obs, data.action)
    torch.testing.assert_close(found.flatten(), normalised.mean(0), rtol=1e-4, atol=1e-4)  # float32
    assert float(found.mean()) == pytest.approx(0.0, abs=1e-4)
    one = rewards.rewards({"obs": data.obs["obs"][0, 0]}, data.action[0, 0])
    torch.testing.assert_close(one, found[0, 0], rtol=1e-4, atol=1e-5)


def test_rewards_of_many_steps_are_found_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    clips, _ = linear_clips(5)
    data = read_clips(clips, vector(2), box(1))
    rewards = ClipRewards(vector(2), box(1), QUICK)
    expected = rewards.found_rewards(data.obs, data.action)
    torch.testing.assert_close(expected, rewards.member_rewards(data.obs, data.action).detach())
    monkeypatch.setattr("steepest.preferences.clips.ROWS", 7)
    torch.testing.assert_close(rewards.found_rewards(data.obs, data.action), expected)
    assert expected.shape == (3, 5, 10)


def test_what_never_changes_is_not_divided_by_its_rounding() -> None:
    """A constant observation, and rewards without any deviation."""
    raw = np.full((4, 2), 3.0) * (1.0, 1e6)
    clips = [Recorded(i, raw, np.zeros(3, dtype=np.int64)) for i in range(2)]
    rewards = ClipRewards(vector(2), discrete(2), QUICK)
    rewards.fit(clips, [Said("prefer", (0, 1))])
    data = read_clips(clips, vector(2), discrete(2))
    found = rewards.rewards(data.obs, data.action)
    assert float(found.abs().max()) < 1e-3
    assert float(rewards.normalization.variance["obs"].min()) == 1.0


def test_accuracy_counts_pairs_of_rankings() -> None:
    rewards = ClipRewards(vector(1), discrete(2), RewardConfig(members=1, hidden_sizes=(), first_steps=1))
    with torch.no_grad():  # r = o
        rewards.module.load_state_dict({k: torch.zeros_like(v) for k, v in rewards.module.state_dict().items()})
        dict(rewards.module.named_parameters())["first.weight"].fill_(1.0)
    data = Clips({"obs": torch.tensor([[[3.0]], [[2.0]], [[1.0]]])}, torch.zeros(3, 1, 2))
    said = comparisons(
        [Said("rank", (0, 2, 1)), Said("prefer", (2, 0)), Said("prefer", (0, 1)), Said("tie", (0, 2))], [0, 1, 2]
    )
    assert rewards.accuracy(data, said) == pytest.approx(3 / 5)  # two of three, none, one; a tie says neither
    ties = comparisons([Said("tie", (0, 2))], [0, 1, 2])
    assert math.isnan(rewards.accuracy(data, ties))


# What is saved


def test_saved_rewards_go_on_with_the_same_bits() -> None:
    clips, worth = linear_clips(20)
    said = labelled(clips, worth, 30)
    one, other = (ClipRewards(vector(2), box(1), QUICK, seed=seed) for seed in (3, 4))
    one.fit(clips, said)
    other.load_tensors({k: v.clone() for k, v in one.tensors().items()})
    for _ in range(2):
        for x, y in zip(one.tensors().values(), other.tensors().values(), strict=True):
            assert torch.equal(x, y)
        for rewards in (one, other):
            rewards.fit(clips, [*said, Said("tie", (clips[0].id, clips[1].id))])
    again = ClipRewards(vector(2), box(1), QUICK, seed=3)
    again.fit(clips, said)
    fresh = ClipRewards(vector(2), box(1), QUICK, seed=3)
    fresh.fit(clips, said)
    assert all(torch.equal(x, y) for x, y in zip(again.tensors().values(), fresh.tensors().values(), strict=True))
    before = torch.random.get_rng_state()
    fresh.fit(clips, said)
    assert torch.equal(torch.random.get_rng_state(), before)  # nothing is drawn from the process's own generator


def test_a_reward_of_another_shape_is_refused() -> None:
    one = ClipRewards(vector(2), box(1), QUICK)
    other = ClipRewards(vector(2), box(1), RewardConfig(hidden_sizes=(8,)))
    with pytest.raises(UsageError, match=r"module/first_action is"):
        other.load_tensors(one.tensors())
    with pytest.raises(UsageError, match="is missing"):
        one.load_tensors({})
