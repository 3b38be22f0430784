"""Which share of half-precision weights a step changes: the rest of it is lost in rounding."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from gradscope import measure
from gradscope.capture.keys import Keys, layer_keys
from gradscope.capture.reading.rows import Segment
from gradscope.capture.training.parameters import Parameters
from gradscope.capture.training.sampling import sample_of
from gradscope.measure.host import HALF


@torch.no_grad()
def read_moved(
    parameters: Parameters, optimizer: Optimizer, copies: Mapping[int, Tensor]
) -> list[Segment]:
    """Return `moved_fraction` of the parameters whose weights before the step are `copies`.

    Of torch's own optimizers alone: others may keep what is lost, or round at random. Of a sample
    of large ones (sampling.py), so that it takes next to no memory; nothing waits for a device.
    """
    if not type(optimizer).__module__.startswith("torch.optim.") or parameters.gradient.is_given:
        return []
    found: dict[torch.device, list[tuple[Keys, Tensor]]] = defaultdict(list)
    for place, copy in copies.items():
        weight = parameters.tensors[place]
        gradient = parameters.gradient(weight)
        if copy.dtype not in HALF or gradient is None:
            continue
        three = [measure.in_memory(weight), copy, measure.dense(gradient)]
        if len({x.shape for x in three}) > 1:  # a sparse gradient
            continue
        if len({x.stride() for x in three}) == 1:  # then samples are of the same elements
            three = [sample_of(x) for x in three]
        after, before, pull = three
        moved, pulled = after != before, pull != 0
        keys = [
            key
            for owner in parameters.owners[place]
            for key in layer_keys("moved_fraction", owner, copy.numel())
        ]
        found[copy.device].append((tuple(keys), (moved & pulled).sum() / pulled.sum()))
    return [
        (tuple(keys for keys, _ in some), torch.stack([share for _, share in some]))
        for some in found.values()
    ]
