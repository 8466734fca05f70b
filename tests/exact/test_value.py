"""Value regression: gradients, fixed points and clipping, in float64."""

from __future__ import annotations

import pytest
import torch

from helpers import F64, layered_mdp
from steepest.losses import clipped_value_loss, huber_loss, value_loss


def test_value_loss_gradient() -> None:
    """dL/dV = V - target, and none flows into the target (semi-gradient)."""
    value, target = (torch.randn(8, generator=torch.Generator().manual_seed(s), dtype=F64) for s in (0, 1))
    value, target = value.requires_grad_(), target.requires_grad_()
    loss = value_loss(value, target)
    torch.testing.assert_close(loss, 0.5 * (value - target) ** 2, rtol=1e-12, atol=0)
    slope, none = torch.autograd.grad(loss.sum(), (value, target), allow_unused=True)
    torch.testing.assert_close(slope, (value - target).detach(), rtol=1e-12, atol=0)
    assert none is None


def test_huber_loss_gradient() -> None:
    """dL/dV = clip(V - target, -c, c), continuous in value too; none flows into the target. Without end it is a half
    of the square."""
    value = torch.tensor([-3.0, -0.5, -0.2, 0.0, 0.2, 0.5, 3.0], dtype=F64, requires_grad=True)
    target = torch.zeros(7, dtype=F64, requires_grad=True)
    loss = huber_loss(value, target, 0.5)
    torch.testing.assert_close(loss, torch.tensor([1.375, 0.125, 0.02, 0.0, 0.02, 0.125, 1.375], dtype=F64))
    slope, none = torch.autograd.grad(loss.sum(), (value, target), allow_unused=True)
    assert slope.tolist() == [-0.5, -0.5, -0.2, 0.0, 0.2, 0.5, 0.5]
    assert none is None
    assert torch.equal(huber_loss(value, target, torch.inf), value_loss(value, target))


@pytest.mark.parametrize("bootstrapped", [False, True])
def test_expected_gradient_vanishes_at_the_exact_values(bootstrapped: bool) -> None:
    """At V^pi both critics of notes 1.5 are at rest: the target's mean is V^pi. Without gamma, they are not."""
    mdp = layered_mdp(0, 0.8)
    policy = torch.softmax(torch.randn((mdp.states, 2), generator=torch.Generator().manual_seed(0), dtype=F64), -1)
    exact = mdp.values(policy)
    value = exact.clone().requires_grad_()
    outcomes = mdp.with_end()

    def gradient(gamma: float) -> torch.Tensor:
        following = torch.cat([value, torch.zeros(1, dtype=F64)])  # termination is worth nothing
        if bootstrapped:
            target = (mdp.reward + gamma * following).reshape(mdp.states, -1)
            weight = (policy.unsqueeze(-1) * outcomes).reshape(mdp.states, -1)
        else:
            target, weight = mdp.q_values(policy) * (gamma / 0.8), policy
        loss = (weight * value_loss(value.unsqueeze(-1), target)).sum()
        return torch.autograd.grad(loss, value)[0]

    torch.testing.assert_close(gradient(0.8), torch.zeros(mdp.states, dtype=F64), rtol=0, atol=1e-10)
    assert float(gradient(1.0).abs().max()) > 1e-2


CASES = [
    # value, old, target, loss, derivative; clip range 0.6
    (1.2, 1.0, 3.0, 1.62, -1.8),  # inside the range: the plain loss
    (2.0, 1.0, 3.0, 0.98, 0.0),  # moved beyond the range towards the target: no more to gain
    (0.0, 1.0, 3.0, 4.5, -3.0),  # moved away: the plain loss pulls back
    (2.0, 1.0, -3.0, 12.5, 5.0),
    (0.2, 1.0, -3.0, 5.78, 0.0),
    (3.4, 1.0, 2.0, 0.98, 1.4),  # beyond the target: the plain loss is the larger one
]


@pytest.mark.parametrize(("value", "old", "target", "loss", "slope"), CASES)
@pytest.mark.parametrize("as_tensor", [False, True])
def test_clipped_value_loss_by_cases(
    value: float, old: float, target: float, loss: float, slope: float, as_tensor: bool
) -> None:
    v, o, t = (torch.tensor(x, dtype=F64, requires_grad=True) for x in (value, old, target))
    found = clipped_value_loss(v, o, t, torch.tensor(0.6, dtype=F64) if as_tensor else 0.6)
    assert found.item() == pytest.approx(loss, abs=1e-12)
    slopes = torch.autograd.grad(found, (v, o, t), allow_unused=True)
    assert float(slopes[0]) == pytest.approx(slope, abs=1e-12)
    assert slopes[1] is None
    assert slopes[2] is None
