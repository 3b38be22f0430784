"""The strips of runs: what they say, in which order, and that nothing of it is cut off."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import synthetic

pytest.importorskip("dash", reason="dash is not installed")
from gradscope.diagnosis.comparison import Observation
from gradscope_dashboard import Server
from gradscope_dashboard.views.training import told
from pages import Browse, Serve, drawn

PHONE = {"width": 390, "height": 844}
CUT = """() => [...document.querySelectorAll('#cards :is(p, span), #view .caption')]
    .filter(e => e.offsetParent && getComputedStyle(e).overflow !== 'visible')
    .filter(e => e.scrollHeight > e.clientHeight + 2 || e.scrollWidth > e.clientWidth + 1)
    .map(e => e.innerText)"""


def test_no_sentence_is_cut_on_a_phone_and_the_rest_opens(browse: Browse, server: Server) -> None:
    page = browse(server.url, viewport=PHONE)
    drawn(page, "profile")
    page.locator("article .summary").nth(1).wait_for()
    assert page.evaluate(CUT) == []
    rest = page.locator("#profile-caption .rest")
    assert rest.is_hidden()
    page.locator("#profile-caption").get_by_role("button", name="more").click()
    assert "Each run is divided by" in rest.inner_text()
    page.locator("#profile-caption").get_by_role("button", name="less", expanded=True).click()
    assert rest.is_hidden()
    said = page.locator("article details > p").first
    assert said.is_hidden()
    page.locator("article summary").first.click()
    said.wait_for()
    assert page.evaluate(CUT) == []


def test_of_many_runs_the_training_tells_where_depth_harms_most() -> None:
    def seen(kind: str, sentence: str, *losses: float) -> Observation:
        return Observation(kind, ("a", "b"), sentence, dict(zip("xy", losses, strict=False)))

    pairs = [seen("degradation", f"{deep} is worse.", 1.0, deep) for deep in (2.0, 4.0, 3.0)]
    shortcut = seen("shortcuts", "They carry much.")
    assert told([shortcut, *pairs], 4) == [shortcut.sentence, *(pair.sentence for pair in pairs)]
    assert told([shortcut, *pairs], 5) == ["4.0 is worse.", "So it is with 2 more pairs of runs."]
    assert told(pairs[:1], 5) == ["2.0 is worse."]
    assert told([shortcut], 5) == []


def test_of_many_runs_it_is_counted_what_they_are_and_the_farthest_off_is_first(
    browse: Browse, dashboard: Serve, tmp_path: Path
) -> None:
    by = [0.0, 0.88, 1.86, 0.61, 0.0, 30.0, 0.0]
    for number, jump in enumerate(by):
        update = np.full((30, 9), 8e-3)
        update[2, 4] += 8 * jump
        path = tmp_path / f"run-{number}"
        synthetic.write_with(path, 9, 30, update_norm=update, weight_norm=8.0)
    page = browse(f"{dashboard(tmp_path)}?run=*")
    page.locator("#cards > p", has_text="Of 7 runs: 7 with a healthy gradient flow.").wait_for()
    names = page.locator("article h2").all_inner_texts()
    assert names[:4] == ["run-5", "run-2", "run-1", "run-3"]
