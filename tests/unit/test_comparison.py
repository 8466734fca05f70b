"""Two models side by side: the figures, what cannot be measured, and what is shown."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import steepest
from helpers_language import chat_tokenizer, demonstrations, shout, tiny, tokenizer
from steepest.api.language import draw_responses
from steepest.errors import RunError, UsageError
from steepest.language.compare import comparison
from steepest.language.compare.comparison import Comparison
from steepest.language.compare.intervals import (
    Z,
    distinct_n,
    equally_long,
    mean_interval,
    share_interval,
    t_quantile,
    win_rate,
)
from steepest.language.compare.report import as_json, escaped, markdown, side_by_side, terminal_lines
from steepest.language.data.batching import pad, responses
from steepest.language.models.language_model import LanguageModel, language_model
from steepest.language.models.saving import save_model
from steepest.language.scoring.generation import response_text
from steepest.language.training.reward_model import RewardModel, reward_head

PROMPTS = [row["prompt"] for row in demonstrations(9)]
SHORT: dict[str, Any] = {"max_new_tokens": 8}

# Measures


def test_mean_by_hand_and_by_coverage() -> None:
    found = mean_interval([1.0, 2.0, 6.0])
    half = 4.302652729749464 * math.sqrt(7.0 / 3.0)  # Student's t with two degrees of freedom
    assert (found.value, found.low, found.high) == pytest.approx((3.0, 3.0 - half, 3.0 + half), rel=1e-12)
    draws = np.random.default_rng(0).exponential(size=(2000, 200))
    covered = np.mean([(i := mean_interval(row.tolist())).low <= 1.0 <= i.high for row in draws])
    assert 0.93 < covered < 0.965  # 0.95, less what skewness costs; three deviations of a share of 2000 are 0.015
    alone = mean_interval([4.0])
    assert alone.value == 4.0
    assert math.isnan(alone.low)
    with pytest.raises(ValueError, match="no values"):
        mean_interval([])


def test_quantiles_of_students_t() -> None:
    """Against closed forms, printed tables and, for many degrees of freedom, the expansion about the normal one."""
    assert t_quantile(1) == pytest.approx(math.tan(0.475 * math.pi), rel=1e-12)
    assert t_quantile(2) == pytest.approx(0.95 * math.sqrt(2.0 / (1.0 - 0.95**2)), rel=1e-12)
    table = {3: 3.1824463053, 4: 2.7764451052, 5: 2.5705818356, 9: 2.2621571628, 10: 2.2281388520, 30: 2.0422724563}
    for freedom, quantile in table.items():
        assert t_quantile(freedom) == pytest.approx(quantile, abs=1e-10)
    for freedom in (999, 1000, 100_001):
        first, second = (Z**3 + Z) / 4, (5 * Z**5 + 16 * Z**3 + 3 * Z) / 96
        assert t_quantile(freedom) == pytest.approx(Z + first / freedom + second / freedom**2, rel=1e-8)
    with pytest.raises(ValueError, match="degrees of freedom"):
        t_quantile(0)


def test_few_normal_values_are_covered_as_often_as_said() -> None:
    """Five seeds, as runs have: 95 % of intervals hold the mean. With the normal quantile it would be 88 %."""
    draws = np.random.default_rng(1).normal(size=(4000, 5))
    covered = np.mean([(i := mean_interval(row.tolist())).low <= 0.0 <= i.high for row in draws])
    assert abs(covered - 0.95) < 0.011  # three deviations of a share of 4000
    narrow = np.abs(draws.mean(1)) <= Z * draws.std(1, ddof=1) / math.sqrt(5)
    assert narrow.mean() < 0.90


@pytest.mark.parametrize(("count", "n"), [(0, 7), (2.5, 9), (30, 100), (5, 5)])
def test_wilson_inverts_the_test_of_a_share(count: float, n: int) -> None:
    """A bound is a share p that lies z of its own standard deviations away from what was seen, or the edge."""
    found = share_interval(count, n)
    assert found.value == count / n
    for bound, edge in ((found.low, 0.0), (found.high, 1.0)):
        assert bound == edge or abs(found.value - bound) == pytest.approx(
            Z * math.sqrt(bound * (1 - bound) / n), rel=1e-9
        )
    assert found.low < found.high
    assert (found.low == 0.0) == (count == 0)
    assert (found.high == 1.0) == (count == n)
    for bad in ((-1, 3), (4, 3), (0, 0)):
        with pytest.raises(ValueError, match="a share of"):
            share_interval(*bad)


def test_win_rate_by_hand() -> None:
    found = win_rate([1.0, 2.0, 3.0, 4.0], [1.0, 1.0, 5.0, 2.0])
    assert (found.wins, found.ties, found.losses) == (2, 1, 1)
    assert found.rate == share_interval(2.5, 4)
    back = win_rate([1.0, 1.0, 5.0, 2.0], [1.0, 2.0, 3.0, 4.0])
    assert back.rate.low == pytest.approx(1 - found.rate.high, rel=1e-12)
    with pytest.raises(ValueError, match="of pairs"):
        win_rate([1.0], [])


def test_distinct_by_hand() -> None:
    texts = ["the film the film", "the  plot\n", "dull", ""]
    assert distinct_n(texts, 1) == 4 / 7
    assert distinct_n(texts, 2) == 3 / 4  # the film, film the, the plot; none across texts
    assert distinct_n(texts, 5) == 0.0
    with pytest.raises(ValueError, match="at least one word"):
        distinct_n(texts, 0)


def test_shorter_texts_are_not_more_distinct() -> None:
    """Answers of one kind, and the same cut off: by all they say the short ones seem richer; at equal lengths, not."""
    words = np.random.default_rng(0).choice([f"w{i}" for i in range(30)], size=(40, 25))
    long = [" ".join(row) for row in words]
    short = [" ".join(row[:5]) for row in words]
    other = [" ".join(reversed(text.split())) for text in long]
    assert distinct_n(short, 1) > 3 * distinct_n(long, 1)
    one, two = equally_long(short, other)
    assert [len(text.split()) for text in one] == [len(text.split()) for text in two] == [5] * 40
    assert distinct_n(two, 2) == pytest.approx(distinct_n(one, 2), abs=0.1)
    assert equally_long(["a b c", ""], ["d  e", "f"]) == (["a b", ""], ["d e", ""])
    with pytest.raises(ValueError, match="shorter"):
        equally_long(["a"], [])


# Comparisons


def test_a_model_against_itself() -> None:
    lm = tiny()
    found = steepest.compare(lm, lm, PROMPTS, judge=shout, reference=lm, seed=3, **SHORT)
    assert found.win_rate is not None
    assert (found.win_rate.rate.value, found.win_rate.ties) == (0.5, 9)
    for side in (found.a, found.b):
        for divergence in (side.to_other, side.to_reference):
            assert divergence is not None
            assert divergence.kl.value == divergence.k1.value == divergence.kl.high == 0.0
        assert [answer.text for answer in side.answers] == steepest.respond(lm, PROMPTS, seed=3, **SHORT)
    assert found.notes == ()


def by_hand(lm: LanguageModel, other: LanguageModel, found: Comparison, which: str) -> tuple[float, float]:
    """KL by the whole vocabulary and k1 of a side's answers, a row at a time and without a mask."""
    prompts = list(found.prompts)
    drawn = draw_responses(lm, prompts, found.sampling, seed=found.seed)
    assert [answer.text for answer in getattr(found, which).answers] == [response_text(lm, r) for r in drawn]
    kl, k1 = 0.0, 0.0
    for prompt, response in zip(prompts, drawn, strict=True):
        asked = lm.tokenizer.encode(prompt)
        tokens = torch.tensor([[*asked, *response.tokens]])
        with torch.no_grad():
            logs = [m.network(input_ids=tokens).logits[0].double().log_softmax(-1) for m in (lm, other)]
        steps = range(len(asked) - 1, tokens.shape[1] - 1)
        kl += sum(float((logs[0][t].exp() * (logs[0][t] - logs[1][t])).sum()) for t in steps)
        k1 += sum(float(logs[0][t, tokens[0, t + 1]] - logs[1][t, tokens[0, t + 1]]) for t in steps)
    return kl / len(drawn), k1 / len(drawn)


