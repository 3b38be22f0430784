"""The one exception type that gradscope raises for a user's mistake, and its warning category."""

from __future__ import annotations


class GradscopeError(ValueError):
    """What was given cannot be used; the message says what, where, and what to do."""


class GradscopeWarning(UserWarning):
    """Something could not be recorded or read; training or reading went on without it."""
