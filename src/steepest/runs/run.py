"""A run: what surrounds the training of agents or of a language model, with evaluation, metrics and checkpoints.

The order of one iteration is the whole contract of resuming: play and learn (``runs.loops``), evaluate if due, write
the metrics, save a checkpoint if due and then restart the environments from a seed derived from the step. Every run
restarts them, also one that is never interrupted, so a run that resumes from a checkpoint continues with the same bits.

A checkpoint that is due is saved before the evaluation too, since that may not return, with the metrics so far: a run
that resumes from it begins with the evaluation.
"""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import torch

from steepest.agents.agent import Agent
from steepest.errors import RunError, SteepestError, UsageError, as_path
from steepest.files.tensors import load_tensors
from steepest.learner.memory import keep_freed_memory
from steepest.networks.config import NetworkFactory
from steepest.runs.evaluate import Evaluation
from steepest.runs.loops.agents import AgentTraining
from steepest.runs.loops.training import Clock, Row, Training, crosses, ignore, mean_row
from steepest.runs.options.config import SharedConfig
from steepest.runs.store.checkpoints import CheckpointStore
from steepest.runs.store.descriptions import kind_of_run
from steepest.runs.store.folder import RunDirectory, changed_since, check_same_run, environment_report, finite_json
from steepest.runs.store.metrics import MetricsLog

Note = Callable[[str], None]
Found = tuple[Path, dict[str, torch.Tensor], dict[str, Any]]
"""A checkpoint's path, tensors and metadata."""


