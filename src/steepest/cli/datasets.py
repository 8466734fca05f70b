"""The verbs about data: ``collect`` and ``dataset show``."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Literal

from steepest.cli.options import fields_of, parse, print_line, with_positional
from steepest.errors import UsageError


@dataclasses.dataclass(frozen=True, kw_only=True)
class CollectOptions:
    """Play a policy and write what happened as a dataset to learn from."""

    out: str
    """Where to: minari:NAME-v0, a file ending in .npz or .hdf5 (D4RL's layout), or a folder of arrays."""
    steps: int | None = None
    """Steps to play."""
    mixture: tuple[str, ...] = ()
    """Instead of POLICY, several with their shares of the steps: RUN:0.5 random:0.5."""
    replay: bool = False
    """Instead of playing, write the replay buffer of an off-policy run."""
    which: Literal["latest", "best", "interrupted"] = "latest"
    """Which of a run's saved agents plays."""
    member: int | None = None
    """Of a run of several seeds, which one, counted from 0."""
    deterministic: bool = False
    """Take the mode of the policy instead of drawing; its actions then have no log_prob."""
    seed: int = 0
    """Seed of everything random."""
    num_envs: int | None = None
    """Environments played at once; by default one for every 20,000 steps, at most 8."""
    max_episode_steps: int | None = None
    """Another time limit than that of the run, or of the environment."""
    reference: tuple[float, float] | None = None
    """Returns of a random policy and of an expert, by which returns are scored."""
    reference_episodes: int = 0
    """Measure both over so many episodes: of the random policy, and of the best of those that play."""
    quiet: bool = False
    """Show no progress."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShowOptions:
    """Statistics of a dataset, and a picture of them."""

    out: Path | None = None
    """The picture (.png, .pdf or .svg)."""
    json: bool = False
    """Print JSON."""
    cache: Path | None = None
    """A folder for the rows of data that is too large for memory, from where they are mapped."""


def collect(argv: list[str]) -> int:
    """Run ``steepest collect [POLICY] [ENV] ...``."""
    what = (
        "POLICY: the folder that `steepest train` reported, a saved agent, or random. ENV: by default the environment "
        "that the agent was trained on. With --mixture there is ENV alone."
    )
    kind = with_positional(CollectOptions, "given", tuple[str, ...], "POLICY [ENV]", what)
    options = parse(kind, argv, "steepest collect")
    given: list[str] = list(options.given)
    policy = given.pop(0) if given and not options.mixture else None
    env = given.pop(0) if given else None
    if given:
        raise UsageError(f"{' '.join(given)} is too much; expected POLICY [ENV], and with --mixture [ENV] alone")
    if options.replay:
        _refuse_playing(options)
    if policy is None and (options.replay or not options.mixture):
        raise UsageError("which policy? Give a run's folder, a saved agent, or random")
    from steepest.api import datasets

    common = {name: getattr(options, name) for name in ("out", "member", "reference", "reference_episodes")}
    if options.replay and policy is not None:
        dataset = datasets.collect_replay(policy, env, **common)
    else:
        if options.steps is None:
            raise UsageError("how many steps? Give --steps N (or --replay, for the replay buffer of a run)")
        names = ("steps", "which", "deterministic", "seed", "num_envs", "max_episode_steps", "quiet")
        shares = [_share(text) for text in options.mixture]
        played = {name: getattr(options, name) for name in names}
        dataset = datasets.collect(policy, env, mixture=shares, **common, **played)
    returns, s = dataset.returns, "" if len(dataset.returns) == 1 else "s"
    print_line(
        f"{dataset.steps:,} steps in {len(returns):,} episode{s}, "
        f"return {returns.mean():.2f} +- {returns.std():.2f}\n"
        f"dataset:        {options.out}\n"
        f"next:           steepest dataset show {options.out} --out dataset.png"
    )
    return 0


def show(argv: list[str]) -> int:
    """Run ``steepest dataset show DATA ...``."""
    if argv and argv[0] in ("-h", "--help"):
        argv = ["show", *argv]
    if argv[:1] != ["show"]:
        raise UsageError("which verb of dataset? steepest dataset show DATA prints what the data holds")
    what = "minari:ID, the folder of a Minari dataset or of arrays, or a file in D4RL's or OGBench's layout."
    options = parse(with_positional(ShowOptions, "data", str, "DATA", what), argv[1:], "steepest dataset show")
    from steepest.api.datasets import dataset_summary

    found = dataset_summary(options.data, out=options.out, cache=options.cache)
    if options.json:
        print(json.dumps(found.as_dict()))
        return 0
    for line in found.lines():
        print_line(line)
    if options.out is not None:
        print_line(f"picture: {options.out}")
    return 0


def _refuse_playing(options: CollectOptions) -> None:
    """With --replay nothing is played: refuse what says how to."""
    default = fields_of(CollectOptions(out=""))
    playing = ("steps", "mixture", "which", "deterministic", "seed", "num_envs", "max_episode_steps")
    given = [f"--{name.replace('_', '-')}" for name in playing if getattr(options, name) != default[name]]
    if given:
        raise UsageError(
            f"--replay writes all that the replay buffer holds and plays nothing; leave out {', '.join(given)}"
        )


def _share(text: str) -> tuple[str, float]:
    source, colon, share = text.rpartition(":")
    try:
        return source, float(share)
    except ValueError:
        what = "has no share" if not colon else f"has the share {share!r}"
        raise UsageError(f"{text!r} of the mixture {what}; expected POLICY:SHARE, such as runs/one:0.5") from None
