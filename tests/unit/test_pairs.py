"""What the command reads as arguments of an environment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from steepest.cli.options import as_pairs, read_config, read_pairs
from steepest.errors import UsageError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5),
        ("-5", -5),
        ("0.1", 0.1),
        ("3e-4", 3e-4),
        ("1e6", 1e6),
        ("-.5E+2", -50.0),
        ("true", True),
        ("False", False),
        ("null", None),
        ("slippery", "slippery"),
        ('"5"', "5"),
        ("4x4", "4x4"),
        ("a=b", "a=b"),
        ("[1, 2.5, x]", [1, 2.5, "x"]),
        ("{a-b: 1e-3}", {"a-b": 1e-3}),
        ("2024-01-02", "2024-01-02"),
        ("", ""),
        ("a: b: c", "a: b: c"),
        ("[1, 2", "[1, 2"),
        ("/tmp/map.txt", "/tmp/map.txt"),
    ],
)
def test_pairs_are_read_as_typed(text: str, value: Any) -> None:
    found = read_pairs([f"key={text}"])
    assert found == {"key": value}
    assert type(found["key"]) is type(value)


@pytest.mark.parametrize("pair", ["gravity", "=5", "5=gravity", "a-b=1", "", "a b=1"])
def test_what_is_no_pair_is_refused(pair: str) -> None:
    with pytest.raises(UsageError, match=r"--env-kwargs has .*expected KEY=VALUE, such as gravity=5"):
        read_pairs([pair])


def test_a_name_given_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="--env-kwargs has a twice"):
        read_pairs(["a=1", "a=2"])


@pytest.mark.parametrize(
    "arguments",
    [{}, {"a": 1, "b": "5", "c": [1, "x"], "d": None, "e": True, "f": 1e-05, "g": "3e-4x", "h": {"a-b": [0.5]}}],
)
def test_a_mapping_and_its_pairs_are_one(arguments: dict[str, Any]) -> None:
    assert read_pairs(as_pairs(arguments, "a.yaml")) == arguments


@pytest.mark.parametrize("arguments", [5, "gravity=5", ["gravity=5"], {1: 2}, {"a-b": 2}, {None: 2}])
def test_a_file_has_a_mapping(arguments: Any) -> None:
    with pytest.raises(UsageError, match=r"^a\.yaml: env_kwargs .*expected .*arguments.*, such as 'gravity: 5'"):
        as_pairs(arguments, "a.yaml")


def test_what_is_no_yaml_is_text() -> None:
    """A terminal's commands too."""
    assert read_pairs(["a=\x1b[2J", "b=[1"]) == {"a": "\x1b[2J", "b": "[1"}


def test_a_file_s_arguments_stay_as_they_are(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(
        "learning-rate: 3e-4\nhidden-sizes: [8, 8]\nenv-kwargs:\n  map_name: 4x4\n  sizes: [1, 2]\n  x: 1e-2\n"
    )
    assert read_config(file) == {
        "learning_rate": 3e-4,
        "hidden_sizes": (8, 8),
        "env_kwargs": {"map_name": "4x4", "sizes": [1, 2], "x": 0.01},
    }


def test_a_run_s_description_brings_its_arguments(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"run": {"seed": 1}, "config": {"gamma": 0.9}, "env_kwargs": {"g": 5}}))
    assert read_config(file) == {"seed": 1, "gamma": 0.9, "env_kwargs": {"g": 5}}
    file.write_text(json.dumps({"run": {"seed": 1}, "config": {"gamma": 0.9}, "env_kwargs": None}))
    assert "env_kwargs" not in read_config(file)
