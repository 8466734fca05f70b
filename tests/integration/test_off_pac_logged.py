"""Off-PAC from logs and from another agent's behaviour; COPDAC on a linear regulator."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

import steepest.networks.actor_critic
from helpers import box, discrete, vector
from steepest import Run, UsageError
from steepest.agents.agent import Agent
from steepest.agents.behaviour import scored_by
from steepest.algorithms.off_pac import OffPAC, OffPACConfig
from steepest.algorithms.sac import SAC, SACConfig
from steepest.exact import lqr
from steepest.experience.logs import LoggedExperience

QUICK: dict[str, Any] = {"num_envs": 16, "rollout_steps": 16, "compile": "off", "eval_episodes": 0}


class Contexts(gym.Env):
    """One choice an episode; the action with the number of the context pays 1."""

    observation_space = spaces.Box(-1.0, 1.0, (2,))
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.context = int(self.np_random.integers(2))
        return np.eye(2, dtype=np.float32)[self.context], {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.eye(2, dtype=np.float32)[self.context], float(action == self.context), True, False, {}


def score(agent: Agent) -> float:
    """The chance of the right action."""
    contexts = np.repeat([0, 1], 200)
    return float((agent.act(np.eye(2, dtype=np.float32)[contexts])[0] == contexts).mean())


def uniform_log(steps: int) -> LoggedExperience:
    rng = np.random.default_rng(0)
    context, action = rng.integers(2, size=steps), rng.integers(2, size=steps)
    obs, end = np.eye(2, dtype=np.float32)[context], np.ones(steps, dtype=bool)
    return LoggedExperience(obs, action, context == action, obs, end, ~end, np.full(steps, np.log(0.5)))


def log_run(data: Any, steps: int, **options: Any) -> Run:
    settings = {**QUICK, "hidden_sizes": (16,), "policy_learning_rate": 0.2, "total_steps": steps, **options}
    return Run("off_pac", Contexts, data=data, **settings)


def test_learns_from_a_log(tmp_path: Path) -> None:
    """Logged by the uniform policy, read from a file; the logged probabilities are what it learns by."""
    np.savez(tmp_path / "log.npz", **uniform_log(4096)._asdict())
    with log_run(tmp_path / "log.npz", 2 * 4096) as run:
        assert abs(score(run.agent) - 0.5) < 0.15
        rows = list(run)
    assert len(rows) == 2 * (2 * 4096 // 256)
    assert rows[-1]["step"] == 2 * 4096
    assert "train/return_mean" not in rows[-1]
    assert score(run.agent) > 0.9


def test_a_log_of_other_rewards_teaches_the_opposite() -> None:
    data = uniform_log(4096)
    with log_run(data._replace(reward=-1.0 * data.reward), 2 * 4096) as run:
        assert len(list(run)) == 64
    assert score(run.agent) < 0.1


def test_a_run_on_a_log_resumes_to_the_same_bits(tmp_path: Path) -> None:
    np.savez(tmp_path / "log.npz", **uniform_log(1024)._asdict())
    options = {"checkpoint_every": 512, "tensorboard": False, "learning_rate_schedule": "linear"}
    with log_run(tmp_path / "log.npz", 2048, out=tmp_path / "whole", **options) as run:
        assert len(list(run)) == 16
    with log_run(tmp_path / "log.npz", 2048, out=tmp_path / "stopped", **options) as stopped:
        for row in stopped:
            if row["step"] >= 640:
                break
    with Run.resume(tmp_path / "stopped", env=Contexts) as resumed:
        assert 0 < resumed.step <= 640
        assert list(resumed)[-1]["step"] == 2048
    for name, tensor in run.agent.tensors().items():
        assert torch.equal(tensor, resumed.agent.tensors()[name]), name


def test_a_log_in_memory_is_asked_for_again(tmp_path: Path) -> None:
    data = uniform_log(1024)
    options = {"checkpoint_every": 256, "tensorboard": False, "out": tmp_path / "run"}
    with log_run(data, 1024, **options) as run:
        run.iterate()
    with pytest.raises(UsageError, match=r"on a log made in Python; pass it again: data=\.\.\."):
        Run.resume(tmp_path / "run", env=Contexts)
    with Run.resume(tmp_path / "run", env=Contexts, data=data) as run:
        assert run.iterate()["step"] == 128


@pytest.mark.parametrize(
    ("algorithm", "options", "message"),
    [
        ("ppo", {}, "ppo learns from what it plays itself, not from data"),
        ("off_pac", {"seeds": 2}, "seeds is 2; a log is for one seed"),
        ("off_pac", {"num_envs": 2048}, "too few for 2048 environments"),
    ],
)
def test_what_a_log_cannot_teach_is_refused(algorithm: str, options: dict[str, Any], message: str) -> None:
    settings = {k: v for k, v in QUICK.items() if k != "rollout_steps"} | options
    with pytest.raises(UsageError, match=message):
        Run(algorithm, Contexts, data=uniform_log(64), **settings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"obs": np.zeros((1024, 3)), "next_obs": np.zeros((1024, 3))}, r"shape \(3,\); .* are of shape \(2,\)"),
        ({"action": np.zeros((1024, 1), dtype=int)}, r"actions have the shape \(1,\); .* of shape \(\)"),
        ({"action": np.arange(1024) % 3}, "actions from 0 to 2; the policy counts its 2 choices from 0"),
        ({"action": np.arange(1024) % 2 - 1}, "actions from -1 to 0"),
    ],
)
def test_a_log_of_other_spaces_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        log_run(uniform_log(1024)._replace(**change), 1024)


def test_a_run_does_not_resume_on_another_log(tmp_path: Path) -> None:
    data = uniform_log(1024)
    with log_run(data, 1024, out=tmp_path / "run", checkpoint_every=256, tensorboard=False) as run:
        for row in run:
            if row["step"] >= 512:
                break
    changed = np.array(data.reward)
    changed[-1] = ~changed[-1]
    with pytest.raises(UsageError, match="the log has changed since the run began"):
        Run.resume(tmp_path / "run", env=Contexts, data=data._replace(reward=changed))


@pytest.mark.parametrize("seeds", [1, 2])
def test_learns_from_a_saved_agent(seeds: int, tmp_path: Path) -> None:
    """Another agent's actions, scored with its own probabilities; it stays as it was, whatever is learned."""
    with Run("reinforce", Contexts, hidden_sizes=(4,), **QUICK) as run:
        run.agent.save(tmp_path / "other.safetensors")
        other = run.agent
    options = {
        "hidden_sizes": (16,),
        "policy_learning_rate": 0.2,
        "behaviour_agent": str(tmp_path / "other.safetensors"),
    }
    with Run("off_pac", Contexts, seeds=seeds, total_steps=10**6, **options, **QUICK) as run:
        rollout, _ = run.training.loop.collector.collect()
        scored = scored_by(run.agent.other, rollout)
        obs = rollout.obs["obs"][:, :-1].reshape(1, -1, 2)
        wanted = other.forward(
            other.state["params"][0],
            {},
            steepest.networks.inputs.PolicyInput({"obs": obs[0]}, None, None, None, None),
        ).distribution.log_prob(rollout.action.flatten())
        torch.testing.assert_close(scored.behaviour_log_prob.flatten(), wanted)
        for _ in range(30):
            run.iterate()
        agents = [run.agent.member(i) for i in range(seeds)]
        assert torch.equal(run.agent.other.state["params"], other.state["params"])
    assert all(score(agent) > 0.85 for agent in agents)


