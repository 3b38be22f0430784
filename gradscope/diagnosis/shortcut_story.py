"""What the shortcuts of a net do for its gradient, in one sentence."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gradscope.arithmetic import over_reference
from gradscope.diagnosis.signal_path import log10, signal_path
from gradscope.kinds import RECURRENT, canonical
from gradscope.runs.run import Run
from gradscope.schema import SPLIT_FORMS
from gradscope.wording import amount


def shortcut_story(run: Run) -> str:
    """Say how much of the gradient the shortcuts carry, and what would arrive without them.

    Parameters
    ----------
    run : Run

    Returns
    -------
    str
        Such as `Its 24 shortcuts carry 86-98% of the gradient's energy; with them cut, 1.2
        trillion times less of it would reach the first layer.` Empty where no shortcut was read.
    """
    forms = run.shortcuts["form"].to_numpy()
    split = np.flatnonzero(
        np.isin(forms, SPLIT_FORMS) & run.shortcut_was_read("energy_share") & ~_in_time(run)
    )
    if not len(split):
        return ""
    shares = run.shortcut_matrix("energy_share", shortcuts=split.tolist())[1]
    with np.errstate(invalid="ignore"):
        known = shares[:, ~np.isnan(shares).all(axis=0)]
        low, high = np.nanpercentile(np.nanmedian(known, axis=0), [0, 100])
    span = f"{low:.0%}" if round(low, 2) == round(high, 2) else f"{low * 100:.0f}–{high:.0%}"
    count = len(split)
    carry = "shortcuts carry" if count > 1 else "shortcut carries"
    text = f"Its {count} {carry} {span} of the gradient's energy{_without(run)}."
    return text


def _in_time(run: Run) -> NDArray[np.bool_]:
    """Return which joins lie between two time steps of a recurrent layer."""
    kinds = run.layers["kind"].astype(str).map(canonical).isin(RECURRENT)
    return np.asarray(run.shortcuts["branch"].isin(run.layers["name"][kinds]), dtype=bool)


def _without(run: Run) -> str:
    """Return what would arrive with the shortcuts cut, if that was recorded."""
    path = signal_path(run)
    if path is None or run.meta.get("cut") != "shortcuts":
        return ""
    _, cut = run.matrix("cut_signal_norm", layers=[int(path.layers[0])])
    taken = np.flatnonzero(~np.isnan(cut[:, 0]))
    if not len(taken):
        return ""
    left = over_reference(cut[taken, 0], path.late[taken])
    decades = float(np.median(log10(left[~np.isnan(left)]))) if (~np.isnan(left)).any() else np.nan
    if np.isnan(decades):
        return ""
    if np.isneginf(decades):
        return "; with them cut, none of it would reach the first layer"
    if abs(decades) < 0.3:
        return "; with them cut, as much of it would reach the first layer"
    times = amount(10 ** abs(decades)) if abs(decades) < 300 else f"10^{abs(decades):.0f}"
    more = "more" if decades > 0 else "less"
    return f"; with them cut, {times} times {more} of it would reach the first layer"
