"""What scores responses: reward models, functions, files of them."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers_language import demonstrations, shout, tiny
from steepest.errors import RunError, UsageError
from steepest.language.data.batching import pad, responses
from steepest.language.data.datasets import load_prompts
from steepest.language.models.language_model import LanguageModel
from steepest.language.scoring.generation import Response
from steepest.language.training.reward_model import RewardModel, reward_head, save_reward_model
from steepest.language.training.rewards import arguments_of, load_reward, make_scorer, named_function
from steepest.language.training.rlhf import RLOO, RLOOConfig


def test_every_kind_of_reward(tmp_path: Path) -> None:
    """A model, its folder, a function and a file give the same scores as computed by hand, in the order of the rows."""
    lm = tiny(scale=1.0)
    prompts = load_prompts(lm, demonstrations(5))[0]
    ends = [lm.end_token]
    texts = [" I see", " e e e", "", " the film", " So it is here"]
    drawn = [Response((*lm.tokenizer(t)["input_ids"], *ends), (), True) for t in texts]
    drawn[3] = Response(drawn[3].tokens[:-1], (), False)
    model = RewardModel(tiny(scale=1.0, seed=1), reward_head(32, seed=0))
    batch = pad(responses([p.tokens for p in prompts], [r.tokens for r in drawn]), lm.pad_token)
    expected = model.scores(batch).detach()
    assert float(expected.std()) > 1e-4
    save_reward_model(model, tmp_path / "judge")
    for reward in (model, tmp_path / "judge", str(tmp_path / "judge")):
        found = make_scorer(lm, reward, micro_batch_size=2)(prompts, drawn)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    counted = torch.tensor(shout([], texts))
    torch.testing.assert_close(make_scorer(lm, shout, micro_batch_size=2)(prompts, drawn), counted)
    (tmp_path / "judge.py").write_text(
        "def right(prompts, completions, rows):\n"
        "    return [float(row['completion'] == text) + 2 * (row['prompt'] == p)\n"
        "            for p, text, row in zip(prompts, completions, rows)]\n"
    )
    answers = [Response((*lm.tokenizer(p.row["completion"])["input_ids"], *ends), (), True) for p in prompts[:2]]
    verify = make_scorer(lm, f"{tmp_path / 'judge.py'}:right", micro_batch_size=2)
    assert verify(prompts, [*answers, *drawn[2:]]).tolist() == [3.0, 3.0, 2.0, 2.0, 2.0]


def test_what_is_no_reward_is_refused(tmp_path: Path) -> None:
    lm = tiny()
    (tmp_path / "judge.py").write_text("x = 1\n")
    other = RewardModel(tiny(chat=True), reward_head(32, seed=0))
    for reward, message in (
        (3, "expected a reward model's folder"),
        (tmp_path, "no reward model in"),
        (f"{tmp_path}/none.py:f", "there is no file"),
        (f"{tmp_path}/judge.py:f", "has no function f"),
        (f"{tmp_path}/judge.py:x", "has no function x"),
        (other, "another tokenizer"),
    ):
        with pytest.raises(UsageError, match=message):
            make_scorer(lm, reward, micro_batch_size=2)


def test_a_file_without_its_function_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And its functions are named, without running it."""
    monkeypatch.chdir(tmp_path)
    Path("judge.py").write_text("raise SystemExit\ndef _half(x): ...\ndef right(x, y): ...\ndef left(x, y): ...\n")
    Path("broken.py").write_text("def f(:")
    Path("folder.py").mkdir()
    for reward in ("judge.py", "judge.py:"):
        with pytest.raises(UsageError, match=r"expected FILE\.py:FUNCTION, such as judge\.py:right or judge\.py:left$"):
            load_reward(reward)
    with pytest.raises(UsageError, match=r"reward is broken\.py; expected FILE\.py:FUNCTION$"):
        load_reward(Path("broken.py"))
    with pytest.raises(UsageError, match=r"no reward model in folder\.py"):
        load_reward("folder.py")
    assert named_function("some/judge.py:right") == (Path("some/judge.py"), "right")
    assert named_function("some:folder") is None


