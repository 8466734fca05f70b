"""Causal language models and their tokenizers: loading, adapters, and saving as a plain Hugging Face folder.

A model is any ``AutoModelForCausalLM``. Weights are read from safetensors or GGUF, never unpickled, and no code that
comes with a model is run.
"""

from __future__ import annotations

import copy
import io
import logging
import os
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from steepest.errors import RunError, UsageError
from steepest.language.mishaps import explained, refuse_absent, refuse_missing
from steepest.products import as_computed
from steepest.types import TokenBatch

Dtype = Literal["float32", "bfloat16"]
Device = Literal["auto", "cpu", "cuda"]
Quantization = Literal["none", "4bit"]


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
        input_ids=batch.tokens,
        attention_mask=batch.attention_mask,
        position_ids=batch.position_ids,
        use_cache=False,
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


# ---------------------------------------------------------------------------------------------------------------------
# Loading
# ---------------------------------------------------------------------------------------------------------------------


def require_language() -> None:
    """UsageError that says what to install, where the packages of the ``language`` extra are missing."""
    try:
        import tokenizers  # noqa: F401  # pyright: ignore[reportUnusedImport]
        import transformers  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError as error:
        raise UsageError(
            f'language models need the package {error.name}. Install the extra: pip install "steepest[language]"'
        ) from error


def load_model(
    source: str | os.PathLike[str],
    *,
    dtype: Dtype = "float32",
    device: Device = "auto",
    quantization: Quantization = "none",
    chat_template: str | None = None,
) -> LanguageModel:
    """Load a causal language model and its tokenizer.

    Args:      source: a Hugging Face id, a folder that ``save_pretrained`` wrote (a model or peft adapters), a GGUF
               file, or the folder of a steepest run; dtype of the weights; quantization: "4bit" holds frozen weights
               in NF4 (bitsandbytes), to be trained through adapters; chat_template: Jinja text, or a file of it, in
               place of the model's own
    Raises:    UsageError where there is no such model, it has no end token, or its weights are pickled
    Verified:  tests/unit/test_language_models.py::test_saving_and_loading_gives_the_same_logits
    """
    require_language()
    import transformers

    where = _locate(str(source))
    if isinstance(where, str):
        refuse_absent(where)
    adapter = where / "adapter_config.json" if isinstance(where, Path) and where.is_dir() else None
    if adapter is not None and adapter.is_file():
        return _load_adapters(cast(Path, where), dtype, device, quantization, chat_template)
    place, extra = str(where), cast(dict[str, Any], {})
    options: dict[str, Any] = {"dtype": getattr(torch, dtype), "use_safetensors": True, "trust_remote_code": False}
    if isinstance(where, Path) and where.suffix == ".gguf":
        place, extra = str(where.parent), {"gguf_file": where.name}
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    on = find_device(device)
    if extra and quantization == "4bit":
        raise UsageError(f"{source} is a GGUF file; save it as a folder first, to hold its weights in 4 bits")
    if quantization == "4bit":
        options |= {"quantization_config": _four_bit(dtype), "device_map": {"": str(on)}}
    with _quiet(), explained(f"the model {source}", where):
        load: Any = transformers.AutoModelForCausalLM.from_pretrained
        model, loading = load(place, **options, **extra, output_loading_info=True)
    if not extra:  # a GGUF file that is cut off cannot be read at all
        refuse_missing(f"the model {source}", loading)
    with _quiet(), explained(f"the tokenizer of {source}", where):
        tokenizer = transformers.AutoTokenizer.from_pretrained(place, trust_remote_code=False, **extra)
    if quantization == "none":
        model = model.to(on)
    else:
        model.requires_grad_(False)
        for module in model.modules():
            # On some processors bitsandbytes repacks the weights at the first forward pass in evaluation mode, and what
            # it then computes has no backward pass: gradients would be lost without an error.
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False
    if chat_template is not None:
        tokenizer.chat_template = template_text(chat_template)
    return language_model(model, tokenizer, source=str(where.resolve()) if isinstance(where, Path) else where)


def template_text(template: str | None) -> str | None:
    """A chat template, given as Jinja text or as the path of a file of it.

    Raises:    UsageError where it is neither
    """
    if template is None or "{" in template:
        return template
    try:
        return Path(template).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"chat_template {template!r} is neither Jinja text nor a file that can be read") from error


