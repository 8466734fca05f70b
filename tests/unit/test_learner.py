"""The fused step: its optimiser against torch.optim, and every way of running it against every other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from helpers import F64, discrete, synthetic_rollout, to_float64, vector
from steepest.algorithms.ppo import PPO, PPOConfig
from steepest.learner.compiled import _is_whole  # pyright: ignore[reportPrivateUsage]
from steepest.learner.lifting import Learner
from steepest.learner.step import Layout, adam_state, adam_step, autograd_gradient, functional_gradient
from steepest.learner.threads import one_thread
from steepest.learner.trees import mean_metrics, to_host, tree_builder, tree_leaves, tree_map
from steepest.networks.inputs import Normalization
from steepest.types import ObsSpec, Rollout

# The parameter vector


def test_layout_round_trip() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2, bias=False))
    layout = Layout(module)
    named = {k: p.detach() for k, p in module.named_parameters()}
    vector = layout.flatten(named)
    assert vector.shape == (layout.size,) == (3 * 4 + 4 + 4 * 2,)
    for stack in (vector, torch.stack([vector, 2.0 * vector]), vector.expand(2, 3, -1).contiguous()):
        parts = layout.unflatten(stack)
        assert {k: tuple(x.shape) for k, x in parts.items()} == {
            k: (*stack.shape[:-1], *p.shape) for k, p in named.items()
        }
        assert torch.equal(layout.flatten(parts), stack)
    assert torch.equal(layout.unflatten(torch.stack([vector, 2.0 * vector]))["0.bias"][1], 2.0 * named["0.bias"])


def test_layout_refuses_mixed_types() -> None:
    with pytest.raises(ValueError, match=r"mixes parameter types .*float32.*float64"):
        Layout(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double()))


# Trees

TREES: dict[str, Any] = {
    "a tensor": torch.tensor(1.0),
    "a dict not in the order of its keys": {"b": torch.tensor(1.0), "a": torch.tensor(2.0), "c": None},
    "nested": ({"y": [torch.tensor(1.0), 3], "x": (torch.tensor(2.0), None)}, torch.tensor(3.0), "name"),
    "a named tuple": Normalization({"obs": torch.tensor(1.0)}, {"obs": torch.tensor(2.0)}),
}


@pytest.mark.parametrize("name", TREES)
def test_trees_are_built_again(name: str) -> None:
    """Of the same types, with the same keys in the same order, and every leaf in its place."""
    tree = TREES[name]
    leaves = [x + 10.0 for x in tree_leaves(tree)]
    built = tree_builder(tree)(leaves)
    assert repr(built) == repr(tree_map(lambda x: x + 10.0, tree))


# Adam


@pytest.mark.parametrize("learning_rate", [1e-3, 0.3])
def test_adam_step_equals_torch_optim(learning_rate: float) -> None:
    """20 steps with gradients far above and below the norm's limit, together with clip_grad_norm_.

    torch adds 1e-6 to the norm where it clips, hence the large gradients: the difference is 1e-6 / ||g||.
    """
    g = torch.Generator().manual_seed(0)
    parameters = nn.Parameter(torch.randn(11, generator=g, dtype=F64))
    optimiser = torch.optim.Adam([parameters], lr=learning_rate, betas=(0.9, 0.999), eps=1e-5)
    state = adam_state(parameters.detach().clone())
    rate, limit = (torch.tensor(x, dtype=F64) for x in (learning_rate, 0.5))
    for step in range(20):
        gradient = torch.randn(11, generator=g, dtype=F64) * (1e6 if step % 3 else 1e-2)
        parameters.grad = gradient.clone()
        norm = nn.utils.clip_grad_norm_([parameters], 0.5)
        optimiser.step()
        state, found = adam_step(state, gradient, rate, limit)
        assert float(found) == pytest.approx(float(norm), rel=1e-12)
        torch.testing.assert_close(state["params"], parameters.detach(), rtol=1e-10, atol=1e-11)
    moments = optimiser.state[parameters]
    torch.testing.assert_close(state["adam_mean"], moments["exp_avg"], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(state["adam_square"], moments["exp_avg_sq"], rtol=1e-10, atol=1e-12)
    assert state["adam_count"] == 20


def test_adam_step_keeps_the_rest_of_the_state_and_survives_a_zero_gradient() -> None:
    state = {**adam_state(torch.ones(3)), "obs_count": torch.tensor(4.0)}
    new, norm = adam_step(state, torch.zeros(3), torch.tensor(0.1), torch.tensor(0.5))
    assert norm == 0.0
    assert torch.equal(new["params"], torch.ones(3))
    assert new["obs_count"] == 4.0
    assert state["adam_count"] == 0.0  # pure: what went in is as it was


# Gradients


def test_the_two_gradients_are_equal() -> None:
    module = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    layout = Layout(module)
    vector = layout.flatten({k: p.detach() for k, p in module.named_parameters()})
    x = torch.randn((6, 3), generator=torch.Generator().manual_seed(0), dtype=F64)

    def loss(v: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        out = torch.func.functional_call(module, layout.unflatten(v), (x,))
        return out.square().mean(), {"mean": out.mean()}

    results = [gradient(loss, vector) for gradient in (functional_gradient, autograd_gradient)]
    (slope, (value, metrics)), (slope2, (value2, metrics2)) = results
    torch.testing.assert_close(slope, slope2, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close((value, metrics), (value2, metrics2), rtol=1e-12, atol=1e-14)
    assert not slope2.requires_grad
    assert not value2.requires_grad
    assert not vector.requires_grad


# Trees and figures


def test_tree_map_keeps_the_structure() -> None:
    tree = {"a": torch.ones(2), "b": (torch.zeros(1), None), "c": [torch.ones(1)], "n": Normalization({}, {})}
    doubled = tree_map(lambda x: 2 * x, tree)
    assert torch.equal(doubled["a"], torch.full((2,), 2.0))
    assert doubled["b"][1] is None
    assert isinstance(doubled["c"], list)
    assert isinstance(doubled["n"], Normalization)
    total = tree_map(lambda x, y: x + y, tree, doubled)
    assert torch.equal(total["a"], torch.full((2,), 3.0))


def test_figures_reach_the_host() -> None:
    history = [{"loss": torch.tensor([1.0, 3.0])}, {"loss": torch.tensor([2.0, 5.0])}]
    np.testing.assert_array_equal(to_host(mean_metrics(history))["loss"], [1.5, 4.0])


# One update, run in every way

CONFIG: dict[str, Any] = {
    "hidden_sizes": (8,),
    "rollout_steps": 8,
    "minibatches": 2,
    "epochs": 2,
    "entropy_coef": 0.01,
    "learning_rate": 1e-2,
    "normalize_obs": True,
    "normalize_reward": True,
    "value_clip": 0.3,
    "target_kl": 5e-4,
}
NUM_ENVS = 4


FIVE_CALLS = {"epochs": 5, "minibatches": 1}  # one step a call, which compiles in a quarter of the time of four


def make(
    seeds: tuple[int, ...],
    dtype: torch.dtype,
    notes: list[str] | None = None,
    changes: dict[str, Any] | None = None,
    **options: Any,
) -> PPO:
    note = (lambda _: None) if notes is None else notes.append
    config = PPOConfig(**(CONFIG | (changes or {})))
    agent = PPO(config, vector(3), discrete(3), num_envs=NUM_ENVS, seeds=seeds, note=note, **options)
    return to_float64(agent) if dtype == F64 else agent


def member(rollout: Rollout, m: int) -> Rollout:
    return tree_map(lambda x: x[m : m + 1], rollout)


Result = tuple[dict[str, Tensor], dict[str, Any]]


def updates(agent: PPO, rollouts: list[Rollout]) -> Result:
    figures = [agent.update(rollout, 0.1 * i) for i, rollout in enumerate(rollouts)]
    return {k: v.clone() for k, v in agent.state.items()}, figures[-1]


def rollouts(agent: PPO, dtype: torch.dtype) -> list[Rollout]:
    return [synthetic_rollout(agent, CONFIG["rollout_steps"], seed=s, dtype=dtype) for s in (0, 100)]


def assert_same(got: Result, expected: Result, dtype: torch.dtype) -> None:
    rtol, atol = (1e-9, 1e-11) if dtype == F64 else (1e-4, 1e-6)
    assert got[0].keys() == expected[0].keys()
    for key, value in expected[0].items():
        torch.testing.assert_close(got[0][key], value, rtol=rtol, atol=atol, msg=lambda text, key=key: f"{key}: {text}")
    for key, value in expected[1].items():
        np.testing.assert_allclose(got[1][key], value, rtol=10 * rtol, atol=10 * atol, err_msg=key)


def one_by_one(seeds: tuple[int, ...], data: list[Rollout], dtype: torch.dtype, **options: Any) -> Result:
    """Agents of one member each, with the seeds and experience of a population's members; results stacked."""
    results = []
    for m, seed in enumerate(seeds):
        agent = make((seed,), dtype, **options)
        results.append(updates(agent, [member(rollout, m) for rollout in data]))
    states = {k: torch.cat([r[0][k] for r in results]) for k in results[0][0]}
    return states, {k: np.concatenate([r[1][k] for r in results]) for k in results[0][1]}


