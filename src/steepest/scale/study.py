"""A study: a folder in which any number of processes, on machines that share it, work through trials.

    STUDY/study.json             what is searched, and how: the same for all who take part
    STUDY/journal.log            Optuna's record of the trials
    STUDY/generation-0001/       trials asked for together: trials.json, their runs, and in the end values.json
    STUDY/lock, STUDY/*/lock     held by who writes to the study, or works on the generation; the kernel frees them

Who dies holds nothing: the next process takes over the generation, whose runs resume from their checkpoints.
"""

from __future__ import annotations

import fcntl
import json
import os
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, cast

from steepest.errors import RunError, UsageError
from steepest.files.atomic import write_text_atomic
from steepest.runs.store.folder import read_json
from steepest.scale.search import Choices, Dimension, Search
from steepest.seeding import stream_seed


class Trial(NamedTuple):
    """One choice of settings."""

    number: int
    settings: dict[str, Any]


class Asked(TypedDict):
    """A trial as a generation's trials.json has it."""

    number: int
    settings: dict[str, Any]


class Trials(TypedDict):
    """The trials.json of a generation."""

    trials: list[Asked]


class Values(TypedDict):
    """The values.json of a generation, by the trials' numbers."""

    values: dict[str, float | None]


class Generation:
    """Trials that one process works on at a time."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self._lock: int | None = None

    @property
    def trials(self) -> list[Trial]:
        return [Trial(**t) for t in read_json(self.place / "trials.json", Trials)["trials"]]

    @property
    def done(self) -> bool:
        return (self.place / "values.json").is_file()

    @property
    def values(self) -> dict[int, float | None]:
        """Of every trial by its number; None where it failed."""
        found = read_json(self.place / "values.json", Values)["values"]
        return {int(number): value for number, value in found.items()}

    def take(self) -> bool:
        """Return whether nobody else works on it; it is then this process's, until ``leave`` or its end."""
        lock = os.open(self.place / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            return False
        self._lock = lock
        return True

    def leave(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


class Study:
    """See the module.

    Args:      description: what must be the same for all who take part; search: see ``search.read_search``;
               trials: how many in all; seed: of the sampler
    Raises:    UsageError where the folder holds another study, or none and something else; RunError where it is damaged
    """

    def __init__(self, folder: Path, description: Mapping[str, Any], search: Search, *, trials: int, seed: int) -> None:
        import_optuna()
        self.folder, self.search, self.count, self.seed = folder, search, trials, seed
        folder.mkdir(parents=True, exist_ok=True)
        place = folder / "study.json"
        with self.alone():
            if not place.exists():
                if others := sorted(p.name for p in folder.iterdir() if p.name != "lock"):
                    raise UsageError(f"{folder} holds no study, but {others[0]}; choose an empty folder (study)")
                write_text_atomic(place, json.dumps(description, indent=2) + "\n")
            self._compare(read_json(place), json.loads(json.dumps(description)))
            self._load()

    def _compare(self, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
        for name, value in here.items():
            if there.get(name) != value:
                raise UsageError(
                    f"the study in {self.folder} has {name} {json.dumps(there.get(name))}, but {json.dumps(value)} is "
                    "given: give the same to take part, or choose another folder (study)"
                )

    def _load(self) -> None:
        """Read the journal; what a killed process left half-written of it is cut off."""
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        journal = self.folder / "journal.log"
        if journal.exists():
            written = journal.read_bytes()
            whole = written.rfind(b"\n") + 1
            if whole < len(written):
                os.truncate(journal, whole)
        try:
            storage = JournalStorage(JournalFileBackend(str(journal), lock_obj=cast(Any, _Held())))
            self.optuna = optuna.create_study(
                storage=storage, study_name="sweep", direction="maximize", load_if_exists=True
            )
        except (ValueError, KeyError, AssertionError) as error:
            raise RunError(f"{journal} is damaged: {error}. Its runs are whole, but the study cannot go on.") from error

    @contextmanager
    def alone(self) -> Generator[None]:
        """Wait until no other process reads or writes the study's record."""
        lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    @property
    def generations(self) -> list[Generation]:
        """All that are complete with their trials, in order."""
        return [Generation(p.parent) for p in sorted(self.folder.glob("generation-*/trials.json"))]

    def claim(self, size: int) -> Generation | None:
        """Return a generation to work on: one that was left, else a new one; None where there is none."""
        with self.alone():
            self._load()
            known = self.generations
            for generation in known:
                if not generation.done and generation.take():
                    return generation
            given = {trial.number for generation in known for trial in generation.trials}
            # Who was killed between asking and writing it down has left trials without a generation.
            left = [t for t in self.optuna.get_trials(deepcopy=False) if t.number not in given]
            trials = [Trial(t.number, self._settings(t.params)) for t in left]
            trials += self._ask(min(size, self.count - len(given) - len(trials)), len(known))
            if not trials:
                return None
            place = self.folder / f"generation-{len(known) + 1:04d}"
            place.mkdir(exist_ok=True)
            generation = Generation(place)
            taken = generation.take()
            assert taken
            write_text_atomic(place / "trials.json", json.dumps({"trials": [t._asdict() for t in trials]}, indent=1))
            return generation

    def _ask(self, count: int, before: int) -> list[Trial]:
        import optuna

        self.optuna.sampler = optuna.samplers.TPESampler(seed=stream_seed(self.seed, f"generation {before}") % 2**32)
        distributions = {name: distribution(dimension) for name, dimension in self.search.items()}
        asked = [self.optuna.ask(distributions) for _ in range(max(0, count))]
        return [Trial(t.number, self._settings(t.params)) for t in asked]

    def _settings(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """What a trial means by its parameters; choices are recorded as JSON."""
        return {
            name: json.loads(value) if isinstance(self.search[name], Choices) else value
            for name, value in params.items()
        }

    def tell(self, generation: Generation, values: Mapping[int, float | None]) -> None:
        """Record what the trials of a generation are worth, None where one failed."""
        from optuna.trial import TrialState

        with self.alone():
            self._load()
            for number, value in values.items():
                state = TrialState.FAIL if value is None else TrialState.COMPLETE
                self.optuna.tell(number, value, state=state, skip_if_finished=True)
            write_text_atomic(generation.place / "values.json", json.dumps({"values": dict(values)}, indent=1))

    def importances(self) -> dict[str, float]:
        """Return how much of the variance of the values each setting explains (PED-ANOVA); empty where unknown."""
        import optuna

        if len(self.search) < 2:
            return {}
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # of too few trials: it would call all settings equal
            try:
                return dict(optuna.importance.get_param_importances(self.optuna))
            except (UserWarning, ValueError, RuntimeError, ZeroDivisionError):  # too few trials, or all alike
                return {}


class _Held:
    """Optuna's lock of its journal: the study's own is held whenever it reads or writes."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        return


def distribution(dimension: Dimension) -> Any:
    """Return Optuna's form of a dimension."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(dimension, Choices):
        return CategoricalDistribution([json.dumps(value) for value in dimension.values])
    if dimension.whole:
        return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log)


def import_optuna() -> None:
    """Load Optuna, silent but for errors. UsageError, with the line that installs it, where it is missing."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import optuna
    except ImportError as error:
        raise UsageError('a sweep needs Optuna: pip install "steepest[sweep]"') from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def best_of(generations: Sequence[Generation]) -> tuple[Trial, float] | None:
    """Return the trial of the highest value, and that; None where none has one."""
    found = [
        (trial, value)
        for generation in generations
        if generation.done
        for trial in generation.trials
        if (value := generation.values[trial.number]) is not None
    ]
    return max(found, key=lambda pair: (pair[1], -pair[0].number)) if found else None
