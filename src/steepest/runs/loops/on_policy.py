"""The on-policy loop: play a rollout, learn from it, forget it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
from torch import Tensor

from steepest.agents.agent import Agent
from steepest.experience.rollout import Collector, Environments
from steepest.preferences.learned import LearnedReward
from steepest.runs.loops.loop import Iteration, Watch, unwatched


class OnPolicyLoop:
    """An iteration is one collect-and-update cycle; see ``loops.Loop``.

    Args:      reward: takes the place of the environment's in what the agent learns from, not in the episodes' returns
    """

    restart_due = False

    def __init__(self, env: Environments, agent: Agent, reward: LearnedReward | None = None) -> None:
        self.agent = agent
        self.reward = reward
        filmed = env if reward is None or reward.film is None else reward.film
        self.collector = Collector(filmed, agent, cast(Any, agent.config).rollout_steps)

    def open(self, folder: Path | None, *, resuming: bool) -> None:
        del folder, resuming

    def restart(self, seed: int) -> None:
        self.collector.reset(seed)
        if "return_carry" in self.agent.state:
            self.agent.state["return_carry"].zero_()

    def iterate(self, progress: float, left: int, watch: Watch = unwatched) -> Iteration:
        del left, watch  # an iteration is short, and a rollout always whole
        if self.reward is not None:
            self.reward.begin(progress)
        rollout, episodes = self.collector.collect()
        steps = rollout.valid.sum((1, 2)).cpu().numpy()
        learned: dict[str, float] = {}
        if self.reward is not None:
            rollout, learned = self.reward.replace(rollout, self.agent.to_env, progress)
        health = self.agent.update(rollout, progress)
        health = health | {k: np.full(len(steps), x) for k, x in learned.items()}
        return Iteration(episodes, steps, health, self.collector.info_means())

    def finish(self, progress: float) -> None:
        del progress  # nothing is ever left over

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return ({}, {}) if self.reward is None else self.reward.state()

    def load_state(self, tensors: dict[str, Tensor], figures: dict[str, Any]) -> None:
        if self.reward is not None:
            self.reward.load_state(tensors, figures)
