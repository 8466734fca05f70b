"""Preprocessing, torsos, recurrent cells and heads."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers import F64, bits, box, discrete, vector
from steepest.distributions import Bernoulli, Categorical, DiagonalGaussian, Factored, FullGaussian, TanhGaussian
from steepest.errors import UsageError
from steepest.networks.actor_critic import ActorCritic
from steepest.networks.cells import Cell
from steepest.networks.config import PolicyConfig
from steepest.networks.inputs import Normalization, PolicyInput, preprocess
from steepest.networks.torsos import NatureCNN, Torso, TwinTorso
from steepest.types import ActionSpec, ObsField, ObsSpec

NOTHING = Normalization({}, {})
MIXED = ObsSpec(
    (
        ObsField("camera", "image", (1, 36, 36), "uint8"),
        ObsField("body/joints", "vector", (2, 3), "float32"),
        ObsField("mode", "discrete", (), "int64", (4,), (0,)),
        ObsField("keys", "discrete", (2,), "int64", (2, 3), (0, 0)),
    ),
    is_dict=True,
)


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def mixed_obs(*leading: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    return {
        "camera": torch.randint(0, 256, (*leading, 1, 36, 36), generator=g, dtype=torch.uint8),
        "body/joints": rand(*leading, 2, 3),
        "mode": torch.randint(0, 4, leading, generator=g),
        "keys": torch.stack([torch.randint(0, k, leading, generator=g) for k in (2, 3)], -1),
    }


# Preprocessing


@pytest.mark.parametrize("leading", [(5,), (2, 5)])
def test_preprocess(leading: tuple[int, ...]) -> None:
    obs = mixed_obs(*leading)
    mean, variance = rand(2, 3, seed=1), rand(2, 3, seed=2).exp()
    out = preprocess(MIXED, obs, Normalization({"body/joints": mean}, {"body/joints": variance}))
    torch.testing.assert_close(out["camera"], obs["camera"] / 255.0)
    assert out["camera"].dtype == torch.float32
    torch.testing.assert_close(out["body/joints"], (obs["body/joints"] - mean) / (variance + 1e-8).sqrt())
    assert out["mode"].shape == (*leading, 4)
    assert torch.equal(out["mode"].argmax(-1), obs["mode"])
    assert (out["mode"].sum(-1) == 1.0).all()
    assert out["keys"].shape == (*leading, 5)
    assert torch.equal(out["keys"][..., :2].argmax(-1), obs["keys"][..., 0])
    assert torch.equal(out["keys"][..., 2:].argmax(-1), obs["keys"][..., 1])


def test_preprocess_without_statistics_and_with_outliers() -> None:
    spec, x = vector(2), torch.tensor([[1e6, -1e6]])
    assert torch.equal(preprocess(spec, {"obs": x}, NOTHING)["obs"], x)
    scaled = preprocess(spec, {"obs": x}, Normalization({"obs": torch.zeros(2)}, {"obs": torch.ones(2)}))
    assert torch.equal(scaled["obs"], torch.tensor([[10.0, -10.0]]))


# Torsos


@pytest.mark.parametrize(("height", "width"), [(36, 36), (84, 84), (64, 48)])
def test_cnn_output_size(height: int, width: int) -> None:
    cnn = NatureCNN((2, height, width))
    assert cnn(torch.zeros(1, 2, height, width)).shape == (1, cnn.output_size)


def test_cnn_refuses_small_images() -> None:
    with pytest.raises(ValueError, match="an image observation is 20 x 40; the built-in CNN needs at least 36 x 36"):
        NatureCNN((3, 20, 40))


@pytest.mark.parametrize("leading", [(5,), (2, 5), (2, 1, 3)])
def test_leading_axes_only_batch(leading: tuple[int, ...]) -> None:
    module = ActorCritic(PolicyConfig(hidden_sizes=(6,)), MIXED, discrete(3))
    obs = mixed_obs(*leading)
    out = module(PolicyInput(obs, None, None, None, None), NOTHING, True)
    flat = {k: x.flatten(0, len(leading) - 1) for k, x in obs.items()}
    expected = module(PolicyInput(flat, None, None, None, None), NOTHING, True)
    torch.testing.assert_close(out.value, expected.value.view(leading))
    torch.testing.assert_close(out.distribution.log_probs, expected.distribution.log_probs.view(*leading, 3))
    assert out.memory is None


def test_every_field_reaches_the_output() -> None:
    torch.manual_seed(0)
    module = ActorCritic(PolicyConfig(hidden_sizes=(16,)), MIXED, discrete(3))
    obs = mixed_obs(4)
    base = module(PolicyInput(obs, None, None, None, None), NOTHING, True)
    other = mixed_obs(4)
    for name in obs:
        changed = {**obs, name: other[name].flip(0)}
        out = module(PolicyInput(changed, None, None, None, None), NOTHING, True)
        assert not torch.equal(out.value, base.value)


class Fixed(nn.Module):
    def __init__(self, out: Any) -> None:
        super().__init__()
        self.out = out

    def forward(self, x: Any) -> Any:
        return self.out


@pytest.mark.parametrize(
    ("out", "said"),
    [
        (torch.zeros(2), r"\(2,\)"),
        (torch.zeros(3, 4), r"\(3, 4\)"),
        (torch.zeros(2, 4, 1), r"\(2, 4, 1\)"),
        ([1], "list"),
    ],
)
def test_a_custom_network_of_the_wrong_shape_is_refused(out: Any, said: str) -> None:
    with pytest.raises(ValueError, match=f"the network returned {said} for a batch of 2 observations"):
        ActorCritic(PolicyConfig(), vector(3), discrete(2), lambda spec: Fixed(out))


def test_an_empty_observation_is_refused() -> None:
    with pytest.raises(ValueError, match="the observation space is empty"):
        Torso(ObsSpec((), is_dict=True), (4,), "tanh")


@pytest.mark.parametrize("shared", [False, True])
def test_torsos_are_shared_or_separate(shared: bool) -> None:
    factory = partial(Torso, hidden_sizes=(4,), activation="tanh")
    module = ActorCritic(PolicyConfig(shared_torso=shared), vector(3), discrete(2), factory)
    out = module(PolicyInput({"obs": rand(5, 3)}, None, None, None, None), NOTHING, True)
    slope = torch.autograd.grad(out.value.sum(), list(module.policy_torso.parameters()), allow_unused=True)
    assert all((s is not None) == shared for s in slope)


@pytest.mark.parametrize("spec", [vector(3), MIXED], ids=["twin torso", "torsos"])
def test_the_value_on_its_own_is_the_value(spec: ObsSpec) -> None:
    """With the same statistics, and depending on the value function's parameters alone."""
    module = ActorCritic(PolicyConfig(hidden_sizes=(6,)), spec, discrete(2))  # in float32, as images are read
    obs = mixed_obs(5) if spec is MIXED else {"obs": rand(5, 3)}
    statistics = NOTHING if spec is MIXED else Normalization({"obs": rand(3, seed=1)}, {"obs": rand(3, seed=2).exp()})
    inputs = PolicyInput(obs, None, None, None, None)
    alone = module.value(inputs, statistics)
    torch.testing.assert_close(alone, module(inputs, statistics, True).value, rtol=1e-5, atol=1e-6)
    assert float(alone.detach().std()) > 1e-3
    slopes = torch.autograd.grad(alone.sum(), list(module.policy_head.parameters()), allow_unused=True)
    assert all(s is None for s in slopes)


