"""Settings of a run on a language model, and the trainer of every algorithm."""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

from steepest.fields import Count, checked_options
from steepest.language.models.packages import Device, Dtype, Quantization
from steepest.language.training.config import TrainingConfig
from steepest.runs.options.config import SharedConfig, refuse_unknown

TRAINERS = {
    "sft": ("sft", "SFT", "SFTConfig"),
    "dpo": ("dpo", "DPO", "DPOConfig"),
    "reward": ("reward_model", "RewardTrainer", "RewardModelConfig"),
    "ppo": ("rlhf", "TokenPPO", "TokenPPOConfig"),
    "rloo": ("rlhf", "RLOO", "RLOOConfig"),
    "grpo": ("rlhf", "GRPO", "GRPOConfig"),
}
"""Algorithm -> file of its trainer and, in configs/, of its settings; the name of the one, and of the other."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageRunConfig(SharedConfig):
    """Settings of a run on a language model that no trainer knows of."""

    dtype: Dtype = "float32"
    """Number type of the weights. bfloat16 is for frozen ones, under adapters."""
    quantization: Quantization = "none"
    """Hold the frozen weights in 4 bits (QLoRA); needs lora_rank."""
    device: Device = "auto"
    """Device of the model; auto takes a GPU if there is one."""
    fsdp: bool = False
    """Spread weights, gradients and AdamW's moments over the processes that torchrun started (FSDP2), for models that a
    GPU cannot hold; sft and dpo, of whole models."""
    keep_checkpoints: Count = 2
    """Newest checkpoints kept; each holds the trained weights three times over, with AdamW's moments."""
    merge_adapters: bool = False
    """Save the trained model with its adapters added to the weights, instead of the adapters alone."""
    chat_template: str | None = None
    """A chat template in place of the model's own: Jinja text, or a file of it."""
    template_kwargs: str | None = None
    """Values of the chat template's arguments, as JSON: '{"enable_thinking": false}'. They are kept in the template
    that is saved with the model."""


def find_trainer(algorithm: str) -> Any:
    """Import the trainer of an algorithm for language models."""
    module, name, _ = TRAINERS[algorithm]
    return getattr(importlib.import_module(f"steepest.language.training.{module}"), name)


def find_trainer_config(algorithm: str) -> type[TrainingConfig]:
    """The Config of an algorithm for language models, without loading torch."""
    module, _, name = TRAINERS[algorithm]
    return getattr(importlib.import_module(f"steepest.language.training.configs.{module}"), name)


def config_types(algorithm: str) -> tuple[type[LanguageRunConfig], type[TrainingConfig]]:
    """Return the types of a run's settings and of its trainer's."""
    return LanguageRunConfig, find_trainer_config(algorithm)


def resolve_language_options(algorithm: str, options: dict[str, Any]) -> tuple[LanguageRunConfig, TrainingConfig]:
    """Split options into run settings and the trainer's config, both checked."""
    kind = find_trainer_config(algorithm)
    run_fields = [f.name for f in dataclasses.fields(LanguageRunConfig)]
    config_fields = [f.name for f in dataclasses.fields(kind)]
    refuse_unknown(options, run_fields + config_fields, algorithm)
    settings = checked_options(LanguageRunConfig, {k: v for k, v in options.items() if k in run_fields})
    config = checked_options(kind, {k: v for k, v in options.items() if k in config_fields})
    return LanguageRunConfig(**settings), kind(**config)
