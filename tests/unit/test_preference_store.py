"""The project's file: what is added is read back, commits are durable, and hostile files are refused."""

from __future__ import annotations

import os
import pickle
import sqlite3
import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers_preferences import clip, say, take, text_project
from steepest.errors import RunError, UsageError
from steepest.preferences.records import Clip, Settings, checked_content
from steepest.preferences.schema import MIGRATIONS, connect
from steepest.preferences.store import Project
from steepest.preferences.texts import checked_name


def raw(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None)


def test_what_is_added_is_read_back(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "Hello \U0001f600 \x00 \u202e"}]
    with Project.create(tmp_path / "p.db") as project:
        plain, conversation = project.add_prompt("Why?"), project.add_prompt(chat)
        assert project.add_prompt("Why?") == plain
        ids = project.add_responses(
            conversation, ["a\x00b", "\ud800"], source="m", settings=[{"seed": 1, "temperature": 0.5}, {"seed": 2}]
        )
        first = project.add_clip(clip(3), b"video")
        both = {"x": np.zeros((5, 2), np.uint8), "y": np.ones(5, np.bool_)}
        second = project.add_clip(clip(4, observations=both, settings={"seed": 9}), b"other")
        items = project.add_items([ids], kind="text", selection="active", priorities=[2.0])
        assert project.add_items([ids[::-1]], kind="text") == []  # the same comparison
        items += project.add_items([[first, second]], kind="clip")
    with Project.open(tmp_path / "p.db") as project:
        assert [(p.id, p.content) for p in project.prompts()] == [(plain, "Why?"), (conversation, chat)]
        assert [(r.prompt, r.text, r.source) for r in project.responses(conversation)] == [
            (conversation, "a\x00b", "m"),
            (conversation, "\ufffd", "m"),
        ]
        assert project.responses()[0].settings == {"seed": 1, "temperature": 0.5}
        one, other = project.clips()
        assert (one.id, one.env, one.episode, one.steps, one.fps) == (first, "CartPole-v1", 3, 4, 20.0)
        assert isinstance(one.observations, np.ndarray)
        np.testing.assert_array_equal(one.observations, clip(3).observations)
        np.testing.assert_array_equal(one.actions, clip(3).actions)
        assert one.actions.dtype == np.int64
        assert isinstance(other.observations, dict)
        assert {k: v.dtype for k, v in other.observations.items()} == {"x": np.uint8, "y": np.bool_}
        assert other.settings == {"seed": 9}
        assert (project.video(first), project.video(second)) == (b"video", b"other")
        assert [(i.id, i.kind, i.prompt, i.members, i.selection) for i in project.items()] == [
            (items[0], "text", conversation, tuple(ids), "active"),
            (items[1], "clip", None, (first, second), "uniform"),
        ]
        assert project.settings == Settings()


def test_the_same_is_not_added_twice(tmp_path: Path) -> None:
    with Project.create(tmp_path / "p.db") as project:
        prompt = project.add_prompt("Why?")
        once = project.add_responses(prompt, ["a", "b"], source="m", settings=[{"draw": 0}, {"draw": 1}])
        assert project.add_responses(prompt, ["b", "a"], source="m", settings=[{"draw": 1}, {"draw": 0}]) == once[::-1]
        assert project.add_clip(clip(), b"v") == project.add_clip(clip(), b"v")
        assert project.add_clip(clip(start=4), b"v") != project.add_clip(clip(), b"v")
        with pytest.raises(UsageError, match="another response of m under the same settings"):
            project.add_responses(prompt, ["new", "c"], source="m", settings=[{"draw": 7}, {"draw": 1}])
        assert len(project.responses()) == 2  # wholly or not at all


def test_commits_are_durable(tmp_path: Path) -> None:
    """WAL with synchronous=FULL: a commit returns after the log is synced, whoever opens the file and however often."""
    for _ in range(2):
        with closing(connect(tmp_path / "p.db", create=True)) as db:
            found = {name: db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")}
            assert found == {"journal_mode": "wal", "synchronous": 2}
            for name, value in (("trusted_schema", 0), ("foreign_keys", 1), ("recursive_triggers", 1)):
                assert db.execute(f"PRAGMA {name}").fetchone()[0] == value
    with text_project(tmp_path / "q.db") as project:
        assert project.rows("PRAGMA synchronous") == [(2,)]
        say(project, take(project), 1)
        with closing(raw(tmp_path / "q.db")) as other:  # another connection sees it: it is no matter of ours alone
            assert other.execute("SELECT count(*) FROM judgement").fetchone() == (1,)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE judgement SET ranking = '[]'",
        "DELETE FROM judgement",
        "REPLACE INTO judgement SELECT id, uuid, assignment, 'tie', ranking, began, ended, received FROM judgement",
        "DELETE FROM judgement WHERE id = 1",
    ],
)
def test_judgements_are_only_ever_added(tmp_path: Path, statement: str) -> None:
    with text_project(tmp_path / "p.db") as project:
        say(project, take(project), 1)
        before = project.history()
        with pytest.raises(RunError, match="only ever added"), project.writing() as db:
            db.execute(statement)
        assert project.history() == before


