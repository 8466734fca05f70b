"""A language model with its tokenizer."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn

from steepest.errors import UsageError
from steepest.learner.onednn import as_computed
from steepest.types import TokenBatch


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model with its tokenizer.

    ``model`` is what is called and trained: a ``PreTrainedModel``, or a ``PeftModel`` around one. ``end_tokens`` are
    all tokens at which a response ends: those of the generation config and the tokenizer's own.
    """

    model: nn.Module
    tokenizer: Any
    end_tokens: tuple[int, ...]
    source: str = ""
    """Where it was loaded from; empty for a model made in Python."""

    def __repr__(self) -> str:
        size = sum(p.numel() for p in self.model.parameters())
        adapters = " with adapters" if self.has_adapters else ""
        return f"LanguageModel({self.source or 'made in Python'}: {size:,} parameters{adapters}, on {self.device})"

    @property
    def has_adapters(self) -> bool:
        """Whether the weights that are trained are adapters beside the model's own."""
        return hasattr(self.model, "get_base_model")  # peft marks the model within by peft_config too

    @property
    def network(self) -> Any:
        """The model itself, without what peft wraps around it (its adapters stay in place)."""
        return cast(Any, self.model).get_base_model() if self.has_adapters else self.model

    @property
    def backbone(self) -> nn.Module:
        """Everything before the logits: tokens to hidden states."""
        return self.network.base_model

    @property
    def head(self) -> nn.Module:
        """Hidden states to logits."""
        return self.network.get_output_embeddings()

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def pad_token(self) -> int:
        """What fills a batch's empty places; masks, never this number, say where they are."""
        pad = self.tokenizer.pad_token_id
        return self.end_tokens[0] if pad is None else int(pad)

    @property
    def end_token(self) -> int:
        """The token that ends a response where data has none: the tokenizer's own, if it names one."""
        own = self.tokenizer.eos_token_id
        return self.end_tokens[0] if own is None else int(own)

    @property
    def vocabulary(self) -> int:
        """Number of logits, which may exceed the tokenizer's tokens."""
        return int(self.network.config.get_text_config().vocab_size)

    @property
    def context(self) -> int | None:
        """The longest sequence that the model was made for, None where it does not say."""
        length = getattr(self.network.config.get_text_config(), "max_position_embeddings", None)
        return None if length is None else int(length)

    @cached_property
    def splits(self) -> bool:
        """Whether the logits are just the head applied to the hidden states.

        Some architectures scale or cap the logits after their head. Asked by trying, both ways, on four tokens; with
        logits as large as training may make them, since a cap does nothing to those of a fresh model.
        """
        if self.network.get_output_embeddings() is None:
            return False
        tokens = torch.arange(4, device=self.device).unsqueeze(0) % self.vocabulary
        with torch.no_grad(), without_dropout(self):
            hidden = cast(Any, self.backbone)(input_ids=tokens, use_cache=False).last_hidden_state
            factor = 1e3 / self.head(hidden).abs().max().clamp(min=1e-30)
            hook = self.head.register_forward_hook(lambda module, given, logits: factor * logits)
            try:
                whole = self.network(input_ids=tokens, use_cache=False).logits
                parts = self.head(hidden)
            finally:
                hook.remove()
        return whole.shape == parts.shape and torch.allclose(whole, parts, rtol=1e-4, atol=1e-2)

    @cached_property
    def remembers(self) -> bool:
        """Whether the model goes on from a cache as it reads a whole sequence.

        Some architectures have a memory of another kind than the cache that they are given, and pass over that in
        silence. Asked by trying: what follows four tokens, read at once, and in pieces as generation does.
        """
        from transformers import DynamicCache

        tokens = torch.arange(4, device=self.device).unsqueeze(0) % self.vocabulary
        with torch.no_grad(), without_dropout(self), torch.autocast(self.device.type, enabled=False):
            whole = self.network(input_ids=tokens, use_cache=False).logits[0, -1].float()
            try:
                cache, parts = DynamicCache(config=self.network.config), whole
                for start, end in ((0, 2), (2, 3), (3, 4)):
                    seen = torch.ones((1, end), dtype=torch.bool, device=self.device)
                    position = torch.arange(start, end, device=self.device).unsqueeze(0)
                    given = {"input_ids": tokens[:, start:end], "attention_mask": seen, "position_ids": position}
                    output = self.network(**given, past_key_values=cache, use_cache=True)
                    parts = output.logits[0, -1].float()
            except torch.OutOfMemoryError:
                raise
            except Exception:  # whatever its code runs into that was not made for it
                return False
        # Rounding in bfloat16 or 4 bits is far below what forgetting costs, which is as large as the logits vary.
        return float((parts - whole).norm()) <= 0.1 * float((whole - whole.mean()).norm())

    def parameters(self) -> dict[str, nn.Parameter]:
        """What training changes, by name; a tied weight once."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}


def hidden_states(lm: LanguageModel, batch: TokenBatch) -> Tensor:
    """Hidden states of the last layer, before the head.

    Without a cache: with one, the mask that keeps packed sequences apart would not be made.

    Args:      batch on the model's device
    Returns:   (B, L, D), carries gradient; what stands at padding means nothing
    Verified:  tests/unit/test_language_batching.py::test_packed_sequences_do_not_see_each_other
    """
    output = cast(Any, lm.backbone)(
        input_ids=batch.tokens, attention_mask=batch.attention_mask, position_ids=batch.position_ids, use_cache=False
    )
    return output.last_hidden_state


@contextmanager
def without_dropout(lm: LanguageModel) -> Generator[None]:
    """Dropout off inside, as it was before after; gradient checkpointing stays on where it was.

    Transformers checkpoints a layer only in training mode, so the layers stay in it while all that is in them leaves.
    """
    before = {module: module.training for module in lm.model.modules()}
    lm.model.eval()
    if torch.is_grad_enabled() and "transformers" in sys.modules:
        from transformers.modeling_layers import GradientCheckpointingLayer

        for module, training in before.items():
            if isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing:
                module.training = training
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training


def checkpoint_activations(lm: LanguageModel) -> None:
    """Keep only each layer's input for the backward pass and compute the rest again: less memory, a third more time."""
    network = lm.network
    # Transformers before 5.2x has it under its old name only.
    enable = getattr(network, "activation_checkpointing_enable", None) or network.gradient_checkpointing_enable
    enable({"use_reentrant": False, "context_fn": as_computed})