SEEDS = (3, 1, 4)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_members_together_equal_members_apart(dtype: torch.dtype) -> None:
    notes: list[str] = []
    agent = make(SEEDS, dtype, notes)
    data = rollouts(agent, dtype)
    before = agent.state["params"].clone()
    found = updates(agent, data)
    assert notes == []
    assert ((agent.state["params"] - before).abs().amax(-1) > 1e-3).all()
    # A wide tolerance asks for more here: members differ by more than 1e-2, so that an exchange could not pass.
    assert not torch.allclose(found[0]["params"][0], found[0]["params"][1], atol=1e-2)
    assert_same(found, one_by_one(SEEDS, data, dtype), dtype)


def test_the_target_kl_stops_a_member_by_itself() -> None:
    """Compared above as well; here that it happens: one takes fewer steps than asked, another all of them."""
    agent = make(SEEDS, F64)
    taken = np.stack([agent.update(x, 0.0)["steps_taken"] for x in rollouts(agent, F64)])
    assert (taken < 1.0).any()
    assert (taken > 0.0).all()
    steps = CONFIG["epochs"] * CONFIG["minibatches"]
    np.testing.assert_allclose(agent.state["adam_count"], steps * taken.sum(0), rtol=1e-12)


@pytest.mark.compiles
@pytest.mark.parametrize(("seeds", "dtype"), [((3,), torch.float32), (SEEDS, F64)])
def test_compiled_equals_eager(seeds: tuple[int, ...], dtype: torch.dtype) -> None:
    notes: list[str] = []
    agent = make(seeds, dtype, notes, FIVE_CALLS, compile=True)
    data = rollouts(agent, dtype)
    found = updates(agent, data)
    assert notes == []
    assert_same(found, updates(make(seeds, dtype, None, FIVE_CALLS), data), dtype)


