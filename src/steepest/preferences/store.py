"""The preference project: one SQLite file with all that is compared and all that was said about it.

What a method has written when it returns is on disk, whatever happens to the process or the machine after. Judgements
are only ever added: what a labeller takes back is retracted by a further one.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, cast

import numpy as np

from steepest.errors import RunError, UsageError, require
from steepest.preferences.records import (
    MOST_COMPARED,
    Array,
    Clip,
    Item,
    Judgement,
    Message,
    Prompt,
    Response,
    Settings,
    checked_content,
)
from steepest.preferences.schema import connect, explained
from steepest.preferences.texts import plain_text

OBSERVATIONS, ACTIONS = "observations", "actions"


class Project:
    """A preference project. ``open`` and ``create`` make one; it can be used from several threads, and closed.

    Verified:  tests/unit/test_preference_store.py::test_what_is_added_is_read_back
    """

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._db = connection
        self._lock = threading.RLock()

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open a project that is there.

        Raises:    UsageError where there is none; RunError where it is damaged; see ``schema.connect``
        """
        path = Path(path).expanduser()
        return cls(path, connect(path))

    @classmethod
    def create(cls, path: str | Path) -> Self:
        """Open a project, and make it where there is none; errors as for ``open``."""
        path = Path(path).expanduser()
        return cls(path, connect(path, create=True))

    def close(self) -> None:
        """Close the file. Further calls do nothing."""
        with self._lock:
            self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def writing(self) -> Generator[sqlite3.Connection]:
        """Give the connection inside a transaction, which is on disk when this returns; whole or not at all.

        Inside another one of the same thread it is a part of that.

        Raises:    RunError when the system refuses: nothing has changed then
        """
        with self._lock:
            if self._db.in_transaction:
                yield self._db
                return
            try:
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    yield self._db
                    self._db.execute("COMMIT")
                except BaseException:
                    if self._db.in_transaction:
                        self._db.execute("ROLLBACK")
                    raise
            except sqlite3.Error as error:
                raise RunError(explained(self.path, error)) from error

    def rows(self, query: str, *given: object) -> list[tuple[Any, ...]]:
        """Return what a query finds.

        Raises:    RunError where the file is damaged
        """
        with self._lock:
            try:
                return self._db.execute(query, given).fetchall()
            except (sqlite3.Error, UnicodeDecodeError) as error:
                shown = error if isinstance(error, sqlite3.Error) else sqlite3.DatabaseError(str(error))
                raise RunError(explained(self.path, shown)) from error

    def loads(self, text: Any) -> Any:
        """Return what a JSON text of the file says; RunError where it is none."""
        try:
            return json.loads(text)
        except (ValueError, TypeError, RecursionError) as error:
            raise RunError(f"{self.path} is damaged: {str(text)[:60]!r} is no JSON") from error

    def ids(self, text: Any) -> tuple[int, ...]:
        """Return the ids in a JSON list of the file; RunError where it is none."""
        found = self.loads(text)
        if not isinstance(found, list) or not all(type(x) is int for x in cast(list[Any], found)):
            raise RunError(f"{self.path} is damaged: {str(text)[:60]!r} is no list of ids")
        return tuple(cast(list[int], found))

    # Settings

    @property
    def settings(self) -> Settings:
        """How the project is labelled."""
        known = {f.name for f in fields(Settings)}
        rows = self.rows("SELECT name, value FROM setting")
        try:
            return Settings(**{name: self.loads(value) for name, value in rows if name in known})
        except TypeError as error:
            raise RunError(f"{self.path} is damaged: its settings are {dict(rows)!r}") from error

    def change_settings(self, settings: Settings) -> None:
        """Keep how the project is labelled from now on; items close and open again accordingly."""
        with self.writing() as db:
            for name, value in asdict(settings).items():
                db.execute(
                    "INSERT INTO setting VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
                    (name, _json(value)),
                )
            db.execute(f"UPDATE item SET open = ({LABELS_OF_ITEM}) < ?", (settings.labels_per_item,))

    # Adding

    def add_prompt(self, content: object) -> int:
        """Add a prompt, a text or a list of messages, and return its id; one that is there is not added again."""
        text = _json(checked_content(content))
        digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
        with self.writing() as db:
            db.execute("INSERT INTO prompt (content, digest) VALUES (?, ?) ON CONFLICT DO NOTHING", (text, digest))
            return int(db.execute("SELECT id FROM prompt WHERE digest = ?", (digest,)).fetchone()[0])

    def add_responses(
        self, prompt: int, texts: Sequence[str], *, source: str, settings: Sequence[Mapping[str, Any]]
    ) -> list[int]:
        """Add responses to a prompt and return their ids.

        Args:      source: the model, which labellers never see; settings: of each response, how it was drawn. The same
                   settings of the same source are the same response, which is not added again
        """
        found: list[int] = []
        with self.writing() as db:
            for text, how in zip(texts, settings, strict=True):
                key = (prompt, plain_text(source, "the source"), _json(dict(how)))
                content = _json(plain_text(text, "the response"))
                db.execute(
                    "INSERT INTO response (prompt, content, source, settings) VALUES (?, ?, ?, ?) "
                    "ON CONFLICT DO NOTHING",
                    (key[0], content, *key[1:]),
                )
                row = db.execute(
                    "SELECT id, content FROM response WHERE prompt = ? AND source = ? AND settings = ?", key
                ).fetchone()
                if row[1] != content:
                    raise UsageError(
                        f"prompt {prompt} has another response of {source} under the same settings {key[2]}; "
                        "say what differs in settings"
                    )
                found.append(int(row[0]))
        return found

    def add_clip(self, clip: Clip, video: bytes) -> int:
        """Add a clip with the MP4 file that shows it and return its id; one that is there is not added again."""
        key = _clip_key(clip)
        with self.writing() as db:
            db.execute(
                "INSERT INTO clip (env, source, settings, episode, start, fps, arrays, video) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (*key, float(clip.fps), _arrays(clip), video),
            )
            return int(db.execute(f"SELECT id FROM clip WHERE {CLIP_KEY}", key).fetchone()[0])

    def find_clip(self, clip: Clip) -> int | None:
        """Return the id of a clip, None where it is not there."""
        rows = self.rows(f"SELECT id FROM clip WHERE {CLIP_KEY}", *_clip_key(clip))
        return int(rows[0][0]) if rows else None

    def add_items(
        self,
        groups: Iterable[Sequence[int]],
        *,
        kind: Literal["text", "clip"],
        selection: str = "uniform",
        priorities: Iterable[float] | None = None,
    ) -> list[int]:
        """Ask for comparisons; return the ids of the items that are new.

        Args:      groups: the ids of the responses, or of the clips, of each comparison; selection: the rule that chose
                   them; priorities: higher ones are asked first (default: all 0)
        Raises:    UsageError where a group has less than 2 or more than 9 members, twice the same, or responses to
                   different prompts
        Verified:  tests/unit/test_preference_store.py::test_what_cannot_be_compared_is_refused
        """
        asked = [tuple(sorted(group)) for group in groups]
        weights = [0.0] * len(asked) if priorities is None else [float(p) for p in priorities]
        found: list[int] = []
        with self.writing() as db:
            for members, priority in zip(asked, weights, strict=True):
                prompt = self._prompt_of(db, kind, members)
                row = db.execute(
                    "INSERT INTO item (kind, prompt, members, selection, priority) VALUES (?, ?, ?, ?, ?) "
                    "ON CONFLICT DO NOTHING RETURNING id",
                    (kind, prompt, _json(members), selection, priority),
                ).fetchone()
                if row is not None:
                    found.append(int(row[0]))
        return found

    def item_of(self, members: Sequence[int], *, kind: Literal["text", "clip"]) -> int:
        """Return the id of the item that compares these; UsageError where there is none."""
        rows = self.rows("SELECT id FROM item WHERE kind = ? AND members = ?", kind, _json(sorted(members)))
        if not rows:
            raise UsageError(f"no item compares the {kind}s {list(members)}")
        return int(rows[0][0])

    def close_items(self, items: Sequence[int]) -> None:
        """Ask nobody about some items any more, however many labels they have; an undo opens its item again."""
        with self.writing() as db:
            db.execute(f"UPDATE item SET open = 0 WHERE id IN {LISTED}", (_json(list(items)),))

    def open_items(self, items: Sequence[int]) -> set[int]:
        """Return those of some items that still ask for labels."""
        return {
            int(row[0]) for row in self.rows(f"SELECT id FROM item WHERE open = 1 AND id IN {LISTED}", _json(items))
        }

    def _prompt_of(self, db: sqlite3.Connection, kind: str, members: tuple[int, ...]) -> int | None:
        """Return the prompt that all of a group answer; None for clips."""
        require(2 <= len(members) <= MOST_COMPARED, "the number to compare", len(members), f"2 to {MOST_COMPARED}")
        if len(set(members)) < len(members):
            raise UsageError(f"the {kind}s {list(members)} hold one twice; expected different ones")
        marks = ", ".join("?" * len(members))
        column, table = ("prompt", "response") if kind == "text" else ("env", "clip")
        rows = db.execute(f"SELECT {column} FROM {table} WHERE id IN ({marks})", members).fetchall()
        if len(rows) < len(members):
            raise UsageError(f"there are not all of the {table}s {list(members)} in {self.path}")
        if len(set(rows)) > 1:
            what = "responses to one prompt" if kind == "text" else "clips of one environment"
            raise UsageError(f"{list(members)} cannot be compared; expected {what}")
        return int(rows[0][0]) if kind == "text" else None

    # Reading

    def prompts(self) -> list[Prompt]:
        """Return all prompts, in the order in which they came."""
        rows = self.rows("SELECT id, content FROM prompt ORDER BY id")
        return [Prompt(id, self._content(content)) for id, content in rows]

    def prompt(self, id: int) -> Prompt:
        """Return one prompt; UsageError where it is not there."""
        rows = self.rows("SELECT id, content FROM prompt WHERE id = ?", id)
        if not rows:
            raise UsageError(f"there is no prompt {id}")
        return Prompt(id, self._content(rows[0][1]))

    def responses(self, prompt: int | None = None) -> list[Response]:
        """Return the responses to a prompt, or all."""
        where, given = ("", ()) if prompt is None else ("WHERE prompt = ?", (prompt,))
        rows = self.rows(f"SELECT id, prompt, content, source, settings FROM response {where} ORDER BY id", *given)
        return [
            Response(id, to, str(self.loads(content)), source, dict(self.loads(settings)))
            for id, to, content, source, settings in rows
        ]

    def clips(self) -> list[Clip]:
        """Return all clips with their observations and actions; ``video`` gives their pictures."""
        query = "SELECT id, env, source, episode, arrays, fps, start, settings FROM clip ORDER BY id"
        return [
            Clip(env, source, episode, *self._read_arrays(arrays), fps, start, dict(self.loads(settings)), id)
            for id, env, source, episode, arrays, fps, start, settings in self.rows(query)
        ]

    def video(self, clip: int) -> bytes:
        """Return the MP4 file of a clip; UsageError where there is no such clip."""
        rows = self.rows("SELECT video FROM clip WHERE id = ?", clip)
        if not rows or not isinstance(rows[0][0], bytes):
            raise UsageError(f"there is no clip {clip}")
        return rows[0][0]

    def items(self) -> list[Item]:
        """Return all items."""
        rows = self.rows("SELECT id, kind, prompt, members, selection FROM item ORDER BY id")
        return [Item(id, kind, prompt, self.ids(members), how) for id, kind, prompt, members, how in rows]

    def judgements(self, items: Sequence[int] | None = None) -> list[Judgement]:
        """Return what stands: of every item the last word of each labeller, without what was retracted.

        Args:      items: of these alone; None: of all
        Verified:  tests/unit/test_preference_labelling.py::test_undo_retracts_and_asks_again
        """
        query = (
            "SELECT j.uuid, a.item, a.labeller, j.kind, j.ranking, a.shown, a.repeat, j.began, j.ended "
            "FROM judgement j JOIN assignment a ON a.id = j.assignment WHERE j.kind <> 'retract' "
            "AND NOT EXISTS (SELECT 1 FROM judgement later WHERE later.assignment = a.id AND later.id > j.id) "
        )
        where, given = ("", ()) if items is None else (f"AND a.item IN {LISTED} ", (_json(items),))
        return [self._judgement(row) for row in self.rows(f"{query}{where}ORDER BY j.id", *given)]

    def history(self) -> list[Judgement]:
        """Return all that was ever said, in order, retracted or not."""
        query = (
            "SELECT j.uuid, a.item, a.labeller, j.kind, j.ranking, a.shown, a.repeat, j.began, j.ended "
            "FROM judgement j JOIN assignment a ON a.id = j.assignment ORDER BY j.id"
        )
        return [self._judgement(row) for row in self.rows(query)]

    def _judgement(self, row: tuple[Any, ...]) -> Judgement:
        uuid, item, labeller, kind, ranking, shown, repeat, began, ended = row
        return Judgement(
            uuid, item, labeller, kind, self.ids(ranking), self.ids(shown), bool(repeat), float(began), float(ended)
        )

    def _content(self, text: Any) -> str | list[Message]:
        try:
            return checked_content(self.loads(text))
        except UsageError as error:
            raise RunError(f"{self.path} is damaged: {error}") from error

    def _read_arrays(self, data: Any) -> tuple[Array | dict[str, Array], Array]:
        """Return observations and actions from safetensors bytes, which hold numbers and nothing that could run."""
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            arrays: dict[str, Array] = load(data)
            actions = arrays.pop(ACTIONS)
            if set(arrays) == {OBSERVATIONS}:
                return arrays[OBSERVATIONS], actions
            return {name.removeprefix(f"{OBSERVATIONS}/"): x for name, x in arrays.items()}, actions
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise RunError(f"{self.path} is damaged: the arrays of a clip cannot be read: {error}") from error


LABELS_OF_ITEM = (
    "SELECT count(*) FROM assignment a "
    "WHERE a.item = item.id AND a.repeat = 0 AND a.judged IN ('prefer', 'tie', 'rank')"
)
"""How many labellers have judged an item: what they skipped is asked of others, a repeat adds no label."""


LISTED = "(SELECT value FROM json_each(?))"
"""The ids of a JSON list."""

CLIP_KEY = "env = ? AND source = ? AND settings = ? AND episode = ? AND start = ?"


def _clip_key(clip: Clip) -> tuple[Any, ...]:
    return clip.env, clip.source, _json(clip.settings), clip.episode, clip.start


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def _arrays(clip: Clip) -> bytes:
    from safetensors.numpy import save

    parts = clip.observations
    named = (
        {f"{OBSERVATIONS}/{k}": v for k, v in parts.items()} if isinstance(parts, Mapping) else {OBSERVATIONS: parts}
    )
    return save({name: np.ascontiguousarray(x) for name, x in {**named, ACTIONS: clip.actions}.items()})
