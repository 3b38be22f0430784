"""Which saved tensors are kept by hooks, as of checkpointing: to look at one computes it anew.

A saved tensor tells from torch 2.10 on. Before, what is noted here does: while somebody follows,
the numbers of the nodes that were made while hooks were on. Afterwards torch is as it was.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node

from gradscope.autograd.torch_internals import nodes
from gradscope.autograd.torch_internals.interfaces import Unavailable

_UNPACK_HOOK = "SavedTensor.unpack_hook"
_PUSH = "_push_saved_tensors_default_hooks"
_POP = "_pop_saved_tensors_default_hooks"
_MOST_STRETCHES = 2**16  # of two numbers each


class _Stretches:
    """The numbers of one thread's nodes that were made while hooks were on."""

    def __init__(self, are_on: bool) -> None:
        self._depth = int(are_on)
        self._starts = [0] if are_on else []
        self._stops: list[int] = []
        self._forgotten = 0  # numbers below are not known any more

    def begin(self) -> None:
        self._depth += 1
        if self._depth == 1:
            self._starts.append(nodes.next_sequence_number())

    def end(self) -> None:
        if self._depth == 0:
            return  # another thread pushed what this one pops
        self._depth -= 1
        if self._depth == 0:
            self._stops.append(nodes.next_sequence_number())
            if len(self._stops) > _MOST_STRETCHES:
                half = _MOST_STRETCHES // 2
                self._forgotten = self._stops[half - 1]
                del self._starts[:half], self._stops[:half]

    def hold(self, number: int) -> bool:
        """Whether hooks keep what node `number` saved; so they may where that is forgotten."""
        place = bisect_right(self._starts, number) - 1
        if place < 0:
            return number < self._forgotten
        return place == len(self._stops) or number < self._stops[place]


class _Following:
    """Notes stretches for as long as somebody follows, in place of what pushes and pops hooks."""

    def __init__(self) -> None:
        self._count = 0
        self._undo: list[Callable[[], None]] = []
        self._threads: dict[int, _Stretches] = {}

    @property
    def is_on(self) -> bool:
        return bool(self._undo)

    def holds(self, number: int) -> bool:
        """Whether hooks keep what a node saved; which thread made it is not known."""
        return any(stretches.hold(number) for stretches in list(self._threads.values()))

    def begin(self) -> None:
        self._count += 1
        own: Any = torch._C._autograd
        push, pop = getattr(own, _PUSH, None), getattr(own, _POP, None)
        if self._count > 1 or push is None or pop is None or _tells_itself():
            return
        if nodes.next_sequence_number() < 0:
            return
        threads = self._threads = {threading.get_ident(): _Stretches(_are_on())}

        def here() -> _Stretches:
            return threads.setdefault(threading.get_ident(), _Stretches(False))

        def pushed(*args: Any) -> None:
            push(*args)
            here().begin()

        def popped() -> None:
            pop()
            here().end()

        for name, ours, theirs in ((_PUSH, pushed, push), (_POP, popped, pop)):
            setattr(own, name, ours)
            self._undo.append(partial(_put_back, name, ours, theirs))

    def end(self) -> None:
        self._count -= 1
        if self._count == 0:
            while self._undo:
                self._undo.pop()()


def _put_back(name: str, ours: object, theirs: object) -> None:
    if getattr(torch._C._autograd, name, None) is ours:
        setattr(torch._C._autograd, name, theirs)


def _are_on() -> bool:
    """Whether hooks are on in this thread."""
    try:
        with nodes.no_new_hooks(none_on=True):
            return False
    except RuntimeError:
        return True
    except AttributeError:  # said by `missing`
        return False


def _tells_itself() -> bool:
    """Whether a saved tensor of this torch tells that a hook keeps it."""
    with torch.inference_mode(False), torch.enable_grad():
        x = torch.ones(1, device="cpu", requires_grad=True)
        raw = getattr(x.mul(x).grad_fn, "_raw_saved_self", None)
    try:
        nodes.of_node(raw, "unpack_hook", _UNPACK_HOOK)
    except Unavailable:
        return False
    return True


_following = _Following()


class FollowedHooks:
    """Lets `is_kept_elsewhere` tell of what is computed from now on, until `remove`."""

    def __init__(self) -> None:
        self._is_on = True
        _following.begin()

    def remove(self) -> None:
        """Stop; the last one to do so leaves torch as it was."""
        if self._is_on:
            self._is_on = False
            _following.end()


def can_follow() -> bool:
    """Whether this torch tells, by itself or while it is followed, what hooks keep."""
    own = torch._C._autograd
    return (hasattr(own, _PUSH) and hasattr(own, _POP)) or _tells_itself()


def is_kept_elsewhere(node: Node, name: str) -> bool:
    """Whether hooks keep the saved tensor `name`: checkpointing would compute it anew.

    Raises
    ------
    Unavailable
        If `node` never saves anything of this name, or nothing tells.
    """
    raw = nodes.of_node(node, f"_raw_saved_{name}", "Node._raw_saved_*")
    if raw is None:
        return False
    try:
        return nodes.of_node(raw, "unpack_hook", _UNPACK_HOOK) is not None
    except Unavailable:
        if not _following.is_on:
            raise
    return _following.holds(nodes.sequence_number(node))


def saved_tensor(node: Node, name: str) -> Tensor | None:
    """Return the tensor that `node` has saved as `name`; None where it is not to be had at once.

    So it is where the node does not need it, where it was changed in place since, and where hooks
    keep it elsewhere.
    """
    if is_kept_elsewhere(node, name):
        return None
    try:
        found = nodes.saved(node, name)
    except RuntimeError:
        return None
    return found if isinstance(found, Tensor) else None
