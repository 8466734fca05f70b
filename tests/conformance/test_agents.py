"""What every algorithm has to do. A new one is held to it by being listed in ``ALGORITHMS``."""

from __future__ import annotations

import dataclasses
import itertools
import json
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import torch
from gymnasium import spaces
from spaces_envs import ACTIONS, OBSERVATIONS, PARTLY_SEEN, AnySpace

import steepest
from helpers import F64, to_float64
from steepest import Run, UsageError
from steepest.agents.replay_updates import ReplayAgent
from steepest.algorithms import ALGORITHMS, find
from steepest.environments import make_env
from steepest.experience.replay import ReplayBuffer
from steepest.experience.rollout import Collector
from steepest.learner.trees import to_host, tree_leaves, tree_map
from steepest.runs.options.config import RunConfig
from steepest.runs.store.metrics import read_metrics
from tiny_problems import Aim, Bandit, Chain, Recall, TinyProblem, Treadmill

VECTOR = OBSERVATIONS["vector"]
FOUR = ACTIONS["discrete"][0]

TINY = {
    "rollout_steps": 8,
    "hidden_sizes": (8,),
    "epochs": 2,
    "minibatches": 2,
    "sequence_length": 4,
    "steps_per_call": 1,
    "buffer_size": 200,
    "learning_starts": 8,
    "batch_size": 8,
    "train_every": 2,
    "steps_per_iteration": 16,
}

QUICK = {
    "rollout_steps": 16,
    "hidden_sizes": (16,),
    "epochs": 4,
    "minibatches": 2,
    "sequence_length": 4,
    "recurrent_size": 8,
    "learning_rate": 0.02,
    "critic_learning_rate": 0.02,
    "initial_std": 0.5,
    "policy_learning_rate": 0.2,
    "learning_starts": 64,
    "batch_size": 64,
    "update_ratio": 0.25,
    "steps_per_iteration": 64,
    "buffer_size": 4096,
    "target_update_rate": 0.05,
    "temperature": 0.02,
}
"""What learns a tiny problem in a second. Of both tables, every algorithm takes the options that it has."""

PACE: dict[str, dict[str, Any]] = {
    "cql": {"conservative_weight": 0.01},
    "discrete_cql": {
        "target_update_every": 1,
        "exploration_fraction": 0.001,
        "final_epsilon": 0.01,
        "conservative_weight": 0.01,
    },
    "dpg": {"policy_learning_rate": 0.005},
    "dqn": {"target_update_every": 1, "exploration_fraction": 0.001, "final_epsilon": 0.01},
}
"""Where an algorithm's step size means something else, a mean that is thrown beyond the bounds getting no slope there;
or where exploration has to be over long before the run is; or where a penalty is for data that the policy did not
make."""

THOROUGH = {"ppo", "sac"}
"""The algorithm of each data regime that meets every combination; where what is tested is code that they share, the
others meet some, and all with -m slow."""

PLAYING = sorted(name for name in ALGORITHMS if find(name).learns_by_playing)
"""Those that learn from what they play; tests/integration/test_offline_runs.py holds the others, and all on data."""

algorithms = pytest.mark.parametrize("algorithm", PLAYING)


def fields(algorithm: str) -> set[str]:
    return {f.name for f in dataclasses.fields(find(algorithm).Config)}


def accepted(algorithm: str, space: spaces.Space[Any]) -> bool:
    """Whether the algorithm is defined for these actions."""
    env = make_env(lambda: AnySpace(VECTOR, space), 1)
    env.close()
    return find(algorithm).refuses(env.action_spec) is None


def usual(algorithm: str) -> spaces.Space[Any]:
    """The actions that an algorithm is tested with where they do not matter."""
    return FOUR if "discrete" in find(algorithm).action_kinds else ACTIONS["box"][0]


def refusal(algorithm: str, options: dict[str, Any]) -> str | None:
    """What the algorithm's config says to those of the options that it has; None if it takes them."""
    try:
        find(algorithm).Config(**{k: v for k, v in options.items() if k in fields(algorithm)})
    except UsageError as error:
        return str(error)
    return None


def known(algorithm: str, options: dict[str, Any]) -> bool:
    """Whether the algorithm has all these options and takes them, or they are the run's."""
    present = options.keys() <= fields(algorithm) | {f.name for f in dataclasses.fields(RunConfig)}
    return present and refusal(algorithm, options) is None


def has(algorithm: str, options: dict[str, Any]) -> dict[str, Any]:
    """The options that the algorithm or the run has."""
    return {k: v for k, v in options.items() if known(algorithm, {k: v})}


def case(algorithm: str, *values: Any, always: bool) -> Any:
    """A combination that runs always, or always for a thorough algorithm and for the others with -m slow."""
    return pytest.param(algorithm, *values, marks=[] if always or algorithm in THOROUGH else [pytest.mark.slow])


ON_POLICY = sorted(a for a in PLAYING if not issubclass(find(a), ReplayAgent))
RECURRENT = sorted(a for a in PLAYING if known(a, {"recurrent": "gru"}))


def tiny(algorithm: str, table: dict[str, Any] = TINY, **options: Any) -> dict[str, Any]:
    """Options for a small run, as far as the algorithm has them."""
    taken = {k: v for k, v in table.items() if k in fields(algorithm)}
    return {"num_envs": 2, "compile": "off", "eval_episodes": 0, "total_steps": 10_000, **taken, **options}


def make_run(
    algorithm: str,
    observation: spaces.Space[Any] = VECTOR,
    action: spaces.Space[Any] | None = None,
    masks: str = "none",
    agent: Any = None,
    **options: Any,
) -> Run:
    space = usual(algorithm) if action is None else action
    return Run(algorithm, lambda: AnySpace(observation, space, masks), agent=agent, **tiny(algorithm, **options))


