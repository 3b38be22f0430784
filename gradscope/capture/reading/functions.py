"""Activation functions that are called without a module, such as F.relu, found on the graph.

What such a function did is read from the tensor that its node keeps for the backward pass: that
is there anyway, and looking at it never waits for the device.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import Node

from gradscope import measure
from gradscope.autograd import torch_internals
from gradscope.autograd.graph import Call, Edge, Graph, Origins, Value
from gradscope.autograd.torch_internals import saved
from gradscope.capture.reading.readings import Readings
from gradscope.capture.reading.units import Units
from gradscope.kinds import group
from gradscope.measure.activations import sample

_SAME_ELEMENTS = re.compile(
    r"(Alias|Clone|Permute|ReshapeAlias|Squeeze|T|ToCopy|Transpose|UnsafeView|Unsqueeze|View)Backward"
)
"""Nodes that hand on all elements of what they are given, and no others."""


@lru_cache(256)
def _of(kind: Callable[..., nn.Module], *settings: Any) -> nn.Module:
    return kind(*settings)


# Names and attributes of nodes come from torch's derivatives.yaml. The in-place forms, often
# ...Backward1, keep the result instead of the input.
_MODULES: dict[str, Callable[[Any], nn.Module]] = {
    "Celu": lambda node: _of(nn.CELU, saved(node, "alpha")),
    "Elu": lambda node: (
        _of(nn.ELU, saved(node, "alpha")) if saved(node, "scale") == 1 else _of(nn.SELU)
    ),
    "Gelu": lambda node: _of(nn.GELU, saved(node, "approximate")),
    "Hardshrink": lambda node: _of(nn.Hardshrink, saved(node, "lambd")),
    "Hardsigmoid": lambda _: _of(nn.Hardsigmoid),
    "Hardswish": lambda _: _of(nn.Hardswish),
    "Hardtanh": lambda node: _hardtanh(saved(node, "min_val"), saved(node, "max_val")),
    "LeakyRelu": lambda node: _of(nn.LeakyReLU, saved(node, "negative_slope")),
    "LogSigmoid": lambda _: _of(nn.LogSigmoid),
    "Mish": lambda _: _of(nn.Mish),
    "Relu": lambda _: _of(nn.ReLU),
    "Sigmoid": lambda _: _of(nn.Sigmoid),
    "Silu": lambda _: _of(nn.SiLU),
    "Softsign": lambda _: _of(nn.Softsign),  # there is no such node: it is a division
    "Softplus": lambda node: _of(nn.Softplus, saved(node, "beta"), saved(node, "threshold")),
    "Softshrink": lambda node: _of(nn.Softshrink, saved(node, "lambd")),
    "Tanh": lambda _: _of(nn.Tanh),
}
"""Kind of node -> the module that does what the node did, its settings included."""


def _hardtanh(low: float, high: float) -> nn.Module:
    return _of(nn.ReLU6) if (low, high) == (0, 6) else _of(nn.Hardtanh, low, high)


@dataclass(frozen=True)
class Function:
    """A call of an activation function on the output of a layer.

    `kind` is its node's; `name` is the class of the module that does the same.
    """

    node: int
    kind: str
    name: str
    layer: int


def find_functions(
    graph: Graph,
    calls: Sequence[Call],
    layers: Sequence[int | None],
    outputs: Sequence[tuple[Value, int]],
) -> list[Function]:
    """Return the activation functions that were called on the output of a layer.

    Left out are those within a module that is itself an activation, whose own readings tell,
    those on an output of which something else is made, too, as in x * sigmoid(x): they are part
    of another function, and gates, sigmoids by which something is multiplied: these are meant to
    be shut or open.

    Parameters
    ----------
    graph, calls
        Of one forward.
    layers : for each call, the number of the module if that is a layer, None for other modules
    outputs : (value, number) of each output of a layer, in order of execution
    """
    torch_internals.check_names(graph.names)
    kinds = {i: kind for i, name in enumerate(graph.names) if (kind := _kind(name)) in _MODULES}
    parts = set(kinds)
    for i, name in enumerate(graph.names):
        if name == "DivBackward0" and (size := _softsign(graph, i)) is not None:
            kinds[i] = "Softsign"
            parts |= {i, size}
    if not kinds:
        return []
    consumers = graph.consumers()
    activations = {
        id(call)
        for call, layer in zip(calls, layers, strict=True)
        if layer is not None and group(call.kind, weights=False) == "activation"
    }
    origins = Origins(graph, calls)
    owner: dict[Value, int] = {}
    for value, layer in outputs:
        owner.setdefault(value, layer)
    found = []
    for node, kind in kinds.items():
        if not graph.edges[node] or id(origins.maker(node)) in activations:
            continue  # it made an input of the model, or belongs to a module
        readers = [graph.names[reader] for reader, _ in consumers.get((node, 0), [])]
        if kind in ("Sigmoid", "Hardsigmoid") and "MulBackward0" in readers:
            continue
        value = graph.edges[node][0]
        whole = _only_for(consumers[value], parts)
        while value not in owner and _SAME_ELEMENTS.match(graph.names[value[0]]):
            if not graph.edges[value[0]]:
                break
            value = graph.edges[value[0]][0]
            whole &= len(consumers[value]) == 1
        if value in owner and whole:
            name = type(_MODULES[kind](graph.nodes[node])).__name__
            found.append(Function(node, kind, name, owner[value]))
    return found


def module_of(function: Function, graph: Graph) -> nn.Module:
    """Return the module that does what `function` did, its settings included."""
    return _MODULES[function.kind](graph.nodes[function.node])


def read_functions(
    functions: Sequence[Function], graph: Graph, readings: Readings, units: Units
) -> None:
    """Add `derivative_mean`, `zero_fraction` and `saturated_fraction` of each function."""
    for function in functions:
        if units.is_on:
            node = graph.nodes[function.node]
            kept = "result" if torch_internals.has_saved(node, "result") else "self"
            if (x := _saved(node, kept)) is not None:
                units.take_function(function.layer, function.name, x)
        read = _input_and_output(graph.nodes[function.node], function.kind)
        if read is None:
            continue
        module, z, output, count = read
        place = "function", function.node
        readings.read_activation(module, z, output, function.layer, count, place)


def _kind(name: str) -> str:
    """Return the kind of a node: `LeakyReluBackward1` -> `LeakyRelu`."""
    return name.rstrip("0123456789").removesuffix("Backward")


def _softsign(graph: Graph, node: int) -> int | None:
    """Return the node of |x| if `node` is the division of x / (1 + |x|), else None."""
    if not graph.edges[node]:  # it made an input of the model
        return None
    x, denominator = graph.edges[node]
    if x[0] < 0 or graph.names[denominator[0]] != "AddBackward0":
        return None
    for term, _ in graph.edges[denominator[0]]:
        if term >= 0 and graph.names[term] == "AbsBackward0" and graph.edges[term] == (x,):
            return term
    return None


def _only_for(edges: Sequence[Edge], nodes: Collection[int]) -> bool:
    return all(consumer in nodes for consumer, _ in edges)


def _input_and_output(node: Node, kind: str) -> tuple[nn.Module, Tensor | None, Tensor, int] | None:
    """Return the module that does what `node` did, its input, output and number of elements.

    The input is None where only the output is kept. Nothing where neither can be had.
    """
    module = _MODULES[kind](node)
    if kind == "Softsign":
        z, size = _saved(node, "self"), _saved(node, "other")
        if z is None or size is None:
            return None
        return module, None, sample(z) / sample(size), z.numel()
    if torch_internals.has_saved(node, "result"):
        output = _saved(node, "result")
        return None if output is None else (module, None, output, output.numel())
    z = _saved(node, "self")
    if z is None:
        return None
    some = sample(z)
    return module, some, module.forward(some), z.numel()


def _saved(node: Node, name: str) -> Tensor | None:
    """Return a tensor of numbers that `node` keeps; None where it is not to be had at once."""
    tensor = torch_internals.saved_tensor(node, name)
    if tensor is None or tensor.numel() == 0 or not tensor.is_floating_point():
        return None
    return measure.dense(tensor)
