"""Recurrent weights that keep a signal over many steps of time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from gradscope.probes.changes.change import START, Change, Copy, DoesNotFit
from gradscope.probes.changes.initialisation import forget


@dataclass(frozen=True)
class Recurrent(Change):
    """Recurrent weights orthogonal, those of the input by Xavier, forget gates of LSTMs open.

    Source: Saxe et al. 2014; Jozefowicz et al. 2015 for the bias of one.
    """

    @torch.no_grad()
    def apply(self, copy: Copy) -> None:
        """Draw them gate by gate."""
        found = False
        for module in copy.model.modules():
            if not isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
                continue
            found = True
            for name, parameter in module.named_parameters(recurse=False):
                if name.startswith("weight_hh"):
                    for gate in parameter.chunk(len(parameter) // parameter.shape[1]):
                        nn.init.orthogonal_(gate)
                elif name.startswith("weight_ih"):
                    nn.init.xavier_normal_(parameter)
                elif name.startswith("bias"):
                    parameter.zero_()
                    if isinstance(module, (nn.LSTM, nn.LSTMCell)) and "_ih" in name:
                        size = len(parameter) // 4
                        parameter[size : 2 * size] = 1
        if not found:
            raise DoesNotFit(f"{self.name}: the net has no recurrent layer")
        forget(copy)


RECURRENT = Recurrent(
    "orthogonal recurrent weights", frozenset({"vanishing", "exploding", "none"}), START
)
