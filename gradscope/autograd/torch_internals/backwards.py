"""The backward under way in this thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.autograd.graph import Node

from gradscope.autograd.torch_internals.interfaces import Unavailable
from gradscope.autograd.torch_internals.nodes import is_custom


def current_backward() -> int:
    """Return the number of the backward under way in this thread, -1 outside of any."""
    try:
        return torch._C._current_graph_task_id()
    except AttributeError:
        raise Unavailable("torch._C._current_graph_task_id") from None


def recomputing_node() -> Node | None:
    """Return the custom Function whose backward runs just now in this thread, if one does.

    Re-entrant checkpointing computes anew in one. What is not re-entrant does so wherever a saved
    tensor is asked for, which is in a node of torch's own but for custom Functions that it holds.
    """
    try:
        node = torch._C._current_autograd_node()
    except AttributeError:  # said by `missing`
        return None
    return node if node is not None and is_custom(node) else None


def will_accumulate(leaves: Sequence[Node]) -> bool:
    """Whether the backward under way adds to the `.grad` of a parameter, one of these nodes'."""
    try:
        return any(torch._C._will_engine_execute_node(leaf) for leaf in leaves)
    except AttributeError:
        raise Unavailable("torch._C._will_engine_execute_node") from None
    except RuntimeError:  # it is an autograd.grad: nothing is accumulated
        return False


def at_end_of_backward(callback: Callable[[], None]) -> None:
    """Call `callback` when the backward under way ends; those that were asked before come first."""
    try:
        queue = _engine().queue_callback
    except AttributeError:
        raise Unavailable("torch.autograd.Variable._execution_engine.queue_callback") from None
    queue(callback)


def _engine() -> Any:
    return torch.autograd.Variable._execution_engine
