"""Nodes of a graph: their numbers, their shapes, and what they have saved."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node

from gradscope.autograd.torch_internals.interfaces import Unavailable


def next_sequence_number() -> int:
    """Return the number that autograd will give to the next node of this thread, -1 if unknown."""
    try:
        return torch._C._autograd._get_sequence_nr()
    except AttributeError:  # said by `missing`
        return -1


def sequence_number(node: Node) -> int:
    """Return the number of a node: its place in the order of execution."""
    number: int = of_node(node, "_sequence_nr", "Node._sequence_nr")()
    return number


def shape(node: Node, slot: int) -> tuple[int, ...]:
    """Return the shape of an output of the operation that left `node`."""
    return tuple(_metadata(node, slot).shape)


def backward_of_ones(node: Node) -> tuple[Tensor | None, ...]:
    """Return what `node` makes of a gradient of ones; nothing where that takes a computation anew.

    Checkpointing would compute what it has dropped: it is not let do so. Before torch 2.7 nothing
    is returned while hooks on saved tensors are on.
    """
    described = _metadata(node, 0)
    ones = torch.ones(described.shape, dtype=described.dtype, device=described.device)
    function: Any = node
    try:
        with no_new_hooks(), torch.no_grad():
            return tuple(function(ones))
    except (AttributeError, RuntimeError):  # the former is said by `missing`
        return ()


@contextmanager
def no_new_hooks(*, none_on: bool = False) -> Iterator[None]:
    """Let nobody put hooks on saved tensors meanwhile.

    Raises
    ------
    RuntimeError
        Where hooks are on already, if `none_on` asks for that; before torch 2.7 in any case.
    """
    own: Any = torch._C._autograd
    said = own._saved_tensors_hooks_get_disabled_error_message()
    disable = own._saved_tensors_hooks_disable
    try:
        try:
            disable("gradscope looks at an operation", none_on)
        except TypeError:
            disable("gradscope looks at an operation")
        yield
    finally:  # it is disabled, too, where that raised
        own._saved_tensors_hooks_enable()
        if said is not None:
            with suppress(RuntimeError):
                disable(said)


def _metadata(node: Node, slot: int) -> Any:
    return of_node(node, "_input_metadata", "Node._input_metadata")[slot]


def kind_name(kind: type[Node]) -> str:
    """Return what torch calls a kind of node, such as `AddBackward0`."""
    return kind.__name__


def is_derived(name: str) -> bool:
    """Whether a node of this name runs a formula of torch's own table of derivatives.

    These are numbered, and write to nothing that they are given. Others may: custom Functions of
    Python and C++, and nodes that gather gradients.
    """
    return re.search(r"Backward\d+$", name) is not None


def is_custom(node: Node) -> bool:
    """Whether `node` is of a user's autograd.Function."""
    try:
        return isinstance(node, torch.autograd.function.BackwardCFunction)
    except AttributeError:
        raise Unavailable("torch.autograd.function.BackwardCFunction") from None


def distributed_as(node: Node) -> tuple[Any, Any, Any] | None:
    """Return of what distributed tensor a node made a local one: its mesh and placements.

    And those of its gradient. None for a node that did not.

    Raises
    ------
    Unavailable
        If this torch does not tell.
    """
    if kind_name(type(node)) != "_ToTorchTensorBackward":
        return None
    made: Any = node
    try:
        spec = made.dtensor_spec
        return spec.mesh, spec.placements, made.grad_placements or spec.placements
    except AttributeError:
        raise Unavailable("_ToTorchTensor.dtensor_spec") from None


def saved(node: Node, name: str) -> Any:
    """Return what `node` has saved as `name`, such as `alpha` or `self`.

    Raises
    ------
    Unavailable
        If it never has anything of this name.
    RuntimeError
        If it is a tensor that was changed in place since, or freed.
    """
    return of_node(node, f"_saved_{name}", "Node._saved_*")


def saves_nothing(node: Node) -> bool:
    """Whether the custom Function of `node` has saved no tensor: then it is linear."""
    return not of_node(node, "_raw_saved_tensors", "Node._raw_saved_*")


def has_saved(node: Node, name: str) -> bool:
    """Whether nodes of this kind save something as `name`."""
    try:
        of_node(node, f"_raw_saved_{name}", "Node._raw_saved_*")
    except Unavailable:
        return False
    return True


def of_node(node: Any, attribute: str, interface: str) -> Any:
    """Return an attribute of a node, or of what it has saved; Unavailable where it has none."""
    try:
        return getattr(node, attribute)
    except AttributeError:
        raise Unavailable(interface) from None