def test_twin_torso_is_two_separate_torsos() -> None:
    spec = ObsSpec(
        (ObsField("a", "vector", (2, 3), "float32"), ObsField("b", "discrete", (), "int64", (4,), (0,))), True
    )
    obs = {"a": rand(5, 2, 3), "b": rand(5, 4)}
    torch.manual_seed(0)
    twin = TwinTorso(spec, (8, 4), "tanh").double()
    torch.manual_seed(0)
    policy, value = (Torso(spec, (8, 4), "tanh").double() for _ in range(2))
    obs = {k: x.double() for k, x in obs.items()}
    together = twin(obs)
    torch.testing.assert_close(together[0], policy(obs), rtol=1e-12, atol=0)
    torch.testing.assert_close(together[1], value(obs), rtol=1e-12, atol=0)
    for which, alone in enumerate((policy, value)):
        torch.testing.assert_close(twin.alone(which, obs), alone(obs), rtol=1e-12, atol=0)
    slopes = torch.autograd.grad(together[1].sum(), list(twin.parameters()))
    expected = torch.autograd.grad(value(obs).sum(), list(value.parameters()))
    for slope, one in zip(slopes, expected, strict=True):
        assert not slope[0].any()  # the value function does not pull on the policy
        torch.testing.assert_close(slope[1], one, rtol=1e-12, atol=0)


