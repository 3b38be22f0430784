"""Residual joins: the additions y = S(x) + F(x) of a graph, with no convention on the modules.

A value x is split where several operations read it, and joined where a sum takes

- one term, the *shortcut* S(x), to which x comes without passing a weight, and
- another, the *branch* F(x), to which x comes only through weights.

Of all such x the nearest is the block's input. The second condition is what keeps out additions
that are arithmetic and not architecture: in a hand-written GELU or layer norm, in a rotary
embedding or in a loss, x reaches both terms without a weight. Three more forms:

- *nested*: x reaches the branch without a weight too, but there is one on another way, as around
  an inner residual block;
- *projection*: the shortcut has weights of its own, is linear, and the branch has more of them;
- *partial*: the two terms got different parts of one tensor, as in a reversible coupling, so that
  no value goes both ways and there is no gradient to divide.

The edges of x then fall into those that lead to the join only via the shortcut, only via the
branch, and the others (a gate that both terms share, readers elsewhere). The gradient at x is the
sum over its edges, so that via shortcut + via branch + others = total, exactly.

Source: He et al. 2015 (identity, projection), Srivastava et al. 2015 (gated).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from gradscope.flow import LINEAR, LOOKUP, NORM, Flow, kinds, top, union
from gradscope.graph import Call, Edge, Graph, Makers, Value, contains
from gradscope.sums import Sum, Term, sums

NARROWING = kinds("Slice Split SplitWithSizes UnsafeSplit UnsafeSplitWithSizes Select")
RESIZING = kinds(
    "ConstantPadNd ReflectionPad1D ReflectionPad2D ReplicationPad1D ReplicationPad2D Cat CopySlices"
    " AvgPool1D AvgPool2D AvgPool3D AdaptiveAvgPool2D MaxPool2DWithIndices UpsampleNearest1D"
    " UpsampleNearest2D UpsampleNearest3D UpsampleLinear1D UpsampleBilinear2D"
)
"""On a shortcut these make a projection without weights: He's option A, pooling, upsampling."""

SQUARES = kinds("Pow Abs Norm LinalgVectorNorm")


@dataclass(frozen=True, slots=True)
class Join:
    """A residual join: what it is called, and which edges of the graph belong to which way.

    `name`, `form`, `split`, `join`, `branch` are the columns of `schema.SHORTCUTS`. `value` is the
    block's input; `shortcut_edges`, `branch_edges` and `other_edges` are all the edges that read
    it. Without a gradient through `shortcut_cut` (`branch_cut`) the join acts in backward as if
    S(x) (F(x)) were detached. `shortcut_operand` and the sum of `branch_operands` are S(x) and
    F(x); the latter are none where a fused operation never forms them.
    """

    form: str
    name: str
    split: str
    join: str
    branch: str
    node: int
    value: Value
    shortcut_edges: tuple[Edge, ...]
    branch_edges: tuple[Edge, ...]
    other_edges: tuple[Edge, ...]
    shortcut_cut: tuple[Edge, ...]
    branch_cut: tuple[Edge, ...]
    shortcut_operand: Value
    branch_operands: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class _Way:
    """One reading of a sum: which term is the shortcut, from which split, in which form."""

    shortcut: Term
    branch: tuple[Term, ...]
    split: int
    form: str
    weights: int = 0


def find_joins(graph: Graph, calls: Sequence[Call] = ()) -> list[Join]:
    """Find every residual join of a graph.

    Parameters
    ----------
    graph : Graph
    calls : sequence of Call
        The module calls of the same forward pass, in order of their start.

    Returns
    -------
    list of Join, in order of execution
        The same for every graph with the same `fingerprint`.
    """
    makers = Makers(graph, calls)
    flow = Flow(graph, makers)
    found: list[Join] = []
    partial: list[tuple[Sum, _Way]] = []
    for total in sums(flow):
        way = _read(flow, total)
        if way is None:
            continue
        join = _describe(flow, total, way, partial)
        if join.form == "partial":
            partial.append((total, way))
        found.append(join)
    return sorted(found, key=lambda join: makers.time(join.node))


