"""How the figures look: colours, line styles, and the layout that all of them share.

The runs' colours are Okabe and Ito's (Color Universal Design, 2008), which stay apart for
colour-blind readers; every run has a line style of its own besides, and a label beside its line.
Text in a run's colour is darkened (or lightened) until it reads at 4.5 : 1 on its background.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from gradscope.plots.lettering import safe
from gradscope.wording import setting

FigureDict = dict[str, Any]

DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
FEW_STEPS = 6
NORMAL_DECADES = 2.0
"""Gradients of up to so many decades more or less than the last hidden layer's are normal."""
PALE = 0.07
"""Share of the diverging scale, from its middle, whose colours they take."""
KEYS = 10
"""Entries of the key to colours."""
KEY_ROOM, NARROW_KEY_ROOM = 100, 22
"""Pixels for it beside a figure, and on top of one on a narrow page."""


@dataclass(frozen=True)
class Theme:
    """The colours of a page, and what the figures must know about it.

    Parameters
    ----------
    dark : bool
    text, muted, grid, surface, band : str
        Colours of text, secondary text, grid lines, the page, and the shaded normal range.
    missing, zero, infinite : str
        Colours of NaN, of exactly 0 and of inf: none that the scales contain.
    trunk, shortcut, branch, branch_label : str
        Colours of the flow map's paths, and of text about a branch.
    lines, labels : tuple of str
        One colour a run, for its line and for text beside it.
    diverging : tuple of (position, colour)
        Scale of the heatmap from vanishing (0) over even (0.5) to exploding (1).
    sequence : tuple of str
        Colours from the input to the output.
    slots : tuple of int
        Place of each drawn run among all runs; it keeps its colour when others are hidden.
    key : tuple of (words, colour)
        What the lines' colours mean where runs are too many for a label each; else empty.
    key_title : str
        Of which setting of the runs.
    narrow : bool
        The page is a phone's: panels go below each other instead of side by side.
    """

    dark: bool
    text: str
    muted: str
    grid: str
    surface: str
    band: str
    missing: str
    zero: str
    infinite: str
    trunk: str
    shortcut: str
    branch: str
    branch_label: str
    lines: tuple[str, ...]
    labels: tuple[str, ...]
    diverging: tuple[tuple[float, str], ...]
    sequence: tuple[str, ...]
    slots: tuple[int, ...] = ()
    narrow: bool = False
    key: tuple[tuple[str, str], ...] = ()
    key_title: str = ""

    def slot(self, run: int) -> int:
        """Return the place among all runs of the `run`-th drawn one."""
        return self.slots[run] if run < len(self.slots) else run

    def color(self, slot: int) -> str:
        """Return the colour of the line of the run at the place `slot` among all."""
        return self.lines[slot % len(self.lines)]

    def dash(self, slot: int) -> str:
        """Return the style of the line of the run at the place `slot` among all."""
        return "solid" if self.key else DASHES[slot % len(DASHES)]

    def line(self, run: int, width: float = 2.5) -> dict[str, Any]:
        """Return plotly's line style of the `run`-th drawn run."""
        slot = self.slot(run)
        width = min(width, 1.5) if self.key else width
        return {"color": self.color(slot), "dash": self.dash(slot), "width": width}

    def label(self, run: int) -> str:
        """Return the colour of text about the `run`-th drawn run."""
        return self.labels[self.slot(run) % len(self.labels)]

    def short(self, name: str) -> str:
        """Return a run's name for the margin of a figure, its markup inert."""
        return safe(name, 11 if self.narrow else 24)

    def broken(self, words: str) -> str:
        """Return words for the margin of a figure, on two lines where it is narrow."""
        return words.replace(" × ", "<br>× ") if self.narrow else words

    @property
    def many(self) -> bool:
        """Whether the runs are too many for a line style, a band and a label each."""
        return bool(self.key)

    def over_decades(self, limit: float) -> list[list[Any]]:
        """Return the scale of the heatmap over +-`limit` decades: what is normal stays pale."""
        colors = [color for _, color in self.diverging]
        places = [place for place, _ in self.diverging]
        normal = min(NORMAL_DECADES / limit, 0.9)
        marks = sorted({0.0, PALE, *(abs(place - 0.5) for place in places)})
        stops: dict[float, str] = {}
        for mark in marks:  # how far from the middle a colour lies, and is put
            put = (
                mark / PALE * normal
                if mark < PALE
                else (normal + (mark - PALE) / (0.5 - PALE) * (1 - normal))
            )
            for sign in (-1, 1):
                stops[0.5 + sign * put / 2] = between(places, colors, 0.5 + sign * mark)
        return [list(stop) for stop in sorted(stops.items())]

    def for_page(self, slots: tuple[int, ...], narrow: bool) -> Theme:
        """Return this theme for the runs at `slots` on a wide or narrow page."""
        return replace(self, slots=slots, narrow=narrow)

    def for_many(self, values: Sequence[Any], title: str) -> Theme:
        """Return this theme for more runs than there are line styles, coloured by `values`.

        Parameters
        ----------
        values : sequence
            One a run: what they are ordered by, numbers or words.
        title : str
            What that is.
        """
        ranks = {value: rank for rank, value in enumerate(sorted(set(values), key=_ordered))}
        last = max(len(ranks) - 1, 1)
        colors = {value: blend(self.sequence, rank / last) for value, rank in ranks.items()}
        shown = list(ranks)
        if len(shown) > KEYS:
            shown = [shown[round(i * last / (KEYS - 1))] for i in range(KEYS)]
        return replace(
            self,
            lines=tuple(colors[value] for value in values),
            labels=(self.text,) * len(values),
            slots=tuple(range(len(values))),
            key=tuple((_said(value), colors[value]) for value in shown),
            key_title=title,
        )


