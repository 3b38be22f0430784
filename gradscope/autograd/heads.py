"""What a loss makes of a model's outputs, told by the graph from the loss to them.

A softmax before a cross-entropy, which takes one by itself, is the usual mistake: the net learns,
slowly.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from torch.autograd.graph import Node

from gradscope.autograd.data_flow import NORM, PRODUCT, node_kinds
from gradscope.autograd.torch_internals import Unavailable, shape

LOSSES = {
    "BinaryCrossEntropy": "binary_cross_entropy",
    "BinaryCrossEntropyWithLogits": "binary_cross_entropy_with_logits",
    "HuberLoss": "huber_loss",
    "MseLoss": "mse_loss",
    "SmoothL1Loss": "smooth_l1_loss",
}
"""Kind of node -> function of torch.nn.functional; cross_entropy and nll_loss are told apart."""

AFTER = {
    "Elu": "elu",
    "Gelu": "gelu",
    "Hardtanh": "hardtanh",
    "LogSoftmax": "log_softmax",
    "Relu": "relu",
    "Sigmoid": "sigmoid",
    "Silu": "silu",
    "Softmax": "softmax",
    "Softplus": "softplus",
    "Tanh": "tanh",
}
"""Kind of node -> function that limits what an output can be."""

_PROBABILITIES = ("sigmoid", "softmax")

_SAME = node_kinds(
    "Alias Clone Permute ReshapeAlias Reshape Select Slice Squeeze T ToCopy Transpose UnsafeView"
    " Unsqueeze View Index"
)
"""Nodes that hand on elements as they are."""

_ENDS = PRODUCT | NORM | node_kinds("Embedding")
"""Where a model begins, seen from its loss."""

_COMPARING = frozenset(LOSSES) | node_kinds("Sub Rsub Expand")

_NODES = 4096
"""Of the graph of a loss that are looked at."""


class Head(NamedTuple):
    """A `loss`, and the function `after` which it comes; "" for none of `AFTER`."""

    loss: str
    after: str


_BROADCAST = Head("difference", "broadcast")

OUTPUTS = "outputs"
"""Of a loss that compares what the net gives with what it gives, gradient going into both."""

_ALIKE = Head("cosine_similarity", OUTPUTS)

_ADDING = node_kinds("Add Cat Div Expand Mean Mul Neg Stack Sub Rsub Sum ToCopy") | _SAME
"""Nodes by which a loss is put together of its terms."""


def find_heads(roots: Iterable[Node]) -> list[Head]:
    """Return the losses that a backward from `roots` goes through, and what they come after.

    Looked at is what lies between the roots and the losses, sums and factors; not the model.
    """
    found: dict[Head, None] = {}
    pairs = others = False
    stack = list(dict.fromkeys(roots))
    seen = set(stack)
    while stack and len(seen) < _NODES:
        node = stack.pop()
        if _pairs(node):
            pairs = True
            continue
        head = _BROADCAST if _is_broadcast(node) else _head(node)
        if head is not None:
            found[head] = None
            continue
        others |= _kind(node) not in _ADDING
        if _kind(node) in _ENDS:
            continue
        for producer, _ in node.next_functions:
            if producer is not None and producer not in seen:
                seen.add(producer)
                stack.append(producer)
    if pairs:  # who compares outputs with each other means each with each
        found.pop(_BROADCAST, None)
    if others:  # terms that may hold outputs apart
        found.pop(_ALIKE, None)
        found = {h._replace(after="") if h.after == OUTPUTS else h: None for h in found}
    return sorted(found)


def _pairs(node: Node) -> bool:
    """Whether a difference is one between a column of outputs and the same as a row."""
    if _kind(node) not in ("Sub", "Rsub") or not _is_broadcast(node):
        return False
    given = [producer for producer, _ in node.next_functions if producer is not None]
    made = {_before(p) if _kind(p) in _SAME else p for p in given}
    return len(given) == 2 and len(made) == 1


def _is_broadcast(node: Node) -> bool:
    """Whether a column that a layer made, (n, 1), is compared with a row: each with each, (n, n).

    Who means it writes an unsqueeze or a view.
    """
    kind = _kind(node)
    if kind not in _COMPARING:
        return False
    try:
        out = shape(node, 0)
        if kind in LOSSES:  # it spreads its input beforehand
            given = node.next_functions[0][0]
            return given is not None and _kind(given) == "Expand" and _is_broadcast(given)
        if len(out) != 2 or out[0] != out[1] or out[0] < 2:
            return False
        made = [(p, shape(p, slot)) for p, slot in node.next_functions if p is not None]
    except Unavailable:
        return False
    if any(size == out for _, size in made):  # a matrix of its own, as of all pairs
        return False
    columns = [producer for producer, size in made if size == (out[0], 1)]
    return any(_kind(column) not in _SAME for column in columns)


def _head(node: Node) -> Head | None:
    kind = _kind(node)
    if kind in LOSSES:
        given, after = _before(node), _after(node)
        if not after and len(_made(node)) == 2:
            return Head(LOSSES[kind], OUTPUTS)
        if kind == "BinaryCrossEntropy" and given is not None and after == "sigmoid":
            twice = _after(given)
            if twice in _PROBABILITIES:
                return Head(LOSSES["BinaryCrossEntropyWithLogits"], twice)
        return Head(LOSSES[kind], after)
    if kind in ("NllLoss", "NllLoss2D", "NllLossNd"):
        given = _before(node)
        if given is not None and _kind(given) == "LogSoftmax":
            return Head("cross_entropy", _after(given))
        if given is not None and _kind(given) == "Log":
            softmax = _before(given)
            if softmax is not None and _kind(softmax) == "Softmax":
                return Head("cross_entropy", _after(softmax))
        return Head("nll_loss", "" if given is None else AFTER.get(_kind(given), ""))
    if kind == "Mul" and [_is_unit(factor) for factor in _made(node)] == [True, True]:
        return _ALIKE
    if kind == "LogSoftmax":  # of a cross-entropy with probabilities, or smoothed labels
        return Head("cross_entropy", _after(node))
    return None


def _made(node: Node) -> list[Node]:
    """Return what made the inputs of `node`, as far as they were computed."""
    given = [producer for producer, _ in node.next_functions if producer is not None]
    made = [_before(producer) if _kind(producer) in _SAME else producer for producer in given]
    return [one for one in made if one is not None and _kind(one) != "AccumulateGrad"]


def _is_unit(node: Node) -> bool:
    """Whether a node divides something by its norm, as cosine_similarity and normalize do."""
    if _kind(node) != "Div" or len(node.next_functions) != 2:
        return False
    divisor = node.next_functions[1][0]
    for _ in range(4):
        if divisor is None or not divisor.next_functions:
            return False
        if "Norm" in _kind(divisor):
            return True
        divisor = divisor.next_functions[0][0]
    return False


def _after(node: Node) -> str:
    given = _before(node)
    return "" if given is None else AFTER.get(_kind(given), "")


def _before(node: Node) -> Node | None:
    """Return the operation that made the first input of `node`, past views and copies."""
    while node.next_functions:
        given = node.next_functions[0][0]
        if given is None or _kind(given) not in _SAME:
            return given
        node = given
    return None


def _kind(node: Node) -> str:
    return node.name().rstrip("0123456789").removesuffix("Backward")