def _read(flow: Flow, total: Sum) -> _Way | None:
    """Return the best reading of a sum as a residual join, None if it is none."""
    shape = flow.shape((total.node, 0))
    stem = flow.stems[total.node]
    if not shape or _is_loss(flow, total) or (stem == "Cat" and _is_series(flow, total)):
        return None
    ways = []
    for shortcut in total.terms:
        if len(shortcut.values) > 1 and not shortcut.gated:
            continue
        if stem not in ("Cat", "CopySlices", "Stack") and any(
            flow.shape(value) != shape for value in shortcut.values
        ):
            continue  # broadcast: a bias, a position embedding, a context vector
        branch = tuple(term for term in total.terms if term is not shortcut)
        way = _direct(flow, shortcut, branch)
        if way is None and stem != "Cat":
            way = _nested(flow, shortcut, branch) or _projection(flow, shortcut, branch, shape)
        if way is not None and not _is_injected(flow, way):
            ways.append(way)
    return min(ways, key=lambda way: (way.weights, -way.split), default=None)


def _direct(flow: Flow, shortcut: Term, branch: tuple[Term, ...]) -> _Way | None:
    """Read a sum by the rule: x comes to one term without a weight, to another only with."""
    carried = _carry(flow, shortcut)
    reach = union(_reach(flow, term) for term in branch)
    split = top(union(carried & _reach(flow, term) & ~_plain(flow, term) for term in branch))
    if split < 0:
        return None
    apart = any(
        _leads(flow, edge, [shortcut]) and not _leads(flow, edge, branch)
        for edge in flow.consumers[flow.values[split]]
    )
    if top(carried & reach) > split and not apart:
        return None  # a norm, say, stands in front of both terms
    return _Way(shortcut, branch, split, _form(flow, shortcut, split))


def _nested(flow: Flow, shortcut: Term, branch: tuple[Term, ...]) -> _Way | None:
    """Read a sum whose branch holds a shortcut, too, or multiplies x by a function of x."""
    reach = union(_reach(flow, term) for term in branch)
    split = top(_carry(flow, shortcut) & reach)
    if split < 0 or not any(flow.weighs[node] for node, _ in flow.between(split, reach)):
        return None
    inner_sum = not any(_carry(flow, term) >> split & 1 for term in branch)
    form = "nested" if inner_sum else _form(flow, shortcut, split)
    return _Way(shortcut, branch, split, form)


def _projection(
    flow: Flow, shortcut: Term, branch: tuple[Term, ...], shape: tuple[int, ...]
) -> _Way | None:
    """Read a sum whose shortcut is a linear chain of operations, some of them with weights."""
    if len(shortcut.values) > 1:
        return None
    reach = union(_reach(flow, term) for term in branch)
    value, weights = shortcut.values[0], 0
    while not reach >> flow.number[value] & 1:
        node = value[0]
        stem = flow.stems[node]
        if len(flow.data[node]) != 1 or stem not in LINEAR or stem in NARROWING:
            return None
        weights += flow.weighs[node]
        value = flow.data[node][0][1]
    inside = list(flow.between(flow.number[value], reach))
    deeper = len({node for node, _ in inside if flow.weighs[node]}) > weights
    bent = any(
        flow.stems[node] not in LINEAR
        or (len(flow.data[node]) > 1 and flow.stems[node] in ("Mul", "Div", "Bmm", "Mm"))
        for node, _ in inside
    )
    if not (deeper and bent and any(flow.shape(v) == shape for t in branch for v in t.values)):
        return None
    return _Way(shortcut, branch, flow.number[value], "projection", weights)