def train(run: Run, iterations: int = 2) -> Any:
    """The agent after some updates, which have to have changed it and kept it finite."""
    before = run.agent.state["params"].clone()
    with run:
        for _ in range(iterations):
            row = run.iterate()
    after = run.agent.state["params"]
    assert torch.isfinite(after).all()
    assert (before != after).any(dim=1).all()
    assert all(np.isfinite(v) for v in row.values())
    return run.agent


def observe(env: AnySpace, count: int, seed: int = 7) -> list[Any]:
    env.reset(seed=seed)
    return [env._look()[0] for _ in range(count)]


def stack(observations: list[Any]) -> Any:
    first = observations[0]
    if isinstance(first, dict):
        return {k: stack([o[k] for o in observations]) for k in first}
    if isinstance(first, tuple):
        return tuple(stack([o[i] for o in observations]) for i in range(len(first)))
    return np.stack([np.asarray(o) for o in observations])


def assert_same_tensors(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [k for k in one if not torch.equal(one[k], other[k])] == []


# Acting

ONE_OF_EACH_POLICY = (
    "discrete from 3",
    "multi-discrete ragged",
    "multi-binary",
    "box asymmetric",
    "box tanh",
    "box full covariance",
)
"""Actions for which policies differ; the others differ in how actions are handed on, which is one for all."""


@pytest.mark.parametrize(
    ("algorithm", "name"),
    [
        case(a, n, always=n in ONE_OF_EACH_POLICY)
        for a in PLAYING
        for n, (space, needed) in ACTIONS.items()
        if accepted(a, space) and known(a, needed)
    ],
)
def test_acts_inside_the_space(algorithm: str, name: str) -> None:
    action, options = ACTIONS[name]
    agent = train(make_run(algorithm, action=action, **options))
    # However far the policy's draws are from the bounds, what reaches the environment is inside them.
    agent.state["params"].mul_(20.0)
    observations = observe(AnySpace(VECTOR, action), 8)
    for deterministic in (False, True):
        for obs in observations:
            chosen, memory = agent.act(obs, deterministic=deterministic)
            assert memory is None
            assert action.contains(_element(action, chosen)), chosen
        batch, _ = agent.act(stack(observations), deterministic=deterministic)
        assert len(batch) == len(observations)
        assert all(action.contains(_element(action, chosen)) for chosen in batch)


@pytest.mark.parametrize(
    ("algorithm", "name"),
    [(a, n) for a in PLAYING for n, (space, _) in ACTIONS.items() if not accepted(a, space)],
)
def test_refuses_what_it_is_not_defined_for(algorithm: str, name: str) -> None:
    """By its own name, in words of the space; and not on account of something else."""
    with pytest.raises(UsageError, match=rf"^{algorithm} (takes|needs) .*actions"):
        make_run(algorithm, action=ACTIONS[name][0])


def _element(space: spaces.Space[Any], action: Any) -> Any:
    """A Box without axes holds arrays, not scalars."""
    return np.asarray(action) if isinstance(space, spaces.Box) else action


@pytest.mark.parametrize("options", [{}, {"normalize_obs": True, "normalize_reward": True, "shared_torso": True}])
@pytest.mark.parametrize(
    ("algorithm", "name"),
    [case(a, n, always=n in ("scalar", "dict nested")) for a in PLAYING for n in OBSERVATIONS],
)
def test_sees_every_observation_space(algorithm: str, name: str, options: dict[str, Any]) -> None:
    space = OBSERVATIONS[name]
    agent = train(make_run(algorithm, observation=space, **has(algorithm, options)))
    actions = usual(algorithm)
    observations = observe(AnySpace(space, actions), 3)
    single = [agent.act(obs, deterministic=True)[0] for obs in observations]
    together, _ = agent.act(stack(observations), deterministic=True)
    # One row and three are different products where actions are no choice among few.
    np.testing.assert_allclose(single, together, rtol=0.0 if actions is FOUR else 1e-5, atol=1e-6)
    assert all(actions.contains(chosen) for chosen in together)


MASKED = ("discrete from -2", "multi-discrete ragged", "multi-discrete of one axis more")


@pytest.mark.parametrize(
    ("algorithm", "masks", "name"),
    [
        case(a, masks, n, always=masks == "info" and n != "multi-discrete of one axis more")
        for a in PLAYING
        for masks in ("info", "obs")
        for n in MASKED
        if accepted(a, ACTIONS[n][0])
    ],
)
def test_never_takes_a_masked_action(algorithm: str, masks: str, name: str) -> None:
    """The environment raises on an illegal action; afterwards the mask is given to ``act`` by hand."""
    action = ACTIONS[name][0]
    agent = train(
        make_run(algorithm, action=action, masks=masks, **has(algorithm, {"entropy_coef": 0.1})), iterations=3
    )
    env = AnySpace(VECTOR, action, masks)
    obs, _ = env.reset(seed=3)
    for t in range(40):
        chosen, _ = agent.act(obs, action_mask=env.mask, deterministic=t % 2 == 0)
        obs, _, terminated, truncated, _ = env.step(chosen)
        if terminated or truncated:
            obs, _ = env.reset()


def test_who_has_a_memory() -> None:
    """Nobody is left out of the tests of recurrent policies but by the word of a config."""
    assert RECURRENT == ["actor_critic", "ppo", "ppo_kl", "reinforce"]


@pytest.mark.parametrize(
    ("algorithm", "options"),
    [
        (a, o)
        for a in PLAYING
        for o in ({"recurrent": "gru"}, {"recurrent": "lstm"}, {"shared_torso": True})
        if o.keys() <= fields(a) and not known(a, o)
    ],
)
def test_refuses_an_option_by_its_name(algorithm: str, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=rf"\b{next(iter(options))} is "):
        make_run(algorithm, **options)


@pytest.mark.parametrize(
    ("algorithm", "recurrent", "shared", "masks"),
    [
        case(a, *how, always=how in (("gru", True, "info"), ("lstm", False, "none")))
        for a in RECURRENT
        for how in itertools.product(("gru", "lstm"), (False, True), ("none", "info", "obs"))
    ],
)
def test_recurrence_composes(algorithm: str, recurrent: str, shared: bool, masks: str) -> None:
    run = make_run(
        algorithm,
        observation=PARTLY_SEEN,
        action=ACTIONS["multi-discrete ragged"][0],
        masks=masks,
        recurrent=recurrent,
        shared_torso=shared,
        recurrent_size=4,
        normalize_obs=True,
    )
    agent = train(run)
    assert agent.memory_size == 4 * (1 if recurrent == "gru" else 2) * (1 if shared else 2)
    env = AnySpace(PARTLY_SEEN, ACTIONS["multi-discrete ragged"][0], masks)
    obs, _ = env.reset(seed=3)
    memory, start, seen = None, True, []
    for _ in range(12):
        mask = None if masks == "none" else env.mask
        chosen, memory = agent.act(obs, memory=memory, episode_start=start, action_mask=mask)
        seen.append(memory)
        obs, _, terminated, truncated, _ = env.step(chosen)
        start = terminated or truncated
        if start:
            obs, _ = env.reset()
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(seen))
    # A new episode forgets: the same observation gives the same memory, whatever came before.
    again = (
        [agent.act(obs, memory=m, episode_start=True)[1] for m in (None, memory)] if masks == "none" else [memory] * 2
    )
    assert torch.equal(*again)


