"""Activations that overwrite their inputs, from which their slopes follow: against autograd."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gradscope
from gradscope.measure.activations import sample, steepest


def net(kind=nn.SiLU, width=12, **settings):
    torch.manual_seed(0)
    layers = nn.Linear(6, width), nn.LayerNorm(width), kind(**settings), nn.Linear(width, 3)
    return nn.Sequential(*layers)


def batch(samples=16):
    torch.manual_seed(1)
    return 3 * torch.randn(samples, 6), torch.randint(0, 3, (samples,))


def recorded(model, x, y, path, steps=3):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(model, path) as scope:
        for _ in range(steps):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    return scope.run


@pytest.mark.parametrize("way", ["kernel", "torch"])
@pytest.mark.parametrize("samples", [20, 1000], ids=["small", "sampled"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [nn.SiLU, nn.Hardswish, nn.Mish])
def test_an_activation_that_overwrites_its_input_is_as_steep_as_one_that_does_not(
    kind, dtype, samples, way, tmp_path, monkeypatch
):
    if way == "torch":
        monkeypatch.setattr("gradscope.capture.reading.sheets.kernel_for", lambda x: None)
    x, y = batch(samples)
    x, model = x.to(dtype), net(kind, width=48).to(dtype)
    in_place = copy.deepcopy(model)
    in_place[2].inplace = True
    with torch.no_grad():
        z = model[:2](x)
    apart = recorded(model, x, y, tmp_path / "apart")
    run = recorded(in_place, x, y, tmp_path / "in place")
    assert run.notes == []
    columns = ["derivative_mean", "zero_fraction", "saturated_fraction"]
    np.testing.assert_array_equal(run.frame()[columns], apart.frame()[columns])

    some = sample(z).float().requires_grad_()
    (slope,) = torch.autograd.grad(kind()(some).sum(), some)
    flat = slope.abs() < 0.1 * steepest(kind())
    read = run.frame().query("step == 0").set_index("name").loc["2"]
    assert read.derivative_mean == pytest.approx(slope.abs().mean().item(), rel=1e-5)
    assert read.saturated_fraction == pytest.approx(flat.double().mean().item(), abs=1e-6)


def test_an_activation_may_be_told_to_overwrite_its_input_while_it_is_watched(tmp_path):
    model, (x, y) = net(), batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with gradscope.watch(model, tmp_path / "run") as scope:
        for in_place in (False, True, False, True, True, True):
            model[2].inplace = in_place
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    steepness = scope.run.frame().query("name == '2'").derivative_mean
    assert steepness.notna().all() and steepness.nunique() == 1


def test_the_slope_is_never_read_of_what_a_hook_has_put_in_place_of_the_input(tmp_path):
    model = net(inplace=True)
    model[2].register_forward_pre_hook(lambda _, args: 3 * args[0])
    run = recorded(model, *batch(), tmp_path / "run")
    assert run.frame().query("name == '2'").derivative_mean.isna().all()
