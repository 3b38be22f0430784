"""The dashboard in a real browser: every view, what the user does, and what the address says."""

from __future__ import annotations

import re
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest

import synthetic

pytest.importorskip("dash", reason="dash is not installed")

from gradscope.errors import GradscopeError
from gradscope_dashboard import Server, serve, start
from gradscope_dashboard.background import Background
from gradscope_dashboard.library import Library
from gradscope_dashboard.state import State, parse

Browse = Callable[..., Any]
Serve = Callable[[Path], str]

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
        ("flow", "flow", "Flow map"),
        ("heatmap", "heatmap", "Layers × steps"),
        ("speed", "speed", "Speed of learning"),
        ("why", "ledger", "Why"),
        ("training", "training", "Training"),
        ("layers", None, "Layers"),
    ],
)
def test_every_view_draws_both_runs_and_breaks_no_accessibility_rule(
    browse: Browse,
    server: Server,
    theme: str,
    view: str,
    graph: str | None,
    label: str,
) -> None:
    page = browse(f"{server.url}?view={view}&theme={theme}", bypass_csp=True)
    if graph:
        drawn(page, graph)
    place = page.locator(f"#{graph or 'layer-table'}")
    for run in ("plain-50", "residual-50"):
        place.get_by_text(run).first.wait_for()
    page.get_by_role("button", name=label, exact=True, pressed=True).wait_for()
    page.get_by_text("Vanishing", exact=False).first.wait_for()
    assert page.locator("html").get_attribute("data-theme") == theme
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is missing")
    rules = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}
    violations = axe.Axe().run(page, options=rules).response["violations"]
    assert [(broken["id"], broken["nodes"][0]["html"]) for broken in violations] == []


def test_the_page_fits_a_phone(browse: Browse, server: Server) -> None:
    page = browse(server.url, viewport={"width": 390, "height": 844})
    drawn(page, "profile")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_the_first_chart_lies_within_a_laptops_screen(browse: Browse, server: Server) -> None:
    page = browse(server.url)
    drawn(page, "profile")
    page.get_by_text("Healthy", exact=False).first.wait_for()
    box = page.locator("#profile .main-svg").first.bounding_box()
    assert box["y"] + box["height"] <= 900


def test_the_page_says_how_far_the_runs_are(browse: Browse, server: Server) -> None:
    page = browse(server.url)
    page.get_by_text("finished, step 59").wait_for()


def test_cards_say_the_verdict_about_each_run(browse: Browse, server: Server) -> None:
    page = browse(server.url)
    page.locator("article", has_text="plain-50").get_by_text("▼ Vanishing").wait_for()
    page.locator("article", has_text="residual-50").get_by_text("✔ Healthy").wait_for()
    page.get_by_text("what to try").first.click()
    page.get_by_text("try:").first.wait_for()


# --- what the user does -------------------------------------------------------------------------


def test_runs_are_shown_and_hidden(browse: Browse, server: Server) -> None:
    page = browse(server.url)
    drawn(page, "profile")
    page.get_by_role("button", name="plain-50").click()
    page.wait_for_function(f"() => !{PROFILE}.data.some(trace => trace.name == 'plain-50')")
    assert "run=residual-50" in page.url
    page.get_by_role("button", name="plain-50", pressed=False).wait_for()


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
    page.locator("#cards .verdict strong").wait_for()  # a longer sentence moves the chart down
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
    assert rows.first.locator("td").nth(1).inner_text() == "1"
    page.get_by_role("button", name="no.").click()
    page.get_by_role("button", name="no. ▲").click()
    page.locator("th[aria-sort=descending]").wait_for()
    assert rows.first.locator("td").nth(1).inner_text() == "41"
    page.get_by_role("button", name="25 more").click()
    page.get_by_text("41 of 41 weight layers, sorted by no.").wait_for()
    assert rows.count() == 41


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


# --- live ---------------------------------------------------------------------------------------


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


def test_a_run_that_starts_later_appears(browse: Browse, dashboard: Serve, tmp_path: Path) -> None:
    url = dashboard(tmp_path)
    page = browse(url)
    page.get_by_text("no step recorded yet").first.wait_for()
    synthetic.write_run(tmp_path / "late", n_layers=5, n_steps=3)
    drawn(page, "profile")
    assert "late" in traces(page, "profile")


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


# --- serving ------------------------------------------------------------------------------------


