"""Readings as they are taken, each with the keys of all that it stands for.

On the CPU a reading is a number at once. On an accelerator it is a row of sums that a kernel adds
to, at once or together with others, or a 0-d tensor where there is no kernel for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from gradscope import measure
from gradscope.capture.modules import ModuleInfo
from gradscope.capture.rows import Item, Keys, Segment, Sums, activation_keys, output_keys
from gradscope.capture.samples import Samples
from gradscope.capture.waiting import (
    OURS,
    SMALL,
    Known,
    Meaning,
    Place,
    Trial,
    Trust,
    Waiting,
)
from gradscope.measure import Reading, gpu_kernel, sums
from gradscope.measure.activations import activation_readings, whole_rule
from gradscope.measure.gpu_compiler import DTYPES
from gradscope.measure.gpu_kernel import (
    CENSUS,
    JOIN,
    MOMENTS,
    NONZERO,
    PAIR,
    SQUARES,
    Kernel,
    Tensors,
)
from gradscope.measure.sums import Rows


@dataclass(eq=False)
class Sheet:
    """Rows of sums, what they are of and what they try."""

    rows: Rows
    items: list[Item] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)


Read = Reading | tuple[Sheet, int]
"""What was read, or the number of the row where its sums will be."""


@dataclass
class _Stream:
    """What readings on one stream of a device need."""

    kernel: Kernel
    waiting: Waiting
    sheet: Sheet


class Readings:
    """Readings of one forward and its backwards, or of a step.

    Keys are best the same objects at every step: then the layouts of two steps compare in no time.

    Parameters
    ----------
    trust : Trust, optional
        Which tensors may wait until several are read together; by default none.
    """

    def __init__(self, trust: Trust | None = None) -> None:
        self.trust = trust
        self._numbers: list[float] = []
        self._numbers_keys: list[Keys] = []
        self._tensors: list[Tensor] = []
        self._tensors_keys: list[Keys] = []
        self._streams: dict[tuple[int, int], _Stream] = {}
        self._sheets: list[Sheet] = []
        self._samples = Samples(self._read_sample)

    def __len__(self) -> int:
        return len(self._numbers) + len(self._tensors) + len(self._sheets)

    def add(self, value: Read, keys: Keys) -> None:
        """Take a reading; a tensor must not be changed any more."""
        if isinstance(value, float):
            self._numbers.append(value)
            self._numbers_keys.append(keys)
        elif isinstance(value, tuple):
            sheet, number = value
            sheet.items.append((number, sums.norm_of, 1, (keys,)))
        else:
            self._tensors.append(value)
            self._tensors_keys.append(keys)

    def add_all(self, values: Sequence[Reading], keys: Sequence[Keys]) -> None:
        """Take several readings, each with the keys in its place."""
        for value, key in zip(values, keys, strict=True):
            self.add(value, key)

    # --- reading ------------------------------------------------------------------------------

    def read_norm(self, x: Tensor, keys: Keys, place: Place = None) -> None:
        """Read the L2 norm of `x`, which stands at `place` of its structure."""
        if self.again(place, keys, x) is not None:
            return
        meaning = sums.norm_of, 1, (keys,)
        if not gpu_kernel.may_read(x) or not self._sum(
            SQUARES, (measure.in_memory(x),) * 3, 0.0, 0.0, (meaning,), place, keys
        ):
            self.add(measure.norm(x), keys)

    def norm(self, x: Tensor, place: Place = None) -> Read:
        """Return the L2 norm of `x`, to be added once it is known what it is of."""
        if (row := self.again(place, None, x)) is not None:
            return row
        if gpu_kernel.may_read(x):
            row = self._sum(SQUARES, (measure.in_memory(x),) * 3, 0.0, 0.0, (), place, None)
        return measure.norm(x) if row is None else row

    def again(self, place: Place, tag: object, x: Tensor) -> tuple[Sheet, int] | None:
        """Read `x` as in earlier steps, with others, if it is proven that it may wait."""
        trust = self.trust
        known = None if trust is None else trust.proven.get(place)
        if (
            known is None
            or known.tag is not tag
            or known.dtype is not x.dtype
            or known.elements != x.numel()
            or type(x) is not Tensor
        ):
            return None
        stream = self._streams.get(gpu_kernel.stream_of(x)) or self._begin(x)
        return None if stream is None else self._wait(stream, known, (x, x, x), place)

    def read_output(
        self,
        x: Tensor,
        module: ModuleInfo,
        activation: nn.Module | None,
        z: Tensor | None,
        place: Place = None,
    ) -> Read:
        """Read an output of a layer, and how steep it is where that is an activation.

        Parameters
        ----------
        x : Tensor, not empty, dense
        module : ModuleInfo
            Whose output it is.
        activation : nn.Module or None
            The module itself, if it is an activation.
        z : Tensor or None
            Its input, where that is not lost.
        place : Place, optional

        Returns
        -------
        Read
            The norm.
        """
        n, layer = x.numel(), module.number
        rule = whole_rule(activation) if activation is not None else None
        center, radius = (rule.center, rule.radius) if rule is not None else (None, 0.0)
        kind = MOMENTS if center is None else _kind(radius)
        norm: Read
        row = None
        if gpu_kernel.may_read(x):
            meanings: list[Meaning] = [(sums.moments_of, n, output_keys(layer, n))]
            if rule is not None:
                meanings.append((rule.derive, n, activation_keys(layer, n)))
            row = self._sum(kind, (x, x, x), center or 0.0, radius, tuple(meanings), place, module)
        if row is not None:
            norm = row
        else:
            census = measure.census(x, center, radius)
            norm = census.norm
            values = census[:2] if census.deviation is None else census[:3]
            self.add_all(values, output_keys(layer, n)[: len(values)])  # type: ignore[arg-type]
            if rule is not None:
                self.add_all(rule.readings(n, census), activation_keys(layer, n))
        self.read_slopes(activation, z, x, layer)
        return norm

    def read_slopes(
        self, activation: nn.Module | None, z: Tensor | None, output: Tensor, layer: int
    ) -> None:
        """Read how steep an activation was, where sums over its output do not tell."""
        if activation is not None and whole_rule(activation) is None:
            output = measure.in_memory(output)
            self.read_activation(activation, z, output, layer, output.numel())

    def read_activation(
        self, activation: nn.Module, z: Tensor | None, output: Tensor, layer: int, n: int
    ) -> None:
        """Read how steep `activation` was in one call.

        Parameters
        ----------
        activation, z, output
            As for `measure.activations.activation_readings`; may be samples.
        layer, n : int
            Number of the module that the readings are of, and elements of its output.
        """
        keys = activation_keys(layer, n)
        if gpu_kernel.may_read(output):
            if (rule := whole_rule(activation)) is None:
                self._samples.add(activation, z, output, keys)
                return
            kind = _kind(rule.radius)
            meaning = rule.derive, output.numel(), keys
            if self._sum(kind, (output,) * 3, rule.center, rule.radius, (meaning,)):
                return
        self.add_all(activation_readings(activation, z, output), keys)

    def read_pair(
        self, x: Tensor, y: Tensor, keys: tuple[Keys, Keys, Keys], place: Place = None
    ) -> None:
        """Read the norms of two tensors of one shape and the cosine between them."""
        meaning = sums.pair_of, 1, keys
        if gpu_kernel.may_read(x) and self._sum(PAIR, (x, y, y), 0.0, 0.0, (meaning,), place):
            return
        x_norm, y_norm = measure.norm(x), measure.norm(y)
        self.add_all((x_norm, y_norm, measure.cosine(x, y, x_norm, y_norm)), keys)

    def read_join(
        self,
        total: Tensor,
        shortcut: Tensor,
        branch: Tensor,
        keys: tuple[Keys, Keys, Keys, Keys, Keys],
        place: Place,
    ) -> bool:
        """Read the norms of `total`, its two parts and the rest, and the parts' cosine, at once.

        Returns False, having done nothing, where there is no kernel for them.
        """
        alike = shortcut.dtype is branch.dtype is total.dtype
        if not alike or not gpu_kernel.may_read(total):
            return False
        derive = _JOINS.get(total.dtype)
        if derive is None:
            return False
        tensors, meaning = (total, shortcut, branch), (derive, 1, keys)
        return self._sum(JOIN, tensors, 0.0, 0.0, (meaning,), place, keys[0]) is not None

    def read_waiting(self) -> None:
        """Read all that waits."""
        self._samples.read()
        for stream in self._streams.values():
            stream.waiting.read()

    def _read_sample(
        self, keys: Sequence[Keys], slope: Tensor | None, output: Tensor, far: float
    ) -> None:
        """Read |phi'| and the outputs of a sample; what is less steep than `far` is saturated."""
        steep, zero, saturated = keys
        n = output.numel()
        zeros, slopes = (
            (sums.zero_fraction_of, n, (zero,)),
            (sums.slopes_of, n, (steep, saturated)),
        )
        if not self._sum(NONZERO, (output,) * 3, 0.0, 0.0, (zeros,), OURS):
            self.add(1 - measure.census(output, 0.0).nonzero, zero)
        if slope is None:
            self.add_all((math.nan, math.nan), (steep, saturated))
        elif not self._sum(CENSUS, (slope,) * 3, 0.0, far, (slopes,), OURS):
            census = measure.census(slope, 0.0, far)
            self.add_all((census.mean, 1 - census.far), (steep, saturated))

    def _sum(
        self,
        kind: int,
        tensors: Tensors,
        center: float,
        radius: float,
        meanings: tuple[Meaning, ...],
        place: Place = None,
        tag: object = None,
    ) -> tuple[Sheet, int] | None:
        """Have sums over `tensors` put into a row, unless there is no kernel for it."""
        x = tensors[0]
        stream = self._streams.get(gpu_kernel.stream_of(x)) or self._begin(x)
        if stream is None:
            return None
        kernel, trust = stream.kernel, self.trust
        if not all(map(kernel.takes, tensors if x is not tensors[2] else (x,))):
            return None
        known = Known(tag, kind, x.dtype, x.numel(), center, radius, meanings)
        proven = None if trust is None else trust.proven.get(place)
        if place is OURS or (proven is not None and proven[:6] == known[:6]):
            return self._wait(stream, known, tensors, place)
        if stream.sheet.rows.is_full():
            stream.sheet = self._new_sheet(x.device)
        sheet = stream.sheet
        number = sheet.rows.take()
        if not kernel.read(kind, tensors, center, radius, sheet.rows.address(number)):
            return None
        sheet.items += [(number, *meaning) for meaning in meanings]
        may_try = place is not None and known.elements <= SMALL and not sheet.rows.is_full()
        if may_try and trust is not None:
            late = sheet.rows.take()
            stream.waiting.add(known, tensors, sheet.rows, late, trust, place)
            sheet.trials.append(Trial(trust, place, known, number, late))
        return sheet, number

    def _wait(
        self, stream: _Stream, known: Known, tensors: Tensors, place: Place
    ) -> tuple[Sheet, int]:
        """Have `tensors` read with others."""
        if stream.sheet.rows.is_full():
            stream.sheet = self._new_sheet(tensors[0].device)
        sheet = stream.sheet
        number = sheet.rows.take()
        for derivation, n, keys in known.meanings:
            sheet.items.append((number, derivation, n, keys))
        stream.waiting.add(known, tensors, sheet.rows, number, self.trust, place)
        return sheet, number

    def _begin(self, x: Tensor) -> _Stream | None:
        """Make a sheet for the current stream of the device of `x`; None where it has no kernel."""
        kernel = gpu_kernel.kernel(x.device)
        if kernel is None:
            return None
        here = torch.cuda.current_stream(x.device) if x.is_cuda else None
        stream = _Stream(kernel, Waiting(kernel, here), self._new_sheet(x.device))
        self._streams[gpu_kernel.stream_of(x)] = stream
        return stream

    def _new_sheet(self, device: torch.device) -> Sheet:
        sheet = Sheet(Rows(device))
        self._sheets.append(sheet)
        return sheet

    # --- what was read --------------------------------------------------------------------------

    def segments(self) -> list[Segment]:
        """Return all numbers and tensors, put together to one tensor a device."""
        result: list[Segment] = []
        if self._numbers:
            together = torch.from_numpy(np.array(self._numbers))
            result.append((tuple(self._numbers_keys), together))
        devices = [value.device for value in self._tensors]
        for device in dict.fromkeys(devices):
            mine = [i for i, other in enumerate(devices) if other == device]
            together = torch.stack([self._tensors[i].to(_dtype(device)) for i in mine])
            result.append((tuple(self._tensors_keys[i] for i in mine), together))
        return result

    def sums(self) -> list[Sums]:
        """Return all rows of sums, which the current stream is made to wait for."""
        self.read_waiting()
        for stream in self._streams.values():
            stream.waiting.join()
        return [
            Sums(sheet.items, sheet.trials, sheet.rows.values())
            for sheet in self._sheets
            if sheet.items
        ]


_JOINS = {dtype: partial(sums.join_of, torch.finfo(dtype).eps) for dtype in DTYPES}


def _kind(radius: float) -> int:
    """Return which sums tell what shares of elements are not 0 and, if asked, are far away."""
    return CENSUS if radius else NONZERO


def _dtype(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64
