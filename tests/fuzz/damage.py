"""Ways to spoil a text, a JSON value or a file, drawn from a seeded generator."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

DEEP = 5_000
VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        -1,
        0,
        1,
        2**31,
        2**63,
        10**30,
        -0.5,
        1e308,
        1e-320,
        "",
        "x",
        "3",
        "nan",
        "../..",
        "a\x1b[2Jb",
    ),
    *("\ud83d", "é" * 2000, "\x00", [], {}, [[]], [None], {"a": 1}, [1, 2, 3], [1, "2", None]),
)
"""What may stand where something else is expected."""
RAW = ("NaN", "Infinity", "-Infinity", "1" * 5000, "1e999", "[" * DEEP, '{"a":' * DEEP, "'x'", "", "tru", '"\\ud800"')
"""The same as text, for what ``json.dumps`` would not write."""


def value(rng: random.Random) -> Any:
    """A value of a random kind."""
    return copy.deepcopy(rng.choice(VALUES))


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to everything in a JSON value."""
    found = [path]
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, child in items:
        found += places(child, (*path, key))
    return found


def spoil_json(rng: random.Random, text: str) -> tuple[str, str]:
    """JSON text with one thing about it changed, and what was changed."""
    tree = json.loads(text)
    path = rng.choice(places(tree)[1:] or [()])
    name = "/".join(map(str, path))
    mark = "@@here@@"
    way = rng.choice(("value", "raw", "delete", "rename", "duplicate", "swap"))
    if not path or way == "value":
        new = value(rng)
        return json.dumps(_put(tree, path, new)), f"{name} is {new!r:.60}"
    if way == "raw":
        new = rng.choice(RAW)
        return json.dumps(_put(tree, path, mark)).replace(f'"{mark}"', new), f"{name} is the text {new:.20}"
    parent = tree
    for key in path[:-1]:
        parent = parent[key]
    if way == "delete":
        del parent[path[-1]]
        return json.dumps(tree), f"{name} is missing"
    if isinstance(parent, list):
        parent.append(value(rng))
        return json.dumps(tree), f"{name}: one more"
    if way == "rename":
        parent[str(path[-1]) + rng.choice(("x", " ", "\u200b", ".bak"))] = parent.pop(path[-1])
        return json.dumps(tree), f"{name} is renamed"
    if way == "duplicate":
        text = json.dumps(_put(tree, path, mark))
        twice = f"{json.dumps(value(rng))}, {json.dumps(path[-1])}: {json.dumps(value(rng))}"
        return text.replace(f'"{mark}"', twice), f"{name} stands twice"
    other = rng.choice(list(parent))
    parent[other], parent[path[-1]] = parent[path[-1]], parent[other]
    return json.dumps(tree), f"{name} and {other} are exchanged"


def _put(tree: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    parent = tree
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = new
    return tree


def spoil_lines(rng: random.Random, text: str) -> tuple[str, str]:
    """JSON lines of which one is spoiled, missing, doubled or out of order."""
    lines = text.splitlines()
    at = rng.randrange(len(lines))
    way = rng.choice(("json", "json", "json", "delete", "double", "order", "empty", "join"))
    if way == "json":
        lines[at], what = spoil_json(rng, lines[at])
        return "\n".join(lines) + "\n", f"line {at + 1}: {what}"
    if way == "delete":
        del lines[at]
    elif way == "double":
        lines.insert(at, lines[at])
    elif way == "order":
        rng.shuffle(lines)
    elif way == "empty":
        lines.insert(at, rng.choice(("", "  ", "\x00", "null", "[]", "{}")))
    else:
        lines[at] = lines[at] + lines[rng.randrange(len(lines))]
    return "\n".join(lines) + rng.choice(("\n", "")), f"line {at + 1}: {way}"


def spoil_bytes(rng: random.Random, content: bytes) -> tuple[bytes, str]:
    """Bytes of which some are altered, missing or too many."""
    size = len(content)
    at = rng.randrange(size) if size else 0
    way = rng.choice(("bit", "bit", "byte", "cut", "longer", "zeros", "block", "nothing", "bom", "front"))
    if way == "bit" and size:
        return content[:at] + bytes([content[at] ^ (1 << rng.randrange(8))]) + content[at + 1 :], f"bit of byte {at}"
    if way == "byte" and size:
        return content[:at] + bytes([rng.randrange(256)]) + content[at + 1 :], f"byte {at}"
    if way == "cut":
        return content[:at], f"cut at {at} of {size}"
    if way == "longer":
        return content + rng.randbytes(rng.choice((1, 8, 1000))), "longer"
    if way == "zeros":
        length = rng.choice((1, 64, 4096))
        return content[:at] + bytes(min(length, size - at)) + content[at + length :], f"zeros at {at}"
    if way == "block":
        other = rng.randrange(size) if size else 0
        return content[:at] + content[other : other + 64] + content[at + 64 :], f"bytes of {other} at {at}"
    if way == "bom":
        return b"\xef\xbb\xbf" + content, "a byte order mark"
    if way == "front":
        return content[1:], "without the first byte"
    return b"", "empty"


def spoil_file(
    rng: random.Random, path: Path, spoil_text: Callable[[random.Random, str], tuple[str, str]] | None
) -> str:
    """Spoil a file in place; what was done."""
    way = rng.random()
    if way < 0.04:
        path.unlink()
        return f"{path.name} is missing"
    if way < 0.08:
        path.unlink()
        path.mkdir()
        return f"{path.name} is a folder"
    if spoil_text is not None and way < 0.75:
        text, what = spoil_text(rng, path.read_text())
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
    else:
        content, what = spoil_bytes(rng, path.read_bytes())
        path.write_bytes(content)
    return f"{path.name}: {what}"
