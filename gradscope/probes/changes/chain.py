"""How the layers of a net follow each other, seen in one forward."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from gradscope.capture.net import layers
from gradscope.errors import GradscopeError
from gradscope.kinds import BOUNDS, canonical, group
from gradscope.probes.probe import LossFn, arguments_of, kept

_FUNCTIONS_BETWEEN = 4  # nodes of the graph that may lie between a module and the next one
_SQUASHED = ("softmax", "sigmoid")


@dataclass
class Unit:
    """A layer with weights, and what is called on its output up to the next one.

    Attributes
    ----------
    name, layer : str, nn.Module
        The layer with weights.
    last : str
        Name of the last activation or normalisation of the unit; its own where none follows.
    taken, made, given : shape
        Of the layer's input and output, and of what `last` gives.
    follows : bool
        Whether the unit before it alone makes its input.
    activation : str
        Kind of the activation that follows, as `kinds.canonical` spells it; "" without one.
    activation_name : str
        Name of its module; "" where it is a function.
    normalised : bool
    """

    name: str
    layer: nn.Module
    last: str
    taken: tuple[int, ...]
    made: tuple[int, ...]
    given: tuple[int, ...]
    follows: bool
    activation: str = ""
    activation_name: str = ""
    normalised: bool = False


class Chain(NamedTuple):
    """The units of a net in order of execution.

    Attributes
    ----------
    units : list of Unit
        Of layers that are called once, with one tensor in and one out.
    squashed : bool
        Whether the loss takes a softmax of what is a softmax, or a sigmoid, already.
    """

    units: list[Unit]
    squashed: bool

    @property
    def hidden(self) -> list[Unit]:
        """All units but the last."""
        return self.units[:-1]


class _Call(NamedTuple):
    name: str
    module: nn.Module
    input: Tensor
    output: Tensor


def trace(model: nn.Module, loss_fn: LossFn, batch: Any) -> Chain:
    """Run `model` once, and leave it as it was.

    Parameters
    ----------
    model : nn.Module
    loss_fn : callable
    batch : (x, y), or a dict

    Raises
    ------
    GradscopeError
        If the loss is no number that depends on the model.
    """
    args, kwargs, target = arguments_of(batch)
    calls: list[_Call] = []
    handles = [
        module.register_forward_hook(_note(calls, name))
        for name, module in model.named_modules()
        if not any(True for _ in module.children())
    ]
    try:
        with kept(model), torch.enable_grad():
            loss = loss_fn(model(*args, **kwargs), target)
    finally:
        for handle in handles:
            handle.remove()
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
        raise GradscopeError("the loss does not depend on the model; does loss_fn detach it?")
    times = Counter(call.name for call in calls)
    return Chain(_units([call for call in calls if times[call.name] == 1]), _squashed(loss))


def _note(calls: list[_Call], name: str) -> Any:
    def note(module: nn.Module, args: tuple[Any, ...], output: object) -> None:
        if len(args) == 1 and isinstance(args[0], Tensor) and isinstance(output, Tensor):
            calls.append(_Call(name, module, args[0], output))

    return note


def _units(calls: list[_Call]) -> list[Unit]:
    units: list[Unit] = []
    given: Tensor | None = None
    for call in calls:
        between = None if given is None else _between(given, call.input)
        if units and between and not units[-1].activation:
            units[-1].activation = next((kind for kind in between if kind in BOUNDS), "")
        what = group(type(call.module).__name__, layers.is_weight_layer(call.module))
        shape = tuple(call.output.shape)
        if what == "weight":
            taken = tuple(call.input.shape)
            units.append(
                Unit(call.name, call.module, call.name, taken, shape, shape, between is not None)
            )
        elif units and between is not None:
            unit = units[-1]
            if what == "normalisation":
                unit.normalised = True
            elif what == "activation" and not unit.activation:
                unit.activation = canonical(type(call.module).__name__)
                unit.activation_name = call.name
            if what != "other":
                unit.last, unit.given = call.name, shape
        else:
            continue
        given = call.output
    return units


def _between(earlier: Tensor, later: Tensor) -> list[str] | None:
    """Return the kinds of the functions by which `earlier` alone became `later`; None if not so."""
    if later is earlier:
        return []
    goal, node = earlier.grad_fn, later.grad_fn
    found: list[str] = []
    for _ in range(_FUNCTIONS_BETWEEN):
        if node is None or goal is None:
            return None
        if node is goal:
            return found[::-1]
        found.append(canonical(node.name()))
        node = _only_input(node)
    return None


def _only_input(node: Node) -> Node | None:
    inputs = [after for after, _ in node.next_functions if after is not None]
    return inputs[0] if len(inputs) == 1 else None


def _squashed(loss: Tensor) -> bool:
    """Whether a log-softmax of a softmax or of a sigmoid is among the last steps to the loss."""
    node = loss.grad_fn
    while node is not None:
        before = _only_input(node)
        if canonical(node.name()) == "logsoftmax" and before is not None:
            return canonical(before.name()) in _SQUASHED
        node = before
    return False
