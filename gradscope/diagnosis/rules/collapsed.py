"""Collapsed: hidden layers whose outputs hardly vary."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradscope.arithmetic import over_reference
from gradscope.diagnosis.blocks import residual_blocks
from gradscope.diagnosis.evidence import Evidence, Mask
from gradscope.diagnosis.findings import Finding
from gradscope.diagnosis.rules.marks import first_place, names_of, severity_of
from gradscope.diagnosis.rules.saturated import gates
from gradscope.diagnosis.signal_path import composites

COLLAPSED = 1e-3
"""Standard deviation of an output over its root mean square."""


def collapsed(evidence: Evidence) -> Iterator[Finding]:
    """Find hidden layers whose outputs are all but one and the same number.

    The readings hold the spread over all of an output's elements, units and samples together, so
    that an output which differs between units but not between samples is not found. Within a
    residual block a constant does no harm, nor as a gate.
    """
    if evidence.path is None or not evidence.windows:
        return
    spread, mean = evidence.median("activation_std"), evidence.median("activation_mean")
    share = over_reference(spread, np.hypot(spread, mean))
    flat = share < COLLAPSED
    flat &= ~evidence.outputs & ~composites(evidence.layers, evidence.weights) & ~gates(evidence)
    for block in residual_blocks(evidence.run):
        flat[:, block.first : block.after] = False
    if not flat.any():
        return
    layers: Mask = np.any(flat, axis=0)
    yield Finding(
        "collapsed",
        severity_of(flat),
        f"All outputs of {evidence.named(layers)} are nearly the same number, whatever the input"
        " is.",
        names_of(evidence, layers),
        evidence.span(np.any(flat, axis=1)),
        {"spread_over_size": float(np.nanmin(share[flat]))},
        (
            "check that the input varies and is normalised",
            "start from larger weights, or put a normalisation before these layers",
        ),
        first_place(evidence, flat, "activation_std", "forward"),
    )