# Learning


def learn(algorithm: str, problem: type[TinyProblem], sign: float, goal: float, **options: Any) -> list[float]:
    """Scores every five iterations, from before the first until one is within 0.05 of the goal, at most 80."""
    settings = tiny(algorithm, {**QUICK, **PACE.get(algorithm, {})}, num_envs=16, total_steps=10**6, **options)
    with Run(algorithm, lambda: problem(sign), **settings) as run:
        scores = [problem.score(run.agent)]
        while abs(scores[-1] - goal) > 0.05 and len(scores) <= 80 // 5:
            for _ in range(5):
                run.iterate()
            scores.append(problem.score(run.agent))
    return scores


PROBLEMS: list[tuple[type[TinyProblem], dict[str, Any]]] = [
    *((problem, {}) for problem in (Bandit, Chain, Aim)),
    *((Recall, {"recurrent": cell}) for cell in ("gru", "lstm")),
]


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize(
    ("algorithm", "problem", "options"),
    [
        (algorithm, problem, options)
        for algorithm in PLAYING
        for problem, options in PROBLEMS
        if accepted(algorithm, problem.action_space) and known(algorithm, options)
    ],
)
def test_learns_a_tiny_problem(
    algorithm: str, problem: type[TinyProblem], options: dict[str, Any], sign: float
) -> None:
    """From indifference to the best policy, and to the worst where the rewards have the other sign."""
    goal = problem.best if sign > 0 else problem.worst
    scores = learn(algorithm, problem, sign, goal, **options)
    assert abs(scores[0] - problem.indifferent) < 0.15
    assert abs(scores[-1] - goal) <= 0.05, scores


AVERAGE = {"objective": "average"}
MODES: list[tuple[str, dict[str, Any]]] = [
    ("reinforce", {"estimator": "full_return", "baseline": "none", "normalize_advantage": False}),
    ("reinforce", {"estimator": "full_return", "baseline": "average_return", "normalize_advantage": False}),
    ("reinforce", {"baseline": "none", "state_weighting": "discounted"}),
    ("reinforce", {"baseline": "none", "at_cut": "drop", "value_coef": 0.0}),
    ("actor_critic", {"advantage": "n_step", "n_steps": 1}),
    ("actor_critic", {"critic": "monte_carlo", "state_weighting": "discounted", "normalize_advantage": True}),
    ("actor_critic", AVERAGE),
    ("actor_critic", {**AVERAGE, "advantage": "n_step", "n_steps": 2, "critic": "monte_carlo"}),
    ("ppo", AVERAGE),
    ("ppo_kl", AVERAGE),
    ("trpo", AVERAGE),
    ("dqn", {"double": False, "huber_threshold": None, "max_gradient_norm": None}),
    ("dqn", {"dueling": True, "prioritized": True, "n_steps": 3}),
]
"""What an algorithm does where its options say so; the other tests see its defaults."""

modes = pytest.mark.parametrize(("algorithm", "mode"), MODES, ids=str)


@modes
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_every_mode_learns(algorithm: str, mode: dict[str, Any], sign: float) -> None:
    """A tiny problem that never ends where the average reward is the objective, the chain elsewhere."""
    problem = Treadmill if mode.get("objective") == "average" else Chain
    goal = problem.best if sign > 0 else problem.worst
    scores = learn(algorithm, problem, sign, goal, **mode)
    assert abs(scores[-1] - goal) <= 0.05, scores


@pytest.mark.parametrize("algorithm", ["reinforce", "actor_critic", "ppo", "ppo_kl", "trpo"])
def test_rewards_that_are_all_equal_are_no_failure(algorithm: str, tmp_path: Path) -> None:
    """There is no variance of targets to explain, so that its figure is empty; the run goes on."""
    settings = tiny(algorithm, total_steps=96, tensorboard=False)
    with Run(algorithm, partial(Bandit, sign=0.0), out=tmp_path / "run", **settings) as run:
        list(run)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows
    assert {row["health/explained_variance"] for row in rows} == {None}


@modes
def test_every_mode_resumes_to_the_same_bits(algorithm: str, mode: dict[str, Any], tmp_path: Path) -> None:
    settings = tiny(algorithm, total_steps=320, checkpoint_every=96, tensorboard=False, seeds=2, **mode)
    with Run(algorithm, Treadmill, out=tmp_path / "alone", **settings) as run:
        list(run)
    alone = run.agent.tensors()
    with Run(algorithm, Treadmill, out=tmp_path / "left", **settings) as run:
        while run.step < 240:
            run.iterate()
    with Run.resume(tmp_path / "left", env=Treadmill) as run:
        assert 96 <= run.step < 240, "something has to be lost and done again"
        list(run)
    assert_same_tensors(run.agent.tensors(), alone)
    if mode.get("objective") == "average":
        # Half-way between what is tried at first and the best, 1; TRPO's longer steps have come nearer by then.
        assert 0.2 < float(alone["gain"].min()) < float(alone["gain"].max()) < (1.0 if algorithm == "trpo" else 0.8)
        assert alone["gain"][0] != alone["gain"][1]


