"""What the user does on the page: buttons, clicks, keys, zoom, links."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import synthetic

pytest.importorskip("dash", reason="dash is not installed")
from gradscope_dashboard import Server
from pages import PROFILE, Browse, Serve, drawn, traces, x_range, zoom


def test_runs_are_shown_and_hidden(browse: Browse, server: Server) -> None:
    page = browse(server.url)
    drawn(page, "profile")
    page.get_by_role("button", name="plain-50", exact=True).click()
    page.wait_for_function(f"() => !{PROFILE}.data.some(trace => trace.name == 'plain-50')")
    assert "run=residual-50" in page.url
    page.get_by_role("button", name="plain-50", exact=True, pressed=False).wait_for()


def test_another_quantity_is_shown(browse: Browse, server: Server) -> None:
    page = browse(server.url)
    drawn(page, "profile")
    page.get_by_role("button", name="update speed").click()
    page.locator("#profile .ytitle", has_text="update speed").wait_for()
    assert "metric=update_ratio" in page.url


def test_another_step_moves_the_profile_and_keeps_the_zoom(browse: Browse, server: Server) -> None:
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


def test_the_same_step_can_be_asked_for_again(browse: Browse, server: Server) -> None:
    page = browse(server.url)
    drawn(page, "profile")
    number = page.get_by_label("Step", exact=True)
    for _ in range(2):
        # the latest is written a moment after the address
        page.wait_for_function("field => field.value == '59'", arg=number.element_handle())
        number.fill("3")
        number.press("Enter")
        page.wait_for_url("**step=3**")
        page.get_by_role("button", name="Step before").click()
        page.wait_for_url("**step=2**")
        page.get_by_role("button", name="Follow latest").click()
        page.wait_for_url(lambda url: "step" not in url)


def test_the_arrow_keys_move_the_slider(browse: Browse, server: Server) -> None:
    page = browse(server.url)
    drawn(page, "profile")
    page.get_by_role("slider", name="Step of the training").focus()
    page.keyboard.press("ArrowLeft")
    page.wait_for_url("**step=58**")
    page.get_by_role("button", name="Follow latest").press("Space")
    page.wait_for_url(server.url)


def test_a_click_on_the_survival_strip_sets_the_step(browse: Browse, server: Server) -> None:
    page = browse(server.url)
    drawn(page, "survival")
    strip = page.locator("#survival .nsewdrag").first
    strip.hover(position={"x": 300, "y": 40})
    page.locator("#survival .hoverlayer .hovertext").first.wait_for()
    strip.click(position={"x": 300, "y": 40})
    page.wait_for_url(re.compile(r"step=\d+"))


def test_the_back_button_returns_to_the_view_before(browse: Browse, server: Server) -> None:
    page = browse(server.url)
    drawn(page, "profile")
    page.get_by_role("button", name="Speed of learning").click()
    drawn(page, "speed")
    page.go_back()
    drawn(page, "profile")
    assert "view=" not in page.url


def test_the_theme_follows_the_system_until_the_button_is_pressed(
    browse: Browse, server: Server
) -> None:
    page = browse(server.url, color_scheme="dark")
    drawn(page, "profile")
    assert page.locator("html").get_attribute("data-theme") == "dark"
    page.get_by_role("button", name="Dark").click()
    page.wait_for_url("**theme=light**")
    page.locator("html[data-theme=light]").wait_for()


def test_buttons_keep_the_focus_for_the_keyboard(browse: Browse, server: Server) -> None:
    page = browse(server.url)
    drawn(page, "profile")
    button = page.get_by_role("button", name="weight gradient")
    button.press("Enter")
    page.wait_for_url("**metric=grad_norm**")
    drawn(page, "profile")
    assert page.evaluate("document.activeElement.textContent") == "weight gradient"


def test_unknown_values_in_a_link_are_dropped(browse: Browse, server: Server) -> None:
    page = browse(f"{server.url}?view=../etc&metric=os.system&run=../../secret&step=-1&theme=x")
    drawn(page, "profile")
    assert "plain-50" in traces(page, "profile")
    assert "residual-50" in traces(page, "profile")


def test_zooming_into_the_heatmap_keeps_the_zoom(browse: Browse, server: Server) -> None:
    page = browse(f"{server.url}?view=heatmap")
    drawn(page, "heatmap")
    with page.expect_response(lambda r: "heatmap.figure" in (r.request.post_data or "")):
        zoom(page, "heatmap", 0.25, 0.5)
    drawn(page, "heatmap")
    low, high = x_range(page, "heatmap")
    assert 10 < low < high < 35


def test_a_click_on_a_layer_opens_its_history(browse: Browse, server: Server) -> None:
    page = browse(f"{server.url}?view=layers")
    page.get_by_role("button", name="blocks.0.fc").first.click()
    drawn(page, "history")
    assert "layer=blocks.0.fc" in page.url
    assert {"plain-50", "residual-50"} <= set(traces(page, "history"))
    page.keyboard.press("Escape")
    page.locator("#drawer").wait_for(state="hidden")
    assert "layer=" not in page.url


@pytest.mark.parametrize(
    ("view", "graph", "selector"),
    [("depth", "profile", ".nsewdrag"), ("heatmap", "heatmap", ".nsewdrag")],
)
def test_a_click_on_a_chart_opens_a_layers_history(
    browse: Browse, server: Server, view: str, graph: str, selector: str
) -> None:
    page = browse(f"{server.url}?view={view}&run=plain-50")
    page.locator("#cards .chip").first.wait_for()  # a longer sentence moves the chart down
    drawn(page, graph)
    area = page.locator(f"#{graph} {selector}").first
    box = area.bounding_box()
    x, y = box["width"] * 0.99, 10
    if view == "depth":
        y = page.evaluate(f"() => {PROFILE}._fullLayout.yaxis.d2p(1) ")
        x = page.evaluate(f"() => {PROFILE}._fullLayout.xaxis.d2p(11)")
    area.hover(position={"x": x, "y": y})
    page.locator(f"#{graph} .hoverlayer .hovertext").first.wait_for()
    area.click(position={"x": x, "y": y})
    drawn(page, "history")


def test_the_table_sorts_and_grows(browse: Browse, dashboard: Serve, tmp_path: Path) -> None:
    synthetic.write_run(tmp_path / "deep", n_layers=81, n_steps=3)
    url = dashboard(tmp_path)
    page = browse(f"{url}?view=layers")
    rows = page.locator("#layer-table tbody tr")
    page.get_by_text("25 of 41 weight layers, worst first").wait_for()
    assert rows.first.locator("td").nth(0).inner_text() == "0"
    page.get_by_role("button", name="no.").click()
    page.get_by_role("button", name="no. ▲").click()
    page.locator("th[aria-sort=descending]").wait_for()
    assert rows.first.locator("td").nth(0).inner_text() == "80"
    page.get_by_role("button", name="25 more").click()
    page.get_by_text("41 of 41 weight layers, sorted by no.").wait_for()
    assert rows.count() == 41


def test_on_a_phone_the_tab_of_the_view_that_is_open_is_in_sight(
    browse: Browse, server: Server
) -> None:
    page = browse(f"{server.url}?view=layers", viewport={"width": 390, "height": 844})
    tab = page.locator("#tabs").get_by_role("button", name="Layers", exact=True, pressed=True)
    tab.wait_for()
    page.wait_for_function("() => document.querySelector('#tabs').scrollLeft > 0")
    box = tab.bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 390
