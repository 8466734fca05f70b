"""A model written into a folder."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from steepest.errors import RunError, UsageError
from steepest.files.atomic import atomic_place
from steepest.language.models.language_model import LanguageModel
from steepest.language.models.packages import quiet


def save_model(
    lm: LanguageModel,
    folder: str | os.PathLike[str],
    *,
    merge: bool = False,
    weights: dict[str, Tensor] | None = None,
    write_more: Callable[[Path], None] | None = None,
) -> Path:
    """Save a folder that ``AutoModelForCausalLM`` and ``AutoTokenizer`` load, with generation config and chat template.

    A model with adapters is saved as its adapters, which name the model they belong to; or, with ``merge``, as one
    model with them added to its weights. The folder appears whole; one that was there is replaced.

    Args:      weights: in place of those that the model holds, by their names; write_more is given the folder before it
               appears, to write what else belongs in it
    Raises:    RunError when the system refuses the write
    Verified:  tests/unit/test_language_models.py::test_saving_and_loading_gives_the_same_logits,
               tests/unit/test_language_models.py::test_merged_adapters_give_the_same_logits
    """
    from safetensors import SafetensorError

    folder = Path(folder)
    model = merged(lm) if merge and lm.has_adapters else cast(Any, lm.model)
    if lm.has_adapters and not merge and not all(c.base_model_name_or_path for c in model.peft_config.values()):
        raise UsageError(
            "the adapters belong to a model made in Python, which no file holds: save that first, or merge them"
        )
    try:
        with atomic_place(folder, replace=True) as place:
            with quiet():
                model.save_pretrained(str(place), **({} if weights is None else {"state_dict": weights}))
                lm.tokenizer.save_pretrained(str(place))
            if write_more is not None:
                write_more(place)
    except SafetensorError as error:  # its writer has no other for a full disk
        raise RunError(f"could not save the model in {folder}: {' '.join(str(error).split())}") from error
    return folder


def merged(lm: LanguageModel) -> Any:
    """A copy with the adapters added to the weights: merging in place and back would change the bits of training."""
    if getattr(lm.network, "is_quantized", False):
        raise UsageError(
            "adapters on 4-bit weights cannot be merged without rounding; save them as adapters, load those with "
            "quantization='none', and merge then"
        )
    return copy.deepcopy(cast(Any, lm.model)).merge_and_unload()
