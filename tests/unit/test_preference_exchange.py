"""Preferences as rows: what trainers read, what other tools wrote, and what comes back from an export."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from helpers_preferences import NOW, clip, new_uuid, say, take, text_project
from steepest.api.preferences import connected_pairs, export_preferences, import_preferences
from steepest.errors import UsageError
from steepest.language.data.rows import check_source, read_rows
from steepest.preferences.exchange import add_comparisons, preference_rows, read_comparisons
from steepest.preferences.store import Project


def test_preferences_become_rows(tmp_path: Path) -> None:
    with text_project(tmp_path / "p.db", prompts=4) as project:
        for number, (kind, best) in enumerate([("prefer", 0), ("tie", 0), ("skip", 0), ("prefer", 1)]):
            found = take(project)
            say(project, found, number, kind=kind, best=best)
        texts = {r.id: r.text for r in project.responses()}
        rows = preference_rows(project)
        judged = [j for j in project.judgements() if j.kind == "prefer"]
        assert [(r["chosen"], r["rejected"]) for r in rows] == [tuple(texts[i] for i in j.ranking) for j in judged]
        assert [r["prompt"] for r in rows] == ["Question 0?", "Question 3?"]
        assert set(rows[0]) == {"prompt", "chosen", "rejected"}
        more = preference_rows(project, provenance=True)[0]
        assert (more["labeller"], more["chosen_source"], more["uuid"]) == ("ana", "model", new_uuid(0))


def test_a_ranking_becomes_all_its_pairs(tmp_path: Path) -> None:
    with text_project(tmp_path / "p.db", prompts=1, responses=4, ask="ranking") as project:
        found = take(project)
        say(project, found, 1, best=3, kind="rank")
        order = [project.responses()[i - 1].text for i in project.judgements()[0].ranking]
        rows = [(r["chosen"], r["rejected"]) for r in preference_rows(project)]
        assert rows == [(order[i], order[j]) for i in range(4) for j in range(i + 1, 4)]


def test_repeats_and_what_was_retracted_make_no_rows(tmp_path: Path) -> None:
    from steepest.preferences.labelling import next_assignment, undo

    rng = random.Random(0)
    with text_project(tmp_path / "p.db", prompts=30, repeat_share=0.5) as project:
        number = 0
        while (found := next_assignment(project, "ana", NOW, rng)) is not None:
            number += 1
            say(project, found, number)
        assert sum(j.repeat for j in project.judgements()) > 3
        assert len(preference_rows(project)) == 30
        for _ in range(number):
            number += 1
            undo(project, "ana", uuid=new_uuid(number), now=NOW)
        with pytest.raises(UsageError, match="no preference yet"):
            preference_rows(project)


def test_conversations_keep_their_form(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    with Project.create(tmp_path / "p.db") as project:
        ids = project.add_responses(project.add_prompt(turns), ["a", "b"], source="m", settings=[{"d": 0}, {"d": 1}])
        project.add_items([ids], kind="text")
        say(project, take(project), 1)
        (row,) = preference_rows(project)
        assert row["prompt"] == turns
        assert {row["chosen"][0]["content"], row["rejected"][0]["content"]} == {"a", "b"}
        assert row["chosen"][0]["role"] == "assistant"


def test_a_project_is_read_where_data_is_expected(tmp_path: Path) -> None:
    """By what the file is, not by its name."""
    for name in ("p.db", "labels", "rows.jsonl"):
        with text_project(tmp_path / name, prompts=2) as project:
            say(project, take(project), 1)
            expected = preference_rows(project)
        check_source(tmp_path / name)
        assert read_rows(tmp_path / name) == expected
        assert read_rows(str(tmp_path / name)) == expected


def test_a_project_without_preferences_says_what_to_do(tmp_path: Path) -> None:
    with Project.create(tmp_path / "p.db") as project:
        with pytest.raises(UsageError, match="steepest sample MODEL PROMPTS"):
            preference_rows(project)
        ids = [project.add_clip(clip(i), b"") for i in range(2)]
        project.add_items([ids], kind="clip")
        with pytest.raises(UsageError, match="clips of control"):
            preference_rows(project)
    with text_project(tmp_path / "q.db") as project, pytest.raises(UsageError, match="3 comparisons; steepest label"):
        preference_rows(project)


# Out and in


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_an_export_comes_back(tmp_path: Path, ending: str) -> None:
    with text_project(tmp_path / "p.db", prompts=5) as project:
        for number in range(5):
            say(project, take(project), number, best=number % 2)
        before = preference_rows(project, provenance=True)
    out = tmp_path / f"rows{ending}"
    assert export_preferences(tmp_path / "p.db", out) == 5
    found = import_preferences(out, tmp_path / "q.db")
    assert (found.prompts, found.responses, found.items, found.judgements, found.known) == (5, 10, 5, 5, 0)
    with Project.open(tmp_path / "q.db") as project:
        after = preference_rows(project, provenance=True)
    same = ("prompt", "chosen", "rejected", "labeller", "chosen_source", "rejected_source", "uuid", "began", "ended")
    assert [{k: row[k] for k in same} for row in after] == [{k: row[k] for k in same} for row in before]


def test_importing_twice_adds_nothing(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"Question {i}", "chosen": f"good {i}", "rejected": f"bad {i}", "labeller": name}
        for i in range(3)
        for name in ("ana", "ben")
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for again in (False, True):
        found = import_preferences(tmp_path / "rows.jsonl", tmp_path / "p.db")
        expected = (0, 0, 0, 0, 6) if again else (3, 6, 3, 6, 0)
        assert (found.prompts, found.responses, found.items, found.judgements, found.known) == expected
    with Project.open(tmp_path / "p.db") as project:
        assert {r.source for r in project.responses()} == {"rows.jsonl"}  # chosen is no model, and rejected is none
        assert len(preference_rows(project)) == 6
        assert {j.labeller for j in project.judgements()} == {"ana", "ben"}


def test_a_bad_row_adds_nothing(tmp_path: Path) -> None:
    good = {"prompt": "Why?", "chosen": "a", "rejected": "b"}
    for bad, why in (
        ({**good, "rejected": "a"}, "the same"),
        ({**good, "chosen": ""}, "empty"),
        ({**good, "chosen": 7}, "int"),
        ({**good, "prompt": [1]}, "message 1"),
        ({**good, "uuid": "x"}, "uuid"),
        ({**good, "labeller": "a\x1bb"}, "name"),
        ({"question": "x"}, "columns question"),
    ):
        with pytest.raises(UsageError, match=why):
            import_preferences([good, bad] if "chosen" in bad else [bad], tmp_path / "p.db")
        with Project.open(tmp_path / "p.db") as project:
            assert project.prompts() == []


def test_responses_from_elsewhere_are_to_be_judged(tmp_path: Path) -> None:
    rows = [{"prompt": "Why?", "responses": ["a", "b", "c"], "sources": ["x", "y", "z"]}]
    found = import_preferences(rows, tmp_path / "p.db")
    assert (found.items, found.judgements) == (1, 0)
    with Project.open(tmp_path / "p.db") as project:
        assert [r.source for r in project.responses()] == ["x", "y", "z"]
        assert len(take(project).shown) == 3


def test_conversations_that_end_differently(tmp_path: Path) -> None:
    turn = {"role": "user", "content": "Why?"}
    rows = [{side: [turn, {"role": "assistant", "content": side}] for side in ("chosen", "rejected")}]
    import_preferences(rows, tmp_path / "p.db")
    with Project.open(tmp_path / "p.db") as project:
        (row,) = preference_rows(project)
    assert (row["prompt"], row["chosen"][0]["content"]) == ([turn], "chosen")


# Other tools


def argilla(value: Any, **fields: Any) -> dict[str, Any]:
    given = fields or {"prompt": "Why?", "response_1": "a", "response_2": "b"}
    answers = [] if value is None else [{"value": value, "user_id": "u1"}]
    return {
        "id": "r",
        "status": "completed",
        "fields": given,
        "metadata": {},
        "suggestions": {},
        "responses": {"best": answers},
    }


@pytest.mark.parametrize(
    ("value", "kind", "ranking"),
    [
        ("response_2", "prefer", (1, 0)),
        ("Response 1", "prefer", (0, 1)),
        ("2", "prefer", (1, 0)),
        ("A", "prefer", (0, 1)),
        ("tie", "tie", (0, 1)),
        ("No preference", "tie", (0, 1)),
        ([{"value": "response_1", "rank": 2}, {"value": "response_2", "rank": 1}], "prefer", (1, 0)),
        ([{"value": "response-1", "rank": 1}, {"value": "response-2", "rank": 1}], "tie", (0, 1)),
    ],
)
def test_argilla_s_records_are_read(tmp_path: Path, value: Any, kind: str, ranking: tuple[int, ...]) -> None:
    (tmp_path / "argilla.json").write_text(json.dumps([argilla(value), argilla(None)]))
    found = list(read_comparisons(read_rows(tmp_path / "argilla.json"), name="argilla.json"))
    assert (found[0].prompt, found[0].responses) == ("Why?", ("a", "b"))
    assert (found[0].labeller, found[0].kind, found[0].ranking) == ("u1", kind, ranking)
    assert found[1].labeller is None  # nobody has judged it
    import_preferences(tmp_path / "argilla.json", tmp_path / "p.db")
    with Project.open(tmp_path / "p.db") as project:
        (judgement,) = project.judgements()
        assert (judgement.kind, judgement.labeller) == (kind, "u1")


def test_argilla_s_rankings_of_three(tmp_path: Path) -> None:
    fields = {"instruction": "Why?", "first": "a", "second": "b", "third": "c"}
    ranks = [{"value": n, "rank": r} for n, r in (("first", 2), ("second", 3), ("third", 1))]
    tied = [{"value": n, "rank": r} for n, r in (("first", 1), ("second", 1), ("third", 2))]
    one, two = read_comparisons([argilla(ranks, **fields), argilla(tied, **fields)], name="x")
    assert (one.kind, one.ranking) == ("rank", (2, 0, 1))
    assert two.labeller is None  # an order with a tie in it cannot be kept: it is asked again
    chat = {"prompt": [{"role": "user", "content": "Hi"}], "a": "x", "b": "y"}
    (three,) = read_comparisons([argilla("b", **chat)], name="x")
    assert (three.prompt, three.ranking) == ([{"role": "user", "content": "Hi"}], (1, 0))
    with pytest.raises(UsageError, match="row 1 of x: its fields are text"):
        list(read_comparisons([argilla("b", text="x")], name="x"))


@pytest.mark.parametrize(
    ("said", "kind", "ranking"),
    [
        ({"preference": {"selection": "A"}}, "prefer", (0, 1)),
        ({"preference": {"selection": "B"}}, "prefer", (1, 0)),
        ({"preference": {"selection": "tie"}}, "tie", (0, 1)),
        ({"degree": {"scale_value": "-2"}}, "prefer", (0, 1)),
        ({"degree": {"scale_value": "3"}}, "prefer", (1, 0)),
        ({"degree": {"scale_value": "0"}}, "tie", (0, 1)),
        ({"mood": {"happy": "true"}, "preference": {"selection": "B"}}, "prefer", (1, 0)),
    ],
)
def test_potato_s_annotations_are_read(
    tmp_path: Path, said: dict[str, Any], kind: str, ranking: tuple[int, ...]
) -> None:
    data = [
        {"id": "1", "prompt": "Why?", "responses": ["a", "b"]},
        {"id": "2", "text": "Who?", "left": "c", "right": "d"},
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data))
    rows = [{"user_id": "ana", "instance_id": id, "label_annotations": said} for id in ("1", "2")]
    (tmp_path / "annotated_instances.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = import_preferences(tmp_path / "annotated_instances.jsonl", tmp_path / "p.db", items=tmp_path / "data.jsonl")
    assert (found.prompts, found.judgements) == (2, 2)
    with Project.open(tmp_path / "p.db") as project:
        texts = {r.id: r.text for r in project.responses()}
        judgements = project.judgements()
        assert [j.kind for j in judgements] == [kind, kind]
        assert [[texts[i] for i in j.ranking] for j in judgements] == [
            [("a", "b")[i] for i in ranking],
            [("c", "d")[i] for i in ranking],
        ]
    with pytest.raises(UsageError, match="--items DATA"):
        import_preferences(tmp_path / "annotated_instances.jsonl", tmp_path / "q.db")


def test_potato_s_older_layout_names_nobody(tmp_path: Path) -> None:
    data = [{"id": "1", "prompt": "Why?", "responses": ["a", "b"]}]
    row = {"id": "1", "displayed_text": "x", "label_annotations": {"p": {"selection": "A"}}}
    with pytest.raises(UsageError, match="--labeller NAME"):
        import_preferences([row], tmp_path / "p.db", items=data)
    assert import_preferences([row], tmp_path / "p.db", items=data, labeller="ana").judgements == 1
    with pytest.raises(UsageError, match="no instance 9"):
        import_preferences([{**row, "id": "9"}], tmp_path / "p.db", items=data, labeller="ana")


def test_what_was_judged_here_is_not_judged_again(tmp_path: Path) -> None:
    rows = [{"prompt": "Why?", "responses": ["a", "b"], "sources": ["rows", "rows"]}]
    import_preferences(rows, tmp_path / "p.db")
    with Project.open(tmp_path / "p.db") as project:
        say(project, take(project), 1)
        judged = [{"prompt": "Why?", "chosen": "a", "rejected": "b", "labeller": "ana"}]
        found = add_comparisons(project, read_comparisons(judged, name="rows"), now=NOW)
        assert (found.judgements, found.known) == (0, 1)


# Pairs of clips


@pytest.mark.parametrize(
    ("old", "new", "count"), [(0, 2, 1), (0, 10, 10), (5, 10, 10), (3, 1, 9), (0, 6, 99), (40, 2, 2)]
)
def test_pairs_of_clips_are_connected(old: int, new: int, count: int) -> None:
    before, added = list(range(1, old + 1)), list(range(100, 100 + new))
    for seed in range(20):
        pairs = connected_pairs(before, added, count, random.Random(seed))
        possible = new * (new - 1) // 2 + new * old
        assert len(pairs) == len(set(pairs)) == min(count, possible)
        assert all(a < b and b in added for a, b in pairs)
        group = {x: x for x in added}
        for a, b in pairs:
            roots = {group.get(a, 0), group.get(b, 0)}  # the old ones are one group: 0
            keep = min(roots)
            group = {x: keep if root in roots else root for x, root in group.items()}
        assert len(set(group.values())) == 1
