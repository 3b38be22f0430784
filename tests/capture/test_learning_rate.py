"""`learning_rate` of `run.steps`: what optimizers stepped with."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import StepLR

import gradscope
from loops import batches, loss_of, net


def rates(model, optimizers, path, steps=4, after=lambda scope: None, **settings):
    with gradscope.watch(model, path, **settings) as scope:
        for batch in batches(steps):
            loss_of(model, batch).backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            after(scope)
    return scope.run.steps.learning_rate.tolist()


def test_it_is_that_of_each_step_under_a_schedule(tmp_path):
    model = net()
    optimizer = SGD(model.parameters(), lr=0.4)
    schedule = StepLR(optimizer, 1, 0.5)
    found = rates(model, [optimizer], tmp_path / "run", after=lambda scope: schedule.step())
    assert found == [0.4, 0.2, 0.1, 0.05]


def test_of_several_groups_and_optimizers_it_is_the_largest_that_trains_the_model(tmp_path):
    model, other = net(), nn.Linear(2, 2)
    optimizer = SGD(
        [
            {"params": [*model[0].parameters()], "lr": 0.1},
            {"params": [*model[2].parameters()], "lr": 0.3},
            {"params": [*other.parameters()], "lr": 7.0},
        ]
    )
    second = Adam(model[4].parameters(), lr=0.2)
    assert rates(model, [optimizer, second], tmp_path / "run", 2) == [0.3, 0.3]
    assert rates(model, [second], tmp_path / "second", 2) == [0.2, 0.2]


def test_zero_is_zero(tmp_path):
    model = net()
    assert rates(model, [SGD(model.parameters(), lr=0.0)], tmp_path / "run", 2) == [0.0, 0.0]


def test_a_tensor_on_the_cpu_is_read_as_it_was_at_the_step(tmp_path):
    model = net()
    rate = torch.tensor(0.25)
    optimizer = SGD(model.parameters(), lr=rate, foreach=False)
    found = rates(
        model, [optimizer], tmp_path / "run", 3, after=lambda scope: rate.mul_(0.5) and None
    )
    assert found == [0.25, 0.125, 0.0625]


def test_what_the_user_logs_under_the_name_takes_its_place(tmp_path):
    model = net()
    found = rates(
        model,
        [SGD(model.parameters(), lr=0.1)],
        tmp_path / "run",
        2,
        after=lambda scope: scope.log(learning_rate=5),
    )
    assert found == [5, 5]


def test_optimizers_that_tell_nothing_have_none(tmp_path):
    model = net()
    with gradscope.watch(model, tmp_path / "run") as scope:
        for batch in batches(2):
            loss_of(model, batch).backward()
            with torch.no_grad():
                for p in model.parameters():
                    p -= 0.1 * p.grad
                    p.grad = None
    found = scope.run.steps.learning_rate
    assert len(found) == 2
    assert all(map(math.isnan, found))


def test_between_recorded_steps_nothing_is_read(tmp_path):
    model = net()
    optimizer = SGD(model.parameters(), lr=0.4)
    schedule = StepLR(optimizer, 1, 0.5)
    found = rates(model, [optimizer], tmp_path / "run", 4, lambda scope: schedule.step(), every=2)
    assert found == pytest.approx([0.4, 0.1])


def test_a_rate_on_a_device_is_not_waited_for():
    from gradscope.capture.training.learning_rate import learning_rate

    on_device = torch.tensor(0.1, device="meta")  # on which .item() raises
    found = learning_rate([{"lr": on_device}, {"lr": 0.2}, {"lr": on_device * 2}, {"lr": None}])
    assert found.device.type == "meta"
    assert learning_rate([{"lr": None}, {}]) is None
