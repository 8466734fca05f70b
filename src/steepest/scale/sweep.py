"""Search the settings of an algorithm: many trials as one population, each worth what its seeds reach at the end.

repeat until all trials are done, in every process that takes part
    ask Optuna for a generation of trials
    for each shape among them (settings that an update does not take as tensors)
        train all its trials and their seeds as ONE run: one fused update
    value of a trial = interquartile mean over its seeds of the mean of their last evaluations
train the best settings and the default ones, on seeds of which no trial had any
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from steepest.algorithms import find
from steepest.errors import NonFiniteError, UsageError
from steepest.runs.options.config import RunConfig
from steepest.runs.options.resolve import name_of, resolve_options
from steepest.runs.run import Run
from steepest.runs.store.metrics import read_metrics
from steepest.runs.view.curves import EVAL_RETURN
from steepest.runs.view.statistics import interquartile_mean, stratified_bootstrap
from steepest.scale.search import SET_HERE, Choices, Interval, Search, read_search
from steepest.scale.study import Generation, Study, Trial, best_of
from steepest.seeding import stream_seed

Note = Callable[[str], None]

LAST = 3
"""Evaluations, the last ones of a run, whose mean is a seed's value."""


class Final(NamedTuple):
    """What some settings reach on fresh seeds."""

    values: list[float]  # one per seed
    mean: float  # the interquartile one
    low: float
    high: float


@dataclass(frozen=True)
class Sweep:
    """What a sweep has found.

    ``best`` is None where every trial failed; ``found`` and ``default`` are None until all trials are done.
    """

    study: Path
    trials: list[tuple[Trial, float | None]]
    best: dict[str, Any] | None
    importances: dict[str, float]
    found: Final | None
    default: Final | None
    running: int
    """Trials that other processes are working on."""


def sweep(
    algorithm: str,
    env: Any,
    *,
    search: Sequence[str] | Mapping[str, Any],
    study: str | Path,
    trials: int = 64,
    seeds: int = 3,
    population: int = 8,
    final_seeds: int = 5,
    seed: int = 0,
    data: Any = None,
    env_kwargs: dict[str, Any] | None = None,
    note: Note | None = None,
    **options: Any,
) -> Sweep:
    """Search settings of an algorithm for the highest return.

    Started again with the same arguments, in this process or in others that share the folder, it takes part in the same
    study and goes on where it stands.

    Args:
        algorithm, env, data, env_kwargs: as ``steepest.train`` takes them.
        search: what to search by name: "LOW:HIGH", "log:LOW:HIGH", a list of choices; or texts "NAME=LOW:HIGH".
        study: the folder of the study.
        trials, seeds: settings to try, and seeds of each. A trial's value is the interquartile mean over its seeds.
        population: trials that are asked for together, and trained in one update where their shapes agree.
        final_seeds: fresh seeds for the best settings and the default ones at the end.
        note: takes lines of text about what is being done.
        options: further settings, the same for all.
    Raises: UsageError on anything that cannot work; RunError where the study is damaged or an environment fails.
    """
    job = Job(algorithm, env, data, env_kwargs, dict(options), seeds, seed, note or (lambda _: None))
    searched = read_search(search, (find(algorithm).Config, RunConfig), apart=SET_HERE)
    job.check(searched)
    for name, number in (
        ("trials", trials),
        ("seeds", seeds),
        ("population", population),
        ("final_seeds", final_seeds),
    ):
        if number < 1:
            raise UsageError(f"{name} is {number}; expected at least 1")
    description = {
        "algorithm": algorithm,
        "env": name_of(env) if env is not None else str(data),
        "search": {name: str(dimension) for name, dimension in searched.items()},
        "trials": trials,
        "seeds": seeds,
        "population": population,
        "final_seeds": final_seeds,
        "seed": seed,
        "options": json.loads(json.dumps({"env_kwargs": env_kwargs, **options}, default=repr)),
    }
    opened = Study(Path(study), description, searched, trials=trials, seed=seed)
    while (generation := opened.claim(population)) is not None:
        try:
            opened.tell(generation, job.run(generation))
        finally:
            generation.leave()
        _say_where(opened, generation, job.note)
    return job.finish(opened, final_seeds)


def _say_where(study: Study, generation: Generation, note: Note) -> None:
    done = sum(len(g.trials) for g in study.generations if g.done)
    best = best_of(study.generations)
    said = "none has a value yet" if best is None else f"best {best[1]:.1f} with {spoken(best[0].settings)}"
    note(f"{generation.place.name}: {done} of {study.count} trials done, {said}")


def spoken(settings: Mapping[str, Any]) -> str:
    """Return settings in words: "learning_rate 0.0003, hidden_sizes [64, 64]"."""
    return ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in settings.items())


