from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector.utils import batch_space
from hypothesis import given, settings
from hypothesis import strategies as st

from steepest.environments.errors import UnsupportedSpaceError
from steepest.environments.spaces import (
    action_spec,
    check_squash,
    convert_obs,
    flatten_mask,
    obs_spec,
    to_env_action,
    to_unit_action,
)
from steepest.errors import RunError, UsageError
from steepest.types import (
    BARE_OBS,
    ActionSpec,
    ObsField,
    action_spec_from_json,
    obs_spec_from_json,
    spec_to_json,
)

N = 5


def batch(space, n=N, seed=0):
    """A batch of raw observations (or actions) as a vector environment returns it."""
    batched = batch_space(space, n)
    batched.seed(seed)
    return batched.sample()


# Observations

BARE = [
    (spaces.Box(-1, 1, (3,), np.float32), ObsField("obs", "vector", (3,), "float32")),
    (spaces.Box(-1, 1, (3, 2), np.float64), ObsField("obs", "vector", (3, 2), "float32")),
    (spaces.Box(-1, 1, (), np.float32), ObsField("obs", "vector", (), "float32")),
    (spaces.Box(-9, 9, (2,), np.int16), ObsField("obs", "vector", (2,), "float32")),
    (spaces.Box(0, 255, (128,), np.uint8), ObsField("obs", "vector", (128,), "float32")),
    (spaces.Box(0, 1, (2, 2), np.bool_), ObsField("obs", "vector", (2, 2), "float32")),
    (spaces.Box(0, 255, (4, 84, 84), np.uint8), ObsField("obs", "image", (4, 84, 84), "uint8")),
    (spaces.Box(0, 255, (21, 16, 3), np.uint8), ObsField("obs", "image", (3, 21, 16), "uint8")),
    (spaces.Box(0, 255, (7, 7, 1), np.uint8), ObsField("obs", "image", (1, 7, 7), "uint8")),
    (spaces.Box(0, 255, (5, 6), np.uint8), ObsField("obs", "image", (1, 5, 6), "uint8")),
    (spaces.Discrete(4), ObsField("obs", "discrete", (), "int64", (4,), (0,))),
    (spaces.Discrete(4, start=-2), ObsField("obs", "discrete", (), "int64", (4,), (-2,))),
    (spaces.MultiDiscrete([3, 5]), ObsField("obs", "discrete", (2,), "int64", (3, 5), (0, 0))),
    (
        spaces.MultiDiscrete([[3, 5], [2, 2]], start=[[1, 0], [0, 7]]),
        ObsField("obs", "discrete", (2, 2), "int64", (3, 5, 2, 2), (1, 0, 0, 7)),
    ),
    (spaces.MultiBinary(6), ObsField("obs", "vector", (6,), "float32")),
    (spaces.MultiBinary([2, 3]), ObsField("obs", "vector", (2, 3), "float32")),
]


@pytest.mark.parametrize(("space", "field"), BARE, ids=lambda x: str(x)[:40])
def test_bare_space_is_one_field(space, field):
    spec = obs_spec(space)
    assert spec.fields == (field,)
    assert field.name == BARE_OBS
    assert not spec.is_dict
    assert obs_spec_from_json(spec_to_json(spec)) == spec
    raw = batch(space)
    array = convert_obs(spec, raw, N)["obs"]
    assert array.shape == (N, *field.shape)
    assert array.dtype == field.dtype
    if field.kind == "image":
        axes = np.asarray(raw) if raw.ndim == 4 else raw[..., None]
        expected = axes if axes.shape[1:] == field.shape else axes.transpose(0, 3, 1, 2)
        np.testing.assert_array_equal(array, expected)
    elif field.kind == "discrete":
        assert (array >= 0).all()
        np.testing.assert_array_equal(array + np.reshape(field.start, field.shape), raw)
    else:
        np.testing.assert_array_equal(array, np.asarray(raw, np.float32))


