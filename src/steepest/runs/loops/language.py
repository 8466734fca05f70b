"""Train a language model by any trainer of ``steepest.language``, in one process or in several together.

A trainer makes updates and knows nothing of files; this module adds evaluation, the best model, the trained model and
the comparison with the run's beginning. A trainer's batch is a function of the seed and the step, so a checkpoint needs
only what training changes, and a resumed run continues with the same bits. Where torchrun started several processes
they are one run: all of them make this training and train together, and the main one alone has a folder.

    RUN/config.json  metrics.jsonl  summary.json  curve.png  checkpoints/  tensorboard/     as in every run
    RUN/model/                                       the trained model, a plain Hugging Face folder
    RUN/best-model/  best.json                       the one of the best evaluation, and which that was
    RUN/interrupted-model/                           the model as it was when the run was interrupted
    RUN/base/                                        what the run started from, if that was made in Python
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from steepest.errors import RunError, UsageError, require
from steepest.fields import checked_options
from steepest.files.space import in_bytes, require_space
from steepest.language.data.rows import check_source
from steepest.language.models.adapters import name_base, without_adapters
from steepest.language.models.language_model import LanguageModel, keep_activations
from steepest.language.models.loading import load_model
from steepest.language.models.packages import find_device, require_language
from steepest.language.models.saving import save_model
from steepest.language.models.templates import template_text
from steepest.language.parallel import processes
from steepest.language.training.trainer import trained_bytes
from steepest.runs.loops.language_identity import (
    NOTED,
    changed_fingerprints,
    fingerprint_of_reward,
    fingerprints_of_start,
    label_of,
    path_of_reward,
    refuse_changes,
)
from steepest.runs.loops.training import IN_MEMORY, Note, Row, Training, ignore, source_of
from steepest.runs.options.language import (
    TRAINERS,
    LanguageRunConfig,
    config_types,
    find_trainer,
    resolve_language_options,
)
from steepest.runs.store.checkpoints import CheckpointStore
from steepest.runs.store.descriptions import Best, DescribedModel, refuse_other_kind
from steepest.runs.store.folder import RunDirectory


class LanguageTraining(Training[LanguageRunConfig]):
    """Train a language model by one of ``TRAINERS``."""

    what = "model"
    again = ("data", "eval_data", "reward")

    def __init__(
        self,
        algorithm: str,
        model: Any,
        data: Any,
        eval_data: Any,
        reward: Any,
        name: str,
        settings: LanguageRunConfig,
        config: Any,
        note: Callable[[str], None],
        *,
        hashed: bool,
        resumed: bool = False,
    ) -> None:
        """``hashed``: whether the model's fingerprints are needed, which takes as long as reading its weights."""
        self.note = note if processes.is_main() else ignore
        self.algorithm = algorithm
        self.name = name
        self.label = f"{algorithm}-{label_of(model)}-seed{settings.seed}"
        self.seeds = (settings.seed,)
        self.alone = processes.world_size() == 1
        self.sources = {"model": source_of(model), "data": source_of(data), "eval_data": source_of(eval_data)}
        self.sources["reward"] = None if reward is None else IN_MEMORY
        kind = find_trainer(algorithm)
        if reward is not None and not kind.takes_reward:
            raise UsageError(f"{algorithm} takes no reward; ppo, rloo and grpo do")
        self.evaluation: dict[str, float] = {}
        self.latest: dict[str, float] = {}
        count = processes.world_size()
        require(config.batch_size % count == 0, "batch_size", config.batch_size,
                f"a multiple of the {count} processes that torchrun started")  # fmt: skip
        if settings.fsdp and count == 1:
            raise UsageError("fsdp spreads a model over several processes; start them: torchrun --nproc-per-node 2 ...")
        device = find_device(settings.device)
        if device.type == "cuda":
            processes.take_gpu()
        settings = dataclasses.replace(settings, chat_template=template_text(settings.chat_template))
        for source in (data, *([] if eval_data is None else [eval_data])):
            check_source(source)  # a model may take a minute to load, only to learn that the data is not there
        if isinstance(model, LanguageModel):
            given = [name for name in ("chat_template", "template_kwargs") if getattr(settings, name) is not None]
            if given:
                raise UsageError(f"{given[0]} is given with a model in memory; set its tokenizer's chat_template")
            lm = model
        else:
            lm = load_model(
                model,
                dtype=settings.dtype,
                device="cpu" if settings.fsdp else settings.device,  # there may be no room for all of it on one device
                quantization=settings.quantization,
                chat_template=settings.chat_template,
                template_kwargs=settings.template_kwargs,
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
        """Return the head to train further, where a reward model starts from one."""
        from steepest.language.training.reward_model import has_head, load_head

        if not has_head(lm):
            return None
        if self.algorithm == "reward" and not made_in_python:
            self.note(f"going on with the head of the reward model {lm.source}")
            return load_head(Path(lm.source)).to(lm.device)
        self.note(f"{lm.source} is a reward model: its head is left out")
        return None

    @classmethod
    def start(
        cls,
        algorithm: str,
        model: Any,
        data: Any,
        note: Callable[[str], None],
        options: dict[str, Any],
        *,
        eval_data: Any,
        reward: Any,
        saved: bool,
    ) -> Self:
        """Make the training of a new run from options that a user gave; ``saved``: a folder will describe it."""
        if isinstance(options.get("template_kwargs"), Mapping):
            options = {**options, "template_kwargs": json.dumps(options["template_kwargs"])}
        if isinstance(options.get("columns"), Mapping):
            options = {**options, "columns": [f"{ours}={theirs}" for ours, theirs in options["columns"].items()]}
        if isinstance(reward, (str, Path)):
            options, reward = {**options, "reward": reward}, None
        if isinstance(options.get("reward"), (str, Path)):
            options = {**options, "reward": path_of_reward(options["reward"])}
        settings, config = resolve_language_options(algorithm, options)
        name = f"{label_of(data)} ({label_of(model)})"
        hashed = saved and not isinstance(model, LanguageModel)  # which the run's folder keeps itself
        return cls(algorithm, model, data, eval_data, reward, name, settings, config, note, hashed=hashed)

    @classmethod
    def meet(cls) -> AbstractContextManager[None]:
        require_language()
        processes.join()
        return processes.failing_together()

    @classmethod
    def is_main(cls) -> bool:
        return processes.is_main()

    @classmethod
    def read(cls, directory: RunDirectory) -> dict[str, Any]:
        path = directory.config_path
        refuse_other_kind(directory.path, "model")
        saved = directory.read_json("config.json", DescribedModel)
        try:
            require(saved["algorithm"] in TRAINERS, "algorithm", saved["algorithm"], f"one of {', '.join(TRAINERS)}")
            for kind, options in zip(config_types(saved["algorithm"]), (saved["run"], saved["config"]), strict=True):
                kind(**checked_options(kind, options))
        except UsageError as error:
            raise RunError(f"{path}: {error}") from error
        return saved

    @classmethod
    def restore(
        cls,
        directory: RunDirectory,
        saved: dict[str, Any],
        note: Callable[[str], None],
        given: dict[str, Any],
    ) -> Self:
        for name in cls.again:
            if saved.get(name) == IN_MEMORY and name not in given:
                what = "with a reward" if name == "reward" else "on data"
                raise UsageError(f"{directory.path} was trained {what} made in Python; pass it again: {name}=...")
        of_run, of_trainer = config_types(saved["algorithm"])
        return cls(
            saved["algorithm"],
            str(directory.path / "base") if saved["model"] == IN_MEMORY else saved["model"],
            given.get("data", saved["data"]),
            given.get("eval_data", saved["eval_data"]),
            given.get("reward"),
            saved["name"],
            of_run(**checked_options(of_run, saved["run"])),
            of_trainer(**checked_options(of_trainer, saved["config"])),
            note,
            hashed="settings" in saved.get("fingerprints", {}),
            resumed=True,
        )

    def open(self, directory: RunDirectory | None, store: CheckpointStore | None, *, resuming: bool) -> None:
        super().open(directory, store, resuming=resuming)
        if directory is not None:
            self._require_disk(directory.path)
        if directory is not None and not resuming and self.sources["model"] == IN_MEMORY:
            # peft has put its adapters into the model that it was given.
            base = without_adapters(self.model) if self.model is not self.base else self.base
            path = save_model(base, directory.path / "base")
            if self.model is not self.base:
                name_base(self.model, str(path.resolve()))

    def _require_disk(self, folder: Path) -> None:
        """UsageError unless the checkpoints and models that the run is going to hold fit on the disk."""
        trained = trained_bytes(self.trainer.named.values())
        saves_all = self.settings.merge_adapters or not self.model.has_adapters
        model = trained_bytes(self.model.model.parameters()) if saves_all else trained
        every = self.settings.checkpoint_every or self.total_steps
        count = min(self.settings.keep_checkpoints + 1, math.ceil(self.total_steps / max(1, every)))
        models = 2 if self.trainer.eval_data else 1
        held = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
        require_space(
            max(3 * trained * count + model * models - held, 3 * trained),
            f"the run ({count} checkpoints of {in_bytes(3 * trained)} and {models} saved models)",
            "free some, give a smaller keep_checkpoints or another --out, or train adapters (lora_rank)",
            folder,
        )

    def listen(self, note: Note, warn: Note, watch: Callable[[int], None], hold: Note) -> None:
        del warn, watch, hold
        if processes.is_main():
            self.note = note

    def check_unchanged(self, place: Path, saved: dict[str, Any], *, elsewhere: bool) -> list[str]:
        changed = changed_fingerprints(saved, self.trainer.data_fingerprint, self.fingerprints())
        refuse_changes(saved, changed, place, elsewhere=elsewhere, splits=self.trainer.config.eval_fraction > 0)
        return [NOTED[name] for name in sorted(changed)]

    def differences(self, saved: dict[str, Any]) -> list[str]:
        before, now = saved.get("processes", 1), processes.world_size()
        return [] if before == now else [f"processes were {before}, are {now}"]

    def fingerprints(self) -> dict[str, str | None]:
        """Return hashes of what a resumed run has to find again, besides the data's tokens; None of what is absent."""
        return {
            **self.start_fingerprints,
            "rows": self.trainer.rows_fingerprint,
            "eval_data": self.trainer.eval_fingerprint,
            "reward": None if self.sources["reward"] else fingerprint_of_reward(self.trainer),
        }

    # One update

    @property
    def model(self) -> LanguageModel:
        """The model as trained so far."""
        return self.trainer.lm

    @property
    def step(self) -> int:
        return self.trainer.step

    @property
    def steps_by_seed(self) -> dict[int, int]:
        return {self.settings.seed: self.step}

    @property
    def total_steps(self) -> int:
        return self.trainer.total_steps

    @property
    def done(self) -> bool:
        return self.trainer.done

    def iterate(self) -> None:
        self.latest = self.trainer.update()

    def rows(self, wall_seconds: float, seconds: float) -> list[Row]:
        terms = self.trainer.terms
        return [
            {
                "step": self.step,
                "wall_seconds": wall_seconds,
                "seed": self.settings.seed,
                **self.latest,
                "time/steps_per_second": 1.0 / seconds,
                f"time/{terms}_per_second": self.latest[f"train/{terms}"] / seconds,
            }
        ]

    @property
    def evaluation_may_hang(self) -> bool:
        return self.trainer.evaluation_may_hang

    def evaluate(self) -> list[Row] | None:
        self.evaluation = self.trainer.evaluate()
        return [self.evaluation]

    def act_on_evaluation(self, metadata: dict[str, Any]) -> None:
        """Save the model if its evaluation is the best of the run.

        The evaluation is compared with that of the model on disk. So a resumed run, which repeats evaluations, changes
        nothing.
        """
        del metadata
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
        """Return whether the evaluation beats that of the model on disk, which the main process alone knows."""
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
        try:
            return self.directory.read_json("best.json", Best)
        except RunError as error:  # as of a damaged best agent: the next evaluation is the best so far
            warnings.warn(f"ignoring the best model: {error}", RuntimeWarning, stacklevel=2)
            return None

    # Files

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return self.trainer.tensors(), {}

    def metadata(self) -> dict[str, Any]:
        return {"algorithm": self.algorithm, "evaluation": self.evaluation}

    def load(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        self.trainer.load_tensors(tensors, int(metadata["step"]))
        self.evaluation = metadata["evaluation"]

    def description(self) -> dict[str, Any]:
        return {
            "algorithm": self.algorithm,
            "name": self.name,
            **self.sources,
            "fingerprint": self.trainer.data_fingerprint,
            "fingerprints": self.fingerprints(),
            "config": dataclasses.asdict(self.trainer.config),
            "run": dataclasses.asdict(self.settings),
            "processes": processes.world_size(),
        }

    def summary(self, wall_seconds: float, evaluated_at: int) -> dict[str, Any]:
        """Return steps, time, and the last evaluation."""
        return {
            "algorithm": self.algorithm,
            "name": self.name,
            "seed": self.settings.seed,
            "steps": self.step,
            "wall_seconds": round(wall_seconds, 3),
            "evaluation_step": evaluated_at if self.evaluation else None,
            "evaluation": self.evaluation,
            "best": self.best,
        }

    @property
    def interrupted_path(self) -> Path:
        assert self.directory is not None
        return self.directory.path / "interrupted-model"

    def save_interrupted(self, metadata: dict[str, Any]) -> Path | None:
        del metadata
        weights = self.trainer.weights()
        if self.directory is None:
            return None
        return self.trainer.save(self.interrupted_path, merge=self.settings.merge_adapters, weights=weights)

    def finish(self) -> None:
        """Save the trained model."""
        self.model.model.eval()
        weights = self.trainer.weights()
        if self.directory is not None:
            self.trainer.save(self.directory.path / "model", merge=self.settings.merge_adapters, weights=weights)
            shutil.rmtree(self.interrupted_path, ignore_errors=True)

    def release(self) -> None:
        if self.trainer.config.gradient_checkpointing:
            keep_activations(self.model)  # or it would stay with the model wherever that goes next

    # Several processes

    def together(self) -> AbstractContextManager[None]:
        # A model in parts is put together by all processes at once: who stops in between cannot be heard.
        return processes.failing_together(tells=not self.settings.fsdp)

    def decided(self, value: Any) -> Any:
        return processes.decided(value)

    def interrupts(self) -> AbstractContextManager[Callable[[], None]]:
        return processes.interrupts_together()
