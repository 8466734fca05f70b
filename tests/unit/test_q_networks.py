"""Critics in one batched product, against the same layers one by one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from helpers import F64, box, discrete, vector
from steepest.networks import NetworkConfig, Normalization, PolicyInput
from steepest.q_networks import DeterministicPolicy, QEnsemble, SquashedPolicy, subset_minimum
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
