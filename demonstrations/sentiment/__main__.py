"""The whole demonstration, stage by stage; started again, it goes on where it was.

python -m demonstrations.sentiment [full | quick] [--jobs 2]
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

import torch

from demonstrations.sentiment import report
from demonstrations.sentiment.methods import Experiment, all_methods
from demonstrations.sentiment.settings import VARIANTS, budget
from demonstrations.sentiment.workers import make_method, make_reward, say, together


def main() -> int:
    """Run what is missing, and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("variant", nargs="?", choices=list(VARIANTS), default="full")
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread each, and threads before them")
    parser.add_argument("--out", type=Path, default=Path("runs/sentiment"))
    parser.add_argument("--budget", action="store_true", help="print what it will cost, and do nothing")
    parser.add_argument("--publish", action="store_true", help="write results and picture into docs/ as well")
    options = parser.parse_args()
    planned = budget(VARIANTS[options.variant])
    for name, seconds in {**planned, "in all": sum(planned.values())}.items():
        print(f"{name:16}{seconds:6.0f} core-seconds planned")
    if options.budget:
        return 0
    torch.set_num_threads(options.jobs)
    out = options.out.resolve()
    experiment = Experiment(VARIANTS[options.variant], out / options.variant, out / "cache", options.jobs, say)
    try:
        _ = experiment.start_record, experiment.best_of_record
        seeds = experiment.variant.seeds
        together(experiment, [partial(make_reward, seed=s) for s in seeds], options.jobs)
        together(experiment, [partial(make_method, i=i) for i in range(len(all_methods(experiment.variant)))],
                 options.jobs)  # fmt: skip
        results = report.write(experiment, publish=options.publish)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from here", file=sys.stderr)
        return 130
    print(f"{results['core_seconds_used']:.0f} core-seconds used")
    for file in ("results.json", "frontier.png", "tables.md"):
        print(experiment.root / file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
