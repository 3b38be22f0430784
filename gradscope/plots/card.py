"""A run on one picture to be shared, 1200 x 630: verdict, worst layer, profile, cause, remedy."""

from __future__ import annotations

import html
import os
import re
import shutil
import subprocess
import tempfile
import textwrap
from pathlib import Path

import numpy as np

from gradscope.diagnosis.findings import Finding
from gradscope.diagnosis.summary import Summary, summarise
from gradscope.errors import GradscopeError
from gradscope.plots.drawn import arrives, drawn_metric, last_readable_row
from gradscope.plots.lettering import fitting, times
from gradscope.plots.metrics import METRICS
from gradscope.plots.theme import LIGHT, Theme
from gradscope.runs.run import Run

WIDTH, HEIGHT = 1200, 630
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 1140, 256, 456
_TONES = {
    False: {"good": "#0b6b4b", "unsure": "#8a5a00", "bad": "#b3261e"},
    True: {"good": "#5fd3a5", "unsure": "#f0c24b", "bad": "#ff8a80"},
}
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_PATIENCE_SECONDS = 60


def card_svg(run: Run, *, theme: Theme = LIGHT) -> str:
    """Return the card of a run as SVG, which needs no other file.

    Parameters
    ----------
    run : Run
    theme : Theme

    Returns
    -------
    str
        Names of layers and runs are text in it, never markup.
    """
    summary = summarise(run)
    tones = _TONES[theme.dark]
    weights = int((run.layers["parameters"] > 0).sum())
    layers = f"{weights} layer{'s' * (weights != 1)} with weights"
    model = f"{run.meta.get('model', '')} · {layers} · {summary.steps} steps"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}"'
        f' height="{HEIGHT}" font-family="system-ui, Segoe UI, Roboto, DejaVu Sans, sans-serif">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="{theme.surface}"/>',
        f'<rect width="16" height="{HEIGHT}" fill="{tones[summary.tone]}"/>',
        _text(_LEFT, 62, _cut(run.name, 44), 30, theme.text, bold=True),
        _text(_RIGHT, 62, _cut(model, 50), 20, theme.muted, anchor="end"),
        _text(_LEFT, 120, summary.flow.words, 44, tones[summary.flow.tone], True),
    ]
    beside = [part for part in summary.parts if part is not summary.flow]
    x = _LEFT
    for part in beside:
        parts.append(_text(x, 158, part.words, 22, tones[part.tone], bold=True))
        x += 14 * len(part.words) + 30
    beside_it = summary.shortcuts if _grave(summary) else ""  # else they are told below
    sentence = " ".join(filter(None, [summary.diagnosis.summary, beside_it]))
    parts += _wrapped(_LEFT, 190, fitting(sentence, 200)[0], 104, 2, 20, theme.text)
    parts += _profile(run, theme, tones)
    parts += _advice(summary, theme)
    parts.append(_text(_RIGHT, 606, "gradscope", 20, theme.muted, anchor="end", bold=True))
    return "\n".join([*parts, "</svg>\n"])


def card_png(svg: str) -> bytes:
    """Return the picture as PNG, drawn by a browser or by rsvg-convert, whichever is there.

    Raises
    ------
    GradscopeError
        If there is neither, or it fails.
    """
    browser = next(filter(None, map(shutil.which, _BROWSERS)), None)
    converter = shutil.which("rsvg-convert")
    if converter is None and browser is None:
        raise GradscopeError(
            "a PNG needs Chromium, Chrome or rsvg-convert, and there is none; write an SVG"
            " instead: -o card.svg"
        )
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "card.html", Path(folder) / "card.png"
        if converter is not None:
            source = source.with_suffix(".svg")
            source.write_text(svg, encoding="utf-8")
            command = [converter, "-o", str(target), str(source)]
        else:
            page = f'<!doctype html><meta charset="utf-8"><body style="margin: 0">{svg}</body>'
            source.write_text(page, encoding="utf-8")
            command = [
                str(browser),
                "--headless",
                "--disable-gpu",
                "--hide-scrollbars",
                f"--window-size={WIDTH},{HEIGHT}",
                f"--user-data-dir={folder}/profile",
                f"--screenshot={target}",
                *(["--no-sandbox"] if os.name == "posix" and os.geteuid() == 0 else []),
                source.as_uri(),
            ]
        try:
            subprocess.run(command, capture_output=True, timeout=_PATIENCE_SECONDS, check=True)
            return target.read_bytes()
        except (OSError, subprocess.SubprocessError) as error:
            raise GradscopeError(
                f"{command[0]} cannot draw the card: {error}; write an SVG instead: -o card.svg"
            ) from error


def _text(
    x: float, y: float, text: str, size: int, color: str, bold: bool = False, anchor: str = "start"
) -> str:
    weight = ' font-weight="700"' if bold else ""
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{color}" text-anchor="{anchor}"'
        f"{weight}>{html.escape(text)}</text>"
    )


