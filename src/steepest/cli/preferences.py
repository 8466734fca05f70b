"""The verbs about preferences: ``sample``, ``label`` and ``labels``, each a thin face of ``steepest.api``."""

from __future__ import annotations

import dataclasses
import json
import sys
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from steepest.cli.options import MODEL, Usage, asks_for_help, draw_without_screen, fields_of, parse, print_line, say
from steepest.errors import UsageError
from steepest.fields import Checked, Count, NonNegative, Positive, PositiveShare, Share, Whole
from steepest.preferences.place import EXPOSED, Place

if TYPE_CHECKING:
    from steepest.preferences.serving import Server

SAMPLE_HELP = """usage: steepest sample MODEL PROMPTS --project FILE [-n K] [options]
       steepest sample RUN --clips N --project FILE [options]

Sample what people are to compare into a preference project: K responses of a language model to every prompt, or N clips
of what an agent does. RUN is a run's folder, a saved agent, or random.
Options of responses: steepest sample MODEL PROMPTS --help; those of clips: steepest sample RUN --clips N --help"""

PROJECT = "FILE is a preference project."

LABELS_HELP = """usage: steepest labels show FILE                    how far a project is, and how each labeller judges
       steepest labels export FILE --out ROWS.jsonl   preferences as prompt, chosen, rejected, with who said so
       steepest labels import ROWS --project FILE     preferences or responses from elsewhere; Argilla, Potato"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleOptions(Checked):
    """Sample responses of a language model into a preference project."""

    project: Path
    """The project's file; it is made where there is none."""
    n: Count = 2
    """Responses to each prompt."""
    ask: Literal["pairs", "ranking"] = "pairs"
    """Compare all pairs of a prompt's responses, or rank them all at once."""
    seed: Whole = 0
    """Seed of the responses."""
    max_new_tokens: Count = 256
    """Longest response, in tokens."""
    temperature: NonNegative = 1.0
    """Logits are divided by it."""
    top_k: Whole = 0
    """Draw among this many most probable tokens; 0: among all."""
    top_p: PositiveShare = 1.0
    """Draw among the most probable tokens that together have this probability."""
    raw: bool = False
    """Give prompts to the model as they are, without its chat template."""
    system: str | None = None
    """System message at the beginning of the conversation, for models with a chat template (default: none)."""
    template_kwargs: str | None = None
    """Values of the chat template's arguments, as JSON: '{"enable_thinking": false}'."""
    micro_batch_size: Count = 64
    """Responses sampled at once; changes nothing but speed and memory."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the model; auto takes a GPU if there is one."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number type of the weights."""
    quiet: bool = False
    """Show nothing but the result."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipOptions(Checked):
    """Sample clips of what an agent does into a preference project."""

    project: Path
    """The project's file; it is made where there is none."""
    clips: Count
    """How many clips."""
    seconds: Positive = 1.5
    """Length of a clip, as it plays."""
    pairs: Count | None = None
    """Comparisons to ask for (default: as many as clips)."""
    env: str | None = None
    """Another environment than the one the agent was trained on (default: that one; the random policy needs one)."""
    which: Literal["latest", "best", "interrupted"] = "latest"
    """Which of a run's saved agents plays."""
    member: Whole | None = None
    """Of a run of several seeds, which one, counted from 0 (default: must be given then)."""
    deterministic: bool = False
    """Take the mode of the policy instead of drawing."""
    seed: Whole = 0
    """Seed of the episodes."""
    max_episode_steps: Count | None = None
    """Another time limit than that of the run, or of the environment (default: theirs)."""
    quiet: bool = False
    """Show nothing but the result."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelOptions(Place):
    """Serve the page on which people compare what a preference project holds."""

    labels_per_item: Count | None = None
    """Labellers who judge each comparison; kept in the project (default: as before, at first 1)."""
    repeat_share: Share | None = None
    """Share that is asked twice with the sides swapped; kept in the project (default: as before, at first 0.05)."""
    lease_seconds: Positive | None = None
    """How long a comparison waits for its labeller; kept in the project (default: as before, at first 600)."""
    browse: bool = False
    """Open the page in a browser on this machine."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShowOptions(Checked):
    """How far a project is, and how each labeller judges."""

    json: bool = False
    """Print JSON."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportOptions(Checked):
    """Preferences about texts as rows of prompt, chosen and rejected, with who said so."""

    out: Path
    """The file, ending in .jsonl or .parquet."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportOptions(Checked):
    """Preferences, or responses still to be compared, from elsewhere."""

    project: Path
    """The project's file; it is made where there is none."""
    items: Path | None = None
    """Of Potato's annotations, the data file that was annotated (default: none)."""
    labeller: str | None = None
    """Whoever has judged, where the rows do not say (default: the name of the file)."""


