"""Which tensors may be handed on as a copy, as taps in compiled graphs do, and no one can tell.

A copy differs from the tensor itself where somebody keeps the one and works in place on the other,
or reads the one and the gradient is of the other. Whoever does so shows it in a forward that runs
eagerly: there versions and identities tell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from gradscope.autograd.torch_internals import version
from gradscope.capture.forwards.plan import Place
from gradscope.capture.net.hiding import Hook


class Aliases:
    """Follows the tensors that the calls of one forward take and return.

    Parameters
    ----------
    tensors_in : called with arguments or an output
        Returns the tensors that require grad, in order.
    """

    def __init__(self, tensors_in: Callable[[object], Sequence[Tensor]]) -> None:
        self._tensors_in = tensors_in
        self._versions: dict[Place, tuple[Tensor, int]] = {}
        self._unsafe: set[Place] = set()
        self._open: list[tuple[int, int, Sequence[Tensor]]] = []
        self._calls = 0

    def enter(self, number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note what module `number` is called with."""
        tensors = self._tensors_in((args, kwargs))
        self._open.append((number, self._calls, tensors))
        self._note("in", self._calls, tensors)
        self._calls += 1

    def leave(self, number: int, module: nn.Module, output: object) -> None:
        """Note what a module returned."""
        while self._open:
            opened, call, given = self._open.pop()
            if opened == number:
                break
        else:
            return
        tensors = self._tensors_in(output)
        memory = {_memory(x) for x in given}
        kept = {id(value) for value in vars(module).values() if isinstance(value, Tensor)}
        watched = any(not isinstance(hook, Hook) for hook in module._forward_hooks.values())
        for position, x in enumerate(tensors):
            if id(x) in kept or watched:
                self._unsafe.add((call, "out", position))
            if _memory(x) in memory:
                self._note("out", call, [x], position)

    def unsafe(self) -> set[Place]:
        """Return where a copy would be told from the tensor; to be asked when all is over."""
        changed = {place for place, (x, before) in self._versions.items() if version(x) != before}
        return self._unsafe | changed

    def _note(self, side: str, call: int, tensors: Iterable[Tensor], first: int = 0) -> None:
        for position, x in enumerate(tensors, first):
            self._versions[call, side, position] = x, version(x)


def _memory(x: Tensor) -> object:
    """Return what two views of the same memory have in common."""
    try:
        return x.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # a sparse tensor has none
        return id(x)
