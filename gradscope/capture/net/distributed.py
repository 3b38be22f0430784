"""Several processes that train one model, as far as recording has to know of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch.distributed as dist
from torch import Tensor, nn

from gradscope.autograd.torch_internals import divide_factor, wrapped
from gradscope.capture.keys import Key, OfLayer, OfParameter, OfShortcut
from gradscope.capture.net import layers


def several() -> bool:
    """Whether this process trains together with others."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def replicas(parameter: Tensor) -> int:
    """Return how many processes hold the same elements of `parameter`; 0 if they hold summands.

    Of what is no distributed tensor, all do.
    """
    if not several():
        return 1
    mesh = getattr(parameter, "device_mesh", None)
    if mesh is None:
        return dist.get_world_size()
    held: int = dist.get_world_size() // mesh.size()
    return round(held * copies_in(mesh, parameter.placements))  # type: ignore[attr-defined]


def copies_in(mesh: Any, placements: Iterable[Any]) -> int:
    """Return how many processes of `mesh` hold the same elements; 0 if they hold summands."""
    held = 1
    for dim, placement in enumerate(placements):
        if placement.is_replicate():
            held *= mesh.size(dim)
        elif placement.is_partial():
            return 0
    return held


class Sharing(NamedTuple):
    """How a process shares a model with others, as far as the model tells.

    Attributes
    ----------
    parallel : int
        Of how many processes each holds a part of a layer, for the same samples.
    split : mapping of str to str
        Layer -> "outputs" or "inputs", by which its weight is split between these; else "".
    shards : mapping of str to int
        Layer -> in how many parts FullyShardedDataParallel has split it.
    divisor : float or None
        What the sum of all gradients is divided by; None for the number of processes.
    unknown : kinds of readings that cannot be put together
    problem : str
        A sentence that says so, and why.
    """

    parallel: int = 1
    split: Mapping[str, str] = {}
    shards: Mapping[str, int] = {}
    divisor: float | None = None
    unknown: tuple[type[Key], ...] = ()
    problem: str = ""


def sharing(model: nn.Module) -> Sharing:
    """Return how `model` is shared; before its first forward, in which parts are put together.

    Parameters
    ----------
    model : nn.Module
        With its wrappers, of which some split it. Names are those in what they wrap.
    """
    if not several():
        return Sharing()
    parallel, split = _parallel(layers.unwrap(model))
    shards, is_flat = _shards(model)
    factors = {factor for m in model.modules() if (factor := divide_factor(m)) != 0}
    if is_flat:
        return Sharing(parallel, split, shards, None, (OfParameter,), _FLAT)
    if len(factors) > 1:
        return Sharing(parallel, split, shards, None, (OfLayer, OfShortcut), _FACTORS)
    return Sharing(parallel, split, shards, next(iter(factors), None))


_FLAT = (
    "FullyShardedDataParallel(use_orig_params=False) hides which parameters are whose, so there are"
    " no norms of gradients, weights and updates, and no layers that only own parameters. Use"
    " use_orig_params=True, or fully_shard, to have them"
)
_FACTORS = (
    "parts of the model divide the sums of their gradients by different factors, so of which loss a"
    " signal is the gradient is not known: there are no signals, activations and shortcuts. Set one"
    " gradient_divide_factor for all of them"
)


def _parallel(model: nn.Module) -> tuple[int, dict[str, str]]:
    """Return over how many processes layers are spread, and by what their weights are split."""
    sharded: set[Tensor] = set()
    for module in model.modules():
        if any(kind.__name__ == "FSDPModule" for kind in type(module).__mro__):
            sharded.update(module.parameters())
    parallel, split = 1, {}
    for name, module in model.named_modules():
        for _, parameter in layers.own_parameters(module):
            dims = _own_dims(parameter, parameter in sharded)
            mesh: Any = getattr(parameter, "device_mesh", None)
            parallel = max(parallel, math.prod(mesh.size(dim) for dim in dims))
            placements = [parameter.placements[dim] for dim in dims]  # type: ignore[attr-defined]
            if parameter.dim() > 1 and any(p.is_shard() for p in placements):
                by = "outputs" if any(p.is_shard(0) for p in placements) else ""
                by = by or ("inputs" if any(p.is_shard(1) for p in placements) else "")
                split[layers.unwrapped_name(name) or layers.ROOT] = by
    return parallel, split


SPLIT_SINCE = (
    "layers were split over processes after watch(), as by parallelize_module: signals, activations"
    " and shortcuts are NaN. Call watch() after that to have them"
)


def was_split_since(model: nn.Module, known: Sharing) -> bool:
    """Whether layers of `model` are spread over other numbers of processes than were `known`."""
    return several() and _parallel(model)[0] != known.parallel


def _own_dims(parameter: Tensor, is_sharded: bool) -> list[int]:
    """Return the dimensions of a parameter's mesh over which its layer's work is split.

    Not those of fully_shard, which are the first, or a replicated one and the second; nor those
    that are named after experts, which get samples of their own.
    """
    mesh = getattr(parameter, "device_mesh", None)
    if mesh is None:
        return []
    placements = parameter.placements  # type: ignore[attr-defined]
    first = 0 if not is_sharded else 2 if placements[0].is_replicate() else 1
    names = mesh.mesh_dim_names or [""] * len(placements)
    return [d for d in range(first, len(placements)) if not names[d].startswith(("ep", "expert"))]


def _shards(model: nn.Module) -> tuple[dict[str, int], bool]:
    """Return in how many parts FullyShardedDataParallel splits layers; whether they lie flat."""
    shards: dict[str, int] = {}
    is_flat = False
    for name, module in _with_wrappers(model):  # outer ones come first, inner ones overwrite
        if type(module).__name__ != "FullyShardedDataParallel":
            continue
        whole = getattr(getattr(module, "sharding_strategy", None), "name", "") == "NO_SHARD"
        size = 1 if whole else dist.get_world_size(module.process_group)  # type: ignore[arg-type]
        is_flat |= any(name.endswith("_flat_param") for name, _ in module.named_parameters())
        for inner, part in layers.unwrap(module).named_modules(prefix=name):
            if layers.own_parameters(part):
                shards[layers.unwrapped_name(inner) or layers.ROOT] = size
    return shards, is_flat


def _with_wrappers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules of what `model` wraps, by name, after the wrappers, which have none."""
    while (inner := wrapped(model)) is not None:
        yield "", model
        model = inner
    yield from model.named_modules()
