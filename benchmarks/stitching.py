"""Stitching: OGBench's point mazes, goals of which no recorded trajectory shows the way.

    python benchmarks/stitching.py                      medium maze, both datasets; an interrupted call resumes
    python benchmarks/stitching.py --data stitch --algorithms iql --updates 100000

1. plays OGBench's scripted oracle (breadth-first search plus noise) as its authors do: "navigate", trajectories of
   1,000 steps from goal to goal; "stitch", trajectories of 200 steps to one goal four cells away
2. gives the trajectories goals in hindsight: a goal is drawn, and once it is reached the next; reward -1 a step until
   then
3. trains goal-conditioned cloning and IQL on (position, goal), which the paper calls GCBC and GCIQL
4. plays the five tasks of the maze and reports how many episodes reach the goal within 1,000 steps

Everything goes into --out; what stands there is not done again. RESULT.json has every seed, each run's commit, the
machine and the command.

OGBench is a package of its own environment, .venvs/ogbench: what this environment has as well comes from here.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import shlex
import statistics
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

import steepest
from offline import claimed
from run import interpreter, machine
from steepest.experience.datasets.dataset import Dataset, RecordedEpisode, from_episodes
from steepest.files.atomic import write_text_atomic

NOISE = 0.5
"""Standard deviation of what is added to the oracle's actions, per axis; actions are clipped to [-1, 1]."""
TASKS = 5
REACH = 1.0
"""How near to the goal counts as there."""
PAPER = {  # Park et al. 2025, Table 2: means of eight seeds after 1M updates on 1M steps, with their deviations
    "navigate": {"GCBC": "9 +- 6", "GCIVL": "63 +- 6", "GCIQL": "53 +- 8", "QRL": "82 +- 5", "CRL": "29 +- 7"},
    "stitch": {"GCBC": "23 +- 18", "GCIVL": "70 +- 14", "GCIQL": "21 +- 9", "QRL": "80 +- 12", "CRL": "0 +- 1"},
}
PAPER["navigate"]["HIQL"], PAPER["stitch"]["HIQL"] = "79 +- 5", "74 +- 6"

ALGORITHMS: dict[str, tuple[str, float, dict[str, Any]]] = {
    "bc": ("GCBC", 0.0, {}),
    "iql": ("GCIQL", 0.5, {"expectile": 0.9, "temperature": 0.1}),
}
"""Algorithm -> the paper's name, the share of goals from other trajectories, settings (OGBench's for this family)."""


class Trajectories(NamedTuple):
    """What the oracle did: E trajectories of T steps."""

    position: NDArray[np.float32]  # (E, T + 1, 2)
    action: NDArray[np.float32]  # (E, T, 2)


