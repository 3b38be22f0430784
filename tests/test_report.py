"""The report: one file that opens offline, bounded in size, in which names are only text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import synthetic

pytest.importorskip("plotly", reason="plotly is not installed")

from gradscope import report
from gradscope.errors import GradscopeError
from gradscope.plots.report import FIGURES, report_html
from gradscope.runs.loading import load


def test_the_report_opens_offline_and_draws_every_figure(
    browse: Callable[..., Any], pair: Path, tmp_path: Path
) -> None:
    report([load(pair / "plain-50"), load(pair / "residual-50")], tmp_path / "report.html")
    page = browse((tmp_path / "report.html").as_uri(), offline=True)
    for draw in FIGURES:
        page.locator(f"#{draw.__name__} .main-svg").first.wait_for()
    assert page.locator("article").count() == 2
    page.get_by_text("Gradient flow: vanishing").wait_for()
    page.get_by_text("try: add a shortcut").first.wait_for()


def test_figures_keep_their_width_on_a_phone(
    browse: Callable[..., Any], pair: Path, tmp_path: Path
) -> None:
    report(load(pair / "plain-50"), tmp_path / "report.html")
    phone = {"width": 390, "height": 844}
    page = browse((tmp_path / "report.html").as_uri(), viewport=phone)
    page.locator("#training .main-svg").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator("#depth_profile .main-svg").first.bounding_box()["width"] >= 800


def test_names_cannot_execute_or_become_markup(
    browse: Callable[..., Any], hostile_run: Path, tmp_path: Path
) -> None:
    report(load(hostile_run), tmp_path / "report.html")
    page = browse((tmp_path / "report.html").as_uri())
    page.locator("#training .main-svg").first.wait_for()
    assert page.evaluate("window.stolen") is None
    assert page.locator("a[href*=evil], img[src=x]").count() == 0


def test_the_size_hardly_grows_with_the_run(tmp_path: Path) -> None:
    short = load(synthetic.write_run(tmp_path / "short", n_layers=21, n_steps=400, flush=400))
    long = load(synthetic.write_run(tmp_path / "long", n_layers=21, n_steps=8000, flush=4000))
    assert len(report_html(long)) < len(report_html(short)) + 1_000_000


def test_a_report_does_not_replace_a_file_unasked(pair: Path, tmp_path: Path) -> None:
    run = load(pair / "plain-50")
    (tmp_path / "report.html").write_text("mine")
    with pytest.raises(GradscopeError, match="exists already"):
        report(run, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text() == "mine"
    report(run, tmp_path / "report.html", overwrite=True)
    assert (tmp_path / "report.html").stat().st_size > 1_000_000


def test_a_report_of_nothing_is_refused() -> None:
    with pytest.raises(GradscopeError, match="no run to report"):
        report_html([])
