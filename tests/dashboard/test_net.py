"""The net with its gradient on it: opened and closed by mouse and keyboard."""

from __future__ import annotations

import pytest

pytest.importorskip("dash", reason="dash is not installed")
from gradscope_dashboard import Server
from pages import Browse, drawn


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


def test_the_starving_layer_is_pointed_at(browse: Browse, server: Server) -> None:
    page = browse(f"{server.url}?view=net")
    page.locator("#net text", has_text="blocks.0.fc: 900 billion × less").wait_for()
    page.get_by_text("blocks.0.fc starves: 900 billion × less.").wait_for()
    assert page.locator("#net .starved").count() == 1
