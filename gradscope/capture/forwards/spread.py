"""Which part of an output a process holds, where several share out the work of one layer.

A distributed tensor says so itself. One that a module made local of it keeps it on the graph, and
what is computed of local ones, elementwise or along dimensions that are whole, is spread as they
are. Of what other collectives have made nothing is known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from torch.autograd.graph import Node

from gradscope.autograd.graph import Graph
from gradscope.autograd.joins import Join
from gradscope.autograd.torch_internals import Unavailable, distributed_as, is_custom, kind_name
from gradscope.capture.forwards.forward import Forward
from gradscope.capture.net.catalogue import Catalogue, Spread
from gradscope.capture.net.distributed import copies_in
from gradscope.wording import layers_named

Held = tuple[float, float]
"""How many processes hold the same of a value, and of its gradient."""

_UNKNOWN: Held = (math.nan, math.nan)

_PASSED = ("RegisterPostBackwardFunctionBackward",)  # of fully_shard: its outputs are its inputs


def find_spread(
    catalogue: Catalogue,
    graph: Graph,
    forward: Forward,
    joins: Mapping[int, Join],
    tell: Callable[[str], None],
) -> None:
    """Add to `catalogue` what `forward` shows of outputs, if layers are shared out at all."""
    sharing = catalogue.sharing
    if sharing is None or sharing.parallel == 1:
        return
    held = _Held(sharing.parallel)
    unknown, into_unknown = [], []
    for ordinal, (info, record) in forward.numbered().items():
        outputs = record[3]
        if not info.is_layer or not outputs:
            continue
        found = {held.of(node) for node, _ in outputs}
        if tensors := forward.distributed.get(ordinal):
            found = {held.of_placements(x.device_mesh, x.placements) for x in tensors}  # type: ignore[attr-defined]
        output, gradient = found.pop() if len(found) == 1 else _UNKNOWN
        by = sharing.split.get(info.name)
        into = gradient if by is None else 1.0 if by == "inputs" else math.nan
        spread = Spread(output, gradient, into)
        before = catalogue.spread.setdefault(info.number, spread)
        if [x for x in before if x == x] != [x for x in spread if x == x]:
            spread = catalogue.spread[info.number] = Spread(*_UNKNOWN, math.nan)
        if math.isnan(spread.gradient):
            unknown.append(info.name)
        elif math.isnan(spread.into) and record[2]:
            into_unknown.append(info.name)
    for number, join in joins.items():
        catalogue.shortcut_spread[number] = held.of(graph.nodes[join.node])[1]
    if unknown:
        tell(
            f"{layers_named(list(dict.fromkeys(unknown)))}: which part of their outputs, or of the"
            " gradients there, a process holds is not known, so these readings are NaN. Outputs"
            " that are local tensors made of distributed ones (use_local_output), or that are"
            " sharded, are followed"
        )
    if into_unknown:
        tell(
            f"{layers_named(list(dict.fromkeys(into_unknown)))}: each process has a summand of the"
            " gradient at the input, as weights are split by outputs (column parallel):"
            " input_signal_norm is NaN. The signal_norm of the layer before is that of the sum"
        )


class _Held:
    """How many of `parallel` processes hold the same of the values of one graph."""

    def __init__(self, parallel: int) -> None:
        self._parallel = parallel
        self._found: dict[Node, frozenset[Held]] = {}

    def of_placements(self, mesh: object, placements: tuple[object, ...]) -> Held:
        """Return it of a distributed tensor: of gradients, processes may hold summands."""
        copies = self._copies(mesh, placements)
        return copies, copies if copies == 1 else math.nan

    def of(self, node: Node) -> Held:
        """Return it of a local tensor that `node` has made."""
        found = self._of(node)
        if len(found) > 1:  # parts of different kinds went into it
            return _UNKNOWN
        return next(iter(found), (float(self._parallel), float(self._parallel)))

    def _of(self, node: Node) -> frozenset[Held]:
        stack = [node]
        while stack:
            top = stack[-1]
            if top in self._found:
                stack.pop()
            elif (own := self._made_by(top)) is not None:
                self._found[top] = own
            elif left := [n for n, _ in top.next_functions if n and n not in self._found]:
                stack += left
            else:
                of_inputs = [self._found[n] for n, _ in top.next_functions if n]
                self._found[top] = frozenset().union(*of_inputs)
        return self._found[node]

    def _made_by(self, node: Node) -> frozenset[Held] | None:
        """Return what a node itself tells, None if that is up to what it was made of."""
        try:
            told = distributed_as(node)
        except Unavailable:
            return frozenset([_UNKNOWN])
        if told is None:
            name = kind_name(type(node))
            strange = is_custom(node) or "c10d" in name or "Collective" in name
            return frozenset([_UNKNOWN]) if strange and name not in _PASSED else None
        mesh, placements, of_gradient = told  # where summands go forward, their sum comes back
        back = [dim for dim, placement in enumerate(of_gradient) if not placement.is_shard()]
        held = self._parallel / mesh.size() * math.prod(mesh.size(dim) for dim in back)
        return frozenset([(self._copies(mesh, placements), held)])

    def _copies(self, mesh: object, placements: tuple[object, ...]) -> float:
        copies = copies_in(mesh, placements)
        share: float = self._parallel / mesh.size() * copies  # type: ignore[attr-defined]
        return share or math.nan
