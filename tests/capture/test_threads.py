"""Other threads that call the net while it trains: their calls are no part of the training's."""

from __future__ import annotations

import threading
from contextlib import contextmanager, nullcontext, suppress

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import gradscope
from gradscope.capture.training.parameters import Parameters
from loops import batches, loss_of, net


class Handover(nn.Module):
    """Lets the other of two threads go on, and waits for its turn."""

    def __init__(self):
        super().__init__()
        self.turns, self.is_on = {}, False

    def forward(self, x):
        if self.is_on:
            mine = threading.current_thread().name == "beside"
            self.turns[not mine].release()
            assert self.turns[mine].acquire(timeout=60)
        return x


@contextmanager
def calls_beside(model, x, context):
    """Call the net over and over in a thread, in turns with this one, within each other's calls."""
    handover = model[2]
    handover.turns = {beside: threading.Semaphore(0) for beside in (True, False)}
    handover.is_on, errors = True, []

    def run():
        try:
            assert handover.turns[True].acquire(timeout=60)
            while handover.is_on:
                with context():
                    model(x)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="beside")
    thread.start()
    yield
    handover.is_on = False
    handover.turns[True].release()
    thread.join()
    assert not errors


def train(model, path, beside, steps=6, steps_beside=4):
    handover = Handover()
    model = nn.Sequential(*model[:2], handover, *model[2:4], handover, model[4])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = batches(steps)
    x = torch.full((3, 5), 7.0, dtype=torch.float64)
    with gradscope.watch(model, path) as scope:
        for begin, stop, context in (
            (0, steps_beside, calls_beside(model, x, beside) if beside else nullcontext()),
            (steps_beside, steps, nullcontext()),
        ):
            with context:
                for batch in data[begin:stop]:
                    optimizer.zero_grad()
                    loss_of(model, batch).backward()
                    optimizer.step()
    return scope.run, [p.detach() for p in model.parameters()]


@pytest.mark.parametrize("beside", [torch.no_grad, torch.inference_mode])
def test_a_thread_that_infers_beside_the_training_leaves_no_trace(beside, tmp_path):
    alone, weights = train(net(), tmp_path / "alone", None)
    run, found = train(net(), tmp_path / "run", beside)
    assert all(map(torch.equal, found, weights))
    assert run.notes == []
    pd.testing.assert_frame_equal(run.frame(), alone.frame())


@pytest.mark.filterwarnings("ignore::gradscope.GradscopeWarning")
def test_calls_of_several_threads_with_gradients_are_not_told_apart(tmp_path):
    alone, weights = train(net(), tmp_path / "alone", None)
    run, found = train(net(), tmp_path / "run", nullcontext)
    assert all(map(torch.equal, found, weights))
    assert len(run.notes) == 1 and "several threads at once" in run.notes[0]
    for column in ("signal_norm", "activation_norm"):
        read, expected = run.matrix(column)[1], alone.matrix(column)[1]
        assert np.isnan(read[:4]).all()
        np.testing.assert_array_equal(read[5:], expected[5:])  # 4 may hold the rest of a call
    expected = alone.steps[["grad_norm", "clipped_grad_norm"]]
    pd.testing.assert_frame_equal(run.steps[["grad_norm", "clipped_grad_norm"]], expected)


@pytest.mark.parametrize("every", [1, 2])
def test_another_training_in_another_thread_leaves_no_trace(every, tmp_path, monkeypatch):
    """Nor are gradients looked at there, which torch may just then write: that crashes."""
    other, x = nn.Linear(5, 3), torch.randn(4, 5)
    others = torch.optim.SGD(other.parameters(), lr=0.1)
    looked, look = set(), Parameters.gradients

    def looks(parameters):
        looked.add(threading.get_ident())
        return look(parameters)

    def step():
        others.zero_grad()
        other(x).square().mean().backward()
        others.step()

    def step_beside(*_):
        thread = threading.Thread(target=step)
        thread.start()
        thread.join()

    def run(path, beside):
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with gradscope.watch(model, path, every=every) as scope:
            model[2].register_forward_hook(lambda *_: beside())
            for batch in batches(6):
                beside()
                optimizer.zero_grad()
                loss = loss_of(model, batch)
                loss.grad_fn.next_functions[0][0].register_hook(beside)
                beside()
                loss.backward()
                beside()
                optimizer.step()
        assert scope.run.notes == []
        return scope.run.frame()

    alone = run(tmp_path / "alone", lambda *_: None)
    monkeypatch.setattr(Parameters, "gradients", looks)
    pd.testing.assert_frame_equal(run(tmp_path / "beside", step_beside), alone)
    assert looked == {threading.get_ident()}


def test_a_thread_that_ended_within_a_forward_is_in_no_one_s_way(tmp_path):
    class Exiting(nn.Module):
        def forward(self, x):
            if threading.current_thread() is not threading.main_thread():
                raise SystemExit  # as sys.exit() does
            return x

    def call(model, x):
        with suppress(SystemExit):
            model(x)

    def run(path, ends):
        model = nn.Sequential(*net(), Exiting())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with gradscope.watch(model, path) as scope:
            for batch in batches(3):
                if ends:
                    thread = threading.Thread(target=call, args=(model, batch[0]))
                    thread.start()
                    thread.join()
                optimizer.zero_grad()
                loss_of(model, batch).backward()
                optimizer.step()
        assert scope.run.notes == []
        return scope.run.frame()

    pd.testing.assert_frame_equal(run(tmp_path / "a", True), run(tmp_path / "b", False))


def test_hooks_may_be_taken_out_while_a_call_begins(tmp_path):
    """As the thread that trains does after each recorded step, whatever others call just then."""
    model = net()
    scope = gradscope.watch(model, tmp_path / "run")
    handle = nn.modules.module.register_module_forward_pre_hook(lambda *_: scope.close())
    try:
        with pytest.warns(gradscope.GradscopeWarning, match="no step"):
            out = model(batches(1)[0][0])
    finally:
        handle.remove()
    assert out.shape == (12, 2)
