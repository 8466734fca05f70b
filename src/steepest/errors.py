"""Errors for people: a wrong call, or a failure while running."""


class SteepestError(Exception):
    """Any error whose message is meant for the user as it stands."""


class UsageError(SteepestError):
    """The call or the command line was wrong; the command exits with code 2."""


class RunError(SteepestError):
    """The request was right but something failed; the command exits with code 1."""


class NonFiniteError(RunError):
    """Something that is learned became infinite or no number: these settings do not work, others may."""


def require(condition: bool, name: str, value: object, expected: str) -> None:
    """Raise the one kind of error that a bad configuration value gives."""
    if not condition:
        raise UsageError(f"{name} is {value!r}; expected {expected}")
