"""A run of a language model: ``runs.run.Run`` with the arguments and the names that a language model has."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from steepest.language.models.language_model import LanguageModel
from steepest.runs.loops.language import LanguageTraining
from steepest.runs.loops.training import ignore
from steepest.runs.run import Note, Run


class LanguageRun(Run):
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

    kind = LanguageTraining

    def __init__(
        self,
        algorithm: str,
        model: Any,
        data: Any,
        *,
        eval_data: Any = None,
        reward: Any = None,
        out: str | Path | None = None,
        note: Note | None = None,
        **options: Any,
    ) -> None:
        def make() -> LanguageTraining:
            return LanguageTraining.start(
                algorithm,
                model,
                data,
                note or ignore,
                options,
                eval_data=eval_data,
                reward=reward,
                saved=out is not None,
            )

        self._begin(make, out)

    @property
    def trainer(self) -> Any:
        """The trainer, which makes the updates."""
        return cast(LanguageTraining, self.training).trainer

    @property
    def model(self) -> LanguageModel:
        """The model as trained so far."""
        return cast(LanguageTraining, self.training).model

    @property
    def evaluation(self) -> dict[str, float]:
        """Metrics of the latest evaluation."""
        return cast(LanguageTraining, self.training).evaluation

    @property
    def best(self) -> dict[str, Any] | None:
        """Step, metric and value of the best evaluation whose model is kept; None where there is none."""
        return cast(LanguageTraining, self.training).best

    @property
    def best_path(self) -> Path:
        return cast(LanguageTraining, self.training).best_path
