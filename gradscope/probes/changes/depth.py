"""A shallower net: some of the hidden layers that keep the shape of what they get are left out."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from gradscope.probes.changes.change import STRUCTURE, Change, Copy, DoesNotFit


@dataclass(frozen=True)
class Shallower(Change):
    """A share of the hidden layers kept, with what follows each; the others left out."""

    share: float

    def apply(self, copy: Copy) -> None:
        """Put the identity in the place of the others."""
        inner = [unit for unit in copy.chain.units[1:-1] if unit.taken == unit.given]
        if len(inner) < 4 or copy.recorded.blocks:
            raise DoesNotFit(f"{self.name}: fewer than four plain hidden layers keep their shape")
        stay = max(int(len(inner) * self.share), 2)
        for unit in inner[stay:]:
            for name in dict.fromkeys((unit.name, unit.activation_name, unit.last)):
                if name:
                    copy.replace(name, nn.Identity())


QUARTER = Shallower(
    "a quarter of the hidden layers", frozenset({"vanishing", "exploding"}), STRUCTURE, 0.25
)
