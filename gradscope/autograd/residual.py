"""The rule that tells a residual join y = S(x) + F(x) from any other sum.

It has no convention on the modules. A value x is split where several operations read it, and
joined where a sum takes

- one term, the *shortcut* S(x), to which x comes without passing a weight, and
- another, the *branch* F(x), to which x comes only through weights.

Of all such x the nearest is the block's input. The second condition is what keeps out additions
that are arithmetic and not architecture: in a hand-written GELU or layer norm, in a rotary
embedding or in a loss, x reaches both terms without a weight. Two more readings of a sum:

- *nested*: x reaches the branch without a weight too, but there is one on another way, as around
  an inner residual block;
- *projection*: the shortcut has weights of its own, is linear, and the branch has more of them.

What is injected into a stream, layer by layer, comes to both terms, too: see `injection`.

Source: He et al. 2015 (identity, projection), Srivastava et al. 2015 (gated).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from gradscope.autograd.data_flow import (
    LINEAR,
    NORM,
    PARTITION,
    DataFlow,
    node_kinds,
    top,
    union,
)
from gradscope.autograd.graph import Edge, Value
from gradscope.autograd.injection import is_condition, is_injected, is_query
from gradscope.autograd.sums import Sum, Term

RESIZING = node_kinds(
    "ConstantPadNd ReflectionPad1D ReflectionPad2D ReplicationPad1D ReplicationPad2D Cat CopySlices"
    " AvgPool1D AvgPool2D AvgPool3D AdaptiveAvgPool2D MaxPool2DWithIndices UpsampleNearest1D"
    " UpsampleNearest2D UpsampleNearest3D UpsampleLinear1D UpsampleBilinear2D"
)
"""On a shortcut these make a projection without weights: He's option A, pooling, upsampling."""

SQUARES = node_kinds("Pow Abs Norm LinalgVectorNorm")


@dataclass(frozen=True, slots=True)
class Residual:
    """One reading of a sum: which term is the shortcut, from which split, in which form."""

    shortcut: Term
    branch: tuple[Term, ...]
    split: int
    form: str
    weights: int = 0


def read(flow: DataFlow, total: Sum) -> Residual | None:
    """Return the best reading of a sum as a residual join, None if it is none."""
    shape = flow.shape((total.node, 0))
    concat = flow.stems[total.node] == "Cat"
    if not shape or _is_loss(flow, total) or (concat and _is_series(flow, total)):
        return None
    ways = []
    for shortcut in total.terms:
        if not _is_whole(flow, total, shortcut):
            continue
        branch = tuple(term for term in total.terms if term is not shortcut)
        way = _direct(flow, shortcut, branch)
        if way is None and concat:
            way = _carried_on(flow, shortcut, branch)
        elif way is not None and (concat or way.form == "gated") and _is_gated_only(flow, way):
            way = None  # a selection: different data, weighed by gates that all of them make
        if way is None and not concat:
            way = _nested(flow, shortcut, branch) or _projection(flow, total, shortcut, branch)
        if way is not None:
            ways.append(way)
    ways.sort(key=lambda way: (way.weights, -way.split))
    way = next((w for w in ways if not is_injected(flow, total, w.shortcut, w.split)), None)
    if way is None:
        return None
    stream = [value for term in way.branch for value in term.values]
    if way.form == "projection":
        stream.append(flow.values[way.split])
    return None if is_query(flow, total, stream) else way


def _direct(flow: DataFlow, shortcut: Term, branch: tuple[Term, ...]) -> Residual | None:
    """Read a sum by the rule: x comes to one term without a weight, to another only with."""
    carried = carry(flow, shortcut)
    split = top(union(carried & reach(flow, [term]) & ~plain(flow, term) for term in branch))
    if split < 0:
        return None
    apart = any(
        leads(flow, edge, [shortcut]) and not leads(flow, edge, branch)
        for edge in flow.consumers[flow.values[split]]
    )
    if top(carried & reach(flow, branch)) > split and not apart:
        return None  # a norm, say, stands in front of both terms
    return Residual(shortcut, branch, split, _form(flow, shortcut, split))


def _nested(flow: DataFlow, shortcut: Term, branch: tuple[Term, ...]) -> Residual | None:
    """Read a sum whose branch holds a shortcut, too, or multiplies x by a function of x."""
    below = reach(flow, branch)
    split = top(carry(flow, shortcut) & below)
    if split < 0 or not any(flow.weighs[node] for node, _ in flow.between(split, below)):
        return None
    if not any(carry(flow, term) >> split & 1 for term in branch):
        return Residual(shortcut, branch, split, "nested")
    form = _form(flow, shortcut, split)
    return None if form == "gated" else Residual(shortcut, branch, split, form)


def _carried_on(flow: DataFlow, shortcut: Term, branch: tuple[Term, ...]) -> Residual | None:
    """Read a concatenation of x with what a block with a shortcut of its own made of it."""
    way = _nested(flow, shortcut, branch)
    kept = union(flow.kept[value] for term in branch for value in term.values)
    if way is None or not kept >> way.split & 1:
        return None
    inside = flow.between(way.split, carry(flow, shortcut))
    parts = any(flow.stems[node] in PARTITION for node, _ in inside)
    return None if parts else way  # parts of one tensor, put together again