def test_dict_is_flattened_with_joined_names():
    space = spaces.Dict(
        camera=spaces.Box(0, 255, (8, 8, 3), np.uint8),
        body=spaces.Dict(joints=spaces.Box(-1, 1, (2,)), mode=spaces.Discrete(3, start=1)),
        pair=spaces.Tuple((spaces.MultiBinary(2), spaces.Box(-1, 1, (1,)))),
    )
    spec = obs_spec(space)
    assert spec.is_dict
    assert [f.name for f in spec.fields] == ["camera", "body/joints", "body/mode", "pair/0", "pair/1"]
    assert [f.shape for f in spec.fields] == [(3, 8, 8), (2,), (), (2,), (1,)]
    raw = batch(space)
    obs = convert_obs(spec, raw, N)
    np.testing.assert_array_equal(obs["camera"], raw["camera"].transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(obs["body/joints"], raw["body"]["joints"])
    np.testing.assert_array_equal(obs["body/mode"], raw["body"]["mode"] - 1)
    np.testing.assert_array_equal(obs["pair/0"], raw["pair"][0].astype(np.float32))
    assert "extra" not in convert_obs(spec, {**raw, "extra": np.zeros(N)}, N)


def test_bare_tuple_is_a_dict_of_numbers():
    space = spaces.Tuple((spaces.Discrete(32), spaces.Discrete(11)))
    spec = obs_spec(space)
    assert spec.is_dict
    assert [f.name for f in spec.fields] == ["0", "1"]
    assert set(convert_obs(spec, batch(space), N)) == {"0", "1"}


def test_copy_is_made_only_when_asked():
    spec = obs_spec(spaces.Box(-1, 1, (3,), np.float32))
    raw = np.zeros((N, 3), np.float32)
    assert convert_obs(spec, raw, N)["obs"] is raw
    assert not np.shares_memory(convert_obs(spec, raw, N, copy=True)["obs"], raw)


@pytest.mark.parametrize(
    ("space", "what"),
    [
        (spaces.Text(5), "Text"),
        (spaces.Sequence(spaces.Discrete(2)), "Sequence"),
        (spaces.Graph(spaces.Box(-1, 1, (2,)), None), "Graph"),
        (spaces.Dict(a=spaces.Dict(b=spaces.Text(5))), r"field 'a/b'"),
        (spaces.Dict({"a/b": spaces.Discrete(2)}), "a/b"),
        (spaces.Box(0, 255, (4, 8, 8, 3), np.uint8), "4 axes"),
        (spaces.Box(-1, 1, (0,), np.float32), "empty"),
    ],
)
def test_unsupported_observation_spaces_are_named(space, what):
    with pytest.raises(UnsupportedSpaceError, match=what) as error:
        obs_spec(space)
    assert isinstance(error.value, UsageError)
    assert isinstance(error.value, ValueError)


def test_wrong_observations_are_refused():
    spec = obs_spec(spaces.Box(-1, 1, (3,), np.float32))
    with pytest.raises(ValueError, match=r"shape \(5, 2\), not \(5, 3\)"):
        convert_obs(spec, np.zeros((5, 2)), 5)
    spec = obs_spec(spaces.Dict(a=spaces.Discrete(3, start=1), b=spaces.Box(0, 255, (4, 8, 8), np.uint8)))
    good = {"a": np.array([1, 3]), "b": np.zeros((2, 4, 8, 8), np.uint8)}
    convert_obs(spec, good, 2)
    with pytest.raises(ValueError, match="no field 'b'"):
        convert_obs(spec, {"a": good["a"]}, 2)
    with pytest.raises(ValueError, match=r"field 'a'.*\[0 3\].*not in 1 \.\. 3"):
        convert_obs(spec, {**good, "a": np.array([0, 3])}, 2)
    with pytest.raises(ValueError, match="dtype float64, not uint8"):
        convert_obs(spec, {**good, "b": np.zeros((2, 4, 8, 8))}, 2)
    with pytest.raises(ValueError, match=r"field 'b'.*shape"):
        convert_obs(spec, {**good, "b": np.zeros((2, 4, 8, 7), np.uint8)}, 2)


# Actions

INF = np.inf
ACTION_SPACES = [
    spaces.Discrete(3),
    spaces.Discrete(3, start=5),
    spaces.MultiDiscrete([3, 2]),
    spaces.MultiDiscrete([[3, 2], [4, 1]], start=[[0, 1], [-2, 9]]),
    spaces.MultiBinary(4),
    spaces.MultiBinary([2, 3]),
    spaces.Box(-1, 1, (2,), np.float32),
    spaces.Box(-2, 7, (2, 3), np.float32),
    spaces.Box(0.1, 0.3, (), np.float64),
    spaces.Box(np.array([-1, -INF, 0, -INF], np.float32), np.array([1, INF, INF, 0.3], np.float32)),
    spaces.Box(0, 255, (3,), np.uint8),
    spaces.Box(np.iinfo(np.int64).min, np.iinfo(np.int64).max, (2,), np.int64),
    spaces.Box(-np.finfo(np.float32).max, np.finfo(np.float32).max, (2,), np.float32),
]


def raw_action(spec: ActionSpec, rng, scale=3.0):
    if spec.kind == "box":
        return scale * rng.standard_normal((N, spec.dimension)).astype(np.float32)
    draws = np.stack([rng.integers(0, k, N) for k in spec.sizes], axis=1)
    return draws[:, 0] if spec.kind == "discrete" else draws


@pytest.mark.parametrize("space", ACTION_SPACES, ids=str)
def test_actions_lie_in_the_space(space):
    spec = action_spec(space)
    assert action_spec_from_json(spec_to_json(spec)) == spec
    rng = np.random.default_rng(0)
    for scale in (0.1, 3.0, 1e6, 1e38):
        action = to_env_action(spec, raw_action(spec, rng, scale), "clip")
        assert action.shape == (N, *space.shape)
        assert action.dtype == space.dtype
        assert batch_space(space, N).contains(action)
        assert all(space.contains(np.asarray(row) if spec.kind == "box" else row) for row in action)


def test_discrete_actions_count_from_start():
    np.testing.assert_array_equal(
        to_env_action(action_spec(spaces.Discrete(3, start=5)), np.arange(3), "clip"), [5, 6, 7]
    )
    spec = action_spec(spaces.MultiDiscrete([[3, 2], [4, 1]], start=[[0, 1], [-2, 9]]))
    assert spec.sizes == (3, 2, 4, 1)
    assert spec.mask_size == 10
    np.testing.assert_array_equal(to_env_action(spec, np.array([[2, 1, 3, 0]]), "clip"), [[[2, 2], [1, 9]]])


def test_box_formulas():
    spec = action_spec(spaces.Box(np.array([-2, 0], np.float32), np.array([6, 1], np.float32)))
    raw = np.array([[0.5, -0.5], [-1, 1], [-7, 7]], np.float32)
    np.testing.assert_allclose(to_env_action(spec, raw, "clip"), [[4, 0.25], [-2, 1], [-2, 1]], rtol=1e-7)
    expected = np.array([-2, 0]) + (np.tanh(raw.astype(np.float64)) + 1) / 2 * np.array([8, 1])
    np.testing.assert_allclose(to_env_action(spec, raw, "tanh"), expected, rtol=1e-6)


def test_unit_box_passes_actions_through_exactly():
    spec = action_spec(spaces.Box(-1, 1, (3,), np.float32))
    raw = np.random.default_rng(0).uniform(-1, 1, (100, 3)).astype(np.float32)
    np.testing.assert_array_equal(to_env_action(spec, raw, "clip"), raw)


def test_open_components_are_passed_through_and_clipped_to_the_finite_bound():
    space = ACTION_SPACES[9]
    raw = np.array([[0.5, 40.0, -3.0, 3.0], [0.5, -40.0, 5.0, -5.0]])
    expected = np.array([[0.5, 40, 0, np.float32(0.3)], [0.5, -40, 5, -5]], np.float32)
    np.testing.assert_array_equal(to_env_action(action_spec(space), raw, "clip"), expected)


def test_bounds_of_the_largest_float_count_as_infinite():
    spec = action_spec(spaces.Box(-np.finfo(np.float32).max, np.finfo(np.float32).max, (1,), np.float32))
    assert spec.low == (-INF,)
    assert spec.high == (INF,)
    assert to_env_action(spec, np.array([[2.5]]), "clip") == 2.5


def test_integer_box_rounds():
    spec = action_spec(spaces.Box(0, 10, (1,), np.int32))
    raw = np.array([[-1.0], [-0.82], [-0.81], [0.0], [0.81], [0.82], [1.0], [-7.0], [7.0]])
    np.testing.assert_array_equal(to_env_action(spec, raw, "clip")[:, 0], [0, 0, 1, 5, 9, 10, 10, 0, 10])


@pytest.mark.parametrize("squash", ["clip", "tanh"])
@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(0, 3, (1,), np.int32),
        spaces.Box(-2, 5, (1,), np.int64),
        spaces.Box(0, 1, (1,), np.int8),
        spaces.Box(0, 255, (1,), np.uint8),
        spaces.Box(7, 7, (1,), np.int64),
    ],
    ids=str,
)
def test_every_integer_of_a_box_has_the_same_share(space: spaces.Box, squash: Any):
    """Of [-1, 1] before any squashing by tanh, the ends not half of it."""
    spec = action_spec(space)
    low, high = int(spec.low[0]), int(spec.high[0])
    count = high - low + 1
    unit = (np.arange(100 * count) + 0.5) / (50 * count) - 1.0  # the middles of equal parts
    raw = np.arctanh(unit) if squash == "tanh" else unit
    found = to_env_action(spec, raw[:, None], squash)[:, 0]
    np.testing.assert_array_equal(np.unique(found, return_counts=True), [range(low, high + 1), [100] * count])
    whole = np.arange(low, high + 1)[:, None]
    back = to_unit_action(spec, whole)
    assert (np.abs(back) <= 1.0).all()
    np.testing.assert_array_equal(to_env_action(spec, back, "clip"), whole)


