"""Preferences in and out of a project: the rows that reward models and DPO learn from, and other tools' exports.

| rows | columns |
|---|---|
| preferences | ``prompt``, ``chosen``, ``rejected``; who said so in ``labeller``, what wrote it in ``chosen_source`` |
| to be labelled | ``prompt``, ``responses`` (a list of texts), what wrote them in ``sources`` |
| Argilla | records of ``to_json``: ``fields`` and ``responses``; a label or a ranking question |
| Potato | ``annotated_instances.jsonl`` with its data: ``label_annotations`` of a pairwise scheme |
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from steepest.errors import UsageError
from steepest.preferences.labelling import assign, checked_uuid, judge
from steepest.preferences.records import Judgement, Message, Prompt, Response, checked_content
from steepest.preferences.store import Project
from steepest.preferences.texts import checked_name, plain_text

Row = dict[str, Any]

NAMESPACE = uuid.UUID("8f0c8ac1-6c43-4a5e-9d4c-4f6a4de2b7a0")
"""Of the uuids of judgements that come without one: the same row makes the same uuid, and counts once."""

PROMPT_FIELDS = ("prompt", "instruction", "question", "input", "context")
TIES = ("tie", "equal", "both", "same", "draw", "neither", "no preference", "none")
LETTERS = "abcdefghi"


class Compared(NamedTuple):
    """A comparison that comes from elsewhere, with or without a judgement of it."""

    prompt: str | list[Message]
    responses: tuple[str, ...]
    sources: tuple[str, ...]
    labeller: str | None = None  # None: still to be judged
    kind: str = "prefer"
    ranking: tuple[int, ...] = ()  # places in responses, best first
    uuid: str | None = None
    began: float = 0.0
    ended: float = 0.0


@dataclass(frozen=True)
class Imported:
    """What an import has added."""

    prompts: int
    responses: int
    items: int
    judgements: int
    known: int  # rows whose judgement was there already


# Out


def preference_rows(project: Project, *, provenance: bool = False) -> list[Row]:
    """Return the preferences about texts as rows of ``prompt``, ``chosen`` and ``rejected``.

    A ranking of K gives all K (K - 1) / 2 pairs. Ties and skips prefer nothing, and repetitions, which measure
    consistency, would count a pair twice: none of these is there.

    Args:      provenance: further columns: who judged, what wrote the texts, when, and by which judgement
    Raises:    UsageError where the project holds no preference about texts, and what to do
    Verified:  tests/unit/test_preference_exchange.py::test_preferences_become_rows,
               tests/unit/test_preference_exchange.py::test_a_project_without_preferences_says_what_to_do
    """
    prompts = {p.id: p for p in project.prompts()}
    responses = {r.id: r for r in project.responses()}
    items = {i.id: i for i in project.items()}
    rows: list[Row] = []
    for judgement in project.judgements():
        item = items[judgement.item]
        if item.kind != "text" or item.prompt is None or judgement.repeat or judgement.kind not in ("prefer", "rank"):
            continue
        for better, worse in itertools.combinations(judgement.ranking, 2):
            row = _pair(prompts[item.prompt], responses[better], responses[worse])
            rows.append({**row, **_provenance(judgement, responses[better], responses[worse])} if provenance else row)
    if not rows:
        raise UsageError(_nothing_yet(project))
    return rows


def _pair(prompt: Prompt, better: Response, worse: Response) -> Row:
    """A response to messages is a message, too."""

    def turn(text: str) -> Any:
        return text if isinstance(prompt.content, str) else [{"role": "assistant", "content": text}]

    return {"prompt": prompt.content, "chosen": turn(better.text), "rejected": turn(worse.text)}


def _provenance(judgement: Judgement, better: Response, worse: Response) -> Row:
    return {
        "labeller": judgement.labeller,
        "chosen_source": better.source,
        "rejected_source": worse.source,
        "chosen_settings": json.dumps(better.settings, sort_keys=True),
        "rejected_settings": json.dumps(worse.settings, sort_keys=True),
        "kind": judgement.kind,
        "item": judgement.item,
        "uuid": judgement.uuid,
        "began": judgement.began,
        "ended": judgement.ended,
    }


def _nothing_yet(project: Project) -> str:
    texts, clips = (
        int(project.rows("SELECT count(*) FROM item WHERE kind = ?", kind)[0][0]) for kind in ("text", "clip")
    )
    if clips and not texts:
        return f"{project.path} holds clips of control; expected responses to prompts"
    if not texts:
        return f"{project.path} holds nothing to compare yet; steepest sample MODEL PROMPTS --project FILE adds it"
    return (
        f"{project.path} holds no preference yet, of {texts:,} comparisons; steepest label {project.path} collects them"
    )


# In


def read_comparisons(
    rows: Sequence[Row], *, name: str, items: Sequence[Row] = (), labeller: str | None = None
) -> Iterator[Compared]:
    """Yield what rows of any known form compare.

    Args:      name: of the file, which stands for whatever does not say what wrote it; items: of Potato, the data that
               was annotated; labeller: whoever has judged, where the rows do not say
    Raises:    UsageError on rows of no known form
    Verified:  tests/unit/test_preference_exchange.py::test_argilla_s_records_are_read,
               tests/unit/test_preference_exchange.py::test_potato_s_annotations_are_read
    """
    if not rows:
        raise UsageError(f"{name} is empty")
    found = set(rows[0])
    by_id = {str(row.get("id")): row for row in items}
    for number, row in enumerate(rows, start=1):
        try:
            if {"fields", "responses"} <= found:
                yield from _argilla(row, name)
            elif {"label_annotations", "annotations"} & found and by_id:
                yield from _potato(row, by_id, name, labeller)
            elif {"label_annotations", "annotations"} & found:
                raise UsageError("Potato keeps the texts in its data file; give that, too (--items DATA)")
            elif {"prompt", "responses"} <= found:
                yield _unjudged(row, name)
            elif {"chosen", "rejected"} <= found:
                yield _preference(row, name, labeller)
            else:
                raise UsageError(
                    f"it has the columns {', '.join(map(str, row))}; expected prompt, chosen and rejected; or prompt "
                    "and responses; or an export of Argilla or Potato"
                )
        except UsageError as error:
            raise UsageError(f"row {number} of {name}: {error}") from error


def add_comparisons(project: Project, comparisons: Iterable[Compared], *, now: float) -> Imported:
    """Add comparisons to a project, wholly or not at all; what is there already is not added again.

    Verified:  tests/unit/test_preference_exchange.py::test_importing_twice_adds_nothing
    """

    def count() -> list[int]:
        tables = ("prompt", "response", "item", "judgement")
        return [int(project.rows(f"SELECT count(*) FROM {table}")[0][0]) for table in tables]

    known = 0
    with project.writing():
        before = count()
        for one in comparisons:
            known += _add(project, one, now)
        prompts, responses, items, judgements = (now - then for now, then in zip(count(), before, strict=True))
    return Imported(prompts, responses, items, judgements, known)


def _add(project: Project, one: Compared, now: float) -> bool:
    """Add one comparison; return whether its judgement was there."""
    texts = [plain_text(text, "a response") for text in one.responses]
    if len(set(texts)) < len(texts):
        raise UsageError("two of the responses are the same; there is nothing to prefer")
    prompt = project.add_prompt(one.prompt)
    ids = [
        project.add_responses(prompt, [text], source=source, settings=[{"imported": _digest(text)}])[0]
        for text, source in zip(texts, one.sources, strict=True)
    ]
    project.add_items([ids], kind="text", selection="imported")
    if one.labeller is None:
        return False
    members = json.dumps(sorted(ids), separators=(",", ":"))
    item = int(project.rows("SELECT id FROM item WHERE kind = 'text' AND members = ?", members)[0][0])
    labeller = checked_name(one.labeller)
    ranking = tuple(ids[place] for place in one.ranking)
    said = json.dumps([item, labeller, one.kind, ranking])
    key = one.uuid or str(uuid.uuid5(NAMESPACE, said))
    if project.rows("SELECT 1 FROM assignment WHERE item = ? AND labeller = ? AND judged IS NOT NULL", item, labeller):
        return True
    return not judge(
        project,
        labeller,
        uuid=key,
        assignment=assign(project, item, labeller, tuple(ids)),
        kind=cast(Any, one.kind),
        ranking=ranking,
        began=one.began,
        ended=max(one.began, one.ended),
        now=now,
    )


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def _preference(row: Row, name: str, labeller: str | None) -> Compared:
    """A row of prompt, chosen and rejected, or of two conversations that end differently."""
    chosen, rejected = row["chosen"], row["rejected"]
    prompt = row.get("prompt")
    if prompt is None:
        turns = [checked_content(conversation) for conversation in (chosen, rejected)]
        if any(isinstance(t, str) for t in turns) or turns[0][:-1] != turns[1][:-1]:
            raise UsageError("chosen and rejected are no conversations that differ in their last message alone")
        prompt = turns[0][:-1]
    when = [float(row[key]) if isinstance(row.get(key), int | float) else 0.0 for key in ("began", "ended")]
    given = row.get("uuid")
    who = row.get("labeller") or labeller or name
    key = None if given is None else checked_uuid(str(given))
    if row.get("kind") == "rank":  # one judgement gave several rows; each becomes the judgement of a pair
        key = None
    return Compared(
        checked_content(prompt),
        (_last_text(chosen), _last_text(rejected)),
        tuple(str(row.get(f"{side}_source") or name) for side in ("chosen", "rejected")),
        str(who),
        "prefer",
        (0, 1),
        key,
        *when,
    )


def _last_text(value: Any) -> str:
    """A response: a text, or the last of its messages."""
    content = checked_content(value)
    return content if isinstance(content, str) else str(content[-1]["content"])


def _unjudged(row: Row, name: str) -> Compared:
    responses = [_last_text(value) for value in cast(Sequence[Any], row["responses"])]
    sources = row.get("sources")
    named = [name] * len(responses) if sources is None else [str(source) for source in sources]
    if len(named) != len(responses):
        raise UsageError(f"it has {len(responses)} responses and {len(named)} sources; expected as many")
    return Compared(checked_content(row["prompt"]), tuple(responses), tuple(named))


def _argilla(row: Row, name: str) -> Iterator[Compared]:
    """A record: what was compared is in its fields, what was said in its responses, question by question."""
    fields = {str(k): v for k, v in cast(Mapping[str, Any], row["fields"]).items() if v is not None}
    ask = next((f for f in PROMPT_FIELDS if f in fields), None)
    texts = {k: _last_text(v) for k, v in fields.items() if k != ask and isinstance(v, str | list)}
    if ask is None or len(texts) < 2:
        raise UsageError(
            f"its fields are {', '.join(fields)}; expected one of {', '.join(PROMPT_FIELDS)} and two or more responses"
        )
    prompt, names = checked_content(fields[ask]), tuple(texts)
    base = Compared(prompt, tuple(texts.values()), (name,) * len(names))
    said = cast(Mapping[str, Any], row["responses"] or {})
    judged = [(answer, _verdict(answer.get("value"), names)) for answers in said.values() for answer in answers or ()]
    found = [(str(answer.get("user_id")), verdict) for answer, verdict in judged if verdict is not None]
    if not found:
        yield base
    for who, (kind, ranking) in found:
        yield base._replace(labeller=who, kind=kind, ranking=ranking)


def _potato(row: Row, items: Mapping[str, Row], name: str, labeller: str | None) -> Iterator[Compared]:
    """What one annotator said about one instance; scheme by scheme, those of pairs alone."""
    id = str(row.get("id", row.get("instance_id")))
    if id not in items:
        raise UsageError(f"there is no instance {id} in the data that was annotated")
    data = items[id]
    pair = cast(list[Any], data.get("responses") or [data.get("left"), data.get("right")])
    ask = next((f for f in PROMPT_FIELDS if data.get(f)), None)
    if len(pair) != 2 or not all(isinstance(text, str) for text in pair):
        raise UsageError(f"the instance {id} holds no two texts in responses, or in left and right")
    prompt = checked_content(data[ask] if ask is not None else data.get("text"))
    who = row.get("user_id") or row.get("user") or labeller
    if who is None:
        raise UsageError("it does not say who judged; give the labeller (--labeller NAME)")
    base = Compared(prompt, tuple(pair), (name, name), str(who))
    schemes = row.get("label_annotations") or row.get("annotations") or {}
    for said in cast(Mapping[str, Any], schemes).values():
        if not isinstance(said, Mapping):
            continue
        answer = cast(Mapping[str, Any], said)
        value = answer.get("selection")
        if value is None and re.fullmatch(r"[+-]?[0-9.]+", str(answer.get("scale_value"))):
            scale = float(answer["scale_value"])
            value = "tie" if scale == 0 else "a" if scale < 0 else "b"
        verdict = _verdict(value, ("A", "B"))
        if verdict is not None:
            yield base._replace(kind=verdict[0], ranking=verdict[1])
            return


def _verdict(value: Any, names: tuple[str, ...]) -> tuple[str, tuple[int, ...]] | None:
    """Return the kind of an answer and the places it ranks, best first; None where it says nothing about order.

    A label is the name of what is better, its number or its letter, or a word for a tie; a ranking lists names with
    ranks. A ranking with equal ranks among more than two says no order that could be kept.
    """
    plain = [re.sub(r"[^a-z0-9]", "", name.lower()) for name in names]
    if isinstance(value, str):
        said = re.sub(r"[^a-z0-9]", "", value.lower())
        if value.strip().lower() in TIES:
            return "tie", tuple(range(len(names)))
        places = [i for i in range(len(names)) if said in (plain[i], str(i + 1), LETTERS[i])]
        if len(places) != 1 or len(names) != 2:
            return None
        return "prefer", (places[0], 1 - places[0])
    if not isinstance(value, list):
        return None
    ranks: dict[int, int] = {}
    for entry in cast(list[Any], value):
        if isinstance(entry, Mapping) and "value" in entry and isinstance(entry.get("rank"), int):
            said = re.sub(r"[^a-z0-9]", "", str(cast(Mapping[str, Any], entry)["value"]).lower())
            if said in plain:
                ranks[plain.index(said)] = int(cast(Mapping[str, Any], entry)["rank"])
    if len(ranks) != len(names):
        return None
    order = tuple(sorted(ranks, key=lambda place: ranks[place]))
    if len(set(ranks.values())) == 1:
        return "tie", order
    if len(set(ranks.values())) < len(names):
        return None
    return ("prefer" if len(names) == 2 else "rank"), order
