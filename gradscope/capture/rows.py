"""One row: the readings of one recorded step, each value on its device, beside what it is of.

A row is collected as `Readings` while the step runs, becomes a `Row` when the step closes, and
leaves this package as that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gradscope.measure import Reading


class OfLayer(NamedTuple):
    """A reading of a layer, by the number of its module; of so many `elements`, its weight."""

    metric: str
    module: int
    elements: int = 1


class OfParameter(NamedTuple):
    """A reading of a parameter, by its owners' numbers; `copies` processes hold what was read."""

    metric: str
    owners: tuple[int, ...]
    copies: int


class OfShortcut(NamedTuple):
    """A reading of a shortcut, by its number."""

    metric: str
    shortcut: int


class OfStep(NamedTuple):
    """A scalar of the step itself."""

    name: str


Key = OfLayer | OfParameter | OfShortcut | OfStep
"""What a value is a reading of; metrics are named as in `gradscope.schema`."""

Keys = tuple[Key, ...]
"""All that one value stands for."""

Layout = tuple[Keys, ...]
"""What each value of a 1-D tensor stands for, in order."""

Segment = tuple[Layout, Tensor]


@lru_cache(2**14)
def output_keys(module: int, n: int) -> tuple[Keys, ...]:
    """Return the keys of norm, mean and deviation of an output of n elements."""
    return tuple((OfLayer(f"activation_{name}", module, n),) for name in ("norm", "mean", "std"))


@lru_cache(2**14)
def activation_keys(module: int, n: int) -> tuple[Keys, ...]:
    """Return the keys of `ActivationReadings` of an output of n elements."""
    names = ("derivative_mean", "zero_fraction", "saturated_fraction")
    return tuple((OfLayer(name, module, n),) for name in names)


class Readings:
    """Readings as they are taken, each with the keys of all that it stands for.

    Keys are best the same objects at every step: then the layouts of two steps compare in no time.
    """

    def __init__(self) -> None:
        self._numbers: list[float] = []
        self._numbers_keys: list[Keys] = []
        self._tensors: list[Tensor] = []
        self._tensors_keys: list[Keys] = []

    def add(self, value: Reading, keys: Keys) -> None:
        """Take a reading; a tensor must not be changed any more."""
        if isinstance(value, float):
            self._numbers.append(value)
            self._numbers_keys.append(keys)
        else:
            self._tensors.append(value)
            self._tensors_keys.append(keys)

    def add_all(self, values: Sequence[Reading], keys: Sequence[Keys]) -> None:
        """Take several readings, each with the keys in its place."""
        for value, key in zip(values, keys, strict=True):
            self.add(value, key)

    def __len__(self) -> int:
        return len(self._numbers) + len(self._tensors)

    def segments(self) -> list[Segment]:
        """Return everything, put together to one tensor a device."""
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


def _dtype(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


@dataclass
class Row:
    """The readings of one recorded step.

    Attributes
    ----------
    step : int
    time : float
        Seconds since the start.
    skipped : bool
        The loss scaler skipped it.
    wide : bool
        Keep it in float64, in which the model computes.
    segments : list of (Layout, Tensor)
    scalars : dict of str to float
        What was logged as a number.
    """

    step: int
    time: float = math.nan
    skipped: bool = False
    wide: bool = False
    segments: list[Segment] = field(default_factory=list)
    scalars: dict[str, float] = field(default_factory=dict)
