"""Who is asked what, and what they answer: items on a lease, judgements that count once, undo."""

from __future__ import annotations

import json
import math
import random
import re
import sqlite3
from typing import Any, cast

from steepest.errors import UsageError
from steepest.preferences.records import Assignment, Kind
from steepest.preferences.store import LABELS_OF_ITEM, Project

REPEAT_AFTER = 10
"""Judgements of a labeller between an item and its repetition, so that memory does not answer."""

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

COLUMNS = "a.id, a.item, a.labeller, a.repeat, a.shown"


class Conflict(UsageError):
    """What is asked contradicts what the project holds already."""


def next_assignment(project: Project, labeller: str, now: float, rng: random.Random) -> Assignment | None:
    """Return what a labeller is to judge next, on a lease from ``now``; None where there is nothing.

    An item that the labeller has not answered comes again, with the same sides: after a reload, and after an undo.
    Otherwise one that fewer than ``labels_per_item`` labellers have judged or hold, by priority, sides at random; where
    there is one, now and then instead one that the same labeller has judged, sides swapped.

    Args:      now: seconds since the epoch; rng: draws sides and repetitions
    Verified:  tests/unit/test_preference_labelling.py::test_items_go_to_as_many_labellers_as_wanted,
               tests/unit/test_preference_labelling.py::test_a_lease_ends,
               tests/unit/test_preference_labelling.py::test_sides_are_random_and_recorded,
               tests/unit/test_preference_labelling.py::test_repeats_have_their_sides_swapped,
               tests/unit/test_preference_labelling.py::test_nothing_is_repeated_to_who_has_judged_all
    """
    settings = project.settings
    with project.writing() as db:
        found = _held(db, labeller, now, settings.labels_per_item)
        if found is None:
            new = _new(db, labeller, now, settings.labels_per_item)
            if new is None:  # nothing is repeated either: a page that waits would be asked all of it again
                return None
            if rng.random() < settings.repeat_share:
                found = _repeat(project, db, labeller, rng)
            if found is None:
                found = _shuffled(project, db, labeller, new, rng)
        db.execute("UPDATE assignment SET lease = ? WHERE id = ?", (now + settings.lease_seconds, found))
        return _assignment(project, db, found)


def judge(
    project: Project,
    labeller: str,
    *,
    uuid: str,
    assignment: int,
    kind: Kind,
    ranking: tuple[int, ...],
    began: float,
    ended: float,
    now: float,
) -> bool:
    """Add a judgement; when this returns it is on disk. Return False where it was there already.

    Args:      uuid: made by whoever sends it, so that sending it again adds nothing; ranking: ids, best first; of a
               skip none; began, ended: when the labeller saw and answered, seconds since the epoch
    Raises:    UsageError where the judgement does not fit its item; Conflict where the item is another labeller's, was
               answered already, or the uuid stands for another judgement
    Verified:  tests/unit/test_preference_labelling.py::test_a_retry_counts_once,
               tests/unit/test_preference_labelling.py::test_judgements_that_do_not_fit_are_refused,
               tests/integration/test_label_server.py::test_what_was_acknowledged_survives_kill_9
    """
    checked_uuid(uuid)
    if not (math.isfinite(began) and math.isfinite(ended) and 0 <= began <= ended):
        raise UsageError(f"began is {began!r} and ended {ended!r}; expected seconds since the epoch, in order")
    with project.writing() as db:
        row = (assignment, kind, json.dumps(ranking))
        if _was_there(db, uuid, row):
            return False
        shown, judged = _own(project, db, labeller, assignment)
        _check_fit(kind, ranking, shown)
        if judged is not None:
            raise Conflict("this pair was judged already, perhaps in another window; undo takes it back")
        _append(db, uuid, row, began, ended, now)
        db.execute("UPDATE assignment SET judged = ? WHERE id = ?", (kind, assignment))
        _count_labels(project, db, assignment)
        return True


def assign(project: Project, item: int, labeller: str, shown: tuple[int, ...]) -> int:
    """Assign an item to a labeller who judged it elsewhere; return the assignment, which may be there already."""
    with project.writing() as db:
        row = db.execute(
            "SELECT id FROM assignment WHERE item = ? AND labeller = ? AND repeat = 0", (item, labeller)
        ).fetchone()
        return _assign(db, item, labeller, repeat=False, shown=shown) if row is None else int(row[0])