@pytest.mark.parametrize(("algorithm", "mode"), [MODES[1], MODES[6], MODES[7]], ids=str)
@pytest.mark.compiles
@pytest.mark.slow
def test_modes_compile(algorithm: str, mode: dict[str, Any]) -> None:
    agent_class, agents, rollouts = find(algorithm), [], []
    config = agent_class.Config(**{k: v for k, v in TINY.items() if k in fields(algorithm)}, **mode)
    for compile in (False, True):
        env = make_env(Treadmill, 2)
        agent = agent_class(config, env.obs_spec, env.action_spec, num_envs=2, compile=compile, note=no_falling_back)
        collector = Collector(env, agent, config.rollout_steps)
        collector.reset(0)
        rollouts.append(tree_map(torch.clone, collector.collect()[0]))
        env.close()
        agents.append(agent)
    before = agents[0].state["params"].clone()
    expected, found = (agent.update(rollouts[0], 0.25) for agent in agents)
    assert not torch.equal(agents[1].state["params"], before)
    assert_close_states(agents[0].state, agents[1].state, torch.float32)
    assert_close_figures(expected, found, torch.float32)


@pytest.mark.parametrize("algorithm", ["actor_critic", "ppo", "ppo_kl", "trpo"])
def test_an_end_is_no_part_of_an_average(algorithm: str) -> None:
    said = "objective is 'average', but the environment has terminated"
    with Run(algorithm, Bandit, **tiny(algorithm, **AVERAGE)) as run, pytest.raises(UsageError, match=said):
        run.iterate()


@pytest.mark.parametrize("algorithm", [case(a, always=False) for a in PLAYING if accepted(a, Recall.action_space)])
def test_learns_nothing_where_nothing_can_be_learnt(algorithm: str) -> None:
    """Without a memory nobody recalls; the scores, of 400 draws each, stay within 6 standard errors of chance."""
    scores = learn(algorithm, Recall, 1.0, Recall.best)
    assert len(scores) > 80 // 5
    assert all(abs(score - Recall.indifferent) < 0.15 for score in scores), scores


# Determinism, saving and going on


def variants(*options: dict[str, Any]) -> Any:
    """Every algorithm with each of the options that it has."""
    cases = [(a, o) for a in PLAYING for o in options if known(a, o)]
    return pytest.mark.parametrize(("algorithm", "options"), cases)


@variants(
    {},
    *({"recurrent": cell, "normalize_obs": True, "normalize_reward": True} for cell in ("gru", "lstm")),
    {"prioritized": True, "n_steps": 3, "normalize_obs": True},
    {"num_critics": 4, "layer_norm": True, "dropout": 0.1},
)
def test_same_seed_same_bits(algorithm: str, options: dict[str, Any]) -> None:
    agents = [train(make_run(algorithm, seed=seed, **options), iterations=4) for seed in (5, 5, 6)]
    assert_same_tensors(agents[0].tensors(), agents[1].tensors())
    assert not torch.equal(agents[0].state["params"], agents[2].state["params"])


SAVED: list[tuple[str, dict[str, Any]]] = [
    ("discrete from 3", {"recurrent": "lstm"}),
    ("box one-sided", {"normalize_obs": True, "normalize_reward": True}),
    ("box asymmetric", {"normalize_obs": True}),
    ("box tanh", {}),
    ("multi-binary", {"shared_torso": True}),
]


@pytest.mark.parametrize(
    ("algorithm", "name", "options"),
    [(a, n, o) for a in PLAYING for n, o in SAVED if accepted(a, ACTIONS[n][0])],
)
def test_save_and_load_act_the_same(algorithm: str, name: str, options: dict[str, Any], tmp_path: Path) -> None:
    action, more = ACTIONS[name]
    agent = train(make_run(algorithm, action=action, **has(algorithm, {**options, **more})))
    agent.save(tmp_path / "agent.safetensors")
    loaded = steepest.load(tmp_path / "agent.safetensors")
    assert_same_tensors(agent.tensors(), loaded.tensors())
    assert loaded.metadata() == agent.metadata()
    memories: list[Any] = [None, None]
    for obs in observe(AnySpace(VECTOR, action), 10):
        chosen = [a.act(obs, memory=m) for a, m in zip((agent, loaded), memories, strict=True)]
        assert np.array_equal(chosen[0][0], chosen[1][0])
        memories = [m for _, m in chosen]


@algorithms
@pytest.mark.parametrize("options", [{}, {"normalize_obs": True, "normalize_reward": True, "num_envs": 4}])
def test_a_loaded_agent_trains_on(algorithm: str, options: dict[str, Any], tmp_path: Path) -> None:
    options = has(algorithm, options)
    first = {k: v for k, v in options.items() if k != "num_envs"}
    agent = train(make_run(algorithm, **first))
    agent.save(tmp_path / "agent.safetensors")
    loaded = steepest.load(tmp_path / "agent.safetensors")
    run = make_run(algorithm, agent=loaded, seed=9, **options)
    for key in agent.state.keys() - set(agent.per_environment):
        assert torch.equal(run.agent.state[key], agent.state[key]), key
    train(run)
    assert torch.equal(loaded.state["params"], agent.state["params"]), "the agent that was given must not change"


