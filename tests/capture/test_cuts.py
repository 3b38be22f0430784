"""Cutting shortcuts and branches, against nets with an explicit detach(); path lengths."""

from __future__ import annotations

import copy
from math import comb

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import gradscope


class Block(nn.Module):
    def __init__(self, width=8, norm=False, dropout=0.0):
        super().__init__()
        self.fc1, self.act = nn.Linear(width, width), nn.Tanh()
        self.norm = nn.BatchNorm1d(width) if norm else nn.Identity()
        self.drop = nn.Dropout(dropout)
        self.fc2 = nn.Linear(width, width)
        self.detached = ""

    def forward(self, x):
        branch = self.fc2(self.drop(self.norm(self.act(self.fc1(x)))))
        if self.detached == "shortcuts":
            x = x.detach()
        if self.detached == "branches":
            branch = branch.detach()
        return F.relu(x + branch)


class Checkpointed(Block):
    reentrant = False

    def forward(self, x):
        return x + checkpoint(super().forward, x, use_reentrant=self.reentrant)


def net(blocks=4, block=Block, **settings):
    torch.manual_seed(0)
    inner = [block(**settings) for _ in range(blocks)]
    return nn.Sequential(nn.Linear(5, 8), *inner, nn.Linear(8, 3)).double()


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


@pytest.mark.parametrize("what", ["shortcuts", "branches"])
def test_the_probe_equals_the_net_with_an_explicit_detach(what, batch):
    model = net()
    twin = copy.deepcopy(model)
    for block in twin[1:-1]:
        block.detached = what
    frame = gradscope.cut(model, F.cross_entropy, batch, what)
    whole = gradscope.cut(model, F.cross_entropy, batch)
    outputs = {}
    for name, module in twin.named_modules():
        module.register_forward_hook(lambda m, a, o, name=name: outputs.update({name: o}))
    loss = F.cross_entropy(twin(batch[0]), batch[1])
    for row in frame.itertuples():
        (g,) = torch.autograd.grad(loss, outputs[row.name], retain_graph=True, allow_unused=True)
        expected = 0.0 if g is None else g.norm().item()
        assert row.cut_signal_norm == pytest.approx(expected, rel=1e-12)
    np.testing.assert_array_equal(frame.signal_norm, whole.signal_norm)


def test_the_user_s_own_gradients_are_the_same_to_the_bit(batch, tmp_path):
    bare, watched = net(norm=True), net(norm=True)
    F.cross_entropy(bare(batch[0]), batch[1]).backward()
    record(watched, batch, tmp_path / "run", cut="shortcuts")
    for a, b in zip(bare.parameters(), watched.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


def test_a_probe_leaves_gradients_buffers_mode_and_random_state_alone(batch):
    model = net(norm=True, dropout=0.5)
    F.cross_entropy(model(batch[0]), batch[1]).backward()
    before = copy.deepcopy(model.state_dict())
    gradients = [p.grad.clone() for p in model.parameters()]
    state = torch.random.get_rng_state()
    gradscope.cut(model, F.cross_entropy, batch)
    gradscope.path_lengths(model, F.cross_entropy, batch)
    assert torch.equal(state, torch.random.get_rng_state())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    for p, gradient in zip(model.parameters(), gradients, strict=True):
        assert torch.equal(p.grad, gradient)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


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


def test_paths_of_all_lengths_add_up_to_the_gradient(batch):
    model = net(blocks=6)
    frame = gradscope.path_lengths(model, F.cross_entropy, batch)
    assert frame.branches.tolist() == list(range(7))
    assert frame.paths.tolist() == [comb(6, k) for k in range(7)]
    assert frame.share.sum() == pytest.approx(1, rel=1e-12)


def test_the_shortest_path_is_the_gradient_with_branches_cut(batch):
    model = net(blocks=5)
    twin = copy.deepcopy(model)
    for block in twin[1:-1]:
        block.detached = "branches"
    x = batch[0].clone().requires_grad_()
    F.cross_entropy(twin(x), batch[1]).backward()
    frame = gradscope.path_lengths(model, F.cross_entropy, batch)
    assert frame.norm[0] == pytest.approx(x.grad.norm().item(), rel=1e-9)


def test_the_longest_path_is_the_gradient_with_shortcuts_cut(batch):
    model = net(blocks=5)
    twin = copy.deepcopy(model)
    for block in twin[1:-1]:
        block.detached = "shortcuts"
    x = batch[0].clone().requires_grad_()
    F.cross_entropy(twin(x), batch[1]).backward()
    frame = gradscope.path_lengths(model, F.cross_entropy, batch)
    assert frame.norm.iloc[-1] == pytest.approx(x.grad.norm().item(), rel=1e-9)


def test_linear_scalar_blocks_have_binomial_path_lengths():
    # y = x + w x, n times: the gradient is (1 + w)^n, its part over k branches comb(n, k) w^k
    class Scalar(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(1, 1, bias=False)
            nn.init.constant_(self.fc.weight, 0.5)

        def forward(self, x):
            return x + self.fc(x)

    model = nn.Sequential(*[Scalar() for _ in range(8)]).double()
    batch = torch.ones(1, 1, dtype=torch.float64), None
    frame = gradscope.path_lengths(model, lambda out, _: out.sum(), batch)
    expected = [comb(8, k) * 0.5**k for k in range(9)]
    np.testing.assert_allclose(frame.norm, expected, rtol=1e-12)
    np.testing.assert_allclose(frame.share, np.array(expected) / 1.5**8, rtol=1e-12)


def test_a_plain_net_has_no_paths_to_count(batch):
    with pytest.raises(gradscope.GradscopeError, match="no residual block"):
        gradscope.path_lengths(nn.Linear(5, 3).double(), F.cross_entropy, batch)
