"""Gradients that a program keeps elsewhere than in `.grad`, as Megatron and DeepSpeed do."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

import gradscope
from gradscope.errors import GradscopeError, GradscopeWarning

STEPS, MICRO = 5, 3
MOST = 0.05
"""To which the norm of all gradients is clipped."""


def net(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2)).to(dtype)


def batches(dtype):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(MICRO, 6, 5, generator=generator).to(dtype) for _ in range(STEPS)]


class Buffers:
    """Adds gradients up in float32, in `main_grad`, and leaves none in `grad`."""

    def __init__(self, model):
        self.parameters = list(model.parameters())
        for p in self.parameters:
            p.main_grad = torch.zeros(p.shape)
            p.register_post_accumulate_grad_hook(self.add)

    @staticmethod
    def add(p):
        p.main_grad.add_(p.grad)
        p.grad = None

    def clip(self):
        norm = math.hypot(*(p.main_grad.norm().item() for p in self.parameters))
        for p in self.parameters:
            p.main_grad.mul_(min(1.0, MOST / norm))

    def zero_grad(self):
        for p in self.parameters:
            p.main_grad.zero_()


class OfTheModel(Buffers):
    """An optimizer of the parameters themselves."""

    def __init__(self, model):
        super().__init__(model)
        self.optimizer = torch.optim.Adam(self.parameters, lr=0.01)

    def step(self):
        self.clip()
        for p in self.parameters:
            p.grad = p.main_grad
        self.optimizer.step()
        for p in self.parameters:
            p.grad = None


class OfMasters(Buffers):
    """An optimizer of copies in float32."""

    def __init__(self, model):
        super().__init__(model)
        self.masters = [p.detach().float().clone().requires_grad_() for p in self.parameters]
        self.optimizer = torch.optim.Adam(self.masters, lr=0.01)

    def step(self):
        self.clip()
        for p, master in zip(self.parameters, self.masters, strict=True):
            master.grad = p.main_grad.clone()
        self.optimizer.step()
        for p, master in zip(self.parameters, self.masters, strict=True):
            p.data.copy_(master.data)


class OfOne(Buffers):
    """An optimizer of all of them in one tensor, as ZeRO keeps a process's part."""

    def __init__(self, model):
        super().__init__(model)
        whole = torch.cat([p.detach().float().reshape(-1) for p in self.parameters])
        self.whole = whole.requires_grad_()
        self.optimizer = torch.optim.Adam([self.whole], lr=0.01)
        places = torch.arange(len(whole)).split([p.numel() for p in self.parameters])
        for p, place in zip(self.parameters, places, strict=True):
            p.kept_in = lambda p=p, place=place: self.whole.grad[place].view(p.shape)

    def step(self):
        self.clip()
        self.whole.grad = torch.cat([p.main_grad.reshape(-1) for p in self.parameters])
        self.optimizer.step()
        sizes = [p.numel() for p in self.parameters]
        for p, part in zip(self.parameters, self.whole.detach().split(sizes), strict=True):
            p.data.copy_(part.view(p.shape))


def full_grad(parameter):
    """As DeepSpeed's safe_get_full_grad."""
    return parameter.kept_in()


def by_name(parameter):
    return parameter.main_grad


def train(model, make, dtype):
    """Train; return, for each step, the gradient's norms by layer and how far the weights moved."""
    optimizer = make(model)
    found = []
    for x in batches(dtype):
        twin = copy.deepcopy(model)
        for p in twin.parameters():
            p._post_accumulate_grad_hooks = None
            p.requires_grad_()
        whole = [torch.zeros(p.shape) for p in twin.parameters()]
        for part in x:
            loss = twin(part).square().mean()
            for total, g in zip(whole, torch.autograd.grad(loss, twin.parameters()), strict=True):
                total += g
            model(part).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        moved = [
            (p.detach().double() - q.detach().double()).norm().item()
            for p, q in zip(model.parameters(), twin.parameters(), strict=True)
        ]
        norms = [g.norm().item() for g in whole]
        found.append([[math.hypot(*some[i : i + 2]) for i in (0, 2)] for some in (norms, moved)])
    return np.array(found)


CASES = [
    (OfTheModel, torch.float32, "main_grad"),
    (OfTheModel, torch.float32, by_name),
    (OfMasters, torch.bfloat16, "main_grad"),
    (OfMasters, torch.bfloat16, by_name),
    (OfOne, torch.bfloat16, full_grad),
]


