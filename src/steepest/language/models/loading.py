"""A model from a folder, a file, a run or a hub."""

from __future__ import annotations

import os
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

    where = locate(str(source))
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


def _load_adapters(
    folder: Path, dtype: Dtype, device: Device, quantization: Quantization, chat_template: str | None
) -> LanguageModel:
    """The base model that adapters were trained on, with them in place and trainable."""
    peft = import_peft()
    with explained(f"the adapters {folder}", folder):
        base_source = peft.PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
    if not base_source:
        raise UsageError(f"the adapters in {folder} do not say which model they belong to")
    base = load_model(base_source, dtype=dtype, device=device, quantization=quantization, chat_template=chat_template)
    tokenizer = base.tokenizer
    with quiet(), explained(f"the adapters {folder}", folder):
        if (folder / "tokenizer_config.json").is_file():
            import transformers

            tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
            if chat_template is not None:
                tokenizer.chat_template = template_text(chat_template)
        model = peft.PeftModel.from_pretrained(base.model, str(folder), is_trainable=True, use_safetensors=True)
    return LanguageModel(model.eval(), tokenizer, base.end_tokens, str(folder.resolve()))
