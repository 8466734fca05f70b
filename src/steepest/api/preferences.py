"""Everything that the command does with preference projects, as one Python call each.

Nothing here loads torch until something is sampled: the labelling page is there at once.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from steepest.errors import UsageError, require
from steepest.files.atomic import atomic_place, write_text_atomic
from steepest.preferences.exchange import Imported, add_comparisons, preference_rows, read_comparisons
from steepest.preferences.progress import Summary, summarised
from steepest.preferences.records import MOST_COMPARED
from steepest.preferences.store import Project

if TYPE_CHECKING:
    from steepest.agents.agent import Agent
    from steepest.language.models.language_model import LanguageModel
    from steepest.preferences.place import Place
    from steepest.preferences.serving import Server

PathLike = str | os.PathLike[str]
Ask = Literal["pairs", "ranking"]

AT_ONCE = 32
"""Prompts that are sampled before their responses are written: no more is lost by an interruption."""


@dataclass(frozen=True)
class Sampled:
    """What sampling has added to a project."""

    prompts: int
    responses: int
    items: int  # comparisons
    unusable: int = 0  # responses that are empty, or the same as another of their prompt, and not compared with it
    unfinished: int = 0  # new responses that were cut at max_new_tokens


def sample(
    model: LanguageModel | PathLike,
    prompts: Any,
    project: PathLike,
    *,
    responses: int = 2,
    ask: Ask = "pairs",
    seed: int = 0,
    raw: bool = False,
    system: str | None = None,
    micro_batch_size: int = 64,
    dtype: Literal["float32", "bfloat16"] = "float32",
    device: Literal["auto", "cpu", "cuda"] = "auto",
    template_kwargs: str | Mapping[str, Any] | None = None,
    note: Callable[[str], None] = lambda _: None,
    **sampling: Any,
) -> Sampled:
    """Sample responses to prompts into a preference project, and ask for their comparison.

    Sampling again with the same arguments adds nothing, and continues where it was interrupted.

    Args:
        model: what ``load_model`` takes, or a LanguageModel.
        prompts: texts, lists of messages, or a dataset with a column ``prompt``; see ``compare``.
        project: the project's file, which is made where there is none.
        responses: to each prompt.
        ask: compare all pairs of a prompt's responses, or rank them all at once.
        seed: of the responses; recorded with every one, like the other settings of sampling.
        raw, system: whether to leave out the chat template, and what conversations begin with.
        dtype, device, template_kwargs: of a model that is loaded here.
        note: takes lines about what is being done.
        sampling: fields of ``language.scoring.generation.Sampling``.
    Raises:
        UsageError for what cannot work.
    Verified:  tests/integration/test_sampling_preferences.py::test_responses_are_sampled_once
    """
    require(2 <= responses <= MOST_COMPARED, "responses", responses, f"2 to {MOST_COMPARED}")
    require(ask in ("pairs", "ranking"), "ask", ask, "pairs or ranking")
    from steepest.api import language
    from steepest.language.models.templates import template_arguments
    from steepest.language.scoring.generation import Sampling, response_text
    from steepest.seeding import stream_seed

    settings = Sampling(**sampling)
    asked = _asked(prompts)
    place = _free_for_project(project)
    made = isinstance(model, (str, os.PathLike))
    arguments = template_arguments(template_kwargs)
    require(made or not arguments, "template_kwargs", arguments, "none where the model is loaded already")
    lm = language.load_model(model, dtype=dtype, device=device, template_kwargs=arguments) if made else model
    language.refuse_system(lm, raw, system)
    source = language.name_of(model)
    how = {"seed": seed, "temperature": settings.temperature, "max_new_tokens": settings.max_new_tokens}
    how |= {"top_k": settings.top_k, "top_p": settings.top_p}
    how |= {"template_kwargs": arguments} if arguments else {}
    put = language.as_asked(lm, asked, raw, system)
    with Project.create(place) as store:
        before = _counts(store)
        unusable = unfinished = 0
        for start in range(0, len(put), AT_ONCE):
            chunk = put[start : start + AT_ONCE]
            ids = [store.add_prompt(prompt) for prompt in chunk]
            keys = [{**how, "draw": draw} for draw in range(responses)]
            if not all(_has(store, id, source, keys) for id in ids):
                drawn = language.draw_responses(
                    lm,
                    [prompt for prompt in chunk for _ in range(responses)],
                    settings,
                    seed=stream_seed(seed, f"responses from prompt {start}"),
                    micro_batch_size=micro_batch_size,
                )
                unfinished += sum(not response.ended for response in drawn)
                texts = [response_text(lm, response) for response in drawn]
                with store.writing():
                    for number, id in enumerate(ids):
                        own = texts[number * responses : (number + 1) * responses]
                        store.add_responses(id, own, source=source, settings=keys)
            unusable += sum(_ask_for(store, id, source, keys, ask, seed) for id in ids)
            note(f"{min(start + AT_ONCE, len(put)):,} of {len(put):,} prompts")
        prompts_added, added, items = (now - then for now, then in zip(_counts(store), before, strict=True))
    return Sampled(prompts_added, added, items, unusable, unfinished)


def _asked(prompts: Any) -> list[Any]:
    """Return prompts, however they were given, each of them once."""
    from steepest.api.language import prompt_rows

    found = {json.dumps(row["prompt"], default=str): row["prompt"] for row in prompt_rows(prompts)}
    return list(found.values())


def _counts(store: Project) -> list[int]:
    return [int(store.rows(f"SELECT count(*) FROM {table}")[0][0]) for table in ("prompt", "response", "item")]


def _has(store: Project, prompt: int, source: str, keys: Sequence[dict[str, Any]]) -> bool:
    """Whether all of a prompt's responses of these settings are there."""
    present = [r.settings for r in store.responses(prompt) if r.source == source]
    return all(key in present for key in keys)