def undo(project: Project, labeller: str, *, uuid: str, now: float) -> Assignment | None:
    """Retract a labeller's latest judgement that stands, and return what it was about, to be judged again.

    Returns:   None where there is nothing to undo
    Raises:    Conflict where the uuid stands for something else
    Verified:  tests/unit/test_preference_labelling.py::test_undo_retracts_and_asks_again,
               tests/unit/test_preference_labelling.py::test_a_retried_undo_takes_back_one_judgement
    """
    checked_uuid(uuid)
    settings = project.settings
    with project.writing() as db:
        before = db.execute(
            "SELECT j.assignment, j.kind, a.labeller FROM judgement j JOIN assignment a ON a.id = j.assignment "
            "WHERE j.uuid = ?",
            (uuid,),
        ).fetchone()
        if before is not None:
            if before[1] != "retract" or before[2] != labeller:
                raise Conflict(f"the uuid {uuid} stands for another judgement")
            return _assignment(project, db, int(before[0]))
        row = db.execute(
            "SELECT a.id FROM judgement j JOIN assignment a ON a.id = j.assignment "
            "WHERE a.labeller = ? AND a.judged IS NOT NULL ORDER BY j.id DESC LIMIT 1",
            (labeller,),
        ).fetchone()
        if row is None:
            return None
        assignment = int(row[0])
        _append(db, uuid, (assignment, "retract", "[]"), now, now, now)
        lease = now + settings.lease_seconds
        db.execute("UPDATE assignment SET judged = NULL, lease = ? WHERE id = ?", (lease, assignment))
        _count_labels(project, db, assignment)
        return _assignment(project, db, assignment)


def checked_uuid(uuid: str) -> str:
    """Return a uuid in its canonical form; UsageError where it has another."""
    if not _UUID.fullmatch(uuid):
        raise UsageError(f"the uuid is {uuid[:60]!r}; expected one such as 6f1c7a52-0d4b-4a53-9a57-0f5f0c8a2b11")
    return uuid


def _held(db: sqlite3.Connection, labeller: str, now: float, wanted: int) -> int | None:
    """Return the latest unanswered assignment of a labeller; those that others have answered instead are left."""
    rows = db.execute(
        "SELECT id, item, lease, repeat FROM assignment WHERE labeller = ? AND judged IS NULL ORDER BY lease DESC",
        (labeller,),
    ).fetchall()
    for id, item, lease, repeat in rows:
        if repeat or lease > now or _taken(db, item, labeller, now) < wanted:
            return int(id)
    return None


def _taken(db: sqlite3.Connection, item: int, labeller: str, now: float) -> int:
    """Count the other labellers who have judged an item, or hold it."""
    query = (
        "SELECT count(*) FROM assignment WHERE item = ? AND labeller <> ? AND repeat = 0 "
        "AND (judged IN ('prefer', 'tie', 'rank') OR (judged IS NULL AND lease > ?))"
    )
    return int(db.execute(query, (item, labeller, now)).fetchone()[0])


def _repeat(project: Project, db: sqlite3.Connection, labeller: str, rng: random.Random) -> int | None:
    """Assign, once more and with the sides swapped, an item that the labeller judged some time ago."""
    old = db.execute(
        "SELECT a.item, a.shown FROM assignment a JOIN judgement j ON j.assignment = a.id "
        "WHERE a.labeller = ? AND a.repeat = 0 AND a.judged IN ('prefer', 'tie', 'rank') "
        "GROUP BY a.id ORDER BY max(j.id) DESC LIMIT -1 OFFSET ?",
        (labeller, REPEAT_AFTER),
    ).fetchall()
    done = {row[0] for row in db.execute("SELECT item FROM assignment WHERE labeller = ? AND repeat = 1", (labeller,))}
    left = [(item, shown) for item, shown in old if item not in done]
    if not left:
        return None
    item, shown = rng.choice(left)
    return _assign(db, item, labeller, repeat=True, shown=tuple(reversed(project.ids(shown))))


