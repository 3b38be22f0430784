"""Several processes that train one model, as far as recording has to know of them."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


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
