"""Questions asked of a net at rest, on one batch: cut its shortcuts, count the gradient's paths.

Gradients, buffers, random state and optimizer are left as they are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from math import comb
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node

from gradscope import measure
from gradscope.autograd.graph import Graph, Value, walk
from gradscope.autograd.joins import Join, find_joins
from gradscope.capture import layers
from gradscope.capture.catalogue import Catalogue
from gradscope.capture.cuts import grad_with_cuts
from gradscope.capture.forward import Forward, gradient_edge, tensors_in
from gradscope.capture.modules import Modules
from gradscope.capture.plan import CUTS, Plan, make_plan
from gradscope.errors import GradscopeError
from gradscope.schema import SPLIT_FORMS

if TYPE_CHECKING:
    import pandas as pd

LossFn = Callable[[Any, Any], Tensor]


def cut(model: nn.Module, loss_fn: LossFn, batch: Any, edges: str = "shortcuts") -> pd.DataFrame:
    """Measure how much signal reaches each layer, and how much if no gradient passed `edges`.

    The forward pass is as it was: a net with its shortcuts cut is not the plain net.

    Parameters
    ----------
    model : nn.Module
        In the mode, training or evaluation, in which it is to be asked.
    loss_fn : callable
        `loss_fn(model(x), y)` -> loss, a 0-d Tensor.
    batch : (x, y), or a dict
        x is a tensor, a tuple of arguments or a dict of keyword arguments of the model. Of a batch
        that is a dict itself, `loss_fn(model(**batch), batch)` is the loss.
    edges : {"shortcuts", "branches"}

    Returns
    -------
    pandas.DataFrame, one row a layer in order of execution
        `layer`, `name`, `kind`, `depth` as in `run.layers`; `signal_norm` and `cut_signal_norm`,
        the L2 norms of dL/d(output), NaN for a layer that was not called.

    Raises
    ------
    GradscopeError
        If `edges` is none of the two, the loss does not depend on the model, or the model is
        distributed or uses re-entrant checkpointing.
    """
    import pandas as pd

    if edges not in CUTS:
        raise GradscopeError(f"cut(edges={edges!r}): needs one of {', '.join(CUTS)}")
    with _probe(model, loss_fn, batch) as probe:
        plan = probe.plan()
        targets = [GradientEdge(probe.graph.nodes[n], slot) for (n, slot), _ in plan.outputs]
        found = {
            "signal_norm": grad_with_cuts(probe.graph, [], [probe.loss], targets),
            "cut_signal_norm": grad_with_cuts(probe.graph, plan.cuts[edges], [probe.loss], targets),
        }
        catalogue = Catalogue()
        catalogue.add_layers(probe.modules.layers(), probe.modules.executed)
    frame = pd.DataFrame(catalogue.layers)[["layer", "name", "kind", "depth"]]
    for column, gradients in found.items():
        squares: dict[int, float] = defaultdict(float)
        for (_, layer), gradient in zip(plan.outputs, gradients, strict=True):
            squares[catalogue.layer_of[layer]] += 0.0 if gradient is None else _norm(gradient) ** 2
        frame[column] = frame["layer"].map({layer: s**0.5 for layer, s in squares.items()})
    return frame


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

    with _probe(model, loss_fn, batch, differentiate_inputs=True) as probe:
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
            "norm": _norm(term),
            "share": float((term.double() * whole).sum() / square),
        }
        for k, term in sorted(terms.items())
    )


def _polynomial(probe: _Probe, joins: Sequence[Join], at: Value) -> dict[int, Tensor]:
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


class _Probe(NamedTuple):
    """One forward of a model and its loss."""

    modules: Modules
    forward: Forward
    graph: Graph
    joins: list[Join]
    loss: Tensor
    inputs: set[Node]

    def plan(self) -> Plan:
        numbers = list(range(len(self.joins)))
        forward = self.forward
        return make_plan(self.graph, forward.calls, forward.layers, self.joins, numbers)

    def input_value(self, joins: Sequence[Join]) -> Value:
        """Return the model's input, or the first block's where that has no gradient."""
        for node, slot in self.forward.calls[0].inputs:
            if node in self.graph.index:
                return self.graph.index[node], slot
        return joins[0].value


@contextmanager
def _probe(
    model: nn.Module, loss_fn: LossFn, batch: Any, differentiate_inputs: bool = False
) -> Iterator[_Probe]:
    """Run `model` on `batch` and leave it as it was."""
    if layers.is_distributed(model):
        raise GradscopeError(
            f"{type(model).__name__} is distributed; probe the module on one process instead"
        )
    inner = layers.unwrap(model)
    args, kwargs, target = _arguments(batch)
    if differentiate_inputs:
        for tensor in tensors_in((args, kwargs)):
            if tensor.is_floating_point() and not tensor.requires_grad:
                args, kwargs = _with_gradients(args), _with_gradients(kwargs)
                break
    modules = Modules(inner)
    forward = Forward(Plan())
    with ExitStack() as stack:
        stack.enter_context(_kept(inner))
        stack.enter_context(torch.enable_grad())
        for number, module in modules:
            enter, leave = _hooks(modules, forward, number)
            stack.callback(module.register_forward_pre_hook(enter, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(leave).remove)
        loss = loss_fn(inner(*args, **kwargs), target)
        graph = forward.graph()
        if graph is None or not isinstance(loss, Tensor) or not loss.requires_grad:
            raise GradscopeError("the loss does not depend on the model; does loss_fn detach it?")
        inputs = {node for node, _ in forward.calls[0].inputs}
        joins = find_joins(graph, forward.calls)
        yield _Probe(modules, forward, graph, joins, loss, inputs)


def _hooks(
    modules: Modules, forward: Forward, number: int
) -> tuple[Callable[..., None], Callable[..., None]]:
    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        modules.note_call(number)
        forward.enter(modules.info(number), args, kwargs)

    def leave(module: nn.Module, args: tuple[Any, ...], output: object) -> None:
        forward.leave(number, module, args, output)

    return enter, leave


@contextmanager
def _kept(model: nn.Module) -> Iterator[None]:
    """Put buffers and random states back at the end."""
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


def _arguments(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """Return positional and keyword arguments of the model, and what `loss_fn` compares with."""
    if isinstance(batch, dict):
        return (), batch, batch
    if isinstance(batch, Tensor) or not isinstance(batch, Sequence) or len(batch) != 2:
        raise GradscopeError(
            f"a batch is a pair (inputs, targets) or a dict, got {type(batch).__name__}"
        )
    x, y = batch
    if isinstance(x, dict):
        return (), x, y
    return (tuple(x) if isinstance(x, (tuple, list)) else (x,)), {}, y


def _with_gradients(value: Any) -> Any:
    """Return `value` with the floating-point tensors in it replaced by leaves with gradients."""
    if isinstance(value, Tensor):
        return value.detach().requires_grad_() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: _with_gradients(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_with_gradients(item) for item in value)
    return value


def _norm(x: Tensor) -> float:
    return float(measure.norm(x))
