"""Work beside the page."""

from __future__ import annotations

import threading

import pytest

pytest.importorskip("dash", reason="dash is not installed")
from gradscope_dashboard.background import Background


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
