"""Modes, traces and transforms that the user has on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, suppress
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


def in_transform() -> bool:
    """Whether torch.func (grad, vmap, ...) is at work: its tensors are not those of a training."""
    try:
        return torch._C._functorch.peek_interpreter_stack() is not None
    except AttributeError:  # said by `missing`
        return False


def transform_has_graph() -> bool:
    """Whether what torch.func computes just now is in the graph of a training, as far as is known.

    Its `grad` has gradients on within, whatever was the rule outside.
    """
    if not torch.is_grad_enabled():
        return False
    own: Any = torch._C._functorch
    try:
        return all(
            own.CGradInterpreterPtr(one).prevGradMode()
            for one in own.get_interpreter_stack() or ()
            if one.key() == own.TransformType.Grad
        )
    except AttributeError:
        return True


def is_plain() -> bool:
    """Whether nothing sees or changes what is computed: no mode, trace or transform is on.

    So it is nearly always, and this is told in less time than which of them is on. False where
    this torch cannot tell.
    """
    try:
        return not (
            torch._C._len_torch_dispatch_stack()
            or torch._C._len_torch_function_stack()
            or torch._C._is_any_autocast_enabled()
            or torch._C._get_tracing_state()
            or torch._C._functorch.peek_interpreter_stack()
        )
    except AttributeError:  # said by `missing`
        return False


_WITHOUT_AUTOCAST: Any = getattr(torch._C, "_DisableAutocast", None)


def apart_from_modes(function: Callable[..., Result], *args: Any) -> Result:
    """Call `function` so that no mode of the user sees, or changes, what it computes.

    Dispatch modes (selective checkpointing, counters), function modes (a default device among
    them) and autocast are put aside; where none is on, this costs next to nothing.
    """
    try:
        dispatch = torch._C._len_torch_dispatch_stack() > 0
        function_modes = torch._C._len_torch_function_stack() > 0
        autocast = torch._C._is_any_autocast_enabled()
    except AttributeError:  # said by `missing`
        dispatch = function_modes = autocast = False
    if not (dispatch or function_modes or autocast):
        return function(*args)
    if not (dispatch or function_modes) and (without := _WITHOUT_AUTOCAST) is not None:
        with without():
            return function(*args)
    with ExitStack() as aside:
        if dispatch:
            with suppress(AttributeError, ImportError):
                aside.enter_context(dispatch_modes_aside()())
        for is_on, name in (
            (function_modes, "DisableTorchFunction"),
            (autocast, "_DisableAutocast"),
        ):
            if is_on and (context := getattr(torch._C, name, None)) is not None:
                aside.enter_context(context())
        return function(*args)


def dispatch_modes_aside() -> Callable[[], AbstractContextManager[object]]:
    """Return the context in which no dispatch mode is on."""
    from torch.utils._python_dispatch import _disable_current_modes

    return _disable_current_modes


_is_jit_tracing: Callable[[], bool] = torch.jit.is_tracing  # type: ignore[attr-defined]


def is_tracing() -> bool:
    """Whether calls are being traced or exported, or have no values: nothing trains."""
    if _is_jit_tracing():
        return True
    try:
        if not torch._C._len_torch_dispatch_stack():
            return False
        kinds = torch._C._TorchDispatchModeKey
        modes = (kinds.FAKE, kinds.PROXY, kinds.FUNCTIONAL)
        return any(torch._C._get_dispatch_mode(kind) is not None for kind in modes)
    except AttributeError:
        return False
