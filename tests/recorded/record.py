"""Write what the code at hand makes of every case: ``python tests/recorded/record.py [digests|runs]``.

Recorded anew, a digest no longer says that a change has kept the bits: the commit says why they differ.
"""

from __future__ import annotations

import itertools
import json
import shutil
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import steepest
from recorded.cases import (
    CASES,
    FOLDER,
    LANGUAGE_CASES,
    LANGUAGE_OPTIONS,
    language_data,
    machine,
    of_tensors,
    options_of,
    run_case,
    run_language_case,
    tiny,
)
from steepest.algorithms import ALGORITHMS
from steepest.runs.language_run import LanguageRun

RUNS = FOLDER / "runs"
REGIMES = {"on-policy": "ppo", "off-policy": "sac"}


def record_digests() -> None:
    """Every case into digests.json, beside those of other machines."""
    path = FOLDER / "digests.json"
    known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"digests": {}, "summaries": {}}
    digests = known["digests"].setdefault(machine(), {})
    for compiled, name, members in itertools.product((False, True), CASES, (1, 2)):
        if compiled and name not in ALGORITHMS:
            continue  # options change what is computed, not how it is compiled
        label = f"{name}, members {members}, {'compiled' if compiled else 'eager'}"
        digests[label], summary = run_case(name, members, compiled)
        known["summaries"][label] = {k: [float(f"{x:.9g}") for x in v] for k, v in summary.items()}
        print(label, digests[label], flush=True)
    for name in LANGUAGE_CASES:
        label = f"language: {name}"
        digests[label], summary = run_language_case(name)
        known["summaries"][label] = {k: [float(f"{x:.9g}") for x in v] for k, v in summary.items()}
        print(label, digests[label], flush=True)
    lines = [f"{json.dumps(label)}: {json.dumps(summary)}" for label, summary in known["summaries"].items()]
    summaries = ",\n  ".join(lines)
    path.write_text(f'{{"digests": {json.dumps(known["digests"], indent=1)},\n"summaries": {{\n  {summaries}\n}}}}\n')


def record_runs() -> None:
    """One stopped run per data regime, and one on a language model, with the digests of what they end as."""
    shutil.rmtree(RUNS, ignore_errors=True)
    ends: dict[str, Any] = {}
    for regime, name in REGIMES.items():
        options = {**options_of(name, 1, False), "total_steps": 512, "checkpoint_every": 128, "keep_checkpoints": 1}
        options |= {"eval_episodes": 1, "max_episode_steps": 60, "eval_every": 128, "tensorboard": False}
        for out, stop in ((RUNS / regime, 256), (RUNS / "whole", None)):
            with steepest.Run(CASES[name].algorithm, CASES[name].env, out=out, **options) as run:
                for row in run:
                    if stop and row["step"] >= stop:
                        break
        ends[regime] = of_tensors(run.agent.tensors(), [])
        shutil.rmtree(RUNS / "whole")
    for out, stop in ((RUNS / "language", 4), (RUNS / "whole", None)):
        options = {
            **LANGUAGE_OPTIONS,
            "checkpoint_every": 2,
            "eval_every": 2,
            "keep_checkpoints": 1,
            "eval_fraction": 0.2,
        }
        model = tiny(scale=1.0, dropout=0.1, width=16, layers=1)
        with LanguageRun("dpo", model, language_data()["pairs"], out=out, **options) as run:
            for row in run:
                if row["step"] == stop:
                    break
    ends["language"] = of_tensors(run.trainer.tensors(), [])
    shutil.rmtree(RUNS / "whole")
    for lock in RUNS.rglob(".lock"):
        lock.unlink()
    for config in RUNS.glob("*/config.json"):
        saved = json.loads(config.read_text())
        saved["command"] = "steepest"
        config.write_text(json.dumps(saved, indent=2))
    ends = {k: {"machine": machine(), "digest": digest, "summary": summary} for k, (digest, summary) in ends.items()}
    (RUNS / "ends.json").write_text(json.dumps(ends, indent=1) + "\n")


if __name__ == "__main__":
    what = sys.argv[1:] or ["digests", "runs"]
    if "runs" in what:
        record_runs()
    if "digests" in what:
        record_digests()
