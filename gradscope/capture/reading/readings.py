"""Readings as they are taken, each with the keys of all that it stands for.

A reading is a row of sums that a kernel adds to, at once or together with others. Where there is no
kernel for it, it is a number at once on the CPU, and on an accelerator a 0-d tensor.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from gradscope import measure
from gradscope.capture.keys import Keys, OfLayer, activation_keys, output_keys
from gradscope.capture.net.modules import ModuleInfo
from gradscope.capture.reading.rows import Segment, Sums
from gradscope.capture.reading.samples import Samples
from gradscope.capture.reading.sheets import Sheets
from gradscope.capture.reading.waiting import Meaning, Place, Sheet, Trust, norm_item
from gradscope.measure import Reading, sums
from gradscope.measure.activations import activation_readings, whole_rule
from gradscope.measure.entries import Wanted
from gradscope.measure.gpu_compiler import DTYPES
from gradscope.measure.sums import CENSUS, JOIN, MOMENTS, NONZERO, PAIR, SQUARES, Tensors

Read = Reading | tuple[Sheet, int]
"""What was read, or the number of the row where its sums will be."""


class Readings:
    """Readings of one forward and its backwards, or of a step.

    Keys are best the same objects at every step: then the layouts of two steps compare in no time.

    Parameters
    ----------
    trust : Trust, optional
        Which tensors may wait until several are read together; by default none.
    """

    def __init__(self, trust: Trust | None = None) -> None:
        self._numbers: list[tuple[Keys, float]] = []
        self._tensors: list[tuple[Keys, Tensor]] = []
        self._sheets = Sheets(trust)
        self.again, self.believe = self._sheets.again, self._sheets.believe
        self._samples = Samples()

    def __len__(self) -> int:
        return len(self._numbers) + len(self._tensors) + len(self._sheets)

    def add(self, value: Read, keys: Keys) -> None:
        """Take a reading; a tensor must not be changed any more."""
        if isinstance(value, float):
            self._numbers.append((keys, value))
        elif isinstance(value, tuple):
            sheet, number = value
            sheet.items.append(norm_item(number, keys))
        else:
            self._tensors.append((keys, value))

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
        if self._sum(SQUARES, (measure.in_memory(x),) * 3, (meaning,), place, keys) is None:
            self.add(measure.norm(x), keys)

    def norm(self, x: Tensor, place: Place = None) -> Read:
        """Return the L2 norm of `x`, to be added once it is known what it is of."""
        row = self.again(place, None, x)
        if row is None:
            row = self._sum(SQUARES, (measure.in_memory(x),) * 3, (), place)
        return measure.norm(x) if row is None else row

    def norm_of_ours(self, x: Tensor, place: Place) -> Read:
        """As `norm`, of a tensor that nobody but gradscope knows."""
        row = self.again(place, None, x)
        if row is None:
            row = self._sheets.read_ours(_squares(x), x, (), place)
        return measure.norm(x) if row is None else row

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
        if (kernel := self._sheets.kernel_of(x)) is not None:
            meanings: tuple[Meaning, ...] = ((kernel.moments, n, output_keys(layer, n)),)
            if rule is not None:
                meanings += ((rule.derive, n, activation_keys(layer, n)),)
            row = self._sum(kind, (x, x, x), meanings, place, module, center or 0.0, radius)
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
        self,
        activation: nn.Module,
        z: Tensor | None,
        output: Tensor,
        layer: int,
        n: int,
        place: Place = None,
    ) -> None:
        """Read how steep `activation` was in one call.

        Parameters
        ----------
        activation, z, output
            As for `measure.activations.activation_readings`; may be samples.
        layer, n : int
            Number of the module that the readings are of, and elements of its output.
        place : Place, optional
        """
        keys = activation_keys(layer, n)
        if (rule := whole_rule(activation)) is not None:
            if self.again(place, rule, output) is not None:
                return
            kind, meaning = _kind(rule.radius), (rule.derive, output.numel(), keys)
            x = (output,) * 3
            if self._sum(kind, x, (meaning,), place, rule, rule.center, rule.radius):
                return
        elif self._sheets.kernel_of(output) is not None:
            # not told whom to call: readings that hold themselves would wait for the collector
            if self._samples.add(activation, z, output, keys):
                self._samples.read(self._read_sample)
            return
        self.add_all(activation_readings(activation, z, output), keys)

    def read_pair(
        self, x: Tensor, y: Tensor, keys: tuple[Keys, Keys, Keys], place: Place = None
    ) -> None:
        """Read the norms of two tensors of one shape and the cosine between them."""
        meaning = sums.pair_of, 1, keys
        if x.dtype is y.dtype and self._sum(PAIR, (x, y, y), (meaning,), place):
            return
        x_norm, y_norm = measure.norm(x), measure.norm(y)
        self.add_all((x_norm, y_norm, measure.cosine(x, y, x_norm, y_norm)), keys)

    def read_join(
        self,
        total: Tensor,
        shortcut: Tensor,
        branch: Tensor,
        keys: Keys,
        named: dict[str, Keys],
        place: Place,
    ) -> bool:
        """Read the norms of `total`, its two parts and the rest, and the parts' cosine, at once.

        Returns False, having done nothing, where there is no kernel for them. `keys` are those of
        `total`, `named` those of the rest by name.
        """
        if self._sheets.again_all(place, keys, (total, shortcut, branch)) is not None:
            return True
        derive = _JOINS.get(total.dtype)
        if derive is None or not (shortcut.dtype is branch.dtype is total.dtype):
            return False
        of_all = keys, named["shortcut"], named["branch"], named["other"], named["cosine"]
        x, meaning = (measure.in_memory(total), shortcut, branch), (derive, 1, of_all)
        return self._sum(JOIN, x, (meaning,), place, keys) is not None

    def read_waiting(self) -> None:
        """Read all that waits."""
        self._samples.read(self._read_sample)
        self._sheets.read_waiting()

    def _read_sample(
        self, keys: Sequence[Keys], slope: Tensor | None, output: Tensor, far: float
    ) -> None:
        """Read |phi'| and the outputs of a sample; what is less steep than `far` is saturated."""
        steep, zero, saturated = keys
        n = output.numel()
        place = "sample", *[key.module for key in zero if isinstance(key, OfLayer)]
        zeros, slopes = (
            (sums.zero_fraction_of, n, (zero,)),
            (sums.slopes_of, n, (steep, saturated)),
        )
        read = self._sheets.read_ours
        nonzero = Wanted(NONZERO, output.dtype, output.dtype, n, 0.0, 0.0)
        if not read(nonzero, output, (zeros,), (place, "output")):
            self.add(1 - measure.census(output, 0.0).nonzero, zero)
        if slope is None:
            self.add_all((math.nan, math.nan), (steep, saturated))
            return
        census = Wanted(CENSUS, slope.dtype, slope.dtype, n, 0.0, far)
        if not read(census, slope, (slopes,), (place, "slope")):
            found = measure.census(slope, 0.0, far)
            self.add_all((found.mean, 1 - found.far), (steep, saturated))

    def _sum(
        self,
        kind: int,
        tensors: Tensors,
        meanings: tuple[Meaning, ...],
        place: Place = None,
        tag: object = None,
        center: float = 0.0,
        radius: float = 0.0,
    ) -> tuple[Sheet, int] | None:
        """As `Sheets.read`."""
        x, y, _ = tensors
        wanted = Wanted(kind, x.dtype, y.dtype, x.numel(), center, radius)
        return self._sheets.read(wanted, tensors, meanings, place, tag)

    # --- what was read --------------------------------------------------------------------------

    def segments(self) -> list[Segment]:
        """Return all numbers and tensors, put together to one tensor a device."""
        result: list[Segment] = []
        if self._numbers:
            keys, numbers = zip(*self._numbers, strict=True)
            result.append((keys, torch.from_numpy(np.array(numbers))))
        by_device = defaultdict(list)
        for some in self._tensors:
            by_device[some[1].device].append(some)
        for device, read in by_device.items():
            keys, tensors = zip(*read, strict=True)
            result.append((keys, torch.stack([x.to(_dtype(device)) for x in tensors])))
        return result

    def sums(self) -> list[Sums]:
        """Return all rows of sums, which the current stream is made to wait for."""
        self._samples.read(self._read_sample)
        return self._sheets.sums()


def _squares(x: Tensor) -> Wanted:
    return Wanted(SQUARES, x.dtype, x.dtype, x.numel(), 0.0, 0.0)


_JOINS = {dtype: partial(sums.join_of, torch.finfo(dtype).eps) for dtype in DTYPES}


def _kind(radius: float) -> int:
    """Return which sums tell what shares of elements are not 0 and, if asked, are far away."""
    return CENSUS if radius else NONZERO


def _dtype(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64
