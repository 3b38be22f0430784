"""Residual blocks that do next to nothing, and such as are plain layers in disguise."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradscope.diagnosis.evidence import WINDOW, Evidence
from gradscope.diagnosis.findings import Finding
from gradscope.wording import listed

DOMINATED = (0.99, 0.1)
"""Energy share of the shortcut above which, and forward branch ratio below which, it dominates."""


def shortcut_dominated(evidence: Evidence) -> Iterator[Finding]:
    """Find blocks that pass almost everything through the shortcut after training."""
    if len(evidence.rows) < WINDOW or evidence.run.shortcuts.empty:
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
            ("a shallower net may do as well", "train longer, or raise the branches' scale"),
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
    via_shortcut = evidence.shortcut_median("shortcut_norm")
    via_branch = evidence.shortcut_median("branch_norm")
    at_output, at_input = evidence.median("signal_norm"), evidence.median("input_signal_norm")
    single: list[str] = []
    for index in np.flatnonzero(shortcuts["form"] == "identity"):
        branch = str(shortcuts["branch"].iloc[index])
        layers = [i for i, name in enumerate(evidence.names) if f"{name}.".startswith(f"{branch}.")]
        if not layers:
            continue
        layer = layers[0]
        linear = np.isclose(at_output[:, layer], via_shortcut[:, index], rtol=1e-3, atol=0)
        linear &= np.isclose(at_input[:, layer], via_branch[:, index], rtol=1e-3, atol=0)
        if linear.all() and evidence.layers["parameters"].iloc[layer] > 0:
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
