"""What a user may not expect of a run, said before it starts."""

from __future__ import annotations

from collections.abc import Iterator

from steepest.agents.agent import Agent
from steepest.environments import EnvBatch
from steepest.runs.options.config import RunConfig

COARSE = 20
"""A run of fewer iterations ends noticeably late where only whole ones are played."""


def surprises(agent: Agent, env: EnvBatch, settings: RunConfig) -> Iterator[str]:
    """Yield a line each: where the run ends if not at its last step, and of statistics that no checkpoint has.

    Verified:  tests/integration/test_notes.py::test_a_run_of_few_rollouts_says_where_it_ends,
               tests/integration/test_notes.py::test_an_environment_that_normalises_itself_is_named
    """
    rollout_steps = getattr(agent.config, "rollout_steps", None)
    played = 0 if rollout_steps is None else rollout_steps * settings.num_envs
    if COARSE * played > settings.total_steps:
        yield (
            f"total_steps is {settings.total_steps:,}: the run ends with the iteration that reaches it, and an "
            f"iteration plays up to {played:,}"
        )
    for option in env.inner_statistics:
        what, more = "observations", ""
        if option == "normalize_reward":
            what, more = "rewards", ", which reports returns unscaled"
        yield (
            f"the environment normalises its {what} itself: such statistics are not saved with the agent, evaluations "
            "have others, and they start anew with every checkpoint if environments are made from an id or a factory. "
            f"Use {option} instead{more}"
        )
