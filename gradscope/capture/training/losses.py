"""Looks at what losses make of the model's outputs, in the first backwards."""

from __future__ import annotations

from gradscope.autograd.heads import find_heads
from gradscope.autograd.torch_internals import roots_of_backward
from gradscope.capture.faults import Faults, guarded
from gradscope.capture.net.catalogue import Catalogue

LOOKS = 8
"""Backwards that are looked at."""


class Losses:
    """Adds to the catalogue what backwards that train begin with."""

    def __init__(self, catalogue: Catalogue, faults: Faults) -> None:
        self.faults = faults
        self._catalogue = catalogue
        self._looks = 0

    def look(self) -> None:
        """Look at the backward under way, if it is one of the first."""
        if self._looks < LOOKS:
            self._looks += 1
            self._look()

    @guarded("what losses make of the model's outputs")
    def _look(self) -> None:
        known = len(self._catalogue.heads)
        self._catalogue.heads |= dict.fromkeys(find_heads(roots_of_backward()))
        self._catalogue.changes += len(self._catalogue.heads) - known
