"""Text, JSON and YAML from files, made safe to use: whole text, bounded depth and size, no name twice.

What is wrong is an ``Unusable``, which says why but not where: the caller adds file and line. What a value must be,
``files.schema`` checks next.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

DEEPEST = 100
"""Lists and objects may lie this deep within each other: whoever uses a value goes through it level by level."""
LONGEST_NUMBER = 300
"""Digits of a whole number: one with more is no float, nor would Python read one of some thousands."""
MOST_VALUES = 100_000
"""Values of a YAML file, counted as often as its aliases name them: a few lines can stand for billions."""


class Unusable(ValueError):
    """What was read cannot be used; says why."""


def read_text(path: Path) -> str:
    """Return the text of a file in UTF-8, without the mark that some editors put before it.

    Raises:    Unusable where it cannot be read, or is in another encoding; FileNotFoundError
    Verified:  tests/unit/test_reading_files.py::test_text_is_utf8_with_or_without_a_mark
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise Unusable(f"it cannot be read as UTF-8 text ({error}); save it in UTF-8") from error
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Unusable(error.strerror or str(error)) from error


def refuse_repeated(name: str) -> None:
    """Raise Unusable for a name that an object has twice."""
    raise Unusable(f"it has {name!r} twice; keep one of them")


def parse_json(text: str, *, repeated: Callable[[str], None] = refuse_repeated) -> Any:
    """Return the value of a JSON text.

    Args:      repeated: called with a name that an object has twice, of which the last counts where it returns
    Raises:    Unusable, whose text begins with "it" or the parser's own words
    Verified:  tests/unit/test_reading_files.py::test_json_that_cannot_be_used_is_explained
    """

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(found)
        if len(made) < len(found):
            names = [name for name, _ in found]
            repeated(next(name for name in made if names.count(name) > 1))
        return made

    try:
        value = json.loads(text, object_pairs_hook=pairs, parse_int=_whole)
    except RecursionError:
        raise Unusable(_too_deep()) from None
    except Unusable:
        raise
    except ValueError as error:
        raise Unusable(str(error)) from error
    if text.count("[") + text.count("{") > DEEPEST:  # else it cannot be so deep
        _check_depth(value)
    return value


def parse_yaml(text: str) -> Any:
    """Return the value of a YAML text: plain values only, aliases allowed while what they stand for stays small.

    Raises:    Unusable
    Verified:  tests/unit/test_reading_files.py::test_yaml_that_cannot_be_used_is_explained
    """
    import yaml

    try:
        loader = yaml.SafeLoader(text)
    except yaml.YAMLError as error:  # a control character
        raise Unusable(" ".join(str(error).split())) from error
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _measure(node, 0, {})  # before anything is made of it: merging its aliases would already take for ever
        return loader.construct_document(node)
    except RecursionError:
        raise Unusable(_too_deep()) from None
    except Unusable:
        raise
    except (yaml.YAMLError, ValueError) as error:
        raise Unusable(" ".join(str(error).split())) from error
    finally:
        loader.dispose()


def refuse_halves(value: Any) -> None:
    """Raise Unusable for text that is no Unicode: half of a pair of surrogates, as a broken emoji has one.

    Verified:  tests/unit/test_reading_files.py::test_half_a_character_is_named
    """
    for place, text in texts(value):
        if (said := half_character(text)) is not None:
            raise Unusable(f"{place or 'it'} {said}")


def half_character(text: str) -> str | None:
    r"""Return what to say of a text that holds half a character, such as "\ud83d"; None where all are whole.

    Verified:  tests/unit/test_reading_files.py::test_half_a_character_is_named
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = text[error.start].encode("unicode_escape").decode("ascii")
        return f"holds half a character ({half} at place {error.start + 1}), which is no text; remove it"
    return None


def _whole(digits: str) -> int:
    if len(digits) > LONGEST_NUMBER:
        raise Unusable(f"it has a whole number of {len(digits):,} digits; expected at most {LONGEST_NUMBER}")
    return int(digits)


def _too_deep() -> str:
    return f"it has lists or objects more than {DEEPEST} deep within each other"


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(DEEPEST + 1):
        level = [part for one in level for part in _parts(one)]
        if not level:
            return
    raise Unusable(_too_deep())


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from cast(dict[Any, Any], value).values()
    elif isinstance(value, (list, tuple)):
        yield from cast(list[Any], value)


def texts(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Every text in a value, names of objects among them, with its place."""
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, dict):
        for name, part in cast(dict[Any, Any], value).items():
            yield from texts(str(name), f"a name in {place}" if place else "a name")
            yield from texts(part, f"{place}.{name}" if place else str(name))
    elif isinstance(value, (list, tuple)):
        for number, part in enumerate(cast(list[Any], value), start=1):
            yield from texts(part, f"{place}[{number}]")


def _measure(node: Any, depth: int, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """How many values a node of YAML stands for, and how deep they lie; each node is looked at once."""
    if depth > DEEPEST:
        raise Unusable(f"{_too_deep()}, or an alias that stands for itself")
    if id(node) not in known:
        value = node.value
        if isinstance(value, str):
            if node.tag == "tag:yaml.org,2002:int" and len(value) > LONGEST_NUMBER:
                raise Unusable(f"it has a whole number of {len(value):,} digits; expected at most {LONGEST_NUMBER}")
            known[id(node)] = 1, 0
        else:
            mapping = bool(value) and isinstance(value[0], tuple)
            if mapping:
                _refuse_repeated_keys(key for key, _ in value)
            parts = [part for pair in value for part in pair] if mapping else value
            sizes = [_measure(part, depth + 1, known) for part in parts]
            size = 1 + sum(n for n, _ in sizes)
            height = 1 + max((h for _, h in sizes), default=0)
            if size > MOST_VALUES:
                raise Unusable(f"it stands for more than {MOST_VALUES:,} values, its aliases written out")
            if height > DEEPEST:
                raise Unusable(_too_deep())
            known[id(node)] = size, height
    return known[id(node)]


def _refuse_repeated_keys(keys: Iterator[Any]) -> None:
    seen: set[tuple[str, str]] = set()
    for key in keys:
        if isinstance(key.value, str):
            if (key.tag, key.value) in seen:
                refuse_repeated(key.value)
            seen.add((key.tag, key.value))
