"""What a value is a reading of: a layer, a parameter, a shortcut, or the step itself."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple


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


@lru_cache(2**14)
def layer_keys(metric: str, module: int, elements: int = 1) -> Keys:
    """Return the keys of one reading of a layer: the same object for the same, as are those below.

    What is new at each step and kept until the next flush makes Python collect its garbage often.
    """
    return (OfLayer(metric, module, elements),)


@lru_cache(2**14)
def output_keys(module: int, n: int) -> tuple[Keys, ...]:
    """Return the keys of norm, mean and deviation of an output of n elements."""
    return tuple((OfLayer(f"activation_{name}", module, n),) for name in ("norm", "mean", "std"))


@lru_cache(2**14)
def activation_keys(module: int, n: int) -> tuple[Keys, ...]:
    """Return the keys of `ActivationReadings` of an output of n elements."""
    names = ("derivative_mean", "zero_fraction", "saturated_fraction")
    return tuple((OfLayer(name, module, n),) for name in names)
