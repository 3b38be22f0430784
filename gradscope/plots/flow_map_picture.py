"""The flow map's picture: paths of varying width, drawn as filled outlines.

The y axis counts pixels. One outline holds all pieces of a colour of a run, so that a figure of
three runs of fifty layers has a dozen traces and not hundreds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gradscope.arithmetic import Array
from gradscope.plots import lettering
from gradscope.plots.theme import FigureDict, Theme, annotation, axis, base_layout, label_margin

FULL = 15.0
"""Width in pixels of a path that carries as much gradient as the last hidden layer's."""
WIDEST = 30.0
HAIRLINE = 1.0
DRAWN_DECADES = 8.0
"""So many decades below the last hidden layer's gradient the path is a hairline."""

DROP = 46.0
"""How far below the shortcut the branch runs, in pixels."""
PLAIN_LANE, SPLIT_LANE = 96.0, 150.0
"""Heights of a lane in pixels: of a run without and with residual blocks."""
WIDE_PAGE, NARROW_PAGE = 1130.0, 210.0
"""Usual widths of the plot in pixels, for the shape of the curves."""


TICKS = 10
"""So many squares are numbered."""


@dataclass(frozen=True)
class Square:
    """What one square stands for: a layer, or `layers` neighbours, on the trunk or on a branch.

    `x` counts from 1 at the input, `layer` is the index in `Run.layers` of the first of them,
    `signal` is over the last hidden layer's.
    """

    x: float
    layer: int
    name: str
    signal: float
    layers: int
    on_branch: bool


@dataclass(frozen=True)
class DrawnBlock:
    """A residual block from `start` (towards the input) to `stop`, in units of x.

    `total`, `shortcut`, `branch` and `other` are norms over the last hidden layer's signal, `share`
    is the shortcut's share of the energy, `ratio` the forward size of branch over shortcut.
    """

    name: str
    form: str
    start: float
    stop: float
    total: float
    shortcut: float
    branch: float
    other: float
    cosine: float
    share: float
    ratio: float


@dataclass(frozen=True)
class Lane:
    """One run at one step; `arrives` is what reaches the input, over the last hidden layer's."""

    place: int
    run: str
    step: int
    squares: list[Square]
    blocks: list[DrawnBlock]
    length: float
    arrives: float


def width(signal: float, scale: float = 1.0) -> float:
    """Return the width in pixels of a path that carries `signal`; 0 for nothing or NaN."""
    if np.isnan(signal) or signal <= 0:
        return 0.0
    if np.isinf(signal):
        return WIDEST * scale
    full = FULL * (1 + np.log10(signal) / DRAWN_DECADES)
    return float(np.clip(full * scale, HAIRLINE, WIDEST * scale))


def split(block: DrawnBlock, scale: float = 1.0) -> tuple[float, float]:
    """Return the widths of a block's branch and of its shortcut.

    Together they are as wide as what arrives at the block, shared out by energy: norms do not add
    up, their squares nearly do. What carries anything is a hairline at least.
    """
    whole = width(block.total, scale) or width(max(block.branch, block.shortcut), scale)
    energies = np.square([block.branch, block.shortcut])
    share = block.share if np.isfinite(block.share) else energies[1] / max(energies.sum(), 1e-300)
    if not np.isfinite(share):
        return width(block.branch, scale), width(block.shortcut, scale)
    parts = ((block.branch, 1 - share), (block.shortcut, share))
    through, around = (max(whole * part, HAIRLINE) if norm > 0 else 0.0 for norm, part in parts)
    return float(through), float(around)