def test_a_behaviour_of_other_spaces_is_refused(tmp_path: Path) -> None:
    OffPAC(OffPACConfig(), vector(3), discrete(2)).save(tmp_path / "other.safetensors")
    with pytest.raises(UsageError, match="other observations or actions"):
        Run("off_pac", Contexts, behaviour_agent=str(tmp_path / "other.safetensors"), **QUICK)


def test_a_behaviour_whose_actions_are_other_numbers_is_refused() -> None:
    """A tanh policy's action is the number before tanh, and its density that after."""
    agent = OffPAC(OffPACConfig(behaviour_agent=__file__), vector(2), box(1))
    with pytest.raises(UsageError, match="sac, which squashes its actions by tanh"):
        agent.read_others(lambda _: SAC(SACConfig(), vector(2), box(1)))
    agent.read_others(lambda _: OffPAC(OffPACConfig(), vector(2), box(1)))


def test_a_policy_acts_without_the_file_of_its_behaviour(tmp_path: Path) -> None:
    """But learns no more: what it would learn from is gone."""
    other = tmp_path / "other.safetensors"
    OffPAC(OffPACConfig(), vector(2), discrete(2)).save(other)
    OffPAC(OffPACConfig(behaviour_agent=str(other)), vector(2), discrete(2)).save(tmp_path / "agent.safetensors")
    other.unlink()
    agent = steepest.load(tmp_path / "agent.safetensors")
    assert agent.act(np.zeros(2, dtype=np.float32))[0] in (0, 1)
    with pytest.raises(UsageError, match="which was not read"):
        agent.behaviour()
    with pytest.raises(UsageError, match="which is no file"):
        Run("off_pac", Contexts, behaviour_agent=str(other), **QUICK)


