"""Weights drawn anew where all units of a layer are alike and would stay so."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from gradscope.probes.changes.change import ALWAYS, MISTAKE, Copy, DoesNotFit
from gradscope.probes.changes.initialisation import Initialisation, he


@dataclass(frozen=True)
class BrokenSymmetry(Initialisation):
    """He weights, where a layer's units all have the same ones: they get the same gradient, too."""

    def apply(self, copy: Copy) -> None:
        """Draw the weights of every layer."""
        hidden = [unit.layer for unit in copy.chain.hidden]
        if not any(_alike(layer) for layer in hidden):
            raise DoesNotFit(f"{self.name}: the units of each layer differ")
        super().apply(copy)


def _alike(layer: nn.Module) -> bool:
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, nn.Parameter) or weight.dim() < 2 or len(weight) < 2:
        return False
    return bool((weight == weight[:1]).all())


BROKEN_SYMMETRY = BrokenSymmetry("He weights, as all units were alike", ALWAYS, MISTAKE, he)
