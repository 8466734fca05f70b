"""The entropy that discrete SAC keeps where actions are masked."""

from __future__ import annotations

import math

import pytest
import torch

from helpers import discrete, vector
from steepest.algorithms.sac import SAC, SACConfig


def test_the_goal_is_of_the_legal_actions() -> None:
    """Half of the logarithm of their number, in the mean; without masks of all; a goal that was given stays."""
    agent = SAC(SACConfig(), vector(2), discrete(4))
    hyper = agent.hyperparameters(0.0)
    mask = torch.tensor([[True, False, False, False], [True, True, False, False], [True] * 4])
    assert float(agent.entropy_goal({"action_mask": mask}, hyper)) == pytest.approx(0.5 * math.log(8) / 3, rel=1e-6)
    assert float(agent.entropy_goal({}, hyper)) == float(hyper["target_entropy"])
    assert math.isclose(float(hyper["target_entropy"]), 0.5 * math.log(4), rel_tol=1e-6)
    given = SAC(SACConfig(target_entropy=0.3), vector(2), discrete(4))
    asked = given.hyperparameters(0.0)
    assert given.entropy_goal({"action_mask": mask}, asked) is asked["target_entropy"]