LIGHT = Theme(
    dark=False,
    text="#1f2933",
    muted="#52606d",
    grid="#e4e7eb",
    surface="#ffffff",
    band="rgba(82, 96, 109, 0.08)",
    missing="#adb5bd",
    zero="#e3b505",
    infinite="#c2188b",
    trunk="#7b8794",
    shortcut="#0072B2",
    branch="#E69F00",
    branch_label="#8A5A00",
    lines=("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#B8860B"),
    labels=("#B34E00", "#0072B2", "#00724F", "#A33C78", "#1B6F9E", "#8A6400"),
    diverging=(
        (0.0, "#053061"),
        (0.2, "#2166ac"),
        (0.35, "#67a9cf"),
        (0.5, "#f7f7f7"),
        (0.65, "#f4a582"),
        (0.8, "#b2182b"),
        (1.0, "#67001f"),
    ),
    sequence=("#440154", "#3b528b", "#21918c", "#35a853", "#b5a300"),
)

DARK = Theme(
    dark=True,
    text="#e6edf3",
    muted="#9aa7b4",
    grid="#27313c",
    surface="#11181f",
    band="rgba(154, 167, 180, 0.10)",
    missing="#6b7580",
    zero="#b59a00",
    infinite="#ff5cc0",
    trunk="#8b98a5",
    shortcut="#56B4E9",
    branch="#F0A93B",
    branch_label="#F0A93B",
    lines=("#F28E52", "#56B4E9", "#3FC79A", "#E79AC4", "#A5D8F3", "#E3C567"),
    labels=("#F28E52", "#56B4E9", "#3FC79A", "#E79AC4", "#A5D8F3", "#E3C567"),
    diverging=(
        (0.0, "#9ccbff"),
        (0.2, "#4a90d9"),
        (0.35, "#1f4e80"),
        (0.5, "#28323c"),
        (0.65, "#7a3010"),
        (0.8, "#e06a2b"),
        (1.0, "#ffd0a8"),
    ),
    sequence=("#b58cff", "#7aa2ff", "#45c4c0", "#74d66b", "#fde725"),
)


def _ordered(value: Any) -> tuple[bool, Any]:
    return isinstance(value, str), value


def _said(value: Any) -> str:
    return setting(value) if isinstance(value, float) else safe(str(value), 14)


def between(places: Sequence[float], colors: Sequence[str], at: float) -> str:
    """Return the colour at `at` of the scale that has `colors` at `places`, which rise."""
    upper = next((i for i, place in enumerate(places) if place >= at and i), len(places) - 1)
    low, high = places[upper - 1], places[upper]
    return blend(colors[upper - 1 : upper + 1], min(max((at - low) / (high - low), 0.0), 1.0))


def blend(colors: Sequence[str], place: float) -> str:
    """Return the colour at `place`, 0 to 1, of the scale through `colors`, each `#rrggbb`."""
    at = place * (len(colors) - 1)
    low = min(int(at), len(colors) - 2)
    parts = [[int(color[i : i + 2], 16) for i in (1, 3, 5)] for color in colors[low : low + 2]]
    mixed = [round(a + (b - a) * (at - low)) for a, b in zip(*parts, strict=True)]
    return "#" + "".join(f"{part:02x}" for part in mixed)


def add_key(layout: dict[str, Any], theme: Theme) -> None:
    """Put the key to the runs' colours beside the figure, where they are too many for labels."""
    if not theme.key:
        return
    lines = [f'<span style="color: {color}">━━</span> {words}' for words, color in theme.key]
    if theme.narrow:  # a row on top
        few = (
            [lines[round(i * (len(lines) - 1) / 3)] for i in range(4)] if len(lines) > 4 else lines
        )
        text = "  ".join([f"<b>{safe(theme.key_title, 9)}</b>", *few])
        top = layout["margin"].get("t", 16)
        layout["margin"]["t"] = top + NARROW_KEY_ROOM
        corner = {"x": 0, "xref": "paper", "xanchor": "left", "y": 1, "yref": "paper"}
        layout["annotations"].append(
            annotation(theme, text, **corner, yanchor="bottom", yshift=top - 4)
        )
        return
    text = "<br>".join([f"<b>{safe(theme.key_title, 14)}</b>", *lines])
    place = {"x": 1, "xref": "paper", "xanchor": "left", "y": 1, "yref": "paper", "yanchor": "top"}
    axes = [layout[name] for name in layout if name.startswith("yaxis")]
    shift = 76 if any(one.get("side") == "right" for one in axes) else 8
    layout["margin"]["r"] = shift + KEY_ROOM
    layout["annotations"].append(annotation(theme, text, **place, align="left", xshift=shift))


