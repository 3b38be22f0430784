"""Norms of tensors of parameters, by the places of these, each read on its device."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Container, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from gradscope import measure
from gradscope.capture.keys import Layout
from gradscope.capture.training.parameters import Places


class Norms(NamedTuple):
    """Norms of tensors of the parameters at `places`, on one device."""

    places: Places
    values: Tensor

    def of(self, some: Container[int]) -> list[Norms]:
        """Return those of the places in `some`."""
        picked = [k for k, place in enumerate(self.places) if place in some]
        values = [self.values[k] for k in picked]
        return [Norms(tuple(self.places[k] for k in picked), torch.stack(values))] if picked else []


def read_norms(tensors: dict[int, Tensor]) -> list[Norms]:
    """Return the L2 norm of each tensor, read in one go on each device."""
    return [
        Norms(group, measure.norms([tensors[i] for i in group])) for group in by_device(tensors)
    ]


def unknown(places: Iterable[int], tensors: list[Tensor]) -> list[Norms]:
    """Return NaN for each of the places: what a layer's norm is of is not known, then."""
    return [
        Norms(group, torch.full((len(group),), math.nan, device=tensors[group[0]].device))
        for group in by_device({i: tensors[i] for i in sorted(places)})
    ]


def without(layout: Layout, places: Places, left_out: Collection[int]) -> Layout:
    """Return `layout`, in which values of the places `left_out` stand for nothing."""
    if not left_out or not any(i in left_out for i in places):
        return layout
    return tuple(() if i in left_out else keys for i, keys in zip(places, layout, strict=True))


def by_device(tensors: dict[int, Tensor]) -> list[Places]:
    """Return the places of the tensors of each device."""
    devices = [tensor.device for tensor in tensors.values()]
    if len(set(devices)) < 2:
        return [tuple(tensors)] if tensors else []
    groups: dict[torch.device, list[int]] = defaultdict(list)
    for i, device in zip(tensors, devices, strict=True):
        groups[device].append(i)
    return [tuple(places) for places in groups.values()]
