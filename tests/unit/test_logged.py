"""Logged experience as rollouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from steepest.errors import UsageError
from steepest.experience.logs import LoggedExperience, logged_rollouts, read_log


def log(lengths: tuple[int, ...], ends: str) -> LoggedExperience:
    """Episodes of these lengths; t terminates, c is cut. Observations count up through the log, from 100 in next_obs
    where an episode ends."""
    count = sum(lengths)
    last = np.zeros(count, dtype=bool)
    last[np.cumsum(lengths) - 1] = True
    letters = np.array(list("".join("." * (n - 1) + e for n, e in zip(lengths, ends, strict=True))))
    obs = np.arange(count, dtype=np.float32)[:, None]
    following = np.where(last[:, None], 100.0 + obs, obs + 1.0).astype(np.float32)
    return LoggedExperience(
        obs, np.arange(count) % 3, obs[:, 0] * 10.0, following, letters == "t", letters == "c", -obs[:, 0]
    )


def test_rollouts_hold_what_was_logged() -> None:
    """Every step is there once, in order, with its next observation, flags, probability and place in its episode."""
    data = log((3, 2, 4, 1), "tctt")
    found = []
    for r in logged_rollouts(data, 1, 2):
        assert r.action.shape == (1, 2, 1)
        assert r.obs["obs"].shape == (1, 3, 1, 1)
        assert r.behaviour_log_prob is not None
        for t in range(2):
            if r.valid[0, t, 0]:
                one = (r.obs["obs"][0, t, 0, 0], r.action[0, t, 0], r.reward[0, t, 0], r.obs["obs"][0, t + 1, 0, 0])
                flags = (r.terminated[0, t, 0], r.truncated[0, t, 0], r.behaviour_log_prob[0, t, 0])
                found.append([float(x) for x in (*one, *flags, r.episode_step[0, t, 0])])
    wanted = [
        [float(x) for x in (o[0], a, rew, n[0], te, tr, lp)] for o, a, rew, n, te, tr, lp in zip(*data, strict=True)
    ]
    steps = [0, 1, 2, 0, 1, 0, 1, 2, 3, 0]
    assert found == [[*row, step] for row, step in zip(wanted, steps, strict=True)]


def test_numbers_are_those_that_networks_take() -> None:
    data = log((3, 7), "tt")
    wide = data._replace(obs=data.obs.astype(np.float64), next_obs=data.next_obs.astype(np.float64))
    narrow = wide._replace(action=np.asarray(data.action, np.int32))
    for one, other in zip(logged_rollouts(narrow, 1, 2), logged_rollouts(data, 1, 2), strict=True):
        for found, wanted in ((one.obs["obs"], other.obs["obs"]), (one.action, other.action)):
            torch.testing.assert_close(found, wanted, rtol=0.0, atol=0.0)


def test_parts_stand_side_by_side() -> None:
    """Ten steps and three ends are thirteen rows: three parts of four, the last row left over."""
    rollouts = list(logged_rollouts(log((3, 2, 5), "ttt"), 3, 2))
    assert len(rollouts) == 2
    rows = torch.cat([r.obs["obs"][0, :-1, :, 0] for r in rollouts])
    assert rows.tolist() == [[0, 3, 6], [1, 4, 7], [2, 104, 8], [102, 5, 9]]
    valid = torch.cat([r.valid[0] for r in rollouts])
    assert valid.tolist() == [[True] * 3, [True] * 3, [True, False, True], [False, True, True]]


BAD: list[tuple[dict[str, Any], str]] = [
    ({"reward": np.zeros(3)}, "same length"),
    ({"log_prob": np.full(10, -np.inf)}, "log_prob has entries that are not finite"),
    ({"obs": np.zeros((10, 1))}, "next_obs of row 0 of the log is not obs of row 1"),
]


@pytest.mark.parametrize(("change", "said"), BAD)
def test_what_is_no_log_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        list(logged_rollouts(log((3, 7), "tt")._replace(**change), 1, 2))


def test_a_short_log_is_refused() -> None:
    with pytest.raises(UsageError, match="too few for 4 environments x 8"):
        list(logged_rollouts(log((3, 7), "tt"), 4, 8))


def test_a_file_that_is_no_log_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "part.npz", obs=np.zeros((2, 1)))
    with pytest.raises(UsageError, match=r"part.npz lacks action, reward, .*; a log has obs, action"):
        read_log(tmp_path / "part.npz")
    (tmp_path / "text.npz").write_text("no archive")
    for name in ("text.npz", "absent.npz"):
        with pytest.raises(UsageError, match=rf"{name} cannot be read as a log"):
            read_log(tmp_path / name)
    objects = {name: np.array([None], dtype=object) for name in LoggedExperience._fields}
    np.savez(tmp_path / "objects.npz", **objects)
    with pytest.raises(UsageError, match=r"objects.npz cannot be read as a log"):
        read_log(tmp_path / "objects.npz")
