"""Weights scaled by what the data do: layer by layer to outputs of variance one (LSUV)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradscope.capture.net import layers
from gradscope.probes.changes.change import START, Change, Copy, DoesNotFit
from gradscope.probes.changes.initialisation import forget, orthogonal, redraw, weight_layers
from gradscope.probes.probe import arguments_of, kept


@dataclass(frozen=True)
class UnitVariance(Change):
    """Orthogonal weights, each layer's then divided by the deviation of its output.

    Source: Mishkin and Matas 2016, All You Need Is a Good Init.
    """

    def apply(self, copy: Copy) -> None:
        """Draw, and scale in one forward: a layer's output is scaled along with its weights."""
        args, kwargs, _ = arguments_of(copy.batch)
        modules = [m for m in weight_layers(copy) if redraw(m, orthogonal, 1.0)]
        handles = [module.register_forward_hook(_scale) for module in modules]
        try:
            with kept(copy.model), torch.no_grad():
                copy.model(*args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()
        if not handles:
            raise DoesNotFit(f"{self.name}: there is no weight matrix to scale")
        forget(copy)


def _scale(module: nn.Module, args: tuple[Any, ...], output: object) -> object:
    if not isinstance(output, Tensor) or not output.is_floating_point():
        return None
    deviation = output.std()
    if not (torch.isfinite(deviation) and deviation > 0):
        return None
    for _, parameter in layers.own_parameters(module):
        if parameter.dim() >= 2:
            parameter.div_(deviation)
    return output / deviation


LSUV = UnitVariance(
    "LSUV weights", frozenset({"vanishing", "exploding", "collapsed", "saturated"}), START
)
