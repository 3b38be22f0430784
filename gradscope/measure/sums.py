"""Sums on a device, numbers on the host: kernels add to rows, and what they mean is computed later.

A row holds five float64. Which sums these are is known to whoever had them written, and so is the
`Derivation` that makes readings of them once they are on the host: many rows at a time, off the
training thread.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SQUARES, MOMENTS, NONZERO, CENSUS, PAIR, COPY, DIFFERENCE, JOIN = range(8)
"""Kinds of sums, as in triton_kernels.py and cpu_kernel.c."""

Tensors = tuple[Tensor, Tensor, Tensor]
"""x, y and z of a kind; what it does not ask for is x once more."""

Numbers = NDArray[np.float64]

Derivation = Callable[[Numbers, Numbers], tuple[Numbers, ...]]
"""Called with numbers of elements, shape (k,), and rows, shape (..., k, 5), for each of which it
returns as many readings as it has results, each of shape (..., k)."""

FIELDS = 5
"""Sums of a row."""

_ROWS = 256
_ROW_BYTES = 8 * FIELDS


class Rows:
    """Rows on one device, handed out one by one, zero until a kernel adds to them.

    They belong to the stream that was current when they were made.
    """

    def __init__(self, device: torch.device, count: int = _ROWS) -> None:
        self._rows = torch.zeros(count, FIELDS, dtype=torch.float64, device=device)
        self._address = self._rows.data_ptr()
        self._count = count
        self.taken = 0

    def is_full(self) -> bool:
        """Whether `take` has none left."""
        return self.taken == self._count

    def has(self, count: int) -> bool:
        """Whether `count` rows are left."""
        return self.taken + count <= self._count

    def part(self, count: int) -> Rows:
        """Take `count` rows, as many as are left at most, to be handed out as rows of their own.

        That is much cheaper than new ones.
        """
        start = self.taken
        self.taken += count
        part = Rows.__new__(Rows)
        part._rows, part._count, part.taken = self._rows[start : self.taken], count, 0
        part._address = self.address(start)
        return part

    def take(self) -> int:
        """Return the number of a row that nobody has written to."""
        self.taken += 1
        return self.taken - 1

    def take_all(self) -> int:
        """Take every row; return the address of the first."""
        self.taken = self._count
        return self._address

    def address(self, number: int) -> int:
        """Return where the first sum of a row is, or will be once the device has come to it."""
        return self._address + _ROW_BYTES * number

    def norm(self, number: int) -> Tensor:
        """Return the root of the first sum, a 0-d tensor on the device."""
        return self._rows[number, 0].sqrt()

    def put(self, number: int, values: Tensor) -> None:
        """Have a row hold `values`, shape (5,)."""
        self._rows[number].copy_(values)

    def spoil(self, number: int) -> None:
        """Make a row NaN."""
        self._rows[number].fill_(math.nan)

    def values(self) -> Tensor:
        """Return the rows that were taken, shape (k, 5)."""
        return self._rows if self.taken == self._count else self._rows[: self.taken]


# --- what sums mean ---------------------------------------------------------------------------


def norm_of(n: Numbers, rows: Numbers) -> tuple[Numbers, ...]:
    """Return the L2 norm."""
    return (np.sqrt(rows[..., 0]),)


def moments_of(n: Numbers, rows: Numbers) -> tuple[Numbers, ...]:
    """Return norm, mean and standard deviation, the population's."""
    return census_of(n, rows)[:3]


def spread_of(n: Numbers, rows: Numbers) -> tuple[Numbers, ...]:
    """Return the same, where the last sum is that of the squared distances from the mean."""
    return np.sqrt(rows[..., 0]), rows[..., 1] / n, np.sqrt(rows[..., 4] / n)


class Census(NamedTuple):
    """`measure.Census` of many tensors, on the host."""

    norm: Numbers
    mean: Numbers
    deviation: Numbers
    nonzero: Numbers
    far: Numbers


def census_of(n: Numbers, rows: Numbers) -> Census:
    """Return all of a census; its shares are NaN where there is a NaN among the elements."""
    square, total, nonzero, far = (rows[..., i] for i in range(4))
    with np.errstate(invalid="ignore"):
        mean = total / n
        deviation = np.sqrt(np.maximum(square / n - mean * mean, 0))
    counted = np.where(np.isnan(square), np.nan, 1 / n)
    return Census(np.sqrt(square), mean, deviation, nonzero * counted, far * counted)


def zero_fraction_of(n: Numbers, rows: Numbers) -> tuple[Numbers, ...]:
    """Return the share of elements that are 0."""
    return (1 - census_of(n, rows).nonzero,)


def slopes_of(n: Numbers, rows: Numbers) -> tuple[Numbers, ...]:
    """Return the mean, and the share of elements that are not far away."""
    census = census_of(n, rows)
    return census.mean, 1 - census.far


def join_of(
    precision: float, n: Numbers, rows: Numbers
) -> tuple[Numbers, Numbers, Numbers, Numbers, Numbers]:
    """Return of a sum and two terms the norms, of what it has beside them, and the terms' cosine.

    In this order: sum, one, other, rest, cosine. The rest is 0 where it is no more than rounding.

    Parameters
    ----------
    precision : float
        Of the dtype that the sum was computed in.
    n, rows
        As for every `Derivation`.
    """
    one, other, cosine = pair_of(n, rows)
    total, rest = np.sqrt(rows[..., 3]), np.sqrt(rows[..., 4])
    with np.errstate(invalid="ignore"):
        rest = np.where(rest <= 2 * precision * (one + other), 0.0, rest)
    return total, one, other, rest, cosine


def pair_of(n: Numbers, rows: Numbers) -> tuple[Numbers, Numbers, Numbers]:
    """Return the norms of both tensors and the cosine between them, NaN where one is zero."""
    one, other = np.sqrt(rows[..., 0]), np.sqrt(rows[..., 1])
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine = rows[..., 2] / one / other
    return one, other, cosine