def test_a_reward_model_of_another_template_is_told_of() -> None:
    """Where there are conversations, which it would read in the policy's."""
    policy = tiny(chat=True)
    other = copy.deepcopy(policy.tokenizer)
    other.chat_template = other.chat_template.replace("assistant", "critic")
    same, judge = (
        RewardModel(LanguageModel(policy.model, tokenizer, policy.end_tokens), reward_head(32, seed=0))
        for tokenizer in (policy.tokenizer, other)
    )
    rows: list[dict[str, Any]] = [{"prompt": f"Is it {word}?"} for word in ("dull", "great")]
    chats = [{"prompt": [{"role": "user", "content": row["prompt"]}]} for row in rows]
    options = {"batch_size": 2, "group_size": 2, "max_new_tokens": 4, "max_length": 64}
    for reward, prompts, told in ((judge, chats, 1), (judge, rows, 0), (same, chats, 0), (shout, chats, 0)):
        notes: list[str] = []
        RLOO.from_data(policy, RLOOConfig(**options), prompts, reward=reward, note=notes.append)
        assert sum("another chat template" in note for note in notes) == told


def test_rewards_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    lm = tiny()
    prompts = load_prompts(lm, demonstrations(2))[0]
    drawn = [Response((300, 301), (), False), Response((302, lm.end_token), (), True)]

    def fails(_: list[str], texts: list[str]) -> list[float]:
        return [float(len(texts[5]))]

    for reward, message in (
        (lambda _, texts: [1.0], "gave 1 numbers for 2 responses"),
        (lambda _, texts: [1.0, float("inf")], "gave inf to the response"),
        (fails, r"the reward failed: IndexError: list index out of range \(test_rewards\.py, line \d+\)"),
    ):
        with pytest.raises(RunError, match=message):
            make_scorer(lm, reward, micro_batch_size=2)(prompts, drawn)
    for text, message in (
        ("def f(:", r"SyntaxError: .*\(judge\.py, line 1\)"),
        ("import nowhere_at_all", "No module named"),
    ):
        (tmp_path / "judge.py").write_text(text)
        with pytest.raises(UsageError, match=rf"judge\.py cannot be imported: .*{message}"):
            make_scorer(lm, f"{tmp_path}/judge.py:f", micro_batch_size=2)


ROWS = [{"prompt": "a", "answer": 1, "length": 5}, {"prompt": "b", "answer": 2, "length": 6}]
ASKED, SAID = ["a", "b"], ["x", "yy"]


def _seen(reward: Any) -> Any:
    positional, named = arguments_of(reward, ASKED, SAID, ROWS)
    return reward(*positional, **named)


@pytest.mark.parametrize(
    ("reward", "expected"),
    [
        (lambda prompts, completions: (prompts, completions), (ASKED, SAID)),
        (lambda p, c: (p, c), (ASKED, SAID)),
        (lambda _, texts, /: (_, texts), (ASKED, SAID)),
        (lambda completions, prompts: (completions, prompts), (SAID, ASKED)),
        (lambda completions: completions, SAID),
        (lambda prompts, completions, rows: (completions, rows), (SAID, ROWS)),
        (lambda p, c, r: (c, r), (SAID, ROWS)),
        (lambda prompts, completions, rows=None: rows, ROWS),
        (lambda prompts, completions, normalise=False: normalise, False),
        (lambda p, c, scale=2.0, *, shift=1.0: (c, scale, shift), (SAID, 2.0, 1.0)),
        (lambda prompts, completions, **kwargs: kwargs, {"answer": [1, 2], "length": [5, 6]}),
        (lambda completions, answer, **_: (completions, answer), (SAID, [1, 2])),
        (lambda completions, **kwargs: sorted(kwargs), ["answer", "length", "prompts"]),
        (lambda **kwargs: (kwargs["prompts"], kwargs["completions"]), (ASKED, SAID)),
        (lambda *, prompts, completions: (prompts, completions), (ASKED, SAID)),
        (lambda prompts, *, completions, rows: (prompts, completions, rows), (ASKED, SAID, ROWS)),
        (lambda *args: args, (ASKED, SAID)),
        (lambda prompts, *args: (prompts, args), (ASKED, (SAID,))),
        (lambda p, c, length=100: length, [5, 6]),
        (lambda p, c, answer: answer, [1, 2]),
        (functools.partial(lambda prompts, completions, rows: rows, rows="mine"), "mine"),
    ],
)
def test_a_reward_is_given_what_its_signature_names(reward: Any, expected: Any) -> None:
    """Names, not numbers of arguments, say what goes where."""
    assert _seen(reward) == expected


