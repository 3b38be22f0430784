"""Experts: parts of a mixture to which a router sends hardly any tokens, or to which it sends all.

Told by the tokens that each gets: one that is called at every step may be asked about one token.
Where all get the same number, as in a weighted mixture of all, by their gradient.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gradscope.diagnosis.evidence import Evidence
from gradscope.diagnosis.findings import Finding, Place
from gradscope.diagnosis.signal_path import Floats

STARVED = 1e-3
"""Gradient of an expert over the largest of its siblings'."""

FEW = 1e-2
"""Tokens of an expert over what each would get if all got as many."""

NEARLY_ALL = 0.95
"""Share of the tokens."""

CROWD = 4
"""So many times fewer experts than there are get nearly all tokens where a router has collapsed."""

SURE = 30
"""Recorded steps from which on it is no chance that an expert was not asked."""

_EXPERT = re.compile(r"^(.*?experts?(?:_list|s)?)\.(\d+)(?:\.|$)", re.IGNORECASE)
_NUMBERED = re.compile(r"\.(\d+)(?=\.|$)")
_ROUTER = re.compile(r"gat(e|ing)|rout|switch|dispatch", re.IGNORECASE)


@dataclass(frozen=True)
class _Group:
    """Experts of one router: their layers by their numbers, and the tokens of each by window."""

    name: str
    experts: dict[int, list[int]]
    tokens: Floats
    """(windows, experts), as elements of the output of one layer of each."""

    @property
    def shares(self) -> Floats:
        """Of the tokens, in each window in which some were read."""
        total = self.tokens.sum(axis=1)
        return np.asarray(self.tokens[total > 0] / total[total > 0, None])

    @property
    def is_routed(self) -> bool:
        """Whether some expert got other tokens than the others."""
        return bool((np.ptp(self.shares, axis=1) > FEW / len(self.experts)).any())


def unbalanced_experts(evidence: Evidence) -> Iterator[Finding]:
    """Find experts that get next to nothing to do, and routers that send nearly all to a few."""
    if not evidence.windows:
        return
    for group in _groups(evidence):
        finding = _by_tokens(evidence, group) if group.is_routed else _by_gradient(evidence, group)
        if finding is not None:
            yield finding


def _groups(evidence: Evidence) -> Iterator[_Group]:
    """Yield experts that are called so, and parts of a list that share out the same tokens.

    The latter where there is a router by name: tasks share out a batch among their heads, too.
    """
    by_name: dict[str, dict[int, list[int]]] = {}
    alike: dict[tuple[object, ...], dict[int, list[int]]] = {}
    kinds, counts = (evidence.layers[column].tolist() for column in ("kind", "parameters"))
    for layer, name in enumerate(evidence.names):
        if not evidence.owners[layer]:
            continue
        if found := _EXPERT.match(name):
            by_name.setdefault(found[1], {}).setdefault(int(found[2]), []).append(layer)
            continue
        for place in _NUMBERED.finditer(name):
            key = name[: place.start()], name[place.end() :], kinds[layer], counts[layer]
            alike.setdefault(key, {}).setdefault(int(place[1]), []).append(layer)
    read = evidence.median("output_elements")
    for name, experts in by_name.items():
        if len(experts) > 1:
            yield _Group(name, experts, _tokens(read, experts))
    known: set[str] = set()
    routed = any(map(_ROUTER.search, evidence.names))
    for (stem, *_), experts in alike.items() if routed else ():
        if len(experts) > 1 and stem not in known and _share_out(evidence, experts):
            known.add(str(stem))
            yield _Group(str(stem), experts, _tokens(read, experts))


def _tokens(read: Floats, experts: dict[int, list[int]]) -> Floats:
    """Return the elements of the first layer of each expert that was read, (windows, experts)."""
    first = [
        next((i for i in layers if not np.isnan(read[:, i]).all()), layers[0])
        for layers in experts.values()
    ]
    return np.nan_to_num(read[:, first])


