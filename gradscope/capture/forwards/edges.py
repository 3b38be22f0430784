"""Finds the layers between which data flow, once for each structure of a graph."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, cast

from torch import Tensor
from torch.autograd.graph import Node

from gradscope.autograd.graph import Call, Graph
from gradscope.autograd.layer_flow import END, Port, find_flow
from gradscope.autograd.torch_internals import current_backward
from gradscope.capture.forwards.forward import Forward, NodeSlot
from gradscope.capture.net.catalogue import Catalogue
from gradscope.capture.net.edge_list import End, Gate

LOOKS = 256
"""Outermost calls of which it is looked for where their inputs come from."""


class EdgeFinder:
    """Adds the edges of forwards to the catalogue.

    Modules of a model may be called one after the other, from outside of it, so that each leaves a
    graph of its own. The nodes of what they return are marked, by which a later call is found to
    be given it.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._mark = f"gradscope {id(self)}"
        self._looks = 0

    def follow(self, module: int, call: Call) -> None:
        """Note what the outermost call of `module` was given of others, and mark what it returns.

        The marks live as long as the graph.
        """
        if call.inputs and self._looks < LOOKS:
            self._looks += 1
            for position, edge in enumerate(call.inputs):
                gate = Gate("in", module, position)
                self._add({(source, gate) for source in self._marked(edge)})
        for position, (node, slot) in enumerate(call.outputs):
            if node.next_functions:  # a leaf outlives the graph
                _metadata(node).setdefault(self._mark, {})[slot] = Gate("out", module, position)

    def add(self, graph: Graph, forward: Forward) -> None:
        """Add the edges of one forward, whose graph is of a new structure."""
        calls, modules = forward.calls, [module.number for module, _ in forward.returned()]
        are_layers = [layer is not None for layer in forward.layers]

        def end(found: int | Port) -> End:
            if isinstance(found, Port):
                return Gate(found.side, modules[found.call], found.position)
            return END if found == END else modules[found]

        flow = find_flow(graph, calls, are_layers)
        pairs = {(end(source), end(target)) for source, target in flow.pairs}
        if current_backward() == -1:
            for position in range(len(calls[0].outputs)):
                pairs.add((Gate("out", modules[0], position), END))
        self._add(pairs)
        for (node, slot), some in flow.left:
            ends = {(end(source), end(target)) for source, target in some}
            if node.next_functions:
                node.register_prehook(partial(self._arrives, slot, ends))

    def _arrives(
        self, slot: int, pairs: set[tuple[End, End]], gradients: tuple[Tensor | None, ...]
    ) -> None:
        """Note that a gradient has come from a loss that takes what the model did not return."""
        if gradients[slot] is not None:
            self._add(pairs)

    def _add(self, pairs: set[tuple[End, End]]) -> None:
        if self._catalogue.edges.add(pairs):
            self._catalogue.changes += 1

    def _marked(self, edge: NodeSlot) -> Iterator[Gate]:
        """Yield the marks of what the value of `edge` was computed from, outside of all calls."""
        seen: set[NodeSlot] = set()
        stack = [edge]
        while stack:
            node, slot = stack.pop()
            if (node, slot) in seen:
                continue
            seen.add((node, slot))
            marks = _metadata(node).get(self._mark)
            if marks is not None and slot in marks:
                yield marks[slot]
                continue
            stack += [(n, s) for n, s in node.next_functions if isinstance(n, Node)]


def _metadata(node: Node) -> dict[str, Any]:
    """Return what is kept with a node; torch declares it as a method, which it is not."""
    kept: dict[str, Any] = cast(Any, node).metadata
    return kept
