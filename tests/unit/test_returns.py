"""Returns and advantages: cases by hand, invariances, and wrong forms that must differ."""

from __future__ import annotations

import jaxtyping
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import vmap

from helpers import F64, Ragged, defining_gae, ragged
from steepest.numerics import reverse_recurrence
from steepest.returns import (
    differential_generalized_advantage,
    end_recorded,
    full_return,
    generalized_advantage,
    group_standardized_advantage,
    lambda_return,
    leave_one_out_advantage,
    n_step_advantage,
    n_step_return,
    reward_to_go,
    scaled_token_rewards,
    steps_recorded,
    td_error,
    token_rewards,
)


@pytest.mark.parametrize(
    ("reward", "value", "next_value", "terminated", "gamma", "expected"),
    [
        (1.0, 0.0, 0.0, False, 0.9, 1.0),
        (1.0, 2.0, 0.0, False, 0.9, -1.0),  # minus V(s)
        (1.0, 2.0, 10.0, False, 0.9, 8.0),  # plus gamma V(s')
        (1.0, 2.0, 10.0, True, 0.9, -1.0),  # the process ended
        (0.0, 0.0, 10.0, False, 0.5, 5.0),
        (0.0, 0.0, 10.0, False, 0.0, 0.0),
        (0.0, 0.0, float("nan"), True, 0.9, 0.0),  # what follows an end is not even looked at
        (0.0, 0.0, float("inf"), True, 0.9, 0.0),
    ],
)
def test_td_error_cases(
    reward: float, value: float, next_value: float, terminated: bool, gamma: float, expected: float
) -> None:
    r, v, w = (torch.tensor([x], dtype=F64) for x in (reward, value, next_value))
    assert float(td_error(r, v, w, torch.tensor([terminated]), gamma)) == pytest.approx(expected, abs=1e-12)
    tensor = torch.tensor(gamma, dtype=F64)
    assert float(td_error(r, v, w, torch.tensor([terminated]), tensor)) == pytest.approx(expected, abs=1e-12)


def test_td_error_carries_gradient_to_all_three() -> None:
    x = [torch.randn(4, dtype=F64, generator=torch.Generator().manual_seed(s), requires_grad=True) for s in range(3)]
    end = torch.tensor([False, True, False, False])
    slopes = torch.autograd.grad(td_error(x[0], x[1], x[2], end, 0.9).sum(), x)
    for slope, expected in zip(slopes, ([1.0] * 4, [-1.0] * 4, [0.9, 0.0, 0.9, 0.9]), strict=True):
        torch.testing.assert_close(slope, torch.tensor(expected, dtype=F64))


# Rows that decided nothing


def insert_pause(data: Ragged, row: int) -> Ragged:
    """A row at which nothing happens: no reward, no end, not valid, and the same observation (hence value) again."""

    def put(x: Tensor, new: Tensor) -> Tensor:
        return torch.cat([x[:row], new.unsqueeze(0), x[row:]])

    none = torch.zeros_like(data.valid[0])
    return Ragged(
        put(data.reward, torch.zeros_like(data.reward[0])),
        put(data.value, data.value[row]),
        put(data.terminated, none),
        put(data.truncated, none),
        put(data.valid, none),
    )


