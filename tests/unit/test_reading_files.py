"""What comes out of files is checked where it is read, whatever somebody put into them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import pytest

from steepest.files.reading import (
    DEEPEST,
    Unusable,
    half_character,
    parse_json,
    parse_yaml,
    read_text,
    refuse_halves,
)
from steepest.files.schema import check


def test_text_is_utf8_with_or_without_a_mark(tmp_path: Path) -> None:
    file = tmp_path / "a"
    for data in ("é".encode(), "é".encode("utf-8-sig")):
        file.write_bytes(data)
        assert read_text(file) == "é"
    for encoding in ("utf-16", "latin-1"):
        file.write_bytes("é".encode(encoding))
        with pytest.raises(Unusable, match=r"cannot be read as UTF-8 text .*; save it in UTF-8"):
            read_text(file)
    with pytest.raises(Unusable, match="Is a directory"):
        read_text(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_text(tmp_path / "none")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Expecting property name"),
        ("", "Expecting value"),
        ('{"a": 1, "b": 2, "a": 1}', "it has 'a' twice; keep one of them"),
        ('[{"x": {"a": 1, "a": 2}}]', "it has 'a' twice"),
        ("[" * 5000 + "]" * 5000, f"more than {DEEPEST} deep"),
        ("[" * 200_000 + "]" * 200_000, f"more than {DEEPEST} deep"),
        ('{"a":' * 5000 + "1" + "}" * 5000, f"more than {DEEPEST} deep"),
        ('[1, {"a": ' + "[" * 150 + "]" * 150 + "}]", f"more than {DEEPEST} deep"),
        ("9" * 5000, "a whole number of 5,000 digits; expected at most 300"),
        ('{"seed": ' + "9" * 400 + "}", "a whole number of 400 digits"),
    ],
    ids=lambda text: text[:20],
)
def test_json_that_cannot_be_used_is_explained(text: str, message: str) -> None:
    with pytest.raises(Unusable, match=message) as error:
        parse_json(text)
    assert len(str(error.value)) < 200


def test_json_that_can_be_used_is_used() -> None:
    """Many brackets side by side are no depth; and where a name twice is only counted, the last one is read."""
    wide = [[[i]] for i in range(1000)]
    assert parse_json(json.dumps(wide)) == wide
    deep = "[" * DEEPEST + "1" + "]" * DEEPEST
    assert parse_json(deep)[0][0]
    assert parse_json('"[[[[[["') == "[[[[[["
    seen: list[str] = []
    assert parse_json('{"a": 1, "b": {"c": 1, "c": 2}, "a": 3}', repeated=seen.append) == {"a": 3, "b": {"c": 2}}
    assert seen == ["c", "a"]


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 40))
MERGED = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 40))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{a: [", "while parsing a flow node"),
        ("a: 1\nb: 2\na: 1", "it has 'a' twice"),
        ("a: {b: 1, b: 2}", "it has 'b' twice"),
        ("[" * 5000 + "]" * 5000, f"more than {DEEPEST} deep"),
        ("".join(" " * i + "a:\n" for i in range(150)) + " " * 150 + "1", f"more than {DEEPEST} deep"),
        ("a: &x [*x]", "an alias that stands for itself"),
        ("&x {a: {b: *x}}", "an alias that stands for itself"),
        (BOMB, "stands for more than 100,000 values"),
        (MERGED, "stands for more than 100,000 values"),
        ("seed: " + "9" * 5000, "a whole number of 5,000 digits"),
        ("a: !!python/object/apply:os.system ['true']", "could not determine a constructor"),
        ("a: 2020-13-45", "month must be in"),
        ("? [1, 2]\n: 3", "unhashable key"),
        ("a: 1\n---\nb: 2", "expected a single document"),
        ("a: \x00", "unacceptable character #x0000"),
        ("a: \x1b[2J", "unacceptable character #x001b"),
    ],
    ids=lambda text: text[:20],
)
def test_yaml_that_cannot_be_used_is_explained(text: str, message: str) -> None:
    start = time.monotonic()
    with pytest.raises(Unusable, match=message) as error:
        parse_yaml(text)
    assert time.monotonic() - start < 10
    assert len(str(error.value)) < 400


def test_yaml_that_can_be_used_is_used() -> None:
    """Aliases too, and what they merge."""
    text = "base: &base {gamma: 0.9, sizes: &s [8, 8]}\nmine: {<<: *base, gamma: 0.5, others: *s}\n"
    found = parse_yaml(text)
    assert found["mine"] == {"gamma": 0.5, "sizes": [8, 8], "others": [8, 8]}
    assert parse_yaml("") is None
    assert parse_yaml("# nothing") is None
    assert parse_yaml("7") == 7


def test_half_a_character_is_named() -> None:
    assert half_character("whole \U0001f600 é") is None
    assert half_character("ab\ud83d") == r"holds half a character (\ud83d at place 3), which is no text; remove it"
    assert half_character("\udc80") is not None
    refuse_halves({"a": ["x", {"b": "é"}], "c": 1, "d": None})
    for value, place in (
        ({"name": "\ud83d"}, r"^name holds half"),
        ({"run": {"notes": ["fine", "\ude00 no"]}}, r"^run.notes\[2\] holds half"),
        ({"a\ud800": 1}, r"^a name holds half"),
        ("\udfff", "^it holds half"),
    ):
        with pytest.raises(Unusable, match=place) as error:
            refuse_halves(value)
        str(error.value).encode()  # it can be printed


class Inner(TypedDict):
    size: int
    rate: NotRequired[float]


class Outer(TypedDict):
    name: str
    inner: Inner
    sizes: list[int]
    env: str | None
    flags: NotRequired[dict[str, bool]]
    more: NotRequired[Any]
    either: NotRequired[int | str]


GOOD: dict[str, Any] = {"name": "x", "inner": {"size": 1}, "sizes": [1, 2], "env": None}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": None}, "^name is null; expected text$"),
        ({"name": ["ppo"]}, r'^name is \["ppo"\]; expected text$'),
        ({"inner": None}, "^inner is null; expected an object$"),
        ({"inner": {}}, "^inner has no size$"),
        ({"inner": {"size": "1"}}, '^inner.size is "1"; expected a whole number$'),
        ({"inner": {"size": True}}, "^inner.size is true; expected a whole number$"),
        ({"inner": {"size": 1.5}}, "^inner.size is 1.5; expected a whole number$"),
        ({"inner": {"size": 1, "rate": "fast"}}, '^inner.rate is "fast"; expected a number$'),
        ({"sizes": 8}, "^sizes is 8; expected a list$"),
        ({"sizes": [1, None]}, r"^sizes\[2\] is null; expected a whole number$"),
        ({"env": {}}, "^env is {}; expected text$"),
        ({"flags": {"a": 1}}, "^flags.a is 1; expected true or false$"),
        ({"either": None}, "^either is null; expected a whole number or text$"),
        ({"name": 0, "env": "x" * 500}, "^name is 0; expected text$"),
        ({"env": ["x" * 500]}, r'^env is \["x{58}\.\.\.; expected text$'),
    ],
)
def test_a_shape_is_checked_to_the_last_part(change: dict[str, Any], message: str) -> None:
    check(GOOD, Outer)
    check({**GOOD, "inner": {"size": 1, "rate": 2}, "flags": {"a": True}, "more": [object], "either": "x"}, Outer)
    with pytest.raises(Unusable, match=message):
        check({**GOOD, **change}, Outer)


def test_what_is_missing_is_named_at_once() -> None:
    with pytest.raises(Unusable, match=r"^it has no name, env$"):
        check({"inner": {"size": 1}, "sizes": []}, Outer)
    with pytest.raises(Unusable, match=r"^it is \[1\]; expected an object$"):
        check([1], Outer)
