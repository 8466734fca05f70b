"""What scores responses: a reward model, or a Python function of the texts, such as a program that checks an answer."""

from __future__ import annotations

import ast
import inspect
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from steepest.errors import RunError, UsageError
from steepest.files.functions import function_in, said_by
from steepest.language.data.batching import pad, responses
from steepest.language.data.examples import Prompt
from steepest.language.models.language_model import LanguageModel
from steepest.language.scoring.generation import Response, response_text
from steepest.language.training.reward_model import RewardModel, load_reward_model

SHOWN_FUNCTIONS = 3
Scorer = Callable[[Sequence[Prompt], Sequence[Response]], Tensor]
"""Prompts and their responses to scores (B,), in reward units."""

TextReward = Callable[..., Sequence[float]]
"""What users write: ``reward(prompts, completions, rows)``, all three lists of one length, gives a number for each.

``prompts`` are as in the data, ``completions`` texts without their end token, ``rows`` the rows of the data, where a
verifier finds the right answer. A function of two arguments is not given the rows.

A number should depend on its own prompt and completion alone. How many come in one call depends on the processes that
torchrun started: each calls the function with its own share of a batch, in which the completions to one prompt are
together.
"""


def make_scorer(lm: LanguageModel, reward: Any, *, micro_batch_size: int) -> Scorer:
    """Whatever was given as reward, as a function of tokens.

    Args:      reward: a RewardModel, its folder, a Python function, or "file.py:name" of one
    Raises:    UsageError where it is none of these, or a reward model reads other tokens than the policy writes
    Verified:  tests/unit/test_rewards.py::test_every_kind_of_reward
    """
    reward = load_reward(reward)
    return _by_model(lm, reward, micro_batch_size) if isinstance(reward, RewardModel) else _by_text(lm, reward)


def load_reward(reward: Any) -> RewardModel | TextReward:
    """A reward model or a function of texts, from whatever was given as reward; arguments and errors as make_scorer."""
    if isinstance(reward, (str, Path)):
        named = named_function(reward)
        reward = load_reward_model(reward) if named is None else function_in(*named, "reward")
    if isinstance(reward, RewardModel) or callable(reward):
        return cast(RewardModel | TextReward, reward)
    raise UsageError(f"reward is {reward!r}; expected a reward model's folder, a Python function, or FILE.py:FUNCTION")


def named_function(reward: str | Path) -> tuple[Path, str] | None:
    """File and name that FILE.py:FUNCTION says; None where a folder is meant.

    Raises:    UsageError for a Python file without a function's name
    Verified:  tests/unit/test_rewards.py::test_a_file_without_its_function_is_explained
    """
    file, _, name = str(reward).rpartition(":")
    if not file.endswith(".py"):
        file, name = str(reward), ""
    path = Path(file).expanduser()
    if path.suffix != ".py" or path.is_dir():
        return None
    if not name:
        known = " or ".join(f"{file}:{function}" for function in _functions(path)[:SHOWN_FUNCTIONS])
        raise UsageError(f"reward is {reward}; expected FILE.py:FUNCTION" + (f", such as {known}" if known else ""))
    return path, name


def _functions(file: Path) -> list[str]:
    """Names of the functions in a Python file, which is not run; none where it cannot be read."""
    try:
        body = ast.parse(file.read_bytes()).body
    except (OSError, SyntaxError, ValueError):
        return []
    return [node.name for node in body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]


def template_difference(lm: LanguageModel, reward: RewardModel | TextReward, prompts: Sequence[Prompt]) -> str | None:
    """What to say where a reward model reads conversations in another chat template than its own; else None."""
    if not isinstance(reward, RewardModel) or all(isinstance(prompt.row["prompt"], str) for prompt in prompts):
        return None
    if reward.lm.tokenizer.chat_template == lm.tokenizer.chat_template:
        return None
    return (
        "the reward model has another chat template than the policy, whose template it reads conversations in here: it "
        "may score what it was not trained on"
    )


def _by_text(lm: LanguageModel, reward: TextReward) -> Scorer:
    takes_rows = len(inspect.signature(reward).parameters) >= 3

    def score(prompts: Sequence[Prompt], drawn: Sequence[Response]) -> Tensor:
        asked = [prompt.row["prompt"] for prompt in prompts]
        texts = [response_text(lm, r) for r in drawn]
        given = (asked, texts, [prompt.row for prompt in prompts]) if takes_rows else (asked, texts)
        try:
            found = [float(x) for x in reward(*given)]
        except Exception as error:  # it is the user's program
            raise RunError(f"the reward failed: {said_by(error)}") from error
        if len(found) != len(drawn):
            raise RunError(f"the reward gave {len(found)} numbers for {len(drawn)} responses; expected one for each")
        bad = next((i for i, x in enumerate(found) if not math.isfinite(x)), None)
        if bad is not None:
            raise RunError(f"the reward gave {found[bad]} to the response {texts[bad][:60]!r}; expected finite numbers")
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
