"""The taps in the graph of one forward, and the gradients that they read as these arrive."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.autograd.graph import Node
from torch.utils.hooks import RemovableHandle

from gradscope import measure
from gradscope.autograd.graph import Call, Graph
from gradscope.autograd.torch_internals import apart_from_modes, current_backward, is_plain
from gradscope.capture.forwards.chains import Link
from gradscope.capture.forwards.cuts import CutGraph
from gradscope.capture.forwards.plan import EdgeTap, NodeTap, Plan, ValueTap, Way
from gradscope.capture.forwards.replays import Replay
from gradscope.capture.keys import Key, Keys, OfLayer, layer_keys
from gradscope.capture.memory import is_out_of_memory
from gradscope.capture.reading.readings import Read, Readings
from gradscope.errors import GradscopeError
from gradscope.measure import Reading
from gradscope.measure.host import HALF

Parts = dict[Way, Tensor | None]
"""The gradient that a join's parts let through."""


class Gradients:
    """Reads the gradients of one forward's graph, in every backward that `arrives` lets count.

    The hooks on the graph hold this object and it holds no node but those of parameters, so that
    graph and readings go when the user drops the graph.

    Parameters
    ----------
    arrives : called with this object before anything is read
        Says whether the backward under way trains the model.
    link : Link or None
        Place of the forward among calls that hand on a state.
    cut : "shortcuts", "branches" or None
        What no gradient passes in a second backward, taken within the first: `cut_signal_norm`.
    failed : called with keys of what could not be read, and the exception
        That reading is left out from then on; the backward goes on.
    """

    def __init__(
        self,
        plan: Plan,
        readings: Readings,
        arrives: Callable[[Gradients], bool],
        failed: Callable[[Sequence[Key], Exception], None],
        cut: str | None = None,
        link: Link | None = None,
    ) -> None:
        self.readings = readings
        self._link = link
        readings.believe(plan.trust)
        self._backward = -1  # the last one that was said to count
        self._is_plain = False  # whether no mode of the user is on in it
        self.leaves: list[Node] = []
        self._plan = plan
        self._arrives = arrives
        self._failed = failed
        self._sums: list[list[Tensor | None]] = [[] for _ in plan.sums]
        self._alone: list[Tensor | None] = [None] * len(plan.alone)
        self._handles: list[RemovableHandle] = []
        self._cut = cut
        self._cut_graph: CutGraph | None = None
        self._cut_norms: list[tuple[Read, Keys]] = []
        self._replays: list[Replay] = []
        self._is_used_outside = False  # gradient has come that does not come from the outputs

    def tap(
        self,
        graph: Graph,
        calls: Sequence[Call],
        replays: Iterable[tuple[Replay, Sequence[tuple[Node, int]]]] = (),
    ) -> None:
        """Put hooks on the nodes of `graph`, and on those of the outputs of `replays`."""
        plan, nodes, roots = self._plan, graph.nodes, graph.structure.roots
        guard, read_values = self._guard, self._read_values  # one object each, not one a tap
        read_and_keep, keep = self._read_and_keep, self._keep
        self.leaves = [nodes[i] for i in plan.leaves]
        for tap in plan.nodes:
            node = nodes[tap.index]
            if tap.at_once:
                node.register_hook(partial(read_and_keep, tap))
                continue
            if tap.values:
                hook = partial(guard, read_values, tap.values)
                if node in graph.inputs and tap.index >= roots:  # others may lead to it, too
                    hook = partial(self._if_reached, hook)
                handle = node.register_prehook(hook)
                if tap.outlives_graph:
                    self._handles.append(handle)
            if tap.edges or tap.alone:
                node.register_hook(partial(keep, tap))
        for call, position, keys in plan.direct:
            node, slot = calls[call].outputs[position]
            taps = [ValueTap(slot, keys, [])]
            node.register_prehook(partial(guard, read_values, taps))
        for replay, outputs in replays:
            self._replays.append(replay)
            for place, (node, slot) in enumerate(outputs):
                taps = [ValueTap(slot, replay.keys[0], [])]
                node.register_prehook(partial(guard, partial(_keep_sample, replay, place), taps))
        if self._cut is not None and plan.cuts[self._cut]:
            self._cut_graph = CutGraph(graph, calls[0].outputs, plan, self._cut)
            for i, (node, _) in enumerate(calls[0].outputs):
                node.register_prehook(partial(guard, self._take_cut, [i]))

    def release(self) -> None:
        """Take out the hooks that would outlive the graph, and let go of the graph."""
        self._cut_graph = None
        for handle in self._handles:
            handle.remove()

    def end_of_backward(self) -> None:
        """Read what did not get complete: sums of which some edge got no gradient, cuts."""
        self._read_cut()
        self._add_cut()
        for i in range(len(self._sums)):
            if self._plan.sums[i].keys and self._sums[i]:
                self._read_sum(i)
            self._sums[i].clear()
        for replay in self._replays:
            try:
                replay.read(self.readings)
            except Exception as error:
                self._failed(replay.keys[0], error)
        self.readings.read_waiting()
        self._forget_edges()

    def _forget_edges(self) -> None:
        self._alone[:] = [None] * len(self._alone)

    def _guard(
        self,
        read: Callable[..., None],
        taps: list[ValueTap] | list[EdgeTap] | list[int],
        gradients: tuple[Tensor | None, ...],
        *_: object,
    ) -> None:
        try:
            backward = current_backward()
            if backward != self._backward:
                if not apart_from_modes(self._arrives, self):
                    self._forget_edges()
                    return
                self._backward = backward
                self._is_plain = is_plain()  # a backward goes on with the modes that it began with
            if self._is_plain:
                read(taps, gradients)
            else:
                apart_from_modes(read, taps, gradients)
        except Exception as error:
            keys = [key for tap in taps if isinstance(tap, ValueTap) for key in tap.keys]
            if not is_out_of_memory(error):
                taps.clear()  # the plan's own: nothing is read here in later steps either
            self._cut_graph = None
            self._failed(keys, error)

    def _if_reached(self, read: Callable[..., None], *gradients: object) -> None:
        """Read what comes to an input of the forward, in a backward that goes through it."""
        if current_backward() == self._backward:
            read(*gradients)

    def _read_and_keep(
        self, tap: NodeTap, inputs: tuple[Tensor | None, ...], outputs: tuple[Tensor | None, ...]
    ) -> None:
        """Read a node's values, and keep what it hands on, by one hook: each takes time."""
        self._guard(self._read_values, tap.values, outputs)
        self._keep(tap, inputs)

    def _keep(self, tap: NodeTap, gradients: tuple[Tensor | None, ...], *_: object) -> None:
        """Keep the gradients of a node's edges until those of the values come."""
        for place, position in tap.alone:
            self._alone[place] = gradients[position]
        if tap.edges:
            self._guard(self._gather, tap.edges, gradients)

    def _take_cut(self, roots: list[int], gradients: tuple[Tensor | None, ...]) -> None:
        if self._cut_graph is None:
            return
        kept = self._alone[:]  # which a backward within this one overwrites
        if self._cut_graph.backward(roots[0], gradients):
            self._read_cut()
        self._alone[:] = kept

    def _read_cut(self) -> None:
        """Read what would reach each layer if the cut were made, and let go of the graph."""
        if self._cut_graph is not None:
            for layer, gradient in self._cut_graph.read():
                keys = layer_keys("cut_signal_norm", layer)
                self._cut_norms.append((self.readings.norm(gradient), keys))
        self._cut_graph = None

    def _add_cut(self) -> None:
        """Keep what was read with the cut, if it is of all the gradient."""
        if self._cut_norms and self._is_used_outside:
            error = "losses take values from within the forward, whose gradient cannot be cut"
            self._failed((), GradscopeError(error))
        else:
            for norm, keys in self._cut_norms:
                self.readings.add(norm, keys)
        self._cut_norms.clear()

    def _read_values(self, taps: list[ValueTap], gradients: tuple[Tensor | None, ...]) -> None:
        for tap in taps:
            gradient = gradients[tap.slot]
            if gradient is not None:
                self._read_value(tap, gradient)

    def _read_value(self, tap: ValueTap, gradient: Tensor) -> None:
        """Read the whole gradient of a value: a layer's output, a block's input."""
        keys = tap.keys
        if tap.alone is not None:
            through, self._alone[tap.alone] = self._alone[tap.alone], None
            if through is gradient:  # the engine hands on what has come alone as it is
                keys = tap.all_keys
            elif through is not None:
                self._is_used_outside |= not tap.is_open
                self.readings.read_norm(through, tap.edge_keys)
        if tap.joins:
            self._read_with_joins(tap, gradient, keys)
        elif keys:
            self.readings.read_norm(gradient, keys, tap.place)
        if self._link is not None and (end := self._link.end()) is not None:
            for key in tap.keys:
                if isinstance(key, OfLayer) and key.module in self._link.chain.layers:
                    self.readings.read_norm(gradient, layer_keys(f"{end}_signal_norm", key.module))

    def _read_with_joins(self, tap: ValueTap, gradient: Tensor, keys: Keys) -> None:
        """Read the gradient of a value that is the input of blocks, and its parts in each."""
        joins = [self._plan.joins[number] for number in tap.joins]
        parts: list[Parts] = [
            {part: self._take_sum(i) for part, i in join.parts.items()} for join in joins
        ]
        if len(joins) == 1 and keys and self._cut is None:
            shortcut, branch, other = parts[0].values()
            if shortcut is not None and branch is not None and other is None:
                place, named = ("join", tap.joins[0]), joins[0].keys
                if self.readings.read_join(gradient, shortcut, branch, keys, named, place):
                    return
        if keys:
            self.readings.read_norm(gradient, keys, tap.place)
        for number, some in zip(tap.joins, parts, strict=True):
            rest = self._read_join(number, measure.dense(gradient), some)
            self._is_used_outside |= not tap.is_open and rest > 0

    def _gather(self, taps: list[EdgeTap], gradients: tuple[Tensor | None, ...]) -> None:
        for tap in taps:
            gradient = gradients[tap.position]
            for i in tap.sums:
                self._sums[i].append(None if gradient is None else measure.dense(gradient))
                wanted = self._plan.sums[i]
                if wanted.keys and len(self._sums[i]) == wanted.edges:
                    self._read_sum(i)

    def _read_sum(self, i: int) -> None:
        total = self._take_sum(i)
        if total is not None:
            self.readings.read_norm(total, self._plan.sums[i].keys, ("sum", i))
            for step, keys in self._plan.sums[i].steps_of(total):
                self.readings.read_norm(step, keys)

    def _take_sum(self, i: int | None) -> Tensor | None:
        """Return the sum of the gradients gathered for sum `i`, and begin it anew."""
        if i is None:
            return None
        gradients = [g for g in self._sums[i] if g is not None]
        self._sums[i].clear()
        if len(gradients) < 2:
            return gradients[0] if gradients else None
        wide = [g.float() if g.dtype in HALF else g for g in gradients]
        return torch.stack(wide).sum(0) if len(wide) > 2 else wide[0] + wide[1]

    def _read_join(self, number: int, total: Tensor, gradients: Parts) -> float:
        """Read the parts of `total`; return the norm of what is of no part, on the CPU."""
        join = self._plan.joins[number]
        unknown = 0.0
        found = [g for g in gradients.values() if g is not None]
        if not _add_up(total, found):  # gradient from outside of the graph, or rounding
            rest = _rest(total, found)
            unknown = float(measure.norm(rest)) if total.is_cpu else 0.0
            known = gradients["other"]
            gradients["other"] = rest if known is None else rest + known
        shortcut, branch = gradients["shortcut"], gradients["branch"]
        if shortcut is not None and branch is not None:
            del gradients["shortcut"], gradients["branch"]
            keys = join.keys["shortcut"], join.keys["branch"], join.keys["cosine"]
            self.readings.read_pair(shortcut, branch, keys, ("join", number))
        for part, gradient in gradients.items():
            if gradient is None:
                self.readings.add(0.0, join.keys[part])
            else:
                self.readings.read_norm(gradient, join.keys[part], (part, number))
        return unknown


def _keep_sample(
    replay: Replay, place: int, taps: Sequence[ValueTap], gradients: tuple[Tensor | None, ...]
) -> None:
    for tap in taps:
        if (gradient := gradients[tap.slot]) is not None:
            replay.keep(place, gradient)


def _add_up(total: Tensor, parts: Sequence[Tensor]) -> bool:
    """Whether one or two `parts` are all of `total`, where that can be told without waiting."""
    if (
        not total.is_cpu
        or not parts
        or len(parts) > 2
        or any(p.dtype != total.dtype for p in parts)
    ):
        return False
    return torch.equal(total, parts[0] if len(parts) == 1 else parts[0] + parts[1])


def _rest(total: Tensor, parts: Sequence[Tensor]) -> Tensor:
    """Return what `parts` lack of `total`; zeros where that is no more than rounding."""
    rest = total.float() if total.dtype in HALF else total
    bound: Reading = 0.0
    for part in parts:
        rest = rest - part
        bound = bound + measure.norm(part)
    bound = bound * (len(parts) * torch.finfo(total.dtype).eps)
    is_rounding = torch.as_tensor(measure.norm(rest) <= bound, device=total.device)
    return torch.where(is_rounding, 0, rest)
