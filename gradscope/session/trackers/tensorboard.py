"""Readings to TensorBoard: any object with the `add_scalar` of a SummaryWriter."""

from __future__ import annotations

from typing import Any


def recognises(target: object) -> bool:
    """Whether `target` is a SummaryWriter, of torch, tensorboardX or another package."""
    return hasattr(target, "add_scalar")


class TrackerSink:
    """Writes one scalar a reading, tagged as gradscope names it.

    Parameters
    ----------
    target : SummaryWriter
        Stays the caller's: nothing closes it.
    """

    def __init__(self, target: Any) -> None:
        self._writer = target

    def __call__(self, step: int, values: dict[str, float]) -> None:
        """Write the readings of one step."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