def test_components_without_bounds_keep_their_units():
    spec = action_spec(spaces.Box(np.array([-(10**9), 0], np.int64), np.array([10**9, 4], np.int64), dtype=np.int64))
    given = np.array([[5, 4], [-(10**9), 0]])
    np.testing.assert_array_equal(to_env_action(spec, to_unit_action(spec, given), "clip"), given)
    spec = action_spec(spaces.Box(np.float32(-INF), np.float32(INF), (1,), np.float32))
    np.testing.assert_array_equal(to_unit_action(spec, np.array([[3.25]])), [[3.25]])


@settings(max_examples=200, deadline=None)
@given(
    st.floats(-(2.0**100), 2.0**100, width=32),
    st.floats(-(2.0**100), 2.0**100, width=32),
    st.floats(allow_nan=False, width=32),
    st.sampled_from(["clip", "tanh"]),
)
def test_no_rounding_leaves_the_bounds(a, b, raw, squash):
    space = spaces.Box(np.float32(min(a, b)), np.float32(max(a, b)), (1,), np.float32)
    action = to_env_action(action_spec(space), np.array([[raw]], np.float32), squash)
    assert space.contains(action[0])


def test_check_squash():
    bounded, open_ended = action_spec(ACTION_SPACES[7]), action_spec(ACTION_SPACES[9])
    check_squash(bounded, "tanh")
    check_squash(open_ended, "clip")
    check_squash(action_spec(spaces.Discrete(2)), "tanh")
    with pytest.raises(UnsupportedSpaceError, match=r"component 1 in \[-inf, inf\] and 2 more"):
        check_squash(open_ended, "tanh")
    with pytest.raises(UnsupportedSpaceError, match="two finite bounds"):
        to_env_action(open_ended, np.zeros((1, 4)), "tanh")
    with pytest.raises(UsageError, match="squash is 'sigmoid'"):
        check_squash(bounded, "sigmoid")


