"""A residual net as the sum of its paths: how much of the gradient passed how many branches."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from math import comb
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gradscope import measure
from gradscope.autograd.graph import Graph, Value, walk
from gradscope.autograd.joins import Join
from gradscope.capture.forwards.forward import gradient_edge
from gradscope.errors import GradscopeError
from gradscope.probes.probe import LossFn, Probe, probe_of
from gradscope.schema import SPLIT_FORMS

if TYPE_CHECKING:
    import pandas as pd


def path_lengths(model: nn.Module, loss_fn: LossFn, batch: Any) -> pd.DataFrame:
    """Measure how much of the gradient at the input comes over paths through k branches.

    A net of n residual blocks is the sum of 2^n paths (Veit et al. 2016, Residual Networks Behave
    Like Ensembles of Relatively Shallow Networks). The gradient is carried back as a polynomial
    whose k-th coefficient has passed k branches, so that all coefficients add up to the gradient.

    Parameters
    ----------
    model, loss_fn, batch
        As for `cut`.

    Returns
    -------
    pandas.DataFrame, one row a number of branches
        `branches` : k. `paths` : how many such paths a chain of as many blocks has. `norm` : L2
        norm of the gradient over them, at the inputs if these are floating point, else at the
        input of the first block. `share` : its projection onto the whole gradient over the square
        of that gradient's norm; shares add up to 1, norms do not add up.

    Raises
    ------
    GradscopeError
        If the loss does not depend on the model, there is no residual block, or the model is
        distributed or uses re-entrant checkpointing.
    """
    import pandas as pd

    with probe_of(model, loss_fn, batch, differentiate_inputs=True) as probe:
        joins = [join for join in probe.joins if join.form in SPLIT_FORMS]
        if not joins:
            raise GradscopeError(
                f"path_lengths(): {type(model).__name__} has no residual block to split paths at"
            )
        at = probe.input_value(joins)
        terms = _polynomial(probe, joins, at)
    whole = torch.stack(list(terms.values())).double().sum(0)
    square = whole.square().sum()
    return pd.DataFrame(
        {
            "branches": k,
            "paths": comb(len(joins), k),
            "norm": float(measure.norm(term)),
            "share": float((term.double() * whole).sum() / square),
        }
        for k, term in sorted(terms.items())
    )


def _polynomial(probe: Probe, joins: Sequence[Join], at: Value) -> dict[int, Tensor]:
    """Return number of branches passed -> gradient at the value `at` over such paths."""
    graph = walk([gradient_edge(probe.loss)], probe.inputs)
    target = graph.index[probe.graph.nodes[at[0]]], at[1]
    branches = {
        (graph.index[probe.graph.nodes[node]], position)
        for join in joins
        for node, position in join.branch_cut
    }
    leads = _ancestors(graph, target[0])
    arriving: dict[int, dict[int, dict[int, Tensor]]] = defaultdict(lambda: defaultdict(dict))
    arriving[0][0][0] = torch.ones_like(probe.loss)
    for node in reversed(graph.order()):  # consumers before producers
        if node == target[0] or node not in leads:
            continue
        gradient_fn = graph.nodes[node]
        run = gradient_fn if callable(gradient_fn) else gradient_fn.apply  # type: ignore[attr-defined]
        for k, slots in arriving.pop(node, {}).items():
            gradients = [slots.get(slot) for slot in range(max(slots) + 1)]
            passed = run(*gradients)
            passed = passed if isinstance(passed, tuple) else (passed,)
            for position, (producer, slot) in enumerate(graph.edges[node]):
                if passed[position] is None or producer not in leads:
                    continue
                length = k + ((node, position) in branches)
                known = arriving[producer][length].get(slot)
                new = passed[position]
                arriving[producer][length][slot] = new if known is None else known + new
    return {k: slots[target[1]].detach() for k, slots in arriving[target[0]].items()}


def _ancestors(graph: Graph, node: int) -> set[int]:
    """Return the nodes whose gradient goes on to `node`, itself included."""
    leads = {node}
    for consumer in graph.order():
        if any(producer in leads for producer, _ in graph.edges[consumer]):
            leads.add(consumer)
    return leads