def test_what_fails_changes_nothing(tmp_path: Path) -> None:
    with text_project(tmp_path / "p.db") as project:
        before = project.prompts()
        with pytest.raises(ZeroDivisionError), project.writing():
            len(project.rows("SELECT 1")) / (project.add_prompt("lost") * 0)
        assert project.prompts() == before
        project.rows(f"PRAGMA max_page_count = {project.rows('PRAGMA page_count')[0][0]}")
        with pytest.raises(RunError, match="the disk is full"):
            project.add_prompt("x" * 1_000_000)
        assert project.prompts() == before


def test_two_writers_wait_for_each_other(tmp_path: Path) -> None:
    with text_project(tmp_path / "p.db") as one, Project.open(tmp_path / "p.db") as other:
        for number in range(10):
            one.add_prompt(f"one {number}")
            other.add_prompt(f"other {number}")
        assert one.prompts() == other.prompts()
        assert len(one.prompts()) == 3 + 20


# Hostile files


def hostile(statement: str) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        with closing(raw(path)) as db:
            db.execute("PRAGMA writable_schema=ON")
            db.executescript(statement)

    return spoil


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def scramble(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4096 : 4096 * 3] = b"\xa5" * (4096 * 2)
    path.write_bytes(data)


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "trigger": (
        hostile("CREATE TRIGGER t AFTER INSERT ON judgement BEGIN UPDATE prompt SET content = 'x'; END"),
        r"its tables are not those .*'t'",
    ),
    "view": (hostile("CREATE VIEW v AS SELECT load_extension('/tmp/x')"), r"not those .*'v'"),
    "table": (hostile("CREATE TABLE extra (x)"), r"not those .*'extra'"),
    "index": (hostile("CREATE INDEX i ON prompt (upper(content))"), r"not those .*'i'"),
    "missing trigger": (hostile("DROP TRIGGER judgement_kept"), "judgement_kept"),
    "missing table": (hostile("DROP TABLE judgement"), "judgement"),
    "other column": (hostile("ALTER TABLE clip ADD COLUMN path TEXT"), "'clip'"),
    "view in a table's place": (hostile("DROP TABLE setting; CREATE VIEW setting AS SELECT 1"), "'setting'"),
    "virtual table": (hostile("CREATE VIRTUAL TABLE f USING fts5(x)"), "not those"),
    "another program's": (hostile("PRAGMA application_id=7"), "another program"),
    "no program's": (hostile("PRAGMA application_id=0"), "another program"),
    "newer": (hostile("PRAGMA user_version=99"), "version 99 of the tables"),
    "negative version": (hostile("PRAGMA user_version=-1"), "not those"),
    "text": (lambda path: path.write_text("prompt,chosen\n"), "no SQLite file"),
    "pickle": (lambda path: path.write_bytes(pickle.dumps([1])), "no SQLite file"),
    "truncated": (truncate, "damaged"),
    "scrambled": (scramble, "damaged"),
    "empty": (lambda path: path.write_bytes(b""), "empty database"),
    "folder": (lambda path: (path.unlink(), path.mkdir()), "no file"),
    "pipe": (lambda path: (path.unlink(), os.mkfifo(path)), "no file"),
    "absent": (lambda path: path.unlink(), "there is no preference project"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_hostile_files_are_refused(tmp_path: Path, what: str) -> None:
    spoil, why = REFUSED[what]
    path = tmp_path / "p.db"
    with text_project(path, prompts=200) as project:
        say(project, take(project), 1)
    with closing(raw(path)) as db:
        db.execute("PRAGMA journal_mode=DELETE")  # all of it is in the one file
    spoil(path)
    with pytest.raises((UsageError, RunError), match=why):
        Project.open(path)
    if what not in ("absent", "folder", "empty"):
        with pytest.raises((UsageError, RunError), match=why):
            Project.create(path)


VALUES: dict[str, tuple[str, Callable[[Project], Any]]] = {
    "members": ("UPDATE item SET members = 'x' WHERE id = 1", lambda p: p.items()),
    "members of texts": ("""UPDATE item SET members = '["a"]' WHERE id = 1""", lambda p: p.items()),
    "members without end": ("UPDATE item SET members = '" + "[" * 100_000 + "' WHERE id = 1", lambda p: p.items()),
    "prompt": ("UPDATE prompt SET content = '7'", lambda p: p.prompts()),
    "messages": ("""UPDATE prompt SET content = '[{"role": 1, "content": "x"}]'""", lambda p: p.prompts()),
    "response": ("UPDATE response SET content = '{'", lambda p: p.responses()),
    "arrays": ("UPDATE clip SET arrays = x'80049500'", lambda p: p.clips()),
    "no arrays": ("UPDATE clip SET arrays = x''", lambda p: p.clips()),
    "text that is none": ("UPDATE prompt SET content = CAST(x'ff22' AS TEXT)", lambda p: p.prompts()),
    "settings": ("""INSERT INTO setting VALUES ('labels_per_item', '"x"')""", lambda p: p.settings),
    "sides": ("UPDATE assignment SET shown = 'null'", lambda p: p.judgements()),
}


@pytest.mark.parametrize("what", VALUES)
def test_hostile_values_are_refused(tmp_path: Path, what: str) -> None:
    statement, read = VALUES[what]
    with text_project(tmp_path / "p.db") as project:
        say(project, take(project), 1)
        project.add_clip(clip(), b"")
        if what == "settings":
            project.rows("DELETE FROM setting WHERE name = 'labels_per_item'")
        project.rows(statement)
        with pytest.raises(RunError, match="damaged"):
            read(project)


def test_a_clip_of_a_pickle_runs_nothing(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(tmp_path / "ran"),))

    with Project.create(tmp_path / "p.db") as project:
        project.add_clip(clip(), b"")
        with project.writing() as db:
            db.execute("UPDATE clip SET arrays = ?", (pickle.dumps(Bomb()),))
        with pytest.raises(RunError, match="damaged"):
            project.clips()
    assert not (tmp_path / "ran").exists()


