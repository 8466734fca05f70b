"""Filming what is played: the pictures are those of the very steps, and only of stretches within one episode."""

from __future__ import annotations

import itertools
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from steepest.environments import make_env
from steepest.errors import UsageError
from steepest.preferences.film import Film, Picture


class Counting(gym.Env[Any, Any]):
    """Episodes of seven steps; the observation and the colour of the picture say which step of which one it is."""

    observation_space = spaces.Box(0.0, 255.0, (2,), np.float32)
    action_space = spaces.Discrete(2)
    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.episode = 0
        self.drawn = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps, self.episode = 0, self.episode + 1
        return self.seen(), {}

    def seen(self) -> Any:
        return np.array([self.steps, self.episode], np.float32)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return self.seen(), 0.0, False, self.steps == 7, {}

    def render(self) -> Any:
        self.drawn += 1
        return np.full((4, 6, 3), self.seen().sum() * 10, np.uint8)


def film(steps: int = 3, length: int = 40, envs: int = 4, **options: Any) -> Film:
    return Film(make_env(Counting, envs, render_mode="rgb_array", **options), steps, length)


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_stretches_are_filmed_as_they_are_played(vectorization: str) -> None:
    """Of every stretch that is kept, each picture shows the observation of its row; none goes over an end."""
    filmed = film(vectorization=vectorization)
    try:
        obs, _ = filmed.reset(0)
        generator = torch.Generator().manual_seed(0)
        ends = 0
        for _ in range(3):
            filmed.begin(40, generator)
            rows, valid = [obs["obs"].copy()], []
            for _ in range(40):
                result = filmed.step(np.zeros(4, np.int64))
                rows.append(result.obs["obs"].copy())
                valid.append(result.valid)
            obs = result.obs
            seen, valid = np.stack(rows), np.stack(valid)
            assert len(filmed.kept) >= 20
            for (row, i), roll in filmed.kept.items():
                shown = [int(picture.unpacked()[0, 0, 0]) for picture in roll]
                assert shown == (seen[row : row + 4, i].sum(-1) * 10).tolist()
                assert valid[row : row + 3, i].all()
                assert len(set(seen[row : row + 4, i, 1].tolist())) == 1
                ends += seen[row + 3, i, 0] == 7
            taken = sorted((i, row) for row, i in filmed.kept)
            assert all(b - a >= 3 for (i, a), (j, b) in itertools.pairwise(taken) if i == j)
        assert ends > 0  # a stretch may end with its episode
    finally:
        filmed.batch.close()


def test_pictures_are_of_the_environments_that_are_asked_for() -> None:
    """As many environments are drawn as are needed for what is wanted, and none where nothing is."""
    filmed = film(steps=3, length=40, envs=8)
    filmed.reset(1)

    def drawn() -> list[int]:
        return [env.unwrapped.drawn for env in filmed.batch._venv.envs]  # pyright: ignore[reportAttributeAccessIssue]

    filmed.begin(0, torch.Generator())
    for _ in range(40):
        filmed.step(np.zeros(8, np.int64))
    assert drawn()[1:] == [0] * 7
    assert filmed.kept == {}
    filmed.begin(2, torch.Generator().manual_seed(0))
    for _ in range(40):
        filmed.step(np.zeros(8, np.int64))
    assert len(filmed.kept) == 2
    assert sum(n > 0 for n in drawn()[1:]) <= 1
    assert sum(drawn()) < 20  # and no more once there are enough
    filmed.batch.close()


def test_the_same_generator_films_the_same() -> None:
    found = []
    for _ in range(2):
        filmed = film(envs=8)
        filmed.reset(3)
        filmed.begin(10, torch.Generator().manual_seed(7))
        for _ in range(40):
            filmed.step(np.zeros(8, np.int64))
        found.append(filmed.kept)
        filmed.batch.close()
    assert found[0] == found[1]
    assert {i for _, i in found[0]} != {0}


def test_a_picture_is_packed_without_loss() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)[:, ::-1]
    assert np.array_equal(Picture.of(frame).unpacked(), frame)


def test_what_gives_no_pictures_is_refused() -> None:
    class Blank(Counting):
        def render(self) -> Any:
            return np.zeros((4, 4))

    class Blind(Counting):
        def render(self) -> Any:
            return None

    for kind, said in ((Blank, "expected .height, width, 3."), (Blind, "returned no picture")):
        with pytest.raises(UsageError, match=said):
            Film(make_env(kind, 2, render_mode="rgb_array"), 3, 40)
    with pytest.raises(UsageError, match="without a render mode"):
        Film(make_env(Counting, 2), 3, 40)
    with pytest.raises(UsageError, match="clip_steps is 41, but a rollout has 40 steps"):
        film(steps=41)