def test_stopping_frees_the_port(pair: Path) -> None:
    first = start(pair)
    port = int(first.url.rsplit(":", 1)[1].strip("/"))
    first.stop()
    with start(pair, port=port) as second:
        assert second.url == first.url
    names = [thread.name for thread in threading.enumerate()]
    assert names.count("gradscope-dashboard") <= 1  # the module's own server


def test_the_whole_run_can_be_downloaded(server: Server, pair: Path, tmp_path: Path) -> None:
    from gradscope.runs.loading import load

    load(pair / "plain-50").to_csv(tmp_path / "expected.csv")
    with urllib.request.urlopen(f"{server.url}export/run.csv?run=plain-50") as answer:
        assert answer.headers["Content-Disposition"] == "attachment; filename=plain-50.csv"
        assert answer.read() == (tmp_path / "expected.csv").read_bytes()


# --- runs that go wrong -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def odd_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with runs that are empty, of one step, all NaN, exploded, or broken."""
    folder = tmp_path_factory.mktemp("odd")
    synthetic.start(folder / "empty").close()
    synthetic.write_run(folder / "one-step", n_layers=9, n_steps=1)
    steps = np.arange(5)
    for name, value in (("all-nan", np.nan), ("exploded", np.inf)):
        writer = synthetic.start(folder / name, n_layers=9)
        rows = synthetic.layer_rows(9, steps, 3.0)
        for metric in ("signal_norm", "grad_norm", "update_norm"):
            rows[metric] = np.where(rows["layer"] < 6, value, rows[metric]).astype(np.float32)
        writer.add_rows("layers", rows)
        writer.add_rows("steps", synthetic.step_rows(steps, 0.1))
        writer.close()
    (folder / "broken").mkdir()
    (folder / "broken" / "run.json").write_text("{")
    return folder


@pytest.mark.parametrize("run", ["empty", "one-step", "all-nan", "exploded", "broken"])
def test_a_run_that_went_wrong_has_a_sensible_page(
    browse: Browse, dashboard: Serve, odd_runs: Path, run: str
) -> None:
    words = {
        "empty": "No step has been recorded yet.",
        "one-step": "finished, step 0",
        "all-nan": "at step 4: 3 of 5 layers NaN",
        "exploded": "at step 4: 3 of 5 layers inf",
        "broken": "Unreadable",
    }
    page = browse(f"{dashboard(odd_runs)}?run={run}")
    page.get_by_text(words[run]).first.wait_for()
    for view in ("Flow map", "Layers × steps", "Speed of learning", "Why", "Training"):
        page.get_by_role("button", name=view).click()
        page.get_by_role("button", name=view, pressed=True).wait_for()
        page.locator("#view .main-svg").first.wait_for()


def test_an_empty_folder_waits_for_a_run(browse: Browse, dashboard: Serve, tmp_path: Path) -> None:
    url = dashboard(tmp_path)
    page = browse(url)
    page.get_by_text("no step recorded yet").wait_for()
    page.get_by_text("No step has been recorded yet.").first.wait_for()


# --- many and large runs ------------------------------------------------------------------------


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


# --- names from outside -------------------------------------------------------------------------


def test_hostile_names_are_only_text(browse: Browse, dashboard: Serve, hostile_run: Path) -> None:
    page = browse(dashboard(hostile_run.parent))
    drawn(page, "profile")
    for view in ("Flow map", "Layers × steps", "Speed of learning", "Why", "Depth profile"):
        page.get_by_role("button", name=view, exact=True).click()
        page.get_by_role("button", name=view, pressed=True).wait_for()
        page.locator("#view .main-svg").first.wait_for()
        box = page.locator("#view .nsewdrag").first.bounding_box()
        for share in (0.02, 0.5, 0.98):
            page.mouse.move(box["x"] + share * box["width"], box["y"] + share * box["height"])
    page.get_by_role("button", name="Layers", exact=True).click()
    page.locator("#layer-table button", has_text="evil.example").first.wait_for()
    assert page.evaluate("window.stolen") is None
    assert page.locator("a[href*=evil], img[src=x], main b:has-text('bold')").count() == 0


def test_a_layer_with_a_hostile_name_opens(
    browse: Browse, dashboard: Serve, hostile_run: Path
) -> None:
    url = dashboard(hostile_run.parent)
    page = browse(f"{url}?view=layers")
    page.get_by_role("button", name="window.stolen=1").first.click()
    drawn(page, "history")
    assert page.evaluate("window.stolen") is None


