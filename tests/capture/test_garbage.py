"""Python's garbage collection is put off while a graph is tapped, and is the user's otherwise."""

from __future__ import annotations

import contextlib
import gc
import sys

import pytest
import torch

import gradscope
from loops import batches, loss_of, net


@pytest.fixture(autouse=True)
def thresholds():
    before, was_on = gc.get_threshold(), gc.isenabled()
    yield
    gc.set_threshold(*before)
    (gc.enable if was_on else gc.disable)()


def train(tmp_path, steps=4):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with gradscope.watch(model, tmp_path / "run"):
        for batch in batches(steps):
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            optimizer.step()


def frames():
    frame = sys._getframe(1)
    while frame is not None:
        yield frame.f_code.co_filename
        frame = frame.f_back


def test_no_collection_begins_while_hooks_are_put_on_a_graph(tmp_path):
    begun = []

    def note(phase, told):
        if phase == "start":
            begun.append(any(name.endswith("gradscope/autograd/graph.py") for name in frames()))

    gc.callbacks.append(note)
    try:
        gc.set_threshold(20, 5, 5)  # a collection every twenty objects
        train(tmp_path)
    finally:
        gc.callbacks.remove(note)
    assert len(begun) > 20 and not any(begun)


@pytest.mark.parametrize("is_on", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_collection_is_on_or_off_as_the_user_has_it(is_on, fails, tmp_path, monkeypatch):
    if fails:

        def fail(*_):
            raise RuntimeError("injected")

        monkeypatch.setattr("gradscope.capture.forwards.gradients.Gradients.tap", fail)
    (gc.enable if is_on else gc.disable)()
    with pytest.warns(UserWarning) if fails else contextlib.nullcontext():
        train(tmp_path)
    assert gc.isenabled() is is_on
