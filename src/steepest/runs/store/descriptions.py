"""What the files of a run hold: the shapes of config.json, of best.json, of rows of metrics.jsonl; and whose it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple, NotRequired, TypedDict

from steepest.errors import RunError, UsageError
from steepest.runs.store.folder import read_json


class Environment(TypedDict):
    """Where a run was begun, as far as resuming it needs to know."""

    packages: dict[str, str]
    cpu: str | None
    gpu: NotRequired[str | None]


class Described(TypedDict):
    """The config.json of any run."""

    algorithm: str
    name: str
    config: dict[str, Any]
    run: dict[str, Any]
    environment: Environment


class DescribedAgents(Described):
    """The config.json of a run of agents."""

    env: str | None
    env_kwargs: dict[str, Any] | None
    custom_network: bool
    data: NotRequired[str | None]
    reward: NotRequired[Any]  # a path, or how people are asked


class DescribedModel(Described):
    """The config.json of a run of a language model."""

    model: str
    data: str
    eval_data: str | None
    fingerprint: str
    reward: NotRequired[str | None]
    fingerprints: NotRequired[dict[str, str | None]]
    processes: NotRequired[int]


class Plotted(TypedDict):
    """What a picture needs of a run's config.json."""

    algorithm: str
    env: NotRequired[str | None]
    name: NotRequired[str | None]
    config: NotRequired[dict[str, Any]]
    run: NotRequired[dict[str, Any]]


class Best(TypedDict):
    """The best.json of a run of a language model."""

    step: int
    metric: str
    value: float


class MetricsRow(TypedDict):
    """What every row of metrics.jsonl holds besides its metrics."""

    step: int
    wall_seconds: float
    seed: int


class SavedAgent(TypedDict):
    """The metadata of an agent in a checkpoint, or in a file that ``Agent.save`` wrote."""

    algorithm: str
    custom_network: bool
    config: dict[str, Any]
    obs_spec: dict[str, Any]
    action_spec: dict[str, Any]
    num_envs: int
    seeds: list[int]
    trained_on: dict[str, Any]


class RunKind(NamedTuple):
    """What a run trains, and by which algorithm."""

    what: Literal["agent", "model"]
    algorithm: str

    @property
    def verb(self) -> str:
        """The command's verb for such runs."""
        if self.what == "agent":
            return "train"
        return "rlhf" if self.algorithm in ("ppo", "rloo", "grpo") else self.algorithm

    def said(self, path: Path) -> str:
        """Return what the run is, and what can be done with it."""
        whose, use = ("agents", "evaluate") if self.what == "agent" else ("a language model", "generate")
        return (
            f"{path} is a run of {whose}, by {self.algorithm}: steepest {self.verb} --resume {path} resumes it, and "
            f"steepest {use} {path} uses what it trained"
        )


def kind_of_run(path: Path) -> RunKind | None:
    """Return what the run in a folder trains; None where there is no run, or none that can be read.

    Verified:  tests/integration/test_damaged_runs.py::test_a_run_of_the_other_kind_is_told_apart
    """
    try:
        saved = read_json(Path(path) / "config.json")
    except RunError:
        return None
    if "algorithm" not in saved or not saved.keys() & {"model", "env"}:
        return None
    return RunKind("model" if "model" in saved else "agent", str(saved["algorithm"]))


def refuse_other_kind(path: Path, what: Literal["agent", "model"]) -> None:
    """Raise UsageError for the folder of a run that trains something else."""
    kind = kind_of_run(path)
    if kind is not None and kind.what != what:
        raise UsageError(kind.said(path))