# What does not compile or vmap falls back, saying so


class Branching(nn.Module):
    """Python control flow that depends on the data."""

    def __init__(self, spec: ObsSpec) -> None:
        super().__init__()
        self.linear = nn.Linear(spec.fields[0].shape[0], 8)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.linear(x))
        return -h if h[0, 0] > 0 else h


def averaging(spec: ObsSpec) -> nn.Module:
    """Running statistics, written in place by every forward pass."""
    return nn.Sequential(nn.BatchNorm1d(spec.fields[0].shape[0]), nn.Linear(spec.fields[0].shape[0], 8), nn.Tanh())


@pytest.mark.parametrize("network", [Branching, averaging])
def test_a_module_that_vmap_refuses_runs_member_by_member(network: Any) -> None:
    notes: list[str] = []
    agent = make(SEEDS, F64, notes, network=network)
    data = rollouts(agent, F64)
    before = {k: v.clone() for k, v in agent.state.items() if k.startswith("buffers/")}
    found = updates(agent, data)
    assert notes
    assert all(n.startswith("not vmapped: ") and n.endswith("going on with one member at a time") for n in notes)
    assert_same(found, one_by_one(SEEDS, data, F64, network=network), F64)
    for key, value in before.items():  # running statistics have moved, and are kept
        assert not torch.equal(agent.state[key], value)
    # Each minibatch counts once, and each rollout once more for the old values: a trial leaves no trace.
    for key in [k for k in before if k.endswith("num_batches_tracked")]:
        steps = CONFIG["epochs"] * CONFIG["minibatches"]
        assert (agent.state[key] - before[key] == 2 * (steps + 1)).all()


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("branches", [False, True])
def test_what_differs_between_members_is_given_to_each(members: int, branches: bool) -> None:
    """By vmap, one member at a time where that cannot be, and alone."""

    def step(state: Any, hyper: Any) -> Any:
        if branches and float(state["x"].sum()) < 0.0:  # which vmap refuses
            raise AssertionError
        return {"x": state["x"] * hyper["own"] + hyper["shared"]}

    notes: list[str] = []
    learner = Learner(members, compile=False, device=torch.device("cpu"), note=notes.append)
    state = {"x": torch.arange(2.0 * members).view(members, 2)}
    own = torch.arange(1.0, members + 1.0)
    found = learner.lift(step)(state, {"own": own, "shared": torch.tensor(0.5)})
    assert torch.equal(found["x"], state["x"] * own.unsqueeze(-1) + 0.5)
    assert bool(notes) == (branches and members > 1)