def _form(flow: Flow, shortcut: Term, split: int) -> str:
    """Name what a shortcut without weights does to its value."""
    inside = {
        node for value in shortcut.values for node, _ in flow.between(split, flow.carry[value])
    }
    stems = {flow.stems[node] for node in inside}
    gates = any(stem in ("Mul", "Div") for stem in stems) and any(
        len(flow.data[node]) > 1 for node in inside
    )
    if shortcut.gated or gates:
        return "gated"
    if stems & RESIZING or _adds_to_a_part(flow, shortcut):
        return "projection"
    if shortcut.scaled or stems & (NORM | {"Mul", "Div", "Neg", "Rsub"}):
        return "scaled"
    return "identity"


def _adds_to_a_part(flow: Flow, shortcut: Term) -> bool:
    """Tell whether `y[:, :n] += x`: the rest is padded with zeros, so to say."""
    node = shortcut.edges[0][0]
    sizes = [prod(flow.shape(value)) for value in ((node, 0), shortcut.values[0])]
    return flow.stems[node] == "CopySlices" and sizes[0] > sizes[1]


def _leads(flow: Flow, edge: Edge, terms: Sequence[Term]) -> bool:
    """Tell whether data that takes `edge` comes to one of the terms."""
    return any(
        edge in term.edges or bool(flow.outputs[edge[0]] & _reach(flow, term)) for term in terms
    )


def _reach(flow: Flow, term: Term) -> int:
    return union(flow.reach[value] for value in term.values)


def _plain(flow: Flow, term: Term) -> int:
    if term.weighted and flow.bears[term.edges[0][0]]:
        return 0
    return union(flow.plain[value] for value in term.values)


def _carry(flow: Flow, term: Term) -> int:
    return 0 if term.weighted else union(flow.carry[value] for value in term.values)


# --- sums that are none of the architecture ---------------------------------------------------


def _is_loss(flow: Flow, total: Sum) -> bool:
    """Tell whether a difference is only squared, or the like: a reconstruction error."""
    if flow.stems[total.node] not in ("Sub", "Rsub"):
        return False
    readers = {node for node, _ in flow.consumers.get((total.node, 0), [])}
    twice = [node for node in readers if flow.stems[node] == "Mul" and len(flow.data[node]) == 2]
    square = [node for node in twice if len({value for _, value in flow.data[node]}) == 1]
    return bool(readers) and all(flow.stems[node] in SQUARES or node in square for node in readers)


def _is_series(flow: Flow, total: Sum) -> bool:
    """Tell whether a concatenation collects samples or the steps of a series, not features."""
    values = [value for term in total.terms for value in term.values]
    dim = flow.graph.nodes[total.node]._saved_dim  # type: ignore[attr-defined]
    shape = flow.shape((total.node, 0))
    dim = (dim - 2**64 if dim >= 2**63 else dim) % len(shape)
    return dim == 0 or all(flow.shape(value)[dim] == 1 for value in values)


def _is_injected(flow: Flow, way: _Way) -> bool:
    """Tell whether the split is a looked-up embedding that every layer adds to its own data.

    Such is a position embedding that is added to the stream again, or a relative position bias
    of attention: it skips every layer in between, and is no input of any.
    """
    value = flow.values[way.split]
    readers = [node for node, _ in flow.consumers[value]]
    looked_up = any(
        flow.carry[value] >> number & 1 and flow.stems[node] in LOOKUP
        for number, (node, _) in enumerate(flow.values[: way.split + 1])
    )
    if not looked_up or any(flow.stems[node] not in ("Add", "Sub") for node in readers):
        return False
    to_attention = all(
        flow.stems[node] in ("Softmax", "SafeSoftmax")
        for reader in readers
        for node, _ in flow.consumers.get((reader, 0), [])
    )
    return to_attention or any(_is_stream(flow, v) for term in way.branch for v in term.values)


def _is_stream(flow: Flow, value: Value) -> bool:
    """Tell whether a value is a sum, or a normalised one."""
    node = value[0]
    while len(flow.data[node]) == 1 and not flow.weighs[node]:
        node = flow.data[node][0][1][0]
    return len(flow.data[node]) > 1 and flow.stems[node] in ("Add", "Sub")