def test_initial_policy_is_nearly_uniform_and_layers_orthogonal() -> None:
    module = ActorCritic(PolicyConfig(), vector(3), discrete(4))
    out = module(PolicyInput({"obs": rand(50, 3)}, None, None, None, None), NOTHING, True)
    assert float((out.distribution.log_probs.detach().exp() - 0.25).abs().max()) < 0.02
    layer = module.twin_torso.layers[1]
    for weight in layer.weight.unbind(0):
        torch.testing.assert_close(weight @ weight.T, 2.0 * torch.eye(64), rtol=0, atol=1e-5)
    assert (layer.bias == 0.0).all()


# Heads

HEADS: list[tuple[ActionSpec, dict[str, Any], type, tuple[int, ...]]] = [
    (discrete(4), {}, Categorical, ()),
    (discrete(2, 5, 3), {}, Factored, (3,)),
    (bits(3), {}, Bernoulli, (3,)),
    (box(3), {}, DiagonalGaussian, (3,)),
    (box(3), {"gaussian": "full"}, FullGaussian, (3,)),
    (box(3), {"squash": "tanh"}, TanhGaussian, (3,)),
]


@pytest.mark.parametrize(("spec", "options", "kind", "shape"), HEADS)
@pytest.mark.parametrize("leading", [(6,), (2, 6)])
def test_heads(spec: ActionSpec, options: dict[str, Any], kind: type, shape: tuple[int, ...], leading: Any) -> None:
    """Every field carries the batch axes, so that rows of a distribution can be taken field by field."""
    module = ActorCritic(PolicyConfig(hidden_sizes=(4,), **options), vector(3), spec)
    out = module(PolicyInput({"obs": rand(*leading, 3)}, None, None, None, None), NOTHING, False)
    policy = out.distribution
    assert type(policy) is kind
    assert out.value is None
    assert policy.mode().shape == (*leading, *shape)
    assert policy.log_prob(policy.mode()).shape == leading
    assert policy.entropy().shape == leading
    for field in policy:
        assert field.shape[: len(leading)] == leading


@pytest.mark.parametrize("std", [0.05, 1.0, 3.0])
@pytest.mark.parametrize("gaussian", ["diagonal", "full"])
def test_initial_std_and_floor(std: float, gaussian: Any) -> None:
    config = PolicyConfig(initial_std=std, min_std=0.1, gaussian=gaussian)
    module = ActorCritic(config, vector(3), box(2))
    policy = module(PolicyInput({"obs": rand(6, 3)}, None, None, None, None), NOTHING, False).distribution
    found = policy.log_std.exp() if gaussian == "diagonal" else policy.scale_tril.diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(found, torch.full((6, 2), math.hypot(std, 0.1)), rtol=1e-5, atol=0)


@pytest.mark.parametrize("sizes", [(4,), (2, 5, 3)])
def test_masks_reach_their_component(sizes: tuple[int, ...]) -> None:
    module = ActorCritic(PolicyConfig(min_probability=0.01), vector(3), discrete(*sizes))
    g = torch.Generator().manual_seed(0)
    mask = torch.rand((20, sum(sizes)), generator=g) < 0.5
    for first in [sum(sizes[:i]) for i in range(len(sizes))]:
        mask[:, first] = True
    policy = module(PolicyInput({"obs": rand(20, 3)}, mask, None, None, None), NOTHING, False).distribution
    probs = policy.log_probs.exp()
    probs = probs.unsqueeze(1) if len(sizes) == 1 else probs
    for i, legal in enumerate(mask.split(list(sizes), -1)):
        assert torch.equal(probs[:, i, : sizes[i]] > 0, legal)
        assert (probs[:, i, sizes[i] :] == 0).all()
        assert (probs[:, i, : sizes[i]][legal] >= 0.01 * (1 - 1e-5)).all()