# COPDAC


A, B, Q, R, W, GAMMA = 0.9, 0.5, 1.0, 0.5, 0.01, 0.6


class Regulator(gym.Env):
    """x' = A x + B u + noise, reward -(Q x^2 + R u^2), cut after 20 steps."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,))
    action_space = spaces.Box(-np.inf, np.inf, (1,))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.x, self.t = self.np_random.normal(), 0
        return np.array([self.x], dtype=np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        u = float(action[0])
        reward = -(Q * self.x**2 + R * u**2)
        self.x = A * self.x + B * u + np.sqrt(W) * self.np_random.normal()
        self.t += 1
        return np.array([self.x], dtype=np.float32), reward, False, self.t >= 20, {}


class Features(nn.Module):
    """(x, square x^2): the policy sees square = 0 and is linear, the value function 1 and is quadratic."""

    def __init__(self, square: float) -> None:
        super().__init__()
        self.square = square

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        return torch.cat([obs, self.square * obs.square()], -1)


@pytest.mark.parametrize("critic", ["sarsa", "q_learning", "gradient_q"])
def test_copdac_finds_the_optimal_feedback(critic: str) -> None:
    """From 0 to within 0.1 of the Riccati solution, -0.56: the steps of a stochastic, bootstrapped critic, whose fixed
    point is not quite the compatible one, leave that much."""
    squares = iter((0.0, 1.0))
    rates = {"policy_learning_rate": 0.1, "value_learning_rate": 0.3, "advantage_learning_rate": 0.5}
    with Run(
        "dpg",
        Regulator,
        network=lambda _: Features(next(squares)),
        critic=critic,
        gamma=GAMMA,
        total_steps=64 * 400,
        learning_rate_schedule="linear",
        auxiliary_learning_rate=0.1,
        initial_std=0.5,
        **rates,
        **{**QUICK, "num_envs": 64},
    ) as run:
        assert abs(float(run.agent.parameters["policy_head.weight"][0, 0, 0])) < 0.1
        for _ in run:
            pass
        found = float(run.agent.parameters["policy_head.weight"][0, 0, 0])

    def matrix(x: float) -> torch.Tensor:
        return torch.tensor([[x]], dtype=torch.float64)

    problem = lqr.LQR(
        matrix(A), matrix(B), matrix(Q), matrix(R), matrix(W), torch.zeros(1, dtype=torch.float64), matrix(1.0), GAMMA
    )
    assert found == pytest.approx(float(lqr.optimal_feedback(problem)), abs=0.1)


def test_copdac_refuses_discrete_actions() -> None:
    with pytest.raises(UsageError, match="dpg takes Box actions"):
        Run("dpg", Contexts, **QUICK)


@pytest.mark.skipif(sys.platform == "win32", reason="compiling needs a C++ compiler")
@pytest.mark.compiles
@pytest.mark.slow
def test_compiled_copdac_learns_as_eager() -> None:
    """The same run, eager and compiled: float32 rounding alone is between them."""
    states = []
    for mode in ("off", "on"):
        options = {**QUICK, "compile": mode, "rollout_steps": 4, "num_envs": 2, "steps_per_call": 2}
        with Run("dpg", Regulator, critic="gradient_q", hidden_sizes=(4,), total_steps=10**6, **options) as run:
            run.iterate()
            assert run.agent.modes()["steps"] == ("compiled" if mode == "on" else "ordinary autograd")
            states.append(run.agent.state["params"])
    torch.testing.assert_close(*states, rtol=1e-4, atol=1e-6)