@variants(
    {},
    {"recurrent": "gru", "normalize_obs": True, "normalize_reward": True},
    {"recurrent": "lstm", "shared_torso": True},
    {"seeds": 3, "normalize_reward": True},
    {"seeds": 3, "prioritized": True, "n_steps": 3, "buffer_size": 40},
    {"prioritized": True, "normalize_obs": True, "update_ratio": 0.3},
)
def test_resuming_gives_the_same_bits(algorithm: str, options: dict[str, Any], tmp_path: Path) -> None:
    """A run that is left between two checkpoints and resumed ends as one that was not: parameters and figures."""

    def environment() -> AnySpace:
        return AnySpace(VECTOR, usual(algorithm))

    settings = tiny(algorithm, total_steps=160, checkpoint_every=48, tensorboard=False, **options)
    with Run(algorithm, environment, out=tmp_path / "alone", **settings) as run:
        list(run)
    alone = run.agent.tensors()
    with Run(algorithm, environment, out=tmp_path / "left", **settings) as run:
        while run.step < 120:
            run.iterate()
        left_at = run.step
    with Run.resume(tmp_path / "left", env=environment) as run:
        assert 96 <= run.step < left_at < 144, "something has to be lost and done again"
        list(run)
    assert_same_tensors(run.agent.tensors(), alone)
    timed = ("wall_seconds", "time/steps_per_second")
    rows = [
        [{k: v for k, v in row.items() if k not in timed} for row in read_metrics(tmp_path / folder)]
        for folder in ("alone", "left")
    ]
    assert rows[0] == rows[1]


# Populations, and the ways of running an update


@variants({}, {"recurrent": "gru"})
def test_a_population_trains_together(algorithm: str, options: dict[str, Any], tmp_path: Path) -> None:
    run = make_run(algorithm, seeds=3, seed=4, normalize_obs=True, **options)
    agent = train(run)
    assert agent.members == 3
    assert agent.seeds == (4, 5, 6)
    vectors = agent.state["params"]
    assert all(not torch.equal(vectors[i], vectors[j]) for i, j in itertools.combinations(range(3), 2))
    with pytest.raises(UsageError, match="member"):
        agent.act(np.zeros(3, np.float32))
    observations = stack(observe(AnySpace(VECTOR, usual(algorithm)), 6))
    agent.save(tmp_path / "population.safetensors")
    loaded = steepest.load(tmp_path / "population.safetensors")
    for i in range(3):
        member = agent.member(i)
        assert member.seeds == (4 + i,)
        assert torch.equal(member.state["params"][0], vectors[i])
        assert torch.equal(member.state["obs_mean/obs"][0], agent.state["obs_mean/obs"][i])
        again = loaded.member(i)
        for deterministic in (True, False):
            one, _ = member.act(observations, deterministic=deterministic)
            other, _ = again.act(observations, deterministic=deterministic)
            assert np.array_equal(one, other)
    if not options:
        stacked = {"obs": torch.as_tensor(observations).expand(3, -1, -1)}
        with torch.no_grad():
            together, _ = agent.actor(deterministic=True)(stacked, None, None, None, None)
        apart = [agent.member(i).act(observations, deterministic=True)[0] for i in range(3)]
        exact = usual(algorithm) is FOUR
        played = agent.to_env(together.flatten(0, 1).numpy())
        np.testing.assert_allclose(played, np.concatenate(apart), rtol=0.0 if exact else 1e-5, atol=1e-6)
    with pytest.raises(UsageError, match="population of 3"):
        agent.member(3)


def population_and_data(
    algorithm: str, seeds: tuple[int, ...], dtype: torch.dtype, options: dict[str, Any], varied: Any = None
) -> tuple[Any, Any]:
    """A population before its first update, and what it learns from: a rollout, or minibatches of replay and noise."""
    agent_class = find(algorithm)
    config = agent_class.Config(**{k: v for k, v in tiny(algorithm, **options).items() if k in fields(algorithm)})
    masks = "info" if usual(algorithm) is FOUR else "none"
    env = make_env(lambda: AnySpace(VECTOR, usual(algorithm), masks), 2 * len(seeds))
    given: dict[str, Any] = {"num_envs": 2, "seeds": seeds, "varied": varied, "note": no_falling_back}
    agent = agent_class(config, env.obs_spec, env.action_spec, **given)
    collector = Collector(env, agent, getattr(config, "rollout_steps", 8))
    collector.reset(0)
    rollout, _ = collector.collect()
    data: Any = (rollout,)
    if issubclass(agent_class, ReplayAgent):
        specs = (agent.obs_spec, agent.action_spec)
        buffer = ReplayBuffer(*specs, rows=50, num_envs=2, members=len(seeds), prioritized=config.prioritized)
        buffer.append(collector.rows())
        updates = config.updates_per_call
        batch = buffer.sample(agent.generators, updates, config.batch_size, gamma=0.9, n_steps=config.n_steps)
        data = ({k: x for k, x in batch.items() if k != "index"}, agent.update_noise(updates))
    env.close()
    if dtype == F64:
        to_float64(agent)
    return agent, tree_map(lambda x: x.to(dtype, copy=True) if x.is_floating_point() else x.clone(), data)


def learn_once(agent: Any, data: Any, progress: float) -> dict[str, Any]:
    """One update, and its figures."""
    if not isinstance(agent, ReplayAgent):
        return agent.update(*data, progress)
    metrics, _ = agent.update(*data, agent.hyperparameters(progress))
    return to_host(metrics)


def no_falling_back(note: str) -> None:
    raise AssertionError(note)


def assert_close_states(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], dtype: torch.dtype) -> None:
    """To rounding: rtol 1e-9 in float64, 1e-4 in float32, on the scale of each tensor.

    Adam divides by the root of the second moment, so that an entry whose gradient is nearly 0 has no relative precision
    of its own.
    """
    rtol = 1e-9 if dtype == F64 else 1e-4
    assert one.keys() == other.keys()
    for key, value in one.items():
        scale = float(value.abs().max()) if value.is_floating_point() else 0.0
        torch.testing.assert_close(value, other[key], rtol=rtol, atol=rtol * scale, msg=lambda m, k=key: f"{k}: {m}")


