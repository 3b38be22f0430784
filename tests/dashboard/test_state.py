"""The address of the page."""

from __future__ import annotations

import pytest

pytest.importorskip("dash", reason="dash is not installed")
from gradscope_dashboard.state import State, parse


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
