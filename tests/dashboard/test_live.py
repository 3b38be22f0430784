"""The page while runs grow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import synthetic

pytest.importorskip("dash", reason="dash is not installed")
from pages import PROFILE, Browse, Serve, drawn, traces, x_range, zoom


@pytest.mark.slow
def test_new_steps_appear_while_another_writes_and_the_zoom_stays(
    browse: Browse, dashboard: Serve, tmp_path: Path
) -> None:
    writer = synthetic.start(tmp_path / "live", n_layers=21)
    synthetic.extend(writer, np.arange(10))
    writer.flush()
    url = dashboard(tmp_path)
    page = browse(url)
    drawn(page, "profile")
    page.get_by_text("training, step 9").wait_for()
    zoom(page, "profile", 0.2, 0.6)
    page.wait_for_function(f"() => {PROFILE}._fullLayout.xaxis.range[0] > 2")
    before = x_range(page, "profile")
    synthetic.extend(writer, np.arange(10, 25))
    writer.flush()
    page.get_by_text("training, step 24").wait_for(timeout=3000)
    page.wait_for_function(
        "() => document.querySelector('#survival .js-plotly-plot').data[0].x.at(-1) == 24"
    )
    assert x_range(page, "profile") == before
    writer.close()
    page.get_by_text("finished, step 24").wait_for(timeout=3000)


def test_the_step_axis_grows_with_a_run_of_one_step(
    browse: Browse, dashboard: Serve, tmp_path: Path
) -> None:
    writer = synthetic.start(tmp_path / "live", n_layers=9)
    synthetic.extend(writer, np.arange(1))
    writer.flush()
    page = browse(dashboard(tmp_path))
    drawn(page, "survival")
    labels = page.locator("#survival .xtick text")
    assert labels.all_text_contents() == ["0"]
    synthetic.extend(writer, np.arange(1, 60))
    writer.flush()
    labels.filter(has_text="40").wait_for()
    writer.close()


# it may be read between its first and its last moment:
@pytest.mark.filterwarnings("ignore:.*no step is recorded")
def test_a_run_that_starts_later_appears(browse: Browse, dashboard: Serve, tmp_path: Path) -> None:
    url = dashboard(tmp_path)
    page = browse(url)
    page.get_by_text("no step recorded yet").first.wait_for()
    synthetic.write_run(tmp_path / "late", n_layers=5, n_steps=3)
    drawn(page, "profile")
    assert "late" in traces(page, "profile")


@pytest.mark.slow
def test_a_paused_page_stays_as_it_is(browse: Browse, dashboard: Serve, tmp_path: Path) -> None:
    writer = synthetic.start(tmp_path / "live", n_layers=5)
    synthetic.extend(writer, np.arange(3))
    writer.flush()
    url = dashboard(tmp_path)
    page = browse(url)
    page.get_by_text("training, step 2").wait_for()
    page.get_by_role("button", name="Pause").click()
    page.get_by_role("button", name="Resume").wait_for()
    synthetic.extend(writer, np.arange(3, 6))
    writer.close()
    with pytest.raises(Exception, match="Timeout"):
        page.get_by_text("step 5").wait_for(timeout=2500)
    page.get_by_role("button", name="Resume").click()
    page.get_by_text("finished, step 5").wait_for()
