"""Other weights at the start: He, Xavier, orthogonal, by what follows; biases zero."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gradscope.capture.net import layers
from gradscope.probes.changes.change import START, Change, Copy, DoesNotFit

HALVED = frozenset({"relu", "relu6", "leakyrelu", "gelu", "silu", "elu", "mish", "hardswish"})
"""Activations that pass about half of a signal's energy, which He's gain of sqrt(2) makes up."""


@dataclass(frozen=True)
class Initialisation(Change):
    """Every weight matrix and kernel drawn anew.

    Attributes
    ----------
    draw : function of (weight, gain)
        Fills the weight in place; `gain` is sqrt(2) before a ReLU and its like, else 1, as for
        tanh, where the gain that is often given, 5/3, lets the gradient grow from layer to layer.
    """

    draw: Callable[[Tensor, float], object]

    def apply(self, copy: Copy) -> None:
        """Draw the weights, and set the biases to zero."""
        gains = {
            unit.layer: 2**0.5 if unit.activation in HALVED else 1.0 for unit in copy.chain.units
        }
        done = [redraw(module, self.draw, gains.get(module, 1.0)) for module in weight_layers(copy)]
        if not any(done):
            raise DoesNotFit(f"{self.name}: there is no weight matrix to draw")
        forget(copy)


def weight_layers(copy: Copy) -> list[nn.Module]:
    """Return the modules of the copy that own a weight matrix or kernel, embeddings left out.

    So are those that share an embedding's weights.
    """
    embeddings = [m for m in copy.model.modules() if isinstance(m, nn.Embedding)]
    shared = {id(parameter) for module in embeddings for parameter in module.parameters()}
    return [
        module
        for module in copy.model.modules()
        if layers.is_weight_layer(module)
        and not isinstance(module, nn.RNNBase)
        and not any(id(p) in shared for p in module.parameters(recurse=False))
    ]


@torch.no_grad()
def redraw(module: nn.Module, draw: Callable[[Tensor, float], object], gain: float) -> bool:
    """Draw the trainable weights of `module` anew; return whether there were any.

    Not what has one number a unit, as the lengths of normalised weights.
    """
    found = False
    for _, parameter in layers.own_parameters(module):
        if parameter.dim() >= 2 and parameter[0].numel() > 1:
            draw(parameter, gain)
            found = True
        elif parameter.dim() == 1 and found:  # a bias stands behind its weight
            parameter.zero_()
    return found


def forget(copy: Copy) -> None:
    """Drop what the optimizer remembers: it is of weights that are no more."""
    copy.optimizer.state.clear()


def he(weight: Tensor, gain: float) -> None:
    """He et al. 2015, Delving Deep into Rectifiers: variance gain^2 / fan_in."""
    fan_in, _ = nn.init._calculate_fan_in_and_fan_out(weight)
    weight.normal_(0, gain / fan_in**0.5)


def xavier(weight: Tensor, gain: float) -> None:
    """Glorot and Bengio 2010: variance gain^2 * 2 / (fan_in + fan_out)."""
    nn.init.xavier_normal_(weight, gain)


def orthogonal(weight: Tensor, gain: float) -> None:
    """Saxe et al. 2014: all singular values are the gain."""
    drawn = torch.empty(weight.shape, device=weight.device)  # half precision has no QR
    weight.copy_(nn.init.orthogonal_(drawn, gain))


_HELPS = frozenset({"vanishing", "exploding", "dead", "collapsed", "saturated"})

HE = Initialisation("He weights", _HELPS, START, he)
XAVIER = Initialisation("Xavier weights", _HELPS, START, xavier)
ORTHOGONAL = Initialisation("orthogonal weights", _HELPS, START, orthogonal)
