"""An environment that misbehaves once, as HOSTILE (JSON) says: {"call": "step", "at": 7, "act": "nan"}."""

from __future__ import annotations

import json
import os
import signal
import time
from typing import Any

import gymnasium as gym
import numpy as np

ERRORS: dict[str, BaseException] = {
    "ValueError": ValueError("wrong \x1b]0;title\x07 \x1b[2J value"),
    "KeyError": KeyError("missing"),
    "StopIteration": StopIteration(),
    "GeneratorExit": GeneratorExit(),
    "SystemExit": SystemExit(0),
    "SystemExit text": SystemExit("leaving"),
    "MemoryError": MemoryError(),
    "RecursionError": RecursionError("too deep"),
    "OSError": OSError(28, "No space left on device"),
    "BrokenPipeError": BrokenPipeError(),
    "EOFError": EOFError(),
    "AssertionError": AssertionError(),
    "UnicodeError": UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
    "Warning": DeprecationWarning("old"),
    "surrogate": ValueError("half \ud83d emoji"),
    "long": ValueError("x" * 100_000),
}
OBSERVATIONS: dict[str, Any] = {
    "nan": lambda o: np.full_like(o, np.nan),
    "inf": lambda o: np.full_like(o, np.inf),
    "shape": lambda o: o[:-1],
    "scalar": lambda o: o[0],
    "one": lambda o: o[:1],
    "none": lambda o: None,
    "text": lambda o: "observation",
    "list": lambda o: o.tolist(),
    "objects": lambda o: np.array([None] * len(o), dtype=object),
    "complex": lambda o: o.astype(complex),
    "double": lambda o: o.astype(np.float64),
    "huge": lambda o: np.full(len(o), 1e300),
    "dict": lambda o: {"obs": o},
    "extra axis": lambda o: o[None],
    "empty": lambda o: o[:0],
    "other memory": lambda o: np.repeat(o, 2)[::2],
}
REWARDS: dict[str, Any] = {
    "none": None, "nan": float("nan"), "inf": float("-inf"), "huge": 1e300, "array": np.array([1.0]),
    "zero-d": np.array(1.0), "text": "x", "digits": "1", "complex": 1 + 1j, "bool": True, "int": 10**400, "list": [1.0],
}  # fmt: skip
FLAGS: dict[str, Any] = {"none": None, "text": "no", "array": np.array([True]), "number": 2, "nan": float("nan")}
INFOS: dict[str, Any] = {
    "none": None, "list": [], "text": "info", "odd keys": {1: 2, None: 3}, "mask": {"action_mask": np.ones(2, np.int8)},
    "short mask": {"action_mask": np.ones(1, np.int8)}, "no action": {"action_mask": np.zeros(2, np.int8)},
    "arrays": {"x": np.zeros(1000)}, "final": {"final_obs": "x"}, "varied": {"y": [1, "2"]},
}  # fmt: skip
ENDS = ("exit", "segfault", "hang")
"""What only a process of the environment's own may do."""

ACTS = [
    *(f"raise {name}" for name in ERRORS),
    *(f"observation {name}" for name in OBSERVATIONS),
    *(f"reward {name}" for name in REWARDS),
    *(f"terminated {name}" for name in FLAGS),
    *(f"truncated {name}" for name in FLAGS),
    *(f"info {name}" for name in INFOS),
    *("return nothing", "return four", "return six", "return text", "both flags", "print", "warn", "slow", "chdir"),
]


class Hostile(gym.Env[Any, Any]):
    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 30}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None) -> None:
        plan = json.loads(os.environ["HOSTILE"])
        self.call, self.at, self.act = plan["call"], plan["at"], plan["act"]
        self.count: dict[str, int] = {}
        self.t = 0
        self.render_mode = render_mode
        self.observation_space = gym.spaces.Box(-10.0, 10.0, (3,), np.float32)
        self.action_space = gym.spaces.Discrete(2) if plan["discrete"] else gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self._now("init", None)

    def _now(self, call: str, result: Any) -> Any:
        self.count[call] = self.count.get(call, 0) + 1
        if call != self.call or self.count[call] != self.at:
            return result
        return self._misbehave(*self.act.split(" ", 1), result=result)

    def _misbehave(self, kind: str, what: str = "", *, result: Any) -> Any:
        parts = {"observation": 0, "reward": 1, "terminated": 2, "truncated": 3, "info": -1}
        if kind == "raise":
            raise ERRORS[what]
        if kind == "exit":
            os._exit(0)
        if kind == "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        if kind == "hang":
            time.sleep(1000.0)
        if kind == "print":
            print("an environment speaks \x1b[2J")
        if kind == "warn":
            import warnings

            warnings.warn("an environment \x1b[2J warns", stacklevel=1)
        if kind == "slow":
            time.sleep(0.5)
        if kind == "chdir":
            os.chdir("/")
        if kind == "return":
            return {"nothing": None, "four": result[:-1] if result else None, "six": (*(result or ()), 0)}.get(
                what, "x"
            )
        if kind == "both":
            return (*result[:2], True, True, result[-1]) if result and len(result) == 5 else result
        if kind in parts and result:
            values = list(result)
            if parts[kind] < len(values) - (kind != "info"):
                chosen = {"reward": REWARDS, "terminated": FLAGS, "truncated": FLAGS, "info": INFOS}.get(kind, {})
                new = OBSERVATIONS[what](values[0]) if kind == "observation" else chosen[what]
                values[parts[kind]] = new
            return tuple(values)
        return result

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return self._now("reset", (self._obs(), {}))

    def step(self, action: Any) -> Any:
        self.t += 1
        return self._now("step", (self._obs(), 1.0, self.t >= 9, False, {}))

    def _obs(self) -> Any:
        return self.np_random.uniform(-1.0, 1.0, 3).astype(np.float32)

    def render(self) -> Any:
        return self._now("render", np.zeros((8, 8, 3), np.uint8))

    def close(self) -> None:
        self._now("close", None)


gym.register("Hostile-v0", Hostile, max_episode_steps=20)
