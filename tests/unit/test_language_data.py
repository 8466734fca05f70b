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
        example, _ = one(lm, {"messages": CHAT[:3]})
        lm.tokenizer.chat_template = lm.tokenizer.chat_template.replace("assistant:", "assistant: ")
        with pytest.raises(UsageError, match="the tokenizer merges across that boundary"):
            one(lm, {"messages": CHAT[:3]})
    finally:
        lm.tokenizer.chat_template = template
    assert example.tokens[-1] == lm.end_token
    assert example.response[-1]


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
            UsageError, match=r"row 1: the prompt of message 3 is no token prefix.*at token \d+ it.*differently"
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
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "is a list; expected text"),
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