# --- edges and names ----------------------------------------------------------------------------


def _describe(flow: Flow, total: Sum, way: _Way, partial: Sequence[tuple[Sum, _Way]]) -> Join:
    """Divide the split's edges, and name the ends of the join."""
    value = flow.values[way.split]
    gates = [Term((edge,), (flow.graph.edges[edge[0]][edge[1]],)) for edge in total.gates]
    parts: dict[tuple[bool, ...], list[Edge]] = {}
    for edge in flow.consumers[value]:
        leads = tuple(_leads(flow, edge, w) for w in ((way.shortcut,), way.branch, gates))
        parts.setdefault(leads, []).append(edge)
    shortcut_edges = parts.pop((True, False, False), [])
    branch_edges = parts.pop((False, True, False), [])
    if not branch_edges:  # gate and branch by one fused operation
        keys = [leads for leads in parts if leads[1]]
        branch_edges = sorted(edge for leads in keys for edge in parts.pop(leads))
    other_edges = sorted(edge for edges in parts.values() for edge in edges)
    form = way.form
    if flow.stems[total.node] == "Cat":
        form = "concat"
    elif (
        not shortcut_edges
        or not branch_edges
        or _takes_parts(flow, shortcut_edges + branch_edges)
        or any(_is_coupled(flow, way, half) for half in partial)
    ):
        form = "partial"
    name, branch = _names(flow, total, way, branch_edges)
    return Join(
        form=form,
        name=name,
        split=_name(flow.makers.maker(value[0])),
        join=_name(flow.makers.maker(total.node)),
        branch=branch,
        node=total.node,
        value=value,
        shortcut_edges=tuple(shortcut_edges),
        branch_edges=tuple(branch_edges),
        other_edges=tuple(other_edges),
        shortcut_cut=way.shortcut.edges,
        branch_cut=tuple(edge for term in way.branch for edge in term.edges),
        shortcut_operand=way.shortcut.values[0],
        branch_operands=tuple(
            value for term in way.branch for value in term.values if len(term.values) == 1
        ),
    )


def _takes_parts(flow: Flow, edges: Sequence[Edge]) -> bool:
    """Tell whether shortcut and branch both begin by taking a part of the split value."""
    return all(flow.stems[node] in NARROWING for node, _ in edges)


def _is_coupled(flow: Flow, way: _Way, half: tuple[Sum, _Way]) -> bool:
    """Tell whether a split reaches its branch only as the increment of the other half."""
    other, other_way = half
    split = 1 << way.split
    if split & _reach(flow, other_way.shortcut):
        return False
    if not any(split & _reach(flow, term) for term in other_way.branch):
        return False
    seen = {other.node}
    stack = [value for term in way.branch for value in term.values]
    while stack:
        value = stack.pop()
        if flow.number[value] == way.split:
            return False
        if value[0] not in seen:
            seen.add(value[0])
            stack += [value for _, value in flow.data[value[0]]]
    return True


def _names(flow: Flow, total: Sum, way: _Way, edges: Sequence[Edge]) -> tuple[str, str]:
    """Return the name of the block and that of the first module of its branch."""
    makers = flow.makers
    by_branch = union(_reach(flow, term) for term in way.branch)
    outside = _reach(flow, way.shortcut)
    inside = {
        node
        for node, slot in flow.between(way.split, by_branch)
        if not outside >> flow.number[node, slot] & 1
    }
    inside |= {node for node, _ in edges}
    executed = sorted(inside, key=makers.time)
    home = makers.maker(total.node)
    block = makers.holder([total.node, *inside])
    for node in executed:
        call = makers.hidden(node) if not flow.stems[node] else None
        call = call or makers.maker(node)
        if call is not None and (home is None or not contains(call, home)):
            return _name(block), call.name
    return _name(block), _name(home)


def _name(call: Call | None) -> str:
    """Return the name of a call; the model itself, and what lies outside of it, is the root."""
    return call.name if call is not None and call.name else "(root)"
