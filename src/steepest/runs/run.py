"""A training run: what surrounds the loop of a data regime, with evaluation, logging and checkpoints.

The order of one iteration is the whole contract of resuming: play and learn (``runs.on_policy``, ``runs.off_policy``),
evaluate if due, write the metrics, save a checkpoint if due and then restart the environments from a seed derived from
the step. Every run restarts them, also one that is never interrupted, so a run that resumes from a checkpoint goes on
with the same bits.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Self, cast

import gymnasium as gym
import numpy as np
import torch

from steepest.agents.agent import Agent
from steepest.agents.config import config_from_json
from steepest.agents.replay_updates import ReplayAgent
from steepest.algorithms import find
from steepest.environments import make_env
from steepest.errors import RunError, SteepestError, UsageError
from steepest.experience.rollout import Episode
from steepest.learner.memory import keep_freed_memory
from steepest.networks.config import NetworkConfig, NetworkFactory
from steepest.runs.evaluate import Evaluation, evaluate_members, make_evaluation_env
from steepest.runs.loops.loop import Loop
from steepest.runs.loops.off_policy import OffPolicyLoop
from steepest.runs.loops.on_policy import OnPolicyLoop
from steepest.runs.options.auto import name_of, read_description, resolve_options, resolve_settings
from steepest.runs.options.config import RunConfig, checked_options
from steepest.runs.store.agents import read_agent
from steepest.runs.store.checkpoints import CheckpointStore
from steepest.runs.store.folder import RunDirectory, changed_since, environment_report, finite_json
from steepest.runs.store.metrics import MetricsLog
from steepest.seeding import stream_seed

WINDOW = 100
"""Training returns are means over this many latest episodes."""

Row = dict[str, Any]
"""One iteration's figures, by tag."""