def test_bad_actions_are_refused():
    box = action_spec(spaces.Box(-1, 1, (2,)))
    with pytest.raises(RunError, match=r"\[nan 0\.\s*\].*environment 1"):
        to_env_action(box, np.array([[0.0, 0.0], [np.nan, 0.0]]), "clip")
    with pytest.raises(ValueError, match=r"shape \(2, 3\), not \(N, 2\)"):
        to_env_action(box, np.zeros((2, 3)), "clip")
    with pytest.raises(ValueError, match=r"shape \(2, 1\), not \(N,\)"):
        to_env_action(action_spec(spaces.Discrete(2)), np.zeros((2, 1), int), "clip")


@pytest.mark.parametrize("space", [spaces.Text(3), spaces.Dict(a=spaces.Discrete(2)), spaces.Box(-1, 1, (0,))])
def test_unsupported_action_spaces(space):
    with pytest.raises(UnsupportedSpaceError, match="action space"):
        action_spec(space)


# Masks

DISCRETE = action_spec(spaces.Discrete(3))
PAIR = action_spec(spaces.MultiDiscrete([2, 3]))


def test_mask_forms_agree():
    expected = np.array([[1, 0, 1], [0, 1, 0]], bool)
    as_objects = np.empty(2, dtype=object)
    as_objects[:] = [np.array([1, 0, 1], np.int8), np.array([0, 1, 0], np.int8)]
    for mask in (expected, expected.astype(np.int8), expected.astype(np.float32), as_objects):
        flat = flatten_mask(DISCRETE, mask)
        assert flat.dtype == np.bool_
        np.testing.assert_array_equal(flat, expected)


