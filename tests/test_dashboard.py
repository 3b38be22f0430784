"""The dashboard in a real browser: every view, what the user does, and what the address says."""

from __future__ import annotations

import re
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import synthetic

pytest.importorskip("dash", reason="dash is not installed")

from gradscope_dashboard import Server, start

THEMES = ["light", "dark"]
PROFILE = "document.querySelector('#profile .js-plotly-plot')"


@pytest.fixture(scope="module")
def server(pair: Path) -> Iterator[Server]:
    with start(pair) as running:
        yield running


def drawn(page: Any, graph: str) -> None:
    """Wait until the figure `graph` has traces and nothing is on its way."""
    page.wait_for_function(
        """graph => {
            const plot = document.querySelector(`#${graph} .js-plotly-plot`);
            return plot && plot.data && plot.data.length && plot.querySelector('.main-svg')
                && !document.querySelector('.dash-graph--pending');
        }""",
        arg=graph,
    )


def traces(page: Any, graph: str) -> list[str]:
    """Return the names of the traces of a figure."""
    return page.evaluate(
        "graph => document.querySelector(`#${graph} .js-plotly-plot`).data.map(t => t.name)", graph
    )


def x_range(page: Any, graph: str) -> list[float]:
    """Return the range that the x axis of a figure shows."""
    return page.evaluate(
        "graph => document.querySelector(`#${graph} .js-plotly-plot`)._fullLayout.xaxis.range",
        graph,
    )


def zoom(page: Any, graph: str, low: float, high: float) -> None:
    """Drag over a figure from the shares `low` to `high` of its width."""
    box = page.locator(f"#{graph} .nsewdrag").first.bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + low * box["width"], middle)
    page.mouse.down()
    page.mouse.move(box["x"] + high * box["width"], middle, steps=5)
    page.mouse.up()


# --- the views ----------------------------------------------------------------------------------


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize(
    ("view", "graph", "label"),
    [
        ("depth", "profile", "Depth profile"),
        ("heatmap", "heatmap", "Layers × steps"),
        ("speed", "speed", "Speed of learning"),
    ],
)
def test_every_view_draws_both_runs(
    browse: Callable[..., Any], server: Server, theme: str, view: str, graph: str, label: str
) -> None:
    page = browse(f"{server.url}?view={view}&theme={theme}")
    drawn(page, graph)
    assert page.locator("html").get_attribute("data-theme") == theme
    assert page.get_by_role("button", name=label).get_attribute("aria-pressed") == "true"
    assert {"plain-50", "residual-50"} <= set(
        re.findall(r"(?:plain|residual)-50", page.locator(f"#{graph}").inner_text())
    )


def test_the_page_says_how_far_the_runs_are(browse: Callable[..., Any], server: Server) -> None:
    page = browse(server.url)
    page.get_by_text("finished, step 59").wait_for()


# --- what the user does -------------------------------------------------------------------------


def test_runs_are_shown_and_hidden(browse: Callable[..., Any], server: Server) -> None:
    page = browse(server.url)
    drawn(page, "profile")
    page.get_by_role("button", name="plain-50").click()
    page.wait_for_function(f"() => !{PROFILE}.data.some(trace => trace.name == 'plain-50')")
    assert "run=residual-50" in page.url
    page.get_by_role("button", name="plain-50", pressed=False).wait_for()


def test_another_quantity_is_shown(browse: Callable[..., Any], server: Server) -> None:
    page = browse(server.url)
    drawn(page, "profile")
    page.get_by_role("button", name="update speed").click()
    page.locator("#profile .ytitle", has_text="update speed").wait_for()
    assert "metric=update_ratio" in page.url


def test_another_step_moves_the_profile_and_keeps_the_zoom(
    browse: Callable[..., Any], server: Server
) -> None:
    page = browse(f"{server.url}?metric=update_ratio")
    drawn(page, "profile")
    zoom(page, "profile", 0.2, 0.6)
    page.wait_for_function(f"() => {PROFILE}._fullLayout.xaxis.range[0] > 2")
    before = x_range(page, "profile")
    value = f"{PROFILE}.data.at(-1).customdata[0][1]"
    latest = page.evaluate(value)
    page.get_by_label("Step", exact=True).fill("3")
    page.keyboard.press("Enter")
    page.wait_for_function(f"() => {value} != '{latest}'")
    assert "step=3" in page.url
    assert x_range(page, "profile") == before


def test_the_arrow_keys_move_the_slider(browse: Callable[..., Any], server: Server) -> None:
    page = browse(server.url)
    drawn(page, "profile")
    page.get_by_role("slider", name="Step of the training").focus()
    page.keyboard.press("ArrowLeft")
    page.wait_for_url("**step=58**")
    page.get_by_role("button", name="Follow latest").press("Space")
    page.wait_for_url(server.url)