class Run:
    """One training run; iterate over it to train: ``for row in run: ...``.

    ``runs.language_run.LanguageRun`` is the same run of a language model. The kind of training, ``run.training``, knows
    how to learn, evaluate and describe itself; everything else is here.

    Args:
        algorithm: its name, such as "ppo".
        env: a Gymnasium or EnvPool id, a factory of environments, an environment, or a vector environment.
        out: folder for metrics, checkpoints and pictures; None writes nothing.
        network: custom torso, see ``networks.config.NetworkFactory``.
        agent: train this one further, with its parameters, optimiser and statistics.
        eval_env: where to evaluate, if a second environment cannot be made from ``env``.
        data: a dataset, see ``experience.datasets.read``, or for off_pac a log, see ``experience.logs.read_log``: to
            learn from instead of playing. The environment then serves evaluation, and is by default the one that a
            dataset names. With the option ``data_share`` the agent plays too, and that share of minibatches is data.
        reward: labels to learn the reward from, in the place of the environment's: the file of a preference project, or
            ``preferences.learned.LiveLabels``. Returns that are reported are the environment's.
        note: takes lines of text that a user should see.
        render: show an episode in a window at every evaluation.
        options: fields of ``RunConfig`` and of the algorithm's config; what is not given comes from the preset of the
            environment's family, then from the defaults.

    Raises: UsageError on anything that cannot work, before any training.
    """

    kind: ClassVar[type[Training[Any]]] = AgentTraining
    training: Training[Any]
    directory: RunDirectory | None = None
    store: CheckpointStore | None = None
    log: MetricsLog | None = None
    wall_seconds: float = 0.0
    evaluated_at: int = -1
    pending: list[Row] | None = None
    """Metrics of an iteration whose evaluation was not seen to end, of a run that resumed from before it."""

    def __init__(
        self,
        algorithm: str,
        env: Any,
        *,
        out: str | Path | None = None,
        network: NetworkFactory | None = None,
        agent: Agent | None = None,
        eval_env: Any = None,
        env_kwargs: dict[str, Any] | None = None,
        data: Any = None,
        reward: Any = None,
        note: Note | None = None,
        render: bool = False,
        **options: Any,
    ) -> None:
        def make() -> AgentTraining:
            return AgentTraining.start(
                algorithm,
                env,
                note or ignore,
                options,
                network=network,
                agent=agent,
                eval_env=eval_env,
                env_kwargs=env_kwargs,
                render=render,
                saved=out is not None,
                data=data,
                reward=reward,
            )

        self._begin(make, out)

    @classmethod
    def resume(
        cls,
        path: str | Path,
        *,
        note: Note | None = None,
        total_steps: int | None = None,
        env: Any = None,
        network: NetworkFactory | None = None,
        eval_env: Any = None,
        data: Any = None,
        eval_data: Any = None,
        reward: Any = None,
    ) -> Self:
        """Resume a run of either kind from its last checkpoint, to the same bits as if it had never stopped.

        Args:      total_steps: train further than first planned (schedules then stretch, so bits differ); env, network,
                   eval_env of agents, eval_data of a language model, data, reward: again, where the run was given
                   something that a file cannot hold
        Returns:   a LanguageRun where the run is of a language model
        Raises:    UsageError if there is no run, it is in use, something is missing that has to be given again, or the
                   model or the data has changed
        Verified:  tests/integration/test_resume.py::test_a_run_of_either_kind_resumes_by_either_call,
                   tests/integration/test_language_runs.py::test_a_run_goes_on_with_no_other_model,
                   tests/integration/test_preference_runs.py::test_what_else_has_changed_is_refused_or_said
        """
        again = {
            "total_steps": total_steps,
            "env": env,
            "network": network,
            "eval_env": eval_env,
            "data": data,
            "eval_data": eval_data,
            "reward": reward,
        }
        run = cast(Run, object.__new__(cls if cls is not Run else class_of_run(as_path(path, "the run"))))
        try:
            with run.kind.meet():
                run._resume(Path(path), note or ignore, {k: v for k, v in again.items() if v is not None})
        except BaseException:
            run.close()
            raise
        return cast(Self, run)

    # Folder

    def _begin(self, make: Callable[[], Training[Any]], out: str | Path | None) -> None:
        keep_freed_memory()
        try:
            with self.kind.meet():
                self.training = make()
                if out is not None and self.kind.is_main():
                    self._create(as_path(out, "out") if str(out) else None)
                else:
                    self.training.open(None, None, resuming=False)
                self.training.restart()
        except BaseException:
            self.close()
            raise

    def _create(self, path: Path | None) -> None:
        """Take a new folder for the run."""
        self.directory = RunDirectory.create(path, self.training.label)
        self.store = CheckpointStore(self.directory.checkpoints_path, self.settings.keep_checkpoints)
        self.training.open(self.directory, self.store, resuming=False)
        if self.training.begins_with_checkpoint:
            self._save_checkpoint()
        self.directory.write_json("config.json", self.description())
        try:
            self._open_log(None)
        except SteepestError:
            self.directory.config_path.unlink()  # nothing has begun: the folder is free for another try
            raise

    def _resume(self, path: Path, note: Note, given: dict[str, Any]) -> None:
        keep_freed_memory()
        directory = RunDirectory.open(path, lock=self.kind.is_main())
        if self.kind.is_main():
            self.directory = directory
        saved = self.kind.read(directory)
        for name in given.keys() - set(self.kind.again):
            raise UsageError(
                f"{name} is given to resume {path}, which trains {'an' if self.kind.what[0] in 'aeiou' else 'a'} "
                f"{self.kind.what}: leave it out. Accepted are {', '.join(self.kind.again)}"
            )
        training = self.training = self.kind.restore(directory, saved, note, given)
        found = self._newest(saved)  # compared with config.json before anything is opened that is of that size
        training.open(self.directory, self.store, resuming=found is not None)
        report = environment_report()
        changed = changed_since(saved["environment"], report)
        elsewhere = bool(changed) or report["gpu"] != saved["environment"].get("gpu")
        notes = training.check_unchanged(directory.path, saved, elsewhere=elsewhere)
        checkpoint = self._load(found)
        extended = training.extend()
        if self.directory is not None:
            written = {row["seed"]: row["step"] - 1 for row in self.pending or ()}  # what is pending is written again
            self._open_log(written or training.steps_by_seed)
            if extended:  # for good: the next resume must know it too
                self.directory.write_json("config.json", {**saved, "run": dataclasses.asdict(training.settings)})
        if self.done:
            training.note(f"{directory.path} is finished, at step {self.step:,}{training.extends}")
            return
        if self.pending is None:
            training.restart()
        if checkpoint is not None:
            training.note(f"resuming from {checkpoint.name}")
        for text in notes:
            training.note(text)
        changed += training.differences(saved)
        with self._threads() as threads:
            if threads != self.settings.threads:
                changed.append(f"threads were {self.settings.threads}, are {threads}")
        if changed:
            training.note(f"bits may differ from an uninterrupted run: {'; '.join(changed)}")

    def _open_log(self, resume_step: dict[int, int] | None) -> None:
        assert self.directory is not None
        self.log = MetricsLog(
            self.directory.path,
            resume_step=resume_step,
            seeds=self.training.seeds,
            tensorboard=self.settings.tensorboard,
            wandb=self.settings.wandb,
        )

    def _newest(self, saved: dict[str, Any]) -> Found | None:
        """Read the newest checkpoint, which the main process alone looks for, and compare it with config.json."""
        if self.directory is not None:
            self.store = CheckpointStore(self.directory.checkpoints_path, self.settings.keep_checkpoints)
        found = None if self.store is None else self.store.load_latest()
        path = self.training.decided(None if found is None else found[0])
        if path is None:
            return None
        found = found or (path, *load_tensors(path, kind="checkpoint"))
        check_same_run(path, found[2], saved)
        return found

    def _load(self, found: Found | None) -> Path | None:
        """Take up a checkpoint; return its path."""
        if found is None:
            self.training.note("no checkpoint was saved yet; starting from the beginning")
            return None
        path, tensors, metadata = found
        try:
            self.training.load(tensors, metadata)
            self.wall_seconds, self.evaluated_at = float(metadata["wall_seconds"]), int(metadata["evaluated_at"])
            self.pending = metadata.get("pending")
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(f"{path} was not saved by a run that can be resumed: {error!r}") from error
        return path

    def _save_checkpoint(self, pending: list[Row] | None = None) -> None:
        if self.store is None and self.training.alone:
            return
        tensors, more = self.training.state()
        if self.store is not None:
            more = more if pending is None else {**more, "pending": finite_json(pending)}
            self.store.save(self.training.last_step, tensors, {**self._metadata(), **more})

    def _metadata(self) -> dict[str, Any]:
        return {
            **self.training.metadata(),
            "description": finite_json(self.training.description()),
            "wall_seconds": self.wall_seconds,
            "evaluated_at": self.evaluated_at,
        }

    def description(self) -> dict[str, Any]:
        """Return everything that defines the run, as JSON."""
        return {
            **self.training.description(),
            "command": shlex.join(["steepest", *sys.argv[1:]]).encode(errors="backslashreplace").decode(),
            "environment": environment_report(),
        }

    def close(self) -> None:
        """Release the folder and the environments. Closing twice is harmless."""
        if self.log is not None:
            self.log.close()
        if self.directory is not None:
            self.directory.close()
        if hasattr(self, "training"):
            self.training.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Training

    @property
    def settings(self) -> SharedConfig:
        return self.training.settings

    @property
    def name(self) -> str:
        return self.training.name

    @property
    def algorithm(self) -> str:
        return self.training.algorithm

    @property
    def agent(self) -> Agent:
        """The agent that is trained."""
        return cast(AgentTraining, self.training).agent

    @property
    def evaluations(self) -> list[Evaluation]:
        """The latest evaluation of every member of the agent."""
        return cast(AgentTraining, self.training).evaluations

    @property
    def step(self) -> int:
        """Steps so far: of the environment per member, or updates of a language model."""
        return self.training.step

    @property
    def total_steps(self) -> int:
        return self.training.total_steps

    @property
    def done(self) -> bool:
        return self.training.done and self.pending is None

    def __iter__(self) -> Iterator[Row]:
        """Train; yields the metrics of every iteration (means over members). Leaving early is fine: iterate again."""
        while not self.done:
            yield self.iterate()
        if not self.training.decided(self._is_summed_up()):
            self.finish()
        self.training.release()

    def iterate(self) -> Row:
        """Run one iteration, with whatever is due after it.

        Raises:    RunError, naming the last good checkpoint, if an environment fails or a number becomes non-finite
        """
        try:
            with self._threads(), self.training.together():
                return self._iterate()
        except RunError as error:
            good = None if self.store is None else self.store.latest()
            said = f"The last good checkpoint is {good}." if good else "No checkpoint had been saved yet."
            raise type(error)(f"{error} {said}") from error

    def _iterate(self) -> Row:
        training, settings, before = self.training, self.settings, self.step
        clock = Clock()
        if self.pending is not None:
            rows, self.pending = self.pending, None
            evaluates = saves = True
        else:
            training.iterate()
            seconds = clock.seconds()
            self.wall_seconds += seconds
            rows = training.rows(self.wall_seconds, seconds)
            evaluates = training.done or crosses(before, self.step, settings.eval_every)
            saves = training.done or training.checkpoint_due or crosses(before, self.step, settings.checkpoint_every)
            if evaluates and saves and training.evaluation_may_hang:
                self._save_checkpoint(pending=rows)
        if evaluates:
            self._evaluate(rows)
        ended = training.done  # an evaluation may have reached the target
        if self.log is not None:
            for row in rows:
                self.log.write(row)
        self.wall_seconds += clock.seconds()
        if ended or saves:
            self._save_checkpoint()
            if not ended:
                training.restart()
        self.wall_seconds += clock.seconds()
        return mean_row(rows)

    def _evaluate(self, rows: list[Row]) -> None:
        """Evaluate every member unless that was just done, and act on the evaluation."""
        if self.evaluated_at == self.step:
            return
        found = self.training.evaluate()
        if found is None:
            return
        self.evaluated_at = self.step
        for row, metrics in zip(rows, found, strict=True):
            row |= metrics
        self.training.act_on_evaluation(self._metadata())

    @contextmanager
    def _threads(self) -> Generator[int]:
        """Set PyTorch's number of threads to the run's; gives how many it has taken."""
        before = torch.get_num_threads()
        torch.set_num_threads(cast(int, self.settings.threads))
        try:
            yield torch.get_num_threads()
        finally:
            torch.set_num_threads(before)

    # The end

    def finish(self) -> None:
        """Write the curve and the summary of a finished run; the summary comes last, and so marks it complete."""
        with self.training.together():
            self.training.finish()
            if self.directory is None:
                return
            from steepest.runs.view.plots import plot_curve

            try:
                plot_curve(self.directory.path)
            except Exception as error:  # nothing to draw, or whatever goes wrong with a picture: the run has ended well
                self.training.note(f"no curve was drawn: {error}")
            self.directory.write_json("summary.json", self.summary())

    def _is_summed_up(self) -> bool:
        """Return whether the run's folder holds the summary of this very state already."""
        return self.directory is not None and self.directory.holds_summary(self.summary())

    def summary(self) -> dict[str, Any]:
        """Return how the run ended: steps, time and the last evaluation."""
        return self.training.summary(self.wall_seconds, self.evaluated_at)

    def save_interrupted(self) -> Path | None:
        """Save the agent or model as it is, off the schedule: usable, while ``resume`` takes the last checkpoint."""
        return self.training.save_interrupted(self._metadata())


def class_of_run(path: Path) -> type[Run]:
    """Return the class of the run in a folder; where there is none, or none can be read, that of agents."""
    kind = kind_of_run(path)
    if kind is None or kind.what == "agent":
        return Run
    from steepest.runs.language_run import LanguageRun

    return LanguageRun
