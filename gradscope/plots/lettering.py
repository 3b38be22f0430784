"""Numbers and names in words that a reader understands and that a browser cannot execute."""

from __future__ import annotations

import html
import math
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradscope.wording import amount
from gradscope.wording import number as number  # as this module offers it, too

TAIL = 17
"""Letters of a name that a tick has room for."""
_RAISED = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def safe(text: str, limit: int = 60) -> str:
    """Return `text` for a figure: its markup inert, its middle left out beyond `limit` characters.

    Plotly reads a small HTML in every text, links included, and layer names come from outside.
    """
    if len(text) > limit:
        half = (limit - 1) // 2
        text = f"{text[:half]}…{text[-half:]}"
    return html.escape(text, quote=True)


def fitting(text: str, room: int) -> tuple[str, str]:
    """Return the first sentences of `text` that take so many letters, one at least, and the rest.

    >>> fitting("Layer 2.fc gets less. It is lost in fc. See there.", 40)
    ('Layer 2.fc gets less. It is lost in fc.', 'See there.')
    """
    ends = [end.start() for end in re.finditer(r"(?<=[^.][.!?]) (?=[A-Z0-9])", text)]
    ends.append(len(text))
    stop = max([end for end in ends if end <= room], default=ends[0])
    return text[:stop], text[stop + 1 :]


def tail(name: str) -> str:
    """Return the end of a name for a figure, which tells more than its beginning.

    It begins with a whole part, where that leaves half of it: `…h.0.attn.c_attn`.
    """
    if len(name) <= TAIL:
        return safe(name)
    end = name[1 - TAIL :]
    whole = end if name[-TAIL] == "." else end.partition(".")[2]
    return safe(f"…{whole if len(whole) > TAIL // 2 else end}")


def times(value: float) -> str:
    """Return a factor in the words of the verdicts: `634 thousand × less`, `3.1 × more`, `NaN`."""
    if not math.isfinite(value) or value == 0:
        return number(value)
    said = raised(amount(1 / value) if value < 1 else amount(value))
    return f"{said} ×" if said == "1.0" else f"{said} × {'less' if value < 1 else 'more'}"


def raised(words: str) -> str:
    """Return `words` with powers of ten as one writes them: `10²¹` for `10^21`."""
    return re.sub(r"10\^(\d+)", lambda power: f"10{power[1].translate(_RAISED)}", words)


def specials(values: NDArray[np.floating[Any]], *, zeros: bool = True) -> str:
    """Return how many of the layers' `values` are no healthy number; empty if none.

    Returns
    -------
    str
        Such as `5 of 50 layers exactly 0, 2 inf, 5 NaN`.
    """
    counts = (
        (int((values == 0).sum()) if zeros else 0, "exactly 0"),
        (int(np.isinf(values).sum()), "inf"),
        (int(np.isnan(values).sum()), "NaN"),
    )
    parts = [f"{count} {said}" for count, said in counts if count]
    if not parts:
        return ""
    first, *rest = parts
    count, _, said = first.partition(" ")
    return ", ".join([f"{count} of {len(values)} layers {said}", *rest])


def spread(heights: NDArray[np.float64], gap: float) -> NDArray[np.float64]:
    """Return `heights` moved apart by the least needed for neighbours to be `gap` apart.

    Parameters
    ----------
    heights : array, shape (n,), pixels
    gap : float, pixels

    Returns
    -------
    array, shape (n,), in the order given
    """
    order = np.argsort(heights, kind="stable")
    # Blocks of (wanted centre, count): those that overlap merge, and share their mean as centre.
    blocks: list[list[float]] = []
    for height in heights[order]:
        blocks.append([float(height), 1])
        while len(blocks) > 1:
            (low, below), (high, above) = blocks[-2:]
            if high - low >= gap * (below + above) / 2:
                break
            blocks[-2:] = [[(low * below + high * above) / (below + above), below + above]]
    moved = [
        centre + gap * (i - (count - 1) / 2) for centre, count in blocks for i in range(int(count))
    ]
    result = np.empty(len(moved))
    result[order] = moved
    return result