def test_a_click_on_the_survival_strip_sets_the_step(
    browse: Callable[..., Any], server: Server
) -> None:
    page = browse(server.url)
    drawn(page, "survival")
    strip = page.locator("#survival .nsewdrag").first
    strip.hover(position={"x": 300, "y": 40})
    page.locator("#survival .hoverlayer .hovertext").first.wait_for()
    strip.click(position={"x": 300, "y": 40})
    page.wait_for_url(re.compile(r"step=\d+"))


def test_the_back_button_returns_to_the_view_before(
    browse: Callable[..., Any], server: Server
) -> None:
    page = browse(server.url)
    drawn(page, "profile")
    page.get_by_role("button", name="Speed of learning").click()
    drawn(page, "speed")
    page.go_back()
    drawn(page, "profile")
    assert "view=" not in page.url


def test_the_theme_follows_the_system_until_the_button_is_pressed(
    browse: Callable[..., Any], server: Server
) -> None:
    page = browse(server.url, color_scheme="dark")
    drawn(page, "profile")
    assert page.locator("html").get_attribute("data-theme") == "dark"
    page.get_by_role("button", name="Dark").click()
    page.wait_for_url("**theme=light**")
    page.locator("html[data-theme=light]").wait_for()


def test_buttons_keep_the_focus_for_the_keyboard(
    browse: Callable[..., Any], server: Server
) -> None:
    page = browse(server.url)
    drawn(page, "profile")
    button = page.get_by_role("button", name="weight gradient")
    button.press("Enter")
    page.wait_for_url("**metric=grad_norm**")
    drawn(page, "profile")
    assert page.evaluate("document.activeElement.textContent") == "weight gradient"


def test_unknown_values_in_a_link_are_dropped(browse: Callable[..., Any], server: Server) -> None:
    page = browse(f"{server.url}?view=../etc&metric=os.system&run=../../secret&step=-1&theme=x")
    drawn(page, "profile")
    assert "plain-50" in traces(page, "profile")
    assert "residual-50" in traces(page, "profile")


def test_zooming_into_the_heatmap_keeps_the_zoom(
    browse: Callable[..., Any], server: Server
) -> None:
    page = browse(f"{server.url}?view=heatmap")
    drawn(page, "heatmap")
    with page.expect_response(lambda r: "heatmap.figure" in (r.request.post_data or "")):
        zoom(page, "heatmap", 0.25, 0.5)
    drawn(page, "heatmap")
    low, high = x_range(page, "heatmap")
    assert 10 < low < high < 35


# --- live ---------------------------------------------------------------------------------------


def test_new_steps_appear_while_another_writes_and_the_zoom_stays(
    browse: Callable[..., Any], tmp_path: Path
) -> None:
    writer = synthetic.start(tmp_path / "live", n_layers=21)
    synthetic.extend(writer, np.arange(10))
    writer.flush()
    with start(tmp_path) as server:
        page = browse(server.url)
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


def test_a_run_that_starts_later_appears(browse: Callable[..., Any], tmp_path: Path) -> None:
    with start(tmp_path) as server:
        page = browse(server.url)
        page.get_by_text("no step recorded yet").first.wait_for()
        synthetic.write_run(tmp_path / "late", n_layers=5, n_steps=3)
        drawn(page, "profile")
        assert "late" in traces(page, "profile")


def test_a_paused_page_stays_as_it_is(browse: Callable[..., Any], tmp_path: Path) -> None:
    writer = synthetic.start(tmp_path / "live", n_layers=5)
    synthetic.extend(writer, np.arange(3))
    writer.flush()
    with start(tmp_path) as server:
        page = browse(server.url)
        page.get_by_text("training, step 2").wait_for()
        page.get_by_role("button", name="Pause").click()
        page.get_by_role("button", name="Resume").wait_for()
        synthetic.extend(writer, np.arange(3, 6))
        writer.close()
        with pytest.raises(Exception, match="Timeout"):
            page.get_by_text("step 5").wait_for(timeout=2500)
        page.get_by_role("button", name="Resume").click()
        page.get_by_text("finished, step 5").wait_for()


# --- serving ------------------------------------------------------------------------------------


def test_stopping_frees_the_port(pair: Path) -> None:
    before = threading.active_count()
    first = start(pair)
    port = int(first.url.rsplit(":", 1)[1].strip("/"))
    first.stop()
    with start(pair, port=port) as second:
        assert second.url == first.url
    assert threading.active_count() == before


def test_the_whole_run_can_be_downloaded(server: Server, pair: Path, tmp_path: Path) -> None:
    from gradscope.run import load

    load(pair / "plain-50").to_csv(tmp_path / "expected.csv")
    with urllib.request.urlopen(f"{server.url}export/run.csv?run=plain-50") as answer:
        assert answer.headers["Content-Disposition"] == "attachment; filename=plain-50.csv"
        assert answer.read() == (tmp_path / "expected.csv").read_bytes()
