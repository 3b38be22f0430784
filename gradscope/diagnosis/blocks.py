"""Where the residual blocks of a run begin and end among its layers."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import numpy as np
import pandas as pd

from gradscope.runs.run import Run
from gradscope.schema import SPLIT_FORMS


class Block(NamedTuple):
    """A residual block: the layers from `first` up to, not including, `after` lie in it."""

    shortcut: int
    name: str
    form: str
    first: int
    after: int


def residual_blocks(run: Run) -> list[Block]:
    """Return the blocks of `run` that lie within no other, from input to output.

    Left out are those whose gradient was never recorded.
    """
    shortcuts = run.shortcuts
    if shortcuts.empty:
        return []
    names = [str(name) for name in run.layers["name"]]
    under = _under(names)
    recorded = run.shortcut_was_read("total_norm")
    ends = _ends(run, shortcuts, names, under)
    rows = shortcuts.to_dict("records")
    found: list[Block] = []
    for index, (read, after, row) in enumerate(zip(recorded, ends, rows, strict=True)):
        if read and row["form"] in SPLIT_FORMS:
            first = under.get(str(row["split"]), [])[-1:]
            start = first[0] + 1 if first and first[0] + 1 < after else 0
            if start == 0 and found:
                start = found[-1].after
            # a module that is called again, as a ReLU may be, lies where it was called first
            start = max([start, *under.get(str(row["name"]), [])[:1]])
            found.append(Block(index, str(row["name"]), str(row["form"]), start, after))
    return [block for block in found if not any(_holds(other, block) for other in found)]


def _ends(
    run: Run, shortcuts: pd.DataFrame, names: list[str], under: dict[str, list[int]]
) -> list[int]:
    """Return for each shortcut the first layer after its join.

    A join's position counts calls of layers. Where some are called more than once it is no exact
    place among the layers; then a block ends with the module that holds it.
    """
    called = np.flatnonzero(run.was_read("activation_norm"))
    if len(called) == 0:
        called = np.arange(len(names))
    bounds = [*called, len(names)]
    holders = shortcuts["name"].astype(str).tolist()
    places = shortcuts["position"].fillna(1).to_numpy(dtype=np.float64) * len(called)
    # the modules around a join have been called before it, but not yet returned
    calls = Counter(names[layer] for layer in called)
    around = [sum(calls[name] for name in {"(root)", *_with_parents(h)}) for h in holders]
    ends = [
        int(bounds[min(round(place) + more, len(called))])
        for place, more in zip(places, around, strict=True)
    ]
    if np.allclose(places, places.round(), atol=1e-3):
        return ends
    for index, holder in enumerate(holders):
        inside = under.get(holder, [])
        if inside and holder not in holders[index + 1 :]:
            ends[index] = inside[-1] + 1
    return ends


def _under(names: list[str]) -> dict[str, list[int]]:
    """Return the layers that lie in each module, or are it; none lie in the model itself."""
    under: dict[str, list[int]] = {}
    for layer, name in enumerate(names):
        for module in _with_parents(name):
            under.setdefault(module, []).append(layer)
    return under


def _with_parents(name: str) -> list[str]:
    """Return the modules around the one called `name`, and itself."""
    return [name[:end] for end, letter in enumerate(f"{name}.") if letter == "."]


def _holds(outer: Block, inner: Block) -> bool:
    extent = (inner.first, inner.after)
    return (outer.first, outer.after) != extent and (
        outer.first <= inner.first and inner.after <= outer.after
    )