def _new(db: sqlite3.Connection, labeller: str, now: float, wanted: int) -> tuple[int, str] | None:
    """Return the first item that still needs a label and that the labeller has not seen, and its members."""
    row = db.execute(
        "SELECT i.id, i.members FROM item i WHERE i.open = 1 AND NOT EXISTS "
        "(SELECT 1 FROM assignment a WHERE a.item = i.id AND a.labeller = :labeller AND a.repeat = 0) "
        "AND (SELECT count(*) FROM assignment a WHERE a.item = i.id AND a.repeat = 0 AND "
        "(a.judged IN ('prefer', 'tie', 'rank') OR (a.judged IS NULL AND a.lease > :now))) < :wanted "
        "ORDER BY i.priority DESC, i.id LIMIT 1",
        {"labeller": labeller, "now": now, "wanted": wanted},
    ).fetchone()
    return None if row is None else (int(row[0]), row[1])


def _shuffled(project: Project, db: sqlite3.Connection, labeller: str, new: tuple[int, str], rng: random.Random) -> int:
    """Assign a new item, with sides drawn at random."""
    shown = list(project.ids(new[1]))
    rng.shuffle(shown)
    return _assign(db, new[0], labeller, repeat=False, shown=tuple(shown))


def _assign(db: sqlite3.Connection, item: int, labeller: str, *, repeat: bool, shown: tuple[int, ...]) -> int:
    row = db.execute(
        "INSERT INTO assignment (item, labeller, repeat, shown, lease) VALUES (?, ?, ?, ?, 0) RETURNING id",
        (item, labeller, int(repeat), json.dumps(shown)),
    ).fetchone()
    return int(row[0])


def _assignment(project: Project, db: sqlite3.Connection, id: int) -> Assignment:
    row = db.execute(f"SELECT {COLUMNS} FROM assignment a WHERE a.id = ?", (id,)).fetchone()
    return Assignment(row[0], row[1], row[2], bool(row[3]), project.ids(row[4]))


def _own(project: Project, db: sqlite3.Connection, labeller: str, id: int) -> tuple[tuple[int, ...], str | None]:
    """Return how an assignment of this labeller was shown, and the kind of what was said about it."""
    row = db.execute("SELECT labeller, shown, judged FROM assignment WHERE id = ?", (id,)).fetchone()
    if row is None:
        raise UsageError(f"there is no assignment {id}")
    if row[0] != labeller:
        raise Conflict(f"assignment {id} is not {labeller}'s")
    return project.ids(row[1]), cast("str | None", row[2])


def _was_there(db: sqlite3.Connection, uuid: str, row: tuple[int, str, str]) -> bool:
    """Return whether a judgement was added before; Conflict where the uuid stands for another one."""
    found = db.execute("SELECT assignment, kind, ranking FROM judgement WHERE uuid = ?", (uuid,)).fetchone()
    if found is None:
        return False
    if tuple(found) != row:
        raise Conflict(f"the uuid {uuid} stands for another judgement")
    return True


def _check_fit(kind: str, ranking: tuple[int, ...], shown: tuple[int, ...]) -> None:
    """UsageError unless a judgement is one of what was shown."""
    if kind not in ("prefer", "tie", "skip", "rank"):
        raise UsageError(f"the kind is {kind!r}; expected prefer, tie, skip or rank")
    expected: tuple[Any, ...] = () if kind == "skip" else tuple(sorted(shown))
    if tuple(sorted(ranking)) != expected:
        raise UsageError(f"the ranking is {list(ranking)}; expected {'none' if kind == 'skip' else f'all of {shown}'}")
    if (kind == "prefer" and len(shown) != 2) or (kind == "rank" and len(shown) == 2):
        raise UsageError(f"{len(shown)} things cannot be judged by {kind!r}; two are preferred, more are ranked")


def _append(
    db: sqlite3.Connection, uuid: str, row: tuple[int, str, str], began: float, ended: float, now: float
) -> None:
    db.execute(
        "INSERT INTO judgement (uuid, assignment, kind, ranking, began, ended, received) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (uuid, *row, float(began), float(ended), float(now)),
    )


def _count_labels(project: Project, db: sqlite3.Connection, assignment: int) -> None:
    """Close the item of an assignment where it has all its labels, or open it again."""
    wanted = project.settings.labels_per_item
    db.execute(
        f"UPDATE item SET open = ({LABELS_OF_ITEM}) < ? WHERE id = (SELECT item FROM assignment WHERE id = ?)",
        (wanted, assignment),
    )
