"""One forward of a model at rest, with its graph and joins; everything is left as it was.

Gradients, buffers, random state and optimizer are as before when the probe is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from gradscope.autograd.graph import Graph, Value
from gradscope.autograd.joins import Join, find_joins
from gradscope.autograd.torch_internals import FollowedHooks, Unavailable
from gradscope.capture.forwards.forward import Forward, tensors_in
from gradscope.capture.forwards.plan import Plan, make_plan
from gradscope.capture.net import layers
from gradscope.capture.net.modules import Modules
from gradscope.errors import GradscopeError

LossFn = Callable[[Any, Any], Tensor]


class Probe(NamedTuple):
    """One forward of a model and its loss."""

    modules: Modules
    forward: Forward
    graph: Graph
    joins: list[Join]
    loss: Tensor
    inputs: set[Node]

    def plan(self) -> Plan:
        """Return where layers and joins are in the graph."""
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
def probe_of(
    model: nn.Module, loss_fn: LossFn, batch: Any, differentiate_inputs: bool = False
) -> Iterator[Probe]:
    """Run `model` on `batch` and leave it as it was."""
    if layers.is_distributed(model):
        raise GradscopeError(
            f"{type(model).__name__} is distributed; probe the module on one process instead"
        )
    inner = layers.unwrap(model)
    args, kwargs, target = arguments_of(batch)
    if differentiate_inputs:
        for tensor in tensors_in((args, kwargs)):
            if tensor.is_floating_point() and not tensor.requires_grad:
                args, kwargs = _with_gradients(args), _with_gradients(kwargs)
                break
    modules = Modules(inner)
    forward = Forward(Plan())
    with ExitStack() as stack:
        stack.enter_context(kept(inner))
        stack.enter_context(torch.enable_grad())
        stack.callback(FollowedHooks().remove)
        for number, module in modules:
            enter, leave = _hooks(modules, forward, number)
            stack.callback(module.register_forward_pre_hook(enter, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(leave).remove)
        loss = loss_fn(inner(*args, **kwargs), target)
        graph = forward.graph()
        if graph is None or not isinstance(loss, Tensor) or not loss.requires_grad:
            raise GradscopeError("the loss does not depend on the model; does loss_fn detach it?")
        inputs = {node for node, _ in forward.calls[0].inputs}
        try:
            joins = find_joins(graph, forward.calls)
        except Unavailable as error:
            raise GradscopeError(f"residual blocks cannot be found: {error}") from error
        yield Probe(modules, forward, graph, joins, loss, inputs)


def _hooks(
    modules: Modules, forward: Forward, number: int
) -> tuple[Callable[..., None], Callable[..., None]]:
    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        modules.note_call(number)
        forward.enter(modules.info(number), module, args, kwargs)

    def leave(module: nn.Module, args: tuple[Any, ...], output: object) -> None:
        forward.leave(number, module, args, output)

    return enter, leave


@contextmanager
def kept(model: nn.Module) -> Iterator[None]:
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


def arguments_of(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
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
