"""Runs as they were saved: their metrics by seed, and what sets them apart."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from steepest.errors import RunError, UsageError
from steepest.runs.store.descriptions import Plotted
from steepest.runs.store.folder import read_json
from steepest.runs.store.metrics import METRICS_FILE, read_metrics

if TYPE_CHECKING:
    pass
from steepest.runs.view.statistics import Array

TRAIN_RETURN = "train/return_mean"
EVAL_RETURN = "eval/return_mean"
TRAIN_LOSS = "train/loss"
EVAL_LOSS = "eval/loss"

_NO_DIFFERENCE = (
    *("seed", "seeds", "keep_checkpoints", "checkpoint_every", "tensorboard", "wandb"),
    *("eval_every", "eval_episodes", "stop_at_return"),
)
"""Settings that decide what of a run is measured and kept: neither curves nor legends are told apart by them."""


# ---------------------------------------------------------------------------------------------------------------------
# Reading runs
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """One metric of one seed, in the order of steps."""

    steps: Array
    wall: Array  # seconds
    values: Array


@dataclass(frozen=True)
class SavedRun:
    """A run's folder as it was read: its metrics by seed, and its options."""

    path: Path
    algorithm: str
    env: str
    rows: dict[int, list[dict[str, Any]]]  # by seed
    options: dict[str, Any]  # the configuration, flat

    def metrics(self) -> list[str]:
        """Tags with at least one finite value."""
        names = {key for rows in self.rows.values() for row in rows for key, value in row.items() if value is not None}
        return sorted(names - {"step", "wall_seconds", "seed"})

    def curves(self, metric: str) -> list[Curve]:
        """The metric of every seed that has it, in the order of seeds."""
        found: list[Curve] = []
        for seed in sorted(self.rows):
            points = [
                (float(row["step"]), float(row["wall_seconds"]), float(row[metric]))
                for row in self.rows[seed]
                if row.get(metric) is not None
            ]
            if points:
                table = np.array(sorted(points), dtype=np.float64)
                found.append(Curve(table[:, 0], table[:, 1], table[:, 2]))
        return found


def read_run(path: Path) -> SavedRun:
    """Read a run's folder; UsageError or RunError where there is no run with metrics."""
    path = Path(path)
    if not (path / "config.json").is_file():
        seen = "does not exist" if not path.exists() else "has no config.json in it"
        raise UsageError(f"no run at {path}: it {seen}. Give the folder that `steepest train` reported.")
    if "model_type" in (saved := read_json(path / "config.json")) and "algorithm" not in saved:
        raise UsageError(f"no run at {path}: its config.json is that of a model")
    config = read_json(path / "config.json", Plotted)
    # An environment made in Python has no id, but a name.
    config["env"] = config.get("env") or config.get("name")
    missing = [key for key in ("algorithm", "env") if not isinstance(config.get(key), str)]
    if missing:
        raise RunError(f"{path / 'config.json'} does not say which {' and '.join(missing)} it was.")
    rows: dict[int, list[dict[str, Any]]] = {}
    for row in read_metrics(path):
        rows.setdefault(int(row["seed"]), []).append(row)
    if not rows:
        raise RunError(f"{path / METRICS_FILE} is empty: the run ended before it measured anything.")
    options = {
        k: v for k, v in {**config.get("run", {}), **config.get("config", {})}.items() if k not in _NO_DIFFERENCE
    }
    options |= {k: config[k] for k in ("env_kwargs", "custom_network") if config.get(k)}
    return SavedRun(path, str(config["algorithm"]), str(config["env"]), rows, _flat(options))


def _flat(options: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Options within options under dotted names."""
    flat: dict[str, Any] = {}
    for name, value in options.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def by_configuration(runs: Sequence[SavedRun], labels: Mapping[Path, str] | None = None) -> dict[str, list[SavedRun]]:
    """Runs of one environment by configuration, each labelled with its algorithm and what sets it apart.

    Only options that differ between the runs of an algorithm are named. Runs that differ in their length alone are told
    apart by their folders. With ``labels``, by path, runs of one label are one group.

    Verified:  tests/unit/test_plots.py::test_runs_of_other_lengths_are_named_by_their_folders
    """
    if labels is not None:
        named: dict[str, list[SavedRun]] = {}
        for run in runs:
            named.setdefault(labels[run.path], []).append(run)
        return named
    groups: dict[tuple[str, Any], list[SavedRun]] = {}
    for run in runs:
        alike = [other.options for other in runs if other.algorithm == run.algorithm]
        names = sorted({name for options in alike for name in options} - {"total_steps"})
        telling = [name for name in names if any(o.get(name) != alike[0].get(name) for o in alike)]
        parts = [f"{name}={spoken(run.options.get(name))}" for name in telling]
        label = " ".join([display_name(run.algorithm), *parts])
        groups.setdefault((label, run.options.get("total_steps")), []).append(run)
    labelled: dict[str, list[SavedRun]] = {}
    for (label, _), members in groups.items():
        alone = sum(other == label for other, _ in groups) == 1
        folders = ", ".join(run.path.name for run in members)
        labelled[label if alone else f"{label} ({folders})"] = members
    return labelled


def spoken(value: Any) -> str:
    """An option's value as the command takes it."""
    if isinstance(value, list):
        return ",".join(spoken(item) for item in cast(list[Any], value))
    return "none" if value is None else str(value)


def choose_metric(runs: Sequence[SavedRun], metric: str) -> str:
    """Return the metric to draw: the one asked for, or what stands in for a missing training return."""

    def lacking(name: str) -> list[SavedRun]:
        return [run for run in runs if name not in run.metrics()]

    if not lacking(metric):
        return metric
    if metric == TRAIN_RETURN and not lacking(EVAL_RETURN):
        return EVAL_RETURN  # offline runs have no training return; neither has one stopped before an episode ended
    if metric == TRAIN_RETURN and not lacking(TRAIN_LOSS):
        return TRAIN_LOSS  # language models on data have no return at all
    run = lacking(metric)[0]
    available = run.metrics()
    near = difflib.get_close_matches(metric, available, n=1)
    raise UsageError(
        f"{run.path} has no metric {metric!r}"
        + (f"; did you mean {near[0]!r}?" if near else ".")
        + f" It has: {', '.join(available) or 'none'}."
    )


def display_name(algorithm: str) -> str:
    """Return an algorithm's name as people write it."""
    return {"actor_critic": "Actor-critic"}.get(algorithm, algorithm.upper().replace("_", "-"))
