"""The ``steepest`` command: one function per verb, each a thin face of ``steepest.api``.

torch is imported only where a verb begins its work: help, and what is wrong with an argument, come at once.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import signal
import sys
import threading
import warnings
from functools import partial
from pathlib import Path
from typing import Any

from steepest.cli import agents, checks, datasets, language, ope, preferences, sweep, train
from steepest.cli.options import asks_for_help
from steepest.cli.usage import USAGE
from steepest.errors import SteepestError, UsageError
from steepest.files.space import in_bytes
from steepest.files.terminal import ENDING, escaped, forgiving_streams, open_descriptors
from steepest.language.parallel.torchrun import launch

TRAINING = ("train", "sft", "reward", "dpo", "rlhf")
"""Verbs whose purpose is not what they print."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code: 0, 1 for failure, 2 for misuse, 130 after Ctrl-C, 143 after SIGTERM.

    SIGHUP, what a lost terminal sends, SIGXCPU and SIGUSR1 are as SIGTERM.

    Output that cannot be written ends no training; the code is 1 then.

    Of several processes that torchrun started, the main one alone writes on standard output; and one alone says why
    they ended.
    """
    argv = list(sys.argv[1:] if arguments is None else arguments)
    open_descriptors()
    trains = argv[:1] and argv[0] in TRAINING
    with forgiving_streams(raises=not trains) as out:
        if launch().rank != 0:
            with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
                return _run(argv)
        code = _run(argv)
        out.flush()
        if trains and out.failure is not None and not isinstance(out.failure, BrokenPipeError):
            _complain(out.said())
        return code or int(out.failure is not None)


def _run(argv: list[str]) -> int:
    terminated = False

    def on_terminate(*_: object) -> None:
        nonlocal terminated
        terminated = True
        raise KeyboardInterrupt

    # Python lets only the main thread handle signals.
    in_main_thread = threading.current_thread() is threading.main_thread()
    ends = [n for n in ENDING if in_main_thread and signal.getsignal(n) != signal.SIG_IGN]
    previous = {number: signal.signal(number, on_terminate) for number in ends}
    show_warning = warnings.showwarning
    warnings.showwarning = _show_warning
    try:
        code = _dispatch(argv)
        sys.stdout.flush()
        return code
    except SystemExit as stop:  # how the option parser ends
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 2
    except UsageError as error:
        _complain(str(error))
        return 2
    except SteepestError as error:
        _complain(str(error))
        return 1
    except KeyboardInterrupt:
        if launch().rank == 0:
            _complain("terminated" if terminated else "interrupted")
        return 143 if terminated else 130
    except BrokenPipeError:  # whoever read our output has seen enough
        return 1
    except MemoryError as error:
        _complain(f"out of memory{': ' if str(error) else ''}{error}")
        return 1
    except Exception as error:
        if os.environ.get("STEEPEST_DEBUG"):
            raise
        if "allocate memory" in str(error) or "out of memory" in str(error):
            _complain(f"out of memory: {_allocation(str(error))}")
            return 1
        _complain(
            f"internal error, {type(error).__name__}: {error}\n"
            "This is a bug in steepest. Run again with STEEPEST_DEBUG=1 for the traceback, and report it."
        )
        return 1
    finally:
        warnings.showwarning = show_warning
        for number, handler in previous.items():
            signal.signal(number, handler)


def _allocation(text: str) -> str:
    """Return what PyTorch says of memory that it did not get, without its places in C++."""
    asked = re.search(r"tried to allocate (\d+) bytes", text)
    return f"{in_bytes(int(asked[1]))} at once are not there" if asked else text.strip().splitlines()[0]


def _complain(text: str) -> None:
    """Say why the command ends; of several processes, one says it."""
    distributed = sys.modules.get("steepest.language.parallel.processes")  # which loads torch: there if they have met
    if launch().rank == 0 if distributed is None else distributed.has_the_last_word():
        print(f"steepest: {escaped(text)}", file=sys.stderr)


def _show_warning(message: Warning | str, category: type[Warning], *_: Any) -> None:
    """Warnings as one line, without the file and line of library code that mean nothing to the user."""
    if not issubclass(category, DeprecationWarning) and launch().rank == 0:
        print(f"steepest: warning: {escaped(' '.join(str(message).split()))}", file=sys.stderr)


def _dispatch(argv: list[str]) -> int:
    verbs = {
        "train": train.agents,
        "evaluate": agents.evaluate,
        "sft": partial(train.language, "sft", "demonstrations"),
        "reward": partial(train.language, "reward", "preferences"),
        "dpo": partial(train.language, "dpo", "preferences"),
        "rlhf": train.rlhf,
        "generate": language.generate,
        "compare": language.compare,
        "plot": agents.plot,
        "verify": checks.verify,
        "collect": datasets.collect,
        "dataset": datasets.show,
        "ope": ope.ope,
        "sample": preferences.sample,
        "label": preferences.label,
        "labels": preferences.labels,
        "sweep": sweep.sweep,
        "estimators": checks.estimators,
        "list": _list,
    }
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0 if argv else 2
    if argv[0] == "--version":
        from steepest import __version__

        print(f"steepest {__version__}")
        return 0
    if argv[0] not in verbs:
        near = difflib.get_close_matches(argv[0], verbs, n=1)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise UsageError(f"no verb is called {argv[0]!r}{hint} Known: {', '.join(verbs)} (steepest --help)")
    if launch().world_size > 1 and argv[0] not in train.TOGETHER:
        raise UsageError(
            f"{argv[0]} runs in one process; start it without torchrun, which is for {', '.join(train.TOGETHER)}"
        )
    return verbs[argv[0]](argv[1:])


def _list(argv: list[str]) -> int:
    if asks_for_help(argv):
        print(
            "usage: steepest list\n\nList the algorithms and the families of environments, with the extras they need."
        )
        return 0
    if argv:
        raise UsageError(f"list takes no arguments; got {' '.join(argv)}")
    from importlib.util import find_spec

    from steepest.algorithms import ALGORITHMS

    wide = 2 + max(map(len, ALGORITHMS))
    print("algorithms (steepest train ALGORITHM ENV; sections are of the deep RL notes)")
    for name, (_, line) in sorted(ALGORITHMS.items()):
        print(f"  {name:{wide}}{line}")
    print("\nlanguage models (steepest VERB MODEL DATA)")
    there = "installed" if find_spec("transformers") else 'pip install "steepest[language]"'
    for name, line in (
        ("sft", "supervised fine-tuning on demonstrations (notes 2.2)"),
        ("reward", "reward model from preferences (notes 2.2.1)"),
        ("rlhf", "PPO, RLOO or GRPO on prompts and a reward (notes 2.2.1): steepest rlhf ppo MODEL DATA"),
        ("dpo", "direct preference optimisation (notes 2.2.2)"),
    ):
        print(f"  {name:{wide}}{line}  ({there})")
    print("\nenvironments (any Gymnasium id; families other than classic need an extra)")
    for extra, module, example in (
        ("", "gymnasium", "CartPole-v1, Acrobot-v1, Pendulum-v1, MountainCar-v0"),
        ("mujoco", "mujoco", "HalfCheetah-v5, Hopper-v5, Walker2d-v5, Ant-v5"),
        ("box2d", "Box2D", "LunarLander-v3, BipedalWalker-v3"),
        ("atari", "ale_py", "ALE/Pong-v5, ALE/Breakout-v5"),
        ("envpool", "envpool", "--vectorization envpool: HalfCheetah-v5, CartPole-v1, Pong-v5"),
    ):
        there = "installed" if find_spec(module) else f'pip install "steepest[{extra}]"'
        print(f"  {extra or 'classic':{wide}}{example}  ({there})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
