"""Our hooks are no part of the model: they are in no pickle, no copy and no script of it.

While any model is watched, `nn.Module` is pickled and copied, and modules are scripted, as if the
hooks of gradscope were not there; afterwards both are as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from torch import nn

from gradscope.autograd import torch_internals

_IN_STATE = ("_forward_hooks", "_forward_pre_hooks")
_MARKS = ("_forward_hooks_with_kwargs", "_forward_hooks_always_called")
_PRE_MARKS = ("_forward_pre_hooks_with_kwargs",)


class Hook:
    """What marks a hook as one of ours."""


def without_ours(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a module's `__dict__` without our hooks."""
    clean = dict(state)
    for hooks, marks in zip(_IN_STATE, (_MARKS, _PRE_MARKS), strict=True):
        ours = [key for key, hook in clean.get(hooks, {}).items() if isinstance(hook, Hook)]
        for name in (hooks, *marks) if ours else ():
            if name in clean:
                kept = clean[name].copy()
                for key in ours:
                    kept.pop(key, None)
                clean[name] = kept
    return clean


def _reduce(module: nn.Module, protocol: Any) -> Any:
    reduced = object.__reduce_ex__(module, protocol)
    if isinstance(reduced, tuple) and len(reduced) > 2 and isinstance(reduced[2], dict):
        return (*reduced[:2], without_ours(reduced[2]), *reduced[3:])
    return reduced


class _Hiding:
    """Both replacements, in place for as long as somebody is counted."""

    def __init__(self) -> None:
        self._count = 0
        self._undo: list[Callable[[], None]] = []

    def begin(self) -> None:
        self._count += 1
        if self._count > 1:
            return
        if "__reduce_ex__" not in vars(nn.Module):
            nn.Module.__reduce_ex__ = _reduce  # type: ignore[method-assign, assignment]
            self._undo.append(self._undo_reduce)
        self._undo.append(torch_internals.script_without(lambda hook: isinstance(hook, Hook)))

    def end(self) -> None:
        self._count -= 1
        if self._count == 0:
            while self._undo:
                self._undo.pop()()

    @staticmethod
    def _undo_reduce() -> None:
        if vars(nn.Module).get("__reduce_ex__") is _reduce:
            with suppress(AttributeError):
                del nn.Module.__reduce_ex__


_hiding = _Hiding()


class HiddenHooks:
    """Keeps our hooks out of pickles, copies and scripts until `remove`."""

    def __init__(self) -> None:
        self._is_on = True
        _hiding.begin()

    def remove(self) -> None:
        """Stop; the last one to do so leaves everything as it was."""
        if self._is_on:
            self._is_on = False
            _hiding.end()
