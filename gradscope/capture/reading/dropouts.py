"""Dropout that is called as a function, found on the graph by what its node keeps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradscope.autograd import torch_internals
from gradscope.autograd.graph import Call, Graph, Origins
from gradscope.capture.net.layers import ROOT

_LOOKED_AT = 4096
"""Elements of a mask that are looked at."""

_FEWEST = 64


@torch.no_grad()
def find_dropouts(graph: Graph, calls: Sequence[Call]) -> dict[str, float]:
    """Return the share that is left out, by the innermost module within which that is done.

    On the CPU dropout is a product with a mask of zeros and 1 / (1 - share): it is taken for one
    where its zeros are as many as that number says.
    """
    shares: dict[int, float] = {}
    for node, name in enumerate(graph.names):
        share = None
        if not (edges := graph.edges[node]):  # made before the forward, which got it as an input
            continue
        if name.startswith("NativeDropoutBackward"):
            share = float(torch_internals.saved(graph.nodes[node], "p"))
        elif name == "MulBackward0" and edges[1][0] < 0:
            mask = torch_internals.saved_tensor(graph.nodes[node], "other")
            share = None if mask is None else _share(mask)
        if share:
            shares[node] = share
    if not shares:
        return {}
    origins, found = Origins(graph, calls), dict[str, float]()
    for node, share in shares.items():
        if (maker := origins.maker(node)) is not None:
            name = maker.name or ROOT
            found[name] = max(share, found.get(name, 0.0))
    return found


def _share(mask: Tensor) -> float | None:
    """Return the share of zeros of a `mask` of dropout, None for another tensor."""
    if not mask.is_cpu or not mask.is_floating_point() or not mask.is_contiguous():
        return None
    some = mask.view(-1)[:_LOOKED_AT]
    count = len(some)
    if count < _FEWEST:
        return None
    scale = float(some.max())
    is_zero = some == 0
    if scale <= 1 or not bool((is_zero | (some == scale)).all()):
        return None
    share = 1 - 1 / scale
    zeros = float(is_zero.float().mean())
    by_chance = 5 * (share * (1 - share) / count) ** 0.5
    return share if abs(zeros - share) <= by_chance else None
