"""What is drawn from a seed is the same in a thread beside others as alone."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import steepest
from helpers import discrete, vector
from helpers_language import tiny
from steepest.agents.initial import build
from steepest.algorithms.ppo import PPO, PPOConfig
from steepest.language.models.loading import load_model
from steepest.language.models.saving import save_model
from steepest.seeding import drawing_from

THREADS = 8
CPU = torch.device("cpu")


def together(draw: Any, seeds: range) -> list[Any]:
    """What every seed draws, in threads that begin at once."""
    count = min(THREADS, len(seeds))
    barrier = threading.Barrier(count)

    def begin(seed: int) -> Any:
        barrier.wait(60.0)
        return draw(seed)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(begin, seeds))


def weights(seed: int) -> torch.Tensor:
    agent = PPO(PPOConfig(hidden_sizes=(32, 32)), vector(4), discrete(2), seeds=(seed, seed + 1))
    return torch.cat([x.flatten() for name, x in sorted(agent.tensors().items()) if x.is_floating_point()])


def of_a_block(seed: int) -> torch.Tensor:
    with drawing_from(seed):
        return torch.stack([torch.randn(50) for _ in range(200)])


def of_a_torso(seed: int) -> torch.Tensor:
    def make() -> dict[str, nn.Module]:
        return {"": nn.Sequential(*[nn.Linear(16, 16) for _ in range(20)])}

    return torch.cat([p.detach().flatten() for p in build(make, seed, CPU)[""].parameters()])


@pytest.mark.parametrize("draw", [weights, of_a_block, of_a_torso])
def test_threads_draw_what_they_draw_alone(draw: Any) -> None:
    seeds = range(2 * THREADS)
    alone = [draw(seed) for seed in seeds]
    for found, expected in zip(together(draw, seeds), alone, strict=True):
        assert torch.equal(found, expected)
    assert not torch.equal(alone[0], alone[1])


def test_weights_are_those_of_any_number_of_threads() -> None:
    """Runs beside each other set theirs as they go; 64 by 64 is wide enough to be shared among threads."""
    before = torch.get_num_threads()
    found: list[torch.Tensor] = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            agent = PPO(PPOConfig(hidden_sizes=(64, 64)), vector(4), discrete(2), seeds=(3,))
            found.append(agent.state["params"])
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(x, found[0]) for x in found)


def test_models_load_side_by_side(tmp_path: Path) -> None:
    save_model(tiny(scale=1.0), tmp_path / "model")

    def load(_: int) -> torch.Tensor:
        return torch.cat([p.detach().flatten() for p in load_model(tmp_path / "model").model.parameters()])

    alone = load(0)
    for found in together(load, range(4)):
        assert torch.equal(found, alone)


def test_the_process_s_own_stream_is_left_alone() -> None:
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    with drawing_from(9):
        torch.randn(100)
    assert torch.equal(torch.randn(3), expected)
    with pytest.raises(ZeroDivisionError), drawing_from(9):
        raise ZeroDivisionError
    with drawing_from(1), drawing_from(2):  # one within another waits for nobody
        pass


@pytest.mark.parametrize(
    ("algorithm", "env", "options"),
    [
        ("ppo", "CartPole-v1", {"rollout_steps": 16, "minibatches": 1}),
        ("dqn", "CartPole-v1", {"learning_starts": 32, "batch_size": 8, "steps_per_iteration": 32}),
        ("sac", "Pendulum-v1", {"learning_starts": 32, "batch_size": 8, "steps_per_iteration": 32, "dropout": 0.1}),
    ],
)
def test_runs_in_threads_are_the_runs_alone(algorithm: str, env: str, options: dict[str, Any]) -> None:
    """As a search over settings makes them, several at once in one process."""

    def train(seed: int) -> dict[str, torch.Tensor]:
        small = {"total_steps": 96, "num_envs": 2, "hidden_sizes": (8,), "eval_episodes": 1, "threads": 1}
        return steepest.train(algorithm, env, seed=seed, **small, **options).tensors()

    seeds = range(4)
    alone = [train(seed) for seed in seeds]
    for found, expected in zip(together(train, seeds), alone, strict=True):
        assert all(torch.equal(found[name], expected[name]) for name in expected)
