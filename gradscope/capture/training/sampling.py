"""A fixed sample of a parameter's elements, from which the size of an update is estimated.

Every s-th element in the order of memory, s being coprime to the number of elements and so to each
dimension: the sample goes through all rows and columns alike, is the same in every step and
process, and takes no random number. n / k times the sum of squares of k of n elements estimates
that of all; where the elements are alike, as draws from one normal distribution, the norm's
standard error is sqrt((1 - k / n) / 2k); k is a quarter of `SAMPLE` at least: 1.1 % at most.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from gradscope.measure import spacing

SAMPLE = 2**14
"""Elements that are sampled of a parameter at most."""

WHOLE = 4 * SAMPLE
"""A parameter of no more elements is taken whole."""


def sample_of(x: Tensor) -> Tensor:
    """Return a fixed sample of `x` as a view, shape (k,); `x` itself if it is small, or has gaps.

    Parameters
    ----------
    x : strided Tensor
    """
    apart = distance(x.numel())
    if apart == 1:
        return x
    x = x.detach()
    if not x.is_contiguous():
        x = x.permute(sorted(range(x.dim()), key=x.stride, reverse=True))
        if not x.is_contiguous():
            return x
    return x.view(-1)[::apart]


def distance(elements: int) -> int:
    """Return how far apart the sampled ones of so many elements are."""
    return 1 if elements <= WHOLE else spacing.distance(elements, SAMPLE)


def scale_up(norms: Tensor, wholes: list[Tensor], samples: list[Tensor]) -> Tensor:
    """Return what the norms of samples say of the wholes that they are of, shape (n,)."""
    sizes = tuple([(w.numel(), s.numel()) for w, s in zip(wholes, samples, strict=True)])
    return norms * _factors(sizes, norms.dtype, norms.device)


@lru_cache(64)
def _factors(
    sizes: tuple[tuple[int, int], ...], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Return the factor from the norm of k elements to that of n, for each (n, k)."""
    factors = torch.tensor([math.sqrt(n / k) if k else 1.0 for n, k in sizes], dtype=dtype)
    if device.type == "cpu":
        return factors
    if device.type == "cuda":
        factors = factors.pin_memory()
    return factors.to(device, non_blocking=True)