AXIS_ROOM = 66
"""Pixels beside an axis for its labels and title: where they ask for more, plotly draws twice."""


def base_layout(theme: Theme, height: int) -> dict[str, Any]:
    """Return the layout that every figure starts from, for a figure of `height` pixels."""
    return {
        "height": height,
        "margin": {"l": 16 if theme.narrow else AXIS_ROOM, "r": 16, "t": 16, "b": 48},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": theme.text, "size": 13, "family": "system-ui, sans-serif"},
        "showlegend": False,
        # a swipe scrolls the page
        "dragmode": False if theme.narrow else "zoom",
        # Over a transparent page plotly would draw its buttons on a grey slab.
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": theme.muted, "activecolor": theme.text},
        "hoverlabel": {"bgcolor": theme.surface, "font": {"color": theme.text}, "align": "left"},
        "annotations": [],
        "shapes": [],
    }


def label_margin(theme: Theme, names: Iterable[str]) -> int:
    """Return the pixels to leave on the left for labels with the runs' names."""
    if theme.many:
        return 16
    longest = max((min(len(name), 24) for name in names), default=0)
    return 96 if theme.narrow else max(130, 36 + 8 * longest)


def axis(theme: Theme, title: str = "", **settings: Any) -> dict[str, Any]:
    """Return an axis in the theme's colours; `settings` are plotly's and win."""
    return {
        "title": {"text": title, "font": {"size": 13}, "standoff": 8},
        "gridcolor": theme.grid,
        "linecolor": theme.grid,
        "zeroline": False,
        "tickfont": {"size": 12},
        "automargin": True,
        "exponentformat": "e",  # as wording.number
        **settings,
    }


def step_axis(
    theme: Theme, steps: Sequence[NDArray[np.int64]], title: str = "step", **settings: Any
) -> dict[str, Any]:
    """Return the axis of the `steps` of some curves: of few steps, only whole ones are labelled."""
    ends = [int(end) for some in steps for end in some[[0, -1]]]
    if ends and max(ends) - min(ends) <= FEW_STEPS:  # there is no step 1.5
        settings["tickvals"] = list(range(min(ends), max(ends) + 1))
    # of numbers plotly would try whether they are dates
    whole = {"type": "linear", "exponentformat": "none", "separatethousands": True}
    return axis(theme, title, **{**whole, **settings})


def log_axis(theme: Theme, title: str, decades: float, **settings: Any) -> dict[str, Any]:
    """Return a logarithmic axis that labels whole powers of ten over `decades` decades."""
    # Plotly draws the 10 of a power larger than the other labels.
    settings.setdefault("tickfont", {"size": 10})
    if decades > 1.5:
        settings.setdefault("dtick", max(1, round(decades / 9)))
    return axis(theme, title, **{"type": "log", "exponentformat": "power", **settings})


def annotation(theme: Theme, text: str, **settings: Any) -> dict[str, Any]:
    """Return a text without an arrow; `settings` are plotly's and win."""
    font = {"color": theme.muted, "size": 12, **settings.pop("font", {})}
    return {"text": text, "showarrow": False, "font": font, **settings}


def translucent(color: str, alpha: float) -> str:
    """Return the colour `#rrggbb` at opacity `alpha`."""
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, {alpha})"


def nothing_to_show(theme: Theme, reason: str) -> FigureDict:
    """Return a figure that says in words why there is nothing to draw."""
    layout = base_layout(theme, 140)
    layout["xaxis"] = layout["yaxis"] = {"visible": False}
    layout["annotations"] = [
        annotation(
            theme,
            "<br>".join(textwrap.wrap(reason, 36 if theme.narrow else 110)),
            x=0.5,
            y=0.5,
            xref="paper",
            yref="paper",
            font={"size": 15},
        )
    ]
    return {"data": [], "layout": layout}


def titled(figure: FigureDict, title: str, caption: str, theme: Theme) -> go.Figure:
    """Return `figure` as a plotly Figure under its title and caption, for use outside a page."""
    lines = textwrap.wrap(caption, 130)
    figure["layout"]["title"] = {
        "text": f"<b>{title}</b>",
        "subtitle": {"text": "<br>".join(lines), "font": {"color": theme.muted, "size": 12}},
        "x": 0.02,
        "yref": "container",
        "y": 0.98,
        "yanchor": "top",
    }
    top = 56 + 16 * len(lines)
    figure["layout"]["margin"]["t"] += top
    figure["layout"]["height"] += top
    figure["layout"]["paper_bgcolor"] = theme.surface
    return go.Figure(figure)