def assert_close_figures(one: dict[str, Any], other: dict[str, Any], dtype: torch.dtype) -> None:
    assert one.keys() == other.keys()
    rtol, atol = (1e-8, 1e-10) if dtype == F64 else (1e-3, 1e-5)
    for key, value in one.items():
        np.testing.assert_allclose(other[key], value, rtol=rtol, atol=atol, err_msg=key)


VMAPPED: list[dict[str, Any]] = [
    {},
    {"normalize_obs": True, "normalize_reward": True},
    {"recurrent": "gru"},
    {"recurrent": "lstm"},
    {"prioritized": True, "n_steps": 3, "normalize_obs": True},
    {"num_critics": 4, "layer_norm": True, "dropout": 0.1, "updates_per_call": 4, "policy_delay": 2},
    {"dueling": True, "updates_per_call": 4, "target_update_every": 3, "target_update_rate": 0.5},
]


@pytest.mark.parametrize(
    ("algorithm", "options", "dtype"),
    [
        case(a, o, dtype, always=dtype == F64)
        for a in PLAYING
        for o in VMAPPED
        for dtype in (torch.float32, F64)
        if known(a, o)
    ],
)
def test_vmapped_members_learn_as_if_alone(algorithm: str, options: dict[str, Any], dtype: torch.dtype) -> None:
    """One update of a population against every member's own, eager; and it is an update of its own data."""
    population, data = population_and_data(algorithm, (0, 1, 2), dtype, options)
    before = population.state["params"].clone()
    members = [population.member(i) for i in range(3)]
    if dtype == F64:
        members = [with_state(to_float64(m), population, i) for i, m in enumerate(members)]
    together = learn_once(population, data, 0.25)
    for i, member in enumerate(members):
        figures = learn_once(member, tree_map(lambda x, i=i: x[i : i + 1], data), 0.25)
        mine = {k: v[i : i + 1] for k, v in population.state.items()}
        assert_close_states(mine, member.state, dtype)
        assert_close_figures({k: v[i : i + 1] for k, v in together.items()}, figures, dtype)
        assert float((mine["params"] - before[i]).abs().max()) > 5e-5
        other = population.state["params"][(i + 1) % 3]
        # A wide tolerance asks for more here: members differ by more than 1e-2, a hundred times what rounding does.
        assert not torch.allclose(mine["params"][0], other, rtol=1e-2, atol=1e-2)


def three_values(value: Any) -> tuple[Any, ...]:
    """Values near a setting's own that its field accepts, too."""
    return (
        (value, value + 1, value + 2) if isinstance(value, int) else tuple(x * (value or 0.05) for x in (1, 0.9, 0.6))
    )


SET: dict[str, dict[str, Any]] = {
    "cql": {"gap_threshold": 1.0},
    "discrete_cql": {"gap_threshold": 1.0},
    "ppo": {"target_kl": 0.05},
    "dqn": {"huber_threshold": 1.0},
}
"""What is off by default, and can only differ between members where it is on."""


@pytest.mark.parametrize("algorithm", list(ALGORITHMS))
def test_members_with_settings_of_their_own_learn_as_if_alone(algorithm: str) -> None:
    """All settings that an update takes as tensors differ at once, and the members are alike but for them."""
    config = find(algorithm).Config(**SET.get(algorithm, {}))
    own = {name: getattr(config, name) for name in find(algorithm).hyper_fields}
    varied = {name: three_values(value) for name, value in own.items() if value is not None}
    population, data = population_and_data(algorithm, (0, 0, 0), F64, SET.get(algorithm, {}), varied)
    data = tree_map(lambda x: x[:1].expand_as(x).clone(), data)
    members = [with_state(to_float64(population.member(i)), population, i) for i in range(3)]
    together = learn_once(population, data, 0.25)
    for i, member in enumerate(members):
        assert all(getattr(member.config, name) == values[i] for name, values in varied.items())
        figures = learn_once(member, tree_map(lambda x, i=i: x[i : i + 1], data), 0.25)
        assert_close_states({k: v[i : i + 1] for k, v in population.state.items()}, member.state, F64)
        assert_close_figures({k: v[i : i + 1] for k, v in together.items()}, figures, F64)
    params = population.state["params"]
    assert min(float((params[i] - params[j]).abs().max()) for i, j in ((0, 1), (0, 2), (1, 2))) > 1e-6


def test_what_cannot_differ_between_members_is_refused() -> None:
    for varied, message in (
        ({"rollout_steps": (8, 16)}, "rollout_steps cannot differ .*; of PPO these can: clip_epsilon, entropy_coef"),
        ({"learning_rate": (0.1,)}, "learning_rate has 1 values for 2 members; give one for each"),
        ({"learning_rate": (0.1, -1.0)}, "learning_rate is -1.0; expected a positive number"),
        ({"target_kl": (0.1, 0.2)}, "target_kl cannot differ between members where it is off for one"),
        ({"clip_epsilon": (0.1, None)}, "clip_epsilon cannot differ between members where it is off for one"),
    ):
        with pytest.raises(UsageError, match=message):
            population_and_data("ppo", (0, 1), F64, {}, varied)


def with_state(agent: Any, population: Any, i: int) -> Any:
    """The agent with a population member's state to the last bit; a member is handed over in float32."""
    agent.state = {k: v[i : i + 1].clone() for k, v in population.state.items()}
    return agent


COMPILED_ALWAYS = {("off_pac", "alone"), ("sac", "population")}
"""A population that learns from replay, and an agent whose weights move at every step. PPO's rollouts are compiled,
alone and in a population, in tests/unit/test_learner.py; the other algorithms compile the same way, with -m slow."""


def compiled_cases() -> list[Any]:
    """Every algorithm, alone and in a population."""
    return [
        pytest.param(a, seeds, dtype, id=f"{a}-{name}", marks=[] if (a, name) in COMPILED_ALWAYS else pytest.mark.slow)
        for a in PLAYING
        for name, seeds, dtype in (("alone", (0,), torch.float32), ("population", (0, 1), F64))
    ]


