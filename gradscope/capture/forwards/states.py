"""Recurrent cells that are handed their own state without its graph, as by detach()."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor

from gradscope.capture.net.recurrence import FEWEST


class _Handed(NamedTuple):
    """Where the state lies that a call was given, whether it had a graph, and where the new one.

    It lies at 0 where none was given, nothing is computed, or that is not known.
    """

    given: int
    has_graph: bool
    returned: int


class States:
    """The calls of recurrent cells within one forward."""

    def __init__(self) -> None:
        self._calls: dict[str, list[_Handed]] = defaultdict(list)

    def note(self, name: str, given: Sequence[Tensor], returned: Sequence[Tensor]) -> None:
        """Note that cell `name` made of the state `given` the one that it `returned`."""
        if returned:
            has_graph = bool(given) and given[0].requires_grad
            handed = _Handed(_address(given), has_graph, _address(returned))
            self._calls[name].append(handed)

    def cut(self) -> dict[str, int]:
        """Return the cells that got what they had returned, and never its graph, with their calls.

        `detach()` and `.data` leave it where it is in memory.
        """
        return {
            name: len(calls)
            for name, calls in self._calls.items()
            if len(calls) >= FEWEST
            and all(
                later.given == earlier.returned != 0 and not later.has_graph
                for earlier, later in pairwise(calls)
            )
        }


def _address(tensors: Sequence[Tensor]) -> int:
    """Return where the first of `tensors` lies; 0 for one of a kind that may not say."""
    return tensors[0].data_ptr() if tensors and type(tensors[0]) is Tensor else 0