@given(
    seed=st.integers(0, 10_000),
    rows=st.lists(st.integers(0, 12), min_size=1, max_size=3),
    gamma=st.floats(0.0, 1.0),
    lam=st.floats(0.0, 1.0),
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_a_pause_row_changes_nothing(seed: int, rows: list[int], gamma: float, lam: float) -> None:
    data = ragged(seed, steps=12, envs=3)
    paused, keep = data, list(range(12))
    for row in rows:
        paused = insert_pause(paused, row)
        keep = [k + (k >= row) for k in keep]
    before = generalized_advantage(*data, gamma, lam)
    after = generalized_advantage(*paused, gamma, lam)[keep]
    torch.testing.assert_close(after[data.valid], before[data.valid], rtol=1e-10, atol=1e-10)


@given(seed=st.integers(0, 10_000), gamma=st.floats(0.0, 1.0))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_lambda_zero_is_td_and_lambda_one_is_monte_carlo(seed: int, gamma: float) -> None:
    data = ragged(seed, steps=12, envs=3, pauses=(5,))
    td = data.reward + gamma * torch.where(data.terminated, 0.0, data.value[1:]) - data.value[:-1]
    zero = generalized_advantage(*data, gamma, 0.0)
    torch.testing.assert_close(zero[data.valid], td[data.valid], rtol=1e-12, atol=1e-12)
    one = generalized_advantage(*data, gamma, 1.0) + data.value[:-1]
    torch.testing.assert_close(one[data.valid], monte_carlo(data, gamma)[data.valid], rtol=1e-10, atol=1e-10)
    assert torch.equal(lambda_return(*data, gamma, 1.0), reward_to_go(*data, gamma))


def monte_carlo(data: Ragged, gamma: float) -> Tensor:
    """The discounted sum to the episode's end, continued by the value where only the recording ends."""
    steps, envs = data.reward.shape
    out = torch.zeros((steps, envs), dtype=F64)
    for n in range(envs):
        for t in range(steps):
            total, power = 0.0, 1.0
            for k in range(t, steps):
                if not data.valid[k, n]:
                    continue
                total += power * float(data.reward[k, n])
                power *= gamma
                if data.terminated[k, n] or data.truncated[k, n]:
                    break
            total += 0.0 if data.terminated[k, n] else power * float(data.value[k + 1, n])
            out[t, n] = total
    return out


@given(seed=st.integers(0, 10_000), gamma=st.floats(0.0, 1.0))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_n_step_runs_from_td_to_monte_carlo(seed: int, gamma: float) -> None:
    data = ragged(seed, steps=12, envs=3, pauses=(5,))
    td = generalized_advantage(*data, gamma, 0.0)
    torch.testing.assert_close(n_step_advantage(*data, gamma, 1)[data.valid], td[data.valid], rtol=1e-12, atol=1e-12)
    whole = reward_to_go(*data, gamma)
    torch.testing.assert_close(n_step_return(*data, gamma, 12)[data.valid], whole[data.valid], rtol=1e-10, atol=1e-10)


@given(seed=st.integers(0, 10_000), gamma=st.floats(0.3, 1.0), lam=st.floats(0.0, 0.95))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_gae_is_the_mixture_of_n_step_advantages(seed: int, gamma: float, lam: float) -> None:
    """(1 - lambda) sum_n lambda^{n-1} A^(n); after the last step every A^(n) is the same, and takes what is left."""
    data = ragged(seed, steps=12, envs=3, pauses=(5,))
    parts = [n_step_advantage(*data, gamma, n) for n in range(1, 13)]
    mixture = sum(((1.0 - lam) * lam**n * a for n, a in enumerate(parts)), lam**12 * parts[-1])
    found = generalized_advantage(*data, gamma, lam)
    torch.testing.assert_close(found[data.valid], mixture[data.valid], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("pauses", [(), (5,), (0, 11)])
def test_steps_recorded_against_a_loop(pauses: tuple[int, ...]) -> None:
    """From 0 where the recording or an episode begins; a row that decided nothing is no step."""
    for seed in range(5):
        data = ragged(seed, steps=12, envs=3, pauses=pauses)
        found = steps_recorded(*data[2:], F64)
        for n in range(3):
            expected = 0
            for t in range(12):
                assert float(found[t, n]) == expected
                if data.valid[t, n]:
                    expected = 0 if data.terminated[t, n] or data.truncated[t, n] else expected + 1


@pytest.mark.parametrize("pauses", [(), (5,), (0, 11)])
def test_end_recorded_against_a_loop(pauses: tuple[int, ...]) -> None:
    """Of a decided step whose episode ends at it or later, by termination or truncation; seen from the last row."""
    seen = set()
    for seed in range(5):
        data = ragged(seed, steps=12, envs=3, pauses=pauses)
        found = end_recorded(*data[2:])
        for n in range(3):
            ended = False
            for t in reversed(range(12)):
                ended = ended or bool(data.terminated[t, n] or data.truncated[t, n])
                assert bool(found[t, n]) == (ended and bool(data.valid[t, n]))
                seen.add((ended, bool(data.valid[t, n])))
    assert len(seen) == 4


@pytest.mark.parametrize("gamma", [0.0, 0.9, 0.95, 0.99, 1.0])
def test_full_return_of_a_long_episode_in_single_precision(gamma: float) -> None:
    """2048 steps: every step sees R(tau) to the precision of the type, where powers gamma^-t would overflow."""
    steps = 2048
    reward = torch.rand((steps, 1), generator=torch.Generator().manual_seed(0), dtype=F64)
    flags = (*torch.zeros((2, steps, 1), dtype=torch.bool), torch.ones((steps, 1), dtype=torch.bool))
    value = torch.full((steps + 1, 1), 3.0, dtype=F64)
    exact = sum(gamma**t * float(reward[t]) for t in range(steps)) + gamma**steps * 3.0
    found = full_return(reward.float(), value.float(), *flags, torch.tensor(gamma))
    # 11 doublings, each of which rounds, and a float32 gamma, whose power t is off by t times as much.
    torch.testing.assert_close(found, torch.full_like(found, exact), rtol=2e-5, atol=0)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_n_steps_end_at_the_last_decided_row(n: int) -> None:
    """Rows that decided nothing at the end of a recording hold no value that anything is continued by."""
    valid = torch.tensor([1, 1, 1, 0, 0]).bool()
    value = torch.tensor([0.0, 20.0, 30.0, 10.0, 10.0, 777.0], dtype=F64)
    never = torch.zeros_like(valid)
    found = n_step_return(torch.ones(5, dtype=F64), value, never, never, valid, 1.0, n)
    expected = {1: [21.0, 31.0, 11.0], 2: [32.0, 12.0, 11.0]}.get(n, [13.0, 12.0, 11.0])
    assert found[valid].tolist() == pytest.approx(expected, rel=1e-12)


@given(seed=st.integers(0, 10_000), gain=st.floats(-2.0, 2.0), lam=st.floats(0.0, 1.0))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_differential_gae_is_gae_of_rewards_less_the_gain(seed: int, gain: float, lam: float) -> None:
    data = ragged(seed, steps=12, envs=3, pauses=(5,))
    never = torch.zeros_like(data.terminated)
    found = differential_generalized_advantage(data.reward, data.value, data.truncated, data.valid, gain, lam)
    same = generalized_advantage(data.reward - gain, data.value, never, data.truncated, data.valid, 1.0, lam)
    torch.testing.assert_close(found[data.valid], same[data.valid], rtol=1e-10, atol=1e-10)
    # A constant on the values changes nothing: they are defined up to one.
    lifted = differential_generalized_advantage(data.reward, data.value + 3.0, data.truncated, data.valid, gain, lam)
    torch.testing.assert_close(lifted[data.valid], found[data.valid], rtol=1e-9, atol=1e-9)


def test_no_step_is_no_return() -> None:
    with pytest.raises(ValueError, match="n is 0"):
        n_step_return(*ragged(0), 0.9, 0)


def test_n_steps_under_vmap_and_with_gradients() -> None:
    data = [ragged(s, steps=7, envs=2, pauses=(3,)) for s in range(3)]
    stacked = [torch.stack(x) for x in zip(*data, strict=True)]
    together = vmap(lambda *x: n_step_advantage(*x, torch.tensor(0.9, dtype=F64), 3))(*stacked)
    for m in range(3):
        torch.testing.assert_close(together[m], n_step_advantage(*data[m], 0.9, 3), rtol=1e-12, atol=1e-12)
    reward, value = data[0].reward.requires_grad_(), data[0].value.requires_grad_()
    torch.autograd.gradcheck(lambda r, v: n_step_advantage(r, v, *data[0][2:], 0.9, 3), (reward, value))


# Episodes do not leak


def test_what_follows_an_end_does_not_matter() -> None:
    data = ragged(3)
    done = data.terminated | data.truncated
    n = int(done.any(0).nonzero()[0])
    end = int(done[:, n].nonzero()[0])
    before = generalized_advantage(*data, 0.9, 0.8)
    changed = data._replace(reward=data.reward.clone(), value=data.value.clone())
    changed.reward[end + 1 :, n] += 100.0
    changed.value[end + 2 :, n] += 100.0
    after = generalized_advantage(*changed, 0.9, 0.8)
    torch.testing.assert_close(after[: end + 1, n], before[: end + 1, n], rtol=0, atol=0)


WRONG = {
    "bootstrapping cut at truncation too": lambda d, g, lam: wrong(d, g, lam, d.terminated | d.truncated, True, True),
    "bootstrapping through termination": lambda d, g, lam: wrong(d, g, lam, torch.zeros_like(d.terminated), True, True),
    "running on across an episode's end": lambda d, g, lam: wrong(d, g, lam, d.terminated, False, True),
    "invalid rows counted as steps": lambda d, g, lam: wrong(d, g, lam, d.terminated, True, False),
}


def wrong(d: Ragged, gamma: float, lam: float, no_bootstrap: Tensor, cut: bool, skip: bool) -> Tensor:
    delta = d.reward + gamma * torch.where(no_bootstrap, 0.0, d.value[1:]) - d.value[:-1]
    keep = gamma * lam * (~(d.terminated | d.truncated) if cut else torch.ones_like(d.valid)).to(F64)
    if skip:
        delta, keep = delta * d.valid, torch.where(d.valid, keep, 1.0)
    return reverse_recurrence(delta, keep)


@pytest.mark.parametrize("name", WRONG)
def test_wrong_forms_differ(name: str) -> None:
    """The same code with one mistake is far from the defining sum; without a mistake it is the sum."""
    data = ragged(0, pauses=(4, 9))
    exact = defining_gae(*data, 0.9, 0.8)
    right = wrong(data, 0.9, 0.8, data.terminated, True, True)
    torch.testing.assert_close(right[data.valid], exact[data.valid], rtol=1e-10, atol=1e-10)
    error = (WRONG[name](data, 0.9, 0.8) - exact)[data.valid].abs().max()
    assert float(error) > 0.1


# Transforms and shapes


def test_vmap_equals_a_loop_and_gradients_flow() -> None:
    data = [ragged(s, steps=7, envs=2) for s in range(3)]
    stacked = [torch.stack(x) for x in zip(*data, strict=True)]
    gamma = torch.tensor(0.9, dtype=F64)
    together = vmap(lambda *x: generalized_advantage(*x, gamma, 0.8))(*stacked)
    for m in range(3):
        torch.testing.assert_close(together[m], generalized_advantage(*data[m], 0.9, 0.8), rtol=1e-12, atol=1e-12)
    reward, value = data[0].reward.requires_grad_(), data[0].value.requires_grad_()
    torch.autograd.gradcheck(lambda r, v: generalized_advantage(r, v, *data[0][2:], 0.9, 0.8), (reward, value))


def test_values_need_one_row_more() -> None:
    data = ragged(0)
    with pytest.raises(ValueError, match="value has 23 rows for 23 rewards; it needs one more"):
        generalized_advantage(data.reward, data.value[:-1], *data[2:], 0.9, 0.8)
    with pytest.raises(ValueError, match="value has 23 rows for 23 rewards; it needs one more"):
        n_step_return(data.reward, data.value[:-1], *data[2:], 0.9, 2)
    # The rows of two rewards and of one would broadcast.
    with pytest.raises(ValueError, match="value has 2 rows for 2 rewards; it needs one more"):
        differential_generalized_advantage(data.reward[:2], data.value[:2], *(x[:2] for x in data[3:]), 0.5, 0.8)


def test_a_wrong_shape_raises() -> None:
    if not hasattr(generalized_advantage, "__wrapped__"):
        pytest.skip("STEEPEST_TYPECHECK=0")
    data = ragged(0)
    wrong_arguments = [
        data._replace(value=data.value[:, :1]),
        data._replace(terminated=data.terminated[:-1]),
        data._replace(valid=data.valid.to(F64)),
        data._replace(truncated=data.truncated.T),
    ]
    for arguments in wrong_arguments:
        with pytest.raises(jaxtyping.TypeCheckError):
            generalized_advantage(*arguments, 0.9, 0.8)


def test_leave_one_out_advantage_by_hand() -> None:
    reward = torch.tensor([[1.0, 2.0, 6.0], [4.0, 4.0, 4.0]], dtype=F64, requires_grad=True)
    found = leave_one_out_advantage(reward)
    expected = torch.tensor([[1.0 - 4.0, 2.0 - 3.5, 6.0 - 1.5], [0.0, 0.0, 0.0]], dtype=F64)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert not found.requires_grad
    with pytest.raises(ValueError, match="at least 2"):
        leave_one_out_advantage(reward[:, :1])


def test_group_standardized_advantage() -> None:
    """(r - m) / (s + 1e-4) with the deviation over n."""
    reward = torch.tensor([[1.0, 2.0, 6.0], [0.0, 1.0, 1.0]], dtype=F64, requires_grad=True)
    found = group_standardized_advantage(reward)
    for row, r in zip(found.tolist(), reward.tolist(), strict=True):
        m = sum(r) / 3
        s = (sum((x - m) ** 2 for x in r) / 3) ** 0.5
        assert row == pytest.approx([(x - m) / (s + 1e-4) for x in r], rel=1e-12)
    assert not found.requires_grad
    with pytest.raises(ValueError, match="at least 2"):
        group_standardized_advantage(reward[:, :1])


@pytest.mark.parametrize("number", [0.1, 100.1, 12345.1, -3e6])
def test_equal_rewards_have_no_deviation(number: float) -> None:
    """They teach nothing, and are scaled by nothing, though the rounding of their mean splits them."""
    for k in (2, 3, 7, 64):
        mixed = torch.stack([torch.full((k,), number), torch.arange(float(k))])
        found = group_standardized_advantage(mixed)
        assert not found[0].any(), k
        reward = torch.full((1, k), number)
        assert torch.equal(scaled_token_rewards(reward), reward), k
    assert group_standardized_advantage(torch.tensor([1_000_000.0, 1_000_001.0])).tolist() == pytest.approx(
        [-1.0, 1.0], abs=1e-3
    )


def test_token_rewards_by_hand() -> None:
    """Time first: the penalty where a token is decided, the score on the last one, nothing elsewhere, no gradient."""
    log_prob = torch.tensor([[9.0, -1.0], [-2.0, -3.0], [-4.0, 9.0], [9.0, 9.0]], dtype=F64, requires_grad=True)
    ref = torch.tensor([[5.0, -2.0], [-1.0, -1.0], [-1.0, 5.0], [5.0, 5.0]], dtype=F64)
    valid = torch.tensor([[False, True], [True, True], [True, False], [False, False]])
    last = torch.tensor([[False, False], [False, True], [True, False], [False, False]])
    found = token_rewards(torch.tensor([10.0, 20.0], dtype=F64), log_prob, ref, valid, last, 0.5)
    expected = torch.tensor([[0.0, -0.5], [0.5, 1.0 + 20.0], [1.5 + 10.0, 0.0], [0.0, 0.0]], dtype=F64)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert not found.requires_grad
    total = expected.sum(0)
    scale = float(((total - total.mean()) ** 2).mean() ** 0.5) + 1e-4
    torch.testing.assert_close(scaled_token_rewards(found), expected / scale, rtol=1e-12, atol=1e-12)