def lanes_figure(lanes: list[Lane], theme: Theme) -> FigureDict:
    """Return the figure of `lanes`, the first on top."""
    heights = [SPLIT_LANE if lane.blocks else PLAIN_LANE for lane in lanes]
    layout = base_layout(theme, int(sum(heights)) + 60)
    layout["margin"] = {
        "l": label_margin(replace(theme, key=()), (lane.run for lane in lanes)),
        "r": 16,
        "t": 12,
        "b": 48,
    }
    if not theme.narrow:
        longest_words = max(len(lettering.times(lane.arrives)) for lane in lanes)
        layout["margin"] |= {"l": max(layout["margin"]["l"], 20 + 8 * longest_words), "r": 110}
    data: list[dict[str, Any]] = []
    longest = max(lane.length for lane in lanes)
    pixels = (NARROW_PAGE if theme.narrow else WIDE_PAGE) / longest
    top = sum(heights)
    for lane, height in zip(lanes, heights, strict=True):
        y = top - (0.36 if lane.blocks else 0.5) * height
        stretch = longest / lane.length
        data += _traces(lane, theme, y, stretch, pixels)
        layout["annotations"] += _labels(lane, theme, y, stretch, longest)
        top -= height
        if top > 1:
            line = {"color": theme.grid, "width": 1}
            layout["shapes"].append(
                {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": top, "y1": top}
                | {"line": line}
            )
    same = len({lane.length for lane in lanes}) == 1
    layout["xaxis"] = axis(
        theme,
        "layer, input → output" if same else "depth, input → output",
        range=[0.2, longest + 0.8],
        **_ticks(lanes[0], theme),
        showgrid=False,
        showticklabels=same and all(s.layers == 1 for lane in lanes for s in lane.squares),
    )
    layout["yaxis"] = {"visible": False, "range": [0, sum(heights)], "fixedrange": True}
    return {"data": data, "layout": layout}


def _ticks(lane: Lane, theme: Theme) -> dict[str, Any]:
    """Return settings of the axis that number some of the squares as verdicts number layers."""
    count = len(lane.squares)
    few = min(count, TICKS // 2 if theme.narrow else TICKS)
    shown = sorted({round(i * (count - 1) / max(few - 1, 1)) for i in range(few)})
    squares = [lane.squares[place] for place in shown]
    return {
        "tickvals": [square.x for square in squares],
        "ticktext": [str(square.layer) for square in squares],
        "tickangle": 0,
    }


def _traces(lane: Lane, theme: Theme, y: float, stretch: float, pixels: float) -> list[Any]:
    """Return the outlines of a run's trunk, shortcuts and branches, and its squares."""
    trunk, shortcut, branch = _Outline(), _Outline(), _Outline()
    # Where blocks lie close, all ways are drawn thinner, so that the branches stay apart.
    closest = min((block.stop - block.start for block in lane.blocks), default=np.inf)
    scale = float(np.clip(0.28 * closest * stretch * pixels / FULL, 0.45, 1.0))
    on_trunk = [square for square in lane.squares if not square.on_branch]
    for block in lane.blocks:
        straight = np.array([block.start, block.stop]) * stretch
        through, around = split(block, scale)
        shortcut.add(straight, np.full(2, y), np.full(2, around), pixels)
        branch.add(*_bow(block, y, stretch), np.full(_POINTS, through), pixels)
    for square in on_trunk:
        # Towards the input the path narrows to what the next layer, or block, gets.
        left, right = square.x - 0.5, square.x + 0.5
        before = next((s.signal for s in on_trunk if s.x == square.x - 1), None)
        after = next((s.signal for s in on_trunk if s.x == square.x + 1), None)
        mine = width(square.signal, scale)
        ends = [
            (mine + width(near, scale)) / 2 if near and mine and width(near, scale) else mine
            for near in (before, after)
        ]
        xs = np.array([left, square.x, right]) * stretch
        trunk.add(xs, np.full(3, y), np.array([ends[0], mine, ends[1]]), pixels)
    name = lettering.safe(lane.run)
    traces = [
        outline.trace(color)
        for outline, color in (
            (branch, theme.branch),
            (shortcut, theme.shortcut),
            (trunk, theme.trunk),
        )
        if outline.xs
    ]
    squares = lane.squares
    broken = [not np.isfinite(s.signal) or s.signal == 0 for s in squares]
    traces.append(
        {
            "type": "scatter",
            "name": name,
            "mode": "markers",
            "x": [s.x * stretch for s in squares],
            "y": [y - DROP if s.on_branch else y for s in squares],
            "marker": {
                "symbol": ["x" if bad else "square" for bad in broken],
                "size": float(np.clip(stretch * pixels * 0.5, 2, 7)),
                "color": [theme.missing if bad else theme.surface for bad in broken],
                "line": {"color": theme.text, "width": 1},
            },
            "customdata": [
                [
                    lettering.safe(s.name),
                    lettering.times(s.signal),
                    f" ({s.layers} layers)" if s.layers > 1 else "",
                    s.name,
                ]
                for s in squares
            ],
            "hovertemplate": "<b>%{customdata[0]}</b>%{customdata[2]}<br>gradient %{customdata[1]}"
            f" of the last hidden layer's<extra>{name}</extra>",
        }
    )
    if lane.blocks:
        traces.append(_block_hover(lane, theme, y, stretch, name))
    return traces


def _block_hover(lane: Lane, theme: Theme, y: float, stretch: float, name: str) -> dict[str, Any]:
    """Return invisible points on the shortcuts that tell about their blocks."""
    rows = (
        ("gradient via the shortcut", "shortcut", lettering.times),
        ("via the branch", "branch", lettering.times),
        ("via neither (a gate)", "other", lettering.times),
        ("angle between them, cosine", "cosine", lettering.number),
        ("shortcut's share of the energy", "share", lettering.number),
        ("forward: branch ÷ shortcut", "ratio", lettering.number),
    )
    texts = []
    for block in lane.blocks:
        lines = [
            f"{label}: {say(getattr(block, field))}"
            for label, field, say in rows
            if field != "other" or block.other > 0
        ]
        texts.append(
            [f"<b>{lettering.safe(block.name)}</b>, {block.form}<br>" + "<br>".join(lines)]
        )
    return {
        "type": "scatter",
        "name": name,
        "mode": "markers",
        "x": [(block.start + block.stop) / 2 * stretch for block in lane.blocks],
        "y": [y] * len(lane.blocks),
        "marker": {"size": 18, "color": theme.shortcut, "opacity": 0},
        "customdata": texts,
        "hovertemplate": f"%{{customdata[0]}}<extra>{name}</extra>",
    }


def _labels(
    lane: Lane, theme: Theme, y: float, stretch: float, longest: float
) -> list[dict[str, Any]]:
    """Return the texts about a run: what arrives, where it enters, the shortcuts' shares."""
    arrives = theme.broken(lettering.times(lane.arrives))
    labels = [
        annotation(
            theme,
            f"<b>{theme.short(lane.run)}</b><br>input gets<br><b>{arrives}</b>",
            x=0,
            xref="paper",
            xanchor="right",
            xshift=-10,
            align="right",
            y=y,
            font={"color": theme.label(lane.place)},
        )
    ]
    if not theme.narrow:
        labels.append(
            annotation(
                theme,
                "◀ gradient<br>enters here",
                x=1,
                xref="paper",
                xanchor="left",
                xshift=6,
                align="left",
                y=y,
            )
        )
    if lane.blocks:
        middle = (lane.blocks[0].start + lane.blocks[-1].stop) / 2 * stretch
        for text, at, color in (
            ("through the shortcuts", y + 33, theme.shortcut),
            ("through the branches", y - DROP - 20, theme.branch_label),
        ):
            labels.append(
                annotation(theme, text, x=middle, y=at, font={"color": color, "size": 12})
            )
        if len(lane.blocks) <= 30 and not theme.narrow:
            labels += [
                annotation(
                    theme,
                    f"{block.share:.0%}",
                    x=(block.start + block.stop) / 2 * stretch,
                    y=y + 17,
                    font={"color": theme.shortcut, "size": 10},
                )
                for block in lane.blocks
                if np.isfinite(block.share)
            ]
    return labels


_POINTS = 24


def _bow(block: DrawnBlock, y: float, stretch: float) -> tuple[Array, Array]:
    """Return the middle line of a branch: down from the trunk, along, and up again."""
    share = np.linspace(0, 1, _POINTS)
    slope = min(0.5 / (block.stop - block.start), 0.33)
    down = np.clip(np.minimum(share, 1 - share) / slope, 0, 1)
    x = block.start + (block.stop - block.start) * share
    return x * stretch, y - DROP * (3 * down**2 - 2 * down**3)


class _Outline:
    """The filled outlines of one colour, gathered piece by piece."""

    def __init__(self) -> None:
        self.xs: list[float | None] = []
        self.ys: list[float | None] = []

    def add(self, x: Array, y: Array, widths: Array, pixels: float) -> None:
        """Add a path along (x, y) of `widths` pixels, where an x unit has `pixels` pixels."""
        if not widths.all():
            return
        along = np.stack([np.gradient(x) * pixels, np.gradient(y)])
        normal = np.stack([-along[1], along[0]]) / np.maximum(np.hypot(*along), 1e-9)
        side_x, side_y = normal * widths / 2
        xs = np.concatenate([x + side_x / pixels, (x - side_x / pixels)[::-1]])
        ys = np.concatenate([y + side_y, (y - side_y)[::-1]])
        self.xs += [*xs.tolist(), xs[0], None]
        self.ys += [*ys.tolist(), ys[0], None]

    def trace(self, color: str) -> dict[str, Any]:
        """Return the outlines as one filled trace."""
        return {
            "type": "scatter",
            "mode": "lines",
            "x": self.xs,
            "y": self.ys,
            "fill": "toself",
            "fillcolor": color,
            "line": {"width": 0, "color": color},
            "hoverinfo": "skip",
        }
