"""Gradients that no zero_grad throws away between two steps: `facts["kept_gradients"]`."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam

import gradscope
from loops import batches, loss_of, net

ALL = ["0", "2", "4"]


def kept(path, model, step, steps=10, **settings):
    with gradscope.watch(model, path, **settings) as scope:
        for batch in batches(steps):
            step(batch)
    return scope.run.facts.get("kept_gradients", [])


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("parts", [1, 3])
def test_gradients_that_are_never_zeroed_are_told(tmp_path, parts, clip):
    model = net()
    optimizer = Adam(model.parameters(), 1e-3)

    def step(batch):
        for _ in range(parts):
            loss_of(model, batch).backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()

    assert kept(tmp_path / "run", model, step) == ALL


def before_forward(model, optimizer, batch):
    optimizer.zero_grad()
    loss_of(model, batch).backward()
    optimizer.step()


def before_backward(model, optimizer, batch):
    loss = loss_of(model, batch)
    optimizer.zero_grad(set_to_none=False)
    loss.backward()
    optimizer.step()


def after_step(model, optimizer, batch):
    loss_of(model, batch).backward()
    optimizer.step()
    model.zero_grad()


def by_data(model, optimizer, batch):
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.data.zero_()
    loss_of(model, batch).backward()
    optimizer.step()


def decayed(model, optimizer, batch):
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad *= 0.9
    loss_of(model, batch).backward()
    optimizer.step()


def in_parts(model, optimizer, batch):
    for _ in range(2):
        loss_of(model, batch).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)


def in_closure(model, optimizer, batch):
    def closure():
        optimizer.zero_grad(set_to_none=False)
        loss = loss_of(model, batch)
        loss.backward()
        return loss

    optimizer.step(closure)


@pytest.mark.parametrize(
    "step",
    [before_forward, before_backward, after_step, by_data, decayed, in_parts, in_closure],
)
def test_of_gradients_that_are_thrown_away_or_changed_nothing_is_told(tmp_path, step):
    model = net()
    optimizer = SGD(model.parameters(), 0.01)
    assert kept(tmp_path / "run", model, lambda batch: step(model, optimizer, batch)) == []


def test_a_critic_that_is_zeroed_after_the_generators_backward_keeps_nothing(tmp_path):
    parts = nn.ModuleDict({"g": net(), "d": nn.Linear(2, 1).double()})
    make, judge = parts["g"], parts["d"]
    optimizers = SGD(make.parameters(), 0.01), SGD(judge.parameters(), 0.01)

    def step(batch):
        x, _ = batch
        optimizers[0].zero_grad(set_to_none=False)
        judge(make(x)).mean().backward()
        optimizers[0].step()
        optimizers[1].zero_grad(set_to_none=False)
        (judge(make(x).detach()).mean() - judge(torch.randn(4, 2).double()).mean()).backward()
        optimizers[1].step()

    assert kept(tmp_path / "run", parts, step, 20) == []


def test_only_layers_of_the_optimizer_that_is_never_zeroed_are_named(tmp_path):
    model = net()
    body = SGD(model[0].parameters(), 0.01)
    head = SGD([*model[2].parameters(), *model[4].parameters()], 0.01)

    def step(batch):
        head.zero_grad()
        loss_of(model, batch).backward()
        head.step()
        body.step()

    assert kept(tmp_path / "run", model, step) == ["0"]


def test_steps_between_which_nothing_is_recorded_are_no_evidence(tmp_path):
    model = net()
    optimizer = SGD(model.parameters(), 0.01)

    def step(batch):
        loss_of(model, batch).backward()
        optimizer.step()

    assert kept(tmp_path / "a", model, step, 12, every=5) == []
    assert kept(tmp_path / "b", model, step, 45, every=5) == ALL
