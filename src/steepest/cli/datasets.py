"""The verbs about data: ``collect`` and ``dataset show``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from steepest.cli.options import Usage, as_flag, asks_for_help, fields_of, parse, print_line, read_pairs
from steepest.errors import UsageError
from steepest.fields import Checked, Count, Whole


@dataclasses.dataclass(frozen=True, kw_only=True)
class CollectOptions(Checked):
    """Play a policy and write what happened as a dataset to learn from."""

    out: str
    """Where to: minari:NAME-v0, a file ending in .npz or .hdf5 (D4RL's layout), or a folder of arrays."""
    steps: Count | None = None
    """Steps to play (default: must be given, unless --replay is)."""
    mixture: tuple[str, ...] = ()
    """Instead of POLICY, several with their shares of the steps: RUN:0.5 random:0.5 (default: POLICY alone)."""
    replay: bool = False
    """Instead of playing, write the replay buffer of an off-policy run."""
    which: Literal["latest", "best", "interrupted"] = "latest"
    """Which of a run's saved agents plays."""
    member: Whole | None = None
    """Of a run of several seeds, which one, counted from 0 (default: must be given then)."""
    deterministic: bool = False
    """Take the mode of the policy instead of drawing; its actions then have no log_prob."""
    seed: Whole = 0
    """Seed of everything random."""
    num_envs: Count | None = None
    """Environments played at once; by default one for every 20,000 steps, at most 8."""
    env_kwargs: tuple[str, ...] = ()
    """Arguments of the environment's constructor, KEY=VALUE each (default: those of the run)."""
    max_episode_steps: Count | None = None
    """Another time limit than that of the run, or of the environment (default: theirs)."""
    reference: tuple[float, float] | None = None
    """Returns of a random policy and of an expert, by which returns are scored (default: none)."""
    reference_episodes: Whole = 0
    """Measure both over so many episodes: of the random policy, and of the best of those that play."""
    quiet: bool = False
    """Show no progress."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShowOptions(Checked):
    """Statistics of a dataset, and a picture of them."""

    out: Path | None = None
    """The picture: .png, .pdf or .svg (default: none)."""
    json: bool = False
    """Print JSON."""
    cache: Path | None = None
    """A folder for the rows of data that is too large for memory, from where they are mapped (default: none)."""


def collect(argv: list[str]) -> int:
    """Run ``steepest collect [POLICY] [ENV] ...``."""
    what = (
        "POLICY: the folder that `steepest train` reported, a saved agent, or random. ENV: by default the environment "
        "that the agent was trained on. With --mixture there is ENV alone."
    )
    options, given = parse(CollectOptions, argv, Usage("steepest collect", "[POLICY] [ENV]", what, most=2))
    policy = given.pop(0) if given and not options.mixture else None
    env = given.pop(0) if given else None
    if given:
        raise UsageError(f"{' '.join(given)} is too much; expected POLICY [ENV], and with --mixture [ENV] alone")
    if options.replay:
        _refuse_playing(options)
    if policy is None and (options.replay or not options.mixture):
        raise UsageError("which policy? Give a run's folder, a saved agent, or random")
    if options.steps is None and not options.replay:
        raise UsageError("how many steps? Give --steps N (or --replay, for the replay buffer of a run)")
    shares = [_share(text) for text in options.mixture]
    check_places([policy] if policy is not None else [source for source, _ in shares], env)
    from steepest.api import datasets

    common = {name: getattr(options, name) for name in ("out", "member", "reference", "reference_episodes")}
    if options.replay and policy is not None:
        dataset = datasets.collect_replay(policy, env, **common)
    else:
        names = ("steps", "which", "deterministic", "seed", "num_envs", "max_episode_steps", "quiet")
        played = {name: getattr(options, name) for name in names}
        played["env_kwargs"] = read_pairs(options.env_kwargs) or None
        dataset = datasets.collect(policy, env, mixture=shares, **common, **played)
    from steepest.runs.view.progress import counted

    returns = dataset.returns
    print_line(
        f"{dataset.steps:,} steps in {counted(len(returns), 'episode')}, "
        f"return {returns.mean():.2f} ± {returns.std():.2f}\n"
        f"dataset:        {options.out}\n"
        f"next:           steepest dataset show {options.out} --out dataset.png"
    )
    return 0


def show(argv: list[str]) -> int:
    """Run ``steepest dataset show DATA ...``."""
    if argv[:1] != ["show"] and not asks_for_help(argv):
        raise UsageError("which verb of dataset? steepest dataset show DATA prints what the data holds")
    what = "minari:ID, the folder of a Minari dataset or of arrays, or a file in D4RL's or OGBench's layout."
    usage = Usage("steepest dataset show", "DATA", f"DATA is {what}", least=1, most=1)
    options, (data, *_) = parse(ShowOptions, argv[1:] if argv[:1] == ["show"] else argv, usage)
    from steepest.experience.datasets.places import check_there

    check_there(data)
    if options.out is not None:
        from steepest.files.style import check_picture

        check_picture(options.out)
    from steepest.api.datasets import dataset_summary

    found = dataset_summary(data, out=options.out, cache=options.cache)
    if options.json:
        print(json.dumps(found.as_dict()))
        return 0
    for line in found.lines():
        print_line(line)
    if options.out is not None:
        print_line(f"picture: {options.out}")
    return 0


def check_places(policies: Sequence[str], env: str | None) -> None:
    """Raise UsageError where no policy is at a place, or no environment has the name."""
    from steepest.environments.names import check_name
    from steepest.runs.store.folder import check_saved

    for policy in policies:
        if policy != "random":
            check_saved(Path(policy))
    if env is not None:
        check_name(env)


def _refuse_playing(options: CollectOptions) -> None:
    """With --replay nothing is played: refuse what says how to."""
    default = fields_of(CollectOptions(out=""))
    playing = ("steps", "mixture", "which", "deterministic", "seed", "num_envs", "env_kwargs", "max_episode_steps")
    given = [as_flag(name) for name in playing if getattr(options, name) != default[name]]
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
