"""What can be wrong with the files of a model, said in a line."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from steepest.errors import SteepestError, UsageError

HUB_SECONDS = 10.0
"""How long the hub may take to say whether it has a model."""


@contextmanager
def explained(what: str, where: str | Path) -> Generator[None]:
    """Turn what libraries raise about a model's files into one UsageError; ``where`` is a path, or an id on the hub."""
    try:
        yield
    except (SteepestError, MemoryError):
        raise
    except Exception as error:  # on damaged files their readers raise whatever they run into
        if "out of memory" in str(error) or "allocate memory" in str(error):
            raise
        raise UsageError(f"{what} cannot be loaded: {_why(error, where)}") from error


def _why(error: Exception, where: str | Path) -> str:
    from safetensors import SafetensorError

    said = " ".join(str(error).split())
    if "trust_remote_code" in said:
        return "it comes with code of its own, which is never run; take a model whose architecture transformers has"
    if "backend tokenizer" in said:
        return "there is no tokenizer in it that can be read, such as a tokenizer.json"
    if isinstance(where, str):
        return f"there is no such folder here, and of the one on the Hugging Face hub: {said}"
    if isinstance(error, SafetensorError):
        return f"its weights are damaged ({said}); copy or download them again"
    if not any(where.glob("*.safetensors")) and any(where.glob("*.bin")):
        return (
            "its weights are pickled, and reading a pickle may run any code; save them as safetensors where you trust "
            "them (save_pretrained of a recent transformers does)"
        )
    expected = isinstance(error, (OSError, ValueError, ImportError))
    return said if expected and said else f"{type(error).__name__}: {said}"


def refuse_absent(identity: str) -> None:
    """UsageError if a model is neither in the hub's cache here nor on the hub: loading it would try for a minute."""
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import RepositoryNotFoundError

    files = ("config.json", "adapter_config.json")
    here = f"there is no model at {identity}: no such folder is here, and"
    try:
        if not any(isinstance(try_to_load_from_cache(identity, name), str) for name in files):
            HfApi().model_info(identity, timeout=HUB_SECONDS)
    except RepositoryNotFoundError as error:
        raise UsageError(f"{here} the Hugging Face hub has no model of this name, or none for you to see") from error
    except Exception as error:  # each way to be without a network has an exception of its own
        said = " ".join(str(error).split())
        raise UsageError(f"{here} the Hugging Face hub could not be asked ({said or type(error).__name__})") from error


def refuse_missing(what: str, loading: dict[str, Any]) -> None:
    """UsageError if the files lack weights: the library would draw them at random, and go on."""
    missing = sorted(loading["missing_keys"])
    if missing:
        raise UsageError(
            f"{what} lacks {len(missing)} of its weights, such as {missing[0]}: its files are incomplete, or it is no "
            "causal language model"
        )
