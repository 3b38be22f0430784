"""Small tensors on the CPU are read together by the C kernel, once proven that they may wait."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gradscope
from gradscope.capture.reading import waiting
from gradscope.measure.cpu_kernel import Kernel, kernel
from gradscope.measure.entries import Wanted
from gradscope.measure.sums import SQUARES
from reference import Reference


@pytest.fixture(autouse=True)
def compiled():
    if kernel() is None:
        pytest.skip("no C compiler on this machine: everything is read by torch, at once")


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        return x + self.fc2(F.relu(self.fc1(x)))


def net(*layers):
    torch.manual_seed(0)
    made = layers or (nn.Linear(4, 6), nn.ReLU(inplace=True), Residual(), nn.Linear(6, 3))
    return nn.Sequential(*made)


def train(model, steps):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for i in range(steps):
        torch.manual_seed(i)
        x, y = torch.randn(8, 4), torch.randint(0, 3, (8,))
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


def pivot(run, metric):
    return run.frame().pivot(index="step", columns="name", values=metric)


def test_what_waits_is_read_as_what_is_read_at_once_and_as_autograd_has_it(tmp_path, monkeypatch):
    model, twin, other = net(), net(), net()
    together = []
    read_all = Kernel.read_all
    monkeypatch.setattr(
        Kernel,
        "read_all",
        lambda self, form, tensors, row: (
            together.append(len(tensors)) or read_all(self, form, tensors, row)
        ),
    )
    with gradscope.watch(model, tmp_path / "late") as late:
        train(model, 4)
    assert len(together) > 3 and max(together) > 4, "several are read by one call"
    monkeypatch.setattr(waiting.Trust, "may_try", lambda self, place: False)
    with gradscope.watch(other, tmp_path / "at once") as at_once:
        train(other, 4)
    for table in ("layer_readings", "shortcut_readings"):
        expected, found = getattr(at_once.run, table), getattr(late.run, table)
        for column in expected.columns:
            np.testing.assert_allclose(found[column], expected[column], rtol=1e-6, atol=1e-9)

    train(twin, 3)
    torch.manual_seed(3)
    x, y = torch.randn(8, 4), torch.randint(0, 3, (8,))
    reference = Reference(twin, lambda m: F.cross_entropy(m(x), y))
    read = late.run.frame().query("step == 3").set_index("name")
    for name in ("2.fc1", "2.fc2", "3"):
        assert read.signal_norm[name] == pytest.approx(reference.signal(name), rel=1e-5)
        assert read.grad_norm[name] == pytest.approx(reference.gradient(name), rel=1e-5)


def test_what_is_overwritten_for_once_is_nan_with_one_note(tmp_path):
    model, overwrite = net(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), []

    def hook(_, args):
        if overwrite:
            with torch.no_grad():
                args[0].mul_(1.0)

    model[1].register_forward_pre_hook(hook)
    said = pytest.warns(gradscope.GradscopeWarning, match="in step 3 .* overwritten")
    with said, gradscope.watch(model, tmp_path / "run") as scope:
        train(model, 3)
        overwrite.append(True)
        train(model, 2)
    read = pivot(scope.run, "activation_norm")
    assert np.isnan(read.loc[3, "0"])
    assert read.drop(index=3).notna().all(axis=None)
    assert read.loc[3, ["1", "2"]].notna().all()
    assert len(scope.run.notes) == 1


def test_what_is_overwritten_as_the_structure_changes_is_nan_with_one_note(tmp_path):
    class Later(nn.Module):
        begun = False

        def forward(self, x):
            return x.relu_() if self.begun else x

    model, norms = net(nn.Linear(4, 6), Later(), nn.Linear(6, 3)), []
    model[0].register_forward_hook(lambda _, __, out: norms.append(out.norm().item()))
    with gradscope.watch(model, tmp_path / "run") as scope:
        train(model, 4)
        model[1].begun = True
        with pytest.warns(gradscope.GradscopeWarning, match="in step 4 .* overwritten"):
            train(model, 1)
        train(model, 3)
        model[1].begun = False
        train(model, 2)
    read = pivot(scope.run, "activation_norm")["0"]
    assert np.isnan(read[4])
    np.testing.assert_allclose(read.drop(4), np.delete(norms, 4), rtol=1e-5)
    assert len(scope.run.notes) == 1


def test_a_gradient_that_is_overwritten_in_the_last_step_is_nan_with_a_note(tmp_path):
    class InPlace(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient.mul_(2) if overwrite else gradient * 2

    class DoublingTanh(nn.Module):
        def forward(self, x):
            return InPlace.apply(x)

    model, overwrite = net(nn.Linear(4, 6), DoublingTanh(), nn.Linear(6, 3)), []
    with gradscope.watch(model, tmp_path / "run") as scope:
        train(model, 3)
        overwrite.append(True)
        with pytest.warns(gradscope.GradscopeWarning, match="in step 3 .* overwritten"):
            train(model, 1)
    read = pivot(scope.run, "signal_norm")
    assert np.isnan(read.loc[3, "1"])
    assert read.drop(index=3).notna().all(axis=None)
    assert len(scope.run.notes) == 1


def test_what_is_overwritten_behind_autograds_back_is_read_at_once(tmp_path):
    class Silent(nn.Module):
        def forward(self, x):
            y = x * 1.0
            x.data.mul_(3)
            return y

    model, norms = net(nn.Linear(4, 6), Silent(), nn.Linear(6, 3)), []
    model[0].register_forward_hook(lambda _, __, out: norms.append(out.norm().item()))
    with gradscope.watch(model, tmp_path / "run") as scope:
        train(model, 4)
    np.testing.assert_allclose(pivot(scope.run, "activation_norm")["0"], norms, rtol=1e-5)
    assert scope.run.notes == []


def test_no_more_is_held_on_to_than_a_bounded_number_of_elements(tmp_path, monkeypatch):
    held = []
    read = waiting.Waiting.read

    def noting(self):
        held.append(sum(known.elements for known in self._known))
        read(self)

    monkeypatch.setattr(waiting.Waiting, "read", noting)
    model = nn.Sequential(*[nn.Linear(1024, 1024) for _ in range(20)])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with gradscope.watch(model, tmp_path / "run"):
        for _ in range(3):
            model(torch.randn(32, 1024)).square().mean().backward()
            optimizer.step()
    assert Kernel.most < max(held) <= Kernel.most + Kernel.small


@pytest.mark.parametrize("in_place", [False, True])
def test_what_is_too_large_to_wait_is_read_right_once_its_place_is_known(
    tmp_path, monkeypatch, in_place
):
    monkeypatch.setattr(Kernel, "small", 8)
    layers = nn.Linear(4, 6), nn.ReLU(inplace=in_place), Residual(), nn.Linear(6, 3)
    model, twin = net(*layers), copy.deepcopy(net(*layers))
    with gradscope.watch(model, tmp_path / "run") as scope:
        train(model, 4)
    assert scope.run.notes == []
    train(twin, 3)
    torch.manual_seed(3)
    x, y = torch.randn(8, 4), torch.randint(0, 3, (8,))
    outputs = {}
    for name, module in twin.named_modules():
        module.register_forward_hook(lambda _, __, out, n=name: outputs.update({n: out.clone()}))
    reference = Reference(twin, lambda m: F.cross_entropy(m(x), y))
    read = scope.run.frame().query("step == 3").set_index("name")
    for name in ("0", "2.fc1", "2.fc2", "3"):
        assert read.grad_norm[name] == pytest.approx(reference.gradient(name), rel=1e-5)
        assert read.activation_norm[name] == pytest.approx(outputs[name].norm().item(), rel=1e-5)
        if name != "0" or not in_place:  # its output is gone there
            assert read.signal_norm[name] == pytest.approx(reference.signal(name), rel=1e-5)
    assert read.zero_fraction["1"] == pytest.approx((outputs["1"] == 0).double().mean().item())
    (split,) = scope.run.shortcut_readings.query("step == 3").itertuples()
    both = split.cosine * split.shortcut_norm * split.branch_norm
    total = split.shortcut_norm**2 + 2 * both + split.branch_norm**2
    assert total == pytest.approx(reference.signal("1") ** 2, rel=1e-4)


def test_a_spread_that_is_0_is_read_as_0_and_a_small_one_keeps_its_digits(tmp_path):
    model = net(nn.Linear(4, 6), nn.Identity(), nn.Linear(6, 3))
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.fill_(0.1)
        model[2].weight.mul_(1e-6)
        model[2].bias.fill_(5.0)
    outputs = []
    model[2].register_forward_hook(lambda _, __, out: outputs.append(out.detach().double()))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with gradscope.watch(model, tmp_path / "run") as scope:
        for _ in range(3):
            F.cross_entropy(model(torch.randn(8, 4)), torch.zeros(8).long()).backward()
            optimizer.step()
    read = pivot(scope.run, "activation_std")
    assert (read["0"] == 0).all()
    expected = [float(out.std(correction=0)) for out in outputs]
    np.testing.assert_allclose(read["2"], expected, rtol=1e-5)


def test_none_waits_longer_than_when_it_was_tried(tmp_path):
    """What is overwritten must not, and what waits is then read in larger groups, later ones."""

    class Unit(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16)
            self.conv2, self.bn2 = nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16)
            self.relu = nn.ReLU(inplace=True)

        def forward(self, x):
            y = self.relu(self.bn1(self.conv1(x)))
            return self.relu(self.bn2(self.conv2(y)) + x)

    torch.manual_seed(0)
    size = (2, 16, 22, 22)  # so that a group is full before a ReLU overwrites what was in it
    units = nn.Sequential(nn.Conv2d(3, 16, 1), *[Unit() for _ in range(9)])
    optimizer = torch.optim.SGD(units.parameters(), lr=1e-3)
    with gradscope.watch(units, tmp_path / "run") as scope:
        for _ in range(5):
            units(torch.randn(2, 3, *size[2:])).square().mean().backward()
            optimizer.step()
    assert scope.run.notes == []
    assert scope.run.frame().activation_norm.notna().all()


def test_a_place_is_tried_again_where_its_trial_was_thrown_away_with_its_step():
    trust = waiting.Trust()
    wanted = Wanted(SQUARES, torch.float32, torch.float32, 4, 0.0, 0.0)
    thrown_away = waiting.Known("place", None, wanted, (), waits=True)
    again = waiting.Known("place", None, wanted, (), waits=True)
    assert trust.may_try(thrown_away) and not trust.may_try(again)
    del thrown_away
    assert trust.may_try(again)
    sums = np.ones((2, 5))
    trust.judge(waiting.Trial(trust, again, 0, 1), sums)
    assert trust.known == {"place": again}
