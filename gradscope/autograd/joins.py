"""Residual joins by name, each with the edges of its two ways.

The edges of the split value x fall into those that lead to the join only via the shortcut, only
via the branch, and the others (a gate that both terms share, readers elsewhere). The gradient at x
is the sum over its edges, so that via shortcut + via branch + others = total, exactly.

A join is *partial* if its terms got different parts of one tensor, as in a reversible coupling
(Gomez et al. 2017): then no value goes both ways, and there is no gradient to divide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gradscope.autograd import torch_internals
from gradscope.autograd.data_flow import PARTITION, DataFlow, node_kinds
from gradscope.autograd.graph import Call, Edge, Graph, Origins, Value, contains
from gradscope.autograd.residual import Residual, course, leads, reach, read
from gradscope.autograd.sums import Sum, Term, sums

_PARTS = PARTITION | node_kinds("Index IndexSelect")
"""Operations that take a part of a tensor, also by its indices."""


@dataclass(frozen=True, slots=True)
class Join:
    """A residual join: what it is called, and which edges of the graph belong to which way.

    `name`, `form`, `split`, `join`, `branch` are the columns of `schema.SHORTCUTS`. `value` is the
    block's input; `shortcut_edges`, `branch_edges` and `other_edges` are all the edges that read
    it. Without a gradient through `shortcut_cut` (`branch_cut`) the join acts in backward as if
    S(x) (F(x)) were detached. `shortcut_operand` is S(x), the sum of
    `branch_operands` with their signs F(x), up to the sign of all; both are empty where the sum
    itself scales a term, as lerp does.
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
    shortcut_operand: Value | None
    branch_operands: tuple[tuple[Value, int], ...]


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

    Raises
    ------
    Unavailable
        If this torch does not tell what is needed to find them.
    """
    torch_internals.check_names(graph.names)
    flow = DataFlow(graph, Origins(graph, calls))
    found: list[Join] = []
    halves: dict[int, Residual] = {}
    for total in sums(flow):
        way = read(flow, total)
        if way is None:
            continue
        if flow.stems[total.node] == "Cat":
            form = "concat"
            if any(value[0] in halves for term in total.terms for value in term.values):
                continue  # the parts of a coupling are put together again
        elif _takes_parts(flow, way) or any(
            _is_coupled(flow, way, node, half) for node, half in halves.items()
        ):
            form = "partial"
            halves[total.node] = way
        else:
            form = way.form
        found.append(_describe(flow, total, way, form))
    return sorted(found, key=lambda join: flow.origins.time(join.node))


def _takes_parts(flow: DataFlow, way: Residual) -> bool:
    """Tell whether both ways begin by taking a part of the split value."""
    readers = flow.consumers[flow.values[way.split]]
    return all(
        _takes_part(flow, edge[0])
        for edge in readers
        if leads(flow, edge, (way.shortcut, *way.branch))
    )


def _takes_part(flow: DataFlow, node: int) -> bool:
    if flow.stems[node] != "Alias":  # as torch 2.6 puts one before an index
        return flow.stems[node] in _PARTS
    outputs = flow.members(flow.outputs[node])
    readers = [edge for output in outputs for edge in flow.consumers.get(output, [])]
    return all(_takes_part(flow, reader) for reader, _ in readers)


def _is_coupled(flow: DataFlow, way: Residual, node: int, half: Residual) -> bool:
    """Tell whether a split reaches its branch only as the increment of a coupling's other half."""
    split = 1 << way.split
    if split & reach(flow, [half.shortcut]) or not split & reach(flow, half.branch):
        return False
    seen = {node}
    stack = [value for term in way.branch for value in term.values]
    while stack:
        value = stack.pop()
        if flow.number[value] == way.split:
            return False
        if value[0] not in seen:
            seen.add(value[0])
            stack += [value for _, value in flow.data[value[0]]]
    return True


def _describe(flow: DataFlow, total: Sum, way: Residual, form: str) -> Join:
    """Divide the split's edges, and name the ends of the join."""
    value = flow.values[way.split]
    gates = [Term((edge,), (flow.graph.edges[edge[0]][edge[1]],)) for edge in total.gates]
    parts: dict[tuple[bool, bool, bool], list[Edge]] = {}
    for edge in flow.consumers[value]:
        shortcut, branch, gate = (
            leads(flow, edge, terms) for terms in ((way.shortcut,), way.branch, gates)
        )
        parts.setdefault((shortcut, branch, gate), []).append(edge)
    shortcut_edges = parts.pop((True, False, False), [])
    branch_edges = parts.pop((False, True, False), [])
    if not branch_edges:  # one operation makes the gate and the branch
        shared = [key for key in parts if key[1]]
        branch_edges = sorted(edge for key in shared for edge in parts.pop(key))
    other_edges = sorted(edge for edges in parts.values() for edge in edges)
    name, branch_name = _names(flow, total, way, branch_edges)
    bare = all(term.sign for term in total.terms)
    return Join(
        form=form,
        name=name,
        split=_name(flow.origins.maker(value[0])),
        join=_name(flow.origins.maker(total.node)),
        branch=branch_name,
        node=total.node,
        value=value,
        shortcut_edges=tuple(shortcut_edges),
        branch_edges=tuple(branch_edges),
        other_edges=tuple(other_edges),
        shortcut_cut=way.shortcut.edges + way.shortcut.factors,
        branch_cut=tuple(edge for term in way.branch for edge in term.edges + term.factors),
        shortcut_operand=way.shortcut.values[0] if bare else None,
        branch_operands=tuple((t.values[0], t.sign) for t in way.branch) if bare else (),
    )


def _names(flow: DataFlow, total: Sum, way: Residual, edges: Sequence[Edge]) -> tuple[str, str]:
    """Return the name of the block and that of the first module of its branch."""
    origins = flow.origins
    inside = {node for node, _ in flow.between(way.split, reach(flow, way.branch))}
    inside |= {node for node, _ in edges}
    through = {node for node, _ in course(flow, way)} & inside
    home, before = origins.maker(total.node), origins.maker(flow.values[way.split][0])
    block = origins.holder([total.node, *(through or inside)])
    in_order = sorted(through, key=origins.time) + sorted(inside - through, key=origins.time)
    for node in in_order:  # a gate is not what the branch is called after
        call = origins.hidden(node) if not flow.stems[node] else None
        call = call or origins.maker(node)
        if call is None or (call is before and call.owns_parameters):
            continue  # a view that a layer makes of its own output
        if home is None or not contains(call, home):
            return _name(block), call.name
    return _name(block), _name(home)


def _name(call: Call | None) -> str:
    """Return the name of a call; the model itself, and what lies outside of it, is the root."""
    return call.name if call is not None and call.name else "(root)"
