"""A training run of a language model: the loop around any trainer of ``steepest.language``, and its files.

A trainer makes updates and knows nothing of files; this loop writes metrics, evaluates, saves checkpoints, resumes. A
trainer's batch is a function of the seed and the step, so a checkpoint needs only what training changes, and a resumed
run goes on with the same bits. Where torchrun started several processes they are one run: all of them make this loop
and train together, and the main one alone has a folder.

    RUN/config.json  metrics.jsonl  summary.json  curve.png  checkpoints/  tensorboard/     as in every run
    RUN/model/                                       the trained model, a plain Hugging Face folder
    RUN/best-model/  best.json                       the one of the best evaluation, and which that was
    RUN/interrupted-model/                           the model as it was when the run was interrupted
    RUN/base/                                        what the run started from, if that was made in Python
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import nn

from steepest.errors import RunError, SteepestError, UsageError, require
from steepest.files.tensors import load_tensors
from steepest.language.data.rows import check_source
from steepest.language.models.adapters import name_base, without_adapters
from steepest.language.models.language_model import LanguageModel, keep_activations
from steepest.language.models.loading import load_model, template_text
from steepest.language.models.packages import Device, Dtype, Quantization, find_device, require_language
from steepest.language.models.saving import save_model
from steepest.language.parallel import processes
from steepest.language.training.rewards import named_function
from steepest.learner.memory import keep_freed_memory
from steepest.runs.loops.language_identity import MODEL, NOTED, fingerprint_of_reward, fingerprints_of_start
from steepest.runs.options.config import checked_options, refuse_unknown
from steepest.runs.store.checkpoints import CheckpointStore
from steepest.runs.store.folder import RunDirectory, changed_since, environment_report, finite_json
from steepest.runs.store.metrics import MetricsLog

Row = dict[str, Any]

TRAINERS = {
    "sft": ("steepest.language.training.sft", "SFT"),
    "dpo": ("steepest.language.training.dpo", "DPO"),
    "reward": ("steepest.language.training.reward_model", "RewardTrainer"),
    "ppo": ("steepest.language.training.rlhf", "TokenPPO"),
    "rloo": ("steepest.language.training.rlhf", "RLOO"),
    "grpo": ("steepest.language.training.rlhf", "GRPO"),
}
"""Algorithm -> where its trainer is."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageRunConfig:
    """Settings of a run on a language model that no trainer knows of."""

    seed: int = 0
    """Seed of everything random in the run."""
    dtype: Dtype = "float32"
    """Number type of the weights. bfloat16 is for frozen ones, under adapters."""
    quantization: Quantization = "none"
    """Hold the frozen weights in 4 bits (QLoRA); needs lora_rank."""
    device: Device = "auto"
    """Where the model lives; auto takes a GPU if there is one."""
    fsdp: bool = False
    """Spread weights, gradients and AdamW's moments over the processes that torchrun started (FSDP2), for models that a
    GPU cannot hold; sft and dpo, of whole models."""
    threads: int | None = None
    """CPU threads of PyTorch; by default all cores."""
    eval_every: int | None = None
    """Updates between evaluations; by default a tenth of the run. 0 evaluates only at the end."""
    checkpoint_every: int | None = None
    """Updates between checkpoints; by default a tenth of the run. 0 only checkpoints at the end."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept; each holds the trained weights three times over, with AdamW's moments."""
    merge_adapters: bool = False
    """Save the trained model with its adapters added to the weights, instead of the adapters alone."""
    chat_template: str | None = None
    """A chat template in place of the model's own: Jinja text, or a file of it."""
    tensorboard: bool = True
    """Write TensorBoard events into the run's folder."""
    wandb: bool = False
    """Log to Weights & Biases too."""

    def __post_init__(self) -> None:
        require(self.seed >= 0, "seed", self.seed, "zero or more")
        require(self.keep_checkpoints >= 1, "keep_checkpoints", self.keep_checkpoints, "at least 1")
        require(self.threads is None or self.threads >= 1, "threads", self.threads, "at least 1")
        for name in ("eval_every", "checkpoint_every"):
            value = getattr(self, name)
            require(value is None or value >= 0, name, value, "zero or more")


def find_trainer(algorithm: str) -> Any:
    """The trainer of an algorithm for language models."""
    module, name = TRAINERS[algorithm]
    return getattr(importlib.import_module(module), name)


