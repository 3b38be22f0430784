"""Activations on a GPU that are read from a sample, all of one kind at once.

What such a function's slope is does not follow from sums over its output: it is computed element by
element, by some twenty operations. So samples are copied when the function is called, and computed
with together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gradscope.capture.keys import Keys
from gradscope.measure.activations import derivative, flat, sample

_SAMPLES = 64
"""How many wait at most."""


Found = Callable[[Sequence[Keys], Tensor | None, Tensor, float], None]


class _Sample(NamedTuple):
    activation: nn.Module
    z: Tensor | None
    output: Tensor
    keys: Sequence[Keys]
    shape: torch.Size  # of what the samples are of


class Samples:
    """Samples that wait."""

    def __init__(self) -> None:
        self._waiting: list[_Sample] = []

    def add(
        self, activation: nn.Module, z: Tensor | None, output: Tensor, keys: Sequence[Keys]
    ) -> bool:
        """Take a sample of one call; return whether there are so many that they are to be read."""
        z = None if z is None else copy_of_sample(z)
        self._waiting.append(_Sample(activation, z, copy_of_sample(output), keys, output.shape))
        return len(self._waiting) == _SAMPLES

    def read(self, found: Found) -> None:
        """Compute with all that wait.

        Parameters
        ----------
        found : called with the keys of a sample, |phi'|, None where that is not known, and the
            outputs, both flat, and a tenth of the largest |phi'| that the function can have
        """
        if not self._waiting:
            return
        alike = defaultdict(list)
        for some in self._waiting:
            activation, z, output, *_ = some
            # a setting that is a tensor, as of PReLU, is not shared with others
            owns = any(True for _ in activation.parameters())
            name = id(some) if owns else (type(activation), activation.extra_repr())
            alike[name, output.shape, output.dtype, z is None].append(some)
        self._waiting = []
        with torch.no_grad():
            for samples in alike.values():
                self._read(samples, found)

    def _read(self, samples: list[_Sample], found: Found) -> None:
        activation = samples[0].activation
        outputs = torch.stack([some.output for some in samples])
        inputs = [some.z for some in samples if some.z is not None]
        z = torch.stack(inputs) if inputs else None
        slopes = derivative(activation, z, outputs, samples[0].shape)
        if slopes is not None:
            slopes = slopes.abs()
        # of a function of somebody else's nothing but the outputs is known
        far = 0.0 if slopes is None else flat(activation)
        for i, some in enumerate(samples):
            found(some.keys, None if slopes is None else slopes[i], outputs[i], far)


def copy_of_sample(x: Tensor) -> Tensor:
    """Return a sample of `x` in memory of its own."""
    some = sample(x.detach())
    return some.clone() if some.numel() == x.numel() else some
