"""How much gradient arrives early in a net, compared with late: the depth profile in one number.

The decades D = log10(early / late) of the signal norm ||dL/d(output)||, early at the first hidden
layer, late at the last one: negative where the gradient vanishes toward the input, positive where
it explodes. A scaling of the loss cancels out. Weight layers stand for the depth, activations and
normalisations between them do not count as steps of their own. In a residual net the layers of a
branch see only the branch's part of the gradient, so there the first and the last block's input,
where both parts are together, stand for the ends unless a layer lies outside of all blocks.

Source: Glorot & Bengio, AISTATS 2010, section 4: back-propagated gradients, not weight gradients,
tell of vanishing; the latter's variance can stay constant across layers while the former shrinks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gradscope.blocks import residual_blocks
from gradscope.run import Run

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class SignalPath:
    """The signal along the depth of a net, over the recorded steps.

    Attributes
    ----------
    steps : int64 (S,)
    layers : int64 (n,)
        Indices of the hidden weight layers and the output layer, from input to output.
    signal : float64 (S, n), loss/activation
        Signal norm of these layers.
    early, late : float64 (S,), loss/activation
        Signal at the first and the last point of the path.
    early_name, late_name : str
        What they are, in words: `layer fc1`, `the input of block3`.
    decades : float64 (S,)
        log10(early / late). -inf where the early signal underflowed to 0, NaN where it is 0 for
        another reason or was not read, or where the loss gave no gradient at all.
    """

    steps: Ints
    layers: Ints
    signal: Floats
    early: Floats
    late: Floats
    early_name: str
    late_name: str
    decades: Floats

    @property
    def relative(self) -> Floats:
        """Signal of each layer over the late one, (S, n); NaN where that is 0."""
        return ratio(self.signal, self.late[:, None])


def ratio(part: Floats, whole: Floats) -> Floats:
    """Return part / whole; NaN where `whole` is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(whole == 0, np.nan, part / whole)


def log10(values: Floats) -> Floats:
    """Return the decimal logarithm, -inf of 0, without a warning."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log10(values)


def is_weight_layer(layers: pd.DataFrame) -> NDArray[np.bool_]:
    """Return which layers have a weight matrix or kernel: those that add to the depth."""
    return np.diff(layers["depth"].to_numpy(np.int64), prepend=0) > 0


def composites(layers: pd.DataFrame, candidates: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which layers hold one of `candidates`: their output is no point of its own."""
    names = [str(name) for name in layers["name"]]
    held = [name for name, candidate in zip(names, candidates, strict=True) if candidate]
    parents = {name[:i] for name in held for i, letter in enumerate(name) if letter == "."}
    return np.array(
        [name in parents or (name == "(root)" and len(held) > 1) for name in names], dtype=bool
    )


def signal_path(run: Run) -> SignalPath | None:
    """Return the signal along the depth of `run`; None if no weight layer's signal was recorded."""
    layers = run.layers
    steps, matrix = run.matrix("signal_norm")
    signal = np.asarray(matrix, dtype=np.float64)
    read = ~np.isnan(signal).all(axis=0) if len(steps) else np.zeros(len(layers), dtype=bool)
    for kind in (is_weight_layer(layers), layers["parameters"].to_numpy() > 0):
        points = kind & read
        points &= ~composites(layers, points)
        if points.any():
            break
    else:
        return None

    chosen = np.flatnonzero(points)
    hidden = chosen[:-1] if len(chosen) > 1 else chosen
    early, early_name = signal[:, hidden[0]], _named(layers, hidden[0])
    late, late_name = signal[:, hidden[-1]], _named(layers, hidden[-1])
    blocks = residual_blocks(run) if len(chosen) > 1 else []
    if blocks:
        totals = np.asarray(run.shortcut_matrix("total_norm")[1], dtype=np.float64)
        first, last = blocks[0], blocks[-1]
        if hidden[0] >= first.first:
            early, early_name = totals[:, first.shortcut], f"the input of {first.name}"
        if hidden[-1] < last.after:
            late, late_name = totals[:, last.shortcut], f"the input of {last.name}"

    values = signal[:, chosen]
    return SignalPath(
        steps, chosen, values, early, late, early_name, late_name, _decades(values, early, late)
    )


def _named(layers: pd.DataFrame, index: int) -> str:
    return f"layer {layers['name'].iloc[index]}"


def _decades(signal: Floats, early: Floats, late: Floats) -> Floats:
    """Return log10(early / late), telling an underflow from a path that is cut or switched off.

    A signal that had already lost two decades at the earliest layer where it is not 0 went on to
    underflow; one that is healthy there and 0 in the layer before was cut.
    """
    decades = log10(ratio(early, late))
    decades[~np.isfinite(early) | ~np.isfinite(late)] = np.nan
    for row in np.flatnonzero((early == 0) & (late > 0)):
        arrived = signal[row][signal[row] > 0]
        if len(arrived) == 0 or arrived[0] > 0.01 * late[row]:
            decades[row] = np.nan
    return decades
