"""The largest logits of attention, from the queries and keys that its nodes keep for the backward.

Read at the steps at which units are looked at. Nothing waits for a device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.graph import Node

from gradscope.autograd.attention import PRODUCT, Attention, keeps_order
from gradscope.autograd.graph import Graph, saved_factors
from gradscope.autograd.torch_internals import (
    has_saved,
    is_kept_elsewhere,
    saved,
    saved_tensor,
)
from gradscope.capture.keys import layer_keys
from gradscope.capture.reading.readings import Readings
from gradscope.capture.reading.units import spread

LOGITS = 2**22
"""That are computed of one call at most: queries and samples are left out beyond, keys never."""

_MASKED = -5e3
"""What is added to a logit to mask it is lower: some 1e4, the lowest number of the dtype, -inf."""


@torch.no_grad()
def read_attention(
    attention: Sequence[Attention], graph: Graph, readings: Readings, look: int
) -> None:
    """Add `attention_logit_max` of each call whose queries and keys can be had at once.

    Parameters
    ----------
    attention, graph
        Of one forward.
    readings : Readings
    look : int
        Which queries are looked at, where not all are, differs from look to look.
    """
    for one in attention:
        node = graph.nodes[one.node]
        if one.product is None:
            largest = _of_kernel(node, look)
        else:
            permuted = [i for i in one.between if graph.names[i].startswith("Permute")]
            if not all(keeps_order(graph, i) for i in permuted):
                continue
            factors = [graph.nodes[i] for i in one.between if i not in permuted]
            largest = _of_softmax(node, graph.nodes[one.product], factors, look)
        if largest is not None:
            keys = layer_keys("attention_logit_max", one.layer)
            readings.add(largest.item() if largest.is_cpu else largest, keys)


def _of_kernel(node: Node, look: int) -> Tensor | None:
    """Return the largest logit of scaled_dot_product_attention, 0-d."""
    query, key = (_plain(saved_tensor(node, name)) for name in ("query", "key"))
    if query is None or key is None or query.dim() != 4 or key.dim() != 4:
        return None
    groups, rest = divmod(query.shape[1], key.shape[1])
    if rest:
        return None
    scale = saved(node, "scale")
    some = _some(query.shape[:-1], key.shape[-2], look)
    asked = key[some[0]].mT
    logits = _product(query[some], asked.repeat_interleave(groups, 1) if groups > 1 else asked)
    logits *= query.shape[-1] ** -0.5 if scale is None else scale
    last = torch.arange(query.shape[-2], device=query.device)[some[-1], None]
    if saved(node, "is_causal"):
        later = torch.arange(key.shape[-2], device=query.device) > last
        logits.masked_fill_(later, -torch.inf)
    for name in ("attn_mask", "attn_bias"):
        if not has_saved(node, name):
            continue
        if is_kept_elsewhere(node, name):
            return None
        if (mask := saved_tensor(node, name)) is not None:
            masked = ~mask if mask.dtype is torch.bool else mask < _MASKED
            masked = masked.expand(*query.shape[:-1], key.shape[-2])[some]
            logits.masked_fill_(masked, -torch.inf)
    return logits.amax()


def _of_softmax(node: Node, product: Node, factors: Sequence[Node], look: int) -> Tensor | None:
    """Return the largest logit of those that a softmax leaves above 0, 0-d."""
    kind = product.name().partition("Backward")[0]
    query, key = (_plain(saved_tensor(product, name)) for name in PRODUCT[kind])
    shares = _plain(saved_tensor(node, "result"))
    if query is None or key is None or shares is None:
        return None
    shape = *query.shape[:-1], key.shape[-1]
    if shares.numel() != torch.Size(shape).numel():
        return None
    some = _some(query.shape[:-1], key.shape[-1], look)
    logits = _product(query[some], key[some[0]])
    if kind == "Baddbmm":
        logits = logits * saved(product, "alpha")
    for factor in factors:
        one, other = saved_factors(factor)
        constant = one if other is None else other
        if constant is None or constant.numel() != 1:
            return None
        constant = constant.reshape(())
        logits = logits / constant if factor.name().startswith("Div") else logits * constant
    return logits.masked_fill(shares.reshape(shape)[some] == 0, -torch.inf).amax()


def _plain(x: Tensor | None) -> Tensor | None:
    """Return `x` where it is an ordinary tensor with elements."""
    return x.detach() if x is not None and type(x) is Tensor and x.numel() else None


def _product(query: Tensor, key: Tensor) -> Tensor:
    if query.is_cpu and query.dtype in (torch.float16, torch.bfloat16):
        return query.float() @ key.float()
    return query @ key


def _some(shape: torch.Size, keys: int, look: int) -> tuple[slice, ...]:
    """Return the index of some samples, (all heads,) and some queries."""
    samples, *heads, queries = shape
    budget = max(LOGITS // (keys * torch.Size(heads).numel()), 1)  # of pairs of both
    most = min(queries, max(budget // samples, min(budget, 16)))
    index = [spread(samples, max(budget // most, 1), look), *(slice(None) for _ in heads)]
    return *index, spread(queries, most, look)
