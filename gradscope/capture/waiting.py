"""Tensors on a GPU that wait to be read together: a launch costs more than to read a small tensor.

A tensor that waits may be overwritten before its turn: in place, which its version tells, or by
code that autograd does not see. So at first each is read at once and once more late, and may wait
only where both agreed: that is found out for each place of each structure. How much may be held on
to meanwhile is bounded.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from gradscope.autograd.torch_internals import version
from gradscope.measure.gpu_kernel import Kernel, Tensors, by_torch
from gradscope.measure.sums import Derivation, Rows

SMALL = 2**23
"""Elements of a tensor that may wait."""

_ELEMENTS = 2**25  # that wait at most, and how many tensors
_TENSORS = 512

Meaning = tuple[Derivation, int, tuple[Any, ...]]
"""What makes readings of a row, of how many elements, and the keys (rows.py) of these."""

Place = Hashable
"""What tells a tensor of a structure from all others; None for one that must not wait."""

OURS = "ours"
"""The place of tensors that nobody but gradscope knows."""


class Known(NamedTuple):
    """How a tensor is read that may wait, and what its row is of.

    `tag` tells whether it is still the same that is to be read at its place.
    """

    tag: object
    kind: int
    dtype: torch.dtype
    elements: int
    center: float
    radius: float
    meanings: tuple[Meaning, ...]


class Trust:
    """Which tensors of one structure may wait: those that are proven to read the same late.

    Attributes
    ----------
    proven : dict of place to Known
    lost : bool
        Whether one that was proven has been overwritten since; its reading is NaN.
    """

    def __init__(self) -> None:
        self.proven: dict[Place, Known] = {}
        self.lost = False
        self._refuted: set[Place] = set()

    def judge(self, trial: Trial, sums: NDArray[np.floating]) -> None:
        """Compare the sums that were read at once with those that were read late."""
        at_once, late = sums[trial.at_once], sums[trial.late]
        bound = 1e-6 * np.abs(at_once) + 1e-6 * np.sqrt(np.abs(at_once[0]))
        with np.errstate(invalid="ignore"):
            same = (np.abs(at_once - late) <= bound) | (at_once == late)
        if not (same | (np.isnan(at_once) & np.isnan(late))).all():
            self.refute(trial.place)
        elif trial.place not in self._refuted:
            self.proven[trial.place] = trial.known

    def refute(self, place: Place) -> None:
        """Let no tensor at `place` wait any more."""
        self._refuted.add(place)
        self.proven.pop(place, None)


class Trial(NamedTuple):
    """Two rows, by their numbers, that hold the same if the tensor at `place` may wait."""

    trust: Trust
    place: Place
    known: Known
    at_once: int
    late: int


class Waiting:
    """Those of one stream.

    Parameters
    ----------
    kernel : Kernel
    stream : torch.cuda.Stream or None
        None for tensors on the CPU, as Triton's interpreter reads them.
    """

    def __init__(self, kernel: Kernel, stream: torch.cuda.Stream | None) -> None:
        self._kernel = kernel
        self._stream = stream
        self._tensors: list[_Waits] = []
        self._elements = 0

    def add(
        self,
        known: Known,
        tensors: Tensors,
        rows: Rows,
        number: int,
        trust: Trust | None,
        place: Place,
    ) -> None:
        """Let sums be read, as `Kernel.read` does, with others, to row `number` of `rows`."""
        self._tensors.append((known, tensors, _versions(tensors), rows, number, trust, place))
        self._elements += known.elements
        if self._elements > _ELEMENTS or len(self._tensors) == _TENSORS:
            self.read()

    def read(self) -> None:
        """Read all that wait."""
        if not self._tensors:
            return
        stream = self._stream
        if stream is not None and torch.cuda.current_stream(stream.device) != stream:
            with torch.cuda.stream(stream):
                return self.read()
        waiting, self._tensors, self._elements = self._tensors, [], 0
        alike: dict[tuple[int, torch.dtype, torch.dtype], list[_Waits]] = defaultdict(list)
        for one in waiting:
            known, tensors, before, *_ = one
            if _versions(tensors) == before:
                alike[known.kind, tensors[0].dtype, tensors[1].dtype].append(one)
            else:
                _spoil(one)
        for (kind, _, _), some in alike.items():
            readings = [
                (tensors, known.center, known.radius, rows.address(number))
                for known, tensors, _, rows, number, _, _ in some
            ]
            for i in self._kernel.read_all(kind, readings):
                known, tensors, _, rows, number, _, _ = some[i]
                if all(tensor.data_ptr() for tensor in tensors):
                    found = by_torch(kind, tensors, known.center, known.radius)
                    rows.put(number, found)
                else:
                    _spoil(some[i])

    def join(self) -> None:
        """Make the current stream wait for all that was read on this one."""
        if self._stream is not None:
            current = torch.cuda.current_stream(self._stream.device)
            if current != self._stream:
                current.wait_stream(self._stream)


_Waits = tuple[Known, Tensors, Any, Rows, int, Trust | None, Place]
"""How it is read, tensors, their versions, rows, number of one of these, trust, place."""


def _versions(tensors: Tensors) -> object:
    x, y, z = tensors
    return version(x) if x is z else (version(x), version(y), version(z))


def _spoil(one: _Waits) -> None:
    """Make NaN the row of what was overwritten."""
    _, _, _, rows, number, trust, place = one
    rows.spoil(number)
    if trust is not None:
        trust.lost |= place in trust.proven
        trust.refute(place)
