"""Where memory for a reading is short, the reading is NaN and told of; the training goes on."""

from __future__ import annotations

import sys
import threading
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import nn

import gradscope
from gradscope.measure import tensors
from ways import interpreted  # noqa: F401

pytestmark = pytest.mark.filterwarnings("ignore::gradscope.GradscopeWarning")

FUNCTIONS = (
    *("empty", "empty_like", "zeros", "zeros_like", "ones", "full", "tensor", "stack", "cat"),
    *("sub", "mul", "div", "mean", "sign", "norm", "_foreach_norm", "_foreach_copy_"),
    *("_foreach_sub_", "square", "sum", "where", "dot"),
)
METHODS = (
    *("clone", "float", "double", "to", "abs", "square", "mul", "sub", "div", "sum", "mean"),
    *("contiguous", "reshape", "sqrt_", "mul_", "new_empty", "new_zeros", "__mul__", "__sub__"),
)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.act, self.fc, self.norm, self.head = (
            nn.Linear(6, 40),
            nn.ReLU(),
            nn.Linear(40, 40),
            nn.LayerNorm(40),
            nn.Linear(40, 3),
        )

    def forward(self, x):
        x = self.act(self.stem(x))
        return self.head(self.norm(x + self.fc(x)))


class Shortage:
    """Memory that ends at the n-th call that gradscope makes to have some, for `last` calls."""

    def __init__(
        self, first: float, last: int = 1, error: type[Exception] = torch.OutOfMemoryError
    ):
        self.calls, self.raised = 0, 0
        self._range = range(first, first + last) if first != np.inf else range(0)
        self._error, self._thread = error, threading.get_ident()

    def wrap(self, function):
        def call(*args, **kwargs):
            name = sys._getframe(1).f_globals.get("__name__", "")
            if name.startswith("gradscope.") and threading.get_ident() == self._thread:
                self.calls += 1
                if self.calls - 1 in self._range:
                    self.raised += 1
                    raise self._error("CUDA out of memory. Tried to allocate 28.00 GiB.")
            return function(*args, **kwargs)

        return call

    @contextmanager
    def there(self):
        with pytest.MonkeyPatch.context() as patched:
            for name in FUNCTIONS:
                patched.setattr(torch, name, self.wrap(getattr(torch, name)))
            for name in METHODS:
                patched.setattr(torch.Tensor, name, self.wrap(getattr(torch.Tensor, name)))
            patched.setattr(torch.linalg, "vector_norm", self.wrap(torch.linalg.vector_norm))
            yield


def train(folder, shortage, updates=True):
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(1)
    data = [torch.randn(5, 6, generator=generator) for _ in range(4)]
    scope = gradscope.watch(model, folder, updates=updates)
    for step, x in enumerate(data):
        with shortage.there():
            model(x).square().mean().backward()
            if step % 2:
                nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            optimizer.zero_grad()
    with shortage.there():
        scope.close()
    return scope.run, [p.detach().clone() for p in model.parameters()]


@pytest.fixture(params=["torch", "C"])
def way(request, monkeypatch):
    if request.param == "torch":
        monkeypatch.setattr(tensors, "kernel", lambda: None)


def check(run, whole, shortage):
    """Check that readings are those with enough memory, or NaN, and that one note says why.

    Return whether memory was short at all.
    """
    assert set(run.steps.step) <= set(whole.steps.step)
    assert run.layers.name.tolist() == whole.layers.name.tolist()
    rows = np.isin(whole.steps.step, run.steps.step)
    for column in whole.layer_readings.columns[2:]:
        found, expected = run.matrix(column)[1], whole.matrix(column)[1][rows]
        known = ~np.isnan(found)
        np.testing.assert_allclose(found[known], expected[known], rtol=1e-6, err_msg=column)
    for column in whole.shortcut_readings.columns[2:] if len(run.shortcuts) else ():
        found, expected = run.shortcut_matrix(column)[1], whole.shortcut_matrix(column)[1][rows]
        known = ~np.isnan(found)
        np.testing.assert_allclose(found[known], expected[known], rtol=1e-6, err_msg=column)
    for column in ("grad_norm", "clipped_grad_norm"):
        found, expected = run.steps[column], whole.steps[column][rows].reset_index(drop=True)
        known = found.notna()
        np.testing.assert_allclose(found[known], expected[known], rtol=1e-6, err_msg=column)
    if not shortage.raised:
        return False
    notes = [note for note in run.notes if note not in whole.notes]
    assert len(notes) == 1 and "no memory" in notes[0] and 'updates="sampled"' in notes[0], notes
    return True


