"""Attention whose logits are so large that all weight goes to one key: its entropy has collapsed.

Then the softmax is flat, and queries and keys learn next to nothing; in bfloat16 such logits are
rounded to whole numbers, and trainings diverge. Sources: Zhai et al. 2023 (entropy collapse,
sigma-Reparam), Dehghani et al. 2023 (ViT-22B, normalised queries and keys), Wortsman et al. 2023
(growth of logits at high learning rates, in small models, too).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from gradscope.diagnosis.evidence import Evidence
from gradscope.diagnosis.findings import Finding, Place
from gradscope.diagnosis.rules.remedies import lower_rate
from gradscope.diagnosis.rules.update_speed import falls
from gradscope.diagnosis.signal_path import Floats
from gradscope.wording import amount, number

LARGE = 100.0
"""Logits of models that train well stay below, after long training, too."""

AT_START = 200.0
"""Those with which they start stay below: post-norm encoders on embeddings times the root of their
width, which train, were met at 135. Such have grown only once they are THREEFOLD that."""

THREEFOLD = 3

HARMLESS = 5000.0
"""Those up to which a loss was seen to fall all the same, by what other paths learn."""

LOOKS = 2
"""The latest ones, all of which have to be large, where there are as many."""


def large_logits(evidence: Evidence) -> Iterator[Finding]:
    """Find attention whose logits are large now, as they always were or as they have grown to."""
    read, rows = evidence.looks_and_rows("attention_logit_max")
    if len(rows) == 0:
        return
    large = read > LARGE
    ill = large[-LOOKS:].all(axis=0)
    if not ill.any():
        return
    start = read[0] > AT_START
    has_grown = ~large[0] | (read[-1] > THREEFOLD * read[0])
    for layers, grown in ((ill & ~start & has_grown, True), (ill & start, False)):
        if layers.any():
            yield _finding(evidence, read[:, layers], rows, np.flatnonzero(layers), grown=grown)


def _finding(
    evidence: Evidence,
    read: Floats,
    rows: NDArray[np.int64],
    layers: NDArray[np.int64],
    *,
    grown: bool,
) -> Finding:
    first, last = float(np.nanmax(read[0])), float(np.nanmax(read[-1]))
    row, layer = np.argwhere(read > LARGE)[0]
    steps = evidence.step(int(rows[row])), evidence.step(evidence.rows[-1])
    how = f"have grown from {number(first)} to" if grown else "reach"
    return Finding(
        "attention-logits",
        "information" if grown and last < HARMLESS and falls(evidence) else "warning",
        f"The logits of the attention at {evidence.named(layers)} {how} {amount(last)}: softmax"
        " gives all weight to one key, and queries and keys get next to no gradient.",
        tuple(evidence.names[i] for i in layers),
        steps,
        {"attention_logit_max": last, "at_the_start": first},
        tuple(_remedies(evidence, last, grown=grown)),
        Place(steps[0], int(layers[layer]), "attention_logit_max", "forward"),
    )


def _remedies(evidence: Evidence, logit: float, *, grown: bool) -> Iterator[str]:
    if not grown:
        yield (
            "scale the logits by 1/sqrt(width of a head), and start the weights of queries and keys"
            f" smaller: logits of {amount(logit)} are {amount(logit / 10)} times too large"
        )
    yield "normalise queries and keys before their product (QK-norm: LayerNorm or RMSNorm a head)"
    if grown:
        yield lower_rate(evidence)
