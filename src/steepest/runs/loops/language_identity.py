"""Compare what a resumed language run is given with its beginning: names and hashes of model, data and reward."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from torch import nn

from steepest.errors import UsageError
from steepest.language.models.fingerprints import settings_fingerprint, weights_fingerprint
from steepest.language.models.language_model import LanguageModel
from steepest.language.models.packages import Quantization
from steepest.language.parallel import processes
from steepest.language.training.rewards import named_function
from steepest.runs.loops.training import IN_MEMORY, source_of

MODEL = {
    "weights": "its weights are others",
    "weights in 4 bits": "its weights are others",
    "settings": "its config, end tokens or adapters' config are others",
}
"""Fingerprints of a model, and what it means that one is not as it was."""
NOTED = {
    "weights in 4 bits": "the model, or how it is rounded to 4 bits, has changed since the run began: from here on "
    "what is not trained is the new one's",
    "settings": "the model's config, or how it is read, has changed since the run began: from here on the new one is "
    "used",
    "reward": "the reward has changed since the run began: from here on the new one scores responses, and scores from "
    "before and after cannot be compared",
}
"""Notes about fingerprints that have changed."""


def fingerprints_of_start(lm: LanguageModel, head: nn.Linear | None, quantization: Quantization) -> dict[str, str]:
    """Hashes of a model as it was loaded, made by the main process."""
    found: dict[str, str] = {}
    if processes.is_main():
        heads = {} if head is None else {f"head.{name}": x for name, x in head.state_dict().items()}
        weights = weights_fingerprint({**lm.model.state_dict(), **heads})
        found = {
            "weights" if quantization == "none" else "weights in 4 bits": weights,
            "settings": settings_fingerprint(lm),
        }
    return processes.decided(found)


def fingerprint_of_reward(trainer: Any) -> str | None:
    """A hash of a reward that lies in files: a program's text, or a reward model."""
    from steepest.language.training.reward_model import RewardModel

    path = getattr(trainer.config, "reward", None)
    if path is None:
        return None
    reward = trainer.reward
    if not isinstance(reward, RewardModel):
        return hashlib.blake2b(Path(path.rpartition(":")[0]).read_bytes(), digest_size=16).hexdigest()
    heads = {f"head.{name}": x for name, x in reward.head.state_dict().items()}
    return weights_fingerprint({**reward.lm.model.state_dict(), **heads}) + settings_fingerprint(reward.lm)


def changed_fingerprints(saved: dict[str, Any], data: str, now: dict[str, str | None]) -> set[str]:
    """Return the names of the fingerprints that differ from those in config.json; ``data`` is that of the tokens."""
    before = saved.get("fingerprints", {})  # runs of older versions have none
    changed = {name for name in before.keys() & now.keys() if before[name] != now[name]}
    return changed | ({"data"} if data != saved["fingerprint"] else set())


def refuse_changes(saved: dict[str, Any], changed: set[str], place: Path, *, elsewhere: bool, splits: bool) -> None:
    """Refuse to resume with other data, or with another model.

    Args:      changed: from ``changed_fingerprints``; place: the run's folder; elsewhere: whether packages or machine
               differ, which may read the same model otherwise; splits: whether evaluation data is held out of the data
    Raises:    UsageError where the run cannot resume
    """
    if "data" in changed:
        older = not saved.get("fingerprints") and splits
        said = " (or an older version held out some rows of a prompt and not the others)" if older else ""
        raise UsageError(
            f"the data, or its tokenizer, has changed since {place} began{said}: it cannot go on from the "
            "same place. Restore it, or start a new run from the model so far"
        )
    if "rows" in changed:
        raise UsageError(
            f"the data has changed since {place} began: its prompts are the same, but its rows hold "
            "something else, which a reward may look at. Restore it, or start a new run from the model so far"
        )
    if "eval_data" in changed:
        raise UsageError(
            f"the evaluation data has changed since {place} began, and best-model was chosen by the old "
            "one: restore it, or start a new run from the model so far"
        )
    for name in MODEL:
        if name in changed and (name == "weights" or not elsewhere):
            raise UsageError(
                f"the model {saved['model']} has changed since {place} began: {MODEL[name]}. What the run "
                "does not train, and its reference, would be another model's. Restore it, or start a new run"
            )


def path_of_reward(reward: str | Path) -> str:
    """Return a reward's folder or file from the root, so that a resumed run may start from another folder."""
    named = named_function(reward)
    path = Path(reward).expanduser() if named is None else named[0]
    if not os.path.exists(path):
        raise UsageError(f"there is no reward at {str(path)[:200]}")
    return str(path.resolve()) if named is None else f"{path.resolve()}:{named[1]}"


def label_of(given: Any) -> str:
    """Name a model or data in a word or two."""
    source = given.source if isinstance(given, LanguageModel) else source_of(given)
    if not source or source == IN_MEMORY:
        return "model" if isinstance(given, LanguageModel) else "data"
    path = Path(source)
    return path.parent.name if path.name == "model" else path.stem if path.suffix == ".gguf" else path.name