def test_multi_binary_logits_are_those_of_one() -> None:
    module = ActorCritic(PolicyConfig(min_probability=0.0, hidden_sizes=()), vector(2), bits(2))
    with torch.no_grad():
        module.policy_head.weight.copy_(torch.eye(2))
        x = rand(5, 2)
        policy = module(PolicyInput({"obs": x}, None, None, None, None), NOTHING, False).distribution
    torch.testing.assert_close(policy.log_prob(torch.ones(5, 2, dtype=torch.int64)), x.sigmoid().log().sum(-1))


# Recurrence


def flags() -> tuple[Tensor, Tensor]:
    start, valid = torch.zeros((7, 3), dtype=torch.bool), torch.ones((7, 3), dtype=torch.bool)
    start[0, 0] = start[3, 1] = start[4, 1] = True
    valid[2, 1] = valid[5, 0] = valid[5, 1] = valid[5, 2] = valid[6, 2] = False
    return start, valid


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_cell_equals_torch_with_resets_and_pauses(kind: Any) -> None:
    """Against torch's own cell, row by row: forget at a start, stay at an invalid row (whose output still counts)."""
    cell = Cell(kind, 4, 5).double()
    theirs = (nn.LSTMCell if kind == "lstm" else nn.GRUCell)(4, 5).double()
    for name, layer in (("ih", cell.from_input), ("hh", cell.from_hidden)):
        nn.init.normal_(layer.bias)
        getattr(theirs, f"weight_{name}").data.copy_(layer.weight)
        getattr(theirs, f"bias_{name}").data.copy_(layer.bias)
    x, memory = rand(7, 3, 4).double(), rand(3, cell.memory_size, seed=1).double()
    start, valid = flags()
    out, after = cell(x, start, valid, memory)
    for b in range(3):
        h = memory[b : b + 1]
        for t in range(7):
            if start[t, b]:
                h = torch.zeros_like(h)
            row = x[t, b : b + 1]
            new = torch.cat(theirs(row, (h[:, :5], h[:, 5:])), -1) if kind == "lstm" else theirs(row, h)
            torch.testing.assert_close(out[t, b], new[0, :5], rtol=1e-10, atol=1e-12)
            h = new if valid[t, b] else h
        torch.testing.assert_close(after[b], h[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_a_sequence_equals_its_steps(kind: Any, shared: bool) -> None:
    config = PolicyConfig(recurrent=kind, recurrent_size=5, hidden_sizes=(4,), shared_torso=shared)
    module = ActorCritic(config, vector(3), discrete(4)).double()
    assert module.memory_size == 5 * (2 if kind == "lstm" else 1) * (1 if shared else 2)
    x, memory = rand(7, 3, 3).double(), rand(3, module.memory_size, seed=1).double()
    start, valid = flags()
    whole = module(PolicyInput({"obs": x}, None, start, valid, memory), NOTHING, True)
    for t in range(7):
        row = slice(t, t + 1)
        # Acting does not ask for the value, but has to advance the value function's memory all the same.
        acting = module(PolicyInput({"obs": x[row]}, None, start[row], valid[row], memory), NOTHING, False)
        step = module(PolicyInput({"obs": x[row]}, None, start[row], valid[row], memory), NOTHING, True)
        torch.testing.assert_close(acting.memory, step.memory, rtol=0, atol=0)
        torch.testing.assert_close(whole.value[t], step.value[0], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(
            whole.distribution.log_probs[t], step.distribution.log_probs[0], rtol=1e-10, atol=1e-10
        )
        memory = step.memory
    torch.testing.assert_close(whole.memory, memory, rtol=1e-10, atol=1e-10)
    assert whole.value.dtype == F64


BAD_CONFIGS = [
    ({"hidden_sizes": (64, 0)}, "hidden_sizes is .* expected at least 1"),
    ({"recurrent_size": 0}, "recurrent_size is 0"),
    ({"sequence_length": 0}, "sequence_length is 0; expected at least 1"),
    ({"initial_std": 0.0}, "initial_std is 0.0; expected a positive number"),
    ({"min_probability": 0.5}, "min_probability is 0.5"),
    ({"min_std": 0.0}, "min_std is 0.0"),
    ({"squash": "tanh", "gaussian": "full"}, "gaussian is 'full'"),
]


@pytest.mark.parametrize(("options", "said"), BAD_CONFIGS)
def test_a_bad_config_says_what_is_expected(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        PolicyConfig(**options)
