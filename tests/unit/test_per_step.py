"""What algorithms share whose weights move at every time step."""

from __future__ import annotations

import torch

from steepest.agents.replay_updates import batch_obs
from steepest.agents.stepwise import add_metrics, mean_of_steps, shortened, step_batch
from steepest.types import Rollout


def test_every_step_has_its_next_observation() -> None:
    t, n = 3, 2
    flag = torch.zeros((t, n), dtype=torch.bool)
    rollout = Rollout(
        obs={"a/b": torch.arange(4.0).view(4, 1, 1).expand(4, n, 1)},
        action=torch.zeros((t, n)),
        reward=torch.zeros((t, n)),
        terminated=flag,
        truncated=flag,
        valid=~flag,
        episode_step=torch.arange(4).unsqueeze(-1).expand(4, n),
        action_mask=torch.arange(4).view(4, 1, 1).expand(4, n, 1) > 1,
        memory=None,
    )
    batch = step_batch(rollout, torch.ones((t, n)))
    assert batch["reward"].tolist() == [[1.0, 1.0]] * 3
    assert batch["action_mask"][:, 0, 0].tolist() == [False, False, True]
    for i in range(t):
        step = {k: x[i] for k, x in batch.items()}
        assert batch_obs(step, "obs/")["a/b"][0].item() == i
        assert batch_obs(step, "next_obs/")["a/b"][0].item() == i + 1
        assert step["episode_step"].tolist() == [i, i]


def test_directions_are_shortened_only_if_long() -> None:
    x = torch.tensor([3.0, 4.0])
    torch.testing.assert_close(shortened(x, torch.tensor(1.0)), x / 5.0)
    assert torch.equal(shortened(x, torch.tensor(6.0)), x)
    assert torch.equal(shortened(0.0 * x, torch.tensor(1.0)), 0.0 * x)


def test_figures_are_means_over_decided_steps() -> None:
    """However many steps of a call decided nothing."""
    totals = add_metrics({}, {"decided": torch.tensor(2.0), "x": torch.tensor(6.0)})
    totals = add_metrics(totals, {"decided": torch.tensor(0.0), "x": torch.tensor(0.0)})
    assert {k: v.item() for k, v in mean_of_steps(totals).items()} == {"x": 3.0}
    assert mean_of_steps({"decided": torch.tensor(0.0), "x": torch.tensor(0.0)})["x"].item() == 0.0
