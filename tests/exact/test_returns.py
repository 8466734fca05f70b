"""Returns and advantages against their defining sums, on ragged experience in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from helpers import F64, Ragged, defining_gae, layered_mdp, ragged
from steepest.exact import gains
from steepest.returns import (
    differential_generalized_advantage,
    differential_td_error,
    full_return,
    generalized_advantage,
    lambda_return,
    n_step_advantage,
    n_step_return,
    reward_to_go,
    vtrace,
)
from steepest.verification.random_problems import continuing

DISCOUNTS = [(1.0, 1.0), (0.9, 0.8), (0.99, 0.0), (0.0, 0.5), (0.7, 1.0)]


@pytest.mark.parametrize("pauses", [(), (0,), (4, 5, 11), (22,)])
@pytest.mark.parametrize(("gamma", "lam"), DISCOUNTS)
def test_gae_equals_the_defining_sum(gamma: float, lam: float, pauses: tuple[int, ...]) -> None:
    for seed in range(3):
        data = ragged(seed, pauses=pauses)
        assert data.terminated.any()
        assert data.truncated.any()
        assert not data.valid.all()
        exact = defining_gae(*data, gamma, lam)
        found = generalized_advantage(*data, gamma, lam)
        torch.testing.assert_close(found[data.valid], exact[data.valid], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("pauses", [(), (4, 5, 11)])
@pytest.mark.parametrize(("gamma", "lam"), DISCOUNTS)
def test_lambda_return_recursion(gamma: float, lam: float, pauses: tuple[int, ...]) -> None:
    """G_t = r_t + gamma (1 - terminated) [(1 - lambda_t) V(s_{t+1}) + lambda_t G_{t+1}] from the last row backwards."""
    data = ragged(1, pauses=pauses)
    steps, envs = data.reward.shape
    found = lambda_return(*data, gamma, lam)
    for n in range(envs):
        following = None  # the return of the next decided step of the same episode
        for t in reversed(range(steps)):
            if not data.valid[t, n]:
                continue
            if data.terminated[t, n]:
                rest = 0.0
            elif data.truncated[t, n] or following is None:
                rest = float(data.value[t + 1, n])
            else:
                rest = (1.0 - lam) * float(data.value[t + 1, n]) + lam * following
            following = float(data.reward[t, n]) + gamma * rest
            assert float(found[t, n]) == pytest.approx(following, rel=1e-10, abs=1e-10)


@pytest.mark.parametrize("gamma", [1.0, 0.9, 0.0])
def test_reward_to_go_is_the_discounted_sum(gamma: float) -> None:
    """Without bootstrap (zero values), over every trajectory of an episodic process; bootstrap at truncation apart."""
    mdp = layered_mdp(0, gamma)
    paths = mdp.paths(torch.full((mdp.states, mdp.actions), 1.0 / mdp.actions, dtype=F64))
    none = torch.zeros_like(paths.terminated)
    zero = torch.zeros((mdp.horizon + 1, len(paths.probability)), dtype=F64)
    found = reward_to_go(paths.reward, zero, paths.terminated, none, paths.valid, gamma)
    for t in range(mdp.horizon):
        exact = sum(gamma ** (k - t) * paths.reward[k] for k in range(t, mdp.horizon))
        torch.testing.assert_close(found[t][paths.valid[t]], exact[paths.valid[t]], rtol=1e-10, atol=1e-10)
    # A recording that stops after two steps is continued by gamma^2 V(s_2).
    value = torch.randn(zero.shape, generator=torch.Generator().manual_seed(0), dtype=F64)
    cut = none.clone()
    cut[1] = paths.valid[1] & ~paths.terminated[1]
    stopped = reward_to_go(paths.reward[:2], value[:3], paths.terminated[:2], cut[:2], paths.valid[:2], gamma)
    exact = paths.reward[0] + gamma * paths.reward[1] + gamma**2 * value[2] * cut[1]
    torch.testing.assert_close(stopped[0], exact, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_lambda_return_is_unbiased_where_the_value_is_exact(lam: float) -> None:
    """E[G_0^lambda] over all trajectories is the value of the start, for every lambda."""
    mdp = layered_mdp(2, 0.9)
    policy = torch.softmax(torch.randn((mdp.states, 2), generator=torch.Generator().manual_seed(1), dtype=F64), -1)
    paths = mdp.paths(policy)
    value = mdp.values(policy)[paths.state]
    none = torch.zeros_like(paths.terminated)
    returns = lambda_return(paths.reward, value, paths.terminated, none, paths.valid, 0.9, lam)
    assert float((paths.probability * returns[0]).sum()) == pytest.approx(float(mdp.objective(policy)), rel=1e-10)
    advantage = generalized_advantage(paths.reward, value, paths.terminated, none, paths.valid, 0.9, lam)
    assert float((paths.probability * advantage[0]).sum()) == pytest.approx(0.0, abs=1e-10)


ESTIMATORS: dict[str, Callable[[Ragged], torch.Tensor]] = {
    "GAE": lambda d: generalized_advantage(*d, 0.9, 0.8),
    "lambda-return": lambda d: lambda_return(*d, 0.9, 0.8),
    "reward-to-go": lambda d: reward_to_go(*d, 0.9),
    "full return": lambda d: full_return(*d, 0.9),
    **{f"{n} steps": lambda d, n=n: n_step_return(*d, 0.9, n) for n in (1, 2, 5, 24)},
    "differential GAE": lambda d: differential_generalized_advantage(
        d.reward, d.value, d.truncated, d.valid, 0.25, 0.8
    ),
    "V-trace": lambda d: vtrace(0.1 * d.reward, *d, 0.9, 0.8).target,
}

# The whole episode's return


def episode_rows(data: Ragged, n: int) -> list[list[int]]:
    """The decided rows of every (piece of an) episode of an environment."""
    pieces: list[list[int]] = [[]]
    for t in range(len(data.reward)):
        if data.valid[t, n]:
            pieces[-1].append(t)
            if data.terminated[t, n] or data.truncated[t, n]:
                pieces.append([])
    return [rows for rows in pieces if rows]


@pytest.mark.parametrize("pauses", [(), (0,), (4, 5, 11), (22,)])
@pytest.mark.parametrize("gamma", [1.0, 0.9, 0.3, 0.0])
def test_full_return_is_the_same_at_every_step(gamma: float, pauses: tuple[int, ...]) -> None:
    """R(tau), counted from the first recorded step, and continued by V where the recording stops."""
    data = ragged(2, pauses=pauses)
    data = data._replace(reward=torch.where(data.valid, data.reward, 50.0))
    found = full_return(*data, gamma)
    for n in range(data.reward.shape[1]):
        for rows in episode_rows(data, n):
            whole = sum(gamma**i * float(data.reward[t, n]) for i, t in enumerate(rows))
            if not data.terminated[rows[-1], n]:
                whole += gamma ** len(rows) * float(data.value[rows[-1] + 1, n])
            seen = [float(found[t, n]) for t in rows]
            assert seen == pytest.approx([whole] * len(rows), rel=1e-9, abs=1e-10)


# n steps


@pytest.mark.parametrize("pauses", [(), (0,), (4, 5, 11), (22,)])
@pytest.mark.parametrize("n", [1, 2, 3, 5, 40])
@pytest.mark.parametrize("gamma", [1.0, 0.9, 0.0])
def test_n_step_return_is_the_defining_sum(gamma: float, n: int, pauses: tuple[int, ...]) -> None:
    """r_t + ... + gamma^{k-1} r_{t+k-1} + gamma^k V, k being n, or the steps that are left."""
    data = ragged(3, pauses=pauses)
    found, advantage = n_step_return(*data, gamma, n), n_step_advantage(*data, gamma, n)
    seen = 0
    for e in range(data.reward.shape[1]):
        for rows in episode_rows(data, e):
            for i, t in enumerate(rows):
                taken = rows[i : i + n]
                exact = sum(gamma**k * float(data.reward[j, e]) for k, j in enumerate(taken))
                if not data.terminated[taken[-1], e]:
                    exact += gamma ** len(taken) * float(data.value[taken[-1] + 1, e])
                assert float(found[t, e]) == pytest.approx(exact, rel=1e-10, abs=1e-10)
                assert float(advantage[t, e]) == pytest.approx(exact - float(data.value[t, e]), rel=1e-10, abs=1e-10)
                seen += 1
    assert seen == int(data.valid.sum())


@pytest.mark.parametrize("name", ESTIMATORS)
def test_undecided_rows_at_the_end_change_nothing(name: str) -> None:
    """A padded recording: whatever its last rows hold, the rows before them are worth what they were."""
    data = ragged(5, pauses=(4, 22))
    assert (data.valid.sum(0) > 0).all()
    junk = torch.full_like(data.value[:3], 777.0)
    never = torch.zeros_like(data.valid[:3])
    padded = Ragged(*(torch.cat([x, y]) for x, y in zip(data, (junk, junk, never, never, never), strict=True)))
    before, after = ESTIMATORS[name](data), ESTIMATORS[name](padded)
    torch.testing.assert_close(after[:23][data.valid], before[data.valid], rtol=1e-10, atol=1e-10)


# The average reward


def test_differential_error_has_mean_zero() -> None:
    """Under the policy, at every state, with the exact gain and values; with another gain it has not."""
    c = continuing(0)
    v, gain = gains.differential_value(c.mdp, c.policy), gains.gain(c.mdp, c.policy)
    chance = c.policy.unsqueeze(-1) * c.mdp.transition
    shape = chance.shape

    def mean(gain: float) -> torch.Tensor:
        here, there = v.view(-1, 1, 1).expand(shape), v.expand(shape)
        return (chance * differential_td_error(c.mdp.reward.unsqueeze(-1).expand(shape), here, there, gain)).sum((1, 2))

    torch.testing.assert_close(mean(float(gain)), torch.zeros_like(v), rtol=0, atol=1e-12)
    torch.testing.assert_close(mean(float(gain) + 0.1), torch.full_like(v, -0.1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("pauses", [(), (0,), (4, 5, 11), (22,)])
@pytest.mark.parametrize("lam", [1.0, 0.8, 0.0])
def test_differential_gae_equals_the_defining_sum(lam: float, pauses: tuple[int, ...]) -> None:
    """sum_l lambda^l (r - gain + v(s') - v(s)) over the decided steps until the recording is cut."""
    data = ragged(4, pauses=pauses)
    never = torch.zeros_like(data.terminated)
    exact = defining_gae(data.reward - 0.25, data.value, never, data.truncated, data.valid, 1.0, lam)
    found = differential_generalized_advantage(data.reward, data.value, data.truncated, data.valid, 0.25, lam)
    torch.testing.assert_close(found[data.valid], exact[data.valid], rtol=1e-10, atol=1e-10)
    without = differential_generalized_advantage(data.reward, data.value, data.truncated, data.valid, 0.0, lam)
    assert float((without - exact)[data.valid].abs().min()) > 0.2
