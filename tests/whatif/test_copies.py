"""Copies of a model with its optimizer: the same state, of parameters of their own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import learners
from gradscope.whatif.copies import copied

OPTIMIZERS = {
    "momentum": learners.momentum,
    "AdamW": lambda model: torch.optim.AdamW(model.parameters(), lr=1e-2),
    "LBFGS": lambda model: torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=2),
    "groups": lambda model: torch.optim.SGD(
        [{"params": model.last.parameters(), "lr": 0.1}, {"params": model.first.parameters()}],
        lr=0.01,
        momentum=0.5,
    ),
}


def step(model, optimizer, data):
    def evaluate():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(data[0]), data[1])
        loss.backward()
        return loss

    optimizer.step(evaluate)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_copy_goes_on_as_the_original_does(name):
    data = learners.batches(6)
    model = learners.plain(4)
    optimizer = OPTIMIZERS[name](model)
    for batch in data[:3]:
        step(model, optimizer, batch)
    twin, steps, _ = copied(model, optimizer, None)
    for batch in data[3:]:
        step(model, optimizer, batch)
        step(twin, steps, batch)
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert a is not b
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_what_a_scheduler_put_into_the_optimizer_stays_there():
    model = learners.plain(4)
    optimizer = learners.momentum(model)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.1)
    step(model, optimizer, learners.batches(1)[0])
    schedule.step()
    twin, steps, _ = copied(model, optimizer, None)
    before = model.first.weight.clone()
    step(twin, steps, learners.batches(1)[0])
    assert torch.equal(model.first.weight, before)
    assert not torch.equal(twin.first.weight, before)
    assert steps.param_groups[0]["lr"] == pytest.approx(0.005)


def test_a_result_that_the_model_keeps_does_not_keep_it_from_being_copied():
    class Keeping(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.seen = nn.Linear(8, 4), []

        def forward(self, x):
            self.last = self.fc(x)
            self.seen.append(self.last)
            return self.last

    model = Keeping()
    optimizer = learners.momentum(model)
    step(model, optimizer, learners.batches(1)[0])
    twin, _, _ = copied(model, optimizer, None)
    torch.testing.assert_close(twin.last, model.last)
    assert not twin.last.requires_grad


def test_a_loss_with_a_state_is_copied_and_one_without_is_not():
    class Centres(nn.Module):
        def __init__(self):
            super().__init__()
            self.centres = nn.Parameter(torch.zeros(4, 4))

    model, loss = learners.plain(3), Centres()
    optimizer = torch.optim.SGD([*model.parameters(), *loss.parameters()], lr=0.1)
    _, steps, twin = copied(model, optimizer, loss)
    assert twin.centres is not loss.centres
    assert steps.param_groups[0]["params"][-1] is twin.centres
    assert copied(model, optimizer, step)[2] is step
