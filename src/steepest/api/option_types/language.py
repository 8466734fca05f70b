"""The options of language models, for editors and type checkers.

Written from the configs by `make options`; tests/unit/test_option_types.py fails where it is not current. What an
option means stands in its config, and in the help of the command.
"""

# fmt: off
# ruff: noqa: D101, E501

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol, TypedDict, Unpack, overload

from steepest.api.option_types.shared import SharedOptions

if TYPE_CHECKING:
    import os

    from steepest.language.models.language_model import LanguageModel

class LanguageArguments(TypedDict, total=False):
    eval_data: Any
    out: str | os.PathLike[str] | None
    quiet: bool

class LanguageRunOptions(SharedOptions, total=False):
    dtype: Literal["float32", "bfloat16"]
    quantization: Literal["none", "4bit"]
    device: Literal["auto", "cpu", "cuda"]
    fsdp: bool
    merge_adapters: bool
    chat_template: str | None
    template_kwargs: str | None

class TrainingOptions(TypedDict, total=False):
    epochs: int
    max_steps: int | None
    batch_size: int
    micro_batch_size: int
    max_length: int | None
    learning_rate: float | None
    schedule: Literal["constant", "linear", "cosine"]
    warmup: float
    weight_decay: float
    adam_beta2: float
    max_gradient_norm: float
    precision: Literal["float32", "bfloat16"]
    gradient_checkpointing: bool
    lora_rank: int
    lora_alpha: float
    lora_dropout: float
    eval_fraction: float
    drop_bad_rows: bool
    columns: tuple[str, ...] | list[str]

class SFTOptions(TrainingOptions, LanguageRunOptions, total=False):
    packing: bool
    group_by_length: bool

class DPOOptions(TrainingOptions, LanguageRunOptions, total=False):
    kl_coef: float
    loss: Literal["dpo", "ipo", "hinge", "smoothed", "robust", "length_normalized"]
    flip_probability: float
    sft_coef: float
    reference: Literal["precomputed", "on_the_fly"]
    reference_cache: str | None

class RewardModelOptions(TrainingOptions, LanguageRunOptions, total=False):
    centring_coef: float

class RLHFOptions(TrainingOptions, total=False):
    group_size: int
    max_new_tokens: int
    generation_batch_size: int
    temperature: float
    missing_eos_penalty: float
    kl_coef: float
    target_kl: float | None
    kl_horizon: float
    update_epochs: int
    minibatches: int
    clip_epsilon: float

class TokenPPOOptions(RLHFOptions, LanguageArguments, LanguageRunOptions, total=False):
    gamma: float
    gae_lambda: float
    value_coef: float
    normalize_advantage: bool
    scale_rewards: bool

class RLOOOptions(RLHFOptions, LanguageArguments, LanguageRunOptions, total=False):
    scale_rewards: bool

class GRPOOptions(RLHFOptions, LanguageArguments, LanguageRunOptions, total=False):
    pass

class RLHF(Protocol):
    """``steepest.rlhf``: each of its algorithms has its own options."""
    @overload
    def __call__(self, model: LanguageModel | str | os.PathLike[str], data: Any, reward: Any, *, algorithm: Literal["ppo"] = ..., **options: Unpack[TokenPPOOptions]) -> LanguageModel: ...
    @overload
    def __call__(self, model: LanguageModel | str | os.PathLike[str], data: Any, reward: Any, *, algorithm: Literal["rloo"], **options: Unpack[RLOOOptions]) -> LanguageModel: ...
    @overload
    def __call__(self, model: LanguageModel | str | os.PathLike[str], data: Any, reward: Any, *, algorithm: Literal["grpo"], **options: Unpack[GRPOOptions]) -> LanguageModel: ...