@pytest.mark.parametrize(("make", "dtype", "gradient"), CASES)
@pytest.mark.filterwarnings("ignore:gradscope. the optimizer has no parameter of the model itself")
def test_gradients_are_read_where_they_are_kept(make, dtype, gradient, tmp_path):
    bare = net(dtype)
    train(bare, make, dtype)
    model = net(dtype)
    with gradscope.watch(model, tmp_path / "run", gradient=gradient) as scope:
        truth = train(model, make, dtype)
    assert all(map(torch.equal, model.parameters(), bare.parameters()))
    run = scope.run
    assert run.steps.step.tolist() == list(range(STEPS))
    whole = np.hypot(*truth[:, 0].T)
    share = np.minimum(1, MOST / whole)
    read = {
        c: run.matrix(c)[1][:, [0, 2]] for c in ("grad_norm", "clipped_grad_norm", "update_norm")
    }
    np.testing.assert_allclose(read["clipped_grad_norm"], truth[:, 0] * share[:, None], rtol=1e-5)
    np.testing.assert_allclose(run.steps.clipped_grad_norm, whole * share, rtol=1e-5)
    np.testing.assert_allclose(read["update_norm"], truth[:, 1], rtol=1e-4)
    if gradient == "main_grad":
        np.testing.assert_allclose(read["grad_norm"], truth[:, 0], rtol=1e-5)
        np.testing.assert_allclose(run.steps.grad_norm, whole, rtol=1e-5)
    else:  # when a backward ends it is not asked: it may have to speak to other processes
        assert np.isnan(read["grad_norm"]).all()
    wrong = {"disconnected", "not-updated", "accumulated"}
    assert not wrong & gradscope.diagnose(run).verdicts


def test_without_a_getter_what_came_after_the_backward_is_not_taken_for_unclipped(tmp_path):
    model = net()
    told = pytest.warns(GradscopeWarning, match='gradient="main_grad"')
    with told, gradscope.watch(model, tmp_path / "run") as scope:
        truth = train(model, OfTheModel, torch.float32)
    share = np.minimum(1, MOST / np.hypot(*truth[:, 0].T))[:, None]
    read = {c: scope.run.matrix(c)[1][:, [0, 2]] for c in ("grad_norm", "clipped_grad_norm")}
    assert np.isnan(read["grad_norm"]).all()
    np.testing.assert_allclose(read["clipped_grad_norm"], truth[:, 0] * share, rtol=1e-5)
    assert len(scope.run.notes) == 1


def raises(parameter):
    raise KeyError("no such buffer")


@pytest.mark.parametrize(
    ("gradient", "why"),
    [
        (raises, "raised KeyError"),
        (lambda p: 3.0, "gave a float"),
        (lambda p: p.shape, "gave a Si"),
    ],
)
def test_a_getter_that_fails_is_told_of_once_and_left(gradient, why, tmp_path):
    bare = net()
    train(bare, OfTheModel, torch.float32)
    model = net()
    told = pytest.warns(GradscopeWarning, match=why)
    with told, gradscope.watch(model, tmp_path / "run", gradient=gradient) as scope:
        truth = train(model, OfTheModel, torch.float32)
    assert all(map(torch.equal, model.parameters(), bare.parameters()))
    assert len(scope.run.notes) == 2 and why in scope.run.notes[1]
    assert len(told) == 1
    for column in ("grad_norm", "clipped_grad_norm"):
        assert np.isnan(scope.run.matrix(column)[1]).all()
    np.testing.assert_allclose(
        scope.run.matrix("update_norm")[1][:, [0, 2]], truth[:, 1], rtol=1e-4
    )


def test_a_getter_that_has_nothing_for_some_leaves_these_out(tmp_path):
    model = net()
    some = [model[0].weight, model[0].bias]

    def first_alone(parameter):
        return parameter.main_grad if any(parameter is p for p in some) else None

    with gradscope.watch(model, tmp_path / "run", gradient=first_alone) as scope:
        train(model, OfTheModel, torch.float32)
    read = scope.run.matrix("clipped_grad_norm")[1]
    assert not np.isnan(read[:, 0]).any()
    assert np.isnan(read[:, 2]).all()


@pytest.mark.parametrize("gradient", [3, "not a name", torch.ones(3), ["main_grad"]])
def test_what_is_no_getter_is_refused(gradient, tmp_path):
    with pytest.raises(GradscopeError, match=r"watch\(gradient="):
        gradscope.watch(net(), tmp_path / "run", gradient=gradient)
    assert not (tmp_path / "run").exists()
