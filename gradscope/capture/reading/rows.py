"""One row: the readings of one recorded step, each value on its device, beside what it is of.

A row is collected as `Readings` (readings.py) while the step runs, becomes a `Row` when the step
closes, and leaves this package as that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from gradscope.capture.keys import Layout
from gradscope.capture.reading.waiting import Item, Trial

Segment = tuple[Layout, Tensor]


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
    is_doubtful : bool
        Signals and activations may not be those of this step, and are left out.
    """

    step: int
    time: float = math.nan
    skipped: bool = False
    wide: bool = False
    segments: list[Segment] = field(default_factory=list)
    sums: list[Sums] = field(default_factory=list)
    scalars: dict[str, float] = field(default_factory=dict)
    is_doubtful: bool = False
