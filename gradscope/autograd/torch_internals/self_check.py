"""What this torch lacks, asked of a tiny graph before a training begins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from gradscope.autograd.torch_internals import (
    backward_calls,
    backwards,
    modes,
    node_names,
    nodes,
    saved_hooks,
)
from gradscope.autograd.torch_internals.interfaces import INTERFACES, Interface, sentence


class SelfCheck(NamedTuple):
    """The interfaces that are gone and whose loss shows, and one message that says so."""

    missing: tuple[Interface, ...]
    message: str


def self_check() -> SelfCheck:
    """Look for every interface whose loss shows; no backward is run, and nothing is random."""
    missing = tuple(modes.apart_from_modes(_missing))
    return SelfCheck(missing, sentence(*missing))


def _missing() -> list[Interface]:
    with torch.inference_mode(False), torch.enable_grad():
        number = nodes.next_sequence_number()
        x = torch.ones(2, device="cpu", requires_grad=True)
        product = x.mul(torch.full((2,), 3.0, device="cpu"))
    node: Any = product.grad_fn
    own: Any = torch._C
    probes: dict[str, Callable[[], object]] = {
        "torch._C._current_graph_task_id": lambda: type(backwards.current_backward()) is int,
        "torch._C._current_autograd_node": lambda: own._current_autograd_node,
        "torch._C._will_engine_execute_node": lambda: own._will_engine_execute_node,
        "torch.autograd.Variable._execution_engine.queue_callback": lambda: (
            torch.autograd.Variable._execution_engine.queue_callback
        ),
        "torch.autograd.graph._engine_run_backward": lambda: (
            backwards.roots_of_backward() is not None
        ),
        "torch.autograd._engine_run_backward": backward_calls.can_follow,
        "torch._C._autograd._get_sequence_nr": lambda: own._autograd._get_sequence_nr,
        "Node._sequence_nr": lambda: number in (-1, nodes.sequence_number(node)),
        "Node._input_metadata": lambda: nodes.shape(node, 0) == (2,),
        "Node._saved_*": lambda: nodes.saved(node, "other")[0].item() == 3.0,
        "Node._raw_saved_*": lambda: nodes.has_saved(node, "other"),
        "SavedTensor.unpack_hook": saved_hooks.can_follow,
        node_names.NAMES: lambda: not node_names.strange_names(),
        "torch._C._autograd._saved_tensors_hooks_disable": lambda: (
            own._autograd._saved_tensors_hooks_disable
        ),
        "torch.autograd.function.BackwardCFunction": lambda: not nodes.is_custom(node),
        "torch._C._functorch.peek_interpreter_stack": lambda: own._functorch.peek_interpreter_stack,
        "torch._C._len_torch_dispatch_stack": lambda: own._len_torch_dispatch_stack,
        "torch._C._len_torch_function_stack": lambda: own._len_torch_function_stack,
        "torch._C._is_any_autocast_enabled": lambda: own._is_any_autocast_enabled,
        "torch._C._get_dispatch_mode": lambda: own._get_dispatch_mode,
        "torch.utils._python_dispatch._disable_current_modes": modes.dispatch_modes_aside,
        "Tensor._version": lambda: x._version == 0,
        "torch._C.DisableTorchFunction": lambda: own.DisableTorchFunction,
        "torch._C._DisableAutocast": lambda: own._DisableAutocast,
    }
    return [i for i in INTERFACES if i.name in probes and not _holds(probes[i.name])]


def _holds(probe: Callable[[], object]) -> bool:
    """Whether what is asked for is there, and as it is known."""
    try:
        return bool(probe())
    except Exception:
        return False
