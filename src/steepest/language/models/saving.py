"""A model written into a folder."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from steepest.errors import RunError, UsageError
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
    folder = Path(folder)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    model = merged(lm) if merge and lm.has_adapters else cast(Any, lm.model)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        with quiet():
            if lm.has_adapters and not merge and not all(c.base_model_name_or_path for c in model.peft_config.values()):
                raise UsageError(
                    "the adapters belong to a model made in Python, which no file holds: save that first, or merge them"
                )
            model.save_pretrained(str(temporary), **({} if weights is None else {"state_dict": weights}))
            lm.tokenizer.save_pretrained(str(temporary))
        if write_more is not None:
            write_more(temporary)
        _replace_folder(temporary, folder)
    except OSError as error:
        raise RunError(f"could not save the model in {folder}: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def merged(lm: LanguageModel) -> Any:
    """A copy with the adapters added to the weights: merging in place and back would change the bits of training."""
    if getattr(lm.network, "is_quantized", False):
        raise UsageError(
            "adapters on 4-bit weights cannot be merged without rounding; save them as adapters, load those with "
            "quantization='none', and merge then"
        )
    return copy.deepcopy(cast(Any, lm.model)).merge_and_unload()


def _replace_folder(new: Path, place: Path) -> None:
    """Rename a finished folder over another one."""
    old = place.with_name(f".{place.name}.{os.getpid()}.old")
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():
        place.rename(old)
    new.rename(place)
    shutil.rmtree(old, ignore_errors=True)