class Counting(nn.Module):
    """Keeps something in an attribute, which compiled code would neither read again nor write."""

    def __init__(self, spec: ObsSpec) -> None:
        super().__init__()
        self.linear = nn.Linear(spec.fields[0].shape[0], 8)
        self.calls = 0
        self.features = torch.zeros(8)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.features = torch.tanh(self.linear(x))
        return self.features


class Constant(nn.Module):
    """Has a tensor that is neither parameter nor buffer, so that nobody could tell if it changed."""

    def __init__(self, spec: ObsSpec) -> None:
        super().__init__()
        self.linear = nn.Linear(spec.fields[0].shape[0], 8)
        self.scale = torch.arange(8.0, dtype=F64)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x) * self.scale.to(x.dtype))


class Reassigning(nn.Module):
    """A running mean in a buffer that every pass assigns anew, instead of writing it in place."""

    mean: Tensor

    def __init__(self, spec: ObsSpec) -> None:
        super().__init__()
        self.linear = nn.Linear(spec.fields[0].shape[0], 8)
        self.register_buffer("mean", torch.zeros(spec.fields[0].shape[0]))

    def forward(self, x: Tensor) -> Tensor:
        self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
        return torch.tanh(self.linear(x - self.mean))


class InPlace(Reassigning):
    """The same, written in place."""

    def forward(self, x: Tensor) -> Tensor:
        self.mean.copy_(0.9 * self.mean + 0.1 * x.mean(0))
        return torch.tanh(self.linear(x - self.mean))


@pytest.mark.parametrize("seeds", [(3,), SEEDS])
def test_a_buffer_that_is_assigned_is_kept_like_one_written_in_place(seeds: tuple[int, ...]) -> None:
    agents = [make(seeds, F64, network=network) for network in (Reassigning, InPlace)]
    data = rollouts(agents[0], F64)
    assigned, written = (updates(agent, data) for agent in agents)
    assert (written[0]["buffers/policy_torso.mean"].abs() > 1e-2).any()
    assert_same(assigned, written, F64)


@pytest.mark.compiles
@pytest.mark.parametrize("network", [Branching, averaging, Counting, Constant, Reassigning])
def test_a_module_that_does_not_compile_runs_eagerly(network: Any) -> None:
    notes: list[str] = []
    agent = make((3,), F64, notes, FIVE_CALLS, compile=True, network=network)
    data = rollouts(agent, F64)
    found = updates(agent, data)
    assert notes
    assert len(set(notes)) == len(notes)
    assert all(n.startswith("not compiled: ") and n.endswith("going on with ordinary autograd") for n in notes)
    assert_same(found, one_by_one((3,), data, F64, changes=FIVE_CALLS, network=network), F64)


def test_the_last_way_raises_its_own_error() -> None:
    def broken(x: Tensor, hyper: None) -> Tensor:
        raise RuntimeError("no way at all")

    notes: list[str] = []
    learner = Learner(2, compile=False, device=torch.device("cpu"), note=notes.append)
    with pytest.raises(RuntimeError, match="no way at all"):
        learner.lift(broken)(torch.zeros(2, 3), None)
    assert notes == ["not vmapped: no way at all; going on with one member at a time"]


# Libraries on disk


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for the compiler."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "steepest"


def compiled(function: Any, *args: Any, notes: list[str] | None = None) -> tuple[Any, Any]:
    """A function lifted in compiled mode, called once: the lifted function and its result."""
    learner = Learner(1, compile=True, device=torch.device("cpu"), note=(notes if notes is not None else []).append)
    lifted = learner.lift(function)
    return lifted, lifted(*args)


