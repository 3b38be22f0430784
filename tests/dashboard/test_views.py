"""The views in a real browser: what they draw, for everybody, of runs of all kinds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import synthetic

pytest.importorskip("dash", reason="dash is not installed")
from gradscope_dashboard import Server
from pages import Browse, Serve, drawn

THEMES = ["light", "dark"]


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize(
    ("view", "graph", "label"),
    [
        ("depth", "profile", "Depth profile"),
        ("net", None, "Net"),
        ("flow", "flow", "Flow map"),
        ("heatmap", "heatmap", "Layers × steps"),
        ("speed", "speed", "Speed of learning"),
        ("why", "ledger", "Why"),
        ("training", "training", "Training"),
        ("sweep", "sweep", "Sweep"),
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
    place = page.locator("#net" if view == "net" else f"#{graph or 'layer-table'}")
    for run in ("plain-50", "residual-50"):
        place.get_by_text(run).first.wait_for()
    page.get_by_role("button", name=label, exact=True, pressed=True).wait_for()
    page.get_by_text("vanishing", exact=False).first.wait_for()
    assert page.locator("html").get_attribute("data-theme") == theme
    assert broken_rules(page) == []


def broken_rules(page: Any) -> list[tuple[str, str]]:
    """Return the rules of accessibility that the page breaks, each with a place."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is missing")
    rules = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}
    violations = axe.Axe().run(page, options=rules).response["violations"]
    return [(broken["id"], broken["nodes"][0]["html"]) for broken in violations]


@pytest.mark.parametrize("theme", THEMES)
def test_what_opens_breaks_no_accessibility_rule_on_a_phone(
    dashboard: Serve, browse: Browse, tmp_path: Path, theme: str
) -> None:
    for number in range(5):
        synthetic.write_run(tmp_path / f"run-{number}", n_layers=9, n_steps=30)
    url = dashboard(tmp_path)
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True}
    page = browse(f"{url}?view=layers&theme={theme}&run=*", bypass_csp=True, **phone)
    page.get_by_role("button", name="blocks.0.fc").first.tap()
    drawn(page, "history")
    page.locator("#runs-panel > summary").tap()
    page.get_by_text("5 of 5 runs").wait_for()
    page.wait_for_function("document.querySelectorAll('#cards article.is-bad').length === 5")
    page.locator("article summary").first.tap()
    page.get_by_text("Would it help?").first.wait_for()
    assert broken_rules(page) == []
    page.get_by_text("Would it help?").first.tap()
    page.get_by_text("To try what would help").wait_for()
    assert broken_rules(page) == []


def test_what_another_step_leaves_as_it_is_is_not_sent_again(
    browse: Browse, server: Server
) -> None:
    page = browse(f"{server.url}?metric=update_ratio")
    drawn(page, "profile")
    page.get_by_role("button", name="Pause").click()
    page.get_by_text("Resume").wait_for()
    page.wait_for_load_state("networkidle")

    def of(output: str) -> Any:
        return page.expect_response(lambda got: f"..{output}." in (got.request.post_data or ""))

    with of("cards.children") as cards, of("profile.figure") as profile:
        page.get_by_role("button", name="Step before").click()
    assert cards.value.status == 204
    assert profile.value.status == 200


def test_the_page_fits_a_phone(browse: Browse, server: Server) -> None:
    page = browse(server.url, viewport={"width": 390, "height": 844})
    drawn(page, "profile")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_the_first_chart_lies_within_a_laptops_screen(browse: Browse, server: Server) -> None:
    page = browse(server.url)
    drawn(page, "profile")
    page.get_by_text("healthy", exact=False).first.wait_for()
    box = page.locator("#profile .main-svg").first.bounding_box()
    assert box["y"] + box["height"] <= 900


def test_the_page_says_how_far_the_runs_are(browse: Browse, server: Server) -> None:
    page = browse(server.url)
    page.get_by_text("finished, step 59").wait_for()


def test_cards_say_the_verdict_about_each_run(browse: Browse, server: Server) -> None:
    page = browse(server.url)
    page.locator("article", has_text="plain-50").get_by_text("Gradient flow: vanishing").wait_for()
    page.locator("article", has_text="residual-50").get_by_text("Gradient flow: healthy").wait_for()
    page.locator("article summary", has_text="finding").first.click()
    page.locator("article li", has_text="Try:").first.wait_for()


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


@pytest.mark.slow
@pytest.mark.parametrize("run", ["empty", "one-step", "all-nan", "exploded", "broken"])
def test_a_run_that_went_wrong_has_a_sensible_page(
    browse: Browse, dashboard: Serve, odd_runs: Path, run: str
) -> None:
    words = {
        "empty": "No step has been recorded yet.",
        "one-step": "finished, step 0",
        "all-nan": "at step 4: 3 of 5 layers NaN",
        "exploded": "at step 0: 3 of 5 layers inf",
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
    page.get_by_text(f'gradscope.watch(model, "{tmp_path}').wait_for()


@pytest.mark.slow
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
