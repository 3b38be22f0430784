"""Tiny batch: a BatchNorm whose mean and variance rest on two or three values."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradscope.arithmetic import over_reference
from gradscope.diagnosis.evidence import Evidence, Mask
from gradscope.diagnosis.findings import Finding
from gradscope.diagnosis.rules.marks import first_place, names_of
from gradscope.kinds import canonical
from gradscope.wording import capitalised

FEWEST = 4
"""Values from which on a mean and a variance are worth their names."""


def tiny_batch(evidence: Evidence) -> Iterator[Finding]:
    """Find BatchNorms that see fewer than four values a channel.

    How many elements an output has follows from its norm, mean and standard deviation, how many
    channels from the parameters, a weight and a bias for each.
    """
    batch = np.array(["batchnorm" in canonical(str(k)) for k in evidence.layers["kind"]], bool)
    if not (batch & evidence.owners).any() or not evidence.windows:
        return
    norm, mean, std = (
        evidence.median(column)
        for column in ("activation_norm", "activation_mean", "activation_std")
    )
    channels = evidence.layers["parameters"].to_numpy(dtype=np.float64) / 2
    each = over_reference(norm**2, (mean**2 + std**2) * channels)
    few: Mask = (each.round() < FEWEST) & (each > 1.5) & batch & evidence.owners
    if not few.any():
        return
    layers = np.any(few, axis=0)
    take = "takes" if layers.sum() == 1 else "take"
    number = float(np.median(each[few]).round())
    yield Finding(
        "tiny-batch",
        "warning",
        f"{capitalised(evidence.named(layers))} {take} mean and variance"
        f" over {number:.0f} values a channel: what comes out says more of the rest of the batch"
        " than of the sample.",
        names_of(evidence, layers),
        evidence.span(np.any(few, axis=1)),
        {"values": number},
        (
            "raise the batch size (accumulating gradients does not help BatchNorm)",
            "use GroupNorm or LayerNorm, which look at one sample at a time",
        ),
        first_place(evidence, few, "activation_std", "forward"),
    )
