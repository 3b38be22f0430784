"""Readings as they are taken, each with the keys of all that it stands for.

On the CPU a reading is a number at once. On an accelerator it is a row of sums that a kernel adds
to, or a 0-d tensor where there is no kernel for it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from gradscope import measure
from gradscope.capture.rows import Item, Keys, Segment, Sums, activation_keys, output_keys
from gradscope.measure import Reading, gpu_kernel, sums
from gradscope.measure.activations import activation_readings, whole_rule
from gradscope.measure.sums import Derivation

Read = Reading | sums.Row
"""What was read, or where it will be."""


class Readings:
    """Readings of one forward and its backwards, or of a step.

    Keys are best the same objects at every step: then the layouts of two steps compare in no time.
    """

    def __init__(self) -> None:
        self._numbers: list[float] = []
        self._numbers_keys: list[Keys] = []
        self._tensors: list[Tensor] = []
        self._tensors_keys: list[Keys] = []
        self._items: defaultdict[sums.Rows, list[Item]] = defaultdict(list)
        self._rows: dict[tuple[int, int], sums.Rows] = {}  # stream -> those that are being filled
        self._streams: list[torch.cuda.Stream] = []

    def __len__(self) -> int:
        return len(self._numbers) + len(self._tensors) + sum(map(len, self._items.values()))

    def add(self, value: Read, keys: Keys) -> None:
        """Take a reading; a tensor must not be changed any more."""
        if isinstance(value, float):
            self._numbers.append(value)
            self._numbers_keys.append(keys)
        elif isinstance(value, sums.Row):
            self._derive(value, sums.norm_of, 1, (keys,))
        else:
            self._tensors.append(value)
            self._tensors_keys.append(keys)

    def add_all(self, values: Sequence[Reading], keys: Sequence[Keys]) -> None:
        """Take several readings, each with the keys in its place."""
        for value, key in zip(values, keys, strict=True):
            self.add(value, key)

    # --- reading ------------------------------------------------------------------------------

    def read_norm(self, x: Tensor, keys: Keys) -> Read:
        """Read the L2 norm of `x`, which may change once this returns."""
        norm = self.norm(x)
        self.add(norm, keys)
        return norm

    def norm(self, x: Tensor) -> Read:
        """Return the L2 norm of `x`, to be added once it is known what it is of."""
        if (kernel := gpu_kernel.kernel_of(x)) is not None:
            x = measure.dense(x)
            if kernel.takes(x):
                row = self._row(x.device)
                if kernel.squares(x, row.address):
                    return row
        return measure.norm(x)

    def read_output(
        self, x: Tensor, layer: int, activation: nn.Module | None, z: Tensor | None
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

        Returns
        -------
        Reading or Row
            Of the norm.
        """
        n = x.numel()
        rule = whole_rule(activation) if activation is not None else None
        center, radius = (rule.center, rule.radius) if rule is not None else (None, 0.0)
        kernel = gpu_kernel.kernel_of(x)
        if kernel is not None and kernel.takes(x):
            row = self._row(x.device)
            if kernel.census(x, center or 0.0, radius, row.address):
                self._derive(row, sums.moments_of, n, output_keys(layer, n))
                if rule is not None:
                    self._derive(row, rule.derive, n, activation_keys(layer, n))
                elif activation is not None:
                    self.read_activation(activation, z, x, layer)
                return row
        census = measure.census(x, center, radius)
        values = census[:2] if census.deviation is None else census[:3]
        self.add_all(values, output_keys(layer, n)[: len(values)])  # type: ignore[arg-type]
        if rule is not None:
            self.add_all(rule.readings(n, census), activation_keys(layer, n))
        elif activation is not None:
            self.read_activation(activation, z, x, layer)
        return census.norm

    def read_activation(
        self, activation: nn.Module, z: Tensor | None, output: Tensor, layer: int, n: int | None = None
    ) -> None:
        """Read how steep `activation` was in one call, of an output of `n` elements.

        Parameters
        ----------
        activation, z, output
            As for `measure.activations.activation_readings`.
        layer : int
            Number of the module that the readings are of.
        n : int, optional
            Where `output` is a sample.
        """
        keys = activation_keys(layer, output.numel() if n is None else n)
        rule = whole_rule(activation)
        kernel = gpu_kernel.kernel_of(output) if rule is not None else None
        if rule is not None and kernel is not None and kernel.takes(output):
            row = self._row(output.device)
            if kernel.census(output, rule.center, rule.radius, row.address):
                self._derive(row, rule.derive, output.numel(), keys)
                return
        self.add_all(activation_readings(activation, z, output), keys)

    def read_pair(
        self, x: Tensor, y: Tensor, x_keys: Keys, y_keys: Keys, cosine_keys: Keys
    ) -> None:
        """Read the norms of two tensors of one shape and the cosine between them."""
        kernel = gpu_kernel.kernel_of(x)
        if kernel is not None and kernel.takes(x) and kernel.takes(y):
            row = self._row(x.device)
            if kernel.pair(x, y, row.address):
                self._derive(row, sums.pair_of, 1, (x_keys, y_keys, cosine_keys))
                return
        x_norm, y_norm = measure.norm(x), measure.norm(y)
        self.add_all(
            (x_norm, y_norm, measure.cosine(x, y, x_norm, y_norm)), (x_keys, y_keys, cosine_keys)
        )

    def _derive(
        self, row: sums.Row, derivation: Derivation, n: int, keys: tuple[Keys, ...]
    ) -> None:
        self._items[row.rows].append(Item(row.number, derivation, n, keys))

    def _row(self, device: torch.device) -> sums.Row:
        stream = gpu_kernel.stream_of(device)
        rows = self._rows.get(stream)
        if rows is None or rows.is_full():
            if rows is None and device.type == "cuda":
                self._streams.append(torch.cuda.current_stream(device))
            rows = self._rows[stream] = sums.Rows(device)
        return rows.take()

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
        for stream in self._streams:
            if (current := torch.cuda.current_stream(stream.device)) != stream:
                current.wait_stream(stream)
        return [Sums(items, rows.used()) for rows, items in self._items.items()]


def _dtype(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64
