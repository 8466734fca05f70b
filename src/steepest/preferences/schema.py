"""The SQLite file of a preference project: its tables, their versions, and how a file of unknown origin is opened."""

from __future__ import annotations

import sqlite3
import stat
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from steepest.errors import RunError, UsageError

MAGIC = b"SQLite format 3\x00"
APPLICATION = 0x73746C62
"""SQLite's ``application_id`` of a project."""

BUSY_SECONDS = 15.0
"""How long one process waits for another that is writing."""

CHECKED_BYTES = 2**26
"""Smaller files are checked page by page as they are opened."""

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE setting (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
    CREATE TABLE prompt (id INTEGER PRIMARY KEY, content TEXT NOT NULL, digest BLOB NOT NULL UNIQUE) STRICT;
    CREATE TABLE response (
        id INTEGER PRIMARY KEY,
        prompt INTEGER NOT NULL REFERENCES prompt (id),
        content TEXT NOT NULL,
        source TEXT NOT NULL,
        settings TEXT NOT NULL,
        UNIQUE (prompt, source, settings)
    ) STRICT;
    CREATE TABLE clip (
        id INTEGER PRIMARY KEY,
        env TEXT NOT NULL,
        source TEXT NOT NULL,
        settings TEXT NOT NULL,
        episode INTEGER NOT NULL,
        start INTEGER NOT NULL,
        fps REAL NOT NULL,
        arrays BLOB NOT NULL,
        video BLOB NOT NULL,
        UNIQUE (env, source, settings, episode, start)
    ) STRICT;
    CREATE TABLE item (
        id INTEGER PRIMARY KEY,
        kind TEXT NOT NULL CHECK (kind IN ('text', 'clip')),
        prompt INTEGER REFERENCES prompt (id),
        members TEXT NOT NULL,
        selection TEXT NOT NULL,
        priority REAL NOT NULL,
        open INTEGER NOT NULL DEFAULT 1,
        UNIQUE (kind, members)
    ) STRICT;
    CREATE INDEX item_next ON item (open, priority DESC, id);
    CREATE TABLE assignment (
        id INTEGER PRIMARY KEY,
        item INTEGER NOT NULL REFERENCES item (id),
        labeller TEXT NOT NULL,
        repeat INTEGER NOT NULL CHECK (repeat IN (0, 1)),
        shown TEXT NOT NULL,
        lease REAL NOT NULL,
        judged TEXT,
        UNIQUE (item, labeller, repeat)
    ) STRICT;
    CREATE INDEX assignment_of ON assignment (labeller, judged, lease);
    CREATE TABLE judgement (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        uuid TEXT NOT NULL UNIQUE,
        assignment INTEGER NOT NULL REFERENCES assignment (id),
        kind TEXT NOT NULL CHECK (kind IN ('prefer', 'tie', 'skip', 'rank', 'retract')),
        ranking TEXT NOT NULL,
        began REAL NOT NULL,
        ended REAL NOT NULL,
        received REAL NOT NULL
    ) STRICT;
    CREATE INDEX judgement_of ON judgement (assignment, id);
    CREATE TRIGGER judgement_unchanged BEFORE UPDATE ON judgement
        BEGIN SELECT RAISE(ABORT, 'judgements are only ever added'); END;
    CREATE TRIGGER judgement_kept BEFORE DELETE ON judgement
        BEGIN SELECT RAISE(ABORT, 'judgements are only ever added'); END;
    """,
)
"""What makes each version of the tables out of the one before; ``user_version`` says how many were applied.

``assignment.judged`` and ``item.open`` repeat what the judgements say, for speed; one transaction writes both.
"""


def is_database(path: Path) -> bool:
    """Return whether a file begins as every SQLite file does."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def connect(path: Path, *, create: bool = False, migrations: Sequence[str] = MIGRATIONS) -> sqlite3.Connection:
    """Open the file of a project, durable and suspicious, and bring its tables to the newest version.

    Nothing in the file can run: SQLite trusts no function in its schema, and a table, index, trigger or view that is
    not exactly one of ours is refused before anything is read. What is committed is on disk.

    Raises:    UsageError where there is no project, or a newer version of steepest made it; RunError where it is
               damaged, or the system refuses
    Verified:  tests/unit/test_preference_store.py::test_commits_are_durable,
               tests/unit/test_preference_store.py::test_hostile_files_are_refused,
               tests/unit/test_preference_store.py::test_migrations_are_applied_once_and_whole
    """
    path = Path(path)
    if path.exists():
        if not stat.S_ISREG(path.stat().st_mode):
            raise UsageError(f"{path} is no file; expected a preference project")
        if path.stat().st_size and not is_database(path):
            raise UsageError(f"{path} is not a preference project: it is no SQLite file")
    elif not create:
        raise UsageError(f"there is no preference project at {path}; steepest sample makes one")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(
            f"file:{quote(str(path.absolute()))}?mode={'rwc' if create else 'rw'}",
            uri=True,
            timeout=BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )
    except (sqlite3.Error, OSError) as error:
        raise RunError(f"could not open {path}: {error}") from error
    try:
        _prepare(connection, path, create, migrations)
    except sqlite3.Error as error:
        connection.close()
        raise RunError(explained(path, error)) from error
    except BaseException:
        connection.close()
        raise
    return connection


def explained(path: Path, error: sqlite3.Error) -> str:
    """Return what a failure of SQLite means, for people."""
    text = str(error)
    if "full" in text:
        return f"the disk is full: could not write {path}. What was acknowledged before is safe."
    if "locked" in text or "busy" in text:
        return f"{path} is in use: another process has been writing for {BUSY_SECONDS:g} seconds. Try again."
    if "readonly" in text or "unable to open" in text:
        return f"could not write {path}: {text}. The project and its folder must be writable."
    return f"{path} is damaged, or no preference project: {text}"


def _prepare(db: sqlite3.Connection, path: Path, create: bool, migrations: Sequence[str]) -> None:
    for pragma in ("trusted_schema=OFF", "cell_size_check=ON", "foreign_keys=ON", "recursive_triggers=ON"):
        db.execute(f"PRAGMA {pragma}")
    version, application = _version(db), int(db.execute("PRAGMA application_id").fetchone()[0])
    empty = not version and not application and not _objects(db)
    if empty and not create:
        raise UsageError(f"{path} is an empty database; steepest sample makes a preference project")
    if not empty:
        _refuse_foreign(db, path, version, application, migrations)
    if version < len(migrations):
        _migrate(db, migrations)
    mode = db.execute("PRAGMA journal_mode=WAL").fetchone()[0]
    db.execute("PRAGMA synchronous=FULL")
    if mode != "wal" or int(db.execute("PRAGMA synchronous").fetchone()[0]) != 2:
        raise RunError(f"{path} cannot be kept durable: SQLite's journal is {mode!r}. Keep it on a local disk.")


def _refuse_foreign(
    db: sqlite3.Connection, path: Path, version: int, application: int, migrations: Sequence[str]
) -> None:
    if application != APPLICATION:
        raise UsageError(f"{path} is a database of another program; expected a preference project")
    if version > len(migrations):
        raise UsageError(
            f"{path} has version {version} of the tables, and this version of steepest reads up to {len(migrations)}. "
            "Upgrade steepest: pip install --upgrade steepest"
        )
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as ours:
        for script in migrations[:version]:
            for statement in _statements(script):
                ours.execute(statement)
        foreign = _objects(db) ^ _objects(ours)
    if foreign:
        names = ", ".join(sorted({repr(name) for _, name, _ in foreign}))
        raise UsageError(f"{path} is refused: its tables are not those of a preference project ({names})")
    if path.stat().st_size < CHECKED_BYTES:
        found = str(db.execute("PRAGMA quick_check(1)").fetchone()[0])
        if found != "ok":
            raise RunError(f"{path} is damaged: {' '.join(found.split())}")


def _objects(db: sqlite3.Connection) -> set[tuple[str, str, str | None]]:
    """Return every table, index, trigger and view with the text that made it; ANALYZE may have added statistics."""
    rows = db.execute("SELECT type, name, sql FROM sqlite_schema WHERE name NOT LIKE 'sqlite_stat_'")
    return {(str(kind), str(name), None if sql is None else str(sql)) for kind, name, sql in rows}


def _version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def _migrate(db: sqlite3.Connection, migrations: Sequence[str]) -> None:
    """Apply what is missing, in one transaction: a file is of one version or of another, never between."""
    db.execute("BEGIN IMMEDIATE")
    try:
        for script in migrations[_version(db) :]:  # read again: another process may have been faster
            for statement in _statements(script):
                db.execute(statement)
        db.execute(f"PRAGMA application_id={APPLICATION}")
        db.execute(f"PRAGMA user_version={len(migrations)}")
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def _statements(script: str) -> list[str]:
    """Split a script; ``executescript`` would commit the transaction that it stands in."""
    found, part = [], ""
    for line in script.splitlines(keepends=True):
        part += line
        if part.strip() and sqlite3.complete_statement(part):
            found.append(part.strip())
            part = ""
    return found