def test_methods_and_functions_without_a_signature_are_rewards() -> None:
    class Judge:
        def __call__(self, prompts: list[str], completions: list[str], strict: bool = True) -> Any:
            return completions, strict

        def score(self, completions: list[str]) -> list[str]:
            return completions

    assert _seen(Judge()) == (SAID, True)
    assert _seen(Judge().score) == SAID
    assert arguments_of(zip, ASKED, SAID, ROWS) == ([ASKED, SAID], {})


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (lambda prompts, completions, *, target: 0, "the reward needs target, which is none of prompts, completions"),
        (lambda p, c, r, more: 0, "the reward needs more"),
        (lambda prompts, completions, missing: 0, "the reward needs missing"),
        (lambda texts: 0, "takes texts, and would not see the completions; expected reward"),
        (lambda: 0, "takes no arguments, and would not see"),
        (len, "would not see the completions"),
    ],
)
def test_a_signature_that_cannot_be_filled_is_refused(reward: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        arguments_of(reward, ASKED, SAID, ROWS)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, "the reward returned None; expected one number for each of the 2 responses"),
        (0.5, "returned a single number"),
        (torch.tensor(0.5), "returned a single number"),
        (np.float32(0.5), "returned a single number"),
        ({"a": 1.0, "b": 2.0}, "returned a dict"),
        ({0.5, 1.0}, "returned a set"),
        ("ab", "returned a str"),
        (np.zeros((2, 1)), r"returned an array of shape \(2, 1\)"),
        (torch.zeros(1, 2), r"returned an array of shape \(1, 2\)"),
        ([[0.5], [1.0]], "returned a list among its numbers"),
        ([0.5, None], "returned None among its numbers"),
        (["0.5", "1.0"], "returned a str among its numbers"),
        ([0.5], "gave 1 numbers for 2 responses"),
        (object(), "returned an object"),
    ],
)
def test_what_a_reward_returned_is_said(returned: Any, message: str) -> None:
    lm = tiny()
    prompts = load_prompts(lm, demonstrations(2))[0]
    drawn = [Response((300, 301), (), False), Response((302, lm.end_token), (), True)]
    with pytest.raises(RunError, match=message):
        make_scorer(lm, lambda prompts, completions: returned, micro_batch_size=2)(prompts, drawn)


@pytest.mark.parametrize(
    "returned",
    [
        [1, 0.5],
        (True, np.float32(0.5)),
        np.array([1.0, 0.5]),
        torch.tensor([1.0, 0.5], dtype=torch.float64),
        [torch.tensor(1.0), torch.tensor(0.5)],
    ],
)
def test_numbers_of_every_kind_are_taken(returned: Any) -> None:
    lm = tiny()
    prompts = load_prompts(lm, demonstrations(2))[0]
    drawn = [Response((300, 301), (), False), Response((302, lm.end_token), (), True)]
    for reward in (lambda _, texts: returned, lambda _, texts: (x for x in returned)):
        assert make_scorer(lm, reward, micro_batch_size=2)(prompts, drawn).tolist() == [1.0, 0.5]


def test_a_run_refuses_a_signature_before_it_draws() -> None:
    options = {"batch_size": 2, "group_size": 2, "max_new_tokens": 4, "max_length": 64}
    with pytest.raises(UsageError, match="the reward needs target"):
        RLOO.from_data(
            tiny(), RLOOConfig(**options), demonstrations(2), reward=lambda completions, target: [0.0], note=print
        )
