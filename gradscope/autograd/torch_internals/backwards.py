"""The backward under way in this thread."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from types import CodeType, FrameType
from typing import Any

import torch
from torch.autograd.graph import Node
from torch.utils import checkpoint

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


def ends_recomputation(error: Exception) -> bool:
    """Whether checkpointing raises `error` so that nothing more is computed anew: it has all."""
    return isinstance(error, getattr(checkpoint, "_StopRecomputationError", ()))


def will_accumulate(leaves: Sequence[Node]) -> bool:
    """Whether the backward under way adds to the `.grad` of a parameter, one of these nodes'."""
    try:
        return any(torch._C._will_engine_execute_node(leaf) for leaf in leaves)
    except AttributeError:
        raise Unavailable("torch._C._will_engine_execute_node") from None
    except RuntimeError:  # it is an autograd.grad: nothing is accumulated
        return False


def roots_of_backward() -> list[Node]:
    """Return the nodes that the outermost backward under way was called on; none if not known.

    On an accelerator hooks run in threads of its own, while the one that called it waits. Where
    several threads go backward at once, it is not known which is meant.
    """
    code = _code_of_backward()
    found = [f for f in map(partial(_outermost, code), sys._current_frames().values()) if f]
    return _roots(found[0]) if len(found) == 1 else []


def roots_of_innermost_backward() -> list[Node]:
    """Return the nodes that the innermost backward of this thread was called on."""
    code, frame = _code_of_backward(), sys._getframe()
    while frame.f_code is not code:
        if frame.f_back is None:
            return []
        frame = frame.f_back
    return _roots(frame)


def _code_of_backward() -> CodeType:
    try:
        return torch.autograd.graph._engine_run_backward.__code__
    except AttributeError:
        raise Unavailable("torch.autograd.graph._engine_run_backward") from None


def _roots(frame: FrameType) -> list[Node]:
    outputs = frame.f_locals.get("t_outputs", ())
    nodes = [
        getattr(output, "grad_fn", None) or getattr(output, "node", None) for output in outputs
    ]
    return [node for node in nodes if isinstance(node, Node)]


def _outermost(code: CodeType, frame: FrameType | None) -> FrameType | None:
    """Return the outermost of `frame` and its callers that runs `code`.

    A frame that is left in a variable of its own would outlive its callers, with all of theirs.
    """
    outermost = None
    while frame is not None:
        if frame.f_code is code:
            outermost = frame
        frame = frame.f_back
    return outermost


def at_end_of_backward(callback: Callable[[], None]) -> None:
    """Call `callback` when the backward under way ends; those that were asked before come first."""
    try:
        queue = _engine().queue_callback
    except AttributeError:
        raise Unavailable("torch.autograd.Variable._execution_engine.queue_callback") from None
    queue(callback)


def _engine() -> Any:
    return torch.autograd.Variable._execution_engine
