"""Modules: their children and parameters, what wraps them, what scripts them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from gradscope.autograd.torch_internals.interfaces import Unavailable


def default_store() -> Any:
    """Return the store of the default process group, by which processes find each other."""
    try:
        return torch.distributed.distributed_c10d._get_default_store()
    except AttributeError:
        raise Unavailable("torch.distributed.distributed_c10d._get_default_store") from None


def is_compiled(module: nn.Module) -> bool:
    """Whether `module` itself has been handed to torch.compile."""
    return (
        type(module).__name__ == "OptimizedModule"
        or getattr(module, "_compiled_call_impl", None) is not None
        or getattr(module, "_compiler_ctx", None) is not None  # a LightningModule
    )


_WRAPPED = {
    "DistributedDataParallel": "module",
    "OptimizedModule": "_orig_mod",
    "FullyShardedDataParallel": "_fsdp_wrapped_module",
    "CheckpointWrapper": "_checkpoint_wrapped_module",
}
"""Class that wraps a module -> the attribute under which it does."""

WRAPPER_NAMES = frozenset(_WRAPPED.values()) - {"module"}  # a name that users give, too
"""Parts of a module's path that are a wrapper's, not the user's."""


def wrapped(module: nn.Module) -> nn.Module | None:
    """Return the module that DistributedDataParallel, torch.compile and the like wrap, if any."""
    name = _WRAPPED.get(type(module).__name__)
    inner = None if name is None else getattr(module, name, None)
    return inner if isinstance(inner, nn.Module) else None


def is_scripted(module: nn.Module) -> bool:
    """Whether `module` was compiled by torch.jit: hooks see nothing in it."""
    return isinstance(module, torch.jit.ScriptModule)


def script_without(ours: Callable[[object], bool]) -> Callable[[], None]:
    """Let torch.jit.script overlook hooks that are `ours`; call what is returned to end that."""
    try:
        recursive: Any = torch.jit._recursive
        ask = recursive.get_hook_stubs
    except AttributeError:
        return lambda: None

    def ask_for_others(module: nn.Module) -> Any:
        both: tuple[Any, ...] = (module._forward_hooks, module._forward_pre_hooks)
        held = [(hooks, dict(hooks)) for hooks in both]
        try:
            for hooks, every_one in held:
                for key in [key for key, hook in every_one.items() if ours(hook)]:
                    del hooks[key]
            return ask(module)
        finally:
            for hooks, every_one in held:
                hooks.clear()
                hooks.update(every_one)

    def undo() -> None:
        if recursive.get_hook_stubs is ask_for_others:
            recursive.get_hook_stubs = ask

    recursive.get_hook_stubs = ask_for_others
    return undo


def children_of(module: nn.Module) -> Iterable[nn.Module | None]:
    """Return the module's own children; those that are None may be among them."""
    try:
        return module._modules.values()
    except AttributeError:
        return module.children()


def has_child(module: nn.Module, name: str) -> bool:
    """Whether `module` has a child of this name."""
    try:
        return name in module._modules
    except AttributeError:
        return name in dict(module.named_children())


def parameters_of(module: nn.Module) -> dict[str, nn.Parameter | None]:
    """Return the module's own parameters by name; those that are None may be among them."""
    try:
        return module._parameters
    except AttributeError:
        return dict(module.named_parameters(recurse=False))


def divide_factor(module: nn.Module) -> float | None:
    """Return what fully_shard divides the sum of a module's gradients by.

    None where that is the number of processes, 0 where it shards nothing of `module` itself.
    """
    try:
        if not any(kind.__name__ == "FSDPModule" for kind in type(module).__mro__):
            return 0.0
        state: Any = module._get_fsdp_state()  # type: ignore[operator]
        groups = getattr(state, "_fsdp_param_groups", None)
        groups = [state._fsdp_param_group] if groups is None else groups
        factors = {group.gradient_divide_factor for group in groups if group is not None}
        factor = next(iter(factors), 0.0)
        return factor if factor is None else float(factor)
    except AttributeError:
        return None
