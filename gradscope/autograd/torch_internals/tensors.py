"""Tensors, the streams that they are made on, and scalers of losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_unknown = iter(range(-1, -(2**62), -1))


def version(x: Tensor) -> int:
    """Return a number that differs once `x` is changed in place; never the same where unknown."""
    try:
        return x._version
    except (AttributeError, RuntimeError):  # an inference tensor has none
        return next(_unknown)


def norms(tensors: Sequence[Tensor], dtype: torch.dtype | None = None) -> list[Tensor]:
    """Return the L2 norm of each tensor, by one call where there is one."""
    try:
        return list(torch._foreach_norm(list(tensors), 2, dtype=dtype))
    except AttributeError:
        return [torch.linalg.vector_norm(x, dtype=dtype) for x in tensors]


def copy_all(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copy each of `sources` to its target."""
    try:
        torch._foreach_copy_(list(targets), list(sources))
    except AttributeError:
        for target, source in zip(targets, sources, strict=True):
            target.copy_(source)


def subtract_all(targets: Sequence[Tensor], others: Sequence[Tensor]) -> None:
    """Subtract each of `others` from its target, in place."""
    try:
        torch._foreach_sub_(list(targets), list(others))
    except AttributeError:
        for target, other in zip(targets, others, strict=True):
            target.sub_(other)


def is_capturing() -> bool:
    """Whether a CUDA graph is being captured: what is launched now runs later, and often."""
    started = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return bool(started) and torch.cuda.is_current_stream_capturing()


def _raw_stream(index: int) -> int:
    return int(torch.cuda.current_stream(index).cuda_stream)


raw_stream: Callable[[int], int] = getattr(torch._C, "_cuda_getCurrentRawStream", _raw_stream)
"""Return the handle of the stream that is current on a CUDA device."""


def handed_by_scaler(optimizer: Any) -> dict[str, Tensor | None]:
    """Return what a scaler hands to an optimizer that unscales and skips by itself, if it did."""
    return {name: getattr(optimizer, name, None) for name in ("grad_scale", "found_inf")}


def scale_of(scaler: Any) -> Tensor | float | None:
    """Return the factor of `scaler`, on its device where it is there; None before the first use."""
    scale: Tensor | float | None = getattr(scaler, "_scale", None)
    if scale is None and hasattr(scaler, "get_scale"):
        return float(scaler.get_scale())
    return scale
