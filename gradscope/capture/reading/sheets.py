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
        """Read `x` as in earlier steps, if its place is known: with others, if it may wait."""
        known = None if self._trust is None else self._trust.known.get(place)
        if (
            known is None
            or known.tag is not tag
            or known.dtype is not x.dtype
            or known.elements != x.numel()
            or type(x) is not Tensor
        ):
            return None
        return self._again(known, (x, x, x))

    def again_all(self, place: Place, tag: object, tensors: Tensors) -> tuple[Sheet, int] | None:
        """As `again`, of three tensors, which are all of one dtype."""
        known = None if self._trust is None else self._trust.known.get(place)
        if known is None or known.tag is not tag:
            return None
        dtype, elements = known.dtype, known.elements
        for x in tensors:
            if dtype is not x.dtype or elements != x.numel() or type(x) is not Tensor:
                return None
        return self._again(known, tensors)

    def _again(self, known: Known, tensors: Tensors) -> tuple[Sheet, int] | None:
        stream = self._stream_of(tensors[0])
        if stream is None:
            return None
        if known.waits:
            return stream.waiting.add(known, tensors)
        if not all([x.data_ptr() for x in tensors]):  # their memory is gone
            return None
        found = self._read_at_once(stream, known, tensors)
        if found is not None:
            stream.waiting.count_as_if(known.elements)
        return found

    def _read_at_once(
        self, stream: _Stream, known: Known, tensors: Tensors
    ) -> tuple[Sheet, int] | None:
        """Have sums put into a row now; None where that cannot be done yet."""
        if stream.rows.is_full():
            self._renew(stream, tensors[0].device)
        number = stream.rows.take()
        if not stream.kernel.read(known.wanted, tensors, stream.rows.address(number)):
            return None
        stream.sheet.items += known.items(number)
        return stream.sheet, number

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
        trust = self._trust
        known = None if trust is None else trust.known.get(place)
        if known is None or not known.says(tag, wanted, meanings):
            small = wanted.elements <= stream.kernel.small
            may_wait = small and (trust is None or trust.may_wait(place))
            known = Known(place, tag, wanted, meanings, may_wait)
        elif known.waits:
            return stream.waiting.add(known, tensors)
        found = self._read_at_once(stream, known, tensors)
        if found is None or trust is None or place is None:
            return found
        if not known.waits:
            trust.known[place] = known
            stream.waiting.count_as_if(wanted.elements)
        elif not stream.rows.is_full() and trust.may_try(known):
            sheet, number = found
            trial = Trial(trust, known, number, stream.rows.take())
            stream.waiting.try_late(trial, sheet, stream.rows, tensors)
        else:
            stream.waiting.count_as_if(wanted.elements)
        return found

    def read_ours(
        self, wanted: Wanted, x: Tensor, meanings: tuple[Meaning, ...], place: Place = None
    ) -> tuple[Sheet, int] | None:
        """As `read`, of a tensor that nobody but gradscope knows: it may wait in any case."""
        tensors = x, x, x
        stream = self._taking(tensors)
        if stream is None:
            return None
        trust = self._trust
        known = None if trust is None else trust.known.get(place)
        if known is None or not known.says(None, wanted, meanings):
            known = Known(place, None, wanted, meanings, waits=True)
            if trust is not None and place is not None:
                trust.known[place] = known
        return stream.waiting.add(known, tensors)

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
        if where in self._streams:
            return self._streams[where]
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
