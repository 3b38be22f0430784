"""The card of a run."""

from __future__ import annotations

import os
import struct
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from gradscope.cli import main
from gradscope.errors import GradscopeError
from gradscope.plots.card import card_png, card_svg, clauses
from gradscope.plots.theme import DARK
from gradscope.runs.loading import load
from gradscope.runs.run import Run
from synthetic import write_with

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg: str) -> list[str]:
    return [node.text or "" for node in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_a_card_says_verdict_worst_layer_cause_and_remedy(plain: Run) -> None:
    said = texts(card_svg(plain))
    assert "plain-50" in said
    assert "Gradient flow: vanishing" in said
    assert "blocks.0.fc: 63 billion × less" in said
    assert any(text.startswith("Try: ") for text in said)
    root = ElementTree.fromstring(card_svg(plain, theme=DARK))
    assert (root.get("width"), root.get("height")) == ("1200", "630")


def test_of_zeros_the_one_next_to_the_output_is_named(tmp_path: Path) -> None:
    signal = np.where(np.arange(9) <= 4, 0.0, 1.0)
    said = texts(card_svg(write_with(tmp_path / "run", 9, 30, signal_norm=signal)))
    assert "blocks.2.fc: exactly 0" in said


def test_hostile_names_are_only_text(hostile_run: Path) -> None:
    svg = card_svg(load(hostile_run))
    tags = {node.tag.removeprefix(SVG) for node in ElementTree.fromstring(svg).iter()}
    assert tags <= {"svg", "rect", "path", "polyline", "circle", "text"}
    assert "b> & co" in texts(svg)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_runs_that_went_wrong_have_a_card(tmp_path: Path, value: float) -> None:
    run = write_with(tmp_path / "run", 7, 5, signal_norm=value, grad_norm=value)
    ElementTree.fromstring(card_svg(run))


@pytest.mark.filterwarnings("ignore:.*no step is recorded")
def test_a_run_without_steps_has_a_card(tmp_path: Path) -> None:
    assert "No step has been recorded." in texts(card_svg(write_with(tmp_path / "run", 5, 0)))


def test_a_browser_makes_a_png(chromium: object, plain: Run) -> None:
    png = card_png(card_svg(plain))
    assert png.startswith(b"\x89PNG")
    assert struct.unpack(">II", png[16:24]) == (1200, 630)


def test_without_a_browser_an_svg_is_advised(monkeypatch: pytest.MonkeyPatch, plain: Run) -> None:
    monkeypatch.setenv("PATH", os.path.dirname(sys.executable))
    with pytest.raises(GradscopeError, match=r"-o card\.svg"):
        card_png(card_svg(plain))


def test_the_command_writes_a_card(
    pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "card.svg"
    assert main(["card", str(pair / "plain-50"), "-o", str(target)]) == 0
    assert "Gradient flow: vanishing" in texts(target.read_text())
    assert main(["card", str(pair / "plain-50"), "-o", str(target)]) == 2  # it exists
    assert main(["card", str(pair / "plain-50"), "-o", str(tmp_path / "card.jpg")]) == 2
    assert "a card is a .png or an .svg" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lower the rate: it is 0.3, and 0.1 is usual", "lower the rate: it is 0.3"),
        ("lower the rate", "lower the rate"),
        ("use Xavier's (the gain of, say, tanh)", "use Xavier's"),
        ("start from weights that are smaller", "start from weights that a…"),
    ],
)
def test_a_remedy_that_is_too_long_ends_with_a_clause(text: str, said: str) -> None:
    assert clauses(text, 26) == said