def _share_out(evidence: Evidence, experts: dict[int, list[int]]) -> bool:
    """Whether layers of one list share out the same tokens anew at each step, as routers do."""
    rows = evidence.rows[:SURE]
    read = np.nan_to_num(evidence.at("output_elements", rows)[:, [i for i, *_ in experts.values()]])
    total = read.sum(axis=1)
    if len(rows) < 2 or total.min() == 0 or np.ptp(total) > FEW * total.max():
        return False
    return bool((np.ptp(read / total[:, None], axis=0) > FEW / len(experts)).any())


def _by_tokens(evidence: Evidence, group: _Group) -> Finding | None:
    shares = group.shares[-2:].max(axis=0)  # of the last two windows: not by chance
    count = len(shares)
    starved = shares < FEW / count
    largest = np.argsort(-group.shares[-1], kind="stable")
    few = int(np.searchsorted(np.cumsum(group.shares[-1][largest]), NEARLY_ALL)) + 1
    held = group.shares[-2:][:, largest[:few]].sum(axis=1).min()
    collapsed = few * CROWD <= max(count, CROWD) and held >= NEARLY_ALL
    if not (starved.any() or collapsed):
        return None
    sure = len(evidence.rows) >= SURE
    many = sure and (collapsed or 2 * starved.sum() >= count)
    numbers = list(group.experts)
    if collapsed:
        some = sorted(numbers[i] for i in largest[:few])
        sentence = (
            f"Expert{'s' * (few > 1)} {_shortly(some)} of '{group.name}'"
            f" {'gets' if few == 1 else 'get'} {held:.0%} of the tokens, the other"
            f" {count - few} hardly any: the router has collapsed."
        )
        named = [layer for i in largest[few:] for layer in group.experts[numbers[i]]]
    else:
        some = [number for number, none in zip(numbers, starved, strict=True) if none]
        sentence = (
            f"{len(some)} of {count} experts of '{group.name}' get next to no tokens, number"
            f" {_shortly(some)}: the router sends nearly nothing to them."
        )
        named = [layer for number in some for layer in group.experts[number]]
    evidences = {
        "largest_token_share": float(group.shares[-1].max()),
        "experts_without_tokens": float(starved.sum()),
        "of": float(count),
    }
    return _finding(evidence, sentence, named, evidences, "output_elements", many=many)


def _by_gradient(evidence: Evidence, group: _Group) -> Finding | None:
    grad = np.nan_to_num(evidence.median("grad_norm"))
    got = np.array(
        [np.sqrt((grad[:, layers] ** 2).sum(axis=1)).max() for layers in group.experts.values()]
    )
    starved = got < STARVED * got.max()
    if not starved.any():
        return None
    numbers = [number for number, none in zip(group.experts, starved, strict=True) if none]
    sentence = (
        f"{len(numbers)} of {len(got)} experts of '{group.name}' get next to no gradient, number"
        f" {_shortly(numbers)}: their weights in the mixture let nothing through."
    )
    named = [layer for number in numbers for layer in group.experts[number]]
    many = len(evidence.rows) >= SURE and len(numbers) * 2 >= len(got)
    evidences = {"experts": float(len(numbers)), "of": float(len(got))}
    return _finding(evidence, sentence, named, evidences, "grad_norm", many=many)


def _finding(
    evidence: Evidence,
    sentence: str,
    layers: list[int],
    numbers: dict[str, float],
    column: str,
    *,
    many: bool,
) -> Finding:
    steps = evidence.whole
    return Finding(
        "experts",
        "warning" if many else "information",
        sentence,
        tuple(evidence.names[i] for i in sorted(layers)),
        steps,
        numbers,
        (
            "add a loss that balances the experts' load, or noise to the router's logits",
            "start the router at zero, so that all experts are asked at first",
        ),
        Place(steps[0], min(layers), column, "backward" if column == "grad_norm" else "forward"),
    )


def _shortly(numbers: list[int]) -> str:
    return f"{', '.join(map(str, numbers[:6]))}{' ...' if len(numbers) > 6 else ''}"
