"""The agent around its network: what is trained, what is refused, and what acting may not disturb."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import steepest
from helpers import box, discrete, synthetic_rollout, vector
from steepest.agents.config import scheduled
from steepest.algorithms.ppo import PPO, PPOConfig
from steepest.algorithms.sac import SAC, SACConfig
from steepest.errors import UsageError
from steepest.types import ActionSpec, ObsField, ObsSpec


def make(network: Any = None, *, seeds: tuple[int, ...] = (0,), device: str = "cpu", **options: Any) -> PPO:
    config = PPOConfig(hidden_sizes=(8,), rollout_steps=8, minibatches=2, epochs=1, **options)
    return PPO(config, vector(3), discrete(3), num_envs=2, seeds=seeds, network=network, device=device)


class HalfFrozen(nn.Module):
    """A pretrained first layer that must stay as it is."""

    def __init__(self, spec: ObsSpec) -> None:
        super().__init__()
        self.pretrained = nn.Linear(spec.fields[0].shape[0], 4).requires_grad_(False)
        self.trained = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.trained(torch.tanh(self.pretrained(x))))


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_frozen_parameters_are_not_trained(seeds: tuple[int, ...]) -> None:
    agent = make(HalfFrozen, seeds=seeds)
    before = {k: v.clone() for k, v in agent.tensors().items()}
    agent.update(synthetic_rollout(agent, 8, seed=0), 0.0)
    after = agent.tensors()
    assert torch.equal(
        after["buffers/policy_torso.pretrained.weight"], before["buffers/policy_torso.pretrained.weight"]
    )
    assert not torch.equal(after["params/policy_torso.trained.weight"], before["params/policy_torso.trained.weight"])
    assert not any("pretrained" in name for name in agent.parameters)


def test_dropout_is_refused() -> None:
    def network(spec: ObsSpec) -> nn.Module:
        return nn.Sequential(nn.Linear(spec.fields[0].shape[0], 8), nn.Dropout(0.1))

    with pytest.raises(UsageError, match=r"dropout layer \(policy_torso\.1\)"):
        make(network)


def test_a_population_is_built_on_its_device() -> None:
    agent = make(seeds=(0, 1), device="meta")
    assert all(v.device.type == "meta" for v in agent.state.values())


def test_acting_leaves_the_training_generators_alone() -> None:
    agent = make()
    before = [g.get_state() for g in agent.generators]
    first, _ = agent.act(np.zeros(3, dtype=np.float32))
    assert first in (0, 1, 2)
    assert all(torch.equal(a, g.get_state()) for a, g in zip(before, agent.generators, strict=True))


def test_going_on_from_an_agent_keeps_the_new_seed() -> None:
    old, new = make(seeds=(0,)), make(seeds=(7,))
    state = new.generators[0].get_state()
    new.take_over(old)
    assert torch.equal(new.state["params"], old.state["params"])
    assert torch.equal(new.generators[0].get_state(), state)


@pytest.mark.parametrize("name", ["normalize_obs", "normalize_reward"])
def test_going_on_with_other_normalisation_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} is False, but the agent to start from was trained with True"):
        make().take_over(make(**{name: True}))


@pytest.mark.parametrize(("action", "squash"), [(discrete(3), "clip"), (box(2), "clip"), (box(2), "tanh")])
@pytest.mark.compiles
def test_acting_compiled_ahead_equals_acting(action: Any, squash: str) -> None:
    config = PPOConfig(hidden_sizes=(8,), rollout_steps=8, minibatches=2, squash=squash, normalize_obs=True)  # pyright: ignore[reportArgumentType]
    agent = PPO(config, vector(3), action, num_envs=2, compile=True)
    noise = agent.draw_noise((1, 2))[0]
    obs = {"obs": torch.randn(1, 2, 3, generator=torch.Generator().manual_seed(0))}
    eager, _ = agent.actor()(obs, noise, None, None, None)
    fused, _ = agent.actor(fused=True)(obs, noise, None, None, None)
    torch.testing.assert_close(fused, eager, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="compiled for"):
        agent.actor(fused=True)({"obs": obs["obs"][:, :1]}, noise[:, :1], None, None, None)


class WritesInPlace(nn.Module):
    """Cannot be vmapped: it writes to a buffer that has no member axis."""

    seen: Tensor

    def __init__(self, spec: ObsSpec) -> None:
        super().__init__()
        self.linear = nn.Linear(spec.fields[0].shape[0], 4)
        self.register_buffer("seen", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        self.seen.mul_(0.9).add_(x.detach().mean(0))
        return torch.tanh(self.linear(x))


def test_modes_are_repeated() -> None:
    """What an update ran as is what another agent runs as, also where it could do better."""
    agent = make(WritesInPlace, seeds=(0, 1))
    assert agent.modes() == {}
    agent.update(synthetic_rollout(agent, 8, seed=0), 0.0)
    modes = agent.modes()
    assert modes["steps"] == "one member at a time"
    able = make(seeds=(0, 1))
    assert able.lifted()["steps"].modes[0][0] == "vmapped"
    assert able.repeat_modes(modes) == []
    able.update(synthetic_rollout(able, 8, seed=0), 0.0)
    assert able.modes() == modes
    assert make(seeds=(0, 1)).repeat_modes({"steps": "captured as a CUDA graph"}) == ["steps"]


@pytest.mark.parametrize(
    ("name", "constant", "linear"),
    [("learning_rate", 0.2, 0.15), ("clip_epsilon", 0.4, 0.3), ("gamma", 0.9, 0.9), ("target_kl", np.inf, np.inf)],
)
def test_schedules_scale_what_they_name(name: str, constant: float, linear: float) -> None:
    """A quarter of the run is over; of a field without a schedule nothing is, and none is no bound."""
    values: dict[str, Any] = {"learning_rate": 0.2, "clip_epsilon": 0.4, "gamma": 0.9}
    schedules: dict[str, Any] = {"learning_rate_schedule": "linear", "clip_schedule": "linear"}
    assert scheduled(PPOConfig(**values), name, 0.25) == constant
    assert scheduled(PPOConfig(**values, **schedules), name, 0.25) == pytest.approx(linear, rel=1e-15)


def test_a_schedule_scales_every_learning_rate_and_no_clip_range_of_another() -> None:
    config = SACConfig(learning_rate=0.2, critic_learning_rate=0.4, learning_rate_schedule="linear")
    assert scheduled(config, "critic_learning_rate", 0.5) == 0.2
    only_rate = PPOConfig(clip_epsilon=0.4, learning_rate_schedule="linear")
    assert scheduled(only_rate, "clip_epsilon", 0.5) == 0.4


def of(obs: ObsSpec, actions: ActionSpec, **options: Any) -> PPO:
    return PPO(PPOConfig(hidden_sizes=(8,), **options), obs, actions)


def test_options_of_another_algorithm_s_agent_are_named_as_such() -> None:
    """Which nobody gave: SAC learns its temperature, SAC with V has one."""
    start = SAC(SACConfig(hidden_sizes=(8,)), vector(3), box(1), num_envs=1)
    match = (
        "^temperature is None; expected a finite number. It comes from the agent to start from, of SAC: give another"
    )
    with pytest.raises(UsageError, match=match):
        steepest.train("sac_v", "Pendulum-v1", agent=start, total_steps=10)


def test_an_agent_of_other_spaces_is_no_start() -> None:
    """Whose tensors have the same shapes: they would be taken over, and mean something else."""
    fields = (ObsField("a", "vector", (2,), "float32"), ObsField("b", "vector", (2,), "float32"))
    dictionary = ObsSpec(fields, is_dict=True)
    pairs = [
        (of(dictionary, box(2)), of(ObsSpec(fields[::-1], is_dict=True), box(2)), "observations"),
        (of(vector(3), box(2)), of(vector(3), box(2, bound=9.0)), "actions"),
        (of(vector(3), discrete(3)), of(vector(3), replace(discrete(3), start=(1,))), "actions"),
    ]
    for mine, other, what in pairs:
        before = {k: v.clone() for k, v in mine.tensors().items()}
        with pytest.raises(UsageError, match=f"the agent to start from has other {what}"):
            mine.take_over(other)
        assert all(torch.equal(v, before[k]) for k, v in mine.tensors().items())
    mine = of(vector(3), box(2))
    for name, value in (("activation", "relu"), ("squash", "tanh")):
        with pytest.raises(UsageError, match=rf"^{name} is \w+, but the agent to start from was trained with {value}$"):
            mine.take_over(of(vector(3), box(2), **{name: value}))
    mine.take_over(of(vector(3), replace(box(2), dtype="float64")))  # EnvPool's, of the same space
    with pytest.raises(UsageError, match=r"agent is 'runs/one'; expected an agent, such as steepest\.load"):
        mine.take_over("runs/one")  # type: ignore[arg-type]


def test_what_cannot_be_acted_on_is_refused() -> None:
    agent = make()
    good = np.zeros(3, np.float32)
    agent.act(torch.zeros(3))
    wrong: list[tuple[Any, dict[str, Any], str]] = [
        ((good, {}), {}, r"a pair, as env\.reset\(\) returns it"),
        (np.zeros(2), {}, "does not fit this agent: The observation has shape"),
        (torch.zeros(3, requires_grad=True), {}, "does not fit this agent: .*requires grad"),
        (None, {}, r"has shape \(\); this agent takes"),
        ({"a": good}, {}, r"has shape \(\); this agent takes"),
        (np.array([0.0, np.nan, 0.0], np.float32), {}, "the observation is not finite"),
        (np.array([0.0, np.inf, 0.0], np.float32), {}, "the observation is not finite"),
        (good, {"action_mask": [True, False]}, "the action mask does not fit this agent"),
        (good, {"action_mask": [False, False, False]}, "the action mask does not fit this agent"),
        (
            np.zeros((2, 3), np.float32),
            {"action_mask": np.ones((3, 3), np.bool_)},
            "3 action masks are given for 2 observations",
        ),
    ]
    for obs, more, said in wrong:
        with pytest.raises(UsageError, match=said):
            agent.act(obs, **more)


def test_an_agent_is_readable() -> None:
    agent = make(seeds=(4,))
    assert repr(agent) == "PPO(seed 4; observations vector (3,), actions discrete [3])"
    agent.trained_on = {"env": "CartPole-v1"}
    assert repr(agent).startswith("PPO(trained on CartPole-v1, seed 4; ")
    assert repr(make(seeds=(0, 1))).startswith("PPO(seeds 0, 1; ")
