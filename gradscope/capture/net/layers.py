"""Which modules are layers, and what they are called.

A layer is a module that owns parameters itself, an activation, or a normalisation. Containers are
none, nor are reshapes, pools and dropouts.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn.parameter import UninitializedParameter

from gradscope.autograd.torch_internals import (
    WRAPPER_NAMES,
    has_child,
    is_scripted,
    parameters_of,
    wrapped,
)
from gradscope.kinds import group

ROOT = "(root)"
"""Name of the layer that holds the parameters of the model itself."""


def unwrap(model: nn.Module) -> nn.Module:
    """Return the module that DistributedDataParallel, torch.compile and the like wrap."""
    while (inner := wrapped(model)) is not None:
        model = inner
    return model


def is_distributed(model: nn.Module) -> bool:
    """Whether several processes train `model`: wrapped, or its parameters spread over them."""
    return type(model).__name__ in (
        "DistributedDataParallel",
        "FullyShardedDataParallel",
    ) or any(hasattr(parameter, "device_mesh") for parameter in model.parameters())


def unwrapped_name(name: str) -> str:
    """Return the path `name` without the names that wrappers inside the model put into it."""
    return ".".join(part for part in name.split(".") if part not in WRAPPER_NAMES)


PARAMETRIZATIONS = "parametrizations"
"""Child of a module whose weights are computed (torch.nn.utils.parametrize), from what it holds."""


def is_parametrized(module: nn.Module) -> bool:
    """Whether weights of `module` are computed, as by torch.nn.utils.parametrize."""
    return has_child(module, PARAMETRIZATIONS)


def held_parameters(module: nn.Module) -> dict[str, nn.Parameter | None]:
    """Return the parameters that `module` owns, by name, also those its weights are computed of."""
    own = parameters_of(module)
    if not has_child(module, PARAMETRIZATIONS):
        return own
    computed = module.get_submodule(PARAMETRIZATIONS).named_parameters(PARAMETRIZATIONS)
    return {**own, **dict(computed)}


def own_parameters(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return the parameters that `module` owns itself, as (name, parameter)."""
    return [(name, p) for name, p in held_parameters(module).items() if p is not None]


def owns_frozen(module: nn.Module) -> bool:
    """Whether some of the parameters that `module` owns itself get no gradient, as of now."""
    for parameter in held_parameters(module).values():
        if parameter is not None and not parameter.requires_grad:
            return True
    return False


def computed_parameters(module: nn.Module) -> tuple[Node, ...]:
    """Return the nodes that made what stands, as of now, in the place of parameters of `module`."""
    found = parameters_of(module).values()
    return tuple([p.grad_fn for p in found if p is not None and p.grad_fn is not None])


def acts(module: nn.Module) -> bool:
    """Whether `module` is there to be called, and no container of what others compute with."""
    if isinstance(module, nn.Embedding) or is_scripted(module):
        return False
    return type(module).forward is not nn.Module.forward


def is_activation(module: nn.Module) -> bool:
    """Whether `module` is an activation function: torch's own, or one named like it."""
    if any(True for _ in module.children()):
        return False
    if type(module).__module__ == "torch.nn.modules.activation":
        return not isinstance(module, nn.MultiheadAttention)
    return group(type(module).__name__, weights=False) == "activation"


def is_layer(module: nn.Module) -> bool:
    """Whether `module` is a layer: it owns parameters, activates or normalises."""
    if own_parameters(module) or is_activation(module):
        return True
    named = group(type(module).__name__, weights=False)
    return named == "normalisation" and not any(True for _ in module.children())


def is_weight_layer(module: nn.Module) -> bool:
    """Whether `module` owns a weight matrix or kernel: what 'a 50-layer net' counts."""
    return any(
        is_lazy(parameter) or parameter.dim() >= 2 for _, parameter in own_parameters(module)
    )


def kind(module: nn.Module) -> str:
    """Return the class name of `module`, without what `fully_shard` or parametrizing made of it."""
    found = type(module)
    if is_parametrized(module):  # a class of its own, made on the class that it was
        found = found.__bases__[0]
    if any(base.__name__ == "FSDPModule" for base in found.__bases__):
        found = found.__bases__[-1]
    return found.__name__


def is_lazy(parameter: Tensor) -> bool:
    """Whether `parameter` still waits for its first input to get a shape."""
    return isinstance(parameter, UninitializedParameter)
