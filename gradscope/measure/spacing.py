"""How far apart the elements of a sample lie, so that all rows and columns have their share."""

from __future__ import annotations

import math
from functools import lru_cache


@lru_cache(2**12)
def distance(elements: int, most: int) -> int:
    """Return a distance at which `most` of so many elements are met at most.

    It is coprime to their number, and so to each dimension of a tensor that has so many: else the
    sample would be of the same columns or channels all the time.
    """
    apart = max(1, -(-elements // most))
    while math.gcd(apart, elements) > 1:
        apart += 1
    return apart
