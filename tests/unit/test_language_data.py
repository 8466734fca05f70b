"""From rows to tokens: what is learned, where responses begin and end, and what is refused."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers_language import demonstrations, tiny, tokenizer
from steepest.errors import UsageError
from steepest.language.data.datasets import fingerprint, load_preferences, load_prompts, load_sft
from steepest.language.data.examples import Example, Report
from steepest.language.data.rendering import show_example
from steepest.language.data.rows import read_rows
from steepest.language.models.fingerprints import rows_fingerprint
from steepest.language.models.language_model import LanguageModel
from steepest.language.models.templates import template_arguments, with_arguments

CHAT: list[dict[str, str]] = [
    {"role": "system", "content": "You judge films."},
    {"role": "user", "content": "Is it great?"},
    {"role": "assistant", "content": "It is dull."},
    {"role": "user", "content": "And the plot?"},
    {"role": "assistant", "content": "Boring!"},
]


def learned(lm: LanguageModel, example: Example) -> list[str]:
    """The stretches that are learned, as text with their control tokens."""
    lines = show_example(lm, example).split("\n")
    return [line[9:].replace("|", "").replace("<im", "<|im").replace("end>", "end|>").replace("text>", "text|>")
            for line in lines if line.startswith("learned")]  # fmt: skip


def one(lm: LanguageModel, row: dict[str, Any], **options: Any) -> tuple[Example, Report]:
    examples, report = load_sft(lm, [row], **options)
    return examples[0], report


# What is learned


def test_a_completion_is_learned_with_its_end() -> None:
    lm = tiny()
    example, report = one(lm, {"prompt": "This film was", "completion": " dull."})
    encode = lm.tokenizer.encode
    assert example.tokens == (*encode("This film was"), *encode(" dull."), lm.end_token)
    assert example.response == tuple(i >= len(encode("This film was")) for i in range(len(example.tokens)))
    assert report.merges == 0


def test_an_end_that_is_there_is_not_written_twice() -> None:
    lm = tiny()
    ended, plain = (one(lm, {"prompt": "So", "completion": text})[0] for text in (" dull.<|endoftext|>", " dull."))
    assert ended == plain


def test_every_assistant_turn_is_learned() -> None:
    lm = tiny(chat=True)
    example, _ = one(lm, {"messages": CHAT})
    assert learned(lm, example) == ["It is dull.<|im_end|>", "Boring!<|im_end|>"]
    text = lm.tokenizer.decode(list(example.tokens))
    assert text == lm.tokenizer.apply_chat_template(CHAT, tokenize=False)
    assert "<|im_end|>\n" in text  # after the end token the template goes on, and that is not learned


def test_of_a_prompt_of_messages_only_the_completion_is_learned() -> None:
    lm = tiny(chat=True)
    example, _ = one(lm, {"prompt": CHAT[:4], "completion": CHAT[4:]})
    assert learned(lm, example) == ["Boring!<|im_end|>"]


def test_a_text_is_learned_whole() -> None:
    lm = tiny()
    example, _ = one(lm, {"text": "This film was dull."})
    assert example.response == (False, *(True,) * (len(example.tokens) - 1))
    assert example.tokens[-1] == lm.end_token


def test_a_template_without_an_end_gets_one() -> None:
    lm = tiny(chat=True)
    template = lm.tokenizer.chat_template
    lm.tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    try:
        example, report = one(lm, {"messages": CHAT[:3]})
        assert report.merges == 0
        lm.tokenizer.chat_template = lm.tokenizer.chat_template.replace("assistant:", "assistant: ")
        spaced, report = one(lm, {"messages": CHAT[:3]})
        prompt = load_prompts(lm, [{"prompt": CHAT[:2]}])[0][0].tokens
    finally:
        lm.tokenizer.chat_template = template
    assert example.tokens[-1] == lm.end_token
    assert example.response[-1]
    # A prompt that ends in a space, which the tokenizer would merge with the answer: it is joined in tokens.
    assert report.merges == 1
    assert spaced.tokens[: len(prompt)] == prompt
    assert not any(spaced.response[: len(prompt)])
    assert lm.tokenizer.decode(list(spaced.tokens[len(prompt) :])) == "It is dull.\n<|im_end|>"
    assert all(spaced.response[len(prompt) :])


# Boundaries


def with_bos() -> LanguageModel:
    """A tokenizer that puts a token of the beginning before every text."""
    import tokenizers

    lm = tiny()
    made = type(lm.tokenizer)(tokenizer_object=tokenizer().backend_tokenizer, eos_token="<|endoftext|>")
    made.bos_token = "<|pad|>"
    made.backend_tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|pad|> $A", special_tokens=[("<|pad|>", made.bos_token_id)]
    )
    return LanguageModel(lm.model, made, lm.end_tokens)


def test_the_beginning_comes_once() -> None:
    lm = with_bos()
    try:
        bos = lm.tokenizer.bos_token_id
        assert lm.tokenizer("dull")["input_ids"][0] == bos
        for prompt in ("This film was", "<|pad|>This film was"):
            example, _ = one(lm, {"prompt": prompt, "completion": " dull."})
            assert example.tokens.count(bos) == 1
            assert example.tokens[0] == bos
            assert lm.tokenizer.decode(list(example.tokens)) == "<|pad|>This film was dull.<|endoftext|>"
        text, _ = one(lm, {"text": "dull."})
        assert text.tokens[0] == bos
        assert text.response == (False, *(True,) * (len(text.tokens) - 1))
    finally:
        lm.tokenizer.backend_tokenizer.post_processor = None


def test_a_boundary_that_would_merge_is_joined_in_tokens() -> None:
    lm = tiny()
    encode = lm.tokenizer.encode
    prompt, completion = "This mov", "ie was dull."
    whole = encode(prompt + completion)
    assert whole[: len(encode(prompt))] != encode(prompt)
    example, report = one(lm, {"prompt": prompt, "completion": completion})
    assert report.merges == 1
    assert "1 joined in tokens" in "\n".join(report.lines())
    start = example.response.index(True)
    assert list(example.tokens[:start]) == encode(prompt)
    assert lm.tokenizer.decode(list(example.tokens[start:])) == completion + "<|endoftext|>"


def test_a_boundary_that_changes_the_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny()
    call = type(lm.tokenizer).__call__

    def with_space(self: Any, text: str, **options: Any) -> Any:
        """As tokenizers do that put a space before every text."""
        return call(self, text if text.startswith(" ") else " " + text, **options)

    monkeypatch.setattr(type(lm.tokenizer), "__call__", with_space)
    with pytest.raises(UsageError, match="joined in tokens they are another text; move the boundary"):
        one(lm, {"prompt": "This mov", "completion": "ie was dull."})


def test_a_template_that_rewrites_history_is_refused_with_the_place() -> None:
    lm = tiny(chat=True)
    template = lm.tokenizer.chat_template
    lm.tokenizer.chat_template = template.replace(
        "message['content']", "message['content'][:7 if not loop.last else 99]"
    )
    try:
        with pytest.raises(
            UsageError, match=r"row 1: the prompt of message 3 is no prefix.*at character \d+ it.*differently"
        ):
            one(lm, {"messages": CHAT})
    finally:
        lm.tokenizer.chat_template = template


# Truncation


def test_truncation_is_counted_and_leaves_no_end() -> None:
    lm = tiny()
    rows = [*demonstrations(6), {"prompt": "This film was dull. " * 5, "completion": " yes"}]
    lengths = [len(e.tokens) for e in load_sft(lm, rows)[0]]
    limit = sorted(lengths)[3]
    examples, report = load_sft(lm, rows, max_length=limit)
    assert report.rows == 7
    assert report.long_prompts == 1
    assert report.truncated == sum(n > limit for n in lengths[:6]) > 0
    for example, length in zip(examples, lengths, strict=False):
        assert (example.tokens[-1] == lm.end_token) == (length <= limit)
    text = "\n".join(report.lines())
    assert f"{report.truncated} truncated" in text
    assert "1 left out: the prompt alone" in text


def test_only_learned_tokens_count_as_truncated() -> None:
    """The template ends in a line end after the end token, which is not learned."""
    lm = tiny(chat=True)
    (whole,), _ = load_sft(lm, [{"messages": CHAT}])
    assert whole.response[-2:] == (True, False)
    for cut, truncated in ((1, 0), (2, 1)):
        (found,), report = load_sft(lm, [{"messages": CHAT}], max_length=len(whole.tokens) - cut)
        assert report.truncated == truncated
        assert (found.tokens[-1] == lm.end_token) == (truncated == 0)


def test_a_sequence_as_long_as_the_limit_is_whole() -> None:
    lm = tiny()
    (example,), _ = load_sft(lm, demonstrations(1))
    for spare, truncated in ((0, 0), (-1, 1)):
        (found,), report = load_sft(lm, demonstrations(1), max_length=len(example.tokens) + spare)
        assert report.truncated == truncated
        assert found.tokens == example.tokens[: len(example.tokens) + spare]


def test_the_fingerprint_tells_rows_and_their_parts_apart() -> None:
    rows = [[[1, 2], [3]], [[1], [2, 3]], [[1, 2, 3], []], [[1, 2], [4]]]
    assert len({fingerprint([row]) for row in rows}) == 4
    assert fingerprint([[[1], [2]]]) == fingerprint(iter([((1,), (2,))]))
    assert fingerprint([[[1]], [[2]]]) != fingerprint([[[2]], [[1]]])


def test_a_hash_of_rows_is_of_all_that_they_hold() -> None:
    """Also of what JSON has no form for, and of nothing that differs from process to process."""

    def row(**columns: Any) -> list[dict[str, Any]]:
        return [{"prompt": "x", "when": datetime.date(2020, 1, 2), **columns}]

    rows = [row(), row(answer=1), row(answer=[1, 2]), row(answer=np.array([1, 3])), row(answer={"deep": {"b", "a"}})]
    assert len({rows_fingerprint(x) for x in (*rows, row(when=datetime.date(2020, 1, 3)), row() * 2)}) == 7
    assert rows_fingerprint(row(answer=np.array([1, 2]))) == rows_fingerprint(rows[2])
    assert rows_fingerprint(row(answer={1, 9})) == rows_fingerprint(row(answer={9, 1}))
    assert rows_fingerprint(row(image=object())) == rows_fingerprint(row(image=object()))


def test_a_length_that_the_model_cannot_take_is_refused() -> None:
    with pytest.raises(UsageError, match="context is 128"):
        load_sft(tiny(), demonstrations(), max_length=500)
    with pytest.raises(UsageError, match="no row of the dataset can be used"):
        load_sft(tiny(), demonstrations(), max_length=2)


# What is refused


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "completion": "  "}, "row 1: the response is empty"),
        ({"prompt": "", "completion": "x"}, "the prompt is empty"),
        ({"prompt": "a", "completion": 3}, "str and int; expected two strings"),
        ({"prompt": "a", "completion": "x<|im_end|>y"}, "holds the end token '<|im_end|>' at its token"),
        ({"messages": CHAT[:2]}, "no assistant message"),
        ({"messages": CHAT[2:]}, "begins with the assistant"),
        ({"messages": [*CHAT[:2], {"role": "assistant", "content": " "}]}, "message 3, of the assistant, is empty"),
        (
            {"messages": [{"role": "user", "content": "x<|im_start|>system"}, CHAT[2]]},
            "message 1 holds the control token",
        ),
        ({"messages": [{"from": "human", "value": "x"}]}, "message 1 of messages has no role"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "has a part of type image; expected text"),
        ({"messages": [{"role": "user", "content": None}]}, "content of message 1 of messages is a NoneType; expected"),
        ({"prompt": "a", "completion": "b \ud83d"}, r"the text holds half a character (\ud83d at place "),
        ({"messages": [*CHAT[:1], {"role": "user", "content": "\ude00"}, CHAT[2]]}, "holds half a character"),
        ({"text": "\ud800"}, "holds half a character"),
        ({"messages": "hello"}, "messages is a str"),
    ],
)
def test_rows_that_cannot_be_used_are_named(row: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match="1 of 1 rows cannot be used") as error:
        one(tiny(chat=True), row)
    assert message in str(error.value)


def test_bad_rows_can_be_left_out() -> None:
    rows = [*demonstrations(5), {"prompt": "a", "completion": ""}]
    examples, report = load_sft(tiny(), rows, drop_bad_rows=True)
    assert len(examples) == 5
    assert report.bad == ["row 6: the response is empty"]
    with pytest.raises(UsageError, match=r"6 of 11 rows cannot be used: row 6.*; and 3 more"):
        load_sft(tiny(), [*rows, *[{"prompt": "b", "completion": ""}] * 5])


def test_unknown_columns_are_named() -> None:
    with pytest.raises(
        UsageError, match=r"columns prompt, completions; expected.*'completions' is close to 'completion'"
    ):
        load_sft(tiny(), [{"prompt": "a", "completions": "b"}])
    _, report = load_sft(tiny(), [{**row, "stars": 3} for row in demonstrations(3)])
    assert report.ignored == ("stars",)


def test_messages_need_a_template() -> None:
    with pytest.raises(UsageError, match="no chat template"):
        load_sft(tiny(), [{"messages": CHAT}])


# Preferences and prompts


def test_preferences_in_both_formats() -> None:
    lm = tiny(chat=True)
    plain, _ = load_preferences(lm, [{"prompt": "This film was", "chosen": " great.", "rejected": " dull."}])
    assert lm.tokenizer.decode(list(plain[0].prompt)) == "This film was"
    assert lm.tokenizer.decode(list(plain[0].chosen)) == " great.<|im_end|>"
    other = [{"role": "assistant", "content": "It is moving."}]
    explicit, _ = load_preferences(lm, [{"prompt": CHAT[:2], "chosen": other, "rejected": CHAT[2:3]}])
    implicit, _ = load_preferences(lm, [{"chosen": [*CHAT[:2], *other], "rejected": CHAT[:3]}])
    assert explicit == implicit
    assert lm.tokenizer.decode(list(explicit[0].chosen)) == "It is moving.<|im_end|>"
    assert lm.tokenizer.decode(list(explicit[0].prompt)).endswith("<|im_start|>assistant\n")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "chosen": "x", "rejected": "x"}, "chosen and rejected are the same"),
        ({"prompt": "a", "chosen": "x", "rejected": ""}, "the response is empty"),
        ({"chosen": CHAT[:3], "rejected": CHAT[1:3]}, "differ before their last message"),
        ({"prompt": CHAT[:2], "chosen": CHAT[2:], "rejected": CHAT[2:3]}, "chosen is 3 messages; expected one"),
    ],
)
def test_preferences_that_say_nothing_are_refused(row: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_preferences(tiny(chat=True), [row])


def test_pairs_that_differ_only_beyond_the_limit_are_left_out() -> None:
    lm = tiny()
    rows = [{"prompt": "This", "chosen": " film was great", "rejected": " film was dull"}]
    rows.append({"prompt": "This", "chosen": " story was", "rejected": " plot was"})
    pairs, report = load_preferences(lm, rows, max_length=3)
    assert len(pairs) == 1
    assert (report.long_prompts, report.truncated) == (1, 1)


def test_prompts() -> None:
    lm = tiny(chat=True)
    prompts, report = load_prompts(
        lm, [{"prompt": "This film"}, {"prompt": "So"}, {"prompt": "This film " * 9}], max_length=9
    )
    assert [lm.tokenizer.decode(list(p.tokens)) for p in prompts] == ["This film", "So"]
    assert report.long_prompts == 1
    chat, _ = load_prompts(lm, [{"prompt": CHAT[:2]}])
    assert lm.tokenizer.decode(list(chat[0].tokens)).endswith("Is it great?<|im_end|>\n<|im_start|>assistant\n")


def test_prompts_leave_room_for_responses() -> None:
    lm = tiny()
    rows = [{"prompt": "This film"}, {"prompt": "This film was dull. " * 5}]
    length = len(load_prompts(lm, rows)[0][1].tokens)
    for limit, long_prompts in ((length + 7, 0), (length + 6, 1)):
        _, report = load_prompts(lm, rows, max_length=limit, new_tokens=7)
        assert report.long_prompts == long_prompts
    assert report.lines()[1] == "  1 left out: the prompt leaves less than max_new_tokens (7) of max_length"


# Containers


def test_one_dataset_in_every_container(tmp_path: Path) -> None:
    import datasets

    rows = demonstrations(7)
    rows[0]["prompt"] = "A line separator:\u2028 and \x85 inside"
    data = datasets.Dataset.from_list(rows)
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in rows) + "\n\n")
    (tmp_path / "a.json").write_text(json.dumps(rows))
    data.to_parquet(tmp_path / "a.parquet")
    data.save_to_disk(tmp_path / "saved")
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "1.jsonl").write_text("\n".join(map(json.dumps, rows[:3])))
    (tmp_path / "parts" / "2.jsonl").write_text("\n".join(map(json.dumps, rows[3:])))
    for source in ("a.jsonl", "a.json", "a.parquet", "saved", "parts"):
        assert read_rows(tmp_path / source) == rows, source
    assert read_rows(data) == rows
    assert read_rows(iter(rows)) == rows


def test_what_cannot_be_read_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": 1}\n{oops\n')
    (tmp_path / "b.jsonl").write_text("[1]\n")
    (tmp_path / "c.txt").touch()
    (tmp_path / "d.json").write_text("{}")
    (tmp_path / "e.parquet").write_text("no")
    for name, message in {
        "a.jsonl": "line 2 of",
        "b.jsonl": "row 1 of .* is a list",
        "c.txt": "unknown ending",
        "d.json": "JSON dict; expected a list",
        "e.parquet": "cannot be read as Parquet",
        "gone.jsonl": "there is no dataset at",
        ".": "row 1 of .*b.jsonl|line 2 of",
    }.items():
        with pytest.raises(UsageError, match=message):
            read_rows(tmp_path / name)
    with pytest.raises(UsageError, match="pass one split"):
        read_rows({"train": [], "test": []})


def test_a_shown_example_marks_what_is_learned() -> None:
    lm = tiny()
    example, _ = one(lm, {"prompt": "This\n\x1b[31m", "completion": " film"})
    shown = show_example(lm, example)
    assert [line.split()[0] for line in shown.splitlines()] == ["read", "learned"]
    assert "\x1b" not in shown
    assert "film" in shown.splitlines()[1].replace("|", "")


# What people's data is like


HH = {
    "chosen": "\n\nHuman: Is it great?\n\nAssistant: It is dull.\n\nHuman: And the plot?\n\nAssistant: Boring!",
    "rejected": "\n\nHuman: Is it great?\n\nAssistant: It is dull.\n\nHuman: And the plot?\n\nAssistant: It is moving.",
}
OTHER = {"role": "assistant", "content": "It is moving."}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "And the plot?", "chosen": CHAT[1:], "rejected": [*CHAT[1:4], OTHER]},
        {"prompt": "And the plot? ", "chosen": np.array(CHAT[1:]), "rejected": np.array([*CHAT[1:4], OTHER])},
        {"prompt": CHAT[1:4], "chosen": CHAT[1:], "rejected": [*CHAT[1:4], OTHER]},
        {"prompt": CHAT[1:2], "chosen": CHAT[1:], "rejected": [*CHAT[1:4], OTHER]},
        {"prompt": CHAT[1:4], "chosen": CHAT[4:], "rejected": [OTHER]},
        {"chosen": CHAT[1:], "rejected": [*CHAT[1:4], OTHER], "score_chosen": 3.0},
        HH,
    ],
    ids=["UltraFeedback", "as Parquet has it", "prompt and whole", "its beginning", "apart", "whole", "hh-rlhf"],
)
def test_preferences_as_people_have_them(row: dict[str, Any]) -> None:
    """All of these are one pair."""
    lm = tiny(chat=True)
    (pair,), _ = load_preferences(lm, [row])
    assert lm.tokenizer.decode(list(pair.chosen)) == "Boring!<|im_end|>"
    assert lm.tokenizer.decode(list(pair.rejected)) == "It is moving.<|im_end|>"
    asked = lm.tokenizer.apply_chat_template(CHAT[1:4], tokenize=False, add_generation_prompt=True)
    assert lm.tokenizer.decode(list(pair.prompt)) == asked


def test_turns_in_a_text_stay_text_without_a_template() -> None:
    lm = tiny()
    (pair,), _ = load_preferences(lm, [HH])
    assert lm.tokenizer.decode(list(pair.prompt)) == HH["chosen"].removesuffix(" Boring!")
    assert lm.tokenizer.decode(list(pair.chosen)) == " Boring!<|endoftext|>"
    assert lm.tokenizer.decode(list(pair.rejected)) == " It is moving.<|endoftext|>"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"chosen": "yes", "rejected": "no"}, "are texts without a prompt; expected a column prompt beside them"),
        ({"chosen": HH["chosen"], "rejected": "\n\nHuman: Who?\n\nAssistant: Me."}, "differ before their last message"),
        ({"chosen": "So: " + HH["chosen"], "rejected": HH["rejected"]}, "a text of turns begins with 'So:"),
        ({"chosen": HH["chosen"], "rejected": CHAT[1:]}, "chosen and rejected are str and list"),
        (
            {"prompt": "Who?", "chosen": CHAT[1:3], "rejected": [CHAT[1], OTHER]},
            "the prompt is not in the conversations",
        ),
        ({"prompt": CHAT[3:4], "chosen": CHAT[1:3], "rejected": [CHAT[1], OTHER]}, "the prompt is not in the"),
        ({"prompt": "a", "chosen": CHAT[1:3], "rejected": "b"}, "prompt and response are str and list"),
        ({"prompt": CHAT[1:2], "chosen": [], "rejected": [OTHER]}, "chosen is 0 messages; expected one"),
    ],
)
def test_preferences_that_fit_no_layout_are_refused(row: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match="1 of 1 rows cannot be used") as error:
        load_preferences(tiny(chat=True), [row])
    assert message in str(error.value)


@pytest.mark.parametrize(
    "row",
    [
        {
            "conversations": [{"from": "human", "value": "Is it great?"}, {"from": "gpt", "value": "It is dull."}],
            "id": 1,
        },
        {"conversations": [{"role": "user", "content": "Is it great?"}, CHAT[2]]},
        {"instruction": "Is it great?", "input": "", "output": "It is dull."},
        {"instruction": "Is it great?", "output": "It is dull."},
        {"prompt": "Is it great?", "completion": [CHAT[2]]},
        {"prompt": CHAT[1:2], "completion": CHAT[2:3]},
        {"messages": CHAT[1:3], "prompt": "Is it great?", "prompt_id": "7"},
    ],
    ids=["ShareGPT", "conversations", "Alpaca", "Alpaca without input", "text and message", "messages", "UltraChat"],
)
def test_demonstrations_as_people_have_them(row: dict[str, Any]) -> None:
    """All of these are one conversation."""
    lm = tiny(chat=True)
    example, _ = one(lm, row)
    assert example == one(lm, {"messages": CHAT[1:3]})[0]


def test_alpaca_has_an_input_below_its_instruction() -> None:
    lm = tiny(chat=True)
    example, report = one(lm, {"instruction": "Judge:", "input": "The film.", "output": "It is dull."})
    assert "Judge:\n\nThe film.<|im_end|>" in lm.tokenizer.decode(list(example.tokens))
    assert report.ignored == ()
    for row, message in (
        ({"instruction": 3, "output": "x"}, "are not all texts"),
        ({"conversations": [{"from": "bot", "value": "x"}]}, "a turn is from 'bot'; expected human"),
        ({"conversations": "x"}, "messages is a str"),
    ):
        with pytest.raises(UsageError, match=message):
            one(lm, row)


def test_columns_of_other_names() -> None:
    lm = tiny(chat=True)
    rows = [{"question": "This film was", "answer": " dull.", "messages": 3}]
    expected = load_sft(lm, [{"prompt": "This film was", "completion": " dull."}])[0]
    for columns in ({"prompt": "question", "completion": "answer"}, ("prompt=question", "completion=answer")):
        found, report = load_sft(lm, rows, columns=columns)
        assert found == expected
        assert report.ignored == ("messages",)
    pairs = load_preferences(lm, [{"q": "So", "a": " x", "b": " y"}], columns=("prompt=q", "chosen=a", "rejected=b"))[0]
    assert lm.tokenizer.decode(list(pairs[0].chosen)) == " x<|im_end|>"
    prompts = load_prompts(lm, [{"q": "So", "answer": 3}], columns={"prompt": "q"})[0]
    assert prompts[0].row == {"q": "So", "answer": 3, "prompt": "So"}
    for columns, message in (
        (("prompt=ask", "completion=answer"), "columns names ask, but .* has the columns question, answer, messages"),
        (("prompt",), "columns has 'prompt'; expected our name and the data's, such as prompt=question"),
        (("=question",), "expected our name"),
        (("prompt=question", "prompt=answer"), "columns has prompt twice, from question and from answer"),
        (("prompt=question",), "expected prompt and completion"),
    ):
        with pytest.raises(UsageError, match=message):
            load_sft(lm, rows, columns=columns)


CALLS = [{"name": "find", "arguments": {"film": "Up"}}]
TOOLS = [{"name": "find"}]


def test_content_in_parts_and_calls_of_tools() -> None:
    """Parts of text are one text; calls are learned where the template renders them, and refused where it does not."""
    lm = tiny(chat=True)
    parts = [
        CHAT[1],
        {"role": "assistant", "content": [{"type": "text", "text": "It is"}, {"type": "text", "text": " dull."}]},
    ]
    assert one(lm, {"messages": parts})[0] == one(lm, {"messages": CHAT[1:3]})[0]
    calling = [
        CHAT[1],
        {"role": "assistant", "content": None, "tool_calls": CALLS},
        {"role": "tool", "content": "dull"},
    ]
    for row, message in (
        ({"messages": [*calling, CHAT[2]]}, "message 2 calls tools, which the chat template does not render"),
        ({"messages": CHAT, "tools": TOOLS}, "it offers tools, which the chat template does not render"),
        ({"messages": CHAT, "tools": "{"}, "tools is no JSON"),
        ({"messages": CHAT, "tools": {"a": 1}}, "tools is a dict; expected a list"),
        ({"messages": [CHAT[1], {"role": "assistant", "content": None}]}, "is a NoneType; expected text"),
        (
            {"messages": [CHAT[1], {"role": "assistant", "content": "", "function_call": {"name": "find"}}]},
            "message 2 of messages has a function_call; expected tool_calls in its place",
        ),
    ):
        with pytest.raises(UsageError, match=message):
            one(lm, row)
    template = lm.tokenizer.chat_template
    lm.tokenizer.chat_template = "{% if tools %}{{ tools | tojson + '\n' }}{% endif %}" + template.replace(
        "message['content'] +", "message['content'] + (message.tool_calls | tojson if message.tool_calls else '') +"
    )
    try:
        example, _ = one(lm, {"messages": [*calling, CHAT[2]], "tools": TOOLS})
        assert example == one(lm, {"messages": [*calling, CHAT[2]], "tools": json.dumps(TOOLS)})[0]
        control = [*calling[:1], {**calling[1], "tool_calls": [{"name": "<|im_end|>"}]}, *calling[2:]]
        with pytest.raises(UsageError, match="message 2 holds the control token"):
            one(lm, {"messages": control, "tools": TOOLS})
        prompt = load_prompts(lm, [{"prompt": CHAT[1:2], "tools": TOOLS}])[0][0]
    finally:
        lm.tokenizer.chat_template = template
    assert learned(lm, example) == [json.dumps(CALLS) + "<|im_end|>", "It is dull.<|im_end|>"]
    assert "find" in lm.tokenizer.decode(list(prompt.tokens))


THINKING = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
    "{% if message.role == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ message.content + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}"
    "{% elif opens is defined %}{{ '<think>\n' }}{% endif %}{% endif %}"
)
"""As Qwen3 has it: thoughts of earlier turns are left out; as Qwen3.5, where it opens them itself."""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "<think>\n\n</think>\n\n{}<|im_end|>"),
        ({"enable_thinking": False}, "{}<|im_end|>"),
        ({"opens": True}, "\n</think>\n\n{}<|im_end|>"),
    ],
)
def test_a_template_that_thinks(arguments: dict[str, bool], said: str) -> None:
    """Each turn is learned after the history and the prompt that the model would have seen."""
    lm = tiny(chat=True)
    template = lm.tokenizer.chat_template
    lm.tokenizer.chat_template = with_arguments(THINKING, arguments)
    try:
        examples, report = load_sft(lm, [{"messages": CHAT}])
        prompts = [load_prompts(lm, [{"prompt": CHAT[:i]}])[0][0].tokens for i in (2, 4)]
        (pair,), _ = load_preferences(lm, [{"prompt": CHAT[:2], "chosen": CHAT[2:3], "rejected": [OTHER]}])
    finally:
        lm.tokenizer.chat_template = template
    assert (report.used, report.cut) == (1, 1)
    assert "1 cut into a sequence for every turn" in "\n".join(report.lines())
    for example, prompt, answer in zip(examples, prompts, ("It is dull.", "Boring!"), strict=True):
        assert example.tokens[: len(prompt)] == prompt
        assert example.response == tuple(len(prompt) <= i < len(example.tokens) - 1 for i in range(len(example.tokens)))
        assert lm.tokenizer.decode(list(example.tokens[len(prompt) : -1])) == said.format(answer)
    assert pair.prompt == prompts[0]
    assert lm.tokenizer.decode(list(pair.rejected)) == said.format("It is moving.")


def test_a_template_takes_arguments() -> None:
    assert with_arguments(None, {}) is None
    once = with_arguments(THINKING, {"enable_thinking": False})
    assert with_arguments(once, {"enable_thinking": False}) == once
    assert with_arguments(once, {"enable_thinking": True}) == once.replace("False", "True", 1)
    for template, arguments, message in (
        (THINKING, {"enable_thinkin": False}, "knows no argument 'enable_thinkin'; it has enable_thinking, opens"),
        (THINKING, {"messages": []}, "knows no argument 'messages'"),
        (None, {"enable_thinking": False}, "has none; give one"),
    ):
        with pytest.raises(UsageError, match=message):
            with_arguments(template, arguments)
    assert template_arguments('{"enable_thinking": false}') == {"enable_thinking": False}
    for given, message in (("enable_thinking", "is no JSON"), ("[1]", "expected values by name")):
        with pytest.raises(UsageError, match=message):
            template_arguments(given)


def test_bad_rows_are_named_with_their_file(tmp_path: Path) -> None:
    """Also in a folder of files; text that is no Unicode is such a row, and can be left out."""
    good = {"prompt": "This film was", "completion": " dull."}
    (tmp_path / "1.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (good, good)))
    (tmp_path / "2.jsonl").write_text(json.dumps(good) + "\n" + json.dumps({**good, "completion": "x \ud83d"}) + "\n")
    with pytest.raises(UsageError, match=r"1 of 4 rows cannot be used: row 2 of .*2\.jsonl: the text holds half"):
        load_sft(tiny(), tmp_path)
    examples, report = load_sft(tiny(), tmp_path, drop_bad_rows=True)
    assert len(examples) == 3
    assert report.bad[0].startswith(f"row 2 of {tmp_path / '2.jsonl'}: ")
    for load, row in (
        (load_preferences, {"prompt": "a", "chosen": "b", "rejected": "\ud83d"}),
        (load_prompts, {"prompt": "half \ude00"}),
        (load_prompts, {"prompt": [{"role": "user", "content": "\ud83d"}]}),
    ):
        with pytest.raises(UsageError, match="holds half a character"):
            load(tiny(chat=True), [row])


def test_names_twice_and_marks_in_data(tmp_path: Path) -> None:
    """A mark of UTF-8 before the text is none of it; a name twice is counted, since its last value is read."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "x", "prompt": "This", "completion": " film"}\n', encoding="utf-8-sig")
    examples, report = load_sft(tiny(), path)
    assert examples == load_sft(tiny(), [{"prompt": "This", "completion": " film"}])[0]
    assert "1 have a column twice, of which the last is read" in "\n".join(report.lines())
    for text, message in (("[" * 5000, "line 1 of .*a.jsonl cannot be read as JSON: .*deep"), ("9" * 5000, "digits")):
        path.write_text(text)
        with pytest.raises(UsageError, match=message):
            load_sft(tiny(), path)


@pytest.mark.parametrize("source", [None, 3, b"rows", print, "x" * 5000, "\x00", {"train": []}, ["a", "b"], [None]])
def test_what_is_no_dataset_is_refused(source: Any) -> None:
    with pytest.raises(UsageError) as error:
        load_sft(tiny(), source)
    assert len(str(error.value)) < 400


def test_a_generator_of_rows_is_read() -> None:
    assert load_sft(tiny(), (row for row in demonstrations(3)))[0] == load_sft(tiny(), demonstrations(3))[0]
