"""Experts: parts of a mixture that get next to no gradient, as hardly anything is sent to them."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from gradscope.diagnosis.evidence import Evidence
from gradscope.diagnosis.findings import Finding, Place

STARVED = 1e-3
"""Gradient of an expert over the middle one of its siblings."""

SURE = 30
"""Recorded steps from which on it is no chance that an expert was not asked."""

_EXPERT = re.compile(r"^(.*?experts?(?:_list|s)?)\.(\d+)(?:\.|$)", re.IGNORECASE)


def starved_experts(evidence: Evidence) -> Iterator[Finding]:
    """Find experts, told by their modules' names, whose gradient is next to none beside others'."""
    if not evidence.windows:
        return
    groups: dict[str, dict[int, list[int]]] = {}
    for layer, name in enumerate(evidence.names):
        if evidence.owners[layer] and (found := _EXPERT.match(name)):
            groups.setdefault(found[1], {}).setdefault(int(found[2]), []).append(layer)
    for group, experts in groups.items():
        yield from _among(evidence, group, experts)


def _among(evidence: Evidence, group: str, experts: dict[int, list[int]]) -> Iterator[Finding]:
    if len(experts) < 2:
        return
    grad = np.nan_to_num(evidence.median("grad_norm"))
    got = np.array(
        [np.sqrt((grad[:, layers] ** 2).sum(axis=1)).max() for layers in experts.values()]
    )
    fed = got[got > 0]
    if len(fed) == 0:
        return
    starved = got < STARVED * fed.max()
    if not starved.any():
        return
    numbers = [number for number, none in zip(experts, starved, strict=True) if none]
    layers = [layer for number in numbers for layer in experts[number]]
    many = len(evidence.rows) >= SURE and len(numbers) * 2 >= len(experts)
    yield Finding(
        "experts",
        "warning" if many else "information",
        f"{len(numbers)} of {len(experts)} experts of '{group}' get next to no gradient, number"
        f" {', '.join(map(str, numbers[:6]))}{' ...' if len(numbers) > 6 else ''}: hardly anything"
        " is sent to them, or their weights let nothing through.",
        tuple(evidence.names[i] for i in layers),
        (evidence.step(evidence.rows[0]), evidence.step(evidence.rows[-1])),
        {"experts": float(len(numbers)), "of": float(len(experts))},
        (
            "add a loss that balances the experts' load, or noise to the router's logits",
            "start the router at zero, so that all experts are asked at first",
        ),
        Place(evidence.step(evidence.rows[0]), layers[0], "grad_norm", "backward"),
    )
