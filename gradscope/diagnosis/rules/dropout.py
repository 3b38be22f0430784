"""Dropout that leaves so little of a layer that its noise drowns what is left."""

from __future__ import annotations

from collections.abc import Iterator

from gradscope.diagnosis.evidence import Evidence
from gradscope.diagnosis.findings import Finding
from gradscope.wording import listed, setting

MOST = 0.9
"""Share left out from which on the noise is three times the signal: sqrt(p / (1 - p)) of it."""


def strong_dropout(evidence: Evidence) -> Iterator[Finding]:
    """Find dropouts of .9 and more: .1 to .5 is usual."""
    strong = {
        str(name): float(share)
        for name, share in evidence.run.facts.get("dropout", {}).items()
        if share >= MOST
    }
    if not strong or len(evidence.rows) == 0:
        return
    most = max(strong.values())
    rest = "and nothing is left"
    if most < 1:
        noise = (most / (1 - most)) ** 0.5
        rest = (
            f"and scales the rest up {1 / (1 - most):.0f} times: its noise is {noise:.1f} times the"
            " signal"
        )
    yield Finding(
        "dropout",
        "warning",
        f"Dropout leaves out {most:.0%} of the units in training, at {listed(list(strong))},"
        f" {rest}.",
        tuple(strong),
        evidence.whole,
        {"dropout": most},
        (
            f"lower dropout from {setting(most)} to 0.1 - 0.5; p is the share that is left out, not"
            " the one that is kept",
        ),
    )
