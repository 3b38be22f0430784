"""Clipping: whether it clips what it is meant to."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradscope.diagnosis.evidence import Evidence, Mask
from gradscope.diagnosis.findings import Finding
from gradscope.diagnosis.signal_path import Floats
from gradscope.wording import amount, number, setting

SAME = 2e-4
"""Relative difference of numbers that are one threshold: norms in float32 round less."""

MOST = 0.9
"""Share of the clipped steps that show it: where the gradient is small nothing is clipped."""

FEWEST = 3
"""Clipped steps from which a threshold shows."""


def scaled_clipping(evidence: Evidence) -> Iterator[Finding]:
    """Find gradients that were clipped while they still carried the factor of a loss scaler.

    What is left of one that is clipped to norm c is c / scale then, and c where it is clipped after
    `unscale_`. Where the scale changes in the run the steps tell these apart. Where it does not,
    the number does: people choose thresholds of one or two digits, and scales are powers of two.
    """
    steps = evidence.steps.iloc[evidence.rows]
    whole, left, scale = (
        steps[column].to_numpy(dtype=np.float64)
        for column in ("grad_norm", "clipped_grad_norm", "loss_scale")
    )
    clipped = np.isfinite(whole) & (left > 0) & (left < whole * (1 - 1e-3)) & (scale > 1)
    if clipped.sum() < max(FEWEST, len(steps) / 2):
        return
    whole, left, scale = whole[clipped], left[clipped], scale[clipped]
    threshold = float(np.median(left * scale))
    at = [float(np.median((left * scale)[scale == known])) for known in np.unique(scale)]
    if not (_is_near(left * scale, threshold).mean() >= MOST and _is_near(at, threshold).all()):
        return
    if len(at) == 1 and (not _is_round(threshold) or _is_round(float(np.median(left)))):
        return
    rows = evidence.rows[clipped]
    step = evidence.steps["step"].to_numpy()
    share = float(np.median(left / whole))
    yield Finding(
        "scaled-clipping",
        "critical" if clipped[-1] else "warning",
        f"Gradients are clipped to {setting(threshold)} while they still carry the loss scale: a"
        f" norm of {number(np.median(whole))} becomes {number(np.median(left))},"
        f" {amount(1 / share)} times less.",
        (),
        (int(step[rows[0]]), int(step[rows[-1]])),
        {
            "threshold": threshold,
            "loss_scale": float(np.median(scale)),
            "share_left": share,
        },
        (
            "call scaler.unscale_(optimizer) before the gradients are clipped",
            "let the trainer clip (gradient_clip_val, max_grad_norm), which unscales first",
        ),
    )


def _is_near(values: Floats | list[float], number: float) -> Mask:
    return np.asarray(np.abs(np.asarray(values) / number - 1) <= SAME)


def _is_round(value: float) -> bool:
    """Whether `value` has one digit or two, but for rounding."""
    return bool(_is_near([float(f"{value:.1e}")], value)[0])
