"""Recurrent weights that keep a signal over many steps of time."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradscope.probes.changes.change import START, Change, Copy, DoesNotFit
from gradscope.probes.changes.initialisation import forget, orthogonal
from gradscope.probes.probe import arguments_of, kept

_KEEPS, _TAKES_IN = {4: 1, 3: 1}, {4: 0}
"""Gates -> place of the one that keeps the state, and of the one that lets the input in: LSTM, GRU.
"""


@dataclass(frozen=True)
class Recurrent(Change):
    """Recurrent weights orthogonal, those of the input by Xavier, gates that keep what they hold.

    The biases of an LSTM's forget gates, and of a GRU's update gates, are log u with u even between
    1 and the length of the sequences, so that the units forget at as many speeds.

    Source: Saxe et al. 2014; Tallec and Ollivier 2018, Can recurrent neural networks warp time?
    """

    @torch.no_grad()
    def apply(self, copy: Copy) -> None:
        """Draw them gate by gate."""
        lengths = _lengths(copy)
        if not lengths:
            raise DoesNotFit(f"{self.name}: the net has no recurrent layer")
        for module, length in lengths.items():
            for name, parameter in module.named_parameters(recurse=False):
                if name.startswith("weight_hh"):
                    for gate in parameter.chunk(len(parameter) // parameter.shape[1]):
                        orthogonal(gate, 1.0)
                elif name.startswith("weight_ih"):
                    nn.init.xavier_normal_(parameter)
                elif name.startswith("bias"):
                    parameter.zero_()
                    if "_ih" in name:
                        _keep(parameter, int(module.hidden_size), length)
        forget(copy)


def _keep(bias: Tensor, size: int, length: int) -> None:
    gates = bias.chunk(len(bias) // size)
    if len(gates) in _KEEPS:
        keep = torch.empty_like(gates[0]).uniform_(1, max(length - 1, 2)).log_()
        gates[_KEEPS[len(gates)]].copy_(keep)
        if len(gates) in _TAKES_IN:
            gates[_TAKES_IN[len(gates)]].copy_(-keep)


def _lengths(copy: Copy) -> dict[Any, int]:
    """Return the recurrent layers, and over how many steps of time each of them goes."""
    lengths: dict[Any, int] = defaultdict(int)

    def note(module: Any, args: tuple[Any, ...]) -> None:
        sequence = isinstance(module, nn.RNNBase) and isinstance(args[0], Tensor)
        place = int(sequence and module.batch_first and args[0].dim() == 3)
        lengths[module] += args[0].shape[place] if sequence else 1

    kinds = (nn.RNNBase, nn.RNNCellBase)
    modules = [module for module in copy.model.modules() if isinstance(module, kinds)]
    handles = [module.register_forward_pre_hook(note) for module in modules]
    args, kwargs, _ = arguments_of(copy.batch)
    try:
        with kept(copy.model):
            copy.model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return lengths


RECURRENT = Recurrent(
    "orthogonal recurrent weights", frozenset({"vanishing", "exploding", "none"}), START
)
