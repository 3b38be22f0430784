"""The sums of a graph: every operation that adds (or concatenates) two or more data terms.

A sum is not always one `+`. What is one sum in the formula is read as one:

- a + b + c in one module, whatever the order of the additions;
- u + g * (v - u), which is (1 - g) * u + g * v: an interpolation, as in a GRU cell;
- stack([a, b]).sum(0), lerp, addcmul, addmm, and additions in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from gradscope.autograd import torch_internals
from gradscope.autograd.data_flow import DataFlow, signed, union
from gradscope.autograd.graph import Edge, Value

MERGED = ("Add", "Sub")


@dataclass(frozen=True, slots=True)
class Term:
    """One term of a sum: a value, or the product of several, and the edges by which it enters.

    `factors` are the edges of parameters that the sum itself multiplies the term with. `sign` is 1
    or -1 where the term is its value or minus that, 0 where the sum brings another factor along.
    """

    edges: tuple[Edge, ...]
    values: tuple[Value, ...]
    scaled: bool = False
    gated: bool = False
    weighted: bool = False
    factors: tuple[Edge, ...] = ()
    sign: int = 1


@dataclass(frozen=True, slots=True)
class Sum:
    """An addition of data terms at `node`; `gates` are edges of a gate that is no term itself."""

    node: int
    terms: tuple[Term, ...]
    gates: tuple[Edge, ...] = ()


def sums(flow: DataFlow) -> list[Sum]:
    """Return the sums and concatenations with at least two data terms, producers first."""
    found = []
    part_of_another: set[int] = set()
    roots = [n for n in range(flow.graph.structure.roots) if not flow.parameter[n]]
    reached = union(flow.reach[root, 0] for root in roots)  # not what made weights
    for node in reversed(flow.order):
        if node in part_of_another or not flow.outputs[node] & reached:
            continue
        terms = _terms(flow, node)
        if len(terms) < 2:
            continue
        whole = _interpolation(flow, node, terms, part_of_another)
        if whole is None:
            merged = _merge(flow, node, terms, part_of_another)
            whole = Sum(node, tuple(merged))
        found.append(whole)
    return found[::-1]


def _terms(flow: DataFlow, node: int) -> list[Term]:
    """Return the data terms that one operation adds; none if it does not add."""
    stem = flow.stems[node]
    saved = flow.graph.nodes[node]
    data = flow.data[node]
    if len(data) < 2:
        return []
    terms = [Term(((node, position),), (value,)) for position, value in data]
    if stem in ("Add", "Sub", "Rsub"):
        alpha = torch_internals.saved(saved, "alpha")
        scaled = (stem == "Rsub", stem == "Sub" or alpha != 1)
        times_alpha = _sign(alpha if stem == "Add" else -alpha)
        signs = (times_alpha, 1) if stem == "Rsub" else (1, times_alpha)
        return [
            replace(t, scaled=scaled[p], sign=signs[p])
            for t, (p, _) in zip(terms, data, strict=True)
        ]
    if stem == "Lerp":
        gated = any(position == 2 for position, _ in data)
        return [
            replace(t, scaled=not gated, gated=gated, sign=0)
            for t, (p, _) in zip(terms, data, strict=True)
            if p < 2
        ]
    if stem in ("Addcmul", "Addcdiv", "Addmm", "Addbmm", "Baddbmm", "Addmv"):
        return _with_product(flow, node, terms)
    if stem == "Stack":
        return terms if _is_summed(flow, node) else []
    if stem == "Cat":
        return terms
    if stem == "CopySlices":
        factor = _adds_in_place(flow, node)
        return [terms[0], replace(terms[1], sign=_sign(factor))] if factor else []
    if stem in ("IndexAdd", "ScatterAdd"):
        return [terms[0], *(replace(term, sign=0) for term in terms[1:])]
    if not stem and not flow.bears[node] and _only_adds(flow, node):
        return [replace(term, sign=0) for term in terms]
    return []


def _with_product(flow: DataFlow, node: int, terms: list[Term]) -> list[Term]:
    """Split the terms of a fused a + b * c into a and the product."""
    product = [term for term in terms if term.edges[0][1] > 0]
    if len(product) == len(terms):
        return []
    edges = tuple(edge for term in product for edge in term.edges)
    values = tuple(value for term in product for value in term.values)
    matrix = flow.stems[node] not in ("Addcmul", "Addcdiv")
    gated = len(product) > 1
    factors = tuple(
        (node, position)
        for position, (producer, _) in enumerate(flow.graph.edges[node])
        if position > 0 and producer >= 0 and (node, position) not in edges
    )
    # only those with a matrix scale what they add to
    beta = torch_internals.saved(flow.graph.nodes[node], "beta") if matrix else 1
    first = replace(terms[0], sign=_sign(beta))
    return [first, Term(edges, values, not gated, gated, matrix, factors, sign=0)]


def _sign(factor: float) -> int:
    return int(factor) if abs(factor) == 1 else 0


def _is_summed(flow: DataFlow, node: int) -> bool:
    """Tell whether stacked tensors are, maybe after a scaling, added up over the new dimension."""
    dims = len(flow.shape((node, 0)))
    stacked = flow.dimension(node)
    while (only := flow.only_reader((node, 0))) is not None:
        node = only[0]
        if flow.stems[node] in ("Sum", "Mean"):
            over = _summed_over(flow, node)
            return [signed(dim) % dims for dim in over] == [stacked]
        if flow.stems[node] not in ("Mul", "Div"):
            return False
    return False


def _summed_over(flow: DataFlow, node: int) -> tuple[int, ...]:
    """Return the dimensions that a sum or mean was taken over, none where it is over all."""
    if flow.graph.names[node] not in ("SumBackward1", "MeanBackward1"):
        return ()
    dims: tuple[int, ...] = torch_internals.saved(flow.graph.nodes[node], "dim")
    return dims


def _adds_in_place(flow: DataFlow, node: int) -> float:
    """Ask an in-place operation on a view by which factor it added its operand; 0 if it did not.

    The graph does not name the operation, but its backward can be called: an addition hands the
    gradient on to its first input as it is, and to the second one up to a factor; a product would
    scale by the data, and a copy drop the first part. Once per structure, without side effects.
    """
    first, *others = torch_internals.backward_of_ones(flow.graph.nodes[node]) or (None,)
    if first is None or first.is_meta or len(others) != 1 or others[0] is None:
        return 0.0
    factor = others[0].flatten()[0]
    added = (first == 1).all() and (others[0] == factor).all()
    return float(factor) if added else 0.0


def _only_adds(flow: DataFlow, node: int) -> bool:
    """Tell whether a custom Function of several tensors is a sum.

    One that saves nothing for its backward is linear in each of its inputs, hence in all.
    """
    shape = flow.shape((node, 0))
    function = flow.graph.nodes[node]
    return torch_internals.saves_nothing(function) and all(
        flow.shape(value) == shape for _, value in flow.data[node]
    )


def _merge(flow: DataFlow, node: int, terms: Sequence[Term], part: set[int]) -> list[Term]:
    """Replace terms that are themselves sums, made in the same module for this sum alone."""
    if flow.stems[node] not in MERGED:
        return list(terms)
    merged = []
    for term in terms:
        inner = term.values[0][0]
        shared = {value for other in terms if other is not term for value in other.values}
        same = flow.origins.maker(inner) is flow.origins.maker(node)
        inner_terms = _terms(flow, inner) if flow.stems[inner] in MERGED else []
        alone = flow.only_reader(term.values[0]) is not None
        if (
            len(inner_terms) > 1
            and same
            and alone
            and inner not in part
            and not any(shared & set(other.values) for other in inner_terms)
            and _interpolation(flow, inner, inner_terms, set()) is None
        ):
            part.add(inner)
            inner_terms = [
                replace(t, scaled=t.scaled or term.scaled, sign=t.sign * term.sign)
                for t in inner_terms
            ]
            merged += _merge(flow, inner, inner_terms, part)
        else:
            merged.append(term)
    return merged


def _interpolation(flow: DataFlow, node: int, terms: Sequence[Term], part: set[int]) -> Sum | None:
    """Read u + g * (v - u) as a sum of u and v; g may be data (gated) or constant (scaled)."""
    if len(terms) != 2 or flow.stems[node] == "Cat":
        return None
    for u, product in (terms, terms[::-1]):
        if len(u.values) != 1:
            continue
        for difference, gates in _scaled_differences(flow, product):
            ends = flow.data[difference]
            if len(ends) != 2 or u.values[0] not in (value for _, value in ends):
                continue
            whole = []
            for position, value in ends:
                edges: tuple[Edge, ...] = ((difference, position),)
                if value == u.values[0]:
                    edges = (*u.edges, *edges)
                whole.append(Term(edges, (value,), not gates, bool(gates), sign=0))
            part.add(difference)
            return Sum(node, tuple(whole), gates)
    return None


def _scaled_differences(flow: DataFlow, term: Term) -> list[tuple[int, tuple[Edge, ...]]]:
    """Return subtractions that a term is a multiple of, each with the gates it is multiplied by."""
    factors = list(zip(term.edges, term.values, strict=True))
    if len(factors) == 1:
        node = term.values[0][0]
        if flow.only_reader(term.values[0]) is None:
            return []
        if flow.stems[node] == "Sub" and term.scaled:
            return [(node, ())]
        if flow.stems[node] != "Mul":
            return []
        factors = [((node, position), value) for position, value in flow.data[node]]
    return [
        (factor[0], tuple(edge for edge, _ in factors if edge != own))
        for own, factor in factors
        if flow.stems[factor[0]] == "Sub" and flow.only_reader(factor) is not None
    ]
