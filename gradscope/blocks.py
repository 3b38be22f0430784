"""Where the residual blocks of a run begin and end among its layers."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gradscope.run import Run

SPLIT_FORMS = ("identity", "projection", "scaled", "gated", "nested")
"""Forms of shortcuts whose gradient is split, so that the whole of it is known at the block."""


class Block(NamedTuple):
    """A residual block: the layers from `first` up to, not including, `after` lie in it."""

    shortcut: int
    name: str
    form: str
    first: int
    after: int


def residual_blocks(run: Run) -> list[Block]:
    """Return the blocks of `run` that lie within no other, from input to output.

    Left out are those whose gradient was never recorded, and those whose branch holds no layer:
    what lies in them is not known.
    """
    shortcuts = run.shortcuts
    if shortcuts.empty:
        return []
    recorded = ~np.isnan(run.shortcut_matrix("total_norm")[1]).all(axis=0)
    names = [str(name) for name in run.layers["name"]]
    found = []
    for index, read in enumerate(recorded):
        shortcut = shortcuts.iloc[index]
        branch = str(shortcut["branch"])
        inside = [i for i, name in enumerate(names) if f"{name}.".startswith(f"{branch}.")]
        if read and shortcut["form"] in SPLIT_FORMS and inside:
            after = round(float(shortcut["position"]) * len(names))
            found.append(
                Block(index, str(shortcut["name"]), str(shortcut["form"]), inside[0], after)
            )
    return [block for block in found if not any(_holds(other, block) for other in found)]


def _holds(outer: Block, inner: Block) -> bool:
    extent = (inner.first, inner.after)
    return (outer.first, outer.after) != extent and (
        outer.first <= inner.first and inner.after <= outer.after
    )
