"""What can be downloaded."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("dash", reason="dash is not installed")
from gradscope_dashboard import Server, start
from pages import Browse, drawn


@pytest.mark.parametrize("view", ["depth", "flow", "heatmap", "speed", "why", "training", "layers"])
def test_what_is_shown_can_be_downloaded(server: Server, view: str) -> None:
    with urllib.request.urlopen(f"{server.url}export/view.csv?view={view}") as answer:
        rows = answer.read().decode().splitlines()
    assert rows[0].startswith("run,")
    assert any("plain-50" in row for row in rows[1:])


def test_the_menu_offers_the_exports(browse: Browse, server: Server) -> None:
    page = browse(f"{server.url}?run=plain-50")
    drawn(page, "profile")
    page.get_by_text("Export", exact=True).click()
    with page.expect_download() as download:
        page.get_by_role("link", name="Report of these runs").click()
    assert download.value.suggested_filename == "gradscope-report.html"
    with page.expect_download() as download:
        page.get_by_role("link", name="All of plain-50").click()
    assert download.value.suggested_filename == "plain-50.csv"


def test_the_whole_run_can_be_downloaded(server: Server, pair: Path, tmp_path: Path) -> None:
    from gradscope.runs.loading import load

    load(pair / "plain-50").to_csv(tmp_path / "expected.csv")
    with urllib.request.urlopen(f"{server.url}export/run.csv?run=plain-50") as answer:
        assert answer.headers["Content-Disposition"] == "attachment; filename=plain-50.csv"
        assert answer.read() == (tmp_path / "expected.csv").read_bytes()


def test_formulas_are_defused_in_csv(hostile_run: Path) -> None:
    with (
        start(hostile_run.parent) as server,
        urllib.request.urlopen(f"{server.url}export/view.csv?view=layers") as answer,
    ):
        text = answer.read().decode()
    assert "'=HYPERLINK" in text
    assert '"=HYPERLINK' not in text
