"""Quantities that follow from the readings of a step, computed wherever they are shown."""

from __future__ import annotations

import numpy as np


def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Divide in float64; 0/0 is NaN and x/0 is inf, without a warning."""
    with np.errstate(all="ignore"):
        quotient: np.ndarray = np.divide(above, below, dtype=np.float64)
    return quotient


def energy_share(shortcut: np.ndarray, branch: np.ndarray) -> np.ndarray:
    """Return the shortcut's share of the two paths' squared norms; NaN where both are 0."""
    with np.errstate(all="ignore"):
        energy = np.square(shortcut, dtype=np.float64)
        return ratio(energy, energy + np.square(branch, dtype=np.float64))


def relative(signal: np.ndarray) -> np.ndarray:
    """Divide each row, the signals of all layers at one step, by its last value that is not NaN."""
    if not signal.shape[1]:
        return signal.astype(np.float64)
    last = signal.shape[1] - 1 - np.argmax(~np.isnan(signal[:, ::-1]), axis=1)
    return ratio(signal, np.take_along_axis(signal, last[:, None], axis=1))
