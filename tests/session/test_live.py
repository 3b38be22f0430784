"""A scope and a run in a notebook: what their cells show, while it trains and afterwards."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from torch import nn

import gradscope


class Handle:
    """What `IPython.display.display(..., display_id=True)` returns, as far as it is used."""

    def __init__(self, shown: str) -> None:
        self.shown = [shown]

    def update(self, shown: str) -> None:
        self.shown.append(shown)


@pytest.fixture
def cells(monkeypatch):
    """The cells that were shown, by IPython's own names; a notebook runs in test_notebook.py."""
    found: list[Handle] = []
    display = ModuleType("IPython.display")

    def show(shown: str, display_id: bool) -> Handle:
        assert display_id
        found.append(Handle(shown))
        return found[-1]

    display.display, display.HTML = show, str
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    return found


def train(scope, model, steps=4):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 5)).square().sum().backward()
        optimizer.step()
        scope.flush()


def net():
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2))


def test_its_cell_follows_the_recording_and_closes_with_it(cells, tmp_path, monkeypatch):
    monkeypatch.setattr("gradscope.session.live.REFRESH_SECONDS", 0.0)
    model = net()
    scope = gradscope.watch(model, tmp_path / "a <b>")
    scope._ipython_display_()
    (cell,) = cells
    assert "recording" in cell.shown[0] and "a &lt;b&gt;" in cell.shown[0]
    train(scope, model)
    assert "<th>last step</th><td>3</td>" in cell.shown[-1]
    norm = scope.run.steps.grad_norm.iloc[-1]
    assert f"{norm:.3g}" in cell.shown[-1]
    scope.close()
    assert "<td>closed</td>" in cell.shown[-1]
    verdict = gradscope.diagnose(gradscope.load(scope.path)).verdict
    assert f"<th>verdict</th><td>{verdict}" in cell.shown[-1]


def test_a_notebook_that_is_gone_ends_no_training(cells, tmp_path, monkeypatch):
    def refuse(self, shown):
        raise ConnectionError("no kernel")

    monkeypatch.setattr(Handle, "update", refuse)
    model = net()
    with gradscope.watch(model, tmp_path / "run") as scope:
        scope._ipython_display_()
        train(scope, model)
    assert scope.run.notes == [] and len(scope.run.steps) == 4


def test_a_closed_scope_and_a_run_are_shown_with_their_verdict(cells, tmp_path):
    model = net()
    with gradscope.watch(model, tmp_path / "run") as scope:
        train(scope, model)
    verdict = gradscope.diagnose(scope.run).verdict
    scope._ipython_display_()
    for shown in (cells[0].shown[0], scope._repr_html_(), scope.run._repr_html_()):
        assert f"<th>verdict</th><td>{verdict}" in shown