@pytest.mark.compiles
@pytest.mark.parametrize(("algorithm", "seeds", "dtype"), compiled_cases())
def test_compiled_learns_as_eager(algorithm: str, seeds: tuple[int, ...], dtype: torch.dtype) -> None:
    options = {"normalize_obs": True, "normalize_reward": True, "epochs": 1, "entropy_coef": 0.01}
    options = has(algorithm, {**options, "prioritized": True, "dropout": 0.1, "target_critics": 1})
    agent, data = population_and_data(algorithm, seeds, dtype, options)
    specs = (agent.obs_spec, agent.action_spec)
    compiled = type(agent)(agent.config, *specs, num_envs=2, seeds=seeds, compile=True, note=no_falling_back)
    if dtype == F64:
        to_float64(compiled)
    compiled.load_tensors(agent.tensors())
    before = agent.state["params"].clone()
    expected = learn_once(agent, data, 0.25)
    found = learn_once(compiled, data, 0.25)
    assert not torch.equal(compiled.state["params"], before)
    assert_close_states(agent.state, compiled.state, dtype)
    assert_close_figures(expected, found, dtype)


@pytest.mark.compiles
@pytest.mark.slow
def test_corrections_compile_and_need_no_second_compilation() -> None:
    """V-trace between the epochs, and the KL that adapts the coefficient, over two updates."""
    options = {"normalize_reward": True, "off_policy_correction": "vtrace", "kl_coef": 0.5, "learning_rate": 0.02}
    agent, data = population_and_data("ppo_kl", (0,), torch.float32, options)
    specs = (agent.obs_spec, agent.action_spec)
    compiled = type(agent)(agent.config, *specs, num_envs=2, compile=True, note=no_falling_back)
    compiled.load_tensors(agent.tensors())
    built = []
    for progress in (0.0, 0.5):
        expected, found = agent.update(*data, progress), compiled.update(*data, progress)
        built.append({name: getattr(part.modes[0][1], "run", None) for name, part in compiled.lifted().items()})
    assert {k: v for k, v in compiled.modes().items() if k != "merge"} == dict.fromkeys(
        ("prepare", "steps", "correct", "adapt"), "compiled"
    )
    assert all(built[0][name] is built[1][name] for name in ("prepare", "steps", "correct", "adapt"))
    assert_close_states(agent.state, compiled.state, torch.float32)
    assert_close_figures(expected, found, torch.float32)


COMPILED: dict[str, tuple[Any, str, str, torch.dtype, dict[str, Any]]] = {
    "lstm, dictionary, masks": (PARTLY_SEEN, "multi-discrete ragged", "info", F64, {"recurrent": "lstm"}),
    "gru, shared torso": (VECTOR, "box tanh", "none", F64, {"recurrent": "gru", "shared_torso": True}),
    "multi-binary": (OBSERVATIONS["multi-discrete"], "multi-binary", "none", torch.float32, {}),
    "image, full covariance": (OBSERVATIONS["dict nested"], "box full covariance", "none", torch.float32, {}),
}
"""Observations, actions, masks, precision and options of agents that compile."""


@pytest.mark.compiles
@pytest.mark.parametrize(
    "name", [pytest.param(k, marks=[pytest.mark.slow] if k.startswith(("gru", "multi")) else []) for k in COMPILED]
)
def test_every_kind_of_policy_compiles(name: str) -> None:
    """Acting, the preparation of a rollout and the gradient steps, each against its eager self."""
    observation, action, masks, dtype, options = COMPILED[name]
    space, needed = ACTIONS[action]
    agent_class = find("ppo")
    small = {k: v for k, v in TINY.items() if k in fields("ppo")}
    # One gradient step, and two steps of a recurrent network: a graph is as long as what is unrolled in it.
    small |= {"rollout_steps": 4, "epochs": 1, "minibatches": 1, "recurrent_size": 4, "sequence_length": 2}
    config = agent_class.Config(**{**small, **needed, **options})
    agents, rollouts = [], []
    for compile in (False, True):
        env = make_env(lambda: AnySpace(observation, space, masks), 2)
        agent = agent_class(config, env.obs_spec, env.action_spec, num_envs=2, compile=compile, note=no_falling_back)
        collector = Collector(env, agent, config.rollout_steps)
        collector.reset(0)
        rollouts.append(tree_map(torch.clone, collector.collect()[0]))
        env.close()
        agents.append(to_float64(agent) if dtype == F64 else agent)
    eager, compiled = agents
    assert compiled.modes() == {"act, fused": "compiled"}
    for mine, others in zip(tree_leaves(rollouts[0]), tree_leaves(rollouts[1]), strict=True):
        torch.testing.assert_close(mine, others, rtol=1e-5, atol=1e-5)
    rollout = tree_map(lambda x: x.to(dtype) if x.is_floating_point() else x, rollouts[0])
    before = eager.state["params"].clone()
    for progress in (0.0, 0.5):
        expected, found = (agent.update(rollout, progress) for agent in agents)
    assert compiled.modes()["steps"] == "compiled"
    assert not torch.allclose(compiled.state["params"], before, rtol=1e-3)
    assert_close_states(eager.state, compiled.state, dtype)
    assert_close_figures(expected, found, dtype)