def language_model(model: nn.Module, tokenizer: Any, *, source: str = "") -> LanguageModel:
    """A LanguageModel of a model and a tokenizer that are in memory; in evaluation mode, its end tokens looked up.

    Raises:    UsageError where neither the generation config nor the tokenizer names an end token, or the tokenizer has
               more tokens than the model
    Verified:  tests/unit/test_language_models.py::test_every_end_token_counts
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
    return lm


def _locate(source: str) -> str | Path:
    """A path that exists, or the id of a model on the Hugging Face hub."""
    path = Path(source).expanduser()
    if path.is_file():
        if path.suffix != ".gguf":
            raise UsageError(f"{source} is a file, but no .gguf; give the folder that the model was saved in")
        return path
    if path.is_dir():
        for folder in (path, path / "model", path / "interrupted-model"):
            has_model = (folder / "config.json").is_file() and not _is_run(folder)
            if has_model or (folder / "adapter_config.json").is_file():
                return folder
        if _is_run(path):
            best = path / "best-model"
            so_far = f", or take its best model so far, {best}" if best.is_dir() else ""
            raise UsageError(
                f"{source} is a run that has not ended: it holds no model yet. Finish it with --resume{so_far}"
            )
        raise UsageError(f"no model in {source}: expected a folder with the config.json of a Hugging Face model in it")
    if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source) and not source.startswith("."):
        return source
    raise UsageError(f"there is no model at {source}")


def _is_run(folder: Path) -> bool:
    return (folder / "checkpoints").is_dir() or (folder / "metrics.jsonl").is_file()


def find_device(device: Device) -> torch.device:
    """The device that a setting means.

    Raises:    UsageError for a GPU where there is none
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("device is 'cuda', but PyTorch sees no GPU here; use 'auto' or 'cpu'")
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


def _four_bit(dtype: Dtype) -> Any:
    _hush_bitsandbytes()
    try:
        import bitsandbytes  # noqa: F401  # pyright: ignore[reportUnusedImport]
        from transformers import BitsAndBytesConfig
    except ImportError as error:
        raise UsageError('4-bit weights need the package bitsandbytes: pip install "steepest[qlora]"') from error
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
    )


def _hush_bitsandbytes() -> None:
    """Importing it (peft does, where it is there) logs a warning about optional kernels for inference."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


@contextmanager
def _quiet() -> Generator[None]:
    """Transformers without its progress bars, log lines and deprecations, which would run through our display."""
    from transformers.utils import logging as their_logging

    verbosity, bars = their_logging.get_verbosity(), their_logging.is_progress_bar_enabled()
    their_logging.set_verbosity_error()
    their_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Unpacking a GGUF file shows a bar of its own: for people who wait at a terminal, not for logs.
            with nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO()):
                yield
    finally:
        their_logging.set_verbosity(verbosity)
        if bars:
            their_logging.enable_progress_bar()


# ---------------------------------------------------------------------------------------------------------------------
# Adapters
# ---------------------------------------------------------------------------------------------------------------------


def add_adapters(lm: LanguageModel, *, rank: int, alpha: float, dropout: float, seed: int) -> LanguageModel:
    """Freeze the model and put trainable low-rank adapters (LoRA) beside all its linear layers but the head.

    Equation:  W x + (alpha / rank) B A x,  A random, B = 0: at first the model is unchanged
    Source:    Hu et al. 2021; with 4-bit W, Dettmers et al. 2023 (QLoRA)
    Verified:  tests/unit/test_language_models.py::test_fresh_adapters_change_nothing
    """
    peft = _import_peft()
    if hasattr(lm.model, "peft_config"):
        raise UsageError(
            "adapters were put into this model before, when it was trained with lora_rank: go on with the model that "
            "training gave back, or load this one anew"
        )
    config = peft.LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
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


def _load_adapters(
    folder: Path, dtype: Dtype, device: Device, quantization: Quantization, chat_template: str | None
) -> LanguageModel:
    """The base model that adapters were trained on, with them in place and trainable."""
    peft = _import_peft()
    with explained(f"the adapters {folder}", folder):
        base_source = peft.PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
    if not base_source:
        raise UsageError(f"the adapters in {folder} do not say which model they belong to")
    base = load_model(base_source, dtype=dtype, device=device, quantization=quantization, chat_template=chat_template)
    tokenizer = base.tokenizer
    with _quiet(), explained(f"the adapters {folder}", folder):
        if (folder / "tokenizer_config.json").is_file():
            import transformers

            tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
            if chat_template is not None:
                tokenizer.chat_template = template_text(chat_template)
        model = peft.PeftModel.from_pretrained(base.model, str(folder), is_trainable=True, use_safetensors=True)
    return LanguageModel(model.eval(), tokenizer, base.end_tokens, str(folder.resolve()))


def _import_peft() -> Any:
    _hush_bitsandbytes()
    try:
        import peft
    except ImportError as error:
        raise UsageError('adapters need the package peft: pip install "steepest[language]"') from error
    return peft


# ---------------------------------------------------------------------------------------------------------------------
# Saving
# ---------------------------------------------------------------------------------------------------------------------


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
    model = _merged(lm) if merge and lm.has_adapters else cast(Any, lm.model)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        with _quiet():
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


def _merged(lm: LanguageModel) -> Any:
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
