"""Whether a call still goes on, of which an interrupt would have told nothing."""

from __future__ import annotations

import sys
import threading
from types import FrameType

_BETWEEN = ("gradscope.", "torch._dynamo.")
"""Modules whose frames are passed over, between ours and the call that is meant."""


class UnderWay:
    """The call within which a hook of ours runs just now.

    It holds on to its frame, and so to what its callers have: let go of it once it is over.

    Attributes
    ----------
    thread : int
        Where it runs.
    """

    __slots__ = ("_frame", "thread")

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        frame = sys._getframe(1)
        while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(_BETWEEN):
            frame = frame.f_back
        self._frame = frame

    def goes_on(self) -> bool:
        """Whether it has neither returned nor been cut short; to be asked in any thread."""
        if self.thread == threading.get_ident():
            frame: FrameType | None = sys._getframe(1)
        else:
            frame = sys._current_frames().get(self.thread)
        while frame is not None and frame is not self._frame:
            frame = frame.f_back
        return frame is not None
