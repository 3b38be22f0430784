"""Sums over tensors, in rows on their devices: taken at once, or together with others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gradscope.capture.reading.rows import Sums
from gradscope.capture.reading.waiting import Known, Meaning, Place, Sheet, Trial, Trust, Waiting
from gradscope.measure.entries import Wanted
from gradscope.measure.kernels import Kernel, kernel_for, stream_of
from gradscope.measure.sums import Rows, Tensors


@dataclass
class _Stream:
    """What sums on one stream of a device need; `rows` of `sheet` are for what is read at once."""

    kernel: Kernel
    waiting: Waiting
    rows: Rows
    sheet: Sheet


class Sheets:
    """All sums of one forward and its backwards, or of a step.

    Parameters
    ----------
    trust : Trust or None
        Which tensors may wait; None for none.
    """

    def __init__(self, trust: Trust | None) -> None:
        self._trust = trust
        self._streams: dict[tuple[int, int], _Stream | None] = {}
        self._sheets: list[Sheet] = []

    def __len__(self) -> int:
        return len(self._sheets)

    def believe(self, trust: Trust) -> None:
        """Let `trust` say from now on which tensors may wait."""
        self._trust = trust
        for stream in self._streams.values():
            if stream is not None:
                stream.waiting.trust = trust

    def again(self, place: Place, tag: object, x: Tensor) -> tuple[Sheet, int] | None:
        """Read `x` as in earlier steps, with others, if it is proven that it may wait."""
        known = None if self._trust is None else self._trust.proven.get(place)
        if (
            known is None
            or known.tag is not tag
            or known.dtype is not x.dtype
            or known.elements != x.numel()
            or type(x) is not Tensor
        ):
            return None
        stream = self._stream_of(x)
        return None if stream is None else stream.waiting.add(known, (x, x, x))

    def again_all(self, place: Place, tag: object, tensors: Tensors) -> tuple[Sheet, int] | None:
        """As `again`, of three tensors, which are all of one dtype."""
        known = None if self._trust is None else self._trust.proven.get(place)
        if known is None or known.tag is not tag:
            return None
        dtype, elements = known.dtype, known.elements
        for x in tensors:
            if dtype is not x.dtype or elements != x.numel() or type(x) is not Tensor:
                return None
        stream = self._stream_of(x)
        return None if stream is None else stream.waiting.add(known, tensors)

    def read(
        self,
        wanted: Wanted,
        tensors: Tensors,
        meanings: tuple[Meaning, ...],
        place: Place = None,
        tag: object = None,
    ) -> tuple[Sheet, int] | None:
        """Have sums over `tensors` put into a row, unless there is no kernel for it.

        Parameters
        ----------
        wanted : Wanted
        tensors : Tensors
        meanings : tuple of Meaning
            Of the row.
        place : Place
            Of the tensor in its structure.
        tag : object
            As of a `Known`.
        """
        stream = self._taking(tensors)
        if stream is None:
            return None
        kernel, trust = stream.kernel, self._trust
        proven = None if trust is None else trust.proven.get(place)
        if proven is not None and proven.says(tag, wanted, meanings):
            return stream.waiting.add(proven, tensors)
        if stream.rows.is_full():
            self._renew(stream, tensors[0].device)
        rows, sheet = stream.rows, stream.sheet
        number = rows.take()
        if not kernel.read(wanted, tensors, rows.address(number)):
            return None
        sheet.items += [(number, *meaning) for meaning in meanings]
        if trust is None or place is None or wanted.elements > kernel.small:
            return sheet, number
        known = Known(place, tag, wanted, meanings)
        if not rows.is_full() and trust.may_try(known):
            trial = Trial(trust, known, number, rows.take())
            stream.waiting.try_late(trial, sheet, rows, tensors)
        else:
            stream.waiting.count(wanted.elements)
        return sheet, number

    def read_ours(
        self, wanted: Wanted, x: Tensor, meanings: tuple[Meaning, ...], place: Place = None
    ) -> tuple[Sheet, int] | None:
        """As `read`, of a tensor that nobody but gradscope knows: it may wait in any case."""
        tensors = x, x, x
        stream = self._taking(tensors)
        if stream is None:
            return None
        trust = self._trust
        proven = None if trust is None else trust.proven.get(place)
        if proven is None or not proven.says(None, wanted, meanings):
            proven = Known(place, None, wanted, meanings)
            if trust is not None and place is not None:
                trust.proven[place] = proven
        return stream.waiting.add(proven, tensors)

    def _taking(self, tensors: Tensors) -> _Stream | None:
        """Return the stream whose kernel takes `tensors`, None if there is none."""
        x, y, z = tensors
        stream = self._stream_of(x)
        if stream is None or not stream.kernel.takes(x):
            return None
        if x is not z and not (stream.kernel.takes(y) and stream.kernel.takes(z)):
            return None
        return stream

    def kernel_of(self, x: Tensor) -> Kernel | None:
        """Return the kernel that reads `x`, None where there is none."""
        stream = self._stream_of(x)
        return None if stream is None else stream.kernel

    def read_waiting(self) -> None:
        """Read all that waits."""
        for stream in self._streams.values():
            if stream is not None:
                stream.waiting.read()

    def sums(self) -> list[Sums]:
        """Return all rows of sums, which the current stream is made to wait for."""
        self.read_waiting()
        for stream in self._streams.values():
            if stream is not None:
                stream.waiting.join()
        return [
            Sums(sheet.items, sheet.trials, sheet.rows.values())
            for sheet in self._sheets
            if sheet.items and sheet.rows is not None
        ]

    def _stream_of(self, x: Tensor) -> _Stream | None:
        where = stream_of(x)
        try:
            return self._streams[where]
        except KeyError:
            return self._begin(where, x)

    def _begin(self, where: tuple[int, int], x: Tensor) -> _Stream | None:
        """Make what the current stream of the device of `x` needs; None where it has no kernel."""
        kernel = kernel_for(x)
        if kernel is None:
            self._streams[where] = None
            return None
        here = torch.cuda.current_stream(x.device) if x.is_cuda else None
        waiting = Waiting(kernel, x.device, here, self._trust, self._sheets.append)
        stream = _Stream(kernel, waiting, Rows(x.device, 0), Sheet())
        self._streams[where] = stream
        return stream

    def _renew(self, stream: _Stream, device: torch.device) -> None:
        stream.rows = Rows(device)
        stream.sheet = Sheet(stream.rows)
        self._sheets.append(stream.sheet)
