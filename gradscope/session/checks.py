"""What `watch` and `Scope` refuse, each with what to do instead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from numbers import Real

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradscope import schema
from gradscope.capture.forwards.plan import CUTS
from gradscope.capture.net import layers
from gradscope.capture.net.layers import is_distributed
from gradscope.errors import GradscopeError
from gradscope.session import process_end


def check_settings(every: int, flush_every: int, flush_seconds: float, ranks: int | str) -> None:
    """Refuse numbers of steps below 1, seconds that are too many, and unknown words."""
    if ranks not in (0, "all"):
        raise GradscopeError(f'watch(ranks={ranks!r}): needs 0 or "all"')
    for name, value in (("every", every), ("flush_every", flush_every)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise GradscopeError(
                f"watch({name}={value!r}): needs a whole number of steps, 1 or more"
            )
    if not isinstance(flush_seconds, Real) or not 0 < flush_seconds <= 10:
        raise GradscopeError(
            f"watch(flush_seconds={flush_seconds!r}): needs a number of seconds above 0 and at"
            " most 10, so that a crash loses little"
        )


def check_updates(updates: object) -> None:
    """Refuse what is no way to tell a step's update."""
    if not isinstance(updates, bool) and updates != "sampled":
        raise GradscopeError(
            f'watch(updates={updates!r}): needs True, "sampled" (an estimate in little memory) or'
            " False (no update_norm)"
        )


def check_gradient(gradient: object) -> None:
    """Refuse what is no place of gradients."""
    if gradient is None or (isinstance(gradient, str) and gradient.isidentifier()):
        return
    if isinstance(gradient, Tensor) or not callable(gradient):
        raise GradscopeError(
            f"watch(gradient={gradient!r:.80}): needs the name of an attribute of parameters, such"
            ' as "main_grad", or a function from a parameter to its gradient'
        )


def check_cut(model: nn.Module, cut: str | None, cut_every: int | None, every: int) -> int:
    """Return `cut_every`, its default filled in."""
    if cut is not None and cut not in CUTS:
        raise GradscopeError(f"watch(cut={cut!r}): needs one of {', '.join(CUTS)}, or None")
    if cut is not None and is_distributed(model):
        raise GradscopeError(
            f"watch(cut={cut!r}): a second backward within the first is not supported under"
            f" {type(model).__name__}; leave cut out, or use gradscope.cut() on one process"
        )
    if cut_every is None:
        return 10 * every
    if isinstance(cut_every, bool) or not isinstance(cut_every, int) or cut_every < 1:
        raise GradscopeError(f"watch(cut_every={cut_every!r}): needs a whole number, 1 or more")
    if cut_every % every:
        raise GradscopeError(
            f"watch(cut_every={cut_every}): only recorded steps can be cut, so it must be a"
            f" multiple of every={every}"
        )
    return cut_every


def check_model(model: nn.Module) -> None:
    """Refuse a model in which hooks see nothing, or that is watched already."""
    if isinstance(model, torch.jit.ScriptModule):
        raise GradscopeError(
            f"watch(): {type(model).__name__} is a torch.jit.ScriptModule, in which hooks cannot"
            " see gradients; watch the Python module before it is scripted"
        )
    if isinstance(model, nn.DataParallel):
        raise GradscopeError(
            "watch(): torch.nn.DataParallel trains copies that hooks do not follow; use"
            " DistributedDataParallel, or watch the module on one device"
        )
    for name, module in model.named_modules():
        if getattr(module.__dict__.get("forward"), "__module__", "") == "torch.cuda.graphs":
            raise GradscopeError(
                f"watch(): the forward of '{name or layers.ROOT}' was captured by"
                " torch.cuda.make_graphed_callables and replays kernels without calling modules;"
                " watch the model before it is captured, or train without CUDA graphs"
            )
    if not any(p.requires_grad for p in model.parameters()):
        raise GradscopeError(
            f"watch(): {type(model).__name__} has no trainable parameters, so no gradient reaches"
            " it; set requires_grad on some, or pass the model that trains"
        )
    known = process_end.open_scopes.get(id(model))
    if known is not None:
        raise GradscopeError(
            f"watch(): this {type(model).__name__} is watched already, into {known.scope.path};"
            " close() that scope first, or call gradscope.unwatch(model)"
        )


def check_optimizers(model: nn.Module, optimizers: Sequence[Optimizer] | None) -> None:
    """Refuse what is no optimizer, and one that has no parameter of the model."""
    own = {id(p) for p in model.parameters()}
    for optimizer in optimizers or ():
        if not isinstance(optimizer, Optimizer):
            raise GradscopeError(
                f"watch(optimizer=...): needs a torch.optim.Optimizer, got"
                f" {type(optimizer).__name__} {optimizer!r:.80}"
            )
        if not any(id(p) in own for group in optimizer.param_groups for p in group["params"]):
            raise GradscopeError(
                f"watch(optimizer=...): this {type(optimizer).__name__} has none of the parameters"
                f" of {type(model).__name__}; pass the optimizer that trains it, or leave the"
                " argument out"
            )


def check_scalars(scalars: Mapping[str, object]) -> None:
    """Refuse what no row can hold: names that are taken or no text, values that are no number."""
    for name, value in scalars.items():
        if name in schema.names(schema.STEPS) and name != "learning_rate":
            raise GradscopeError(
                f"log({name}=...): gradscope records a column of this name; choose another"
            )
        if name != name.encode("utf-8", "replace").decode("utf-8"):
            raise GradscopeError(
                f"log({name!r}=...): no file can hold this name, it is no valid Unicode"
            )
        if isinstance(value, Tensor) and value.numel() == 1:
            continue
        if not hasattr(value, "__float__") or isinstance(value, Tensor):
            shape = f" of shape {tuple(value.shape)}" if isinstance(value, Tensor) else ""
            raise GradscopeError(
                f"log({name}=...): needs one number, got {type(value).__name__}{shape};"
                " log its mean, say"
            )


def check_config(config: object) -> dict[str, bool | int | float | str]:
    """Return the settings of a training as numbers and words by name; those in groups as `a.b`."""
    if config is None:
        return {}
    if not isinstance(config, Mapping):
        config = getattr(config, "__dict__", None)  # as that of argparse
    if not isinstance(config, Mapping):
        raise GradscopeError(
            "watch(config=...): needs a dict of names and values, such as {'lr': 0.1}"
        )
    settings: dict[str, bool | int | float | str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            inner = check_config(value)
            settings |= {f"{key}.{name}": setting for name, setting in inner.items()}
            continue
        if hasattr(value, "item"):  # a number of NumPy or torch, maybe
            with suppress(ValueError, RuntimeError):
                value = value.item()
        settings[str(key)] = value if isinstance(value, (bool, int, float, str)) else str(value)
    return settings


def check_sending(every: int | None, recorded: int) -> int:
    """Return of which steps readings are sent, those `recorded` by default."""
    every = recorded if every is None else every
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise GradscopeError(f"send_to(every={every!r}): needs a whole number of steps, 1 or more")
    if every % recorded:
        raise GradscopeError(
            f"send_to(every={every}): only recorded steps can be sent, so it must be a multiple of"
            f" {recorded}, the `every` of watch()"
        )
    return every
