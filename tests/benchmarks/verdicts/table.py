"""The table of trainings and the rates, as text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from .judging import Look
from .trainings import LOOKS

HALVES = {
    "A": "half A, on which rules were chosen",
    "B": "half B, on which they were mended later",
    "C": "set C, written when the rules stood",
    "D": "set D, written when they were mended on C, too",
    "E": "set E, written when they were mended on D, too",
    "ABCDE": "all",
}


def table(looks: Sequence[Look]) -> Iterator[str]:
    """Yield a line a training: its name, and of each look verdict, D and whether that is right."""
    width = max((len(look.name) for look in looks), default=3)
    heads = "".join(f"{f'after {steps}':<22}" for steps in LOOKS)
    yield f"{'':{width}}  half  {heads}right?"
    for name, some in groupby(looks, lambda look: look.name):
        own = list(some)
        cells = "".join(f"{_cell(look):<22}" for look in own)
        yield f"{name:{width}}  {own[0].half:>4}  {cells}{opinion(own[-1])}".rstrip()


def _cell(look: Look) -> str:
    mark = " " if look.right or not look.visible else "!"
    return f"{mark}{look.verdict[:14]} {look.decades:.1f}"


def opinion(look: Look) -> str:
    """Return in a few words whether a look is right."""
    told = ", ".join(dict.fromkeys(finding["verdict"] for finding in look.findings))
    if look.error:
        return look.error
    if not look.kind:
        return "yes" if look.right else f"FALSE ALARM: {told}"
    if look.cause:
        return "yes" if look.remedy else f"cause, no remedy: {told}"
    return f"ill, not why: {told}" if look.ill else f"missed: {told}"


def rates(looks: Sequence[Look]) -> Iterator[str]:
    """Yield the rates of each half and of both, a line a look.

    Of broken trainings those count whose fault can be seen by then.
    """
    yield f"{'':10}{'healthy':28}broken"
    yield f"{'':10}{'ill':14}{'cannot tell':14}{'ill':14}{'cause right':14}remedy right"
    for half, title in HALVES.items():
        if not any(look.half in half for look in looks):
            continue
        yield title
        for steps in LOOKS:
            some = [look for look in looks if look.half in half and look.steps == steps]
            well = [look for look in some if not look.kind]
            sick = [look for look in some if look.kind and look.visible]
            cells = [
                share(look.ill for look in well),
                share(look.unknown for look in well),
                share(look.ill for look in sick),
                share(look.cause for look in sick),
                share(look.remedy for look in sick),
            ]
            yield f"{steps:6}    " + "".join(f"{cell:14}" for cell in cells).rstrip()
    well = [look for look in looks if not look.kind]
    yield f"false alarms: {share(look.ill for look in well)} looks"


def share(right: Iterable[bool]) -> str:
    """Return how many are true, of how many."""
    values = list(right)
    return f"{sum(values)} of {len(values)}"
