"""What scores responses: a reward model, or a Python function of the texts, such as a program that checks an answer."""

from __future__ import annotations

import importlib.util
import inspect
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from steepest.errors import RunError, UsageError
from steepest.language.batching import pad, responses
from steepest.language.data import Prompt
from steepest.language.generation import Response
from steepest.language.models import LanguageModel
from steepest.language.reward_model import RewardModel, load_reward_model

Scorer = Callable[[Sequence[Prompt], Sequence[Response]], Tensor]
"""Prompts and their responses to scores (B,), in reward units."""

TextReward = Callable[..., Sequence[float]]
"""What users write: ``reward(prompts, completions, rows)``, all three lists of one length, gives a number for each.

``prompts`` are as in the data, ``completions`` texts without their end token, ``rows`` the rows of the data, where a
verifier finds the right answer. A function of two arguments is not given the rows.
"""


def make_scorer(lm: LanguageModel, reward: Any, *, micro_batch_size: int) -> Scorer:
    """Whatever was given as reward, as a function of tokens.

    Args:      reward: a RewardModel, its folder, a Python function, or "file.py:name" of one
    Raises:    UsageError where it is none of these, or a reward model reads other tokens than the policy writes
    Verified:  tests/unit/test_rewards.py::test_every_kind_of_reward
    """
    if isinstance(reward, (str, Path)):
        file, colon, name = str(reward).rpartition(":")
        reward = (
            _function(Path(file).expanduser(), name) if colon and file.endswith(".py") else load_reward_model(reward)
        )
    if isinstance(reward, RewardModel):
        return _by_model(lm, reward, micro_batch_size)
    if callable(reward):
        return _by_text(lm, cast(TextReward, reward))
    raise UsageError(f"reward is {reward!r}; expected a reward model's folder, a Python function, or FILE.py:FUNCTION")


def _function(file: Path, name: str) -> TextReward:
    """A function out of a Python file."""
    if not file.is_file():
        raise UsageError(f"there is no file {file} with a reward in it")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        raise UsageError(f"{file} has no function {name}")
    return cast(TextReward, function)


def _by_text(lm: LanguageModel, reward: TextReward) -> Scorer:
    takes_rows = len(inspect.signature(reward).parameters) >= 3

    def score(prompts: Sequence[Prompt], drawn: Sequence[Response]) -> Tensor:
        asked = [prompt.row["prompt"] for prompt in prompts]
        texts = [lm.tokenizer.decode(list(r.tokens[:-1] if r.ended else r.tokens)) for r in drawn]
        given = (asked, texts, [prompt.row for prompt in prompts]) if takes_rows else (asked, texts)
        found = [float(x) for x in reward(*given)]
        if len(found) != len(drawn) or not all(math.isfinite(x) for x in found):
            raise RunError(
                f"the reward gave {len(found)} numbers for {len(drawn)} responses, or one that is not finite"
            )
        return torch.tensor(found)

    return score


def _by_model(lm: LanguageModel, model: RewardModel, micro_batch_size: int) -> Scorer:
    if model.lm.tokenizer.get_vocab() != lm.tokenizer.get_vocab():
        raise UsageError(
            "the reward model has another tokenizer than the policy; train it from the same model, or give a Python "
            "function that scores texts with it"
        )

    @torch.no_grad()
    def score(prompts: Sequence[Prompt], drawn: Sequence[Response]) -> Tensor:
        examples = responses([p.tokens for p in prompts], [r.tokens for r in drawn])
        longest = max(len(e.tokens) for e in examples)
        if model.lm.context is not None and longest > model.lm.context:
            raise UsageError(f"a response of {longest} tokens, prompt included, exceeds the reward model's context")
        order = sorted(range(len(examples)), key=lambda i: (len(examples[i].tokens), i))
        out = torch.empty(len(examples))
        for start in range(0, len(order), micro_batch_size):
            rows = order[start : start + micro_batch_size]
            batch = pad([examples[i] for i in rows], model.lm.pad_token).to(model.lm.device)
            out[rows] = model.scores(batch).float().cpu()
        return out

    return score
