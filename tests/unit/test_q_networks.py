"""Critics in one batched product, against the same layers one by one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from helpers import F64, box, discrete, vector
from steepest.networks.config import NetworkConfig
from steepest.networks.critics import QEnsemble, QNetwork, dueling_q_value, subset_minimum
from steepest.networks.inputs import Normalization, PolicyInput
from steepest.networks.policies import DeterministicPolicy, SquashedPolicy
from steepest.types import ObsField, ObsSpec

NONE = Normalization({}, {})
CONFIG = NetworkConfig(hidden_sizes=(7, 5), activation="relu")


def test_subset_minimum() -> None:
    q = torch.tensor([[1.0, 5.0], [2.0, 0.0], [3.0, 4.0]])
    assert subset_minimum(q, None).tolist() == [1.0, 0.0]
    assert subset_minimum(q, torch.tensor([2, 0])).tolist() == [1.0, 4.0]


@pytest.mark.parametrize("layer_norm", [False, True])
def test_an_ensemble_is_its_members(layer_norm: bool) -> None:
    """Each on its own with ordinary linear layers over observation and action together."""
    critic = QEnsemble(CONFIG, vector(3), None, critics=4, actions=2, layer_norm=layer_norm).double()
    for p in critic.parameters():
        p.data += 0.1 * torch.randn_like(p)
    obs, action = torch.randn(6, 3, dtype=F64), torch.randn(6, 2, dtype=F64)
    found = critic({"obs": obs}, NONE, action)
    assert found.shape == (4, 6)
    for c in range(4):
        weight = torch.cat([critic.first.weight[c], critic.first_action[c]])
        x = torch.cat([obs, action], -1) @ weight + critic.first.bias[c]
        for i, layer in enumerate(critic.layers):
            if layer_norm:
                x = F.layer_norm(x, x.shape[-1:], critic.norms[i].scale[c, 0], critic.norms[i].shift[c, 0])
            x = torch.relu(x) @ layer.weight[c] + layer.bias[c]
        torch.testing.assert_close(found[c], x[:, 0], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(found[0], found[1])


def test_dropout_is_the_noise_that_is_given() -> None:
    """Units whose noise is below the rate are left out, the others scaled up; on the mean nothing changes."""
    critic = QEnsemble(NetworkConfig(hidden_sizes=(40,)), vector(3), None, critics=2, dropout=0.25).double()
    obs = {"obs": torch.randn(1, 3, dtype=F64).expand(20_000, 3)}
    noise = torch.rand((2, 20_000, 40), generator=torch.Generator().manual_seed(0))
    kept = critic.first(obs["obs"])[:, :1] * (noise[:, :1] >= 0.25) / 0.75
    expected = torch.tanh(kept) @ critic.layers[0].weight + critic.layers[0].bias
    torch.testing.assert_close(critic(obs, NONE, None, [noise])[:, :1], expected.squeeze(-1), rtol=1e-12, atol=0.0)
    share = float((noise >= 0.25).double().mean())
    assert share == pytest.approx(0.75, abs=0.002)  # 1.6 million draws


def test_values_of_every_choice_and_of_states() -> None:
    obs = {"obs": torch.randn(6, 3)}
    assert QEnsemble(CONFIG, vector(3), None, critics=2, choices=5)(obs, NONE, None).shape == (2, 6, 5)
    assert QEnsemble(CONFIG, vector(3), None, critics=2, choices=1)(obs, NONE, None).shape == (2, 6, 1)
    assert QEnsemble(CONFIG, vector(3), None, critics=1)(obs, NONE, None).shape == (1, 6)


def test_critics_share_an_encoder_of_images() -> None:
    spec = ObsSpec((ObsField("obs", "image", (1, 36, 36), "uint8"),), is_dict=False)
    critic = QEnsemble(CONFIG, spec, None, critics=2, actions=2)
    obs = {"obs": torch.randint(0, 256, (3, 1, 36, 36), dtype=torch.uint8)}
    assert critic(obs, NONE, torch.zeros(3, 2)).shape == (2, 3)
    names = [n for n, _ in critic.named_parameters() if n.startswith("encoder")]
    assert len(names) == 6, "three convolutions"


def test_policies_and_their_bounds() -> None:
    inputs = PolicyInput({"obs": 100.0 * torch.randn(50, 3)}, None, None, None, None)
    policy = SquashedPolicy(CONFIG, vector(3), box(2), None, log_std=(-1.0, 0.5), min_probability=0.0)
    policy.head.weight.data *= 100.0
    log_std = policy(inputs, NONE, False).distribution.log_std.detach()
    assert float(log_std.min()) == -1.0
    assert float(log_std.max()) == 0.5
    deterministic = DeterministicPolicy(CONFIG, vector(3), box(2), None, exploration_std=0.3)
    out = deterministic(inputs, NONE, False).distribution
    assert out.mode().abs().max() <= 1.0
    torch.testing.assert_close(out.sample(torch.ones(50, 2)), out.mode() + 0.3)
    choice = SquashedPolicy(CONFIG, vector(3), discrete(3), None, log_std=(-1.0, 0.5), min_probability=0.01)
    mask = torch.tensor([True, True, False]).expand(50, 3)
    probabilities = choice(inputs._replace(action_mask=mask), NONE, False).distribution.log_probs.exp()
    assert (probabilities[:, 2] == 0).all()
    assert probabilities[:, :2].min() >= 0.01 - 1e-6


def test_dueling_streams_are_identified() -> None:
    """A constant moved from one stream to the other shows: V is the mean of Q, and the advantages' level is nothing."""
    value, advantage = torch.randn(6, dtype=F64), torch.randn(6, 4, dtype=F64)
    q = dueling_q_value(value, advantage)
    torch.testing.assert_close(q.mean(-1), value, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(dueling_q_value(value, advantage + 3.0), q, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(dueling_q_value(value + 3.0, advantage - 3.0), q, atol=1.0)
    # The plain sum, by contrast, is the same Q for both.
    torch.testing.assert_close((value + 3.0)[:, None] + advantage - 3.0, value[:, None] + advantage)
    torch.testing.assert_close(q[:, 1] - q[:, 2], advantage[:, 1] - advantage[:, 2], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dueling", [False, True])
def test_a_q_network_layer_by_layer(dueling: bool) -> None:
    network = QNetwork(CONFIG, vector(3), discrete(4), None, dueling=dueling).double()
    obs = torch.randn(6, 3, dtype=F64)
    named = dict(network.named_parameters())
    x = torch.relu(obs @ named["torso.mlp.0.weight"].T)
    if dueling:
        parts = [
            torch.relu(x @ named[f"head.{part}.0.weight"].T) @ named[f"head.{part}.2.weight"].T
            for part in ("value", "advantage")
        ]
        expected = parts[0] + parts[1] - parts[1].mean(-1, keepdim=True)
    else:
        expected = torch.relu(x @ named["torso.mlp.2.weight"].T) @ named["head.weight"].T
    found = network.q_values({"obs": obs}, NONE)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    network.epsilon.fill_(0.0)
    mask = torch.ones(6, 4, dtype=torch.bool).scatter(1, found.argmax(-1, keepdim=True), False)
    policy = network(PolicyInput({"obs": obs}, mask, None, None, None), NONE, False).distribution
    assert torch.equal(policy.mode(), found.masked_fill(~mask, -torch.inf).argmax(-1))


def test_a_dueling_network_of_images_has_the_streams_of_its_paper() -> None:
    """Convolutions, then 512 units for the value and 512 for the advantages; or on top of a torso of one's own."""
    spec = ObsSpec((ObsField("obs", "image", (4, 84, 84), "uint8"),), is_dict=False)
    config = NetworkConfig(hidden_sizes=(512,), activation="relu")
    shapes = {k: tuple(p.shape) for k, p in QNetwork(config, spec, discrete(6), None, dueling=True).named_parameters()}
    assert shapes["head.value.0.weight"] == shapes["head.advantage.0.weight"] == (512, 3136)
    assert (shapes["head.value.2.weight"], shapes["head.advantage.2.weight"]) == ((1, 512), (6, 512))
    assert len(shapes) == 6 + 8
    mine = QNetwork(CONFIG, vector(3), discrete(4), lambda _: torch.nn.Linear(3, 11), dueling=True)
    assert mine.head.value[0].in_features == 11
    assert mine.q_values({"obs": torch.zeros(2, 3)}, NONE).shape == (2, 4)
