"""The same net with its shortcuts (or branches) cut: what would reach each layer then.

The forward pass is as it was, so this is not the plain net: only in backward no gradient passes the
chosen edges, as if the user had written `shortcut.detach()`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from gradscope.autograd.graph import Edge, Graph
from gradscope.capture.forwards.plan import Plan
from gradscope.errors import GradscopeError

REENTRANT = "CheckpointFunctionBackward"
"""Node of re-entrant checkpointing, whose backward always adds to `.grad`: it cannot be cut."""


class CutGraph:
    """A graph whose gradient can be taken a second time, within the first, with edges cut.

    Parameters
    ----------
    graph : Graph
    roots : sequence of (Node, slot)
        Outputs of the model.
    plan : Plan
    what : "shortcuts" or "branches"
    """

    def __init__(
        self, graph: Graph, roots: Sequence[tuple[Node, int]], plan: Plan, what: str
    ) -> None:
        self._graph = graph
        self._roots = roots
        self._edges = plan.cuts[what]
        self._outputs = plan.outputs
        self._reached: set[int] = set()
        self._like: Tensor | None = None
        self._sums: list[Tensor | None] = [None] * len(plan.outputs)

    def backward(self, root: int, gradients: tuple[Tensor | None, ...]) -> bool:
        """Take the gradient that has arrived at an output of the model on through the cut graph.

        Parameters
        ----------
        root : index of the output
        gradients : of the node that made it, as its prehook gets them

        Returns
        -------
        bool
            Whether no other output can add anything: time to `read`.
        """
        node, slot = self._roots[root]
        arrived = gradients[slot]
        if arrived is None or root in self._reached:
            return False
        found = grad_with_cuts(
            self._graph,
            self._edges,
            [GradientEdge(node, slot)],
            [GradientEdge(self._graph.nodes[n], s) for (n, s), _ in self._outputs],
            [arrived],
        )
        for i, gradient in enumerate(found):
            known = self._sums[i]
            if gradient is not None:
                self._sums[i] = gradient if known is None else known + gradient
        self._like = arrived
        self._reached |= self._below(root)
        return len(self._reached) == len(self._roots)

    def read(self) -> Iterator[tuple[int, Tensor]]:
        """Yield (layer, gradient) for each output of a layer; zero where nothing arrives."""
        if self._like is not None:
            nothing = self._like.new_zeros(())
            for (_, layer), gradient in zip(self._outputs, self._sums, strict=True):
                yield layer, nothing if gradient is None else gradient

    def _below(self, root: int) -> set[int]:
        """Return the outputs of the model that `root` was computed from, itself included."""
        places = {(self._graph.index[node], slot): i for i, (node, slot) in enumerate(self._roots)}
        seen = {self._graph.index[self._roots[root][0]]}
        below, queue = {root}, list(seen)
        while queue:
            for producer, slot in self._graph.edges[queue.pop()]:
                if (producer, slot) in places:
                    below.add(places[producer, slot])
                if producer >= 0 and producer not in seen:
                    seen.add(producer)
                    queue.append(producer)
        return below


def grad_with_cuts(
    graph: Graph,
    edges: Sequence[Edge],
    outputs: Sequence[GradientEdge] | Sequence[Tensor],
    inputs: Sequence[GradientEdge],
    gradients: Sequence[Tensor] | None = None,
) -> tuple[Tensor | None, ...]:
    """Return `torch.autograd.grad` of `outputs` to `inputs` with no gradient through `edges`.

    The graph is kept, and no `.grad` is touched.

    Raises
    ------
    GradscopeError
        Under re-entrant checkpointing, whose backward would add to `.grad`.
    """
    if any(name.startswith(REENTRANT) for name in graph.names):
        raise GradscopeError(
            "a graph with re-entrant checkpointing cannot be cut; use"
            " torch.utils.checkpoint.checkpoint(..., use_reentrant=False)"
        )
    with without(graph, edges):
        return torch.autograd.grad(outputs, inputs, gradients, retain_graph=True, allow_unused=True)


@contextmanager
def without(graph: Graph, edges: Sequence[Edge]) -> Iterator[None]:
    """Let no gradient pass `edges` of `graph`."""
    positions: dict[int, set[int]] = defaultdict(set)
    for consumer, position in edges:
        positions[consumer].add(position)

    def drop(dropped: set[int]) -> Callable[..., tuple[Tensor | None, ...]]:
        return lambda gradients, _: tuple(
            None if i in dropped else gradient for i, gradient in enumerate(gradients)
        )

    handles = [graph.nodes[n].register_hook(drop(dropped)) for n, dropped in positions.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
