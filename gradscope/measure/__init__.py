"""Tensors in, numbers out: norms, moments and shares, slopes of activations.

In: tensors of any dtype, layout and device. Out: floats on the CPU, 0-d tensors on an accelerator:
nothing waits. Held to float64 by one table of cases, whichever way a tensor is read.
"""

from gradscope.measure.tensors import (
    Census,
    Reading,
    census,
    copy_with_norms,
    cosine,
    dense,
    difference_norms,
    in_memory,
    is_dense,
    norm,
    norms,
)

__all__ = [
    "Census",
    "Reading",
    "census",
    "copy_with_norms",
    "cosine",
    "dense",
    "difference_norms",
    "in_memory",
    "is_dense",
    "norm",
    "norms",
]
