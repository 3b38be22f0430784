"""The runs that the dashboard offers."""

from __future__ import annotations

from pathlib import Path

import pytest

import synthetic

pytest.importorskip("dash", reason="dash is not installed")
from gradscope_dashboard.library import Library
from pages import Browse, Serve, drawn


def test_runs_are_listed_without_being_read(tmp_path: Path) -> None:
    for number in range(12):
        synthetic.write_run(tmp_path / f"run-{number:02}", n_layers=5, n_steps=2)
    library = Library(tmp_path)
    assert len(library.names) == 12
    assert library.opened == set()
    library.refresh(["run-03"])
    assert library.opened == {"run-03"}


def test_only_the_newest_runs_are_shown_at_first(
    browse: Browse, dashboard: Serve, tmp_path: Path
) -> None:
    for number in range(6):
        synthetic.write_run(tmp_path / f"run-{number}", n_layers=5, n_steps=2)
    url = dashboard(tmp_path)
    page = browse(url)
    drawn(page, "profile")
    page.get_by_role("button", name="run-5", pressed=True).wait_for()
    page.get_by_role("button", name="run-0", pressed=False).wait_for()
    page.get_by_role("button", name="run-0").click()
    page.get_by_role("button", name="run-0", pressed=True).wait_for()
