"""Find running statistics that an environment keeps within itself, where no checkpoint and no evaluation has them."""

from __future__ import annotations

from typing import Any

from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv, VectorWrapper

STATISTICS = {"obs_rms": "normalize_obs", "return_rms": "normalize_reward", "ret_rms": "normalize_reward"}
"""The attribute in which wrappers keep them, Gymnasium's and, after OpenAI's baselines, many people's own; and the
option that takes the wrapper's place."""


def inner_statistics(venv: VectorEnv[Any, Any, Any]) -> tuple[str, ...]:
    """Return the options in whose place the environments normalise themselves, such as ("normalize_obs",).

    Verified:  tests/integration/test_notes.py::test_an_environment_that_normalises_itself_is_named
    """
    layer: Any = venv
    found: set[str] = set()
    while isinstance(layer, VectorWrapper):
        found |= STATISTICS.keys() & vars(layer).keys()
        layer = layer.env
    if isinstance(layer, SyncVectorEnv | AsyncVectorEnv):
        found |= {name for name in STATISTICS if any(layer.call("has_wrapper_attr", name))}
    return tuple(dict.fromkeys(option for name, option in STATISTICS.items() if name in found))