def times(factor: Any, scale: float = 1.0, number: float = 1.0) -> Any:
    """A function with two tensors and a number in it."""
    return lambda x, hyper: (
        x * torch.tensor(factor, dtype=F64) * torch.tensor(scale, dtype=F64) + number * hyper["shift"]
    )


ROW = torch.arange(3.0, dtype=F64)[None]
SHIFT = {"shift": torch.tensor(1.0, dtype=F64)}


@pytest.mark.compiles
def test_constants_of_a_function_are_its_own(cache: Path) -> None:
    """Functions that differ in nothing but a tensor's values, a scalar tensor's or a number."""
    one: list[float] = [1.0, 2.0, 3.0]
    parts = [(one, 3.0, 3.0), ([1.0, 2.0, 4.0], 3.0, 3.0), (one, 4.0, 3.0), (one, 3.0, 4.0)]
    functions = [(times(f, s, n), ROW * torch.tensor(f, dtype=F64) * s + n) for f, s, n in parts]
    for function, expected in functions:
        lifted, result = compiled(function, ROW, SHIFT)
        assert lifted.modes[0][0] == "compiled"
        torch.testing.assert_close(result, expected, rtol=1e-12, atol=0)
    libraries = sorted(cache.iterdir())
    assert [path.suffix for path in libraries] == [".pt2"] * len(functions)  # and nothing was left beside them
    for function, expected in functions:
        torch.testing.assert_close(compiled(function, ROW, SHIFT)[1], expected, rtol=1e-12, atol=0)
    assert sorted(cache.iterdir()) == libraries  # found again


@pytest.mark.compiles
def test_the_branches_of_a_traced_condition_are_part_of_the_key(cache: Path) -> None:
    del cache

    def choosing(factor: float) -> Any:
        def function(x: Tensor, hyper: dict[str, Tensor]) -> Tensor:
            return torch.cond(x.sum() > hyper["shift"], lambda x: x * factor, lambda x: x - factor, (x,))

        return function

    for factor in (2.0, 3.0):
        lifted, result = compiled(choosing(factor), ROW, SHIFT)
        assert lifted.modes[0][0] == "compiled"
        torch.testing.assert_close(result, ROW * factor, rtol=1e-12, atol=0)
        torch.testing.assert_close(lifted(-ROW, SHIFT), -ROW - factor, rtol=1e-12, atol=0)


@pytest.mark.compiles
@pytest.mark.parametrize(
    "damage", ["flipped", *(pytest.param(x, marks=pytest.mark.slow) for x in ("truncated", "empty"))]
)
def test_a_damaged_library_is_built_again(cache: Path, damage: str, capfd: pytest.CaptureFixture[str]) -> None:
    compiled(times(2.0), ROW, SHIFT)
    (library,) = cache.glob("*.pt2")
    whole = library.read_bytes()
    middle = len(whole) // 2
    flipped = bytes(x ^ 0xFF for x in whole[middle : middle + 64])
    library.unlink()  # its code is in use
    damaged = {"truncated": whole[:middle], "flipped": whole[:middle] + flipped + whole[middle + 64 :], "empty": b""}
    for content in damaged.values():
        library.write_bytes(content)
        assert not _is_whole(library)
    library.write_bytes(damaged[damage])
    notes: list[str] = []
    lifted, result = compiled(times(2.0), ROW, SHIFT, notes=notes)
    assert lifted.modes[0][0] == "compiled"
    assert notes == []
    assert capfd.readouterr().err == ""
    torch.testing.assert_close(result, 2.0 * ROW + 1.0, rtol=1e-12, atol=0)
    assert len(library.read_bytes()) > middle


ONE_RUN = """
import sys
import torch
from steepest.learner.lifting import Learner
learner = Learner(1, compile=True, device=torch.device("cpu"), note=print)
for factor in (2.0, 3.0)[: int(sys.argv[1])]:
    lifted = learner.lift(lambda x, hyper: torch.tanh(x) * factor)
    assert torch.allclose(lifted(torch.ones(1, 3), None), factor * torch.ones(1, 3).tanh())
print(lifted.modes[0][0])
"""


