"""What a layer is called in figures, and which layers belong together."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradscope.plots.lettering import safe

MOST_GROUPS = 40
LEAST_BLOCKS = 3
"""Of so many blocks of one kind the layers of a role are a line of their own."""
MOST_ROLES = 8


class Group(NamedTuple):
    """The layers `first` to `last`, places from 0, that lie in the module called `name`."""

    name: str
    first: int
    last: int


def title(layer: int, name: str, kind: str) -> str:
    """Return what the layer with the index `layer` is called: `19 · blocks.4.fc1 (Linear)`."""
    return f"{layer} · {safe(name)} ({safe(kind, 24)})"


def groups(names: Sequence[str]) -> list[Group]:
    """Return runs of neighbours that lie in one numbered block, as `h.3`, or in one stage."""
    found = _runs([_block(name) for name in names])
    if len(found) > MOST_GROUPS:
        found = _runs([name.partition(".")[0] for name in names])
    return found if len(found) <= MOST_GROUPS else []


def roles(names: Sequence[str]) -> dict[str, list[int]]:
    """Return the places of the layers that play one role in blocks that repeat: `attn.c_attn`.

    Empty where blocks do not repeat, or hold one layer each.
    """
    found: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        block = _block(name)
        if block and len(name) > len(block):
            stem = re.sub(r"\d+", "#", block)
            found.setdefault(f"{stem}.{name[len(block) + 1 :]}", []).append(place)
    repeated = {role: places for role, places in found.items() if len(places) >= LEAST_BLOCKS}
    if not 2 <= len(repeated) <= MOST_ROLES:
        return {}
    return {role.rpartition("#.")[2]: places for role, places in repeated.items()}


def roles_apart(names: Sequence[str], heights: NDArray[np.floating[Any]]) -> dict[str, list[int]]:
    """Return the roles of layers that lie at `heights`, each at a level of its own; else none.

    So it is where the way from layer to layer is longer than the ways within the roles together.
    """
    found = roles(names)
    inside = sorted(place for places in found.values() for place in places)
    apart = _way(heights[inside]) > sum(_way(heights[places]) for places in found.values())
    return found if apart else {}


def _way(heights: NDArray[np.floating[Any]]) -> float:
    return float(np.abs(np.diff(heights[np.isfinite(heights)])).sum())


def _block(name: str) -> str:
    """Return the part of a name up to its first number, empty without one or for a leaf."""
    match = re.match(r"^((?:[^.\d]+\d*\.)*?\d+)(?=\.)", name) or re.match(r"^(.*?\.\d+)\.", name)
    return match[1] if match else ""


def _runs(labels: Sequence[str]) -> list[Group]:
    found: list[Group] = []
    for place, label in enumerate(labels):
        if found and found[-1].name == label and found[-1].last == place - 1:
            found[-1] = found[-1]._replace(last=place)
        elif label:
            found.append(Group(label, place, place))
    return found