def test_figures_are_those_of_the_answers() -> None:
    a, b = tiny(), tiny(seed=1, scale=4.0)
    found = steepest.compare(a, b, PROMPTS[:4], judge=shout, micro_batch_size=3, **SHORT)
    assert found.reward_difference is not None
    rewards = [shout([], [answer.text for answer in side.answers]) for side in (found.a, found.b)]
    assert found.a.reward == mean_interval([answer.reward for answer in found.a.answers if answer.reward is not None])
    assert found.b.reward is not None
    assert found.b.reward.value == pytest.approx(float(np.mean(rewards[1])), rel=1e-6)
    assert found.reward_difference.value == pytest.approx(float(np.mean(rewards[0]) - np.mean(rewards[1])), rel=1e-5)
    assert found.win_rate is not None
    assert found.win_rate.wins == sum(x > y for x, y in zip(*rewards, strict=True))
    for which, lm, other in (("a", a, b), ("b", b, a)):
        divergence = getattr(found, which).to_other
        expected = by_hand(lm, other, found, which)
        assert (divergence.kl.value, divergence.k1.value) == pytest.approx(expected, rel=1e-4)
        assert divergence.kl.value > 0.1
    assert found.a.tokens.value == np.mean([answer.tokens for answer in found.a.answers])
    assert found.a.ended.value == np.mean([answer.ended for answer in found.a.answers])
    assert found.a.characters.value == np.mean([len(answer.text) for answer in found.a.answers])
    texts = [[answer.text for answer in side.answers] for side in (found.a, found.b)]
    for side, cut in zip((found.a, found.b), equally_long(*texts), strict=True):
        assert (side.distinct_1, side.distinct_2) == (distinct_n(cut, 1), distinct_n(cut, 2))


