"""What the algorithms reach, with the settings that a user gets. Minutes each: `make test-learning`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

import steepest
from steepest import Run
from steepest.agents.agent import Agent
from steepest.exact import finite_mdp as mdps
from steepest.exact import gains, optimal
from steepest.networks.inputs import PolicyInput
from steepest.problems import Problem, access_control, riverswim

pytestmark = [pytest.mark.learning, pytest.mark.slow]


def test_ppo_solves_cartpole_with_three_seeds() -> None:
    agents = [steepest.train("ppo", "CartPole-v1", seed=seed) for seed in range(3)]
    means = [steepest.evaluate(agent, "CartPole-v1", episodes=100)[0].mean for agent in agents]
    assert min(means) >= 475, means


def test_three_seeds_trained_together_solve_cartpole(tmp_path: Path) -> None:
    steepest.train_seeds("ppo", "CartPole-v1", seeds=3, total_steps=150_000, out=tmp_path / "run")
    means = [result.mean for result in steepest.evaluate(tmp_path / "run", episodes=100)]
    assert min(means) >= 475, means


def test_reinforce_learns_cartpole(tmp_path: Path) -> None:
    steepest.train_seeds("reinforce", "CartPole-v1", seeds=3, total_steps=500_000, out=tmp_path / "run")
    means = [result.mean for result in steepest.evaluate(tmp_path / "run", episodes=100)]
    assert min(means) >= 400, means


def test_actor_critic_learns_cartpole(tmp_path: Path) -> None:
    steepest.train_seeds("actor_critic", "CartPole-v1", seeds=3, out=tmp_path / "run")
    means = [result.mean for result in steepest.evaluate(tmp_path / "run", episodes=100)]
    assert min(means) >= 475, means


def share_of_the_best_gain(agent: Agent, problem: Problem) -> float:
    """The exact average reward of the agent's policy, from its probabilities in every state, over the best there is."""
    mdp = mdps.FiniteMDP.from_problem(problem)
    state = {k: x[0] for k, x in agent.state.items()}
    states = PolicyInput({"obs": torch.arange(mdp.num_states)}, None, None, None, None)
    with torch.no_grad():
        distribution: Any = agent.forward(state["params"], state, states).distribution
    policy = distribution.log_probs.double().softmax(-1)
    return float(gains.gain(mdp, policy) / optimal.optimal_gain(mdp)[0])


@pytest.mark.parametrize(
    ("algorithm", "name", "problem"),
    [
        ("ppo", "steepest/RiverSwim-v0", riverswim),
        ("ppo", "steepest/AccessControl-v0", access_control),
        ("actor_critic", "steepest/RiverSwim-v0", riverswim),
    ],
)
def test_the_best_average_reward_is_reached(algorithm: str, name: str, problem: Callable[[], Problem]) -> None:
    """Three seeds of the preset, each within 3% of the best gain; a policy that never learnt is far from it."""
    agents = steepest.train_seeds(algorithm, name, seeds=3, eval_episodes=0)
    assert {agent.config.objective for agent in agents} == {"average"}  # pyright: ignore[reportAttributeAccessIssue]
    shares = [share_of_the_best_gain(agent, problem()) for agent in agents]
    assert min(shares) >= 0.97, shares
    untrained = type(agents[0])(agents[0].config, agents[0].obs_spec, agents[0].action_spec)
    assert share_of_the_best_gain(untrained, problem()) < 0.9


class WithoutVelocities(gym.ObservationWrapper[Any, Any, Any]):
    """CartPole seen in still pictures: the cart's place and the pole's angle, without their velocities."""

    def __init__(self) -> None:
        super().__init__(gym.make("CartPole-v1"))
        full = self.env.observation_space
        assert isinstance(full, spaces.Box)
        self.observation_space = spaces.Box(full.low[[0, 2]], full.high[[0, 2]], dtype=np.float32)

    def observation(self, observation: Any) -> Any:
        return observation[[0, 2]]


MASKED = {
    "total_steps": 500_000,
    "num_envs": 16,
    "rollout_steps": 128,
    "sequence_length": 16,
    "epochs": 4,
    "minibatches": 4,
    "learning_rate": 1e-3,
    "learning_rate_schedule": "linear",
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "stop_at_return": 475.0,
    "eval_every": 50_000,
    "eval_episodes": 20,
}


def masked_cartpole(recurrent: str, **options: Any) -> float:
    """Mean return of 100 episodes after training on the masked CartPole."""
    agent = steepest.train("ppo", WithoutVelocities, recurrent=recurrent, **{**MASKED, **options})
    return steepest.evaluate(agent, WithoutVelocities, episodes=100)[0].mean


@pytest.mark.parametrize("recurrent", ["gru", "lstm"])
def test_memory_replaces_velocities(recurrent: str) -> None:
    assert masked_cartpole(recurrent) >= 400


def test_without_memory_velocities_are_missed() -> None:
    """The negative control: the same settings, no memory."""
    assert masked_cartpole("none") < 150


class Corridors(gym.Env[Any, Any]):
    """A grid with walls: moves into a wall are illegal, and taking one is an error. Reach the far corner.

    The walls differ from episode to episode and are seen only through the mask.
    """

    SIZE = 5
    MOVES = ((0, 1), (1, 0), (0, -1), (-1, 0))
    observation_space = spaces.MultiDiscrete([5, 5])
    action_space = spaces.Discrete(4)

    def _look(self) -> tuple[Any, dict[str, Any]]:
        mask = np.zeros(4, np.int8)
        for i, (dx, dy) in enumerate(self.MOVES):
            x, y = self.place[0] + dx, self.place[1] + dy
            mask[i] = 0 <= x < self.SIZE and 0 <= y < self.SIZE and not self.walls[x, y]
        self.mask = mask
        return self.place.copy(), {"action_mask": mask}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.walls = np.zeros((5, 5), np.bool_)
        # Walls off the two border paths, so that there is always a way.
        self.walls[1:4, 1:4] = self.np_random.random((3, 3)) < 0.5
        self.place = np.zeros(2, np.int64)
        self.steps = 0
        return self._look()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if not self.mask[action]:
            raise ValueError(f"illegal move {action} at {self.place}")
        self.place = self.place + self.MOVES[int(action)]
        self.steps += 1
        there = bool((self.place == self.SIZE - 1).all())
        return *self._look_then(1.0 if there else -0.05), there, self.steps >= 60, self.info

    def _look_then(self, reward: float) -> tuple[Any, float]:
        obs, self.info = self._look()
        return obs, reward


def test_a_masked_run_never_takes_an_illegal_action() -> None:
    """The environment raises on the first one."""
    options = {"total_steps": 60_000, "num_envs": 8, "rollout_steps": 64, "learning_rate": 2e-3, "entropy_coef": 0.01}
    with Run("ppo", Corridors, **options) as run:
        list(run)
    assert steepest.evaluate(run.agent, Corridors, episodes=100)[0].mean > 0.6
