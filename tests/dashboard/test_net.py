"""The net with its gradient on it: opened and closed by mouse and keyboard."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from synthetic import write_with

pytest.importorskip("dash", reason="dash is not installed")
from gradscope_dashboard import Server
from pages import Browse, Serve, drawn


def test_a_block_opens_and_closes_by_the_keyboard(browse: Browse, server: Server) -> None:
    page = browse(f"{server.url}?view=net&run=residual-50")
    block = page.get_by_role("button", name="blocks.3: gradient")
    block.focus()
    page.keyboard.press("Enter")
    page.get_by_role("button", name="blocks.3.fc: gradient").wait_for()
    page.get_by_role("button", name="close blocks.3", exact=True).press("Space")
    page.get_by_role("button", name="blocks.3.fc: gradient").wait_for(state="detached")
    assert "blocks.3" in page.evaluate("document.activeElement.getAttribute('aria-label')")


def test_a_click_on_a_layer_opens_its_history(browse: Browse, server: Server) -> None:
    page = browse(f"{server.url}?view=net")
    page.get_by_role("button", name="head: gradient").first.click()
    drawn(page, "history")
    assert "layer=head" in page.url


def test_what_a_finding_names_is_marked_with_its_verdict(browse: Browse, server: Server) -> None:
    page = browse(f"{server.url}?view=net&run=plain-50")
    page.locator("#net .words.alarm", has_text="vanishing: blocks.0.fc and ").wait_for()
    assert page.locator("#net .ring.alarm").count() == 1
    ringed = page.locator("#net .module:has(.ring)")
    assert "blocks.0: gradient" in ringed.get_attribute("aria-label")
    page.get_by_text("the least arrives at blocks.0.fc: 900 billion × less.").wait_for()


def test_the_marked_layer_is_in_sight_on_a_phone(
    browse: Browse, dashboard: Serve, tmp_path: Path
) -> None:
    signal = np.r_[np.full(60, 1.0), np.zeros(9), np.full(30, 1.0)]
    run = write_with(tmp_path / "run", 99, 30, signal_norm=signal)
    page = browse(f"{dashboard(run.path)}?view=net", viewport={"width": 390, "height": 844})
    page.locator("#net .words.alarm", has_text="disconnected: ").wait_for()
    box = page.locator("#net .worst").bounding_box()
    assert 0 <= box["x"] <= 390 - box["width"]
