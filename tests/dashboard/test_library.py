"""The runs that the dashboard offers."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import synthetic

pytest.importorskip("dash", reason="dash is not installed")
from gradscope.plots.flow_map import flow_map_info
from gradscope.storage.writer import RunWriter
from gradscope_dashboard import library as library_module
from gradscope_dashboard.library import Library
from gradscope_dashboard.page import of_worst, read_page
from pages import PROFILE, Browse, Serve, drawn, traces


def test_runs_are_listed_without_being_read(tmp_path: Path) -> None:
    for number in range(12):
        synthetic.write_run(tmp_path / f"run-{number:02}", n_layers=5, n_steps=2)
    library = Library(tmp_path)
    assert len(library.names) == 12
    assert library.opened == set()
    library.refresh(["run-03"])
    assert library.opened == {"run-03"}


def test_a_folder_that_is_deleted_meanwhile_has_no_runs(tmp_path: Path) -> None:
    synthetic.write_run(tmp_path / "runs" / "one", n_layers=5, n_steps=2)
    library = Library(tmp_path / "runs")
    shutil.rmtree(tmp_path / "runs")
    assert library.rescan() == []


def test_the_newest_and_the_worst_of_many_are_shown_as_soon_as_they_are_known(
    browse: Browse, dashboard: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(6):
        synthetic.write_run(tmp_path / f"run-{number}", n_layers=9, n_steps=2, residual=number != 2)
    summary_of, drawn_first = library_module.summary_of, threading.Event()

    def late(path: Path) -> object:
        drawn_first.wait(30)
        return summary_of(path)

    monkeypatch.setattr(library_module, "summary_of", late)
    page = browse(dashboard(tmp_path))
    drawn(page, "profile")
    page.get_by_role("button", name="run-5", pressed=True).wait_for()
    page.get_by_role("button", name="run-2", pressed=False).wait_for()
    drawn_first.set()
    page.get_by_role("button", name="run-2", pressed=True).wait_for()
    page.get_by_role("button", name="run-5", pressed=True).wait_for()
    page.locator("#exports").get_by_text("All of run-2").wait_for(state="attached")
    page.get_by_role("button", name="run-0", pressed=False).wait_for()
    page.get_by_role("button", name="run-0").click()
    page.get_by_role("button", name="run-0", pressed=True).wait_for()


def write_sweep(folder: Path, count: int) -> None:
    """Write runs whose gradient loses `lr` decades."""
    for number in range(count):
        lr = (number * 7) % count
        path = folder / f"run-{number}"
        writer = RunWriter(path, {"model": "Net", "every": 1, "config": {"lr": lr, "seed": 1}})
        writer.update(layers=synthetic.layer_table(9))
        writer.add_rows("layers", synthetic.layer_rows(9, np.arange(5), decades=lr))
        writer.add_rows("steps", synthetic.step_rows(np.arange(5), 0.1))
        writer.close()


def test_many_runs_are_sorted_searched_and_chosen_in_a_table(
    browse: Browse, dashboard: Serve, tmp_path: Path
) -> None:
    write_sweep(tmp_path, 10)
    page = browse(dashboard(tmp_path))
    drawn(page, "profile")
    page.locator("#runs-summary").click()
    rows = page.locator("#runs-table tbody tr")
    page.get_by_text("10 of 10 runs").wait_for()
    page.locator("#runs-table td.bad", has_text="vanishing").first.wait_for()
    assert page.locator("#runs-table th", has_text="seed").count() == 0  # the same for all
    page.get_by_role("button", name="lr", exact=True).click()
    assert rows.first.locator("td").nth(1).inner_text() == "run-0"
    page.get_by_label("search runs").fill("lr>=4 lr<7")
    page.get_by_text("3 of 10 runs").wait_for()
    page.get_by_role("button", name="Choose these").click()
    page.get_by_text("Runs: 3 of 10").wait_for()
    chosen = {f"run-{number}" for number in range(10) if 4 <= (number * 7) % 10 < 7}
    page.wait_for_function(f"() => !{PROFILE}.data.some(trace => trace.name == 'run-9')")
    assert set(traces(page, "profile")) - {None} == chosen
    assert all(f"run={name}" in page.url for name in chosen)
    page.get_by_label("search runs").fill("")
    page.get_by_role("button", name="Choose these").click()
    page.get_by_text("Runs: 10 of 10").wait_for()
    assert "run=*" in page.url or "run=%2A" in page.url


def test_more_runs_than_line_styles_are_coloured_by_what_tells_them_apart(tmp_path: Path) -> None:
    write_sweep(tmp_path, 10)
    library = Library(tmp_path)
    page = read_page("?run=*", {"theme": "light", "narrow": False}, library, ["depth"])
    library.close()
    assert page.theme.key_title == "lr"
    assert [words for words, _ in page.theme.key] == [str(lr) for lr in range(10)]
    colors = [page.theme.line(place)["color"] for place in range(10)]
    assert len(set(colors)) == 10
    assert page.theme.key[7][1] == colors[1]  # run-1 has lr 7


def test_of_more_runs_than_panels_the_worst_off_are_drawn(tmp_path: Path) -> None:
    """The gradient of `run-N` loses (7 N mod 15) decades; the two that lose least are left out."""
    write_sweep(tmp_path, 15)
    library = Library(tmp_path)
    until = time.monotonic() + 60
    while not all(library.summary(name) for name in library.names):  # each call waits a moment
        assert time.monotonic() < until, "summaries take more than a minute"
    page = read_page("?run=*", {"theme": "light", "narrow": False}, library, ["flow"])
    lanes, left_out = of_worst(page, flow_map_info)
    library.close()
    assert {lane.run for lane in lanes} == {
        f"run-{number}" for number in range(15) if (7 * number) % 15 > 2
    }
    assert [page.names[lane.place] for lane in lanes] == [lane.run for lane in lanes]
    assert left_out == " The 12 worst off of 15 runs are drawn."
