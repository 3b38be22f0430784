"""The columns of a sweep map: their labels, the groups that they form, and frames around some."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradscope.plots import lettering
from gradscope.plots.sweep_order import said
from gradscope.plots.theme import FigureDict, Theme, annotation, axis

LETTER, LINE = 7, 15
"""Pixels that a letter and a line of the labels take."""


def stretches(groups: Sequence[str]) -> list[tuple[int, int]]:
    """Return where each stretch of columns of one group begins and stops."""
    starts = [i for i, group in enumerate(groups) if i == 0 or group != groups[i - 1]]
    return list(zip(starts, [*starts[1:], len(groups)], strict=True))


def label_columns(
    key: str, values: Sequence[Any], groups: Sequence[str], theme: Theme, layout: FigureDict
) -> None:
    """Label the columns by the setting, above and below them, and their groups on top."""
    count = len(values)
    room = 290 if theme.narrow else 1100
    labels = [lettering.safe(said(value), 12) for value in values]
    longest = max(map(len, labels))
    turned = count * (LETTER * longest + 8) > room
    every = -(-count * LINE // room) if turned else 1
    parts = stretches(groups or [""] * count)
    shown = [
        i
        for first, stop in parts
        for i in range(first, stop, every)
        if i == first or stop - i >= every  # room before the next group's first
    ]
    high = LETTER * longest + 6 if turned else LINE + 6
    labelled = {
        "range": [-0.5, count - 0.5],
        "tickvals": shown,
        "ticktext": [labels[i] for i in shown],
        "tickangle": -90 if turned else 0,
        "ticks": "",
        "showgrid": False,
    }
    layout["xaxis"] = axis(theme, "", **labelled, side="top", anchor="y")
    name = lettering.safe(key, 30)
    layout["xaxis2"] = axis(theme, name, **labelled, matches="x", anchor="y3")
    corner = {"y": 1, "yref": "paper", "yanchor": "bottom"}
    left = {"x": 0, "xref": "paper", "xanchor": "right", **corner}
    layout["annotations"].append(
        annotation(
            theme,
            f"<b>{lettering.safe(key, 9)}</b>",
            x=0,
            xref="paper",
            xanchor="right",
            yshift=4,
            xshift=-4,
            **corner,
        )
    )
    layout["margin"] |= {"t": high + (LINE + 14 if len(parts) > 1 else 8), "b": high + 40}
    if len(parts) == 1:
        return
    fits = room / count * min(stop - first for first, stop in parts) / LETTER
    short = max(map(len, groups)) > fits
    if short:  # the names of the other settings once, their values over the columns
        names = ", ".join(part.partition(" = ")[0] for part in groups[0].split(", "))
        names = lettering.safe(names, 9)
        layout["annotations"].append(annotation(theme, f"<b>{names}</b>", yshift=high, **left))
    for first, stop in parts:
        words = groups[first]
        if short:
            words = ", ".join(part.partition(" = ")[2] for part in words.split(", "))
        words = lettering.safe(words, max(int(fits), 3))
        middle = (first + stop - 1) / 2
        layout["annotations"].append(
            annotation(theme, f"<b>{words}</b>", x=middle, yshift=high + 4, **corner)
        )
        if first:
            edge = {"type": "line", "x0": first - 0.5, "x1": first - 0.5, "yref": "paper"}
            line = {"color": theme.text, "width": 1, "dash": "dot"}
            layout["shapes"].append({**edge, "y0": 0, "y1": 1, "line": line})


def outlines(good: Sequence[bool], groups: Sequence[str], theme: Theme) -> list[dict[str, Any]]:
    """Return a frame around each stretch of neighbouring runs that are good, in each group."""
    return [
        {
            "type": "rect",
            "x0": float(first) - 0.5,
            "x1": float(stop) - 0.5,
            "yref": "paper",
            "y0": -0.005,
            "y1": 1.0,
            "line": {"color": theme.labels[2] if len(theme.labels) > 2 else theme.text, "width": 3},
        }
        for begin, end in stretches(groups or [""] * len(good))
        for first, stop in begin
        + np.flatnonzero(np.diff(np.r_[0, np.array(good[begin:end], dtype=int), 0])).reshape(-1, 2)
    ]
