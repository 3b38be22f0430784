"""What several figures share: panels beside or below each other, and marks for odd readings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradscope.plots.drawn import Floats
from gradscope.plots.theme import Theme


def panel_domain(
    number: int, count: int, *, below: bool, gap: float
) -> tuple[list[float], list[float]]:
    """Return the share of a figure's width and of its height that a panel takes.

    Parameters
    ----------
    number, count : int
        Which panel of how many, from the left or from the top.
    below : bool
        Panels lie below each other, as on a phone, instead of side by side.
    gap : float
        Share of the figure between two panels.
    """
    size = (1 - gap * (count - 1)) / count
    start = number * (size + gap)
    if below:
        return [0.0, 1.0], [max(1 - start - size, 0.0), 1 - start]
    return [start, min(start + size, 1.0)], [0.0, 1.0]


def drawable(values: Floats, *, log: bool = True) -> list[float | None]:
    """Return `values` with a gap for each that an axis cannot show."""
    good = np.isfinite(values) & ((values > 0) | (not log))
    return [float(value) if fine else None for value, fine in zip(values, good, strict=True)]


def odd_marks(
    x: NDArray[Any],
    values: Floats,
    *,
    ends: tuple[float, float],
    color: str,
    theme: Theme,
    hover: str,
    customdata: Sequence[Any] = (),
    log: bool = True,
    **where: Any,
) -> list[dict[str, Any]]:
    """Return marks where a value is zero (on a log axis), infinite or NaN.

    Parameters
    ----------
    x, values : array, shape (n,)
    ends : (float, float)
        Heights of the marks: zeros at the first, infinities and NaN at the second.
    color : str
    theme : Theme
    hover : str
        What a mark tells, plotly's template; `{said}` becomes the word for it.
    customdata : sequence of n items, optional
    log : bool
    **where
        Further entries of the traces: axes, name.
    """
    floor, ceiling = ends
    traces = []
    for mask, symbol, height, said in (
        ((values == 0) & log, "x", floor, "exactly 0"),
        (np.isinf(values), "triangle-up", ceiling, "inf"),
        (np.isnan(values), "circle-open", ceiling, "NaN"),
    ):
        if mask.any():
            hit = np.flatnonzero(mask).tolist()
            traces.append(
                {
                    "type": "scatter",
                    "mode": "markers+text",
                    "text": [*[""] * (len(hit) - 1), said],
                    "textposition": "top left",
                    "textfont": {"color": theme.text, "size": 11},
                    "x": x[hit].tolist(),
                    "y": [height] * len(hit),
                    "marker": {
                        "symbol": symbol,
                        "size": 9 if len(hit) <= 60 else 5,
                        "color": theme.missing if said == "NaN" else color,
                    },
                    "hovertemplate": hover.replace("{said}", said),
                    **({"customdata": [customdata[i] for i in hit]} if len(customdata) else {}),
                    **where,
                }
            )
    return traces
