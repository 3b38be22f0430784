"""A normalisation between weights and activation, where there is none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from gradscope.probes.changes.chain import Unit
from gradscope.probes.changes.change import PARTS, Change, Copy, DoesNotFit, Wrapper


@dataclass(frozen=True)
class Normalisation(Change):
    """A normalisation behind each hidden layer with weights that has none.

    Attributes
    ----------
    make : function of a Unit
        Returns the module that fits the unit's output, None where none does.
    """

    make: Callable[[Unit], nn.Module | None]

    def apply(self, copy: Copy) -> None:
        """Put it in."""
        put = 0
        for unit in copy.chain.hidden:
            norm = None if unit.normalised else self.make(unit)
            if norm is not None:
                some = next(unit.layer.parameters())
                norm.to(some.device, some.dtype)
                copy.replace(unit.name, Normalised(unit.layer, norm))
                put += 1
        if not put:
            raise DoesNotFit(f"{self.name}: no hidden layer without a normalisation could take one")


class Normalised(Wrapper):
    """norm(layer(x))."""

    def __init__(self, layer: nn.Module, norm: nn.Module) -> None:
        super().__init__(layer)
        self.norm = norm

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Normalise what the layer gives."""
        return self.norm(self.layer(*args, **kwargs))


def _batch_norm(unit: Unit) -> nn.Module | None:
    if isinstance(unit.layer, nn.Conv2d):
        return nn.BatchNorm2d(unit.made[1])
    if isinstance(unit.layer, nn.Conv1d) or len(unit.made) == 2:
        return nn.BatchNorm1d(unit.made[1])
    return None


def _layer_norm(unit: Unit) -> nn.Module | None:
    if isinstance(unit.layer, nn.Linear):
        return nn.LayerNorm(unit.made[-1])
    if isinstance(unit.layer, (nn.Conv1d, nn.Conv2d)):
        return nn.GroupNorm(1, unit.made[1])
    return None


def _rms_norm(unit: Unit) -> nn.Module | None:
    return nn.RMSNorm(unit.made[-1]) if isinstance(unit.layer, nn.Linear) else None


_HELPS = frozenset({"vanishing", "exploding", "collapsed", "saturated", "dead"})

BATCH_NORM = Normalisation("BatchNorm before each activation", _HELPS, PARTS, _batch_norm)
LAYER_NORM = Normalisation("LayerNorm before each activation", _HELPS, PARTS, _layer_norm)
RMS_NORM = Normalisation("RMSNorm before each activation", _HELPS, PARTS, _rms_norm)
