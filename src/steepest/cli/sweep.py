"""``steepest sweep``: search settings of an algorithm. Arguments are checked before anything that imports torch."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from steepest.algorithms import ALGORITHMS, find_config
from steepest.cli.help import grouped, show
from steepest.cli.options import (
    Usage,
    asks_for_help,
    check_words,
    filled,
    options_of,
    print_line,
    read_flags,
    read_pairs,
    say,
)
from steepest.errors import UsageError
from steepest.fields import Checked, Count
from steepest.runs.options.config import RunConfig

SWEEP_HELP = """usage: steepest sweep ALGORITHM ENV --search NAME=WHAT ... --study FOLDER [options]
       steepest sweep ALGORITHM DATA --search NAME=WHAT ... --study FOLDER [options]

Search settings of an algorithm for the highest return. WHAT is LOW:HIGH, log:LOW:HIGH, or choices A|B|C:

  steepest sweep ppo CartPole-v1 --search learning_rate=log:1e-5:1e-2 clip_epsilon=0.1:0.4 --study runs/study

The same command started again, here or on another machine that shares the folder, takes part in the same study, and
goes on with what a stopped one has left. `steepest sweep ppo --help` lists the options. ALGORITHM is one of

"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepOptions(Checked):
    """What is searched, and how."""

    search: tuple[str, ...] = ()
    """Settings to search: NAME=LOW:HIGH, NAME=log:LOW:HIGH (evenly in the logarithm), or NAME=A|B|C."""
    study: Path | None = None
    """Folder of the study: its record, all runs, and in the end best.yaml, result.json and sweep.png."""
    trials: Count = 64
    """Choices of settings to try."""
    seeds: Count = 3
    """Seeds of each trial, whose value is the interquartile mean over them."""
    population: Count = 8
    """Trials asked for together, and trained in one fused update where their shapes agree."""
    final_seeds: Count = 5
    """Fresh seeds for the best settings and the default ones at the end."""
    seed: int = 0
    """Seed of the study."""
    env_kwargs: tuple[str, ...] = ()
    """Arguments of the environment's constructor, KEY=VALUE each, such as gravity=5 natural=true (default: none)."""
    quiet: bool = False
    """Show nothing but the result."""


def sweep(argv: list[str]) -> int:
    """steepest sweep ALGORITHM ENV --search NAME=WHAT --study FOLDER"""
    words: list[str] = []
    while argv and len(words) < 2 and not argv[0].startswith("-"):
        words.append(argv.pop(0))
    wants_help = asks_for_help(argv)
    if wants_help and not words:
        print(SWEEP_HELP + "\n".join(f"  {name:14}{line}" for name, (_, line) in sorted(ALGORITHMS.items())))
        return 0
    if words:
        find_config(words[0])
    if len(words) < 2 and not wants_help:
        raise UsageError("sweep takes an algorithm and an environment or a dataset: steepest sweep ppo CartPole-v1 ...")
    algorithm, place = words[0], words[1] if len(words) > 1 else None
    usage = Usage(f"steepest sweep {algorithm}{'' if place is None else f' {place}'}", "ENV" if place is None else "")
    from steepest.environments.names import check_name
    from steepest.experience.datasets.places import check_there, is_dataset
    from steepest.runs.options.resolve import resolve_options
    from steepest.scale.search import SET_HERE, read_search

    own = options_of(SweepOptions)
    taken = {option.name for option in own} | set(SET_HERE) - {"total_steps", "eval_every"}
    offline = place is not None and is_dataset(place)
    if place is not None and not wants_help:  # before presets are looked up, which may take EnvPool's registry
        check_there(place) if offline else check_name(place, "auto")
    settings, config = resolve_options(algorithm, None if offline else place, {})
    known = [o for part in (settings, config) for o in options_of(type(part), part) if o.name not in taken]
    if wants_help:
        show(usage, "Search settings of an algorithm.", {"sweep": own, **grouped(known)})
        return 0
    given, more = read_flags([*own, *known], argv, usage.prog)
    check_words(more, usage)
    options = filled(
        SweepOptions, SweepOptions(), {k: v for k, v in given.items() if hasattr(SweepOptions, k)}, usage.prog
    )
    if options.study is None:
        raise UsageError(f"{usage.prog} needs --study FOLDER, where it keeps its trials")
    read_search(options.search, (find_config(algorithm), RunConfig), apart=SET_HERE)
    assert place is not None
    fixed: dict[str, Any] = {k: v for k, v in given.items() if not hasattr(SweepOptions, k)}
    from steepest.scale.report import table
    from steepest.scale.sweep import said, spoken
    from steepest.scale.sweep import sweep as search_settings

    own_given = {
        k: getattr(options, k) for k in ("search", "study", "trials", "seeds", "population", "final_seeds", "seed")
    }
    found = search_settings(
        algorithm,
        None if offline else place,
        data=place if offline else None,
        env_kwargs=read_pairs(options.env_kwargs) or None,
        note=None if options.quiet else say,
        **own_given,
        **fixed,
    )
    for line in table(found.trials):
        print_line(line)
    if found.importances:
        print_line("importance: " + ", ".join(f"{name} {share:.0%}" for name, share in found.importances.items()))
    if found.running:
        print_line(f"{found.running} trials are running in other processes; the last one trains the best settings")
        return 0
    if found.best is None or found.found is None or found.default is None:
        print_line("no trial has a value: every one failed" if found.best is None else "another process ends the study")
        return int(found.best is None)
    print_line(f"best:       {spoken(found.best)}")
    print_line(f"            {said(found.found)} on fresh seeds")
    print_line(f"by default: {said(found.default)}")
    print_line(f"settings:   {options.study / 'best.yaml'}")
    print_line(f"picture:    {options.study / 'sweep.png'}")
    return 0
