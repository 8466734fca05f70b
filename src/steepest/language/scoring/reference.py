"""The reference policy: the model as it was before training."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from steepest.errors import RunError
from steepest.files.tensors import load_tensors, save_tensors
from steepest.language.models.adapters import reference
from steepest.language.models.fingerprints import settings_fingerprint, weights_fingerprint
from steepest.language.models.language_model import LanguageModel, without_dropout
from steepest.language.scoring.pairs import pair_log_probs
from steepest.language.scoring.scoring import token_log_probs
from steepest.types import PreferenceBatch, TokenBatch


class Reference:
    """Log-probabilities under the reference: the model with fresh adapters switched off, or a frozen copy of it.

    Adapters that were there before training are part of the reference, so then it is a copy too.
    """

    def __init__(self, lm: LanguageModel, *, adapters_are_fresh: bool) -> None:
        self.switches = adapters_are_fresh
        self.lm = lm if adapters_are_fresh else frozen_copy(lm)

    @torch.no_grad()
    def log_probs(self, batch: TokenBatch, temperature: float = 1.0) -> Tensor:
        """(B, L) nats at the response's tokens, 0 elsewhere; dropout is off."""
        with without_dropout(self.lm), reference(self.lm) if self.switches else nullcontext():
            return token_log_probs(self.lm, batch, temperature=temperature)

    @torch.no_grad()
    def pair_log_probs(self, batch: PreferenceBatch, *, share_prompts: bool = False) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the chosen and of the rejected responses (B,), nats; dropout is off.

        Args:      share_prompts: as of ``pairs.pair_log_probs``
        """
        with without_dropout(self.lm), reference(self.lm) if self.switches else nullcontext():
            return pair_log_probs(self.lm, batch, share_prompts=share_prompts)


def frozen_copy(lm: LanguageModel) -> LanguageModel:
    """A copy of the model that nothing trains."""
    model = copy.deepcopy(lm.model).eval().requires_grad_(False)
    return LanguageModel(model, lm.tokenizer, lm.end_tokens, lm.source)


def reference_key(
    lm: LanguageModel,
    data_fingerprint: str,
    *,
    precision: Literal["float32", "bfloat16"],
    temperature: float = 1.0,
    share_prompts: bool = False,
    adapters_are_fresh: bool = False,
    weights: Mapping[str, Tensor] | None = None,
) -> str:
    """A hash of all that the reference's log-probabilities depend on.

    Weights and config, those of adapters among them; tokenizer and chat template; the token ids; number types and
    temperature; and whether prompts were shared, which rounds otherwise.

    Args:      share_prompts: as of ``pairs.pair_log_probs``; adapters_are_fresh: they are no part of the reference, and
               left out; weights: in place of those that the model holds, by their names

    Verified:  tests/unit/test_dpo.py::test_the_cache_is_used_and_anything_changed_recomputes,
               tests/unit/test_dpo.py::test_the_key_holds_the_settings_and_no_bookkeeping,
               tests/unit/test_dpo.py::test_fresh_adapters_share_the_cache_of_their_base
    """
    weights = lm.model.state_dict() if weights is None else weights
    if adapters_are_fresh:
        left_out = lm.parameters()
        weights = {name: tensor for name, tensor in weights.items() if name not in left_out}
    digest = hashlib.blake2b(digest_size=16)
    digest.update(weights_fingerprint(weights).encode())
    digest.update(settings_fingerprint(lm, adapters=not adapters_are_fresh).encode())
    tokenizer: Any = lm.tokenizer
    if tokenizer is not None:
        digest.update(repr(sorted(tokenizer.get_vocab().items())).encode())
        digest.update(str(tokenizer.chat_template).encode())
    digest.update(f"|{data_fingerprint}|{precision}|{temperature!r}|{lm.end_tokens}|{share_prompts}|".encode())
    return digest.hexdigest()


def load_cached(folder: Path, key: str, shapes: Sequence[tuple[int, ...]]) -> list[Tensor] | None:
    """What was saved under the key; None where there is nothing, or nothing that can be used."""
    path = folder / f"{key}.safetensors"
    if not path.exists():
        return None
    try:
        tensors, metadata = load_tensors(path)
    except RunError:
        return None
    found = [tensors.get(str(i)) for i in range(len(shapes))]
    if metadata.get("key") != key or any(x is None or tuple(x.shape) != s for x, s in zip(found, shapes, strict=True)):
        return None
    return [x for x in found if x is not None]


def save_cached(folder: Path, key: str, tensors: Sequence[Tensor]) -> None:
    """Save log-probabilities under their key."""
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder / f"{key}.safetensors", {str(i): x for i, x in enumerate(tensors)}, {"key": key})
