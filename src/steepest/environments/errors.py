"""What goes wrong with environments, said to the person who has to put it right."""

from __future__ import annotations

from steepest.errors import RunError, UsageError


class UnsupportedSpaceError(UsageError, ValueError):
    """An observation or action space that no policy here can take."""


class UnknownEnvironment(UsageError, ValueError):
    """A name under which no environment is registered."""


class MissingExtra(UsageError, ImportError):
    """The environment needs a package that is not installed."""


class EnvFailure(RunError, RuntimeError):
    """An environment raised, or returned something its spaces do not allow."""