@pytest.mark.compiles
def test_a_compiled_population_resumes_to_the_same_bits(tmp_path: Any) -> None:
    settings = tiny("ppo", seeds=2, compile="on", eval_episodes=2, total_steps=160, epochs=1, minibatches=1)
    settings |= {"checkpoint_every": 48, "tensorboard": False, "normalize_obs": True, "normalize_reward": True}
    with Run("ppo", "CartPole-v1", out=tmp_path / "alone", **settings) as run:
        rows = len(list(run))
    assert run.training.modes["steps"] == run.training.modes["act, fused"] == "compiled"
    with Run("ppo", "CartPole-v1", out=tmp_path / "left", **settings) as run:
        for _ in range(rows * 2 // 3):
            run.iterate()
    with Run.resume(tmp_path / "left", note=no_bits_differ) as run:
        assert 0 < run.step < settings["total_steps"]
        list(run)
    for which in ("latest", "best"):
        one, other = (steepest.load(tmp_path / name, which=which).tensors() for name in ("alone", "left"))
        assert all(torch.equal(one[k], other[k]) for k in one.keys() | other.keys())


def no_bits_differ(note: str) -> None:
    assert "bits may differ" not in note


# Bad configuration

MAY_BE_NEGATIVE = {"stop_at_return", "target_entropy", "min_log_std", "max_log_std"}
"""Numbers for which -1 is an honest value."""

NOT_A_CHOICE = "none of them"


def absurd_values() -> list[Any]:
    """For every field of every config, values that its type cannot hold or that mean nothing.

    A field that several algorithms inherit is tested on one of them.
    """
    cases: dict[tuple[str, str, str], Any] = {}
    for algorithm in PLAYING:
        for kind in (find(algorithm).Config, RunConfig):
            for name, hint in get_type_hints(kind).items():
                owner = next(c.__name__ for c in kind.__mro__ if name in c.__annotations__)
                for value in absurd(name, hint):
                    cases[owner, name, repr(value)] = pytest.param(algorithm, name, value, id=f"{owner}-{name}-{value}")
    return list(cases.values())


def absurd(name: str, hint: Any) -> list[Any]:
    kinds = {k for k in get_args(hint) if k is not type(None)} if type(None) in get_args(hint) else {hint}
    (kind,) = kinds
    if get_origin(kind) is Literal:
        return [NOT_A_CHOICE, 7]
    if get_origin(kind) is tuple:
        return [64, "64", (0,), (2.5,)]
    if kind is bool:
        return ["yes", 1]
    if kind is str:
        return [7, True]
    if dataclasses.is_dataclass(kind):
        return ["yes", 7]
    assert kind in (int, float), f"{name}: {hint} is a new kind of option; say here what is no value for it"
    values = [float("nan"), float("inf"), -float("inf"), "many", True, *([] if name in MAY_BE_NEGATIVE else [-1])]
    return values + ([2.5] if kind is int else []) + ([None] if kinds == {hint} else [])


@pytest.mark.parametrize(("algorithm", "name", "value"), absurd_values())
def test_an_absurd_value_names_its_option(algorithm: str, name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=rf"\b{name} is "):
        Run(algorithm, lambda: AnySpace(VECTOR, usual(algorithm)), **tiny(algorithm, **{name: value}))


OUT_OF_RANGE = [
    ("rollout_steps", 0),
    ("batch_size", 0),
    ("buffer_size", 1),
    ("train_every", 0),
    ("updates_per_call", 0),
    ("n_steps", 0),
    ("steps_per_iteration", 0),
    ("update_ratio", 0.0),
    ("critic_learning_rate", 0.0),
    ("target_update_rate", 0.0),
    ("target_update_rate", 1.5),
    ("priority_exponent", 1.5),
    ("importance_exponent", 1.5),
    ("temperature", 0.0),
    ("num_critics", 0),
    ("target_critics", 3),
    ("policy_delay", 0),
    ("target_update_every", 0),
    ("huber_threshold", 0.0),
    ("initial_epsilon", 1.5),
    ("final_epsilon", 1.5),
    ("exploration_fraction", 1.5),
    ("dropout", 1.0),
    ("exploration_std", 0.0),
    ("noise_correlation", 1.0),
    ("target_noise_clip", 0.0),
    ("learning_rate", 0.0),
    ("gamma", 1.5),
    ("gae_lambda", 1.5),
    ("max_gradient_norm", 0.0),
    ("clip_epsilon", 0.0),
    ("max_kl", 0.0),
    ("cg_iterations", 0),
    ("fisher_subsample", 0),
    ("line_search_backtrack", 1.0),
    ("epochs", 0),
    ("minibatches", 0),
    ("target_kl", 0.0),
    ("kl_coef", 0.0),
    ("value_clip", 0.0),
    ("recurrent_size", 0),
    ("sequence_length", 0),
    ("initial_std", 0.0),
    ("min_std", 0.0),
    ("min_probability", 0.5),
    ("total_steps", 0),
    ("num_envs", 0),
    ("seeds", 0),
    ("keep_checkpoints", 0),
    ("threads", 0),
    ("max_episode_steps", 0),
]


@pytest.mark.parametrize(
    ("algorithm", "name", "value"),
    [(a, n, v) for a in PLAYING for n, v in OUT_OF_RANGE if n in fields(a) or (a == "ppo" and known(a, {n: v}))],
)
def test_a_value_out_of_range_names_its_option(algorithm: str, name: str, value: Any) -> None:
    """The ends of ranges, of the options that the algorithm has."""
    with pytest.raises(UsageError, match=rf"\b{name} is "):
        Run(algorithm, lambda: AnySpace(VECTOR, usual(algorithm)), **tiny(algorithm, **{name: value}))


@algorithms
def test_a_misspelled_option_names_the_nearest(algorithm: str) -> None:
    with pytest.raises(UsageError, match="learning_rate"):
        make_run(algorithm, learnin_rate=0.1)


@pytest.mark.parametrize("algorithm", RECURRENT)
def test_sequences_must_divide_the_rollout(algorithm: str) -> None:
    with pytest.raises(UsageError, match="sequence_length"):
        make_run(algorithm, recurrent="gru", sequence_length=3)


@pytest.mark.parametrize("algorithm", ON_POLICY)
def test_tanh_needs_finite_bounds(algorithm: str) -> None:
    with pytest.raises(UsageError, match="tanh"):
        make_run(algorithm, action=ACTIONS["box infinite"][0], squash="tanh")


@pytest.mark.parametrize("algorithm", ON_POLICY)
def test_tanh_and_full_covariance_exclude_each_other(algorithm: str) -> None:
    with pytest.raises(UsageError, match="gaussian"):
        make_run(algorithm, action=ACTIONS["box"][0], squash="tanh", gaussian="full")
