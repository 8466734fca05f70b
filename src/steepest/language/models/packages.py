"""The packages that language models need, what they may run on, and quiet."""

from __future__ import annotations

import importlib.util
import io
import logging
import sys
import warnings
from collections.abc import Generator
from contextlib import contextmanager, nullcontext, redirect_stderr
from typing import TYPE_CHECKING, Any, Literal

from steepest.errors import UsageError

if TYPE_CHECKING:
    import torch

Dtype = Literal["float32", "bfloat16"]
Device = Literal["auto", "cpu", "cuda"]
Quantization = Literal["none", "4bit"]


def require_language() -> None:
    """UsageError that says what to install, where the packages of the ``language`` extra are missing."""
    for package in ("tokenizers", "transformers"):  # looked up and not imported: transformers takes seconds
        if importlib.util.find_spec(package) is None:
            raise UsageError(
                f'language models need the package {package}. Install the extra: pip install "steepest[language]"'
            )


def find_device(device: Device) -> torch.device:
    """The device that a setting means.

    Raises:    UsageError for a GPU where there is none
    """
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("device is 'cuda', but PyTorch sees no GPU here; use 'auto' or 'cpu'")
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


def four_bit(dtype: Dtype) -> Any:
    """Return the settings of 4-bit weights (QLoRA: NF4, quantised twice)."""
    import torch

    hush_bitsandbytes()
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


def hush_bitsandbytes() -> None:
    """Importing it (peft does, where it is there) logs a warning about optional kernels for inference."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


@contextmanager
def quiet() -> Generator[None]:
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
