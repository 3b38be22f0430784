"""What several figures share: panels beside or below each other, and marks for odd readings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from gradscope.arithmetic import Array
from gradscope.plots import lettering
from gradscope.plots.lettering import safe
from gradscope.plots.sampling import Band
from gradscope.plots.theme import FigureDict, Theme, annotation, translucent

Item = TypeVar("Item")

MOST_BESIDE = 4
MOST_PANELS = 12


@dataclass(frozen=True)
class PanelAxes:
    """The two axes of a panel, one of several in a figure.

    Parameters
    ----------
    number : int
        Which panel it is, from 0 at the left or at the top.
    across, down : list of two floats
        Share of the figure's width and of its height that it takes, from left or bottom.
    leftmost, lowest : bool
        Whether no other panel lies to the left of it, or below it.
    """

    number: int
    across: list[float]
    down: list[float]
    leftmost: bool
    lowest: bool

    @property
    def x(self) -> str:
        """Plotly's name of the x axis, where something refers to it."""
        return f"x{self._suffix}"

    @property
    def y(self) -> str:
        """Plotly's name of the y axis, where something refers to it."""
        return f"y{self._suffix}"

    @property
    def of_trace(self) -> dict[str, str]:
        """The entries of a trace that is drawn in this panel."""
        return {"xaxis": self.x, "yaxis": self.y}

    def add_to(self, layout: FigureDict, x: dict[str, Any], y: dict[str, Any]) -> None:
        """Put the axes `x` and `y`, which do not yet tell where they are, into a layout."""
        layout[f"xaxis{self._suffix}"] = {**x, "domain": self.across, "anchor": self.y}
        layout[f"yaxis{self._suffix}"] = {**y, "domain": self.down, "anchor": self.x}

    def title(self, theme: Theme, text: str, **settings: Any) -> dict[str, Any]:
        """Return `text` above the middle of the panel; `settings` are plotly's and win."""
        middle = {"x": sum(self.across) / 2, "y": self.down[1], "xref": "paper", "yref": "paper"}
        return annotation(theme, text, **{**middle, "yanchor": "bottom", **settings})

    def run_title(
        self,
        theme: Theme,
        run: str,
        place: int,
        rest: str = "",
        *,
        limit: int = 40,
        **settings: Any,
    ) -> dict[str, Any]:
        """Return the name of the `place`-th given run, in its colour, and `rest` as a title."""
        font = {"color": theme.label(place), "size": 13}
        return self.title(theme, f"<b>{safe(run, limit)}</b>{rest}", font=font, **settings)

    def mark_nan(
        self,
        curves: Sequence[tuple[int, NDArray[Any], Array, tuple[int, int] | None]],
        theme: Theme,
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Return shades where all `curves` are NaN for good, else crosses where some of them end.

        Parameters
        ----------
        curves : sequence of (place of the run, steps, values, steps from which to which it is NaN)
        theme : Theme

        Returns
        -------
        list of shapes, list of traces
        """
        gaps = [gap for *_, gap in curves if gap]
        if len(gaps) == len(curves):
            return [self.shade(gap, theme) for gap in gaps[:1]], []
        marks = []
        for place, steps, values, gap in curves:
            known = np.flatnonzero(np.isfinite(values))
            if gap and len(known):
                last = int(known[-1])
                marks.append(
                    {
                        "type": "scatter",
                        "mode": "markers",
                        "x": [int(steps[last])],
                        "y": [float(values[last])],
                        "cliponaxis": False,
                        "marker": {"symbol": "x", "size": 9, "color": theme.line(place)["color"]},
                        "hovertemplate": f"NaN from step {gap[0]:,} on<extra></extra>",
                        **self.of_trace,
                    }
                )
        return [], marks

    def shade(self, gap: tuple[int, int], theme: Theme) -> dict[str, Any]:
        """Return a shade behind the panel's curves over the steps of `gap`, which are NaN."""
        return {
            "type": "rect",
            "xref": self.x,
            "yref": f"{self.y} domain",
            "x0": gap[0],
            "x1": gap[1],
            "y0": 0,
            "y1": 1,
            "fillcolor": translucent(theme.missing, 0.4),
            "line": {"width": 0},
            "layer": "below",
        }

    @property
    def _suffix(self) -> str:
        return str(self.number + 1) if self.number else ""


def in_panels(
    items: Sequence[Item], theme: Theme, *, beside: float, below: float
) -> Iterator[tuple[PanelAxes, Item]]:
    """Yield the axes of a panel for each of `items`, and the item.

    The panels lie side by side, in rows of `MOST_BESIDE`, or below each other on a narrow page,
    such as a phone's.

    Parameters
    ----------
    items : sequence
    theme : Theme
    beside, below : float
        Share of the figure between two panels that lie so.
    """
    columns = 1 if theme.narrow else min(len(items), MOST_BESIDE)
    rows = rows_of(len(items), theme)
    if rows > 1:
        below = min(below, 0.3 / rows) if theme.narrow else 0.26 / rows
    wide = (1 - beside * (columns - 1)) / columns
    high = (1 - below * (rows - 1)) / rows
    for number, item in enumerate(items):
        row, column = divmod(number, columns)
        left, top = column * (wide + beside), 1 - row * (high + below)
        across, down = [left, min(left + wide, 1.0)], [max(top - high, 0.0), top]
        lowest = number + columns >= len(items)
        yield PanelAxes(number, across, down, column == 0, lowest), item


def rows_of(count: int, theme: Theme) -> int:
    """Return in how many rows so many panels lie."""
    return count if theme.narrow else -(-count // MOST_BESIDE)


def title_limit(count: int) -> int:
    """Return the letters that a title has room for where so many panels lie side by side."""
    return 40 if count < MOST_BESIDE else 24


def shown_panels(items: list[Item]) -> tuple[list[Item], str]:
    """Return the first of `items`, as many as a figure has panels for, and what that leaves out."""
    if len(items) <= MOST_PANELS:
        return items, ""
    return items[:MOST_PANELS], f" The first {MOST_PANELS} of {len(items)} runs are drawn."


def drawable(values: Array, *, log: bool = True) -> list[float | None]:
    """Return `values` with a gap for each that an axis cannot show."""
    good = np.isfinite(values) & ((values > 0) | (not log))
    return [float(value) if fine else None for value, fine in zip(values, good, strict=True)]


def told(values: Array) -> list[str]:
    """Return what the pointer is told of `values`, to three digits."""
    return [lettering.number(float(value), 3) for value in values]


def banded(
    line: dict[str, Any], band: Band | None, color: str, *, filled: bool = True
) -> list[dict[str, Any]]:
    """Return a curve's trace as it is, or of a long curve its median in a band of its extremes."""
    if band is None:
        return [line]
    known = ~np.isnan(band.middle)
    steps = band.steps[known]
    traces: list[dict[str, Any]] = []
    if filled and known.any():
        traces.append(
            {
                **{key: line[key] for key in ("name", "xaxis", "yaxis") if key in line},
                "type": "scatter",
                "mode": "lines",
                "x": np.concatenate([steps, steps[::-1]]).tolist(),
                "y": np.concatenate([band.high[known], band.low[known][::-1]]).tolist(),
                "fill": "toself",
                "fillcolor": translucent(color, 0.25),
                "line": {"width": 0},
                "hoverinfo": "skip",
            }
        )
    custom = line.get("customdata")
    medians = {"x": band.steps.tolist(), "y": drawable(band.middle)}
    if "text" in line:
        medians["text"] = told(band.middle)
    if custom is not None and len(custom) != len(band.steps):
        medians["customdata"] = [custom[0]] * len(band.steps)
    return [*traces, {**line, **medians}]


_ODD = (
    ("○ NaN", np.isnan, True),
    ("▲ inf", np.isinf, True),
    ("× exactly 0", lambda values: values == 0, False),
)
"""The marks that `odd_marks` draws, what they stand for, and whether they lie at the top."""


def odd_words(lines: Sequence[Array], *, log: bool = True, at_top: bool | None = None) -> str:
    """Return which marks `odd_marks` draws for `lines`, and for how many; empty if none.

    Parameters
    ----------
    lines : sequence of array
    log : bool
        Zeros are marked.
    at_top : bool, optional
        Only the marks at the top, or only those at the bottom.
    """
    found = []
    for said, is_so, top in _ODD:
        count = sum(bool(is_so(line).any()) for line in lines)
        if count and (log or top) and at_top in (None, top):
            found.append(said if len(lines) == 1 else f"{said} in {count} of {len(lines)} runs")
    return ", ".join(found)


def odd_key(
    lines: Sequence[Array], ends: tuple[float, float], theme: Theme, *, log: bool = True
) -> list[dict[str, Any]]:
    """Return what the marks of many `lines` at both `ends` of an axis are, which have no words."""
    found = []
    for height, at_top in zip(ends, (False, True), strict=True):
        if words := odd_words(lines, log=log, at_top=at_top):
            at = {"x": 0, "xref": "paper", "xanchor": "left", "xshift": 4}
            y = float(np.log10(height)) if log else height
            way = {"yanchor": "top", "yshift": -6} if at_top else {"yanchor": "bottom", "yshift": 6}
            found.append(annotation(theme, words, y=y, font={"size": 12}, **at, **way))
    return found


def odd_cells(values: Array, theme: Theme) -> list[tuple[NDArray[np.bool_], str, str]]:
    """Return which cells no scale holds, their colours, and what they are."""
    return [
        (values == 0, theme.zero, "exactly 0"),
        (np.isposinf(values), theme.infinite, "inf"),
        (np.isnan(values), theme.missing, "NaN"),
    ]


def odd_marks(
    x: NDArray[Any],
    values: Array,
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
            side = "left" if 2 * x[hit[-1]] >= x[0] + x[-1] else "right"  # within the axes
            traces.append(
                {
                    "type": "scatter",
                    "mode": "markers" if theme.many else "markers+text",
                    "cliponaxis": False,
                    "text": [*[""] * (len(hit) - 1), said],
                    "textposition": f"{'top' if height == floor else 'bottom'} {side}",
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
