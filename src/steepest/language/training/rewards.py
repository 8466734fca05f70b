"""What scores responses: a reward model, or a Python function of the texts, such as a program that checks an answer."""

from __future__ import annotations

import ast
import inspect
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from numbers import Real
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
verifier finds the right answer. Arguments are given by their names; so is a column of the data, as a list, to an
argument of its name, and all columns to ``**kwargs``. Positional arguments of other names are these three in their
order; others that have a default keep it.

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
    if path.suffix != ".py" or os.path.isdir(path):
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
    def score(prompts: Sequence[Prompt], drawn: Sequence[Response]) -> Tensor:
        asked = [prompt.row["prompt"] for prompt in prompts]
        texts = [response_text(lm, r) for r in drawn]
        positional, named = arguments_of(reward, asked, texts, [prompt.row for prompt in prompts])
        try:
            given: Any = reward(*positional, **named)
            given = list(given) if isinstance(given, Iterator) else given  # a generator runs the user's program too
        except Exception as error:  # it is the user's program
            raise RunError(f"the reward failed: {said_by(error)}") from error
        found = _numbers(given, len(drawn))
        bad = next((i for i, x in enumerate(found) if not math.isfinite(x)), None)
        if bad is not None:
            raise RunError(f"the reward gave {found[bad]} to the response {texts[bad][:60]!r}; expected finite numbers")
        return torch.tensor(found)

    return score


def arguments_of(
    reward: TextReward, prompts: list[Any], completions: list[str], rows: list[dict[str, Any]]
) -> tuple[list[Any], dict[str, Any]]:
    """Return the positional and the named arguments that a reward is called with, read from its signature.

    Raises:    UsageError for an argument that is none of prompts, completions, rows or a column of the data
    Verified:  tests/unit/test_rewards.py::test_a_reward_is_given_what_its_signature_names
    """
    ours: dict[str, Any] = {"prompts": prompts, "completions": completions, "rows": rows}
    columns = {name: [row.get(name) for row in rows] for name in (rows[0] if rows else ())}
    known = columns | ours
    try:
        parameters = inspect.signature(reward).parameters
    except (TypeError, ValueError):  # built-in functions may have none that can be read
        return [prompts, completions], {}
    packs = any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters.values())
    unnamed = [] if "completions" in parameters else list(ours.values())  # what the positional arguments are in turn
    positional: list[Any] = []
    named: dict[str, Any] = {}
    for name, parameter in parameters.items():
        kind = parameter.kind
        by_place = kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        if name in getattr(reward, "keywords", {}):
            continue  # a functools.partial: the user has decided it
        if kind is parameter.VAR_POSITIONAL:
            positional += [prompts, completions][len(positional) :]
        elif kind is parameter.VAR_KEYWORD:
            left = {**columns, "prompts": prompts, "completions": completions}
            named |= {key: value for key, value in left.items() if key not in (*parameters, "prompt")}
        elif by_place and parameter.default is parameter.empty and unnamed:
            value, unnamed = unnamed[0], unnamed[1:]
            value = known.get(name, value) if value is rows else value
            _give(value, name, kind is parameter.POSITIONAL_ONLY or packs, positional, named)
        elif name in known:
            _give(known[name], name, by_place and (kind is parameter.POSITIONAL_ONLY or packs), positional, named)
        elif parameter.default is parameter.empty:
            raise UsageError(
                f"the reward needs {name}, which is none of prompts, completions, rows or a column of the data "
                f"({', '.join(columns)}); give it a default"
            )
    if not any(value is completions for value in (*positional, *named.values())):
        raise UsageError(
            f"the reward takes {', '.join(parameters) or 'no arguments'}, and would not see the completions; expected "
            "reward(prompts, completions) or reward(prompts, completions, rows)"
        )
    return positional, named


def _give(value: Any, name: str, by_place: bool, positional: list[Any], named: dict[str, Any]) -> None:
    if by_place:
        positional.append(value)
    else:
        named[name] = value


def _numbers(given: Any, count: int) -> list[float]:
    """What a reward returned, as one number for each response."""
    expected = f"expected one number for each of the {count} responses, such as a list of {count} numbers"
    shape = getattr(given, "shape", None)
    if isinstance(given, Real) or shape == ():
        raise RunError(f"the reward returned a single number; {expected}")
    if shape is not None and len(shape) != 1:
        raise RunError(f"the reward returned an array of shape {tuple(shape)}; {expected}")
    if isinstance(given, (str, bytes, Mapping, Set)) or not isinstance(given, Iterable):
        raise RunError(f"the reward returned {_described(given)}; {expected}")
    found = list(cast(Iterable[Any], given))
    if len(found) != count:
        raise RunError(f"the reward gave {len(found)} numbers for {count} responses; expected one for each")
    numbers = [x.item() if getattr(x, "shape", None) == () else x for x in found]
    bad = [x for x in numbers if not isinstance(x, Real)]
    if bad:
        raise RunError(f"the reward returned {_described(bad[0])} among its numbers; {expected}")
    return [float(x) for x in numbers]


def _described(value: Any) -> str:
    """A value and its type in a few words."""
    if value is None:
        return "None"
    kind = type(value).__name__
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


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
