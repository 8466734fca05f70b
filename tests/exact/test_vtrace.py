"""V-trace against its defining sum and its fixed point, in float64."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from helpers import F64, LayeredMDP, Paths, defining_vtrace, layered_mdp, ragged
from steepest.returns import VTrace, generalized_advantage, lambda_return, vtrace


def log_ratios(seed: int, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(100 + seed), dtype=F64)


@pytest.mark.parametrize("pauses", [(), (0,), (4, 5, 11), (22,)])
@pytest.mark.parametrize(("gamma", "lam"), [(0.9, 1.0), (0.9, 0.8), (1.0, 0.5), (0.99, 0.0)])
@pytest.mark.parametrize(("rho_bar", "c_bar"), [(1.0, 1.0), (2.0, 0.5), (math.inf, 1.0), (math.inf, math.inf)])
def test_vtrace_equals_the_defining_sum(
    gamma: float, lam: float, rho_bar: float, c_bar: float, pauses: tuple[int, ...]
) -> None:
    data = ragged(7, pauses=pauses)
    log_ratio = log_ratios(0, tuple(data.reward.shape))
    target, q = defining_vtrace(log_ratio, *data, gamma, lam, rho_bar, c_bar)
    found = vtrace(log_ratio, *data, gamma, lam, rho_bar, c_bar)
    here = data.valid
    torch.testing.assert_close(found.target[here], target[here], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.q_value[here], q[here], rtol=1e-10, atol=1e-10)
    weight = log_ratio.exp().clamp(max=rho_bar)
    expected = weight * (q - data.value[:-1])
    torch.testing.assert_close(found.advantage[here], expected[here], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("lam", [0.0, 0.6, 1.0])
def test_on_policy_it_is_the_lambda_return(lam: float) -> None:
    """With ratios 1 and bars of at least 1; q - V is GAE. With other ratios it is neither."""
    data = ragged(3, pauses=(4, 9))
    here = data.valid
    gae, target = generalized_advantage(*data, 0.9, lam), lambda_return(*data, 0.9, lam)
    for bars in ((1.0, 1.0), (3.0, 2.0)):
        found = vtrace(torch.zeros_like(data.reward), *data, 0.9, lam, *bars)
        torch.testing.assert_close(found.target[here], target[here], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close((found.q_value - data.value[:-1])[here], gae[here], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found.advantage[here], gae[here], rtol=1e-12, atol=1e-12)
    other = vtrace(log_ratios(0, tuple(data.reward.shape)), *data, 0.9, lam)
    assert float((other.target - target)[here].abs().max()) > 0.1


def expected_targets(
    mdp: LayeredMDP,
    paths: Paths,
    behaviour: Tensor,
    target: Tensor,
    value: Tensor,
    lam: float = 1.0,
    rho_bar: float = 1.0,
    c_bar: float = 1.0,
) -> Tensor:
    """(S,) E_mu[v_t | s_t = s], over every trajectory of the behaviour policy mu."""
    log_ratio = (target.log() - behaviour.log())[paths.state[:-1], paths.action]
    none = torch.zeros_like(paths.terminated)
    flags = (paths.terminated, none, paths.valid)
    found = vtrace(log_ratio, paths.reward, value[paths.state], *flags, mdp.gamma, lam, rho_bar, c_bar)
    weight = (paths.probability * paths.valid).flatten()
    state = paths.state[:-1].flatten()
    zero = torch.zeros(mdp.states, dtype=F64)
    total = zero.index_add(0, state, weight * torch.where(paths.valid, found.target, 0.0).flatten())
    return total / zero.index_add(0, state, weight)


def two_policies(mdp: LayeredMDP, seed: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    mu, pi = (torch.softmax(torch.randn((mdp.states, mdp.actions), generator=g, dtype=F64), -1) for _ in range(2))
    return mu, pi


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("lam", [0.0, 0.7, 1.0])
@pytest.mark.parametrize(("rho_bar", "c_bar"), [(1.0, 1.0), (1.5, 0.5), (1.0, 0.25), (math.inf, 1.0)])
def test_the_fixed_point_is_the_clipped_policys_value(seed: int, lam: float, rho_bar: float, c_bar: float) -> None:
    """pi_rho ~ min(rho_bar mu, pi): its value is what the expected target says of itself, whatever c_bar and lambda."""
    mdp = layered_mdp(seed, 0.9)
    mu, pi = two_policies(mdp, seed)
    clipped = torch.minimum(rho_bar * mu, pi)
    value = mdp.values(clipped / clipped.sum(-1, keepdim=True))
    paths = mdp.paths(mu)
    found = expected_targets(mdp, paths, mu, pi, value, lam, rho_bar, c_bar)
    torch.testing.assert_close(found, value, rtol=1e-10, atol=1e-10)
    if rho_bar == math.inf:
        torch.testing.assert_close(value, mdp.values(pi), rtol=1e-12, atol=1e-12)
    else:  # neither the policy's own value nor the behaviour's is one
        for other in (mdp.values(pi), mdp.values(mu)):
            assert float((expected_targets(mdp, paths, mu, pi, other, lam, rho_bar, c_bar) - other).abs().max()) > 1e-2


def test_iterating_reaches_the_fixed_point() -> None:
    """From any values, and without ever being further away than before."""
    mdp = layered_mdp(0, 0.9)
    mu, pi = two_policies(mdp, 0)
    clipped = torch.minimum(mu, pi)
    exact = mdp.values(clipped / clipped.sum(-1, keepdim=True))
    paths = mdp.paths(mu)
    value = torch.randn(mdp.states, generator=torch.Generator().manual_seed(2), dtype=F64)
    errors = []
    for _ in range(300):
        errors.append(float((value - exact).abs().max()))
        value = expected_targets(mdp, paths, mu, pi, value)
    assert errors[-1] < 1e-10 < 0.1 < errors[0]
    # The operator contracts (Espeholt et al. 2018, Theorem 1).
    assert all(after <= before + 1e-12 for before, after in itertools.pairwise(errors))


def test_what_follows_an_end_and_undecided_rows_do_not_matter() -> None:
    data = ragged(3, pauses=(4,))
    log_ratio = log_ratios(1, tuple(data.reward.shape))
    done = data.terminated | data.truncated
    n = int(done.any(0).nonzero()[0])
    end = int(done[:, n].nonzero()[0])
    before = vtrace(log_ratio, *data, 0.9, 0.8)
    changed = data._replace(reward=data.reward.clone(), value=data.value.clone())
    changed.reward[end + 1 :, n] += 100.0
    changed.value[end + 2 :, n] += 100.0
    other = log_ratio.clone()
    other[end + 1 :, n] += 1.0
    after = vtrace(other, *changed, 0.9, 0.8)
    for x, y in zip(before, after, strict=True):
        torch.testing.assert_close(y[: end + 1, n], x[: end + 1, n], rtol=0, atol=0)
    wild = torch.where(data.valid, log_ratio, float("inf"))
    found = vtrace(wild, *data, 0.9, 0.8, math.inf)
    expected = vtrace(log_ratio, *data, 0.9, 0.8, math.inf)
    for name in VTrace._fields:
        assert torch.equal(getattr(found, name)[data.valid], getattr(expected, name)[data.valid]), name


def test_vmap_equals_a_loop() -> None:
    data = [ragged(s, steps=7, envs=2) for s in range(3)]
    ratios = torch.stack([log_ratios(s, (7, 2)) for s in range(3)])
    stacked = [torch.stack(x) for x in zip(*data, strict=True)]
    together = torch.func.vmap(lambda *x: vtrace(*x, 0.9, 0.8))(ratios, *stacked)
    for m in range(3):
        for x, y in zip(together, vtrace(ratios[m], *data[m], 0.9, 0.8), strict=True):
            torch.testing.assert_close(x[m], y, rtol=1e-12, atol=1e-12)


def test_misuse_is_explained() -> None:
    data = ragged(0)
    log_ratio = torch.zeros_like(data.reward)
    with pytest.raises(ValueError, match="value has 23 rows for 23 rewards; it needs one more"):
        vtrace(log_ratio, data.reward, data.value[:-1], *data[2:], 0.9, 0.8)
    for rho_bar, c_bar in ((0.5, 1.0), (1.0, 0.0), (1.0, math.nan)):
        with pytest.raises(ValueError, match="expected rho_bar >= c_bar > 0"):
            vtrace(log_ratio, *data, 0.9, 0.8, rho_bar, c_bar)