def test_diversity_is_compared_at_equal_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Told by what it is measured on: as many words of both, though one of them says more."""
    monkeypatch.setattr(comparison, "distinct_n", lambda texts, n: sum(len(text.split()) for text in texts))
    said = iter(["a b c d", "e f", "g", "h", "i j k", "l m n o"])
    monkeypatch.setattr(comparison, "response_text", lambda lm, response: next(said))
    found = steepest.compare(tiny(), tiny(), PROMPTS[:3], **SHORT)
    assert [[answer.text for answer in side.answers] for side in (found.a, found.b)] == [
        ["a b c d", "e f", "g"], ["h", "i j k", "l m n o"],
    ]  # fmt: skip
    assert found.a.distinct_1 == found.b.distinct_2 == 1 + 2 + 1


def test_prompts_in_every_form(tmp_path: Path) -> None:
    lm = tiny()
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": p, "answer": "dull"}) + "\n" for p in PROMPTS))
    seen: list[Any] = []

    def verifier(prompts: list[str], completions: list[str], rows: list[dict[str, Any]]) -> list[float]:
        seen.extend(rows)
        return [float(row["answer"] in text) for row, text in zip(rows, completions, strict=True)]

    found = steepest.compare(lm, tiny(seed=1), file, judge=verifier, **SHORT)
    assert seen[0] == {"prompt": PROMPTS[0], "answer": "dull"}
    assert found.judge == "verifier"
    again = steepest.compare(lm, tiny(seed=1), PROMPTS, **SHORT)
    assert [a.text for a in again.b.answers] == [a.text for a in found.b.answers]
    assert again.win_rate is again.reward_difference is again.a.reward is None
    file.write_text(json.dumps({"prompt": "x"}) + "\n{}\n")
    with pytest.raises(UsageError, match=r"row 2 of the dataset .* has no prompt"):
        steepest.compare(lm, lm, file, **SHORT)


def test_conversations() -> None:
    lm = tiny(chat=True)
    chat = [{"role": "user", "content": "Is it dull?"}]
    found = steepest.compare(lm, tiny(chat=True, seed=1), ["Is it dull?", chat], **SHORT)
    plain = steepest.respond(lm, [chat, chat], **SHORT)
    assert [a.text for a in found.a.answers] == plain
    raw = steepest.compare(lm, lm, ["Is it dull?"], raw=True, **SHORT)
    assert raw.a.answers[0].text == steepest.respond(lm, ["Is it dull?"], **SHORT)[0]


def test_arguments_of_templates_are_those_of_both_models(tmp_path: Path) -> None:
    lm = tiny(chat=True)
    template = lm.tokenizer.chat_template
    lm.tokenizer.chat_template = "{% if calm is defined and calm %}{{ 'Calmly. ' }}{% endif %}" + template
    try:
        model = save_model(lm, tmp_path / "model")
    finally:
        lm.tokenizer.chat_template = template
    plain = steepest.compare(model, model, ["Is it dull?"], **SHORT)
    calm = steepest.compare(model, model, ["Is it dull?"], template_kwargs={"calm": True}, **SHORT)
    assert calm.a.answers[0].text == calm.b.answers[0].text != plain.a.answers[0].text
    with pytest.raises(UsageError, match="knows no argument 'clam'"):
        steepest.compare(model, model, ["Is it dull?"], template_kwargs='{"clam": true}', **SHORT)


def test_other_tokenizers_are_compared_by_their_texts() -> None:
    one, other = tiny(scale=1.0), tiny(chat=True, scale=1.0, seed=2)
    assert tokenizer().get_vocab() != chat_tokenizer().get_vocab()
    judge = RewardModel(tiny(scale=1.0, seed=3), reward_head(32, seed=0))
    found = steepest.compare(one, other, PROMPTS, judge=judge, raw=True, **SHORT)
    assert found.a.to_other is None
    assert found.b.to_other is None
    assert any("have different tokenizers" in note for note in found.notes)
    for side in (found.a, found.b):  # as if the judge had been given the texts
        encode = judge.lm.tokenizer.encode
        texts = [(*encode(answer.text), *([judge.lm.end_token] if answer.ended else [])) for answer in side.answers]
        batch = pad(responses([encode(p) for p in PROMPTS], texts), judge.lm.pad_token)
        expected = judge.scores(batch).tolist()
        assert [answer.reward for answer in side.answers] == pytest.approx(expected, rel=1e-4, abs=1e-6)
    with pytest.raises(UsageError, match=r"no KL from the reference: .* different tokenizers"):
        steepest.compare(one, one, PROMPTS, reference=other, **SHORT)


def test_what_cannot_be_measured_is_said() -> None:
    lm = tiny()
    for options, why in (
        ({"temperature": 0.0}, "at temperature 0"),
        ({"top_k": 3}, "with top_k"),
        ({"top_p": 0.5}, "or top_p"),
    ):
        found = steepest.compare(lm, lm, PROMPTS, **SHORT, **options)
        assert found.a.to_other is None
        assert any(why in note for note in found.notes)
    larger = tiny(context=64)
    larger.model.resize_token_embeddings(400)
    found = steepest.compare(lm, language_model(larger.model, larger.tokenizer), PROMPTS[:1], **SHORT)
    assert any("320 logits" in note for note in found.notes)
    templated = dataclasses.replace(tiny(chat=True, seed=1), tokenizer=without_template())
    found = steepest.compare(tiny(chat=True), templated, PROMPTS[:1], **SHORT)
    assert any("chat templates differ" in note for note in found.notes)
    with pytest.raises(UsageError, match=r"the dataset .* is empty"):
        steepest.compare(lm, lm, [])
    with pytest.raises(UsageError, match="prompt 2: the prompt is empty"):
        steepest.compare(lm, lm, ["x", ""])
    with pytest.raises(UsageError, match=r"the context of .* is 16"):
        steepest.compare(lm, lm, [" film" * 20], reference=tiny(context=16), **SHORT)

    def broken(prompts: list[str], completions: list[str]) -> list[float]:
        raise ZeroDivisionError("no words")

    with pytest.raises(RunError, match=r"the reward failed: ZeroDivisionError: no words \(test_comparison.py, line"):
        steepest.compare(lm, lm, PROMPTS, judge=broken, **SHORT)


def without_template() -> Any:
    import copy

    made = copy.deepcopy(chat_tokenizer())
    made.chat_template = None
    return made


# What is shown


@pytest.fixture(scope="module")
def evil() -> Comparison:
    """Answers that would command a terminal or end a block of Markdown."""
    lm = tiny()
    found = steepest.compare(lm, lm, PROMPTS[:2], judge=shout, **SHORT)
    bad = dataclasses.replace(found.a.answers[0], text="\x1b[31mred\x07 \u202e```\nnext\tcell")
    return dataclasses.replace(found, a=dataclasses.replace(found.a, answers=(bad, found.a.answers[1])))


def test_nothing_that_is_shown_commands_a_terminal(evil: Comparison) -> None:
    lines = terminal_lines(evil, 80, 3)
    for text in ("\n".join(lines), markdown(evil)):
        assert "\\x1b[31mred\\x07 \\u202e" in text
        assert escaped(text) == text
    assert all(len(line) <= 80 for line in lines[: lines.index("", 3)])
    assert any("win rate of A over B: 0.5" in line for line in lines)
    assert any("judge: shout" in line for line in lines)
    assert not any(line.startswith(">") for line in terminal_lines(evil, 80, 0))


def test_two_columns() -> None:
    assert side_by_side("a b\nc", "d", 10) == [f"{'a b':28} | d", f"{'c':28} |"]  # never narrower than 60
    assert max(map(len, side_by_side("word " * 40, "x" * 200, 70))) <= 70


def test_markdown_holds_any_text(evil: Comparison) -> None:
    text = markdown(evil)
    block = text[text.index("A (") :]
    assert "\n````\n\\x1b[31mred" in block  # a longer fence than any in the text
    assert text.count("\n## ") == 2


def test_files(evil: Comparison, tmp_path: Path) -> None:
    lm = tiny()
    out = tmp_path / "below" / "found.json"
    found = steepest.compare(lm, lm, PROMPTS[:1], out=out, **SHORT)
    data = json.loads(out.read_text())
    assert data == as_json(found)
    assert data["a"]["tokens"]["low"] is None  # of a single answer
    assert data["a"]["answers"][0]["text"] == found.a.answers[0].text
    assert out.with_suffix(".md").read_text() == markdown(found)
    assert sorted(p.name for p in out.parent.iterdir()) == ["found.json", "found.md"]
    for bad, message in ((tmp_path / "x.txt", "ending in .json"), (tmp_path / "folder.json", "is a folder")):
        (tmp_path / "folder.json").mkdir(exist_ok=True)
        with pytest.raises(UsageError, match=message):
            steepest.compare(lm, lm, PROMPTS[:1], out=bad, **SHORT)
