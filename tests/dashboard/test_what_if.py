"""What was tried beside a run, on the page; and trying from there, where that is allowed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gradscope.errors import GradscopeError

pytest.importorskip("dash", reason="dash is not installed")
from gradscope_dashboard import start
from gradscope_dashboard.starting import Starter
from pages import Browse, Serve, drawn
from with_tries import with_tries

SCRIPT = """
import torch
from torch import nn

def setup():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    x = torch.randn(64, 4)
    data = [(x, (x[:, 0] > 0).long())]
    return model, nn.CrossEntropyLoss(), data, torch.optim.SGD(model.parameters(), 1.0)
"""


def test_the_table_and_the_ghost_line_stand_beside_the_run(
    dashboard: Serve, browse: Browse, tmp_path: Path
) -> None:
    with_tries(tmp_path / "plain", "<b>own</b>")
    url = dashboard(tmp_path)
    page = browse(f"{url}?view=what-if", bypass_csp=True)
    drawn(page, "tries")
    table = page.locator("#tries-table")
    table.get_by_text("shortcuts around pairs of layers").wait_for()
    table.get_by_text("-3.0 → -0.1").wait_for()
    assert table.get_by_text("does not help").count() == 1
    table.get_by_text("<b>own</b>").wait_for()  # a name is text
    page.locator("#tries-caption", has_text="1 of 2 changes help").wait_for()
    assert page.locator("#tries-try").count() == 0
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is missing")
    rules = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}
    assert axe.Axe().run(page, options=rules).response["violations"] == []


def test_what_is_tried_while_the_page_is_open_appears(
    dashboard: Serve, browse: Browse, tmp_path: Path
) -> None:
    with_tries(tmp_path / "plain")
    file = tmp_path / "plain" / "what-if" / "tried.json"
    kept = file.rename(tmp_path / "kept.json")
    url = dashboard(tmp_path)
    page = browse(f"{url}?view=what-if")
    page.get_by_text("Nothing was tried beside these runs").first.wait_for()
    kept.rename(file)
    page.locator("#tries-table").get_by_text("does not help").wait_for()


@pytest.mark.slow
def test_the_page_tries_where_the_command_line_allows_it(
    dashboard: Serve, browse: Browse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(__file__).parents[2]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(root), str(root / "dashboard")]))
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    runs = tmp_path / "runs"
    with_tries(runs / "plain")
    url = dashboard(runs, what_if=f"{script}:setup")
    page = browse(f"{url}?view=what-if")
    page.get_by_role("button", name="Try what would help").click()
    page.get_by_text("Trying, in a process of its own").wait_for()
    page.get_by_text("Done.").wait_for(timeout=120_000)
    (made,) = [path for path in runs.iterdir() if path.name.endswith("-what-if")]
    assert (made / "what-if" / "tried.json").is_file()


def test_nothing_is_started_for_other_machines_or_without_a_folder(tmp_path: Path) -> None:
    run = with_tries(tmp_path / "plain")
    for source, host in ((tmp_path, "0.0.0.0"), (run, "127.0.0.1")):
        with pytest.raises(GradscopeError, match="from the page of this machine's own dashboard"):
            start(source, host=host, what_if="train.py:setup")


def test_a_script_that_fails_is_told_of_and_one_runs_at_a_time(tmp_path: Path) -> None:
    starter = Starter(str(tmp_path / "missing.py:setup"), tmp_path)
    assert starter.state == ""
    assert starter.start() == " Started."
    assert starter.start() == " It is running already."
    starter._process.wait()
    assert starter.state.startswith("Failed: gradscope: ")
    assert "there is no such script" in starter.state
    starter.stop()
