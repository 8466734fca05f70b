"""What a run says before it starts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import pytest
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
from gymnasium.wrappers import NormalizeObservation, NormalizeReward, TimeLimit
from gymnasium.wrappers import vector as of_vectors

from steepest import Run
from steepest.environments import make_env

SMALL: dict[str, Any] = {"num_envs": 2, "rollout_steps": 64, "minibatches": 2, "eval_episodes": 0, "compile": "off"}


def cartpole() -> Any:
    return gym.make("CartPole-v1")


def notes_of(env: Any, **options: Any) -> list[str]:
    notes: list[str] = []
    with Run("ppo", env, note=notes.append, **{**SMALL, "total_steps": 1000, **options}):
        return notes


@pytest.mark.parametrize(("total", "said"), [(1000, True), (128, True), (2559, True), (2560, False), (100_000, False)])
def test_a_run_of_few_rollouts_says_where_it_ends(total: int, said: bool) -> None:
    found = [text for text in notes_of("CartPole-v1", total_steps=total) if text.startswith("total_steps is")]
    assert (
        found
        == [
            f"total_steps is {total:,}: the run ends with the iteration that reaches it, and an iteration plays up to "
            "128"
        ]
        * said
    )


def test_a_replay_algorithm_ends_where_it_was_asked_to() -> None:
    notes: list[str] = []
    with Run("dqn", "CartPole-v1", total_steps=100, eval_episodes=0, note=notes.append):
        assert not any("total_steps" in text for text in notes)


OBSERVATIONS, REWARDS = "normalize_obs", "normalize_reward"
WRAPPED: dict[str, tuple[Callable[[], Any], dict[str, Any], tuple[str, ...]]] = {
    "nothing": (lambda: cartpole, {}, ()),
    "observations": (lambda: lambda: NormalizeObservation(cartpole()), {}, (OBSERVATIONS,)),
    "rewards": (lambda: lambda: NormalizeReward(cartpole()), {}, (REWARDS,)),
    "both, below another": (
        lambda: lambda: TimeLimit(NormalizeReward(NormalizeObservation(cartpole())), 9), {}, (OBSERVATIONS, REWARDS)
    ),
    "in processes": (
        lambda: lambda: NormalizeObservation(cartpole()), {"vectorization": "async"}, (OBSERVATIONS,)
    ),
    "of a vector": (
        lambda: of_vectors.NormalizeObservation(SyncVectorEnv([cartpole] * 2)), {}, (OBSERVATIONS,)
    ),
    "rewards of a vector of processes": (
        lambda: of_vectors.NormalizeReward(AsyncVectorEnv([cartpole] * 2)), {}, (REWARDS,)
    ),
    "in a vector of the user's": (
        lambda: AsyncVectorEnv([lambda: NormalizeReward(cartpole())] * 2), {}, (REWARDS,)
    ),
    "one environment": (lambda: NormalizeObservation(cartpole()), {"num_envs": 1}, (OBSERVATIONS,)),
    "a vector by its id": (lambda: "CartPole-v1", {"vectorization": "native"}, ()),
}  # fmt: skip


@pytest.mark.parametrize("name", WRAPPED)
def test_an_environment_that_normalises_itself_is_named(name: str) -> None:
    make, options, expected = WRAPPED[name]
    env = make()
    try:
        found = [text for text in notes_of(env, **options) if "normalises its" in text]
    finally:
        if isinstance(env, gym.vector.VectorEnv):
            env.close()
    assert len(found) == len(expected)
    for text, option in zip(found, expected, strict=True):
        assert f"Use {option} instead" in text
        assert ("rewards" if option == REWARDS else "observations") in text


def test_statistics_are_found_without_a_step() -> None:
    batch = make_env(lambda: NormalizeObservation(cartpole()), 2, vectorization="sync")
    assert batch.inner_statistics == ("normalize_obs",)
    batch.reset(0)
    batch.close()

    class OfOnesOwn(gym.Wrapper[Any, Any, Any, Any]):
        def __init__(self) -> None:
            super().__init__(cartpole())
            self.obs_rms = self.ret_rms = self.return_rms = None

    batch = make_env(OfOnesOwn, 2, vectorization="sync")
    assert batch.inner_statistics == ("normalize_obs", "normalize_reward")
    batch.close()