def test_the_file_itself_holds_a_uuid_once(tmp_path: Path) -> None:
    """Two processes may find at the same time that it is not there yet."""
    with text_project(tmp_path / "p.db") as project:
        say(project, take(project), 1)
    columns = "uuid, assignment, kind, ranking, began, ended, received"
    again = f"INSERT INTO judgement ({columns}) SELECT {columns} FROM judgement"
    with closing(connect(tmp_path / "p.db")) as db, pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
        db.execute(again)


# Versions


def test_migrations_are_applied_once_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "p.db"
    with text_project(path) as project:
        say(project, take(project), 1)
        before = project.judgements()
    more = (
        *MIGRATIONS,
        "CREATE TABLE thumb (id INTEGER PRIMARY KEY, up INTEGER NOT NULL) STRICT;\nCREATE INDEX up ON thumb (up);",
    )
    for _ in range(2):
        with closing(connect(path, migrations=more)) as db:
            assert db.execute("PRAGMA user_version").fetchone() == (2,)
            db.execute("INSERT INTO thumb (up) VALUES (1)")
    with closing(connect(path, migrations=more)) as db:
        assert db.execute("SELECT count(*) FROM thumb").fetchone() == (2,)
        assert db.execute("SELECT uuid FROM judgement").fetchall() == [(j.uuid,) for j in before]
    with pytest.raises(UsageError, match="version 2 of the tables"):
        Project.open(path)  # this version knows the first alone
    broken = (*more, "CREATE TABLE a (x);\nCREATE TABLE a (y);")  # the first statement succeeds
    with pytest.raises(RunError), closing(connect(path, migrations=broken)):
        pass
    with closing(connect(path, migrations=more)) as db:  # nothing of it is there
        assert db.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'a'").fetchone() == (0,)


def test_a_killed_creation_is_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "p.db").touch()
    with Project.create(tmp_path / "p.db") as project:
        assert project.prompts() == []


def test_a_read_only_project_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "p.db"
    text_project(path).close()
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    path.chmod(stat.S_IRUSR)
    with pytest.raises(RunError, match="must be writable"):
        Project.open(path)


# Records


@pytest.mark.parametrize("name", ["", "  ", "a\x1b[31mb", "a\u202eb", "a\x00", "x" * 81, None, 7, "\ud800\n"])
def test_a_labeller_s_name_can_be_read(name: object) -> None:
    with pytest.raises(UsageError, match="name"):
        checked_name(name)
    assert checked_name("  Ana   María 日本 ") == "Ana María 日本"


@pytest.mark.parametrize(
    "content", ["", " \n", 7, None, [], ["x"], [{"role": "user"}], [{"role": 1, "content": "x"}], {}]
)
def test_what_is_no_prompt_is_refused(content: object) -> None:
    with pytest.raises(UsageError):
        checked_content(content)


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    with text_project(tmp_path / "p.db", responses=3) as project:
        one, two = (r.id for r in project.responses(1)[:2])
        foreign = project.responses(2)[0].id
        before = project.items()
        other = project.add_clip(clip(env="Pendulum-v1"), b"")
        mine = project.add_clip(clip(), b"")
        for group, kind, why in (
            ([one], "text", "2 to 9"),
            ([one, one], "text", "twice"),
            ([one, foreign], "text", "responses to one prompt"),
            ([one, 10_000], "text", "not all"),
            (list(range(1, 11)), "text", "2 to 9"),
            ([mine, other], "clip", "clips of one environment"),
        ):
            with pytest.raises(UsageError, match=why):
                project.add_items([[one, two], group], kind=kind)  # type: ignore[arg-type]
        assert project.items() == before


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"observations": np.zeros((4, 3))}, "one observation more"),
        ({"observations": {"a": np.zeros((5, 1)), "b": np.zeros((4, 1))}}, "'b': 4"),
        ({"actions": np.zeros(0)}, "0 actions"),
        ({"fps": 0.0}, "fps"),
        ({"fps": float("nan")}, "fps"),
    ],
)
def test_a_clip_has_one_observation_more_than_actions(fields: dict[str, Any], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        clip(**fields)
    assert isinstance(clip(), Clip)
