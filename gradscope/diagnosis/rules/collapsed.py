"""Collapsed: hidden layers whose outputs hardly vary."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradscope.arithmetic import over_reference
from gradscope.diagnosis.blocks import residual_blocks
from gradscope.diagnosis.evidence import Evidence, Mask
from gradscope.diagnosis.findings import Finding, Place
from gradscope.diagnosis.rules.marks import first_place, names_of, severity_of
from gradscope.diagnosis.rules.saturated import gates
from gradscope.diagnosis.signal_path import composites

COLLAPSED = 1e-3
"""Standard deviation of an output over its root mean square."""


ALIKE = 0.002
"""Root of the share of an output's variance that lies between samples: healthy language models come
down to .008 at their outputs."""

LOOKS = 2
"""Looks in a row at which samples must be alike."""


def collapsed(evidence: Evidence) -> Iterator[Finding]:
    """Find outputs that are one and the same number, or one and the same for all samples."""
    yield from _constant(evidence)
    yield from _alike(evidence)


def _alike(evidence: Evidence) -> Iterator[Finding]:
    """Find nets whose output is the same for all samples, and the layer from which on it is.

    A layer by itself may be so, as a gate or a token that starts alike for all is; what follows
    then differs again.
    """
    looks = evidence.looks("sample_spread")
    if evidence.path is None or len(looks) < LOOKS:
        return
    chain = looks[:, evidence.path.layers]
    if not (chain[-LOOKS:, -1] < ALIKE).all():
        return
    same = chain[-1] < ALIKE
    first = len(same) - int(np.argmin(same[::-1])) if not same.all() else 0
    layers = evidence.path.layers[first:]
    from_start = bool(chain[0, -1] < ALIKE)
    steps = (evidence.step(evidence.rows[0]), evidence.step(evidence.rows[-1]))
    yield Finding(
        "collapsed",
        "critical",
        f"What {evidence.named(layers)} {'gives' if len(layers) == 1 else 'give'} is the same for"
        f" all samples: {chain[-1, -1] ** 2:.1g} of its variance lies between them.",
        tuple(evidence.names[i] for i in layers),
        steps,
        {"sample_spread": float(chain[-1, -1])},
        (
            "start from larger weights (torch.nn.init.kaiming_normal_), or normalise",
            "check that the input varies from sample to sample",
        )
        if from_start
        else (
            "the loss rewards it: hold samples apart, by negatives, a variance term, or a predictor"
            " and stop-gradient",
            "lower the learning rate, if the loss should not reward it",
        ),
        Place(steps[1], int(layers[0]), "activation_std", "forward"),
    )


def _constant(evidence: Evidence) -> Iterator[Finding]:
    """Find hidden layers whose outputs are all but one and the same number.

    Within a residual block a constant does no harm, nor as a gate.
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