def sample(argv: list[str]) -> int:
    """Run ``steepest sample MODEL PROMPTS ...`` or ``steepest sample RUN --clips N ...``."""
    if any(word == "--clips" or word.startswith("--clips=") for word in argv):
        return _sample_clips(argv)
    if asks_for_help(argv) and argv[0].startswith("-"):
        print(SAMPLE_HELP)
        return 0
    argv = ["--n" if word == "-n" else word for word in argv]
    what = f"{MODEL} PROMPTS is data with a column prompt. With --clips N, a run takes the place of both."
    usage = Usage("steepest sample", "MODEL PROMPTS", what, least=2, most=2)
    options, (model, prompts) = parse(SampleOptions, argv, usage)
    from steepest.cli.language import check_places

    check_places(prompts, model)
    from steepest.api.preferences import sample as sample_responses

    ours = ("project", "n", "quiet")
    given = {name: value for name, value in fields_of(options).items() if name not in ours}
    note = (lambda _: None) if options.quiet else say
    found = sample_responses(model, prompts, options.project, responses=options.n, note=note, **given)
    print_line(f"{found.prompts:,} new prompts, {found.responses:,} new responses, {found.items:,} new comparisons")
    if found.unfinished:
        print_line(f"{found.unfinished:,} new responses reached --max-new-tokens before they ended")
    if found.unusable:
        print_line(f"{found.unusable:,} responses are empty, or the same as another of their prompt, and not compared")
    _next(options.project)
    return 0


def _sample_clips(argv: list[str]) -> int:
    what = "RUN is the folder that `steepest train` reported, a checkpoint in it, a saved agent, or random."
    options, (run, *_) = parse(ClipOptions, argv, Usage("steepest sample", "RUN", what, least=1, most=1))
    from steepest.cli.datasets import check_places
    from steepest.files.video import require_video

    check_places([run], options.env)
    require_video()
    draw_without_screen()
    from steepest.api.preferences import sample_clips

    given = {name: value for name, value in fields_of(options).items() if name not in ("project", "quiet")}
    found = sample_clips(run, options.project, note=(lambda _: None) if options.quiet else say, **given)
    print_line(f"{found.responses:,} new clips, {found.items:,} new comparisons")
    _next(options.project)
    return 0


def _next(project: Path) -> None:
    print_line(f"project:        {project}")
    print_line(f"next:           steepest label {project}")


def label(argv: list[str]) -> int:
    """Run ``steepest label FILE ...``, until Ctrl-C."""
    usage = Usage("steepest label", "FILE", "FILE is what `steepest sample` made.", least=1, most=1)
    options, (project, *_) = parse(LabelOptions, argv, usage)
    from steepest.api import preferences

    place = Place(**{field.name: getattr(options, field.name) for field in dataclasses.fields(Place)})
    kept = {name: getattr(options, name) for name in ("labels_per_item", "repeat_share", "lease_seconds")}
    found = preferences.label(project, place=place, on_ready=lambda server: _announce(server, options.browse), **kept)
    names = ", ".join(labeller.name for labeller in found.labellers)
    print_line(f"\n{found.judged:,} judgements{f' by {names}' if names else ''}")
    print_line(f"next:           steepest labels show {project}")
    return 0


def _announce(server: Server, browse: bool) -> None:
    """Say where the page is; whoever has a link may label."""
    if server.place.is_exposed:
        say(EXPOSED)
    for link in server.links:
        print_line(f"{(link.labeller or 'open') + ':':16}{link.url}")
    print_line("stop:           Ctrl-C; every judgement that the page shows as saved is on disk")
    sys.stdout.flush()
    if browse:
        webbrowser.open(server.links[0].url)


def labels(argv: list[str]) -> int:
    """Run ``steepest labels show|export|import ...``."""
    verbs = {"show": _show, "export": _export, "import": _import}
    if argv and argv[0] in ("-h", "--help"):
        print(LABELS_HELP)
        return 0
    if not argv or argv[0] not in verbs:
        raise UsageError(f"which verb of labels? {', '.join(verbs)} (steepest labels --help)")
    return verbs[argv[0]](argv[1:])


def _show(argv: list[str]) -> int:
    options, (project, *_) = parse(ShowOptions, argv, Usage("steepest labels show", "FILE", PROJECT, least=1, most=1))
    from steepest.api.preferences import project_measures, project_summary

    found = project_summary(project)
    if options.json:
        rows = [row._asdict() for row in found.labellers]
        print(json.dumps({**found._asdict(), "labellers": rows, "measures": project_measures(project)}))
        return 0
    print_line(f"{found.judged:,} judgements; {found.complete:,} of {found.items:,} comparisons have all their labels")
    for row in found.labellers:
        left = "" if row.left is None else f", the left one chosen in {row.left:.0%}"
        same = f", {row.consistent:.0%} of {row.repeats} repeats judged the same" if row.consistent is not None else ""
        median = "" if row.seconds is None else f", {row.seconds:.1f} s each"
        print_line(f"{row.name}: {row.judged:,} judged, {row.ties:,} equal, {row.skips:,} skipped{left}{same}{median}")
    for line in project_measures(project):
        print_line(line)
    return 0


def _export(argv: list[str]) -> int:
    options, (project, *_) = parse(
        ExportOptions, argv, Usage("steepest labels export", "FILE", PROJECT, least=1, most=1)
    )
    from steepest.api.preferences import export_preferences

    count = export_preferences(project, options.out)
    print_line(f"{count:,} preferences: {options.out}")
    return 0


def _import(argv: list[str]) -> int:
    what = "ROWS is a .jsonl, .json or .parquet file, or a folder of such files."
    usage = Usage("steepest labels import", "ROWS", what, least=1, most=1)
    options, (rows, *_) = parse(ImportOptions, argv, usage)
    from steepest.api.preferences import import_preferences

    found = import_preferences(rows, options.project, items=options.items, labeller=options.labeller)
    print_line(
        f"{found.prompts:,} prompts, {found.responses:,} responses, {found.items:,} comparisons and "
        f"{found.judgements:,} judgements are new"
    )
    if found.known:
        print_line(f"{found.known:,} judgements were there already")
    _next(options.project)
    return 0