def resolve_language_options(algorithm: str, options: dict[str, Any]) -> tuple[LanguageRunConfig, Any]:
    """Split options into run settings and the trainer's config, both checked."""
    kind = find_trainer(algorithm).Config
    run_fields = [f.name for f in dataclasses.fields(LanguageRunConfig)]
    config_fields = [f.name for f in dataclasses.fields(kind)]
    refuse_unknown(options, run_fields + config_fields, algorithm)
    settings = checked_options(LanguageRunConfig, {k: v for k, v in options.items() if k in run_fields})
    config = checked_options(kind, {k: v for k, v in options.items() if k in config_fields})
    return LanguageRunConfig(**settings), kind(**config)


class LanguageRun:
    """One training run on a language model; iterate over it to train: ``for row in run: ...``.

    Args:
        algorithm: its name, such as "sft".
        model: what ``load_model`` takes, or a LanguageModel.
        data: what the trainer reads: a file, a folder, a dataset's id, or rows in memory.
        eval_data: held-out data in the same formats.
        reward: what scores responses, for ppo, rloo and grpo; see ``language.training.rewards.make_scorer``. A
            folder or FILE.py:FUNCTION may as well be the option ``reward`` of the config.
        out: folder of the run; None writes nothing.
        note: takes lines of text that a user should see.
        options: fields of ``LanguageRunConfig`` and of the trainer's config.

    Raises: UsageError on anything that cannot work, before any training.
    """

    directory: RunDirectory | None = None
    log: MetricsLog | None = None
    store: CheckpointStore | None = None

    def __init__(
        self,
        algorithm: str,
        model: Any,
        data: Any,
        *,
        eval_data: Any = None,
        reward: Any = None,
        out: str | Path | None = None,
        note: Callable[[str], None] | None = None,
        **options: Any,
    ) -> None:
        processes.join()
        try:
            with processes.failing_together():
                if isinstance(reward, (str, Path)):
                    options, reward = {**options, "reward": reward}, None
                if isinstance(options.get("reward"), (str, Path)):
                    options = {**options, "reward": _path_of_reward(options["reward"])}
                settings, config = resolve_language_options(algorithm, options)
                name = f"{_label(data)} ({_label(model)})"
                hashed = out is not None and not isinstance(model, LanguageModel)  # which the run's folder keeps itself
                self._start(algorithm, model, data, eval_data, reward, name, settings, config, note, hashed=hashed)
                if out is not None and processes.is_main():
                    label = f"{algorithm}-{_label(model)}-seed{settings.seed}"
                    self._create(Path(out) if str(out) else None, label)
        except BaseException:
            self.close()
            raise

    @classmethod
    def resume(
        cls,
        path: str | Path,
        *,
        data: Any = None,
        eval_data: Any = None,
        reward: Any = None,
        note: Callable[[str], None] | None = None,
    ) -> Self:
        """Go on from the last checkpoint of a run, to the same bits as if it had never stopped.

        Args:      data, eval_data, reward: again, where the run was given rows in memory, or a Python function
        Raises:    UsageError if there is no run, it is in use, or its model or data is missing or has changed
        Verified:  tests/integration/test_language_runs.py::test_a_run_goes_on_with_no_other_model,
                   tests/integration/test_preference_runs.py::test_what_else_has_changed_is_refused_or_said
        """
        require_language()
        processes.join()
        run = None
        try:
            with processes.failing_together():
                run = cls._resumed(Path(path), data, eval_data, reward, note)
        except BaseException:
            if run is not None:  # it is another process that cannot go on
                run.close()
            raise
        return run

    @classmethod
    def _resumed(cls, path: Path, data: Any, eval_data: Any, reward: Any, note: Callable[[str], None] | None) -> Self:
        directory = RunDirectory.open(path, lock=processes.is_main())
        try:
            saved = _read_description(directory)
            for name, given in (("data", data), ("eval_data", eval_data), ("reward", reward)):
                if saved.get(name) == IN_MEMORY and given is None:
                    what = "with a reward" if name == "reward" else "on data"
                    raise UsageError(f"{path} was trained {what} made in Python; pass it again: {name}=...")
            model = str(directory.path / "base") if saved["model"] == IN_MEMORY else saved["model"]
            settings = LanguageRunConfig(**checked_options(LanguageRunConfig, saved["run"]))
            kind = find_trainer(saved["algorithm"]).Config
            config = kind(**checked_options(kind, saved["config"]))
            run = cls.__new__(cls)
            run._start(
                saved["algorithm"],
                model,
                saved["data"] if data is None else data,
                saved["eval_data"] if eval_data is None else eval_data,
                reward,
                saved["name"],
                settings,
                config,
                note,
                hashed="settings" in saved.get("fingerprints", {}),
                resumed=True,
            )
        except BaseException:
            directory.close()
            raise
        try:
            run._reopen(directory, saved)
        except BaseException:
            run.close()
            raise
        return run

    def _start(
        self,
        algorithm: str,
        model: Any,
        data: Any,
        eval_data: Any,
        reward: Any,
        name: str,
        settings: LanguageRunConfig,
        config: Any,
        note: Callable[[str], None] | None,
        *,
        hashed: bool,
        resumed: bool = False,
    ) -> None:
        """``hashed``: whether the model's fingerprints are needed, which takes as long as reading its weights."""
        require_language()
        keep_freed_memory()
        self.note = note if note is not None and processes.is_main() else lambda _: None
        self.algorithm = algorithm
        self.name = name
        self.sources = {"model": _source(model), "data": _source(data), "eval_data": _source(eval_data)}
        self.sources["reward"] = None if reward is None else IN_MEMORY
        kind = find_trainer(algorithm)
        if reward is not None and not kind.takes_reward:
            raise UsageError(f"{algorithm} takes no reward; ppo, rloo and grpo do")
        self.wall_seconds = 0.0
        self.evaluation: dict[str, float] = {}
        self.evaluated_at = -1
        count = processes.world_size()
        require(config.batch_size % count == 0, "batch_size", config.batch_size,
                f"a multiple of the {count} processes that torchrun started")  # fmt: skip
        if settings.fsdp and count == 1:
            raise UsageError("fsdp spreads a model over several processes; start them: torchrun --nproc-per-node 2 ...")
        device = find_device(settings.device)
        if device.type == "cuda":
            processes.take_gpu()
        settings = dataclasses.replace(settings, chat_template=template_text(settings.chat_template))
        for source in (data, eval_data):
            check_source(source)  # a model may take a minute to load, only to learn that the data is not there
        if isinstance(model, LanguageModel):
            lm = model
        else:
            lm = load_model(
                model,
                dtype=settings.dtype,
                device="cpu" if settings.fsdp else settings.device,  # there may be no room for all of it on one device
                quantization=settings.quantization,
                chat_template=settings.chat_template,
            )
        processes.copy_from_main(lm.model)
        self.base = lm
        head = self._old_head(lm, isinstance(model, LanguageModel))
        # Before the trainer adds its adapters, and takes the model apart.
        self.start_fingerprints = fingerprints_of_start(lm, head, settings.quantization) if hashed else {}
        if resumed and lm.has_adapters:
            # They were compared with lora_rank when the run began, or the run is of a version that went on regardless.
            config = dataclasses.replace(config, lora_rank=0)
        more: dict[str, Any] = {"reward": reward} if kind.takes_reward else {} if head is None else {"head": head}
        self.trainer = kind.from_data(lm, config, data, eval_data=eval_data, seed=settings.seed, note=self.note, **more)
        processes.check_same((self.trainer.data_fingerprint, self.trainer.rows_fingerprint), "the data")
        if settings.fsdp:
            self.trainer.shard(device, self.note)
        self.trainer.prepare(self._say)
        tenth = max(1, self.trainer.total_steps // 10)
        self.settings = dataclasses.replace(
            settings,
            threads=torch.get_num_threads() if settings.threads is None else settings.threads,
            eval_every=tenth if settings.eval_every is None else settings.eval_every,
            checkpoint_every=tenth if settings.checkpoint_every is None else settings.checkpoint_every,
        )

    def _say(self, text: str) -> None:
        """Pass on what a trainer notes, to whatever takes notes by then."""
        self.note(text)

    def _old_head(self, lm: LanguageModel, made_in_python: bool) -> nn.Linear | None:
        """The head that training goes on with, where it is of a reward model and starts from one."""
        from steepest.language.training.reward_model import has_head, load_head

        if not has_head(lm):
            return None
        if self.algorithm == "reward" and not made_in_python:
            self.note(f"going on with the head of the reward model {lm.source}")
            return load_head(Path(lm.source)).to(lm.device)
        self.note(f"{lm.source} is a reward model: its head is left out")
        return None

    # Files

    def _create(self, path: Path | None, label: str) -> None:
        """Take a new folder for the run."""
        directory = RunDirectory.create(path, label)
        self._use(directory)
        if self.sources["model"] == IN_MEMORY:
            # peft has put its adapters into the model that it was given.
            base = without_adapters(self.model) if self.model is not self.base else self.base
            path = save_model(base, directory.path / "base")
            if self.model is not self.base:
                name_base(self.model, str(path.resolve()))
        directory.write_json("config.json", self.description())
        try:
            self._open_log(None)
        except SteepestError:
            directory.config_path.unlink()  # nothing has begun: the folder is free for another try
            raise

    def _reopen(self, directory: RunDirectory, saved: dict[str, Any]) -> None:
        """Take an old run's folder and load its newest checkpoint."""
        if processes.is_main():
            self._use(directory)
        environment = environment_report()
        changed = changed_since(saved["environment"], environment)
        elsewhere = bool(changed) or environment["gpu"] != saved["environment"]["gpu"]
        others = self._other_than_before(directory, saved, elsewhere)
        found = None if self.store is None else self.store.load_latest()
        path = processes.decided(None if found is None else found[0])
        if path is None:
            self.note("no checkpoint was saved yet; starting from the beginning")
        else:
            tensors, metadata = load_tensors(path, kind="checkpoint") if found is None else found[1:]
            try:
                self.trainer.load_tensors(tensors, int(metadata["step"]))
                self.wall_seconds = float(metadata["wall_seconds"])
                self.evaluation, self.evaluated_at = metadata["evaluation"], int(metadata["evaluated_at"])
            except (KeyError, TypeError, ValueError) as error:
                raise RunError(f"{path} was not saved by a run that can be resumed: {error!r}") from error
        if self.directory is not None:
            self._open_log(self.step)
        if self.done:
            self.note(f"{directory.path} is finished, at step {self.step:,}")
            return
        if path is not None:
            self.note(f"resuming from {path.name}")
        for name in sorted(others):
            self.note(NOTED[name])
        count = saved.get("processes", 1)
        if count != processes.world_size():
            changed.append(f"processes were {count}, are {processes.world_size()}")
        if changed:
            self.note(f"bits may differ from an uninterrupted run: {'; '.join(changed)}")

    def _other_than_before(self, directory: RunDirectory, saved: dict[str, Any], elsewhere: bool) -> set[str]:
        """Names of the fingerprints that are others than when the run began, yet let it go on.

        Args:      elsewhere: with other packages or on another machine, which may read the same model otherwise
        Raises:    UsageError where the run cannot go on with them
        """
        before, now = saved.get("fingerprints", {}), self.fingerprints()  # runs of older versions have none
        others = {name for name in before.keys() & now.keys() if before[name] != now[name]}
        if self.trainer.data_fingerprint != saved["fingerprint"]:
            older = not before and self.trainer.config.eval_fraction > 0
            said = " (or an older version held out some rows of a prompt and not the others)" if older else ""
            raise UsageError(
                f"the data, or its tokenizer, has changed since {directory.path} began{said}: it cannot go on from the "
                "same place. Restore it, or start a new run from the model so far"
            )
        if "rows" in others:
            raise UsageError(
                f"the data has changed since {directory.path} began: its prompts are the same, but its rows hold "
                "something else, which a reward may look at. Restore it, or start a new run from the model so far"
            )
        if "eval_data" in others:
            raise UsageError(
                f"the evaluation data has changed since {directory.path} began, and best-model was chosen by the old "
                "one: restore it, or start a new run from the model so far"
            )
        for name in MODEL:
            if name in others and (name == "weights" or not elsewhere):
                raise UsageError(
                    f"the model {saved['model']} has changed since {directory.path} began: {MODEL[name]}. What the run "
                    "does not train, and its reference, would be another model's. Restore it, or start a new run"
                )
        return others

    def _use(self, directory: RunDirectory) -> None:
        self.directory = directory
        self.store = CheckpointStore(directory.checkpoints_path, self.settings.keep_checkpoints)

    def _open_log(self, resume_step: int | None) -> None:
        assert self.directory is not None
        self.log = MetricsLog(
            self.directory.path,
            resume_step=resume_step,
            seeds=(self.settings.seed,),
            tensorboard=self.settings.tensorboard,
            wandb=self.settings.wandb,
        )

    def fingerprints(self) -> dict[str, str | None]:
        """Hashes of what a resumed run has to find again, besides the data's tokens; None of what it has not."""
        return {
            **self.start_fingerprints,
            "rows": self.trainer.rows_fingerprint,
            "eval_data": self.trainer.eval_fingerprint,
            "reward": None if self.sources["reward"] else fingerprint_of_reward(self.trainer),
        }

    def description(self) -> dict[str, Any]:
        """Everything that defines the run, as JSON."""
        return {
            "algorithm": self.algorithm,
            "name": self.name,
            **self.sources,
            "fingerprint": self.trainer.data_fingerprint,
            "fingerprints": self.fingerprints(),
            "config": dataclasses.asdict(self.trainer.config),
            "run": dataclasses.asdict(self.settings),
            "processes": processes.world_size(),
            "command": shlex.join(["steepest", *sys.argv[1:]]),
            "environment": environment_report(),
        }

    def _metadata(self) -> dict[str, Any]:
        return {
            "algorithm": self.algorithm,
            "wall_seconds": self.wall_seconds,
            "evaluation": self.evaluation,
            "evaluated_at": self.evaluated_at,
        }

    def close(self) -> None:
        """Release the folder. Closing twice is harmless."""
        if self.log is not None:
            self.log.close()
        if self.directory is not None:
            self.directory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Training

    @property
    def model(self) -> LanguageModel:
        """The model as trained so far."""
        return self.trainer.lm

    @property
    def step(self) -> int:
        """Updates so far."""
        return self.trainer.step

    @property
    def total_steps(self) -> int:
        return self.trainer.total_steps

    @property
    def done(self) -> bool:
        return self.trainer.done

    def __iter__(self) -> Iterator[Row]:
        """Train; yields the figures of every update. Leaving early is fine: iterate again."""
        while not self.done:
            yield self.iterate()
        if not processes.decided(self._is_summed_up()):
            self.finish()
        if self.trainer.config.gradient_checkpointing:
            keep_activations(self.model)  # or it would stay with the model wherever that goes next

    def iterate(self) -> Row:
        """One update, with whatever is due after it.

        Raises:    RunError, naming the last good checkpoint, if a figure becomes non-finite
        """
        before = torch.get_num_threads()
        torch.set_num_threads(cast(int, self.settings.threads))
        try:
            # A model in parts is put together by all processes at once: who stops in between cannot be heard.
            with processes.failing_together(tells=not self.settings.fsdp):
                return self._iterate()
        except RunError as error:
            good = None if self.store is None else self.store.latest()
            said = f"The last good checkpoint is {good}." if good else "No checkpoint had been saved yet."
            raise RunError(f"{error} {said}") from error
        finally:
            torch.set_num_threads(before)

    def _iterate(self) -> Row:
        began = time.perf_counter()
        figures = self.trainer.update()
        seconds = time.perf_counter() - began
        self.wall_seconds += seconds
        row: Row = {
            "step": self.step,
            "wall_seconds": self.wall_seconds,
            "seed": self.settings.seed,
            **figures,
            "time/steps_per_second": 1.0 / seconds,
            f"time/{self.trainer.terms}_per_second": figures[f"train/{self.trainer.terms}"] / seconds,
        }
        if self.done or _due(self.step, self.settings.eval_every):
            self.evaluation = self.trainer.evaluate()
            self.evaluated_at = self.step
            row |= self.evaluation
            self._keep_best()
        if self.log is not None:
            self.log.write(row)
        self.wall_seconds += time.perf_counter() - began - seconds
        if self.done or _due(self.step, self.settings.checkpoint_every):
            tensors = self.trainer.tensors()  # by all processes: each may have a part of them
            if self.store is not None:
                self.store.save(self.step, tensors, self._metadata())
        return row

    def _keep_best(self) -> None:
        """Save the model if its evaluation is the best of the run.

        What is on disk is what it is compared with. So a resumed run, which repeats evaluations, changes nothing.
        """
        if not processes.decided(self._is_best()):
            return
        weights = self.trainer.weights()  # by all processes: each may have a part of them
        if self.directory is None:
            return
        name, _ = self.trainer.best_by
        self.trainer.save(self.best_path, merge=self.settings.merge_adapters, weights=weights)
        # After the model: killed between the two, a resumed run comes here again and saves both.
        self.directory.write_json("best.json", {"step": self.step, "metric": name, "value": self.evaluation[name]})

    def _is_best(self) -> bool:
        """Whether the evaluation is better than that of the model on disk, which the main process alone knows."""
        name, which = self.trainer.best_by
        value = self.evaluation.get(name)
        if self.directory is None or value is None or not math.isfinite(value):
            return False
        best, sign = self.best, 1.0 if which == "highest" else -1.0
        return best is None or best["metric"] != name or sign * value > sign * best["value"]

    @property
    def best_path(self) -> Path:
        assert self.directory is not None
        return self.directory.path / "best-model"

    @property
    def best(self) -> dict[str, Any] | None:
        """Step, metric and value of the best evaluation whose model is kept; None where there is none."""
        if self.directory is None or not self.best_path.is_dir() or not (self.directory.path / "best.json").is_file():
            return None
        return self.directory.read_json("best.json")

    def _is_summed_up(self) -> bool:
        """Whether the run's folder holds the summary of this very state already."""
        if self.directory is None or not self.directory.summary_path.exists():
            return False
        found, mine = self.directory.read_json("summary.json"), finite_json(self.summary())
        return all(found.get(k) == v for k, v in mine.items() if k != "wall_seconds")

    def finish(self) -> None:
        """Write model, curve and summary of a finished run; the summary comes last, and so marks it complete."""
        with processes.failing_together(tells=not self.settings.fsdp):
            self._finish()

    def _finish(self) -> None:
        self.model.model.eval()
        weights = self.trainer.weights()
        if self.directory is None:
            return
        self.trainer.save(self.directory.path / "model", merge=self.settings.merge_adapters, weights=weights)
        shutil.rmtree(self.interrupted_path, ignore_errors=True)
        from steepest.runs.view.plots import plot_curve

        try:
            plot_curve(self.directory.path)
        except SteepestError as error:
            self.note(f"no curve was drawn: {error}")
        self.directory.write_json("summary.json", self.summary())

    def summary(self) -> dict[str, Any]:
        """How the run ended: steps, time, and the last evaluation."""
        return {
            "algorithm": self.algorithm,
            "name": self.name,
            "seed": self.settings.seed,
            "steps": self.step,
            "wall_seconds": round(self.wall_seconds, 3),
            "evaluation_step": self.evaluated_at if self.evaluation else None,
            "evaluation": self.evaluation,
            "best": self.best,
        }

    @property
    def interrupted_path(self) -> Path:
        assert self.directory is not None
        return self.directory.path / "interrupted-model"

    def save_interrupted(self) -> Path | None:
        """Save the model as it is, off the schedule: usable, while ``resume`` goes on from the last checkpoint."""
        weights = self.trainer.weights()
        if self.directory is None:
            return None
        return self.trainer.save(self.interrupted_path, merge=self.settings.merge_adapters, weights=weights)


IN_MEMORY = "(made in Python)"


def _path_of_reward(reward: str | Path) -> str:
    """A reward's folder or file from the root, so that a resumed run may start from another folder."""
    named = named_function(reward)
    path = Path(reward).expanduser() if named is None else named[0]
    if not path.exists():
        raise UsageError(f"there is no reward at {path}")
    return str(path.resolve()) if named is None else f"{path.resolve()}:{named[1]}"


def _source(given: Any) -> str | None:
    """What a file can hold of a model or data: a path or an id; or that it was made in Python."""
    if given is None:
        return None
    if not isinstance(given, (str, Path)):
        return IN_MEMORY
    path = Path(given).expanduser()
    return str(path.resolve()) if path.exists() else str(given)  # so that a resumed run may start from another folder


def _label(given: Any) -> str:
    """A model or data in a word or two."""
    source = given.source if isinstance(given, LanguageModel) else _source(given)
    if not source or source == IN_MEMORY:
        return "model" if isinstance(given, LanguageModel) else "data"
    path = Path(source)
    return path.parent.name if path.name == "model" else path.stem if path.suffix == ".gguf" else path.name


def _due(step: int, every: int | None) -> bool:
    return every is not None and every > 0 and step % every == 0


def _read_description(directory: RunDirectory) -> dict[str, Any]:
    """The config.json of a run on a language model. UsageError or RunError if it is something else."""
    saved = directory.read_json("config.json")
    if saved.get("algorithm") not in TRAINERS:
        raise UsageError(f"{directory.path} is no run of a language model; continue it with steepest train --resume")
    required = ("name", "model", "data", "eval_data", "fingerprint", "config", "run", "environment")
    missing = [k for k in required if k not in saved]
    if missing:
        raise RunError(f"{directory.config_path} is not a run's: it has no {', '.join(missing)}")
    return saved