class Run:
    """One training run; iterate over it to train: ``for row in run: ...``.

    Args:
        algorithm: its name, such as "ppo".
        env: a Gymnasium or EnvPool id, a factory of environments, an environment, or a vector environment.
        out: folder for metrics, checkpoints and pictures; None writes nothing.
        network: custom torso, see ``networks.config.NetworkFactory``.
        agent: go on with the parameters, optimiser and statistics of this one.
        eval_env: where to evaluate, if a second environment cannot be made from ``env``.
        note: takes lines of text that a user should see.
        render: show an episode in a window at every evaluation.
        options: fields of ``RunConfig`` and of the algorithm's config; what is not given comes from the preset of the
            environment's family, then from the defaults.

    Raises: UsageError on anything that cannot work, before any training.
    """

    def __init__(
        self,
        algorithm: str,
        env: Any,
        *,
        out: str | Path | None = None,
        network: NetworkFactory | None = None,
        agent: Agent | None = None,
        eval_env: Any = None,
        env_kwargs: dict[str, Any] | None = None,
        note: Callable[[str], None] | None = None,
        render: bool = False,
        **options: Any,
    ) -> None:
        agent_class = find(algorithm)
        name = name_of(env)
        settings, config = resolve_options(agent_class, env, options, None if agent is None else agent.config)
        self._start(agent_class, env, name, settings, config, network, eval_env, env_kwargs, note)
        self.render = render
        try:
            if agent is not None:
                self.agent.take_over(agent)
            if out is not None:
                label = f"{algorithm}-{name}-seed{settings.seed}"
                self._create(Path(out) if str(out) else None, label, continued=agent is not None)
            else:
                self.loop.open(None, resuming=False)
            self._restart_environments()
        except BaseException:
            self.close()
            raise

    @classmethod
    def resume(
        cls,
        path: str | Path,
        *,
        total_steps: int | None = None,
        env: Any = None,
        network: NetworkFactory | None = None,
        eval_env: Any = None,
        note: Callable[[str], None] | None = None,
    ) -> Self:
        """Go on from the last checkpoint of a run, to the same bits as if it had never stopped.

        Args:      total_steps: train further than first planned (schedules then stretch, so bits differ); env and
                   network: again, where the run was given something that a file cannot hold
        Raises:    UsageError if there is no run, it is in use, or env or network is missing
        """
        directory = RunDirectory.open(Path(path))
        try:
            saved = read_description(directory)
            if saved["env"] is None and env is None:
                raise UsageError(f"{path} was trained on an environment made in Python; pass it again: env=...")
            if saved["custom_network"] and network is None:
                raise UsageError(f"{path} was trained with a custom network; pass the same factory: network=...")
            agent_class = find(saved["algorithm"])
            settings = RunConfig(**checked_options(RunConfig, saved["run"]))
            if total_steps is not None:
                settings = dataclasses.replace(settings, total_steps=total_steps)
            config = config_from_json(agent_class.Config, saved["config"])
            run = cls.__new__(cls)
            target = saved["env"] if env is None else env
            kwargs = saved["env_kwargs"]
            run._start(agent_class, target, saved["name"], settings, config, network, eval_env, kwargs, note)
        except BaseException:
            directory.close()
            raise
        try:
            run._reopen(directory, saved["environment"], extended=total_steps is not None)
        except BaseException:
            run.close()
            raise
        return run

    def _start(
        self,
        agent_class: type[Agent],
        env: Any,
        name: str,
        settings: RunConfig,
        config: NetworkConfig,
        network: NetworkFactory | None,
        eval_env: Any,
        env_kwargs: dict[str, Any] | None,
        note: Callable[[str], None] | None,
    ) -> None:
        keep_freed_memory()
        self.note = note or (lambda _: None)
        self.name = name
        self.env_source = env
        self.eval_source = env if eval_env is None else eval_env
        self.env_kwargs = env_kwargs
        seeds = tuple(range(settings.seed, settings.seed + settings.seeds))
        self.env = make_env(
            env,
            settings.num_envs * settings.seeds,
            seed=stream_seed(settings.seed, "environments") % 2**31,
            vectorization=settings.vectorization,
            env_kwargs=env_kwargs,
            atari=settings.atari,
            max_episode_steps=settings.max_episode_steps,
            on_game=self._note_game,
        )
        self.games: list[Episode] = []  # finished since the last iteration, where episodes are not whole games
        try:
            self.settings = resolve_settings(settings, agent_class, config, self.env, self.note)
            self.agent = agent_class(
                config,
                self.env.obs_spec,
                self.env.action_spec,
                num_envs=settings.num_envs,
                seeds=seeds,
                network=network,
                compile=self.settings.compile == "on",
                device=self.settings.device,
                note=self.note,
            )
            self.agent.read_others(partial(read_agent, device=self.settings.device))
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
        if isinstance(self.agent, ReplayAgent):
            self.loop: Loop = OffPolicyLoop(self.env, self.agent, self.settings)
        else:
            self.loop = OnPolicyLoop(self.env, self.agent)
        members = len(seeds)
        self.steps = np.zeros(members, dtype=np.int64)
        self.episodes = np.zeros(members, dtype=np.int64)
        self.recent = [deque[tuple[float, int]](maxlen=WINDOW) for _ in seeds]
        self.wall_seconds = 0.0
        self.evaluations: list[Evaluation] = []
        self.evaluated_at = -1
        self._earlier_modes: dict[str, str] = {}
        self.stopped = False
        self.render = False
        self.directory: RunDirectory | None = None
        self.log: MetricsLog | None = None
        self.store: CheckpointStore | None = None
        self._eval_env: Any = None
        self._no_evaluation = settings.eval_episodes == 0

    # Files

    def _create(self, path: Path | None, label: str, *, continued: bool) -> None:
        """Take a new folder for the run."""
        if self.env_kwargs is not None:
            try:
                json.dumps(self.env_kwargs)
            except (TypeError, ValueError) as error:
                raise UsageError(
                    f"env_kwargs cannot be saved with the run: {error}. Pass a factory of environments instead, such "
                    "as lambda: gym.make(...)"
                ) from error
        directory = RunDirectory.create(path, label)
        self._use(directory, resuming=False)
        if continued:
            self._save_checkpoint()  # what the run starts from is in no other file, and has to be there to resume
        directory.write_json("config.json", self.description())
        try:
            self._open_log(None)
        except SteepestError:
            directory.config_path.unlink()  # nothing has begun: the folder is free for another try
            raise

    def _reopen(self, directory: RunDirectory, environment: dict[str, Any], *, extended: bool) -> None:
        """Take an old run's folder and load its newest checkpoint."""
        self._use(directory, resuming=True)
        assert self.store is not None
        found = self.store.load_latest()
        if found is None:
            self.note("no checkpoint was saved yet; starting from the beginning")
        else:
            path, tensors, metadata = found
            try:
                self._load(tensors, metadata)
            except (KeyError, TypeError, ValueError) as error:
                raise RunError(f"{path} was not saved by a run that can be resumed: {error!r}") from error
        if extended:
            self._extend()
        self._open_log(dict(zip(self.agent.seeds, self.steps.tolist(), strict=True)))
        if self.done:
            self.note(f"{directory.path} is finished, at step {self.step:,}; --total-steps MORE trains further")
            return
        self._restart_environments()
        if found is not None:
            self.note(f"resuming from {found[0].name}")
        changed = changed_since(environment, environment_report())
        changed += [f"{name} no longer runs {self.modes[name]}" for name in self.agent.repeat_modes(self.modes)]
        with self._threads() as threads:
            if threads != self.settings.threads:
                changed.append(f"threads were {self.settings.threads}, are {threads}")
        if changed:
            self.note(f"bits may differ from an uninterrupted run: {'; '.join(changed)}")

    @contextmanager
    def _threads(self) -> Generator[int]:
        """PyTorch with the run's number of threads; gives how many it has taken."""
        before = torch.get_num_threads()
        torch.set_num_threads(cast(int, self.settings.threads))
        try:
            yield torch.get_num_threads()
        finally:
            torch.set_num_threads(before)

    def _extend(self) -> None:
        """Take up another number of total steps, for good: the next resume must know it too."""
        assert self.directory is not None
        total = self.settings.total_steps
        if total < self.step:
            raise UsageError(f"total_steps is {total}, but the run has done {self.step} already")
        if self.stopped and total > self.step:
            target, self.stopped = self.settings.stop_at_return, False
            self.settings = dataclasses.replace(self.settings, stop_at_return=None)
            self.note(f"the run had stopped at its target, a return of {target}; going on without one")
        saved = self.directory.read_json("config.json")
        self.directory.write_json("config.json", {**saved, "run": dataclasses.asdict(self.settings)})

    def _use(self, directory: RunDirectory, *, resuming: bool) -> None:
        self.directory = directory
        self.loop.open(directory.path / "replay", resuming=resuming)
        self.store = CheckpointStore(directory.checkpoints_path, self.settings.keep_checkpoints)

    def _open_log(self, resume_step: dict[int, int] | None) -> None:
        assert self.directory is not None
        self.log = MetricsLog(
            self.directory.path,
            resume_step=resume_step,
            seeds=self.agent.seeds,
            tensorboard=self.settings.tensorboard,
            wandb=self.settings.wandb,
        )

    def _save_checkpoint(self) -> None:
        if self.store is not None:
            tensors, figures = self.loop.state()
            self.store.save(
                int(self.steps.max()), {**self.agent.tensors(), **tensors}, {**self._metadata(), "loop": figures}
            )

    def description(self) -> dict[str, Any]:
        """Everything that defines the run, as JSON."""
        return {
            "algorithm": self.agent.algorithm,
            "env": self.env_source if isinstance(self.env_source, str) else None,
            "name": self.name,
            "env_kwargs": self.env_kwargs,
            "custom_network": self.agent.custom_network,
            "config": dataclasses.asdict(self.agent.config),
            "run": dataclasses.asdict(self.settings),
            "command": shlex.join(["steepest", *sys.argv[1:]]),
            "environment": environment_report(),
        }

    def _metadata(self) -> dict[str, Any]:
        return {
            **self.agent.metadata(),
            "steps": self.steps.tolist(),
            "episodes": self.episodes.tolist(),
            "recent": [list(window) for window in self.recent],
            "wall_seconds": self.wall_seconds,
            "stopped": self.stopped,
            "evaluated_at": self.evaluated_at,
            "modes": self.modes,
            "evaluations": [dataclasses.asdict(e) for e in self.evaluations],
        }

    def _load(self, tensors: dict[str, torch.Tensor], metadata: dict[str, Any]) -> None:
        self.agent.load_tensors(tensors)
        self.loop.load_state(tensors, metadata.get("loop", {}))
        self.steps = np.array(metadata["steps"], dtype=np.int64)
        self.episodes = np.array(metadata["episodes"], dtype=np.int64)
        for window, saved in zip(self.recent, metadata["recent"], strict=True):
            window.extend((float(r), int(n)) for r, n in saved)
        self.wall_seconds = metadata["wall_seconds"]
        self.evaluated_at = metadata["evaluated_at"]
        self.evaluations = [Evaluation(tuple(e["returns"]), tuple(e["lengths"])) for e in metadata["evaluations"]]
        self.stopped = metadata["stopped"]
        self._earlier_modes = metadata["modes"]

    def _restart_environments(self) -> None:
        self.loop.restart(stream_seed(self.settings.seed, f"environments at {int(self.steps.max())}") % 2**31)

    def close(self) -> None:
        """Release the folder and the environments. Closing twice is harmless."""
        if self.log is not None:
            self.log.close()
        if self.directory is not None:
            self.directory.close()
        for env, source in ((self.env, self.env_source), (self._eval_env, self.eval_source)):
            if env is not None and not isinstance(source, (gym.Env, gym.vector.VectorEnv)):
                env.close()  # but not what the user made

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Training

    @property
    def step(self) -> int:
        """Environment steps so far, per member (the mean, where restarts made them differ)."""
        return sum(self.steps.tolist()) // len(self.steps)

    @property
    def modes(self) -> dict[str, str]:
        """How each of the agent's functions runs, also those of the run that this one goes on; see ``Agent.modes``."""
        return self._earlier_modes | self.agent.modes()

    @property
    def done(self) -> bool:
        return self.stopped or self.step >= self.settings.total_steps

    def __iter__(self) -> Iterator[Row]:
        """Train; yields the figures of every iteration (means over members). Leaving early is fine: iterate again."""
        while not self.done:
            yield self.iterate()
        if not self._is_summed_up():
            self.finish()

    def iterate(self) -> Row:
        """One iteration of the loop, with whatever is due after it.

        Raises:    RunError, naming the last good checkpoint, if an environment fails or a figure becomes non-finite
        """
        try:
            with self._threads():
                return self._iterate()
        except RunError as error:
            if self.store is None or getattr(error, "names_checkpoint", False):
                raise
            named = type(error)(f"{error} {self._last_good()}")
            named.names_checkpoint = True  # pyright: ignore[reportAttributeAccessIssue]
            raise named from error

    def _last_good(self) -> str:
        good = None if self.store is None else self.store.latest()
        return f"The last good checkpoint is {good}." if good else "No checkpoint had been saved yet."

    def _iterate(self) -> Row:
        began = time.perf_counter()
        before = self.step
        progress = min(1.0, before / self.settings.total_steps)
        episodes, counted, health = self.loop.iterate(progress)
        if self.settings.atari is not None and self.settings.atari.changes_episodes:
            episodes, self.games = self.games, []
        for episode in episodes:
            self.recent[episode.member].append((episode.episode_return, episode.length))
            self.episodes[episode.member] += 1
        self.steps = self.steps + counted
        last = self.step >= self.settings.total_steps
        if last:
            self.loop.finish(progress)
        self._check_finite(health)
        seconds = time.perf_counter() - began
        self.wall_seconds += seconds
        rows = [self._row(m, health, seconds, int(counted[m])) for m in range(self.agent.members)]
        if not last and _crosses(before, self.step, self.settings.eval_every):
            self._evaluate(rows)
        last = last or self.stopped
        if last:
            self._evaluate(rows)
        if self.log is not None:
            for row in rows:
                self.log.write(row)
        if last or self.loop.restart_due or _crosses(before, self.step, self.settings.checkpoint_every):
            self._save_checkpoint()
            if not last:
                self._restart_environments()
        self.wall_seconds += time.perf_counter() - began - seconds
        return _mean_row(rows)

    def _note_game(self, index: int, score: float, length: int) -> None:
        self.games.append(Episode(index // self.agent.num_envs, score, length))

    def _row(self, member: int, health: dict[str, Any], seconds: float, steps: int) -> Row:
        row: Row = {
            "step": int(self.steps[member]),
            "wall_seconds": self.wall_seconds,
            "seed": self.agent.seeds[member],
            "train/episodes": int(self.episodes[member]),
        }
        if self.recent[member]:
            returns, lengths = zip(*self.recent[member], strict=True)
            row["train/return_mean"] = math.fsum(returns) / len(returns)
            row["train/episode_length_mean"] = sum(lengths) / len(lengths)
        row |= {f"health/{k}": float(v[member]) for k, v in health.items()}
        row["time/steps_per_second"] = steps * self.agent.members / seconds
        return row

    def _check_finite(self, health: dict[str, Any]) -> None:
        # Where all targets are equal no share of their variance is explained: that is no number, and no failure.
        bad = [k for k, v in health.items() if k != "explained_variance" and not np.isfinite(v).all()]
        # A user's own buffers may hold infinities, such as a mask to add to logits.
        own = {k: v for k, v in self.agent.state.items() if not k.startswith("buffers/") and v.is_floating_point()}
        bad += [k for k, v in own.items() if not _all_finite(v)]
        if not bad:
            return
        raise RunError(
            f"training stopped at step {self.step}: {', '.join(bad)} became non-finite. A smaller learning_rate, or "
            "normalize_obs and normalize_reward, usually help."
        )

    def _evaluate(self, rows: list[Row]) -> None:
        """Evaluate every member unless that was just done; note the best, and stop if the target is reached."""
        if self._no_evaluation or self.evaluated_at == self.step:
            return
        settings = self.settings
        if self._eval_env is None and not self._make_eval_env():
            return
        self.evaluations = evaluate_members(
            self.agent,
            cast(Any, self._eval_env),
            settings.eval_episodes,
            seed=stream_seed(settings.seed, "evaluation") % 2**31,
        )
        self.evaluated_at = self.step
        for row, result in zip(rows, self.evaluations, strict=True):
            row["eval/return_mean"] = result.mean
            row["eval/return_std"] = result.std
            row["eval/episode_length_mean"] = result.mean_length
            row["eval/episodes"] = len(result.returns)
        score = float(np.mean([e.mean for e in self.evaluations]))
        if self.store is not None:
            self.store.save_best(int(self.steps.max()), self.agent.tensors(), self._metadata(), score)
        if self.render:
            self._show_episode()
        if settings.stop_at_return is not None and min(e.mean for e in self.evaluations) >= settings.stop_at_return:
            self.stopped = True

    def _make_eval_env(self) -> bool:
        settings = self.settings
        try:
            self._eval_env = make_evaluation_env(
                self.eval_source,
                self.agent,
                settings.eval_episodes,
                vectorization=settings.vectorization,
                env_kwargs=self.env_kwargs,
                max_episode_steps=settings.max_episode_steps,
                atari=settings.atari,
            )
        except UsageError as error:
            self._no_evaluation = True
            self.note(f"not evaluating: {error} (or pass eval_env)")
            return False
        if self._shares_training_env():
            self._no_evaluation = True
            self._eval_env = None
            self.note("not evaluating: training uses the one environment that was given (pass a factory, or eval_env)")
            return False
        return True

    def _shares_training_env(self) -> bool:
        """Whether evaluating would play the very environment that training is in the middle of."""
        return self.eval_source is self.env_source and isinstance(self.env_source, (gym.Env, gym.vector.VectorEnv))

    def _show_episode(self) -> None:
        """Play one episode of every member in a window; without a screen, say so and train on."""
        if self._shares_training_env():
            return
        try:
            window = make_evaluation_env(
                self.eval_source,
                self.agent,
                1,
                env_kwargs=self.env_kwargs,
                max_episode_steps=self.settings.max_episode_steps,
                atari=self.settings.atari,
                render_mode="human",
            )
            try:
                evaluate_members(self.agent, window, 1, seed=stream_seed(self.settings.seed, "evaluation") % 2**31)
            finally:
                window.close()
        except SteepestError as error:
            self.render = False
            self.note(f"not rendering: {error}")

    def _is_summed_up(self) -> bool:
        """Whether the run's folder holds the summary of this very state already."""
        if self.directory is None or not self.directory.summary_path.exists():
            return False
        timed = ("wall_seconds", "steps_per_second")  # the last checkpoint cannot know how long its own saving took
        found, mine = self.directory.read_json("summary.json"), finite_json(self.summary())
        return {k: v for k, v in found.items() if k not in timed} == {k: v for k, v in mine.items() if k not in timed}

    def finish(self) -> None:
        """Write the curve and the summary of a finished run; the summary comes last, and so marks it complete."""
        if self.directory is None:
            return
        from steepest.runs.view.plots import plot_curve

        try:
            plot_curve(self.directory.path)
        except SteepestError as error:  # nothing to draw, such as a run in which no episode ended
            self.note(f"no curve was drawn: {error}")
        self.directory.write_json("summary.json", self.summary())

    def summary(self) -> dict[str, Any]:
        """How the run ended: steps, time, speed, and the last evaluation of every seed."""
        return {
            "algorithm": self.agent.algorithm,
            "env": self.name,
            "seeds": list(self.agent.seeds),
            "steps": self.steps.tolist(),
            "wall_seconds": round(self.wall_seconds, 3),
            "steps_per_second": round(float(self.steps.sum()) / max(self.wall_seconds, 1e-9), 1),
            "stopped_at_return": self.stopped,
            "modes": self.modes,
            "evaluation_step": self.evaluated_at if self.evaluations else None,
            "evaluation": [e.summary() for e in self.evaluations],
        }

    def save_interrupted(self) -> Path | None:
        """Save the agent as it is, off the schedule: usable, while ``resume`` goes on from the last checkpoint."""
        if self.store is None:
            return None
        return self.store.save_interrupted(int(self.steps.max()), self.agent.tensors(), self._metadata())


def _crosses(before: int, after: int, every: int | None) -> bool:
    return every is not None and every > 0 and after // every > before // every


def _all_finite(x: torch.Tensor) -> bool:
    # A sum is finite only if every term is, and costs a fifth of the elementwise test. It may overflow on finite terms,
    # hence the second look.
    return math.isfinite(x.sum()) or bool(torch.isfinite(x).all())


def _mean_row(rows: list[Row]) -> Row:
    """Means over members, of the figures that all of them have."""
    if len(rows) == 1:
        return rows[0]
    shared = [k for k in rows[0] if all(k in row for row in rows) and k != "seed"]
    mean = {k: float(np.mean([row[k] for row in rows])) for k in shared}
    return {**mean, "step": int(mean["step"])}
