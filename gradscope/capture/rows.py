"""One row: the readings of one recorded step, each value on its device, beside what it is of.

A row is collected as `Readings` (readings.py) while the step runs, becomes a `Row` when the step
closes, and leaves this package as that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from torch import Tensor

from gradscope.capture.waiting import Item, Trial


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


class Sums(NamedTuple):
    """Rows of sums, shape (k, 4), still on their device, what they are of and what they try."""

    items: list[Item]
    trials: list[Trial]
    values: Tensor


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
    sums : list of Sums
        What is not a reading yet.
    scalars : dict of str to float
        What was logged as a number.
    """

    step: int
    time: float = math.nan
    skipped: bool = False
    wide: bool = False
    segments: list[Segment] = field(default_factory=list)
    sums: list[Sums] = field(default_factory=list)
    scalars: dict[str, float] = field(default_factory=dict)
