"""Hashes of models and rows, by which a cache or a resumed run knows whether it has the same ones."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor

from steepest.language.models.language_model import LanguageModel

BOOKKEEPING = {
    "architectures",
    "auto_mapping",
    "base_model_name_or_path",
    "dtype",
    "inference_mode",
    "peft_version",
    "revision",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}
"""Settings that say where a model comes from, or how it was saved, and change nothing that it computes."""


def weights_fingerprint(weights: Mapping[str, Tensor]) -> str:
    """A hash of tensors, their names, shapes and number types.

    Verified:  tests/unit/test_dpo.py::test_the_cache_is_used_and_anything_changed_recomputes
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}|".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def settings_fingerprint(lm: LanguageModel, *, adapters: bool = True) -> str:
    """A hash of what a model computes with besides its weights: its config, end tokens, and its adapters' configs.

    Args:      adapters: False leaves theirs out
    Verified:  tests/unit/test_dpo.py::test_the_key_holds_the_settings_and_no_bookkeeping
    """
    settings: list[Any] = [lm.network.config.to_dict(), lm.end_tokens]
    if adapters and lm.has_adapters:
        model = cast(Any, lm.model)
        settings += [{name: config.to_dict() for name, config in model.peft_config.items()}, model.active_adapters]
    return rows_fingerprint(_without_bookkeeping(part) for part in settings)


def rows_fingerprint(rows: Iterable[Any]) -> str:
    """A hash of rows as they are, whatever their columns hold.

    Verified:  tests/unit/test_language_data.py::test_a_hash_of_rows_is_of_all_that_they_hold
    """
    digest = hashlib.blake2b(digest_size=16)
    for row in rows:
        digest.update(json.dumps(row, skipkeys=True, default=_plain).encode())
        digest.update(b"|")
    return digest.hexdigest()


def _without_bookkeeping(value: Any) -> Any:
    """Settings, sorted by their names, without those that change nothing, on every level."""
    if not isinstance(value, Mapping):
        return value
    items = {str(name): part for name, part in cast(Mapping[Any, Any], value).items()}
    kept = (name for name in sorted(items) if name not in BOOKKEEPING and not name.startswith("_"))
    return {name: _without_bookkeeping(items[name]) for name in kept}


def _plain(value: Any) -> Any:
    """What JSON has no form for, in one that is the same in every process."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, (set, frozenset)):
        return sorted(map(repr, cast(Iterable[Any], value)))
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))
