"""An `eps` that is larger than the gradients which it is added to."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradscope.diagnosis.evidence import WINDOW, Evidence
from gradscope.diagnosis.findings import Finding, Place
from gradscope.wording import amount, number, setting

LARGER = 10.0
"""Times the gradient's size an element from which on eps is nearly all of the denominator."""

_DIVIDES = ("adam", "rmsprop", "lamb")
"""In the names of optimizers that divide by the size of the gradient + eps."""


def large_eps(evidence: Evidence) -> Iterator[Finding]:
    """Find an eps that makes SGD of an optimizer that should adapt (Kingma and Ba, 2015).

    For information: some recipes mean it, as those that train Inception with an eps of 1.
    """
    eps = {
        name: float(value)
        for name, value in evidence.run.facts.get("eps", {}).items()
        if any(word in name.lower() for word in _DIVIDES)
    }
    rows = evidence.rows[:WINDOW]
    if len(eps) != 1 or len(rows) == 0:
        return
    (name, value), weights = *eps.items(), np.flatnonzero(evidence.weights)
    elements = evidence.layers["parameters"].to_numpy(dtype=np.float64)[weights]
    gradient = evidence.at("clipped_grad_norm", rows)[:, weights] / np.sqrt(elements)
    known = np.isfinite(gradient).all(axis=0) & (gradient > 0).all(axis=0)
    if not known.any():
        return
    layers, size = weights[known], np.median(gradient[:, known], axis=0)
    middle = float(np.median(size))
    if value < LARGER * middle:
        return
    swallowed = layers[size * LARGER <= value]
    first, last = evidence.step(rows[0]), evidence.step(rows[-1])
    yield Finding(
        "update-speed",
        "information",
        f"The eps of {name}, {setting(value, 2)}, is {amount(value / middle)} times the gradient of"
        f" an element in the middle weight layer, {number(middle)}: it divides by eps instead of"
        " the gradient's size, takes steps as small as that, and adapts no more than SGD.",
        tuple(evidence.names[i] for i in swallowed),
        (first, last),
        {"eps_over_gradient": value / middle},
        (f"lower eps below {number(middle / LARGER)}: 1e-8 is usual",),
        Place(first, int(swallowed[0]), "clipped_grad_norm", "update"),
    )