def _ask_for(store: Project, prompt: int, source: str, keys: list[dict[str, Any]], ask: Ask, seed: int) -> int:
    """Ask for the comparison of a prompt's responses; return how many of them cannot be compared."""
    distinct: dict[str, int] = {}
    drawn = [r for r in store.responses(prompt) if r.source == source and r.settings in keys]
    for response in drawn:
        if response.text.strip():
            distinct.setdefault(response.text, response.id)
    ids = list(distinct.values())
    groups: list[tuple[int, ...]] = [tuple(ids)] if ask == "ranking" else list(itertools.combinations(ids, 2))
    rng = random.Random(f"{seed} {prompt}")
    if len(ids) >= 2:
        # In random order, since labelling may stop anywhere: prompts should not be labelled one after another.
        store.add_items(groups, kind="text", priorities=[rng.random() for _ in groups])
    return len(drawn) - len(ids)


def sample_clips(
    source: Agent | PathLike,
    project: PathLike,
    *,
    clips: int,
    pairs: int | None = None,
    seed: int = 0,
    note: Callable[[str], None] = lambda _: None,
    **options: Any,
) -> Sampled:
    """Play an agent, cut clips out of its episodes into a preference project, and ask for comparisons.

    Every clip is compared with an earlier one of its environment, so that all are connected; then come random pairs.

    Args:      source, options: see ``api.clips.play_clips``; project: its file, which is made where there is none;
               clips: how many; pairs: how many comparisons (default: as many as clips)
    Raises:    UsageError and RunError as ``play_clips``
    Verified:  tests/integration/test_sampling_preferences.py::test_clips_of_an_agent_are_sampled
    """
    from steepest.api.clips import play_clips

    require(pairs is None or pairs >= 1, "pairs", pairs, "at least 1")
    with Project.create(_free_for_project(project)) as store:
        before = int(store.rows("SELECT count(*) FROM clip")[0][0])
        added: list[int] = []
        env = ""
        for clip, video in play_clips(source, clips, seed=seed, **options):
            added.append(store.add_clip(clip, video))
            env = clip.env
            note(f"{len(added)} of {clips} clips")
        there = [int(row[0]) for row in store.rows("SELECT id FROM clip WHERE env = ? ORDER BY id", env)]
        rng = random.Random(seed)
        groups = connected_pairs([id for id in there if id not in set(added)], added, pairs or len(added), rng)
        items = store.add_items(groups, kind="clip", priorities=[rng.random() for _ in groups])
        after = int(store.rows("SELECT count(*) FROM clip")[0][0])
    return Sampled(0, after - before, len(items))


