"""The strip of events: beside the slider, or along the steps of the chart."""

from __future__ import annotations

from pathlib import Path

import pytest

import synthetic
from gradscope.storage.writer import RunWriter

pytest.importorskip("dash", reason="dash is not installed")
from pages import Browse, Serve, drawn

PLACES = """() => {
    const plot = document.querySelector("#training .js-plotly-plot"), axis = plot._fullLayout.xaxis;
    const left = plot.getBoundingClientRect().left + plot._fullLayout._size.l;
    return [...document.querySelectorAll("#timeline .event")].map((event) =>
        event.getBoundingClientRect().left - left - axis.r2p(Number(event.dataset.step)));
}"""

APART = """() => {
    const boxes = [...document.querySelectorAll("#timeline .event")]
        .map((event) => event.getBoundingClientRect()).sort((a, b) => a.left - b.left);
    return boxes.length > 1 && boxes.slice(1).every((box, i) => boxes[i].right <= box.left);
}"""


@pytest.fixture
def marked(tmp_path: Path) -> Path:
    path = synthetic.write_run(tmp_path / "run", n_layers=9, n_steps=200)
    writer = RunWriter(path, {}, resume=True)
    marks = [(50, "unfroze"), (51, "longer words that need room"), (150, "saved")]
    writer.update(marks=[{"step": step, "text": text} for step, text in marks])
    writer.close()
    return tmp_path


def test_neighbours_share_a_mark_that_tells_of_both(
    browse: Browse, dashboard: Serve, marked: Path
) -> None:
    page = browse(dashboard(marked))
    drawn(page, "profile")
    both = "step 50: unfroze; step 51: longer words that need room"
    page.get_by_role("button", name=both).click()
    page.wait_for_url("**step=50**")
    page.wait_for_function(APART)


def test_without_a_slider_the_strip_lies_along_the_chart(
    browse: Browse, dashboard: Serve, marked: Path
) -> None:
    page = browse(f"{dashboard(marked)}?view=training")
    drawn(page, "training")
    page.locator("#timeline.along .event", has_text="saved").wait_for()
    page.wait_for_function(f"() => ({PLACES})().every((off) => Math.abs(off) < 2)")
    page.get_by_role("button", name="Depth profile").click()
    page.locator("#timeline:not(.along) .event", has_text="saved").wait_for()