def _wrapped(
    x: float, y: float, text: str, letters: int, lines: int, size: int, color: str
) -> list[str]:
    """Return `text` in at most so many lines, the rest left out."""
    wrapped = textwrap.wrap(text, letters, max_lines=lines, placeholder=" …")
    return [_text(x, y + i * size * 1.35, line, size, color) for i, line in enumerate(wrapped)]


def _cut(text: str, letters: int) -> str:
    return text if len(text) <= letters else f"{text[: letters - 1]}…"


def clauses(text: str, letters: int) -> str:
    """Return as many clauses of `text` as there is room for, or what of the first there is."""
    if len(text) <= letters:
        return text
    parts = [text[: end.start()] for end in re.finditer(r"[:;,] | \(", text[: letters + 2])]
    whole = [part for part in parts if part.count("(") == part.count(")")]
    return whole[-1] if whole else _cut(text, letters)


def _profile(run: Run, theme: Theme, tones: dict[str, str]) -> list[str]:
    """Return how much gradient reaches each layer, input on the left, log scale."""
    data = drawn_metric(run, METRICS["signal_norm"])
    if data.empty:
        return [
            _text(WIDTH / 2, 340, "No step has been recorded.", 22, theme.muted, anchor="middle")
        ]
    row = last_readable_row(data)
    values = data.values(row, row + 1)[0].astype(float)
    fine = np.isfinite(values) & (values > 0)
    decades = np.log10(np.where(fine, values, np.nan))
    low = min(float(np.nanmin(decades, initial=0.0)), -2.0) - 0.3
    high = max(float(np.nanmax(decades, initial=0.0)), 2.0) + 0.3
    x = np.linspace(_LEFT + 6, _RIGHT - 90, len(values)) if len(values) > 1 else np.array([600.0])

    def height(decade: float) -> float:
        return _BOTTOM - (decade - low) / (high - low) * (_BOTTOM - _TOP)

    even = height(0)
    parts = [
        f'<rect x="{_LEFT}" y="{height(2):.1f}" width="{_RIGHT - 80 - _LEFT}"'
        f' height="{height(-2) - height(2):.1f}" fill="{theme.grid}" opacity="0.6"/>',
        f'<path d="M {_LEFT} {even:.1f} H {_RIGHT - 80}" stroke="{theme.muted}"'
        ' stroke-dasharray="3 5"/>',
        _text(_RIGHT - 72, even + 6, "1 ×", 16, theme.muted),
    ]
    points = [
        f"{a:.1f},{height(d):.1f}" for a, d in zip(x, decades, strict=True) if not np.isnan(d)
    ]
    parts.append(
        f'<polyline points="{" ".join(points)}" fill="none" stroke="{theme.lines[0]}"'
        ' stroke-width="4" stroke-linejoin="round"/>'
    )
    for mask, place, color in (
        (values == 0, _BOTTOM, theme.zero),
        (np.isinf(values), _TOP, theme.infinite),
        (np.isnan(values), _TOP, theme.missing),
    ):
        parts += [f'<circle cx="{a:.1f}" cy="{place}" r="5" fill="{color}"/>' for a in x[mask]]
    starved = np.where(np.isnan(values), np.inf, values)
    # where several get equally little, the one that the gradient reaches first
    worst = len(starved) - 1 - int(starved[::-1].argmin())
    if starved[worst] < 0.01:
        y = height(decades[worst]) if fine[worst] else _BOTTOM
        said = times(arrives(data, row) if worst == 0 else float(values[worst]))
        anchor = "start" if x[worst] < 800 else "end"
        shift = 20 if anchor == "start" else -20
        rises = fine[worst] and anchor == "start"  # the line is above its least
        parts += [
            f'<circle cx="{x[worst]:.1f}" cy="{y:.1f}" r="9" fill="none" stroke="{tones["bad"]}"'
            ' stroke-width="4"/>',
            _text(
                x[worst] + shift,
                y + 11 if rises else y - 18,
                f"{_cut(data.names[worst], 30)}: {said}",
                20,
                tones["bad"],
                True,
                anchor,
            ),
        ]
    ends = f"gradient at each layer, input → output, at step {int(data.steps[row]):,}"
    parts.append(_text(_LEFT, _BOTTOM + 26, ends, 16, theme.muted))
    return parts


def _grave(summary: Summary) -> list[Finding]:
    found = summary.diagnosis.findings
    return [each for each in found if each.severity != "information" and each.remedies]


def _advice(summary: Summary, theme: Theme) -> list[str]:
    """Return the gravest finding's remedies, or what the shortcuts do."""
    grave = _grave(summary)
    if not grave:
        return _wrapped(_LEFT, 522, summary.shortcuts, 100, 2, 22, theme.text)
    lines = [
        f"{'Try' if i == 0 else 'or'}: {clauses(text, 92 if i else 80)}"  # the first is bold
        for i, text in enumerate(grave[0].remedies[:2])
    ]
    return [
        _text(_LEFT, 526 + 34 * i, line, 22, theme.text, i == 0) for i, line in enumerate(lines)
    ]
