"""A model from a folder, a file, a run or a hub."""

from __future__ import annotations

import os
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch

from steepest.errors import UsageError
from steepest.language.models.adapters import import_peft
from steepest.language.models.language_model import LanguageModel, language_model
from steepest.language.models.load_errors import explained, refuse_absent, refuse_missing
from steepest.language.models.packages import (
    Device,
    Dtype,
    Quantization,
    find_device,
    four_bit,
    quiet,
    require_language,
)
from steepest.language.models.places import locate
from steepest.language.models.templates import template_arguments, template_text, with_arguments

_loading = threading.RLock()


@contextmanager
def _one_at_a_time() -> Generator[None]:
    """Let threads take turns: transformers loads by settings of the process, and drew tied weights anew beside others.

    Verified:  tests/unit/test_seeding.py::test_models_load_side_by_side
    """
    with _loading:
        yield


@_one_at_a_time()
def load_model(
    source: str | os.PathLike[str],
    *,
    dtype: Dtype = "float32",
    device: Device = "auto",
    quantization: Quantization = "none",
    chat_template: str | None = None,
    template_kwargs: str | Mapping[str, Any] | None = None,
) -> LanguageModel:
    """Load a causal language model and its tokenizer.

    Args:      source: a Hugging Face id, a folder that ``save_pretrained`` wrote (a model or peft adapters), a GGUF
               file, or the folder of a steepest run; dtype of the weights; quantization: "4bit" holds frozen weights
               in NF4 (bitsandbytes), to be trained through adapters; chat_template: Jinja text, or a file of it, in
               place of the model's own; template_kwargs: values of the template's arguments, such as enable_thinking
    Raises:    UsageError where there is no such model, it has no end token, its weights are pickled, or it looks ahead
    Verified:  tests/unit/test_language_models.py::test_saving_and_loading_gives_the_same_logits,
               tests/unit/test_language_models.py::test_a_model_that_looks_ahead_is_refused
    """
    require_language()
    import transformers

    if not isinstance(source, (str, os.PathLike)):  # pyright: ignore[reportUnnecessaryIsInstance]
        kind = type(source).__name__
        in_memory = " A model in memory goes with its tokenizer: steepest.language.language_model(model, tokenizer)"
        hint = in_memory if isinstance(source, torch.nn.Module) else ""
        raise UsageError(f"the model is of type {kind}; expected the id of a model, a folder, or a GGUF file.{hint}")
    where = locate(str(source))
    if isinstance(where, str):
        refuse_absent(where)
    adapter = where / "adapter_config.json" if isinstance(where, Path) and where.is_dir() else None
    if adapter is not None and adapter.is_file():
        return _load_adapters(cast(Path, where), dtype, device, quantization, chat_template, template_kwargs)
    place, extra = str(where), cast(dict[str, Any], {})
    options: dict[str, Any] = {"dtype": getattr(torch, dtype), "use_safetensors": True, "trust_remote_code": False}
    if isinstance(where, Path) and where.suffix == ".gguf":
        place, extra = str(where.parent), {"gguf_file": where.name}
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    on = find_device(device)
    if extra and quantization == "4bit":
        raise UsageError(f"{source} is a GGUF file; save it as a folder first, to hold its weights in 4 bits")
    if quantization == "4bit":
        options |= {"quantization_config": four_bit(dtype), "device_map": {"": str(on)}}
    with quiet(), explained(f"the model {source}", where):
        load: Any = transformers.AutoModelForCausalLM.from_pretrained
        model, loading = load(place, **options, **extra, output_loading_info=True)
    if not extra:  # a GGUF file that is cut off cannot be read at all
        refuse_missing(f"the model {source}", loading)
    with quiet(), explained(f"the tokenizer of {source}", where):
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
    _set_template(tokenizer, chat_template, template_kwargs)
    with explained(f"the model {source}", where):
        return language_model(model, tokenizer, source=str(where.resolve()) if isinstance(where, Path) else where)


def _set_template(tokenizer: Any, template: str | None, arguments: str | Mapping[str, Any] | None) -> None:
    if template is not None:
        tokenizer.chat_template = template_text(template)
    if given := template_arguments(arguments):
        tokenizer.chat_template = with_arguments(tokenizer.chat_template, given)


def _load_adapters(
    folder: Path,
    dtype: Dtype,
    device: Device,
    quantization: Quantization,
    chat_template: str | None,
    template_kwargs: str | Mapping[str, Any] | None,
) -> LanguageModel:
    """The base model that adapters were trained on, with them in place and trainable."""
    peft = import_peft()
    with explained(f"the adapters {folder}", folder):
        base_source = peft.PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
    if not base_source:
        raise UsageError(f"the adapters in {folder} do not say which model they belong to")
    if (Path(str(base_source)) / "adapter_config.json").is_file():
        raise UsageError(f"the adapters in {folder} belong to {base_source}, which are adapters too; expected a model")
    base = load_model(base_source, dtype=dtype, device=device, quantization=quantization, chat_template=chat_template)
    tokenizer = base.tokenizer
    with quiet(), explained(f"the adapters {folder}", folder):
        if (folder / "tokenizer_config.json").is_file():
            import transformers

            tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
            _set_template(tokenizer, chat_template, None)
        _set_template(tokenizer, None, template_kwargs)
        model = peft.PeftModel.from_pretrained(base.model, str(folder), is_trainable=True, use_safetensors=True)
    return LanguageModel(model.eval(), tokenizer, base.end_tokens, str(folder.resolve()))
