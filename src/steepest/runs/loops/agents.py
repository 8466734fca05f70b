"""Train agents in environments: play and learn, evaluate every member, restart environments at every checkpoint."""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Self

import gymnasium as gym
import numpy as np
from torch import Tensor

from steepest.agents.agent import Agent
from steepest.agents.config import config_from_json
from steepest.agents.replay_updates import ReplayAgent
from steepest.algorithms import find
from steepest.environments import make_env
from steepest.errors import UsageError
from steepest.experience.datasets.read import env_of, read_dataset
from steepest.experience.rollout import Episode
from steepest.fields import checked_options
from steepest.networks.config import NetworkConfig, NetworkFactory
from steepest.preferences.film import seen_by_people
from steepest.preferences.learned import LearnedReward
from steepest.preferences.rewards import as_json, asks_people, check_reward, learned_reward
from steepest.runs.evaluate import Evaluation
from steepest.runs.loops.evaluations import Evaluator
from steepest.runs.loops.loop import Iteration, Watch, last_means, unwatched
from steepest.runs.loops.notes import surprises
from steepest.runs.loops.offline import check_data
from steepest.runs.loops.regimes import check_finite, check_json, loop_of, restored_reward
from steepest.runs.loops.training import IN_MEMORY, Note, Row, Training, source_of
from steepest.runs.options.auto import read_description, resolve_settings
from steepest.runs.options.config import RunConfig
from steepest.runs.options.resolve import name_of, resolve_options
from steepest.runs.options.varied import read_varied, varied_as_texts
from steepest.runs.store.agents import read_agent
from steepest.runs.store.checkpoints import CheckpointStore
from steepest.runs.store.folder import RunDirectory
from steepest.seeding import stream_seed

WINDOW = 100
"""Training returns are means over this many latest episodes."""