def keep_activations(lm: LanguageModel) -> None:
    """Undo ``checkpoint_activations``."""
    network = lm.network
    disable = getattr(network, "activation_checkpointing_disable", None) or network.gradient_checkpointing_disable
    disable()


def language_model(model: nn.Module, tokenizer: Any, *, source: str = "") -> LanguageModel:
    """A LanguageModel of a model and a tokenizer that are in memory; in evaluation mode, its end tokens looked up.

    Raises:    UsageError where neither the generation config nor the tokenizer names an end token, the tokenizer has
               more tokens than the model, or the model looks ahead
    Verified:  tests/unit/test_language_models.py::test_every_end_token_counts,
               tests/unit/test_language_models.py::test_a_model_that_looks_ahead_is_refused
    """
    config = getattr(model, "generation_config", None)
    named = getattr(config, "eos_token_id", None)
    listed = cast(list[int], named if isinstance(named, list) else [] if named is None else [named])
    own = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    end_tokens = tuple(dict.fromkeys([*(int(token) for token in listed), *own]))
    if not end_tokens:
        raise UsageError(
            f"{source or 'the model'} has no end token: neither its generation config nor its tokenizer names one. Set "
            "tokenizer.eos_token, so that responses can end"
        )
    lm = LanguageModel(model, tokenizer, end_tokens, source)
    if len(tokenizer) > lm.vocabulary:
        raise UsageError(
            f"the tokenizer has {len(tokenizer)} tokens, the model {lm.vocabulary}; they do not belong together, or "
            "the model needs resize_token_embeddings"
        )
    # An embedding never learns its padding row. Where padding is the end token, it would not learn to read that.
    lm.network.get_input_embeddings().padding_idx = None
    model.eval()
    _check_causal(lm)
    return lm


def _check_causal(lm: LanguageModel) -> None:
    """UsageError where what the model says of a token depends on later ones, tried on five tokens.

    Some architectures that fill gaps in a text, such as BERT, load as causal models too.
    """
    tokens = torch.arange(5, device=lm.device).repeat(2, 1) % lm.vocabulary
    tokens[1, 3:] = (tokens[1, 3:] + 2) % lm.vocabulary
    with torch.no_grad(), torch.autocast(lm.device.type, enabled=False):
        one, other = lm.network(input_ids=tokens).logits[:, :3].float()
    tolerance = 1e-4 if next(lm.model.parameters()).dtype in (torch.float32, torch.float64) else 5e-2
    if float((one - other).abs().max()) > tolerance * float((one - one.mean()).abs().max()):
        raise UsageError(
            f"{lm.source or 'the model'} is no causal language model: what {type(lm.network).__name__} says of a token "
            "depends on later ones. Take a model that was made to continue texts"
        )