@dataclass(frozen=True)
class Job:
    """What every trial of a sweep trains."""

    algorithm: str
    env: Any
    data: Any
    env_kwargs: dict[str, Any] | None
    options: dict[str, Any]
    seeds: int
    seed: int
    note: Note

    def check(self, search: Search) -> None:
        """UsageError for options, or ends of what is searched, that the algorithm does not accept."""
        for name in ("seeds", "vary", "stop_at_return"):
            if self.options.get(name):
                raise UsageError(f"{name} is set by the sweep itself")
        resolve_options(self.algorithm, self.env, self.options)
        for name, dimension in search.items():
            if name in self.options:
                raise UsageError(f"{name} is both given and searched")
            ends = dimension.values if isinstance(dimension, Choices) else (dimension.low, dimension.high)
            whole = isinstance(dimension, Interval) and dimension.whole
            for value in ends:
                resolve_options(self.algorithm, self.env, {**self.options, name: int(value) if whole else value})

    def run(self, generation: Generation) -> dict[int, float | None]:
        """Train the trials of a generation, those of one shape together; their values by number, None for failures."""
        values: dict[int, float | None] = {}
        for shape, trials in self._shapes(generation.trials).items():
            place = generation.place / f"run-{trials[0].number}"
            values |= self._train(place, trials, json.loads(shape))
        return values

    def _shapes(self, trials: Sequence[Trial]) -> dict[str, list[Trial]]:
        """The trials by the settings that must be the same in one update."""
        together = self._varying()
        found: dict[str, list[Trial]] = {}
        for trial in trials:
            # What is no number, such as "none", switches something off, which changes the code of an update.
            shape = {k: v for k, v in trial.settings.items() if k not in together or not isinstance(v, int | float)}
            found.setdefault(json.dumps(shape, sort_keys=True), []).append(trial)
        return found

    def _varying(self) -> set[str]:
        """Settings that may differ between members: what an update takes as a tensor, and is not off by default."""
        _, config = resolve_options(self.algorithm, self.env, self.options)
        return {name for name in find(self.algorithm).hyper_fields if getattr(config, name) is not None}

    def _train(self, place: Path, trials: Sequence[Trial], shape: dict[str, Any]) -> dict[int, float | None]:
        """Train trials as one population; one by one if a number of any of them is no longer finite."""
        varied = [name for name in trials[0].settings if name not in shape]
        vary = {name: [t.settings[name] for t in trials for _ in range(self.seeds)] for name in varied}
        options = {**shape, "vary": vary, "seeds": len(trials) * self.seeds}
        try:
            found = self._values(place, options, f"run {trials[0].number}")
        except NonFiniteError as error:
            if len(trials) == 1:
                self.note(f"trial {trials[0].number} failed: {error}")
                return {trials[0].number: None}
            self.note(f"a trial of {place.parent.name} failed: going on with them one by one")
            alone = [self._train(place.parent / f"run-{t.number}-alone", [t], shape) for t in trials]
            return {number: value for each in alone for number, value in each.items()}
        by_trial = np.array(found).reshape(len(trials), self.seeds)
        return {t.number: float(interquartile_mean(v)) for t, v in zip(trials, by_trial, strict=True)}

    def _values(self, place: Path, options: Mapping[str, Any], purpose: str) -> list[float]:
        """Train a run to its end, from its last checkpoint if it was begun; the value of every seed."""
        seed = stream_seed(self.seed, purpose) % 2**31
        given: dict[str, Any] = {"tensorboard": False, **self.options, **options, "seed": seed}
        given |= {"env_kwargs": self.env_kwargs, "data": self.data}
        if any((place / "checkpoints").glob("step-*.safetensors")):
            again = {"env": None if isinstance(self.env, str) else self.env}
            run = Run.resume(place, **again)
        else:
            shutil.rmtree(place, ignore_errors=True)
            run = Run(self.algorithm, self.env, out=place, **given)
        with run:
            for _ in run:
                pass
            numbers = run.training.seeds
        rows = [row for row in read_metrics(place) if row.get(EVAL_RETURN) is not None]
        ends = [[row[EVAL_RETURN] for row in rows if row["seed"] == number][-LAST:] for number in numbers]
        if not all(ends):
            raise UsageError("there is no evaluation to compare trials by; set eval_episodes to at least 1")
        return [float(np.mean(end)) for end in ends]

    def finish(self, study: Study, final_seeds: int) -> Sweep:
        """Once all trials are done, train the best settings and the default ones on fresh seeds."""
        generations = study.generations
        trials = [(t, g.values[t.number] if g.done else None) for g in generations for t in g.trials]
        running = sum(len(g.trials) for g in generations if not g.done)
        best = best_of(generations)
        settings = None if best is None else best[0].settings
        place = study.folder / "final"
        place.mkdir(exist_ok=True)
        last = Generation(place)
        if running or settings is None or not last.take():
            return Sweep(study.folder, trials, settings, study.importances(), None, None, running)
        try:
            found = self._final(place / "best", settings, final_seeds)
            self.note(f"the best settings on {final_seeds} fresh seeds: {said(found)}")
            default = self._final(place / "default", {}, final_seeds)
            self.note(f"the default ones on the same: {said(default)}")
        finally:
            last.leave()
        result = Sweep(study.folder, trials, settings, study.importances(), found, default, 0)
        from steepest.scale.report import write_report

        write_report(result, {**self.options, **settings}, study.search)
        return result

    def _final(self, place: Path, settings: Mapping[str, Any], seeds: int) -> Final:
        values = self._values(place, {**settings, "seeds": seeds}, "final")
        array = np.array(values)[:, None]
        low, high = stratified_bootstrap([array], interquartile_mean, generator=np.random.default_rng(0))
        return Final(values, float(interquartile_mean(array)[0]), float(low[0]), float(high[0]))


def said(final: Final) -> str:
    """Return a result in words, with every seed."""
    each = " ".join(f"{value:.1f}" for value in final.values)
    return f"{final.mean:.1f} (95% interval {final.low:.1f} to {final.high:.1f}; seeds {each})"
