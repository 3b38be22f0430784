"""The one exception type that gradscope raises for a user's mistake, and its warning category."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class GradscopeError(ValueError):
    """What was given cannot be used; the message says what, where, and what to do."""


class GradscopeWarning(UserWarning):
    """Something could not be recorded or read; training or reading went on without it."""


@contextmanager
def extra_for(what: str) -> Iterator[None]:
    """Say how to get the packages of the extra `dashboard`, which `what` needs, if one is missing.

    Raises
    ------
    GradscopeError
        In place of the ModuleNotFoundError.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise GradscopeError(
            f"{what} needs {error.name}, which is not installed;"
            " run: pip install 'gradscope-torch[dashboard]'"
        ) from error
