"""Low-rank adapters (LoRA) on a model."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, cast

from torch import nn

from steepest.errors import UsageError
from steepest.files.space import require_space
from steepest.language.models.language_model import LanguageModel
from steepest.language.models.packages import hush_bitsandbytes
from steepest.seeding import drawing_from


def add_adapters(lm: LanguageModel, *, rank: int, alpha: float, dropout: float, seed: int) -> LanguageModel:
    """Freeze the model and put trainable low-rank adapters (LoRA) beside all its linear layers but the head.

    Equation:  W x + (alpha / rank) B A x,  A random, B = 0: at first the model is unchanged
    Source:    Hu et al. 2021; with 4-bit W, Dettmers et al. 2023 (QLoRA)
    Verified:  tests/unit/test_language_models.py::test_fresh_adapters_change_nothing
    """
    peft = import_peft()
    if hasattr(lm.model, "peft_config"):
        raise UsageError(
            "adapters were put into this model before, when it was trained with lora_rank: go on with the model that "
            "training gave back, or load this one anew"
        )
    linear = [module for module in lm.model.modules() if isinstance(module, nn.Linear)]
    sizes = 4 * rank * sum(module.in_features + module.out_features for module in linear)
    require_space(4 * sizes, f"adapters of rank {rank:,} in training", "give a smaller lora_rank")
    config = peft.LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    with drawing_from(seed), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(lm.model, config)
    lm = LanguageModel(model.eval(), lm.tokenizer, lm.end_tokens, lm.source)
    name_base(lm, lm.source)
    return lm


def name_base(lm: LanguageModel, source: str) -> None:
    """Write down which model the adapters belong to; saved, they find it by that."""
    for config in cast(Any, lm.model).peft_config.values():
        config.base_model_name_or_path = source


def without_adapters(lm: LanguageModel) -> LanguageModel:
    """A copy of the model that the adapters were put in."""
    return LanguageModel(copy.deepcopy(cast(Any, lm.model)).unload(), lm.tokenizer, lm.end_tokens, lm.source)


@contextmanager
def reference(lm: LanguageModel) -> Generator[LanguageModel]:
    """The model without its adapters: the reference policy that adapters start from, at no cost in memory.

    Raises:    UsageError where there are no adapters; then a copy of the model is the reference
    Verified:  tests/unit/test_language_models.py::test_the_reference_is_the_model_without_adapters
    """
    if not lm.has_adapters:
        raise UsageError("the model has no adapters to switch off; keep a copy of it as the reference")
    with cast(Any, lm.model).disable_adapter():
        yield lm


def import_peft() -> Any:
    """Return the package peft; UsageError that says how to install it."""
    hush_bitsandbytes()
    try:
        import peft
    except ImportError as error:
        raise UsageError('adapters need the package peft: pip install "steepest[language]"') from error
    return peft
