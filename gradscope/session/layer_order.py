"""The order of the layers of a model of which each process holds a part."""

from __future__ import annotations

import re
from collections.abc import Sequence

_NUMBERED = re.compile(r"(.*?)(\d+)")


def merged_order(sequences: Sequence[Sequence[int]], names: Sequence[str]) -> list[int]:
    """Return what is in `sequences`, each in order, as one.

    Of those that no sequence puts in order, one goes first whose name has the smaller number, as
    `layers.3.norm` before `layers.10.norm`; else what the earlier sequence has.

    Parameters
    ----------
    sequences : numbers of layers
        In the order of first execution, those of process 0 first.
    names : of layers, by number
    """
    left = [list(reversed(sequence)) for sequence in sequences]
    before: dict[int, int] = {}  # in how many sequences it is still to come
    for sequence in left:
        for number in sequence:
            before[number] = before.get(number, 0) + 1
    order: list[int] = []
    while heads := list(dict.fromkeys(sequence[-1] for sequence in left if sequence)):
        shown = [sum(s[-1] == head for s in left if s) for head in heads]
        free = [head for head, n in zip(heads, shown, strict=True) if n == before[head]] or heads
        chosen = free[0]
        for other in free[1:]:
            if _is_before(names[other], names[chosen]):
                chosen = other
        order.append(chosen)
        for sequence in left:
            if sequence and sequence[-1] == chosen:
                sequence.pop()
                before[chosen] -= 1
            elif before[chosen] and chosen in sequence:  # sequences go against each other
                sequence.remove(chosen)
                before[chosen] -= 1
    return order


def _is_before(one: str, other: str) -> bool:
    """Whether the first parts in which two names differ end in numbers, in this order."""
    for mine, theirs in zip(one.split("."), other.split("."), strict=False):
        if mine != theirs:
            a, b = _NUMBERED.fullmatch(mine), _NUMBERED.fullmatch(theirs)
            return bool(a and b and a[1] == b[1] and int(a[2]) < int(b[2]))
    return False
