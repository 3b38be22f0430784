"""Trainings that are interrupted while gradscope runs, and go on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import gradscope
from injected import Injected
from loops import batches, loss_of, net
from reference import Reference


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.branch = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8))

    def forward(self, x):
        return x + self.branch(x)


class Both:
    """An optimizer for each half of the parameters."""

    def __init__(self, parameters):
        first, second = parameters[: len(parameters) // 2], parameters[len(parameters) // 2 :]
        self.optimizers = torch.optim.AdamW(first, 1e-3), torch.optim.SGD(second, 1e-2)

    def zero_grad(self):
        for optimizer in self.optimizers:
            optimizer.zero_grad()

    def step(self):
        for optimizer in self.optimizers:
            optimizer.step()


def plain():
    model = net()
    return model, torch.optim.SGD(model.parameters(), lr=0.01)


def residual():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), Block(), nn.ReLU(), Block(), nn.Linear(8, 2)).double()
    return model, Both(list(model.parameters()))


@pytest.mark.parametrize(("make", "stride"), [(plain, 53), (residual, 301)])
def test_an_interrupt_at_any_line_of_ours_costs_its_own_step_alone(make, stride, tmp_path):
    """What the user is shown has no error of ours in it, either."""
    model, optimizer = make()

    def train(batch):
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    references = []
    with gradscope.watch(model, tmp_path / "run") as scope:
        train(batches(1)[0])
        is_done = True
        while is_done:
            interrupt = Injected(stride * len(references), KeyboardInterrupt)
            batch, after = batches(2 * len(references) + 2)[-2:]
            try:
                with interrupt.on():
                    train(batch)
            except KeyboardInterrupt as error:
                assert error.__context__ is None
            is_done = interrupt.is_done
            references.append(Reference(model, lambda m, batch=after: loss_of(m, batch)))
            train(after)
            scope.log(trial=len(references) - 1)
    run = scope.run
    assert run.notes == []
    frame = run.frame()
    steps = run.steps.set_index("trial").step
    assert len(references) > 30
    for trial, reference in enumerate(references):
        read = frame[frame.step == steps[trial]].set_index("name")
        for name in read.index:
            (output,) = reference.outputs[name]
            assert read.signal_norm[name] == pytest.approx(reference.signal(name), rel=1e-9)
            assert read.activation_norm[name] == pytest.approx(output.norm().item(), rel=1e-9)
            if np.isfinite(read.weight_norm[name]):
                assert read.grad_norm[name] == pytest.approx(reference.gradient(name), rel=1e-9)
