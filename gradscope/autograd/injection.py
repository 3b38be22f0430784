"""What is injected into a stream from aside: a condition, a position, a shift for all layers.

In `x = f(x + c)`, layer by layer, c skips a layer and is added to what came of itself, as the input
of a residual block is. The additions alone do not tell it from `x + f(x + c)`, where it is x that
skips: both are u + f(u + v). What tells is, in this order,

- which of the two is still in the stream, without a weight, when the other is added again: that
  one is the stream;
- that one is merged with data again and again and the other is not: it is injected;
- the order of the terms, where both sums agree: a stream is written first, `x + c`.

Sources: Perez et al. 2018 (scale and shift), Carion et al. 2020 (positions), Ho et al. 2020 (time).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gradscope.autograd.attention import FUSED as ATTENTION
from gradscope.autograd.attention import SOFTMAX
from gradscope.autograd.data_flow import (
    ELEMENTWISE,
    PARTITION,
    PRODUCT,
    DataFlow,
    node_kinds,
    union,
)
from gradscope.autograd.graph import Edge, Value
from gradscope.autograd.sums import MERGED, Sum, Term

AGAIN_AND_AGAIN = 3

FUSED = node_kinds("Addcmul Addcdiv")
"""What is multiplied in these is not added to what they add."""


def is_injected(flow: DataFlow, total: Sum, shortcut: Term, split: int) -> bool:
    """Tell whether the value number `split` is injected, and no input of the other terms."""
    branch = [value for term in total.terms if term is not shortcut for value in term.values]
    below = union(flow.reach[value] for value in branch)
    value = flow.values[split]
    met = [edge for edge in _met(flow, value) if flow.outputs[edge[0]] & below]
    if not met or any(flow.stems[node] not in ELEMENTWISE for node, _ in met):
        return False  # a layer of the branch takes it as it is
    node, position = min(met, key=lambda edge: (flow.number[edge[0], 0], edge[1]))
    multiplied = flow.stems[node] == "Mul" or (flow.stems[node] in FUSED and position > 0)
    others = [value for place, value in flow.data[node] if place != position]
    streams = [_root(flow, other) for other in others if not flow.reach[other] >> split & 1]
    if others and not streams and not _shifts_a_constant(flow, node):
        return False  # such as x plus its own mean
    if any(_starts_anew(flow, stream) for stream in streams):
        return False
    kept = [flow.kept[v] for v in branch if (flow.reach[v] & ~flow.kept[v]) >> split & 1]
    if not multiplied and any(union(kept) >> flow.number[stream] & 1 for stream in streams):
        return True
    if any(_is_added_to(flow, stream, value, node) for stream in streams):
        return False
    if not multiplied and _factors(flow, others) & _factors(flow, branch):
        return True
    fewest = min((_merges(flow, stream) for stream in streams), default=0)
    if _merges(flow, value) >= max(AGAIN_AND_AGAIN, fewest + 2):
        return True
    return position > 0 and flow.stems[node] not in FUSED and shortcut is not total.terms[0]


def is_query(flow: DataFlow, total: Sum, stream: Sequence[Value]) -> bool:
    """Tell whether a sum only asks, as query or key of attention, and the stream goes on beside it.

    So do positions that attention adds to queries and keys, and not to what it takes in: then both
    are asked with, or `stream` has readers that the sum does not come to.
    """
    asked = _asked(flow, total.node)
    below = flow.reach[total.node, 0]
    readers = {node for value in stream for node, _ in flow.consumers[value]} - {total.node}
    beside = any(not flow.outputs[node] & below for node in readers)
    return len(asked) > 1 or (bool(asked) and beside)


def _asked(flow: DataFlow, node: int) -> set[int]:
    """Return as which operands of scores a value ends, behind one weight at most; else nothing."""
    asked = set()
    stack = [(node, False)]
    seen = set(stack)
    while stack:
        node, projected = stack.pop()
        outputs = flow.members(flow.outputs[node])
        edges = [edge for output in outputs for edge in flow.consumers.get(output, [])]
        if not edges:
            return set()
        for reader, position in edges:
            stem = flow.stems[reader]
            scores, added = (
                stem in kinds and len(flow.data[reader]) > 1 for kinds in (PRODUCT, MERGED)
            )
            if scores or (stem in ATTENTION and position < 2):
                asked.add(position)
            elif stem in ATTENTION or not stem or (flow.weighs[reader] if projected else added):
                return set()  # taken in by a layer, or carried on
            if stem in SOFTMAX or stem in ATTENTION:
                continue
            step = reader, projected or flow.weighs[reader] or scores
            if step not in seen:
                seen.add(step)
                stack.append(step)
    return asked


def is_condition(flow: DataFlow, split: Value, below: int, inside: Iterable[int]) -> bool:
    """Tell a condition that each layer projects, such as a time embedding, from a block's input.

    Of a block's input it is true that the branch has nothing from elsewhere, or that the block is
    a module that was called on it, and on it first.
    """
    number = flow.number[split]
    if not below & flow.sources & ~flow.reach[split]:
        return False
    block = flow.origins.holder(inside)
    for node, slot in block.inputs if block is not None else ():
        value = (flow.graph.index.get(node, -1), slot)
        if value == split:
            return False
        if flow.reach.get(value, 0) >> number & 1:
            continue
        if value in flow.number and below >> flow.number[value] & 1:
            return True
    return True


def _met(flow: DataFlow, value: Value) -> list[Edge]:
    """Return the edges by which a value meets weights, other data, or is added to constants."""
    met = []
    direct = flow.consumers.get(value, [])
    stack = list(direct)
    while stack:
        node, position = stack.pop()
        first = position == 0 and ((node, 0) not in direct or flow.stems[node] == "Cat")
        added = flow.stems[node] in ("Add", "Sub", "Cat") and not first
        if (added and _has_constant(flow, node)) or len(flow.data[node]) > 1 or flow.bears[node]:
            met.append((node, position))
        else:
            for output in flow.members(flow.outputs[node]):
                stack += flow.consumers.get(output, [])
    return met


def _root(flow: DataFlow, value: Value) -> Value:
    """Return the value that this one is of, up to operations that need nothing else."""
    node = value[0]
    while len(flow.data[node]) == 1 and not flow.weighs[node] and flow.stems[node] not in PARTITION:
        value = flow.data[node][0][1]
        node = value[0]
    return value


def _has_constant(flow: DataFlow, node: int) -> bool:
    return any(producer < 0 for producer, _ in flow.graph.edges[node])


def _shifts_a_constant(flow: DataFlow, node: int) -> bool:
    """Tell whether a sum shifts what has no gradient, scaled by another part of the condition."""
    if flow.stems[node] == "Cat":  # it puts things beside each other
        return False
    if _has_constant(flow, node):
        return True
    roots = [_root(flow, value) for _, value in flow.data[node]]
    return any(
        flow.stems[product] == "Mul" and _has_constant(flow, product) and roots.count(root) == 1
        for root, (_, (product, _)) in zip(roots, flow.data[node], strict=True)
    )


def _factors(flow: DataFlow, values: Sequence[Value]) -> set[Value]:
    """Return what values, and products among them, are of; whole tensors for parts of one."""
    found = set()
    for value in values:
        product = flow.stems[value[0]] == "Mul" and len(flow.data[value[0]]) > 1
        for factor in [v for _, v in flow.data[value[0]]] if product else [value]:
            root = _root(flow, factor)
            while flow.stems[root[0]] in PARTITION:
                root = _root(flow, flow.data[root[0]][0][1])
            found.add(root)
    return found


def _merges(flow: DataFlow, value: Value) -> int:
    """Return how many operations merge a value with other data as it is."""
    return len({node for node, _ in _met(flow, value) if flow.stems[node] in ELEMENTWISE})


def _is_added_to(flow: DataFlow, other: Value, stream: Value, node: int) -> bool:
    """Tell whether, at another place than `node`, `other` is added to what carries `stream` on."""
    number = flow.number[stream]
    return any(
        flow.kept[value] >> number & 1 or flow.kept[stream] >> flow.number[value] & 1
        for merge, position in _met(flow, other)
        if merge != node and flow.stems[merge] in ELEMENTWISE
        for place, value in flow.data[merge]
        if place != position and not (value == stream and flow.stems[merge] in FUSED)
    )


def _starts_anew(flow: DataFlow, stream: Value) -> bool:
    """Tell whether a stream comes, without data, from a layer that it comes by again.

    So does a state that is unrolled from zeros: what is added to it is all that it starts from.
    """
    node = stream[0]
    while len(flow.data[node]) == 1:
        node = flow.data[node][0][1][0]
    if flow.data[node]:
        return False
    weights = [producer for producer, _ in flow.graph.edges[node] if producer >= 0]
    while weights:
        weight = weights.pop()
        if len(flow.readers[weight]) > 1:
            return True
        weights += [producer for producer, _ in flow.graph.edges[weight] if producer >= 0]
    return False
