"""The loop over a log: learn from recorded rollouts, pass after pass; nothing is played."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
from torch import Tensor

from steepest.agents.agent import Agent
from steepest.errors import UsageError
from steepest.experience.logs import LoggedExperience, logged_rollouts
from steepest.experience.transitions import hash_of
from steepest.learner.trees import tree_map
from steepest.runs.loops.loop import Iteration, Watch, unwatched
from steepest.types import Rollout


class LogLoop:
    """An iteration is one rollout of the log; see ``loop.Loop``. Environments serve evaluation alone.

    Raises:    UsageError for an algorithm that needs to play, a population, observations or actions of other spaces,
               a log that ``logged_rollouts`` refuses, and one that has changed when a run resumes
    Verified:  tests/integration/test_off_pac_logged.py::test_learns_from_a_log,
               tests/integration/test_off_pac_logged.py::test_a_run_on_a_log_resumes_to_the_same_bits,
               tests/integration/test_off_pac_logged.py::test_a_log_of_other_spaces_is_refused
    """

    restart_due = False

    def __init__(self, data: LoggedExperience, agent: Agent) -> None:
        if not agent.learns_from_logs:
            raise UsageError(f"{agent.algorithm} does not learn from a log of another policy's actions; off_pac does")
        if agent.members != 1:
            raise UsageError(f"seeds is {agent.members}; a log is for one seed")
        _check_spaces(data, agent)
        self.agent = agent
        steps = cast(Any, agent.config).rollout_steps
        cut = logged_rollouts(data, agent.num_envs, steps)
        self.rollouts = [cast(Rollout, tree_map(lambda x: x.to(agent.device), rollout)) for rollout in cut]
        self.fingerprint = hash_of({name: np.asarray(x) for name, x in data._asdict().items()})
        self.done = 0  # rollouts learned from, over all passes

    def open(self, folder: Path | None, *, resuming: bool) -> None:
        del folder, resuming

    def restart(self, seed: int) -> None:
        del seed  # there is nothing to restart

    def iterate(self, progress: float, left: int, watch: Watch = unwatched) -> Iteration:
        del left, watch  # an iteration is short, and the last one like the others
        number = self.done % len(self.rollouts)
        if number == 0:
            self.agent.begin_pass()
        rollout = self.rollouts[number]
        self.done += 1
        return Iteration([], rollout.valid.sum((1, 2)).cpu().numpy(), self.agent.update(rollout, progress))

    def finish(self, progress: float) -> None:
        del progress

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {}, {"rollouts": self.done, "fingerprint": self.fingerprint}

    def load_state(self, tensors: dict[str, Tensor], figures: dict[str, Any]) -> None:
        del tensors
        if figures["fingerprint"] != self.fingerprint:
            raise UsageError(
                "the log has changed since the run began, so that the run cannot resume at the same place. Restore the "
                "log, or start a new run from the agent so far"
            )
        self.done = int(figures["rollouts"])


def _check_spaces(data: LoggedExperience, agent: Agent) -> None:
    """Raise UsageError unless observations and actions are those of the agent's spaces."""
    seen, known = tuple(data.obs.shape[1:]), agent.obs_spec.fields[0].shape
    if agent.obs_spec.is_dict or seen != known:
        spaces = "dictionaries" if agent.obs_spec.is_dict else f"of shape {known}"
        raise UsageError(f"the log's observations have the shape {seen}; those of the environment are {spaces}")
    spec = agent.action_spec
    seen, known = tuple(data.action.shape[1:]), () if spec.kind == "discrete" else (spec.dimension,)
    if seen != known:
        raise UsageError(f"the log's actions have the shape {seen}; the policy draws actions of shape {known}")
    if spec.kind != "box":
        action = np.asarray(data.action)
        if (action < 0).any() or (action >= np.array(spec.sizes)).any():
            choices = " and ".join(map(str, spec.sizes))
            raise UsageError(
                f"the log has actions from {action.min()} to {action.max()}; the policy counts its {choices} choices "
                "from 0"
            )
