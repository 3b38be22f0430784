"""Several processes that train one model, as far as recording has to know of them."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor, nn

from gradscope.capture.rows import Key, OfLayer, OfParameter, OfShortcut


def several() -> bool:
    """Whether this process trains together with others."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def replicas(parameter: Tensor) -> int:
    """Return how many processes hold the same elements of `parameter`."""
    if not several():
        return 1
    mesh = getattr(parameter, "device_mesh", None)
    if mesh is None:
        return dist.get_world_size()
    held: int = dist.get_world_size() // mesh.size()
    for dim, placement in enumerate(parameter.placements):  # type: ignore[attr-defined]
        if placement.is_replicate():
            held *= mesh.size(dim)
    return held


Unfollowed = tuple[tuple[type[Key], ...], str]
"""Kinds of readings that cannot be put together, and a sentence that says so."""


def unfollowed(model: nn.Module) -> Unfollowed:
    """Return what is not known of how processes share the parameters and samples of `model`."""
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
        return (OfParameter,), (
            "FullyShardedDataParallel: which shards of a layer a process holds is not followed, so"
            " there are no norms of gradients, weights and updates. Use fully_shard to have them"
        )
    if _is_tensor_parallel(model):
        return (OfLayer, OfShortcut), (
            "tensor parallel: which process holds which part of an output is not followed, so"
            " there are no signals, activations and shortcuts, but the norms of parameters over"
            ' all processes. watch(ranks="all") has what each process holds'
        )
    return (), ""


def _is_tensor_parallel(model: nn.Module) -> bool:
    """Whether parameters are shared out over more than fully_shard's own dimensions of a mesh.

    These are one, or a replicated one before a sharded one.
    """
    sharded: set[Tensor] = set()
    for module in model.modules():
        if any(kind.__name__ == "FSDPModule" for kind in type(module).__mro__):
            sharded.update(module.parameters())
    for parameter in model.parameters():
        if not hasattr(parameter, "device_mesh"):
            continue
        placements = parameter.placements  # type: ignore[attr-defined]
        own = 0 if parameter not in sharded else 2 if placements[0].is_replicate() else 1
        if len(placements) > own:
            return True
    return False