def _projection(
    flow: DataFlow, total: Sum, shortcut: Term, branch: tuple[Term, ...]
) -> Residual | None:
    """Read a sum whose shortcut is a linear chain of operations, some of them with weights."""
    below = reach(flow, branch)
    value, weights = shortcut.values[0], 0
    while not below >> flow.number[value] & 1:
        node = value[0]
        if len(flow.data[node]) != 1 or not _projects(flow, node):
            return None
        weights += flow.weighs[node]
        value = flow.data[node][0][1]
    if not weights:
        return None  # both ways begin with a part of one tensor
    way = Residual(shortcut, branch, flow.number[value], "projection", weights)
    inside = {node for node, _ in flow.between(way.split, below)}
    deeper = sum(flow.weighs[node] for node in inside) > weights
    bent = any(not flow.is_linear(node) for node in inside)
    shape = flow.shape((total.node, 0))
    equal = any(flow.shape(value) == shape for term in branch for value in term.values)
    if not (deeper and bent and equal) or is_condition(flow, value, below, inside):
        return None
    if _is_gated_only(flow, way) or not flow.goes_on(total.node):
        return None  # it makes a gate, or what a gate lets in, as in a recurrent cell
    return way


def _projects(flow: DataFlow, node: int) -> bool:
    """Tell whether an operation on one value may be in a projection: it is linear, or pools."""
    stem = flow.stems[node]
    if stem in PARTITION:  # of the features that a weight made, not of a series
        dims = len(flow.shape((node, 0)))
        return stem != "Select" and flow.dimension(node) == (1 if dims > 3 else dims - 1)
    return (stem in LINEAR or stem in RESIZING) and not flow.acts_in_place(node)


def _form(flow: DataFlow, shortcut: Term, split: int) -> str:
    """Name what a shortcut without weights does to its value."""
    inside = {
        node for value in shortcut.values for node, _ in flow.between(split, flow.carry[value])
    }
    stems = {flow.stems[node] for node in inside if not flow.acts_in_place(node)}
    factors = [len(flow.data[node]) for node in inside if flow.stems[node] in ("Mul", "Div")]
    if shortcut.gated or any(number > 1 for number in factors):
        return "gated"
    if stems & RESIZING or _adds_to_a_part(flow, shortcut):
        return "projection"
    if shortcut.scaled or factors or stems & (NORM | {"Neg", "Rsub"}):
        return "scaled"
    return "identity"


def _adds_to_a_part(flow: DataFlow, shortcut: Term) -> bool:
    """Tell whether `y[:, :n] += x`: the rest is padded with zeros, so to say."""
    node = shortcut.edges[0][0]
    whole, part = (prod(flow.shape(value)) for value in ((node, 0), shortcut.values[0]))
    return flow.stems[node] == "CopySlices" and whole > part


# --- what reaches a term ------------------------------------------------------------------------


def reach(flow: DataFlow, terms: Sequence[Term]) -> int:
    """Return the values that come to some of the terms."""
    return union(flow.reach[value] for term in terms for value in term.values)


def plain(flow: DataFlow, term: Term) -> int:
    """Return the values that come to a term without passing a weight."""
    if term.weighted and flow.bears[term.edges[0][0]]:
        return 0
    return union(flow.plain[value] for value in term.values)


def carry(flow: DataFlow, term: Term) -> int:
    """Return the values that a term may be a shortcut of."""
    return 0 if term.weighted else union(flow.carry[value] for value in term.values)


def leads(flow: DataFlow, edge: Edge, terms: Sequence[Term]) -> bool:
    """Tell whether what takes `edge` comes to one of the terms."""
    entered = any(edge in term.edges for term in terms)
    return entered or bool(flow.outputs[edge[0]] & reach(flow, terms))


def course(flow: DataFlow, way: Residual) -> set[Value]:
    """Return the values on the ways from x, included, to the branch, but for those of gates."""
    found: set[Value] = set()
    stack = [value for term in way.branch for value in term.values]
    while stack:
        value = stack.pop()
        if value in found or value[0] in flow.gates or not flow.reach[value] >> way.split & 1:
            continue
        found.add(value)
        if flow.number[value] != way.split:
            stack += [value for _, value in flow.data[value[0]]]
    return found


# --- sums that are none of the architecture -----------------------------------------------------


def _is_whole(flow: DataFlow, total: Sum, term: Term) -> bool:
    """Tell whether a term has the shape of the sum: no bias, position or context is spread."""
    if len(term.values) > 1 and not term.gated:
        return False
    shape = flow.shape((total.node, 0))
    if flow.stems[total.node] in ("Cat", "CopySlices", "Stack"):
        return True
    return all(flow.shape(value) == shape for value in term.values)


def _is_loss(flow: DataFlow, total: Sum) -> bool:
    """Tell whether a difference is only squared, or the like: a reconstruction error."""
    if flow.stems[total.node] not in ("Sub", "Rsub"):
        return False
    readers = {node for node, _ in flow.consumers.get((total.node, 0), [])}
    return bool(readers) and all(
        flow.stems[node] in SQUARES
        or (flow.stems[node] == "Mul" and [v for _, v in flow.data[node]] == [(total.node, 0)] * 2)
        for node in readers
    )


def _is_series(flow: DataFlow, total: Sum) -> bool:
    """Tell whether a concatenation collects samples or the steps of a series, not features."""
    dim = flow.dimension(total.node)
    values = [value for term in total.terms for value in term.values]
    return dim == 0 or all(flow.shape(value)[dim] == 1 for value in values)


def _is_gated_only(flow: DataFlow, way: Residual) -> bool:
    """Tell whether x comes to the branch only as a gate upon other data."""
    return flow.values[way.split] not in course(flow, way)
