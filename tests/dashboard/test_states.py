"""What the page says of runs that crashed, fell silent or broke, and of a server that is gone."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

import synthetic

pytest.importorskip("dash", reason="dash is not installed")
from gradscope_dashboard import start
from pages import Browse, Serve, drawn

BROKE = 12


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a run whose readings are not finite from step 12 of 20 on."""
    folder = tmp_path_factory.mktemp("broken")
    steps = np.arange(20)
    writer = synthetic.start(folder / "nan", n_layers=9)
    rows = synthetic.layer_rows(9, steps, 0.5)
    for metric in ("signal_norm", "grad_norm", "update_norm", "activation_norm"):
        rows[metric] = np.where(rows["step"] >= BROKE, np.nan, rows[metric]).astype(np.float32)
    writer.add_rows("layers", rows)
    norms = synthetic.step_rows(steps, 0.1)
    norms["grad_norm"] = np.where(steps >= BROKE, np.inf, norms["grad_norm"])
    writer.add_rows("steps", norms)
    writer.close()
    return folder


def test_a_run_that_ends_in_nan_opens_where_it_can_still_be_read(
    browse: Browse, dashboard: Serve, broken: Path
) -> None:
    page = browse(dashboard(broken))
    drawn(page, "profile")
    page.wait_for_function(
        "wanted => document.getElementById('step-number')?.value == wanted", arg=str(BROKE - 1)
    )
    page.get_by_role("button", name="Follow latest").click()
    page.wait_for_url("**step=19**")
    page.wait_for_function("() => document.getElementById('step-number').value == '19'")


def test_a_finding_and_an_event_lead_to_their_step(
    browse: Browse, dashboard: Serve, broken: Path
) -> None:
    page = browse(f"{dashboard(broken)}?step=3")
    drawn(page, "profile")
    page.locator("#timeline .broken").click()
    page.wait_for_url(f"**step={BROKE}**")
    page.goto(page.url.replace(f"step={BROKE}", "step=3"))
    page.locator("#cards summary").click()
    page.get_by_role("button", name="exploding (critical)").click()
    page.wait_for_url(f"**step={BROKE}**")


def test_a_run_whose_process_died_is_said_to_have_crashed(
    browse: Browse, dashboard: Serve, tmp_path: Path
) -> None:
    path = synthetic.write_run(tmp_path / "dead", n_layers=5, n_steps=7)
    meta = json.loads((path / "run.json").read_text())
    meta.pop("crc32")
    (path / "run.json").write_text(json.dumps({**meta, "status": "running"}))
    page = browse(dashboard(tmp_path))
    page.locator("#live", has_text="crashed after step 6").wait_for()
    said = page.locator("article.is-bad").get_by_text("crashed after step 6")
    assert "its process ended without scope.close()" in said.inner_text()


def test_a_chart_that_has_nothing_to_show_is_not_explained(
    browse: Browse, dashboard: Serve, tmp_path: Path
) -> None:
    synthetic.write_run(tmp_path / "one", n_layers=1, n_steps=3)
    page = browse(dashboard(tmp_path))
    page.locator("#profile").get_by_text("One layer: there is no other").wait_for()
    assert page.locator("#profile-caption").inner_text() == ""


def test_a_live_run_without_new_steps_is_said_to_be_silent(
    browse: Browse, dashboard: Serve, tmp_path: Path
) -> None:
    writer = synthetic.start(tmp_path / "slow", n_layers=5)
    synthetic.extend(writer, np.arange(4))
    writer.flush()
    page = browse(dashboard(tmp_path))
    page.locator("#live", has_text="training, step 3").wait_for()
    long_ago = time.time() - 3600
    os.utime(tmp_path / "slow" / "steps", (long_ago, long_ago))
    page.locator("#live", has_text="paused? last step 3, 1 hour ago").wait_for()
    page.locator("article", has_text="no new step since step 3, 1 hour ago").wait_for()
    writer.close()


def test_a_page_without_its_server_says_so(chromium: object, pair: Path) -> None:
    server = start(pair)
    context = chromium.new_context()
    page = context.new_page()
    page.goto(server.url)
    drawn(page, "profile")
    assert page.locator("#offline").is_hidden()
    server.stop()
    page.locator("#offline", has_text="does not answer").wait_for()
    context.close()


def test_zero_and_nan_have_colours_of_their_own(
    browse: Browse, dashboard: Serve, tmp_path: Path
) -> None:
    signal = np.array([0.0, 1, np.nan, 1, 1, 1, 1])
    synthetic.write_with(tmp_path / "odd", 7, 5, signal_norm=signal)
    page = browse(f"{dashboard(tmp_path)}?view=heatmap")
    drawn(page, "heatmap")
    page.locator("#heatmap .annotation", has_text="exactly 0").wait_for()
    colors = page.evaluate(
        "() => document.querySelector('#heatmap .js-plotly-plot').data"
        ".filter(t => t.colorscale).map(t => t.colorscale[0][1])"
    )
    assert len(set(colors)) == len(colors) == 2
