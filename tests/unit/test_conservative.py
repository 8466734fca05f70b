"""A regulariser of the user's own, from a Python file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from helpers import F64, discrete, to_float64, vector
from steepest import UsageError
from steepest.algorithms.discrete_cql import DiscreteCQL, DiscreteCQLConfig
from steepest.files.functions import load_function

SOFTMAX = """
import torch

def entropy(q_value, log_ratio):
    return torch.softmax(q_value + log_ratio, -1)

def greedy(q_value, log_ratio):
    return torch.nn.functional.one_hot(q_value.argmax(-1), q_value.shape[-1]).to(q_value.dtype)
"""


def slope(regulariser: str) -> torch.Tensor:
    """The gradient of the agent's loss, from the same parameters and batch."""
    config = DiscreteCQLConfig(hidden_sizes=(4,), regulariser=regulariser)
    torch.manual_seed(0)
    agent = to_float64(DiscreteCQL(config, vector(3), discrete(4)))
    g = torch.Generator().manual_seed(1)
    batch = {
        "obs/obs": torch.randn((8, 3), generator=g, dtype=F64),
        "action": torch.randint(0, 4, (8,), generator=g),
        "reward": torch.zeros(8, dtype=F64),
    }
    state = {k: v[0] for k, v in agent.state.items()}
    leaf = state["params"].clone().requires_grad_()
    loss, _ = agent.loss(leaf, state, batch, torch.zeros(8, dtype=F64), agent.hyperparameters(0.0))
    return torch.autograd.grad(loss, leaf)[0]


def test_a_regulariser_from_a_file(tmp_path: Path) -> None:
    """Softmax of the values is CQL(H), to the bits of rounding; another function is another penalty."""
    file = tmp_path / "own.py"
    file.write_text(SOFTMAX)
    torch.testing.assert_close(slope(f"{file}:entropy"), slope("entropy"), rtol=1e-10, atol=1e-12)
    assert float((slope(f"{file}:greedy") - slope("entropy")).norm()) > 1e-3
    assert load_function(f"{file}:greedy", "regulariser")(torch.tensor([1.0, 2.0]), None).tolist() == [0.0, 1.0]


def test_what_names_no_function_is_explained(tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("import nowhere_to_be_found\n")
    for named, words in (
        ("entropy.py", "expected FILE.py:FUNCTION"),
        (f"{tmp_path}/none.py:f", "there is no file"),
        (f"{broken}:f", r"broken\.py cannot be imported: ModuleNotFoundError"),
    ):
        with pytest.raises(UsageError, match=words):
            load_function(named, "regulariser")
    empty = tmp_path / "empty.py"
    empty.write_text("f = 3\n")
    with pytest.raises(UsageError, match=r"empty\.py has no function f"):
        load_function(f"{empty}:f", "regulariser")


def test_what_gives_no_probabilities_is_refused(tmp_path: Path) -> None:
    """When the agent is made, not in the middle of training."""
    file = tmp_path / "own.py"
    file.write_text(
        "def fails(q, r):\n    return q.no_such_thing\n"
        "def half(q, r):\n    return 0.5 * q.softmax(-1)\n"
        "def short(q, r):\n    return q.softmax(-1)[..., :1]\n"
        "def number(q, r):\n    return 1.0\n"
    )
    for name, words in (
        ("fails", r"failed on values \(2, 3\): AttributeError: .*\(own\.py, line 2\)"),
        ("half", "expected probabilities of that shape, which sum to 1"),
        ("short", "expected probabilities of that shape"),
        ("number", r"gave 1\.0 for values"),
    ):
        with pytest.raises(UsageError, match=words):
            slope(f"{file}:{name}")
