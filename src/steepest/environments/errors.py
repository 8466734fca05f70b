"""Errors about environments."""

from __future__ import annotations

from gymnasium.error import DependencyNotInstalled

from steepest.errors import RunError, UsageError


class UnsupportedSpaceError(UsageError, ValueError):
    """An observation or action space that no policy here can take."""


class UnknownEnvironment(UsageError, ValueError):
    """A name under which no environment is registered."""


class MissingExtra(UsageError, ImportError):
    """The environment needs a package that is not installed."""


class EnvFailure(RunError, RuntimeError):
    """An environment raised, or returned something its spaces do not allow."""


_INSTALL = {
    "mujoco": 'pip install "steepest[mujoco]"',
    "Box2D": 'pip install "steepest[box2d]"',
    "ale_py": 'pip install "steepest[atari]"',
    "cv2": 'pip install "steepest[atari]"',
    "envpool": 'pip install "steepest[envpool]"',
    "pygame": 'pip install "steepest[video]"',
    "jax": 'pip install "gymnasium[jax]"',
}


def missing_extra(name: str, error: ImportError | DependencyNotInstalled) -> MissingExtra:
    """Return the error to raise where ``name`` needs a package whose import raised ``error``."""
    missing = _missing_module(error)
    if missing is None:
        return MissingExtra(f"{name} cannot be made: {error}")
    line = _INSTALL.get(missing, f"pip install {missing}")
    return MissingExtra(f"{name} needs {missing}, which is not installed. Run: {line}")


def _missing_module(error: BaseException | None) -> str | None:
    """The top-level package whose absence caused ``error``."""
    while error is not None:
        if isinstance(error, ModuleNotFoundError) and error.name:
            return error.name.partition(".")[0]
        error = error.__cause__ or error.__context__
    return None
