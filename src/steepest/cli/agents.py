"""The verbs about agents that are trained: ``evaluate`` and ``plot``."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Literal

from steepest.cli.options import Usage, draw_without_screen, parse, print_line, read_pairs
from steepest.fields import Checked, Count, Whole


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateOptions(Checked):
    """Play whole episodes with a trained agent."""

    episodes: Count = 100
    """Episodes to play, per seed of the run."""
    seed: Whole = 0
    """Seed of the evaluation's environments."""
    stochastic: bool = False
    """Draw actions instead of taking the mode of the policy."""
    which: Literal["latest", "best", "interrupted"] = "latest"
    """Which of the run's saved agents."""
    env: str | None = None
    """Another environment than the one it was trained on (default: that one)."""
    env_kwargs: tuple[str, ...] = ()
    """Arguments of the environment's constructor, KEY=VALUE each (default: those it was trained with)."""
    json: bool = False
    """Print JSON."""
    video: Path | None = None
    """Record the episodes into this .mp4 file (default: no recording)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlotOptions(Checked):
    """Draw learning curves of one or several runs into one picture."""

    out: Path = Path("curves.png")
    """The picture: .png, .pdf or .svg."""
    labels: tuple[str, ...] = ()
    """A name in the legend for every run, in their order; by default the algorithm and the options that differ."""
    statistic: Literal["mean", "iqm"] = "iqm"
    """Draw the mean over seeds, or the interquartile mean."""
    x: Literal["steps", "wall", "both"] = "both"
    """Against environment steps, wall time, or both."""
    metric: str = "train/return_mean"
    """Which figure of metrics.jsonl."""


def evaluate(argv: list[str]) -> int:
    """Run ``steepest evaluate RUN ...``."""
    what = "RUN is the folder that `steepest train` reported, a checkpoint in it, or a saved agent."
    options, words = parse(EvaluateOptions, argv, Usage("steepest evaluate", "RUN", what, least=1, most=1))
    from steepest.environments.names import check_name
    from steepest.runs.store.folder import check_saved
    from steepest.runs.view.video import check_video

    check_saved(Path(words[0]))
    if options.video is not None:
        check_video(options.video)
    if options.env is not None:
        check_name(options.env)
    if options.video is not None:
        draw_without_screen()
    from steepest.api.agents import evaluate, load
    from steepest.runs.options.varied import named_members

    agent, before = load(words[0], which=options.which), _written_at(options.video)
    results = evaluate(
        agent,
        options.env,
        episodes=options.episodes,
        seed=options.seed,
        deterministic=not options.stochastic,
        video=options.video,
        env_kwargs=read_pairs(options.env_kwargs) or None,
    )
    summaries = [r.summary() for r in results]
    if options.json:
        print(json.dumps(summaries[0] if len(summaries) == 1 else summaries))
        return 0
    for name, result in zip(named_members(agent.seeds, agent.population.varied), results, strict=True):
        print_line(f"{name}: {result}")
    if options.video is not None:
        if _written_at(options.video) == before:
            return 1  # a warning has said why
        print_line(f"video: {options.video}")
    return 0


def _written_at(path: Path | None) -> int | None:
    return None if path is None or not path.is_file() else path.stat().st_mtime_ns


def plot(argv: list[str]) -> int:
    """Run ``steepest plot RUN... ...``."""
    what = "RUN is a folder that `steepest train` reported."
    options, words = parse(PlotOptions, argv, Usage("steepest plot", "RUN...", what, least=1, most=None))
    from steepest.runs.view.plots import plot_runs

    drawn = ("labels", "statistic", "x", "metric")
    path = plot_runs([Path(word) for word in words], options.out, **{name: getattr(options, name) for name in drawn})
    print_line(str(path))
    return 0
