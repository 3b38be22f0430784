"""Branches of residual blocks made smaller, so that blocks do not grow with depth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradscope.capture.net import layers
from gradscope.probes.changes.change import PARTS, START, Change, Copy, DoesNotFit, Wrapper


@dataclass(frozen=True)
class ScaledBranches(Change):
    """Each branch's output times 1/sqrt(number of blocks), or times a learned scale that is 0."""

    learned: bool = False

    def apply(self, copy: Copy) -> None:
        """Scale what the last layer of each branch gives."""
        ends = list(_ends(copy, self.name))
        for name in ends:
            scale = torch.zeros(()) if self.learned else torch.tensor(len(ends) ** -0.5)
            inner = copy.model.get_submodule(name)
            some = next(copy.model.parameters())
            copy.replace(name, Scaled(inner, scale.to(some), self.learned))


class Scaled(Wrapper):
    """scale * layer(x)."""

    def __init__(self, layer: nn.Module, scale: Tensor, learned: bool) -> None:
        super().__init__(layer)
        if learned:
            self.scale = nn.Parameter(scale)
        else:
            self.register_buffer("scale", scale)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Scale what the layer gives."""
        return self.scale * self.layer(*args, **kwargs)


@dataclass(frozen=True)
class ZeroBranches(Change):
    """The last layer with parameters of each branch starts at zero, and the block as x."""

    def apply(self, copy: Copy) -> None:
        """Set its weights to zero, a normalisation's alike."""
        put = 0
        for block in copy.recorded.blocks:
            owners = [m for m in _modules(copy, block) if layers.own_parameters(m)]
            for _, parameter in layers.own_parameters(owners[-1]) if owners else []:
                put += 1
                with torch.no_grad():
                    parameter.zero_()
        if not put:
            raise DoesNotFit(f"{self.name}: the net has no residual blocks")


def _ends(copy: Copy, name: str) -> Iterator[str]:
    if not copy.recorded.blocks:
        raise DoesNotFit(f"{name}: the net has no residual blocks")
    for block in copy.recorded.blocks:
        yield block[-1]


def _modules(copy: Copy, names: Any) -> list[nn.Module]:
    return [copy.model.get_submodule(name) for name in names]


_GROWS = frozenset({"exploding"})

BY_DEPTH = ScaledBranches("branches times 1/sqrt(number of blocks)", _GROWS, PARTS)
REZERO = ScaledBranches("branches times a learned scale that starts at 0", _GROWS, PARTS, True)
ZERO = ZeroBranches("last layer of each branch started at zero", _GROWS, START)
