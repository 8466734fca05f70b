"""The loop over a log: learn from recorded rollouts, pass after pass; nothing is played."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from torch import Tensor

from steepest.agents.agent import Agent
from steepest.errors import UsageError
from steepest.experience.logs import LoggedExperience, logged_rollouts
from steepest.runs.loops.loop import Iteration


class LogLoop:
    """An iteration is one rollout of the log; see ``loop.Loop``. Environments serve evaluation alone.

    Raises:    UsageError for an algorithm that needs to play, a population, observations of another shape, and a log
               that ``logged_rollouts`` refuses
    Verified:  tests/integration/test_off_pac_logged.py::test_learns_from_a_log,
               tests/integration/test_off_pac_logged.py::test_a_run_on_a_log_resumes_to_the_same_bits
    """

    restart_due = False

    def __init__(self, data: LoggedExperience, agent: Agent) -> None:
        if not agent.learns_from_logs:
            raise UsageError(f"{agent.algorithm} does not learn from a log of another policy's actions; off_pac does")
        if agent.members != 1:
            raise UsageError(f"seeds is {agent.members}; a log is for one seed")
        seen, known = tuple(data.obs.shape[1:]), agent.obs_spec.fields[0].shape
        if agent.obs_spec.is_dict or seen != known:
            spaces = "dictionaries" if agent.obs_spec.is_dict else f"of shape {known}"
            raise UsageError(f"the log's observations have the shape {seen}; those of the environment are {spaces}")
        self.agent = agent
        self.rollouts = list(logged_rollouts(data, agent.num_envs, cast(Any, agent.config).rollout_steps))
        self.done = 0  # rollouts learned from, over all passes

    def open(self, folder: Path | None, *, resuming: bool) -> None:
        del folder, resuming

    def restart(self, seed: int) -> None:
        del seed  # there is nothing to restart

    def iterate(self, progress: float) -> Iteration:
        number = self.done % len(self.rollouts)
        if number == 0:
            self.agent.begin_pass()
        rollout = self.rollouts[number]
        self.done += 1
        return Iteration([], rollout.valid.sum((1, 2)).numpy(), self.agent.update(rollout, progress))

    def finish(self, progress: float) -> None:
        del progress

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {}, {"rollouts": self.done}

    def load_state(self, tensors: dict[str, Tensor], figures: dict[str, Any]) -> None:
        del tensors
        self.done = int(figures["rollouts"])
