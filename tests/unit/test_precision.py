"""Gradient steps whose hidden layers are in bfloat16: near those in float32, and float32 wherever digits count."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from exact.written_out import STEPS, minibatches, small_agent
from helpers import F64, box, discrete, vector
from steepest.algorithms import find
from steepest.networks.config import NetworkConfig
from steepest.networks.critics import DuelingHead, QEnsemble
from steepest.networks.inputs import Normalization, PolicyInput
from steepest.networks.policies import SquashedPolicy

CASES = {
    "sac": "box", "sac, discrete": "discrete", "sac_v": "box", "td3": "box", "ddpg": "box", "dqn": "discrete",
    "cql": "box", "discrete_cql": "discrete", "iql": "box", "awac": "box", "rebrac": "box", "bc": "box",
}  # fmt: skip
NONE = Normalization({}, {})
CONFIG = NetworkConfig(hidden_sizes=(8, 8), activation="relu")


def moments(case: str, precision: str) -> dict[str, Tensor]:
    """Adam's first moments after several gradient steps that hardly move the parameters: the gradients, nearly."""
    name = case.split(",")[0]
    wanted: dict[str, Any] = {"learning_rate": 1e-6, "critic_learning_rate": 1e-6, "policy_delay": 1}
    fields = find(name).Config.__dataclass_fields__
    options = {k: v for k, v in wanted.items() if k in fields}
    agent = small_agent(name, CASES[case], {**options, "hidden_sizes": (32, 32), "precision": precision})
    agent.state = {k: v.float() if v.dtype == F64 else v for k, v in agent.state.items()}
    for module in agent.modules.values():
        module.float()
    rows = {k: v.float() if v.dtype == F64 else v for k, v in minibatches(agent).items()}
    agent.update(rows, agent.update_noise(STEPS), agent.hyperparameters(0.0))
    assert {v.dtype for v in agent.state.values() if v.is_floating_point()} == {torch.float32}
    return {k: v for k, v in agent.state.items() if k.endswith("adam_mean")}


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_float32(case: str) -> None:
    """To within what bfloat16 rounds, 2^-9 a number; and they are not the same, so the option does something."""
    known, found = (moments(case, precision) for precision in ("float32", "bfloat16"))
    for name, gradient in known.items():
        error = (found[name] - gradient).norm() / gradient.norm()
        assert error < 0.05, name
        assert error > 1e-5 or name.startswith("temperature/"), name


def outputs(module: nn.Module, *arguments: Any) -> tuple[dict[str, torch.dtype], Any]:
    """The number types of what the linear layers give inside an autocast, and what the module gives."""
    seen: dict[str, torch.dtype] = {}
    for name, layer in module.named_modules():
        if hasattr(layer, "weight"):
            layer.register_forward_hook(lambda _, __, out, name=name: seen.__setitem__(name, out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        found = module(*arguments)
    return seen, found


def test_first_and_last_layers_are_in_float32() -> None:
    full, half = torch.float32, torch.bfloat16
    obs, action = {"obs": torch.randn(3, 4)}, torch.randn(3, 2)
    for given, options in ((action, {"actions": 2}), (None, {"choices": 5})):
        seen, q = outputs(QEnsemble(CONFIG, vector(4), None, critics=2, **options), obs, NONE, given)
        assert seen == {"first": full, "layers.0": half, "layers.1": full}
        assert q.dtype == full
    inputs = PolicyInput(obs, None, None, None, None)
    for spec in (box(2), discrete(5)):
        policy = SquashedPolicy(CONFIG, vector(4), spec, None, log_std=(-5.0, 2.0), min_probability=0.0)
        seen, _ = outputs(policy, inputs, NONE, False)
        assert seen == {"torso.mlp.0": full, "torso.mlp.2": half, "head": full}
    seen, q = outputs(DuelingHead(4, (8, 8), 5, "relu"), obs["obs"].bfloat16())
    assert seen == {f"{s}.{i}": half if i == 2 else full for s in ("value", "advantage") for i in (0, 2, 4)}
    assert q.dtype == full


def test_digits_of_an_observation_are_not_lost() -> None:
    """1000 and 1001 are one number in bfloat16."""
    critic = QEnsemble(CONFIG, vector(1), None, critics=1, actions=1)
    obs = torch.tensor([[1000.0], [1001.0]])
    critic.first.bias.data.copy_(-1000.0 * critic.first.weight)
    with torch.autocast("cpu", torch.bfloat16):
        first = critic.first(obs)
    assert torch.equal(first[:, 0], first[:, 1]), "what a first layer in bfloat16 sees"
    with torch.autocast("cpu", torch.bfloat16):
        found = critic({"obs": obs}, NONE, torch.zeros(2, 1))
    assert not torch.equal(found[:, 0], found[:, 1])


def test_a_processor_without_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    for able in (True, False):
        monkeypatch.setattr("steepest.agents.replay_updates.multiplies_bfloat16", lambda _, able=able: able)
        find("sac")(find("sac").Config(precision="bfloat16"), vector(3), box(2), note=said.append)
    assert said == ["precision bfloat16: this processor does not multiply in it; float32 is faster here"]
