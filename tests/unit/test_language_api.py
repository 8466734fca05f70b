"""The Python calls for language models take what they say, and refuse the rest in words."""

from __future__ import annotations

import copy
from typing import Any

import pytest

import steepest
from helpers_language import demonstrations, tiny
from steepest.errors import UsageError
from steepest.language import language_model
from steepest.runs.language_run import LanguageRun

ASK: dict[str, Any] = {"max_new_tokens": 3, "temperature": 0.0}


def test_one_prompt_is_no_list_of_prompts() -> None:
    lm = tiny(chat=True)
    messages = [{"role": "user", "content": "Is it great?"}]
    for prompts, message in (
        ("the film", r"prompts is of type str; expected a list of prompts"),
        (b"the film", "of type bytes"),
        ({"prompt": "the film"}, "of type dict"),
        (None, "of type NoneType"),
        (3, "of type int"),
        (messages, r"one conversation is one prompt, and goes into a list: \[messages\]"),
        (["This", "half \ud83d"], r"prompt 2: the text holds half a character \(\\ud83d at place 6\)"),
        ([None], "prompt 1: prompt is a NoneType"),
        ([3.5], "prompt 1: prompt is a float"),
    ):
        with pytest.raises(UsageError, match=message):
            steepest.respond(lm, prompts, **ASK)
    for prompts in ({"This film": 1}, None, 7):
        with pytest.raises(UsageError, match="expected a list of prompts"):
            steepest.compare(lm, lm, prompts, **ASK)
    with pytest.raises(UsageError, match="prompt 1: the text holds half a character"):
        steepest.compare(lm, lm, ["\udfff"], **ASK)


def test_prompts_one_after_the_other_are_a_list() -> None:
    lm = tiny(chat=True)
    prompts = ["This film", [{"role": "user", "content": "So?"}]]
    expected = steepest.respond(lm, prompts, **ASK)
    assert steepest.respond(lm, tuple(prompts), **ASK) == expected
    assert steepest.respond(lm, (prompt for prompt in prompts), **ASK) == expected
    assert steepest.respond(lm, [], **ASK) == []


def test_a_model_in_memory_goes_with_its_tokenizer() -> None:
    lm = tiny()
    data = demonstrations(4)
    with pytest.raises(UsageError, match=r"of type LlamaForCausalLM; .*language_model\(model, tokenizer\)"):
        steepest.sft(lm.model, data)
    made = language_model(copy.deepcopy(lm.model), lm.tokenizer)
    options: dict[str, Any] = {"max_steps": 1, "batch_size": 2, "threads": 1}
    assert steepest.sft(made, data, **options) is made
    for model, message in (
        (None, "of type NoneType"),
        (3, "of type int"),
        ((lm.model, lm.tokenizer), "of type tuple"),
        ("x" * 5000, "there is no model at x"),
        ("\x00", "there is no model at"),
    ):
        with pytest.raises(UsageError, match=message) as error:
            steepest.sft(model, data)
        assert len(str(error.value)) < 400


def test_data_that_is_none_is_refused() -> None:
    for data in (None, 3, "x" * 5000):
        with pytest.raises(UsageError):
            steepest.sft(tiny(), data)
    with pytest.raises(UsageError, match="reward"):
        steepest.rlhf(tiny(), demonstrations(2), None, max_new_tokens=2)


def test_options_by_name_reach_template_and_columns() -> None:
    lm = tiny(chat=True)
    with pytest.raises(UsageError, match="template_kwargs is given with a model in memory"):
        steepest.sft(lm, demonstrations(2), template_kwargs={"enable_thinking": False})
    rows = [{"q": row["prompt"], "a": row["completion"]} for row in demonstrations(4)]
    run = LanguageRun("sft", lm, rows, columns={"prompt": "q", "completion": "a"}, batch_size=2)
    assert run.trainer.config.columns == ("prompt=q", "completion=a")
    assert run.trainer.data == LanguageRun("sft", lm, demonstrations(4), batch_size=2).trainer.data