@pytest.mark.compiles
@pytest.mark.parametrize("missing", ["folder", "compiler"])
def test_without_a_folder_or_a_compiler_the_learner_says_so_once(tmp_path: Path, missing: str) -> None:
    (tmp_path / "file").write_text("where the cache should be\n")
    folder = tmp_path / ("file" if missing == "folder" else "cache")
    compiler = {"CXX": "no-such-compiler"} if missing == "compiler" else {}
    environment = {**os.environ, **compiler, "TORCHINDUCTOR_CACHE_DIR": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", ONE_RUN, "2"], env=environment, capture_output=True, text=True, timeout=200, check=True
    )
    note, mode = done.stdout.splitlines()
    assert note.startswith("not compiled: ")
    assert note.endswith("; going on with ordinary autograd")
    assert ("no-such-compiler" if missing == "compiler" else str(folder)) in note
    assert mode == "ordinary autograd"
    assert done.stderr == ""


@pytest.mark.compiles
def test_two_processes_may_build_the_same_library(cache: Path) -> None:
    command = [sys.executable, "-c", ONE_RUN, "1"]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=200)[0] for process in processes] == ["compiled\n", "compiled\n"]
    assert [path.suffix for path in cache.iterdir()] == [".pt2"]


@pytest.mark.compiles
def test_compiled_code_takes_dicts_in_any_order_and_refuses_other_kinds() -> None:
    def function(state: dict[str, Tensor], x: Tensor | None, hyper: None) -> dict[str, Tensor]:
        return {"b": state["a"] - state["b"], "a": state["a"] * (1.0 if x is None else x)}

    one, two = torch.full((1, 2), 1.0, dtype=F64), torch.full((1, 2), 2.0, dtype=F64)
    lifted, first = compiled(function, {"a": one, "b": two}, None, None)
    assert lifted.modes[0][0] == "compiled"
    for call in (lambda s, x: lifted(s, x, None), lambda s, x: lifted.bind(s)(x, None)):
        for state in ({"a": one, "b": two}, {"b": two, "a": one}):
            result = call(state, None)
            assert list(result) == ["b", "a"] == list(first)
            assert torch.equal(result["b"], one - two)
            assert torch.equal(result["a"], one)
        for wrong in (torch.ones(1, 3, dtype=F64), torch.ones(1, 2)):
            with pytest.raises(ValueError, match=r"compiled for a tensor \(1, 2\) of torch.float64.*called with"):
                call({"a": wrong, "b": two}, None)
        with pytest.raises(ValueError, match="compiled for"):
            call({"a": one, "b": two}, one)


@pytest.mark.compiles
def test_a_bound_function_may_be_called_before_any_other() -> None:
    learner = Learner(1, compile=True, device=torch.device("cpu"), note=lambda _: None)
    lifted = learner.lift(lambda state, x, hyper: state["a"] * x)
    early = lifted.bind({"a": ROW})
    assert torch.equal(early(ROW, None), ROW.square())
    assert lifted.modes[0][0] == "compiled"
    assert torch.equal(early(2.0 * ROW, None), 2.0 * ROW.square())
    assert torch.equal(lifted.bind({"a": 3.0 * ROW})(ROW, None), 3.0 * ROW.square())


@pytest.mark.compiles
def test_a_compiled_agent_acts_on_any_number_of_observations() -> None:
    agent = make((3,), torch.float32, compile=True, changes=FIVE_CALLS)
    noise = agent.draw_noise((1, NUM_ENVS))[0]
    obs = {k: x[:, 0] for k, x in rollouts(agent, torch.float32)[0].obs.items()}
    with torch.no_grad():
        together, _ = agent.actor(fused=True)(obs, noise, None, None, None)
        apart, _ = agent.actor()(obs, noise, None, None, None)
    assert torch.equal(together, apart)
    one, _ = agent.act(np.zeros(3, dtype=np.float32))
    many, _ = agent.act(np.zeros((7, 3), dtype=np.float32))
    assert np.shape(one) == ()
    assert np.shape(many) == (7,)


@pytest.mark.parametrize("fails", [False, True])
def test_one_thread_within_and_as_before_after(fails: bool) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)

    @one_thread()
    def count() -> int:
        if fails:
            raise ValueError("an error")
        return torch.get_num_threads()

    try:
        for _ in range(2):  # a decorated function may be called again
            if fails:
                with pytest.raises(ValueError, match="an error"):
                    count()
            else:
                assert count() == 1
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
