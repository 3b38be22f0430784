"""Shortcuts and branches cut while recording, against nets with an explicit detach()."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gradscope
from detachable import Checkpointed, net


@pytest.fixture
def batch():
    torch.manual_seed(1)
    return torch.randn(10, 5, dtype=torch.float64), torch.randint(0, 3, (10,))


def record(model, batch, path, steps=1, **settings):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(model, path, **settings) as scope:
        for _ in range(steps):
            optimizer.zero_grad()
            F.cross_entropy(model(batch[0]), batch[1]).backward()
            optimizer.step()
    return scope.run


@pytest.mark.parametrize("what", ["shortcuts", "branches"])
def test_a_cut_equals_the_net_with_an_explicit_detach(what, batch, tmp_path):
    model = net()
    twin = copy.deepcopy(model)
    for block in twin[1:-1]:
        block.detached = what
    frame = record(model, batch, tmp_path / "cut", cut=what).frame()
    expected = record(twin, batch, tmp_path / "detached").frame()
    np.testing.assert_array_equal(frame.cut_signal_norm, expected.signal_norm.fillna(0.0))


def test_the_user_s_own_gradients_are_the_same_to_the_bit(batch, tmp_path):
    bare, watched = net(norm=True), net(norm=True)
    F.cross_entropy(bare(batch[0]), batch[1]).backward()
    record(watched, batch, tmp_path / "run", cut="shortcuts")
    for a, b in zip(bare.parameters(), watched.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


def test_cuts_are_taken_every_tenth_recorded_step_by_default(batch, tmp_path):
    run = record(net(), batch, tmp_path / "run", steps=42, every=2, cut="shortcuts")
    cut = run.frame().dropna(subset=["cut_signal_norm"]).step.unique()
    assert cut.tolist() == [0, 20, 40]


def test_several_outputs_are_cut_as_one_loss(batch, tmp_path):
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.a, self.b = net(2), nn.Linear(3, 2), nn.Linear(3, 2)
            self.double()

        def forward(self, x):
            x = self.body(x)
            return {"a": self.a(x), "b": self.b(x), "unused": x * 2}

    torch.manual_seed(0)
    model = Heads()
    twin = copy.deepcopy(model)
    for block in twin.body[1:-1]:
        block.detached = "shortcuts"
    norms = {}
    for name, m, settings in (("cut", model, {"cut": "shortcuts"}), ("detached", twin, {})):
        optimizer = torch.optim.SGD(m.parameters(), lr=0.1)
        with gradscope.watch(m, tmp_path / name, **settings) as scope:
            out = m(batch[0])
            (out["a"].square().sum() + out["b"].sum()).backward()
            optimizer.step()
        norms[name] = scope.run.frame()
    np.testing.assert_allclose(norms["cut"].cut_signal_norm, norms["detached"].signal_norm, 1e-12)


def test_cutting_under_checkpointing_without_reentry(batch, tmp_path):
    model = net(block=Checkpointed)
    frame = record(model, batch, tmp_path / "run", cut="shortcuts").frame()
    inner = frame[frame.name.str.contains("fc2")]
    assert inner.cut_signal_norm.notna().all()
    assert (inner.cut_signal_norm.iloc[:-1] < inner.signal_norm.iloc[:-1]).all()


def test_cutting_under_reentrant_checkpointing_is_refused(batch, tmp_path, monkeypatch):
    monkeypatch.setattr(Checkpointed, "reentrant", True)
    model = net(block=Checkpointed)
    bare = copy.deepcopy(model)
    with pytest.raises(gradscope.GradscopeError, match="use_reentrant=False"):
        gradscope.cut(model, F.cross_entropy, batch)
    with pytest.warns(gradscope.GradscopeWarning, match="use_reentrant=False"):
        run = record(model, batch, tmp_path / "run", steps=2, cut="shortcuts", cut_every=1)
    assert run.frame().cut_signal_norm.isna().all()
    F.cross_entropy(bare(batch[0]), batch[1]).backward()
    assert len(run.steps) == 2


@pytest.mark.parametrize(
    "settings, match",
    [
        ({"cut": "everything"}, "shortcuts, branches"),
        ({"cut": "shortcuts", "cut_every": 0}, "cut_every=0"),
        ({"cut": "shortcuts", "every": 4, "cut_every": 6}, "multiple of every=4"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, match, tmp_path):
    with pytest.raises(gradscope.GradscopeError, match=match):
        gradscope.watch(net(), tmp_path / "run", **settings)
