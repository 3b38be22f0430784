"""Residual blocks that do next to nothing, and such as are plain layers in disguise."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradscope.diagnosis.evidence import Evidence
from gradscope.diagnosis.findings import Finding
from gradscope.diagnosis.signal_path import Floats
from gradscope.diagnosis.speed import some_rows
from gradscope.kinds import is_linear
from gradscope.wording import listed

DOMINATED = (0.9999, 0.01)
"""Energy share of the shortcut above which, and forward branch ratio below which, it dominates."""

TRAINED = 100
"""Recorded steps from which on a branch had the time to grow."""


def shortcut_dominated(evidence: Evidence) -> Iterator[Finding]:
    """Find blocks that pass almost everything through the shortcut after training."""
    if len(evidence.rows) < TRAINED or evidence.run.shortcuts.empty:
        return
    share = evidence.shortcut_median("energy_share")[-1]
    ratio = evidence.shortcut_median("branch_ratio")[-1]
    dominated = (share > DOMINATED[0]) & (ratio < DOMINATED[1])
    if dominated.any():
        shortcuts = evidence.run.shortcuts
        names = tuple(str(name) for name in shortcuts["name"][dominated])
        last = np.zeros(len(evidence.windows), dtype=bool)
        last[-1] = True
        yield Finding(
            "shortcut-dominated",
            "information",
            f"{listed(names)}: the shortcut carries {np.median(share[dominated]):.1%} of the"
            f" gradient's energy, and the branch adds {np.median(ratio[dominated]):.1%} to the"
            " signal: these blocks do next to nothing.",
            names,
            evidence.span(last),
            {
                "energy_share": float(np.median(share[dominated])),
                "branch_ratio": float(np.median(ratio[dominated])),
            },
            (
                "if they stay like that to the end of training, a net without them does as well",
                "raise the branches' scale at the start, where it is small",
            ),
        )


def reparameterised(evidence: Evidence) -> Iterator[Finding]:
    """Find blocks y = W x + x, which can do no more than a plain layer with the weight W + I.

    Their gradients give them away: the layer's output receives all of the block's, as does the
    shortcut, and what it passes back is all of the branch's part.

    Source: He et al. 2015, Deep Residual Learning, section 3.2: a branch of a single layer is
    similar to a linear layer, y = W1 x + x, for which they saw no advantages.
    """
    shortcuts = evidence.run.shortcuts
    if shortcuts.empty or not evidence.windows:
        return
    rows = some_rows(evidence)
    at_output, at_input = (evidence.at(c, rows) for c in ("signal_norm", "input_signal_norm"))
    via_shortcut, via_branch = (
        evidence.run.shortcut_matrix(c)[1][rows] for c in ("shortcut_norm", "branch_norm")
    )
    single: list[str] = []
    for index in np.flatnonzero(shortcuts["form"] == "identity"):
        branch = str(shortcuts["branch"].iloc[index])
        layers = [i for i, name in enumerate(evidence.names) if f"{name}.".startswith(f"{branch}.")]
        if len(layers) != 1 or not is_linear(str(evidence.layers["kind"].iloc[layers[0]])):
            continue
        pairs = (
            (at_output[:, layers[0]], via_shortcut[:, index]),
            (at_input[:, layers[0]], via_branch[:, index]),
        )
        if all(_equal(one, other) for one, other in pairs):
            single.append(str(shortcuts["name"].iloc[index]))
    if single:
        yield Finding(
            "reparameterised",
            "information",
            f"{listed(single)}: the branch is one layer without an activation, so the block is a"
            " plain layer with the weight W + I: no more than another start for it.",
            tuple(single),
            evidence.span(np.ones(len(evidence.windows), dtype=bool)),
            {"blocks": float(len(single))},
            ("put two or more layers and an activation into each branch",),
        )


def _equal(one: Floats, other: Floats) -> bool:
    """Whether two readings are one and the same number at each step at which there are both."""
    known = np.isfinite(one) & np.isfinite(other)
    both = known & (one > 0) & (other > 0)
    same = np.isclose(one[both], other[both], rtol=1e-4, atol=0)
    return bool(both.any() and same.all() and both.sum() > known.sum() / 2)
