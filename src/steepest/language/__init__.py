"""Language models as policies: the prompt is the initial state, a token is an action, a response is an episode.

The names below load on first use: nothing here needs the ``language`` extra until it is called.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steepest.language.data.datasets import load_preferences as load_preferences
    from steepest.language.data.datasets import load_prompts as load_prompts
    from steepest.language.data.datasets import load_sft as load_sft
    from steepest.language.models.language_model import LanguageModel as LanguageModel
    from steepest.language.models.language_model import language_model as language_model
    from steepest.language.models.loading import load_model as load_model
    from steepest.language.models.saving import save_model as save_model
    from steepest.language.models.scratch import tiny_llama as tiny_llama
    from steepest.language.models.scratch import train_tokenizer as train_tokenizer
    from steepest.language.scoring.generation import generate as generate
    from steepest.language.scoring.scoring import token_log_probs as token_log_probs
    from steepest.language.training.dpo import DPOConfig as DPOConfig
    from steepest.language.training.reward_model import RewardModel as RewardModel
    from steepest.language.training.reward_model import RewardModelConfig as RewardModelConfig
    from steepest.language.training.reward_model import load_reward_model as load_reward_model
    from steepest.language.training.reward_model import save_reward_model as save_reward_model
    from steepest.language.training.rlhf import GRPOConfig as GRPOConfig
    from steepest.language.training.rlhf import RLOOConfig as RLOOConfig
    from steepest.language.training.rlhf import TokenPPOConfig as TokenPPOConfig
    from steepest.language.training.sft import SFTConfig as SFTConfig

_HOME = {
    "DPOConfig": "training.dpo",
    "RewardModel": "training.reward_model",
    "RewardModelConfig": "training.reward_model",
    "load_reward_model": "training.reward_model",
    "save_reward_model": "training.reward_model",
    "GRPOConfig": "training.rlhf",
    "RLOOConfig": "training.rlhf",
    "TokenPPOConfig": "training.rlhf",
    "LanguageModel": "models.language_model",
    "SFTConfig": "training.sft",
    "generate": "scoring.generation",
    "language_model": "models.language_model",
    "load_model": "models.loading",
    "load_preferences": "data.datasets",
    "load_prompts": "data.datasets",
    "load_sft": "data.datasets",
    "save_model": "models.saving",
    "tiny_llama": "models.scratch",
    "token_log_probs": "scoring.scoring",
    "train_tokenizer": "models.scratch",
}

__all__ = list(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'steepest.language' has no attribute {name!r}")
    return getattr(importlib.import_module(f"steepest.language.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_HOME)