class AgentTraining(Training[RunConfig]):
    """Train one agent, or several seeds of it together, in the loop of its data regime."""

    what = "agent"
    again = ("total_steps", "env", "network", "eval_env", "data", "reward")
    extends = "; --total-steps MORE trains further"

    def __init__(
        self,
        agent_class: type[Agent],
        env: Any,
        name: str,
        settings: RunConfig,
        config: NetworkConfig,
        network: NetworkFactory | None,
        eval_env: Any,
        env_kwargs: dict[str, Any] | None,
        note: Callable[[str], None],
        data: Any = None,
        reward: Any = None,
        *,
        resuming: bool = False,
    ) -> None:
        self.note = self.warn = note
        self.watch: Watch = unwatched
        self.data = source_of(data)
        self.reward = as_json(reward) if asks_people(reward) else source_of(reward)
        self.learned: LearnedReward | None = None
        self.algorithm = agent_class.algorithm
        self.name = name
        self.label = f"{self.algorithm}-{name}-seed{settings.seed}"
        self.env_source = env
        self.env_kwargs = env_kwargs
        self.seeds = tuple(range(settings.seed, settings.seed + settings.seeds))
        self.games: list[Episode] = []  # finished since the last iteration, where episodes are not whole games
        check_reward(agent_class, data, reward, settings.seeds)
        check_data(agent_class, data, settings.data_share)
        alone = data is not None and settings.data_share is None  # nothing is played
        playing = not alone or not isinstance(env, str)
        with seen_by_people(name, asks_people(reward)):
            self.env = make_env(
                env,
                settings.num_envs * settings.seeds if playing else 1,  # its spaces are all that data needs
                seed=stream_seed(settings.seed, "environments") % 2**31,
                vectorization=settings.vectorization,
                env_kwargs=env_kwargs,
                atari=settings.atari,
                render_mode="rgb_array" if asks_people(reward) else None,
                max_episode_steps=settings.max_episode_steps,
                on_game=self._note_game,
                step_timeout=settings.step_timeout,
                info_keys=settings.info_keys,
            )
        try:
            self.settings = resolve_settings(settings, agent_class, config, self.env, note, plays=not alone)
            self.agent = agent_class(
                config,
                self.env.obs_spec,
                self.env.action_spec,
                num_envs=settings.num_envs,
                seeds=self.seeds,
                varied=read_varied(settings.vary),
                network=network,
                compile=self.settings.compile == "on",
                device=self.settings.device,
                note=note,
            )
            self.agent.read_others(partial(read_agent, device=self.settings.device))
            if reward is not None:
                self.learned = learned_reward(
                    reward,
                    self.env,
                    env=env if isinstance(env, str) else None,
                    seed=settings.seed,
                    device=self.settings.device,
                    note=None if resuming else note,
                    rollout_steps=getattr(config, "rollout_steps", 1),
                    source=f"{self.algorithm} on {name}, seed {settings.seed}",
                )
                self.begins_with_checkpoint = self.learned.live is None  # what was learned is in no other file
                self.learned.tell(self._warn)  # shown without a display, too: nobody labels without the link
        except BaseException:
            self.env.close()
            raise
        self.agent.trained_on = {
            "env": env if isinstance(env, str) else None,
            "env_kwargs": env_kwargs,
            "vectorization": settings.vectorization,
            "max_episode_steps": settings.max_episode_steps,
            "atari": None if settings.atari is None else dataclasses.asdict(settings.atari),
        }
        self.loop = loop_of(self.agent, self.env, self.settings, data, self.learned)
        self.steps, self.episodes = (np.zeros(len(self.seeds), dtype=np.int64) for _ in range(2))
        self.recent = [deque[tuple[Any, ...]](maxlen=WINDOW) for _ in self.seeds]  # return, length and infos
        self.unseen = set(self.settings.info_keys)
        self.latest: Iteration
        self.stopped = self.extended = self.render = False
        self._earlier_modes: dict[str, str] = {}
        evaluated_in = env if eval_env is None else eval_env
        self.evaluator = Evaluator(evaluated_in, env, self.agent, self.settings, env_kwargs, self._say, self._warn)

    @classmethod
    def start(
        cls,
        algorithm: str,
        env: Any,
        note: Callable[[str], None],
        options: dict[str, Any],
        *,
        network: NetworkFactory | None,
        agent: Agent | None,
        eval_env: Any,
        env_kwargs: dict[str, Any] | None,
        render: bool,
        saved: bool,
        data: Any = None,
        reward: Any = None,
    ) -> Self:
        """Make the training of a new run from options that a user gave; ``saved``: a folder will describe it."""
        agent_class = find(algorithm)
        if data is not None:
            if env is None and not issubclass(agent_class, ReplayAgent):
                raise UsageError(f"{algorithm} needs the environment of the log: its spaces, and where to evaluate")
            if env is None:
                known = read_dataset(data)
                env, env_kwargs = env_of(known), known.env_kwargs if env_kwargs is None else env_kwargs
                if options.get("max_episode_steps") is None and known.max_episode_steps is not None:
                    options = {**options, "max_episode_steps": known.max_episode_steps}
        start = getattr(agent, "config", None)  # what is no agent is refused below, in words
        options = options | ({"vary": varied_as_texts(options["vary"])} if "vary" in options else {})
        settings, config = resolve_options(algorithm, env, options, start)
        made = cls(agent_class, env, name_of(env), settings, config, network, eval_env, env_kwargs, note, data, reward)
        try:
            for text in surprises(made.agent, made.env, settings):
                note(text)
            made.render = render
            if agent is not None:
                made.agent.take_over(agent)
                made.begins_with_checkpoint = True
            if saved and env_kwargs is not None:
                check_json(env_kwargs)
        except BaseException:
            made.close()
            raise
        return made

    @classmethod
    def read(cls, directory: RunDirectory) -> dict[str, Any]:
        return read_description(directory)

    @classmethod
    def restore(
        cls,
        directory: RunDirectory,
        saved: dict[str, Any],
        note: Callable[[str], None],
        given: dict[str, Any],
    ) -> Self:
        total_steps, network = given.get("total_steps"), given.get("network")
        env = given.get("env", saved["env"])
        if env is None:
            raise UsageError(f"{directory.path} was trained on an environment made in Python; pass it again: env=...")
        if saved["custom_network"] and network is None:
            raise UsageError(f"{directory.path} was trained with a custom network; pass the same factory: network=...")
        agent_class = find(saved["algorithm"])
        options = saved["run"] if total_steps is None else {**saved["run"], "total_steps": total_steps}
        settings = RunConfig(**checked_options(RunConfig, options))
        config = config_from_json(agent_class.Config, saved["config"])
        data = given.get("data", saved.get("data"))
        if data is not None and saved.get("data") is None:
            raise UsageError(f"data is given to resume {directory.path}, which learns from no data: leave it out")
        if isinstance(data, str) and data == IN_MEMORY:
            raise UsageError(f"{directory.path} was trained on a log made in Python; pass it again: data=...")
        reward = restored_reward(directory, saved, given, note)
        others = given.get("eval_env"), saved["env_kwargs"], note, data, reward
        made = cls(agent_class, env, saved["name"], settings, config, network, *others, resuming=True)
        made.extended = total_steps is not None
        return made

    def open(self, directory: RunDirectory | None, store: CheckpointStore | None, *, resuming: bool) -> None:
        super().open(directory, store, resuming=resuming)
        self.loop.open(None if directory is None else directory.path / "replay", resuming=resuming)
        if store is not None:
            scheduled = math.ceil(self.total_steps / (self.settings.checkpoint_every or self.total_steps))
            store.require_room(sum(x.nbytes for x in self.agent.tensors().values()), scheduled)

    def _say(self, text: str) -> None:
        self.note(text)  # whoever takes notes may change

    def _warn(self, text: str) -> None:
        self.warn(text)

    def listen(self, note: Note, warn: Note, watch: Watch, hold: Note) -> None:
        self.note, self.warn = note, warn
        self.agent.learner.say = warn
        self.watch = watch
        if self.learned is not None and self.learned.page is not None:
            self.learned.page.show = hold

    def extend(self) -> bool:
        if not self.extended:
            return False
        total = self.settings.total_steps
        if total < self.step:
            raise UsageError(f"total_steps is {total}, but the run has done {self.step} already")
        if self.stopped and total > self.step:
            target, self.stopped = self.settings.stop_at_return, False
            self.settings = dataclasses.replace(self.settings, stop_at_return=None)
            self.note(f"the run had stopped at its target, a return of {target}; going on without one")
        return True

    def differences(self, saved: dict[str, Any]) -> list[str]:
        del saved
        return [f"{name} no longer runs {self.modes[name]}" for name in self.agent.repeat_modes(self.modes)]

    def close(self) -> None:
        if not isinstance(self.env_source, (gym.Env, gym.vector.VectorEnv)):
            self.env.close()  # but not what the user made
        self.evaluator.close()
        if self.learned is not None:
            self.learned.close()

    # One iteration

    @property
    def step(self) -> int:
        """Environment steps so far, per member (the mean, where restarts made them differ)."""
        return sum(self.steps.tolist()) // len(self.steps)

    @property
    def last_step(self) -> int:
        return int(self.steps.max())

    @property
    def steps_by_seed(self) -> dict[int, int]:
        return dict(zip(self.seeds, self.steps.tolist(), strict=True))

    @property
    def total_steps(self) -> int:
        return self.settings.total_steps

    @property
    def done(self) -> bool:
        return self.stopped or self.step >= self.total_steps

    @property
    def modes(self) -> dict[str, str]:
        """Return the mode of each of the agent's functions, also of before a resume; see ``Agent.modes``."""
        return self._earlier_modes | self.agent.modes()

    def iterate(self) -> None:
        progress = min(1.0, self.step / self.total_steps)
        before = self.step
        left = self.total_steps - before
        self.latest = self.loop.iterate(progress, left, lambda steps: self.watch(before + steps))
        episodes = self.latest.episodes
        if self.settings.atari is not None and self.settings.atari.changes_episodes:
            episodes, self.games = self.games, []
        for episode in episodes:
            self.recent[episode.member].append(episode[1:] if episode.infos else episode[1:3])
            self.episodes[episode.member] += 1
        self._look_for_infos()
        self.steps = self.steps + self.latest.steps
        if self.step >= self.total_steps:
            self.loop.finish(progress)
        self._check_finite()

    def _look_for_infos(self) -> None:
        """Say which of the named infos no step has given, once an episode has ended: perhaps they are misspelt."""
        self.unseen -= {key for key, values in self.latest.infos.items() if np.isfinite(values).any()}
        if self.unseen and self.episodes.any():
            self.warn(f"info_keys: no step has given info[{', '.join(map(repr, sorted(self.unseen)))}] so far")
            self.unseen.clear()

    def _note_game(self, index: int, score: float, length: int) -> None:
        self.games.append(Episode(index // self.agent.num_envs, score, length))

    def _check_finite(self) -> None:
        check_finite(self.agent, self.latest.health, self.step)

    def rows(self, wall_seconds: float, seconds: float) -> list[Row]:
        return [self._row(member, wall_seconds, seconds) for member in range(self.agent.members)]

    def _row(self, member: int, wall_seconds: float, seconds: float) -> Row:
        row: Row = {
            "step": int(self.steps[member]),
            "wall_seconds": wall_seconds,
            "seed": self.seeds[member],
            "train/episodes": int(self.episodes[member]),
        }
        if self.recent[member]:
            returns, lengths, *infos = zip(*self.recent[member], strict=True)
            row["train/return_mean"] = math.fsum(returns) / len(returns)
            row["train/episode_length_mean"] = sum(lengths) / len(lengths)
            row |= last_means(self.settings.info_keys, *infos)
        row |= {f"info/{k}_mean": float(v[member]) for k, v in self.latest.infos.items() if np.isfinite(v[member])}
        row |= {f"health/{k}": float(v[member]) for k, v in self.latest.health.items()}
        row["time/steps_per_second"] = int(self.latest.steps[member]) * self.agent.members / seconds
        return row

    @property
    def checkpoint_due(self) -> bool:
        return self.loop.restart_due

    def restart(self) -> None:
        """Restart all environments from a seed derived from the step."""
        self.loop.restart(stream_seed(self.settings.seed, f"environments at {self.last_step}") % 2**31)

    # Evaluation

    @property
    def evaluation_may_hang(self) -> bool:
        return self.evaluator.on

    def evaluate(self) -> list[Row] | None:
        return self.evaluator.evaluate(self.step)

    @property
    def evaluations(self) -> list[Evaluation]:
        return self.evaluator.latest

    def act_on_evaluation(self, metadata: dict[str, Any]) -> None:
        """Keep the best agent, show an episode, and stop where every member reaches the target.

        An evaluation that is unfinished is no best one and reaches no target: the episodes that it lacks are not any.
        """
        if not self.evaluator.complete:
            return
        means = [found.mean for found in self.evaluations]
        if self.store is not None:
            self.store.save_best(self.last_step, self.agent.tensors(), metadata, float(np.mean(means)))
        if self.render:
            self.render = self.evaluator.show_episode()
        target = self.settings.stop_at_return
        if target is not None and min(means) >= target:
            self.stopped = True

    # Files

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, figures = self.loop.state()
        return {**self.agent.tensors(), **tensors}, {"loop": figures}

    def metadata(self) -> dict[str, Any]:
        return {
            **self.agent.metadata(),
            "steps": self.steps.tolist(),
            "episodes": self.episodes.tolist(),
            "recent": [list(window) for window in self.recent],
            "stopped": self.stopped,
            "modes": self.modes,
            "evaluations": [dataclasses.asdict(e) for e in self.evaluations],
        }

    def load(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        self.agent.load_tensors(tensors)
        self.loop.load_state(tensors, metadata.get("loop", {}))
        self.steps = np.array(metadata["steps"], dtype=np.int64)
        self.episodes = np.array(metadata["episodes"], dtype=np.int64)
        for window, saved in zip(self.recent, metadata["recent"], strict=True):
            window.extend((float(r), int(n), *infos) for r, n, *infos in saved)
        self.evaluator.latest = [
            Evaluation(tuple(e["returns"]), tuple(e["lengths"]), e.get("unfinished", 0), e.get("infos", {}))
            for e in metadata["evaluations"]
        ]
        self.stopped = metadata["stopped"]
        self._earlier_modes = metadata["modes"]

    def description(self) -> dict[str, Any]:
        return {
            "algorithm": self.algorithm,
            "env": self.env_source if isinstance(self.env_source, str) else None,
            "name": self.name,
            "env_kwargs": self.env_kwargs,
            "custom_network": self.agent.custom_network,
            "config": dataclasses.asdict(self.agent.config),
            "run": dataclasses.asdict(self.settings),
            "data": self.data,
            "reward": self.reward,
        }

    def summary(self, wall_seconds: float, evaluated_at: int) -> dict[str, Any]:
        """Return steps, time, speed, the last evaluation of every seed, and what each has of its own."""
        return {
            "algorithm": self.algorithm,
            "env": self.name,
            "seeds": list(self.seeds),
            "steps": self.steps.tolist(),
            "wall_seconds": round(wall_seconds, 3),
            "steps_per_second": round(float(self.steps.sum()) / max(wall_seconds, 1e-9), 1),
            "stopped_at_return": self.stopped,
            "modes": self.modes,
            "evaluation_step": evaluated_at if self.evaluations else None,
            "evaluation": [e.summary() for e in self.evaluations],
            **self.agent.population.summary(),
        }

    def save_interrupted(self, metadata: dict[str, Any]) -> Path | None:
        if self.store is None:
            return None
        return self.store.save_interrupted(self.last_step, self.agent.tensors(), metadata)