def test_multi_discrete_mask_forms_agree():
    expected = np.array([[1, 0, 1, 0, 1], [0, 1, 1, 1, 1]], bool)
    parts = (expected[:, :2].astype(np.int8), expected[:, 2:].astype(np.int8))
    as_objects = np.empty(2, dtype=object)
    as_objects[:] = [tuple(part[i] for part in parts) for i in range(2)]
    for mask in (expected, parts, list(parts), as_objects):
        np.testing.assert_array_equal(flatten_mask(PAIR, mask), expected)


def test_masks_that_allow_nothing():
    with pytest.raises(ValueError, match="environment 1 allows no action in component 0"):
        flatten_mask(DISCRETE, np.array([[1, 0, 0], [0, 0, 0]]))
    with pytest.raises(ValueError, match="environment 0 allows no action in component 1"):
        flatten_mask(PAIR, np.array([[1, 0, 0, 0, 0]]))
    finished = np.array([False, True])
    np.testing.assert_array_equal(
        flatten_mask(DISCRETE, np.array([[1, 0, 0], [0, 0, 0]]), finished), [[1, 0, 0], [1, 1, 1]]
    )


def test_wrong_masks_are_refused():
    with pytest.raises(ValueError, match=r"shape \(2, 4\), not \(N, 3\)"):
        flatten_mask(DISCRETE, np.ones((2, 4)))
    with pytest.raises(ValueError, match=r"only 0 .* and 1"):
        flatten_mask(DISCRETE, np.array([[0.0, -np.inf, 0.0]]))
    with pytest.raises(ValueError, match="not \\(N, 5\\)"):
        flatten_mask(PAIR, (np.ones((2, 2)), np.ones((3, 3))))
    with pytest.raises(UnsupportedSpaceError, match="box"):
        flatten_mask(action_spec(spaces.Box(-1, 1, (2,))), np.ones((1, 2)))