def test_formulas_are_defused_in_csv(hostile_run: Path) -> None:
    with (
        start(hostile_run.parent) as server,
        urllib.request.urlopen(f"{server.url}export/view.csv?view=layers") as answer,
    ):
        text = answer.read().decode()
    assert "'=HYPERLINK" in text
    assert '"=HYPERLINK' not in text


# --- who may talk to it -------------------------------------------------------------------------


def ask(url: str, **headers: str) -> Any:
    """Return the answer to a request, an error's too."""
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers))
    except urllib.error.HTTPError as error:
        return error


def test_other_hosts_names_are_refused(server: Server) -> None:
    assert ask(server.url).status == 200
    for name in ("evil.example", "127.0.0.1.evil.example", "[::1", "", "evil.example:80"):
        assert ask(server.url, Host=name).status == 400


def test_a_page_may_load_nothing_from_elsewhere(server: Server) -> None:
    policy = ask(server.url).headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    assert "unsafe-eval" not in policy
    assert "'unsafe-inline'" not in policy.split("script-src")[1].split(";")[0]


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "..", "", "none"])
def test_no_path_is_taken_from_the_browser(server: Server, name: str) -> None:
    assert ask(f"{server.url}export/run.csv?run={quote(name, safe='')}").status == 404


def test_too_large_requests_are_refused(server: Server) -> None:
    request = urllib.request.Request(f"{server.url}_dash-update-component", data=b"x" * 2**21)
    with pytest.raises((urllib.error.HTTPError, ConnectionError, urllib.error.URLError)):
        urllib.request.urlopen(request)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_every_name_of_this_machine_works(pair: Path, host: str) -> None:
    try:
        running = start(pair, host=host)
    except GradscopeError:
        pytest.skip(f"this machine has no {host}")
    with running:
        assert ask(running.url).status == 200


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GradscopeError, match="no folder"):
        start(tmp_path / "nowhere")


def test_a_port_in_use_is_refused(server: Server, pair: Path) -> None:
    port = int(server.url.rsplit(":", 1)[1].strip("/"))
    with pytest.raises(GradscopeError, match=f"cannot listen on 127.0.0.1, port {port}"):
        start(pair, port=port)


def test_other_addresses_are_warned_about(
    pair: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Server, "wait", Server.stop)
    serve(pair, host="0.0.0.0", open_browser=False)
    said = capsys.readouterr()
    assert "there is no password" in said.err
    assert "http://127.0.0.1:" in said.out


# --- the address of the page --------------------------------------------------------------------


def test_an_address_says_what_is_shown_and_nothing_else() -> None:
    state = State("flow", runs=("a b", "c"), step=7, layer="l.0", theme="dark", sort="-number")
    search = state.search("depth")
    assert search == "?view=flow&run=a+b&run=c&step=7&layer=l.0&theme=dark&sort=-number"
    assert parse(search, ["depth", "flow"], ["a b", "c"]) == state
    assert State("depth").search("depth") == ""


@pytest.mark.parametrize(
    "search",
    [
        None,
        "",
        "?view=x&run=y&metric=z&step=-3&theme=blue&sort=os&rows=0",
        "?step=1e9&step=٣",
        "?%ff",
    ],
)
def test_what_makes_no_sense_in_an_address_is_dropped(search: str | None) -> None:
    assert parse(search, ["depth", "flow"], ["a"]) == State("depth")


# --- work beside the page -----------------------------------------------------------------------


def test_background_work_is_done_once_for_each_state_of_the_data() -> None:
    background = Background()
    calls: list[int] = []
    results = [background.get("key", mark, lambda: calls.append(1) or len(calls)) for mark in "aa"]
    assert results == [1, 1]
    assert background.finished == len(calls) == 1
    background.close()


def test_an_impatient_caller_does_not_wait_for_background_work() -> None:
    background = Background()
    go_on = threading.Event()
    assert background.get("key", 1, lambda: go_on.wait(30), patient=False) is None
    go_on.set()
    assert background.get("after", 1, lambda: "done") == "done"
    assert background.get("key", 1, lambda: False, patient=False) is True
    background.close()


def test_slow_background_work_is_not_waited_for() -> None:
    background = Background()
    go_on = threading.Event()
    assert background.get("key", 1, lambda: go_on.wait(30)) is None
    assert background.get("key", 1, lambda: go_on.wait(30)) is None
    go_on.set()
    assert background.get("after", 1, lambda: "done") == "done"
    assert background.get("key", 1, lambda: False) is True
    background.close()
