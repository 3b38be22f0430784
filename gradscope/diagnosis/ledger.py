"""The ledger of gains: which modules the gradient was lost or won in.

The gain of a module is log10(||gradient at its input|| / ||gradient at its output||), in decades:
-0.6 for a sigmoid at its steepest. Along a chain the output of one module is the input of the
next, so that the gains of all modules add up to the decades between the two ends. A residual block
counts as one entry, from its output to its input, shortcut and branch together.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from gradscope.arithmetic import over_reference
from gradscope.diagnosis.blocks import Block, residual_blocks
from gradscope.diagnosis.signal_path import (
    Floats,
    Ints,
    SignalPath,
    is_weight_layer,
    log10,
    signal_at,
    signal_path,
)
from gradscope.errors import GradscopeError
from gradscope.kinds import group
from gradscope.runs.run import Run

COLUMNS = ["layer", "name", "kind", "group", "gain", "on_path"]


def ledger(run: Run, step: int | None = None) -> pd.DataFrame:
    """Return the gain of every layer and residual block at one recorded step.

    Parameters
    ----------
    run : Run
    step : int, optional
        A recorded step. By default the one whose loss of gradient is the run's median.

    Returns
    -------
    DataFrame, one row a layer or block in order of depth
        `layer` (index in `run.layers`, missing for what is none), `name`, `kind`, `group`
        (`weight`, `activation`, `normalisation`, `shortcut` or `other`), `gain` (decades, negative
        where gradient is lost), `on_path`. The gains of the rows with `on_path` add up to the
        decades between the first and the last hidden layer. An activation that was called as a
        function on a layer's output is a row under that layer's name, its gain taken up to the
        next layer's input; what else happened between the modules is the last of these rows,
        `(remainder)`. Layers within a residual block have a gain of their own but are not on the
        path: the block is. No rows where no signal was recorded.

    Raises
    ------
    GradscopeError
        If `step` was not recorded.

    Examples
    --------
    The decades lost or won by kind of module::

        frame = gradscope.ledger(run)
        frame[frame.on_path].groupby("group").gain.sum()
    """
    path = signal_path(run)
    if path is None:
        return pd.DataFrame(columns=COLUMNS)
    if step is None:
        row = median_row(path)
    elif step in path.steps:
        row = int(np.flatnonzero(path.steps == step)[0])
    else:
        raise GradscopeError(
            f"{run.path}: step {step} was not recorded; choose one of run.steps['step']"
        )
    return _at_row(run, path, row)


def median_row(path: SignalPath) -> int:
    """Return the row of the middle one of the steps, ordered by the decades lost."""
    order = np.argsort(path.decades)  # NaN comes last
    return int(order[(np.isfinite(path.decades) | np.isinf(path.decades)).sum() // 2])


def _at_row(run: Run, path: SignalPath, row: int) -> pd.DataFrame:
    layers = run.layers
    step = int(path.steps[row])
    at_output, at_input = (
        np.asarray(run.matrix(column, step, step)[1][0], dtype=np.float64)
        for column in ("signal_norm", "input_signal_norm")
    )
    gains = log10(over_reference(at_input, at_output))
    weights = is_weight_layer(layers)
    along = set(path.along.tolist())
    blocks = [b for b in residual_blocks(run) if along & set(range(b.first, b.after))]
    totals, passed = (_at_blocks(run, c, blocks, step) for c in ("total_norm", "shortcut_norm"))
    functions = run.functions
    start, early = _start(run, path, row)
    end = path.end
    first_function = start + (path.start_behind and start == path.start)
    last_function = end - (not path.end_behind)

    rows: list[list[Any]] = []
    for index in range(len(layers)):
        for number, block in enumerate(blocks):
            if block.first == index:
                out = _behind(number, blocks, totals, passed, at_input, path.along)
                gain = log10(over_reference(totals[number : number + 1], np.array([out])))[0]
                kind = f"{block.form} shortcut"
                rows.append([None, block.name, kind, "shortcut", gain, start < index <= end])
        name, kind = str(layers["name"].iloc[index]), str(layers["kind"].iloc[index])
        inside = any(block.first <= index < block.after for block in blocks)
        on_path = start < index <= end and not inside and index in along
        what = group(kind, bool(weights[index]))
        rows.append([index, name, kind, what, gains[index], on_path])
        if index in functions:
            behind = _at_next(index, blocks, totals, at_input, path.along)
            gain = log10(over_reference(at_output[index : index + 1], np.array([behind])))[0]
            on_path = first_function <= index <= last_function and not inside and index in along
            rows.append([None, name, functions[index], "activation", gain, on_path])
    frame = pd.DataFrame(rows, columns=COLUMNS)
    frame["on_path"] &= np.isfinite(frame["gain"])

    lost = log10(over_reference(np.array([early]), path.late[row : row + 1]))[0]
    remainder = lost - frame.loc[frame["on_path"], "gain"].sum()
    frame.loc[len(frame)] = [None, "(remainder)", "between modules", "other", remainder, True]
    return frame.astype({"layer": "Int64", "gain": "float64", "on_path": "bool"})


def _start(run: Run, path: SignalPath, row: int) -> tuple[int, float]:
    """Return the layer behind which the path starts, and the gradient there.

    Where the gradient underflowed to 0 on its way, the path starts where it still was some.
    """
    early = float(path.early[row])
    if early == 0:
        signal = signal_at(run, path.layers, int(path.steps[row]))
        arrived = np.flatnonzero(signal > 0)
        if len(arrived):
            return int(path.layers[arrived[0]]), float(signal[arrived[0]])
    return path.start, early


def _at_blocks(run: Run, column: str, blocks: list[Block], step: int) -> Floats:
    """Return a metric of each block at one step."""
    values = run.shortcut_matrix(column, step, step)[1][0] if blocks else []
    return np.array([values[block.shortcut] for block in blocks], dtype=np.float64)


def _behind(
    number: int,
    blocks: list[Block],
    totals: Floats,
    passed: Floats,
    at_input: Floats,
    along: Ints,
) -> float:
    """Return the gradient at a block's output, or else at the next block's or layer's input.

    An identity shortcut passes on all that arrives at the output.
    """
    block = blocks[number]
    if block.form == "identity":
        return float(passed[number])
    return _at_next(block.after - 1, blocks, totals, at_input, along)


def _at_next(
    index: int, blocks: list[Block], totals: Floats, at_input: Floats, along: Ints
) -> float:
    """Return the gradient at the input of the block or layer that follows `index` on the path."""
    for number, block in enumerate(blocks):
        if block.first == index + 1:
            return float(totals[number])
    following = along[along > index]
    return float(at_input[following[0]]) if len(following) else np.nan


def decades_by_group(frame: pd.DataFrame) -> dict[str, float]:
    """Return the decades of each group of a ledger in order of size, those below 0.05 left out."""
    sums = frame[frame["on_path"]].groupby("group")["gain"].sum()
    sums = sums[sums.abs() >= 0.05].sort_values(key=np.abs, ascending=False)
    return {str(group): float(decades) for group, decades in sums.items()}


def account(frame: pd.DataFrame) -> str:
    """Return a ledger in words: `weights -20.7, activations (Tanh) -0.5`."""
    parts = []
    path = frame[frame["on_path"]]
    for name, decades in decades_by_group(frame).items():
        kinds = path.loc[path["group"] == name, "kind"].value_counts().index.tolist()
        label = {
            "weight": "weights",
            "activation": f"activations ({', '.join(kinds[:2])})",
            "normalisation": f"normalisation ({', '.join(kinds[:2])})",
            "shortcut": "residual blocks",
        }.get(name, "the rest")
        parts.append(f"{label} {decades:+.1f}")
    return ", ".join(parts)