class WithGoal(gym.Wrapper[Any, Any, Any, Any]):
    """A task of the maze, its goal's position behind the observation; reward 1 where the goal is reached."""

    def __init__(self, env: gym.Env[Any, Any], task: int) -> None:
        super().__init__(env)
        self.task = task
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (4,), np.float32)
        self.goal = np.zeros(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            np.random.seed(seed % 2**32)  # noqa: NPY002 - the maze draws starts and goals from NumPy's own generator
        obs, info = self.env.reset(seed=seed, options={"task_id": self.task})
        self.goal = info.pop("goal")
        return self._joined(obs), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        return self._joined(obs), float(reward), terminated, truncated, info

    def _joined(self, obs: Any) -> Any:
        return np.concatenate([obs, self.goal]).astype(np.float32)


def task_of(maze_type: str, task: int) -> WithGoal:
    """A task of a maze, 1 to 5."""
    return WithGoal(gym.make(f"pointmaze-{maze_type}-v0"), task)


def add_ogbench() -> None:
    """Let OGBench be imported, from the environment of its own."""
    (packages,) = (interpreter("ogbench").parents[1] / "lib").glob("python*/site-packages")
    sys.path.append(str(packages))
    with contextlib.redirect_stdout(None):
        import ogbench.locomaze  # noqa: F401  # pyright: ignore[reportMissingImports, reportUnusedImport]


def neighbours(maze: NDArray[Any], cell: tuple[int, int]) -> list[tuple[int, int]]:
    i, j = cell
    return [at for at in ((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)) if maze[at] == 0]


def corners(maze: NDArray[Any]) -> list[tuple[int, int]]:
    """Free cells that are no straight passage."""
    found = []
    for cell in map(tuple, np.argwhere(maze == 0)):
        near = neighbours(maze, cell)
        if not (len(near) == 2 and (near[0][0] == near[1][0] or near[0][1] == near[1][1])):
            found.append(cell)
    return found


def cells_at(maze: NDArray[Any], cell: tuple[int, int], distance: int) -> list[tuple[int, int]]:
    """The cells that far away by the shortest way, or the cell itself where there are none."""
    seen, edge = {cell}, [cell]
    for _ in range(distance):
        edge = list(dict.fromkeys(at for one in edge for at in neighbours(maze, one) if at not in seen))
        seen.update(edge)
    return edge or [cell]


def play_oracle(maze_type: str, kind: str, steps: int, seed: int) -> Trajectories:
    """Play the oracle towards drawn goals; the same seed gives the same bits."""
    length = 200 if kind == "stitch" else 1_000
    env: Any = gym.make(f"pointmaze-{maze_type}-v0", terminate_at_goal=False, max_episode_steps=length + 1).unwrapped
    rng = np.random.default_rng(seed)
    np.random.seed(seed)  # noqa: NPY002 - as above
    free, turns = [tuple(cell) for cell in np.argwhere(env.maze_map == 0)], corners(env.maze_map)
    episodes = steps // length
    position = np.zeros((episodes, length + 1, 2), np.float32)
    action = np.zeros((episodes, length, 2), np.float32)
    for e in range(episodes):
        start = free[rng.integers(len(free))]
        goals = cells_at(env.maze_map, start, 4) if kind == "stitch" else turns
        goal = goals[rng.integers(len(goals))]
        position[e, 0], _ = env.reset(
            seed=int(rng.integers(2**31)), options={"task_info": {"init_ij": start, "goal_ij": goal}}
        )
        for t in range(length):
            here = env.get_xy()
            towards = env.get_oracle_subgoal(here, env.cur_goal_xy)[0] - here
            wanted = towards / (np.linalg.norm(towards) + 1e-6) + rng.normal(0.0, NOISE, 2)
            action[e, t] = np.clip(wanted, -1.0, 1.0)
            position[e, t + 1], _, _, _, info = env.step(action[e, t])
            if info["success"] and kind == "navigate":
                env.set_goal(goal_ij=turns[rng.integers(len(turns))])
        if e % max(1, episodes // 10) == 0:
            print(f"{kind}: {e:,} of {episodes:,} trajectories", flush=True)
    env.close()
    return Trajectories(position, action)


def with_goals(found: Trajectories, elsewhere: float, passes: int, seed: int) -> Dataset:
    """Every trajectory, ``passes`` times, cut into episodes that each pursue one goal.

    A goal is the position at a time drawn uniformly from what follows, or, with the probability ``elsewhere``, any
    position of any trajectory. An episode ends where its goal is reached, and there the next one begins.
    """
    rng = np.random.default_rng(seed)
    count, length = found.action.shape[:2]

    def episodes() -> Iterator[RecordedEpisode]:
        for e in np.tile(np.arange(count), passes):
            begin = 0
            while begin < length:
                if rng.random() < elsewhere:
                    goal = found.position[rng.integers(count), rng.integers(length + 1)]
                else:
                    goal = found.position[e, rng.integers(begin + 1, length + 1)]
                there = np.linalg.norm(found.position[e, begin + 1 :] - goal, axis=1) <= REACH
                reached = bool(there.any())
                end = begin + 1 + int(there.argmax()) if reached else length
                position = found.position[e, begin : end + 1]
                reward = np.full(end - begin, -1.0, np.float32)
                reward[-1] = 0.0 if reached else -1.0
                obs = np.concatenate([position, np.broadcast_to(goal, position.shape)], axis=1)
                yield RecordedEpisode(obs, found.action[e, begin:end], reward, reached, not reached)
                begin = end

    spaces = (gym.spaces.Box(-np.inf, np.inf, (4,), np.float32), gym.spaces.Box(-1.0, 1.0, (2,), np.float32))
    return from_episodes(episodes(), spaces=spaces, source="the relabelled trajectories")


def train(row: str, found: Trajectories, maze_type: str, args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Train on one dataset with one seed, and play the five tasks."""
    _, elsewhere, settings = ALGORITHMS[row]
    began = time.perf_counter()
    data = with_goals(found, elsewhere, args.passes, seed)
    options: dict[str, Any] = {"total_steps": args.updates, "seed": seed, "eval_episodes": 0, "threads": 1}
    tasks = [partial(task_of, maze_type, task) for task in range(1, TASKS + 1)]
    with steepest.Run(row, tasks[0], data=data, precision=args.precision, **options, **settings) as run:
        rows = list(run)
        success = [steepest.evaluate(run.agent, make, episodes=args.episodes, seed=seed)[0].mean for make in tasks]
    return {
        "success": success,
        "success_mean": statistics.mean(success),
        "q_of_data": rows[-1].get("health/q_mean"),
        "rows": data.steps,
        "seconds": time.perf_counter() - began,
        "settings": settings,
        "precision": args.precision,
        "git_commit": machine()["git_commit"],
    }


def table(results: dict[str, Any], kinds: list[str]) -> str:
    """Success rates in percent, as Markdown: mean over seeds and each, beside the paper's."""
    lines = ["| |" + "|".join(kinds) + "|", "|-|" + "-|" * len(kinds)]
    for row, (name, *_) in ALGORITHMS.items():
        cells = []
        for kind in kinds:
            each = [100.0 * found["success_mean"] for found in results["runs"].get(f"{kind}: {row}", {}).values()]
            cells.append(f"{statistics.mean(each):.0f} ({', '.join(f'{x:.0f}' for x in each)})" if each else "-")
        lines.append(f"| {row}, as {name} |" + "|".join(cells) + "|")
    lines += [
        f"| the paper's {name} |" + "|".join(PAPER[kind][name] for kind in kinds) + "|" for name in PAPER["stitch"]
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--maze", default="medium", choices=["medium", "large"])
    parser.add_argument("--data", nargs="+", default=["navigate", "stitch"], choices=["navigate", "stitch"])
    parser.add_argument("--steps", type=int, default=1_000_000, help="of each dataset")
    parser.add_argument("--passes", type=int, default=2, help="how often every trajectory is given goals")
    parser.add_argument("--algorithms", nargs="+", default=list(ALGORITHMS), choices=list(ALGORITHMS))
    parser.add_argument("--updates", type=int, default=100_000)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--episodes", type=int, default=20, help="of every task")
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--out", type=Path, help="default: runs/pointmaze-MAZE")
    args = parser.parse_args()
    folder: Path = args.out or Path("runs") / f"pointmaze-{args.maze}"
    folder.mkdir(parents=True, exist_ok=True)
    add_ogbench()
    for kind in args.data:
        place = folder / f"{kind}.npz"
        with claimed(place) as mine:
            if mine and not place.exists():
                found = play_oracle(args.maze, kind, args.steps, seed=0)
                np.savez_compressed(folder / f"{kind}.part.npz", **found._asdict())
                (folder / f"{kind}.part.npz").replace(place)
            elif not mine:
                raise SystemExit(f"another call makes {place}: start this one when it is there")
    for kind, row, seed in itertools.product(args.data, args.algorithms, range(args.seeds)):
        place = folder / f"{kind} - {row} - {seed}.json"
        with claimed(place) as mine:
            if not mine or place.exists():
                continue
            with np.load(folder / f"{kind}.npz") as stored:
                found = Trajectories(stored["position"], stored["action"])
            result = train(row, found, args.maze, args, seed)
            write_text_atomic(place, json.dumps(result, indent=1))
        print(f"{kind}, {row}, seed {seed}: {result['success']} in {result['seconds']:.0f} s", flush=True)
    command = shlex.join(["python", *sys.argv])
    known: dict[str, Any] = {"command": command, "machine": machine(), "maze": args.maze, "updates": args.updates}
    known |= {"steps": args.steps, "passes": args.passes, "episodes": args.episodes, "runs": {}, "paper": PAPER}
    for place in sorted(folder.glob("* - * - *.json")):
        kind, row, seed = place.stem.split(" - ")
        known["runs"].setdefault(f"{kind}: {row}", {})[seed] = json.loads(place.read_text())
    write_text_atomic(folder / "RESULT.json", json.dumps(known, indent=1))
    print(table(known, args.data))


if __name__ == "__main__":
    main()
