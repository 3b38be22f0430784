"""Optimizers that report nothing: master weights, steps on `p.data`, here and on an accelerator."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import gradscope
from gradscope.capture.training import parameter_readings
from reference import root_sum_square

STEPS = 4


def net(place):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2)).to(place, torch.float64)


def batches():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(6, 5, generator=generator, dtype=torch.float64) for _ in range(STEPS)]


class Master:
    """Weights of more digits beside the model's, as apex and ZeRO keep them."""

    def __init__(self, model):
        self.model = model
        self.weights = [p.detach().clone().requires_grad_() for p in model.parameters()]
        self.optimizer = torch.optim.Adam(self.weights, lr=0.05)

    def step(self):
        for p, q in zip(self.model.parameters(), self.weights, strict=True):
            q.grad = p.grad.clone()
        self.optimizer.step()
        for p, q in zip(self.model.parameters(), self.weights, strict=True):
            p.data.copy_(q.data)


class OnData:
    """Stochastic gradient descent by hand."""

    def __init__(self, model):
        self.model = model

    def step(self):
        for p in self.model.parameters():
            p.data.add_(p.grad.data, alpha=-0.05)


class Replacing(OnData):
    def step(self):
        for p in self.model.parameters():
            p.data = p.data - 0.05 * p.grad.data


def drop(model):
    for p in model.parameters():
        p.grad = None


def zero(model):
    for p in model.parameters():
        if p.grad is not None:
            p.grad.zero_()


def zero_unseen(model):
    for p in model.parameters():
        if p.grad is not None:
            p.grad.data.zero_()


def train(model, optimizer, clear, when, each):
    """Train, and report each step to `each`, with the weights before; `clear` the gradients."""
    for x in batches():
        x = x.to(model[0].weight.device)
        if when == "first":
            clear(model)
        outputs = [model(part) for part in x.split(3)]
        if when == "after the forward":
            clear(model)
        for output in outputs:
            output.square().sum().backward()
        before = copy.deepcopy(model)
        optimizer.step()
        each(before, model, 2 * torch.cat(outputs).detach())
        if when == "last":
            clear(model)


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(
    params=["cpu", "as an accelerator", pytest.param("cuda", marks=[pytest.mark.gpu, needs_cuda])]
)
def device(request, monkeypatch):
    """Where the values cannot be had without waiting for it, or the CPU."""
    if request.param == "as an accelerator":
        monkeypatch.setattr(parameter_readings, "_on_host", lambda tensors: False)
        return "cpu", True
    return request.param, request.param == "cuda"


@pytest.mark.parametrize("when", ["first", "after the forward", "last"])
@pytest.mark.parametrize("clear", [drop, zero, zero_unseen])
@pytest.mark.parametrize("make", [Master, OnData, Replacing])
@pytest.mark.filterwarnings("ignore::gradscope.GradscopeWarning")
def test_every_step_is_seen_or_said_not_to_be(make, clear, when, device, tmp_path):
    (place, is_accelerator), expected = device, []
    model = net(place)

    def each(before, after, signal):
        pairs = zip(before[0].parameters(), after[0].parameters(), strict=True)
        expected.append(
            (
                root_sum_square(p.grad for p in after.parameters()),
                root_sum_square(before[0].parameters()),
                root_sum_square(q.detach() - p.detach() for p, q in pairs),
                signal.norm().item(),
            )
        )

    with gradscope.watch(model, tmp_path / "run") as scope:
        train(model, make(model), clear, when, each)
    run = scope.run
    (note, *others) = run.notes
    if is_accelerator and clear is zero_unseen and make is not Replacing:
        assert len(run.steps) == 0
        assert "p.grad = None" in note and "torch.optim.Optimizer" in note
        return
    assert not others and "reports no steps" in note
    gradients, weights, updates, signals = np.transpose(expected)
    assert run.steps.step.tolist() == list(range(STEPS))
    np.testing.assert_allclose(run.steps.grad_norm, gradients, rtol=1e-12)
    np.testing.assert_allclose(run.matrix("weight_norm")[1][:, 0], weights, rtol=1e-12)
    np.testing.assert_allclose(run.matrix("update_norm")[1][:, 0], updates, rtol=1e-9)
    np.testing.assert_allclose(run.matrix("signal_norm")[1][:, 2], signals, rtol=1e-9)


class Told(torch.optim.Optimizer):
    """What the notes advise: a subclass, with the model's parameters."""

    def __init__(self, model):
        super().__init__(model.parameters(), {})
        self.inner = Master(model)

    def step(self):
        self.inner.step()


def test_the_remedy_that_is_told_works(device, tmp_path):
    model, clipped = net(device[0]), []
    with gradscope.watch(model, tmp_path / "run") as scope:
        train(
            model,
            Told(model),
            zero_unseen,
            "first",
            lambda _, after, __: clipped.append(
                root_sum_square(p.grad for p in after.parameters())
            ),
        )
    assert scope.run.notes == []
    np.testing.assert_allclose(scope.run.steps.clipped_grad_norm, clipped, rtol=1e-12)