def test_memory_that_is_short_at_any_moment_costs_a_reading(tmp_path, way):
    counted = Shortage(np.inf)
    whole, weights = train(tmp_path / "whole", counted)
    assert counted.calls > 30
    was_short = 0
    for place in np.unique(np.linspace(0, counted.calls - 1, 24).astype(int)):
        shortage = Shortage(int(place))
        run, found = train(tmp_path / f"{place}", shortage)
        assert all(map(torch.equal, found, weights)), place
        was_short += check(run, whole, shortage)
    assert was_short > 15  # the first run asked for more: it looked around


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
@pytest.mark.parametrize("updates", [True, "sampled"])
def test_memory_that_is_short_for_good_costs_the_readings_alone(tmp_path, way, error, updates):
    counted = Shortage(np.inf)
    whole, weights = train(tmp_path / "whole", counted, updates)
    shortage = Shortage(0, 10**9, error)
    run, found = train(tmp_path / "short", shortage, updates)
    assert all(map(torch.equal, found, weights))
    notes = [note for note in run.notes if note not in whole.notes]
    assert 1 <= len(notes) <= 2  # of copies, and of all others
    assert all("no memory" in note for note in notes)
    assert np.isnan(run.matrix("update_norm")[1]).all()


def test_of_a_copy_that_there_is_no_memory_for_the_update_alone_is_not_known(tmp_path, monkeypatch):
    from gradscope.capture.training.parameters import Parameters

    whole, weights = train(tmp_path / "whole", Shortage(np.inf))
    copy_of, taken = Parameters.copy_of, []

    def short(self, weight, place):
        taken.append(place)
        if len(taken) == 2 * len(weights) + 2:  # in the second step; the first one copies twice
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 28.00 GiB.")
        return copy_of(self, weight, place)

    monkeypatch.setattr(Parameters, "copy_of", short)
    run, found = train(tmp_path / "short", Shortage(np.inf))
    assert all(map(torch.equal, found, weights))
    update = run.matrix("update_norm")[1]
    missing = np.isnan(update).all(axis=1)
    assert missing.tolist() == [False, True, False, False]
    layers = run.layer_readings.drop(columns="update_norm")
    assert layers.equals(whole.layer_readings.drop(columns="update_norm"))
    np.testing.assert_array_equal(update[~missing], whole.matrix("update_norm")[1][~missing])
    (note,) = run.notes
    assert "MB of weights" in note and 'updates="sampled"' in note


def test_room_for_what_an_optimizer_makes_is_looked_for_before_its_first_step_alone(
    tmp_path, monkeypatch
):
    from gradscope.capture.training import parameter_readings

    monkeypatch.setattr(parameter_readings, "leaves_room", lambda weights, optimizer: False)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)  # it makes nothing at all
    with (
        pytest.warns(gradscope.errors.GradscopeWarning, match="too little beside"),
        gradscope.watch(model, tmp_path / "run") as scope,
    ):
        for _ in range(4):
            optimizer.zero_grad()
            model(torch.randn(5, 6)).square().mean().backward()
            optimizer.step()
    known = ~np.isnan(scope.run.matrix("update_norm")[1]).all(axis=1)
    assert known.tolist() == [False, True, True, True]