def connected_pairs(old: Sequence[int], new: Sequence[int], count: int, rng: random.Random) -> list[tuple[int, int]]:
    """Return ``count`` different pairs of clips, or all that there are, each with a new one in it.

    The first ones are a random tree: each new clip with an earlier one, so that all can be compared through others.

    Verified:  tests/unit/test_preference_exchange.py::test_pairs_of_clips_are_connected
    """
    order = list(new)
    rng.shuffle(order)
    earlier = list(old)
    found: dict[tuple[int, int], None] = {}
    for clip in order:
        if earlier:
            other = rng.choice(earlier)
            found[min(clip, other), max(clip, other)] = None
        earlier.append(clip)
    possible = len(new) * (len(new) - 1) // 2 + len(new) * len(old)
    while len(found) < min(count, possible):
        one, other = rng.choice(order), rng.choice(earlier)
        if one != other:
            found[min(one, other), max(one, other)] = None
    return list(found)[:count]


def _free_for_project(project: PathLike) -> Path:
    """Return where a project is or can be made, before anything long begins."""
    path = Path(project).expanduser()
    with Project.create(path):
        return path


def open_page(project: Project, place: Place | None = None, **settings: Any) -> Server:
    """Prepare the labelling page of a project: its links are known, and ``run`` serves it.

    Args:      place: where and for whom; settings: fields of ``Settings`` to change: labels_per_item, ...
    Raises:    UsageError where that could not be safe; RunError where the address is taken
    """
    from steepest.preferences.place import Place

    try:
        from steepest.preferences.serving import Server
    except ImportError as error:
        raise UsageError(
            f"the labelling page needs {error.name}, which is not installed. Run: pip install 'steepest[label]'"
        ) from error
    given = {name: value for name, value in settings.items() if value is not None}
    if given:
        project.change_settings(replace(project.settings, **given))
    return Server(project, place or Place())


def label(
    project: PathLike, *, place: Place | None = None, on_ready: Callable[[Server], None], **settings: Any
) -> Summary:
    """Serve the labelling page of a project until Ctrl-C, and return what has been labelled.

    Args:      on_ready: called with the server once its links are known; the others: see ``open_page``
    Raises:    as ``open_page``; UsageError where there is nothing to label
    """
    with Project.open(Path(project)) as store:
        server = open_page(store, place, **settings)
        on_ready(server)
        with suppress(KeyboardInterrupt):  # how a server ends
            server.run()
        return summarised(store)


def export_preferences(project: PathLike, out: PathLike) -> int:
    """Write the preferences about texts as rows with who said so, and return how many; see ``preference_rows``.

    Args:      out: a file ending in .jsonl or .parquet
    Raises:    UsageError on another ending, or where there are no preferences
    Verified:  tests/unit/test_preference_exchange.py::test_an_export_comes_back
    """
    path = Path(out)
    if path.suffix not in (".jsonl", ".parquet"):
        raise UsageError(f"{path} has an unknown ending; expected .jsonl or .parquet")
    with Project.open(Path(project)) as store:
        rows = preference_rows(store, provenance=True)
    if path.suffix == ".jsonl":
        write_text_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        return len(rows)
    import pyarrow
    import pyarrow.parquet as parquet

    if len({isinstance(row["prompt"], str) for row in rows}) > 1:
        raise UsageError("some prompts are texts, some conversations, which no Parquet column holds; use .jsonl")
    with atomic_place(path) as temporary:
        parquet.write_table(pyarrow.Table.from_pylist(rows), temporary)
    return len(rows)


def import_preferences(source: Any, project: PathLike, *, items: Any = None, labeller: str | None = None) -> Imported:
    """Add preferences, or responses that are still to be compared, to a project; see ``exchange`` for what is read.

    Args:      source: a file, a folder, a dataset's id or rows; items: of Potato's annotations, the data file;
               labeller: whoever has judged, where the rows do not say
    Raises:    UsageError on rows of no known form; nothing has been added then
    Verified:  tests/unit/test_preference_exchange.py::test_importing_twice_adds_nothing
    """
    from steepest.language.data.rows import read_rows

    rows = read_rows(source)
    data: Iterable[Any] = () if items is None else read_rows(items)
    name = Path(source).name if isinstance(source, (str, os.PathLike)) else "rows"
    with Project.create(_free_for_project(project)) as store:
        return add_comparisons(
            store, read_comparisons(rows, name=name, items=list(data), labeller=labeller), now=time.time()
        )


def project_measures(project: PathLike) -> list[str]:
    """Return what the judgements of a project say of its labellers and models, a line each."""
    from steepest.preferences.measures import labeller_measures, model_measures

    with Project.open(Path(project)) as store:
        return [*labeller_measures(store), *model_measures(store)]


def project_summary(project: PathLike) -> Summary:
    """Return how far a project has come."""
    with Project.open(Path(project)) as store:
        return summarised(store)
