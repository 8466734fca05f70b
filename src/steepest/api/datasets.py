"""Datasets for offline learning: collect them from policies or replay buffers, and look at them."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import gymnasium as gym
from gymnasium import Space

from steepest.agents.agent import Agent
from steepest.agents.config import OffPolicyConfig, config_from_json
from steepest.algorithms import find
from steepest.api.agents import PathLike, Which, check_fit, saved_file
from steepest.environments import AtariOptions, EnvBatch
from steepest.errors import UsageError, as_path, require
from steepest.experience.datasets.dataset import (
    Dataset,
    RecordedEpisode,
    Reference,
    checked_reference,
    from_episodes,
)
from steepest.experience.datasets.minari_files import root
from steepest.experience.datasets.picture import draw
from steepest.experience.datasets.read import MINARI, check_free, read_dataset, write_dataset
from steepest.experience.datasets.recording import AgentPolicy, UniformPolicy, record, replayed
from steepest.experience.datasets.spaces import recorded_spaces
from steepest.experience.datasets.summary import Summary, summarised
from steepest.experience.replay import ReplayBuffer
from steepest.experience.rollout import step_bytes
from steepest.files.space import require_space
from steepest.files.style import check_picture
from steepest.networks.config import NetworkFactory
from steepest.runs.evaluate import Evaluation, evaluate_members, make_evaluation_env
from steepest.runs.options.auto import read_description
from steepest.runs.store.agents import read_agent
from steepest.runs.store.checkpoints import CheckpointStore
from steepest.runs.store.folder import RunDirectory
from steepest.runs.view.progress import Progress
from steepest.seeding import stream_seed

RANDOM = "random"
STEPS_PER_ENVIRONMENT = 20_000
"""More environments are played at once only where each plays this long, since each may cut an episode at its end."""
MOST_ENVIRONMENTS = 8

Policy = Agent | PathLike
"""An agent, what ``steepest.load`` takes, or "random"."""


class Where(NamedTuple):
    """The environment to play in."""

    env: Any
    env_kwargs: dict[str, Any] | None
    max_episode_steps: int | None
    vectorization: Any
    atari: Any

    @property
    def described(self) -> dict[str, Any]:
        """The fields of a ``Dataset`` that say where it is from."""
        env = self.env if isinstance(self.env, str) else None
        return {"env": env, "env_kwargs": self.env_kwargs, "max_episode_steps": self.max_episode_steps}


def collect(
    policy: Policy | None = None,
    env: Any = None,
    *,
    steps: int,
    out: PathLike | None = None,
    mixture: Sequence[tuple[Policy, float]] = (),
    which: Which = "latest",
    member: int | None = None,
    deterministic: bool = False,
    seed: int = 0,
    num_envs: int | None = None,
    reference: tuple[float, float] | None = None,
    reference_episodes: int = 0,
    env_kwargs: dict[str, Any] | None = None,
    max_episode_steps: int | None = None,
    network: NetworkFactory | None = None,
    quiet: bool = True,
) -> Dataset:
    """Play a policy and return what happened as a dataset; the same seed gives the same bits.

    Args:
        policy: an agent, a run's folder, a saved agent, or "random".
        env: where to play; by default where the agent was trained. Atari games are played whole, for their own score.
        steps: how many; the last episode of every environment is truncated where they end.
        out: "minari:NAME-v0", an .npz or .hdf5 file in D4RL's layout, or a folder of arrays; None writes nothing.
        mixture: instead of ``policy``, several of them with their shares of the steps, one after the other.
        which: of a run's folder, the latest, the best by evaluation, or the interrupted agent.
        member: of an agent of several seeds, which one plays.
        deterministic: take the mode of the policy; without a density there is no log_prob.
        num_envs: environments at once; by default one for every 20,000 steps, at most 8.
        reference: returns of a random policy and of an expert, to score by.
        reference_episodes: measure both over so many episodes: the random policy, and the best of those that play.
        network: the factory of a custom network, again.
    Raises:
        UsageError for what cannot work, before anything is played; RunError for what failed. Nothing is then written.
    Verified:  tests/integration/test_datasets.py::test_the_same_seed_gives_the_same_bits,
               tests/integration/test_datasets.py::test_a_mixture_plays_its_shares
    """
    require(steps >= 1, "steps", steps, "at least 1")
    require(seed >= 0, "seed", seed, "zero or more")
    require(
        num_envs is None or 1 <= num_envs <= steps, "num_envs", num_envs, f"at least 1, and at most {steps} (steps)"
    )
    known = _given_reference(reference, reference_episodes)
    place = None if out is None else check_free(out)
    shares = _shares(policy, mixture, steps)
    agents = [_agent(source, which, member, network) for source, _ in shares]
    where = _where(agents, env, env_kwargs, max_episode_steps)
    titles = [_name(source) for source, _ in shares]
    if reference_episodes:
        known = _measured(agents, where, reference_episodes, seed)
    episodes: list[RecordedEpisode] = []
    found: tuple[Space[Any], Space[Any]] | None = None
    on = where.env if isinstance(where.env, str) else "the environment given"
    with Progress(steps, title=f"{', '.join(titles)} on {on}, seed {seed}", quiet=quiet) as progress:
        done = 0
        for number, (agent, (_, count)) in enumerate(zip(agents, shares, strict=True)):
            n = num_envs or max(1, min(MOST_ENVIRONMENTS, count // STEPS_PER_ENVIRONMENT))
            with _environments(where, min(n, count)) as batch:
                player = _player(agent, batch, deterministic=deterministic)
                found = recorded_spaces(batch)
                if place is not None and not done:  # a Minari dataset lies where Minari keeps its own
                    size = steps * step_bytes(batch.obs_spec, batch.action_spec)
                    folder = root() if place.startswith(MINARI) else Path(place).absolute().parent
                    require_space(size, f"a dataset of {steps:,} steps", "record fewer steps, or elsewhere", folder)
                episodes += record(
                    batch,
                    found[0],
                    player,
                    count,
                    seed=stream_seed(seed, f"collection {number}") % 2**31,
                    on_rows=_shown(progress, done),
                )
            done += count
    dataset = from_episodes(episodes, **where.described, spaces=found, reference=known, source=place or "the dataset")
    if place is not None:
        write_dataset(dataset, place)
    return dataset


def collect_replay(
    run: PathLike,
    env: Any = None,
    *,
    out: PathLike | None = None,
    member: int | None = None,
    reference: tuple[float, float] | None = None,
    reference_episodes: int = 0,
    network: NetworkFactory | None = None,
) -> Dataset:
    """Return the replay buffer of an off-policy run as a dataset: all that its newest checkpoint learned from.

    Rewards are those learned from, clipped where the run clips them; log-probabilities are not known. Of the oldest
    episodes, what the buffer no longer holds is missing.

    Args:      env: again, where the run was trained on one made in Python; the others: see ``collect``
    Raises:    UsageError if the run has no replay, or is in use
    Verified:  tests/integration/test_datasets.py::test_a_replay_buffer_becomes_a_dataset
    """
    known = _given_reference(reference, reference_episodes)
    place = None if out is None else check_free(out)
    with RunDirectory.open(as_path(run, "the run")) as directory:
        agent, chosen = _population(read_agent(saved_file(directory.path), network=network), member, str(run))
        where = _where([agent], env, None, None)
        buffer = _replay(directory, agent)
        with _environments(where, 1) as batch:
            check_fit(agent, batch)
            found = recorded_spaces(batch)
        if reference_episodes:
            alone = agent if agent.members == 1 else agent.member(chosen, network)
            known = _measured([alone], where, reference_episodes, 0)
        dataset = from_episodes(
            replayed(buffer, found[0], agent, chosen),
            **where.described,
            spaces=found,
            reference=known,
            source=place or f"the replay of {run}",
        )
    if place is not None:
        write_dataset(dataset, place)
    return dataset


def _given_reference(reference: tuple[float, float] | None, episodes: int) -> Reference | None:
    require(episodes >= 0, "reference_episodes", episodes, "zero or more")
    if reference is not None and episodes:
        raise UsageError("reference and reference_episodes are both given; the returns are given, or measured")
    return None if reference is None else checked_reference(*reference)


def _shares(policy: Policy | None, mixture: Sequence[tuple[Policy, float]], steps: int) -> list[tuple[Policy, int]]:
    """Return the policies that play, and the steps of each."""
    if (policy is None) == (not mixture):
        raise UsageError("give one policy, or a mixture of several with their shares")
    if policy is not None:
        return [(policy, steps)]
    shares = [float(share) for _, share in mixture]
    if min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
        raise UsageError(f"the shares of the mixture are {shares}; expected positive numbers whose sum is 1")
    bounds = [round(steps * sum(shares[: i + 1])) for i in range(len(shares))]
    counts = [stop - start for start, stop in zip([0, *bounds], bounds, strict=False)]
    if min(counts) < 1:
        raise UsageError(f"of {steps} steps the shares {shares} are {counts}; expected at least 1 for every policy")
    return list(zip((source for source, _ in mixture), counts, strict=True))


def _name(source: Policy) -> str:
    return f"an agent of {source.algorithm}" if isinstance(source, Agent) else os.fspath(source)


def _agent(source: Policy, which: Which, member: int | None, network: NetworkFactory | None) -> Agent | None:
    """Return the agent of one member that plays; None for the random policy."""
    if isinstance(source, str) and source == RANDOM:
        return None
    agent = source if isinstance(source, Agent) else read_agent(saved_file(source, which), network=network)
    chosen = _population(agent, member, _name(source))[1]
    return agent if agent.members == 1 else agent.member(chosen, network)


def _population(agent: Agent, member: int | None, source: str) -> tuple[Agent, int]:
    """Return an agent and which of its members is meant."""
    if member is None and agent.members > 1:
        raise UsageError(f"{source} holds {agent.members} seeds; say which with member (counted from 0)")
    if not 0 <= (member or 0) < agent.members:
        raise UsageError(f"member is {member}; {source} holds {agent.members}, counted from 0")
    return agent, member or 0


def _where(
    agents: Sequence[Agent | None], env: Any, env_kwargs: dict[str, Any] | None, max_episode_steps: int | None
) -> Where:
    """Return where to play: in the environment given, or in the one that the first agent was trained on."""
    trained = next((agent.trained_on for agent in agents if agent is not None), {})
    source = env if env is not None else trained.get("env")
    if source is None:
        raise UsageError(
            "in which environment? Give env: it is needed for the random policy, and wherever an agent was "
            "trained on one that has no id"
        )
    same = env is None or env == trained.get("env")
    kept = trained if same else {}
    return Where(
        source,
        kept.get("env_kwargs") if env_kwargs is None else env_kwargs,
        kept.get("max_episode_steps") if max_episode_steps is None else max_episode_steps,
        kept.get("vectorization", "auto"),
        trained.get("atari"),  # what it has learned to see, in every game
    )


@contextmanager
def _environments(where: Where, num_envs: int) -> Generator[EnvBatch]:
    """Make as many environments as evaluation would; those that a user made stay open."""
    made = isinstance(where.env, gym.Env | gym.vector.VectorEnv)
    if made:
        num_envs = where.env.num_envs if isinstance(where.env, gym.vector.VectorEnv) else 1
    batch = make_evaluation_env(
        where.env,
        cast(Any, SimpleNamespace(num_envs=num_envs, members=1)),  # all that is asked of an agent
        num_envs,
        vectorization=where.vectorization,
        env_kwargs=where.env_kwargs,
        max_episode_steps=where.max_episode_steps,
        atari=where.atari,
    )
    try:
        yield batch
    finally:
        if not made:
            batch.close()


def _player(agent: Agent | None, batch: EnvBatch, *, deterministic: bool) -> AgentPolicy | UniformPolicy:
    if agent is None:
        random = UniformPolicy(batch.obs_spec, batch.action_spec, batch.num_envs)
        random.actor(deterministic=deterministic)  # which it refuses
        return random
    check_fit(agent, batch)
    return AgentPolicy(agent, batch.num_envs, deterministic=deterministic)


def _measured(agents: Sequence[Agent | None], where: Where, episodes: int, seed: int) -> Reference:
    """Play whole episodes of the random policy and of all agents; return its mean return, and the best of theirs."""
    seed = stream_seed(seed, "reference") % 2**31
    with _environments(where, episodes) as batch:
        if batch.num_envs > episodes:
            raise UsageError(
                f"reference_episodes is {episodes}; expected at least one for each of {batch.num_envs} environments"
            )
        random = UniformPolicy(batch.obs_spec, batch.action_spec, batch.num_envs)
        low = evaluate_members(cast(Any, random), batch, episodes, seed=seed, deterministic=False)[0].mean
        found: list[Evaluation] = []
        for agent in (agent for agent in agents if agent is not None):
            check_fit(agent, batch)
            found += evaluate_members(agent, batch, episodes, seed=seed)
    if not found:
        raise UsageError(
            f"the random policy alone plays (its mean return is {low:g}); give the return of an expert: reference"
        )
    return checked_reference(low, max(evaluation.mean for evaluation in found))


def _shown(progress: Progress, done: int) -> Callable[[int, list[float]], None]:
    """Return what shows the steps so far, ``done`` of them by other policies, and the mean of the latest returns."""
    recent: deque[float] = deque(maxlen=100)

    def show(steps: int, returns: list[float]) -> None:
        recent.extend(returns)
        mean = sum(recent) / len(recent) if recent else None
        progress.update({"step": done + steps, "train/return_mean": mean})

    return show


def _replay(directory: RunDirectory, agent: Agent) -> ReplayBuffer:
    """Open the replay buffer of a run as its newest checkpoint left it; nothing of it is changed."""
    folder, saved = directory.path / "replay", read_description(directory)
    config = config_from_json(find(saved["algorithm"]).Config, saved["config"])
    if not (folder / "row.bin").is_file() or not isinstance(config, OffPolicyConfig):
        raise UsageError(f"{directory.path} has no replay buffer; off-policy runs such as those of sac, td3 and dqn do")
    found = CheckpointStore(directory.checkpoints_path).load_latest()
    if found is None:
        raise UsageError(f"{directory.path} was stopped before its first checkpoint, which says what its replay holds")
    _, tensors, metadata = found
    atari = saved["run"].get("atari")
    rows = max(2, config.buffer_size // agent.num_envs)
    buffer = ReplayBuffer(
        agent.obs_spec,
        agent.action_spec,
        rows=rows,
        num_envs=agent.num_envs,
        members=agent.members,
        spare_rows=(folder / "row.bin").stat().st_size // 8 - rows - 1,
        frame_stack=1 if atari is None else int(atari.get("frame_stack", AtariOptions().frame_stack)),
        prioritized=config.prioritized,
        folder=folder,
        reopen=True,
    )
    buffer.load_state(tensors, metadata["loop"])
    return buffer


def dataset_summary(data: Any, *, out: PathLike | None = None, cache: PathLike | None = None) -> Summary:
    """Return the statistics of a dataset, and draw them into a picture.

    Args:      data: see ``read_dataset``; out: the picture (.png, .pdf or .svg), None draws nothing; cache: see
               ``read_dataset``
    Raises:    UsageError where the data is malformed, or its actions leave the bounds of its environment: nothing is
               then drawn
    Verified:  tests/integration/test_datasets.py::test_collect_show_and_read_back,
               tests/integration/test_datasets.py::test_malformed_files_are_refused
    """
    if out is not None:
        check_picture(Path(out))
    dataset = read_dataset(data, cache=cache)
    found = summarised(dataset)
    if out is not None:
        draw(dataset, found, Path(out))
    return found
