"""A model, or a part of one, that is called once for each time step, and handed its own state.

What each call returns and the next one takes, as it is or after an operation or two, is told by the
numbers of the nodes that made it. The layers that this state comes from go through time: their
gradients in the first and in the last call of a chain are compared, as those of layers that are
called repeatedly within one forward.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Literal, NamedTuple

from torch.autograd.graph import Node

from gradscope.autograd.graph import Call
from gradscope.autograd.torch_internals import Unavailable, sequence_number
from gradscope.capture.recurrence import FEWEST, OnTheWay

_Made = tuple[int, int, type[Node]]
"""What tells a value from all others: number and kind of its node, and its slot."""

_OPERATIONS, _OPERANDS = 2, 4


class Chain:
    """Calls that hand on a state, and the layers that this comes from."""

    def __init__(self) -> None:
        self.calls = 0
        self.layers: set[int] = set()


class Link(NamedTuple):
    """One call of a chain, `place` from its beginning."""

    chain: Chain
    place: int

    def end(self) -> Literal["first", "last"] | None:
        """Return which end of the chain it is, as far as that goes by now."""
        if self.chain.calls < FEWEST:
            return None
        if self.place == 0:
            return "first"
        return "last" if self.place == self.chain.calls - 1 else None


class Chains:
    """Finds the calls that hand on a state, within a step."""

    def __init__(self) -> None:
        self._last: dict[int, tuple[Chain, dict[_Made, frozenset[int]]]] = {}

    def clear(self) -> None:
        """Begin anew: a step has ended."""
        self._last.clear()

    def follow(self, module: int, call: Call, way: OnTheWay) -> Link | None:
        """Return the place of an outermost call in its chain; None if there cannot be one.

        Parameters
        ----------
        module : int
            That was called.
        call : Call
        way : OnTheWay
            None in it of a call that has a time of its own.
        """
        last = self._last.pop(module, None)
        if not way.behind:
            return None
        with suppress(Unavailable):
            return self._follow(module, call, way, last or (Chain(), {}))
        return None

    def _follow(
        self,
        module: int,
        call: Call,
        way: OnTheWay,
        last: tuple[Chain, dict[_Made, frozenset[int]]],
    ) -> Link:
        chain, handed = last
        # one value may be given or returned once or twice in graphs of one structure
        given = list(zip(call.inputs, way.after, strict=False)) if handed else []
        ways = [
            handed[made] & after for edge, after in given for made in _given(edge) if made in handed
        ]
        if not ways:
            chain = Chain()
        else:
            layers = set().union(*ways)
            chain.layers = layers if chain.calls == 1 else chain.layers & layers
        chain.calls += 1
        self._last[module] = chain, dict(zip(_made(call.outputs), way.behind, strict=False))
        return Link(chain, chain.calls - 1)


def _given(edge: tuple[Node, int]) -> Iterator[_Made]:
    """Yield the value that a call was given, and those that it was made of in two operations.

    A state is often masked in between, or a step along it added to it.
    """
    edges = [edge]
    for _ in range(_OPERATIONS):
        yield from _made(edges)
        before = [edge for node, _ in edges for edge in node.next_functions[:_OPERANDS]]
        edges = [(node, slot) for node, slot in before if node is not None]
    yield from _made(edges)


def _made(edges: Iterable[tuple[Node, int]]) -> Iterator[_Made]:
    for node, slot in edges:
        yield sequence_number(node), slot, type(node)
