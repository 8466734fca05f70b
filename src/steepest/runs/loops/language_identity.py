"""Whether a language run that is resumed has what it began with: hashes of its model and reward, and what to say."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from torch import nn

from steepest.language.models.fingerprints import settings_fingerprint, weights_fingerprint
from steepest.language.models.language_model import LanguageModel
from steepest.language.models.packages import Quantization
from steepest.language.parallel import processes

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
"""What to say of fingerprints that are not as they were."""


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
