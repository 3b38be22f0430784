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
from gradscope.capture.rows import Item, Keys, Segment, Sums, activation_keys, output_keys
from gradscope.capture.samples import Samples
from gradscope.capture.waiting import OURS, SMALL, Place, Trial, Trust, Waiting
from gradscope.measure import Reading, gpu_kernel, sums
from gradscope.measure.activations import activation_readings, whole_rule
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
        self.add(self.norm(x, place), keys)

    def norm(self, x: Tensor, place: Place = None) -> Read:
        """Return the L2 norm of `x`, to be added once it is known what it is of."""
        if gpu_kernel.may_read(x):
            x = measure.in_memory(x)
            if (row := self._sum(SQUARES, (x, x, x), 0.0, 0.0, place)) is not None:
                return row
        return measure.norm(x)

    def read_output(
        self,
        x: Tensor,
        layer: int,
        activation: nn.Module | None,
        z: Tensor | None,
        place: Place = None,
    ) -> Read:
        """Read an output of a layer, and how steep it is where that is an activation.

        Parameters
        ----------
        x : Tensor, not empty, dense
        layer : int
            Number of its module.
        activation : nn.Module or None
            The module, if it is an activation.
        z : Tensor or None
            Its input, where that is not lost.
        place : Place, optional

        Returns
        -------
        Read
            The norm.
        """
        n = x.numel()
        rule = whole_rule(activation) if activation is not None else None
        center, radius = (rule.center, rule.radius) if rule is not None else (None, 0.0)
        kind = MOMENTS if center is None else _kind(radius)
        norm: Read
        if gpu_kernel.may_read(x) and (
            row := self._sum(kind, (x, x, x), center or 0.0, radius, place)
        ):
            norm = row
            sheet, number = row
            sheet.items.append((number, sums.moments_of, n, output_keys(layer, n)))
            if rule is not None:
                sheet.items.append((number, rule.derive, n, activation_keys(layer, n)))
        else:
            census = measure.census(x, center, radius)
            norm = census.norm
            values = census[:2] if census.deviation is None else census[:3]
            self.add_all(values, output_keys(layer, n)[: len(values)])  # type: ignore[arg-type]
            if rule is not None:
                self.add_all(rule.readings(n, census), activation_keys(layer, n))
        if activation is not None and rule is None:
            self.read_activation(activation, z, x, layer, n)
        return norm

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
            row = self._sum(kind, (output,) * 3, rule.center, rule.radius, None)
            if row is not None:
                row[0].items.append((row[1], rule.derive, output.numel(), keys))
                return
        self.add_all(activation_readings(activation, z, output), keys)

    def read_pair(
        self, x: Tensor, y: Tensor, keys: tuple[Keys, Keys, Keys], place: Place = None
    ) -> None:
        """Read the norms of two tensors of one shape and the cosine between them."""
        if gpu_kernel.may_read(x) and (row := self._sum(PAIR, (x, y, y), 0.0, 0.0, place)):
            row[0].items.append((row[1], sums.pair_of, 1, keys))
        else:
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
        row = self._sum(JOIN, (total, shortcut, branch), 0.0, 0.0, place)
        if row is not None:
            row[0].items.append((row[1], _JOINS[total.dtype], 1, keys))
        return row is not None

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
        row = self._sum(NONZERO, (output,) * 3, 0.0, 0.0, OURS)
        if row is not None:
            row[0].items.append((row[1], sums.zero_fraction_of, n, (zero,)))
        else:
            self.add(1 - measure.census(output, 0.0).nonzero, zero)
        if slope is None:
            self.add_all((math.nan, math.nan), (steep, saturated))
        elif (row := self._sum(CENSUS, (slope,) * 3, 0.0, far, OURS)) is not None:
            row[0].items.append((row[1], sums.slopes_of, n, (steep, saturated)))
        else:
            census = measure.census(slope, 0.0, far)
            self.add_all((census.mean, 1 - census.far), (steep, saturated))

    def _sum(
        self, kind: int, tensors: Tensors, center: float, radius: float, place: Place
    ) -> tuple[Sheet, int] | None:
        """Have sums over `tensors` put into a row, unless there is no kernel for it."""
        x = tensors[0]
        stream = self._streams.get(gpu_kernel.stream_of(x)) or self._begin(x)
        if stream is None:
            return None
        trust = self.trust
        proven = trust is not None and trust.proven.get(place) is x.dtype
        kernel = stream.kernel
        if not proven and not all(map(kernel.takes, tensors if x is not tensors[2] else (x,))):
            return None
        sheet = stream.sheet
        if sheet.rows.is_full():
            sheet = stream.sheet = self._new_sheet(x.device)
        rows = sheet.rows
        number = rows.take()
        if proven or place is OURS:
            stream.waiting.add(kind, tensors, center, radius, rows, number, trust, place)
            return sheet, number
        if not kernel.read(kind, tensors, center, radius, rows.address(number)):
            return None
        if place is not None and trust is not None and x.numel() <= SMALL and not rows.is_full():
            late = rows.take()
            stream.waiting.add(kind, tensors, center, radius, rows, late, trust, place)
            sheet.trials.append(Trial(trust, place, x.dtype, number, late))
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


_JOINS = {dtype: partial(sums.join_of, torch.finfo(dtype).eps) for dtype in gpu_kernel.DTYPES}


def _kind(radius: float) -> int:
    """Return which sums tell what shares of elements are not 0 and, if asked, are far away."""
    return CENSUS if radius else NONZERO


def _dtype(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64
