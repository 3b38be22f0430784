"""Several backwards a step."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import SGD, Adam

from loops import batches, loss_of, net


def micro_batches():
    model = net()
    optimizer = Adam(model.parameters(), lr=0.01)
    yield model
    for i, batch in enumerate(batches(6)):
        (loss_of(model, batch) / 2).backward()
        if i % 2:
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            optimizer.zero_grad()


def two_losses_on_one_graph():
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    yield model
    for x, _ in batches(3):
        out = model(x)
        out.square().mean().backward(retain_graph=True)
        out.abs().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def clipped_after_each_backward():
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    yield model
    for batch in batches(3):
        for part in (batch, batch):
            loss_of(model, part).backward()
            nn.utils.clip_grad_value_(model.parameters(), 1e-2)
        optimizer.step()
        optimizer.zero_grad()


def all_forwards_before_any_backward():
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    yield model
    data = batches(6)
    for some in (data[:3], data[3:]):
        for loss in reversed([loss_of(model, batch) for batch in some]):
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def one_sample_at_a_time():
    model = net()
    optimizer = Adam(model.parameters(), lr=0.01)
    yield model
    for x, y in batches(3):
        losses = [loss_of(model, (x[i : i + 1], y[i : i + 1])) for i in range(5)]
        torch.stack(losses).sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def handed_over_by_hand():
    """As a pipeline does, and a loss that is taken of one part of the batch after the other."""
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    yield model
    for x, y in batches(3):
        hidden = model[:4](x)
        cut = hidden.detach().requires_grad_()
        for part, target in zip(cut.chunk(3), y.chunk(3), strict=True):
            nn.functional.cross_entropy(model[4](part), target, reduction="sum").backward()
        hidden.backward(cut.grad)
        optimizer.step()
        optimizer.zero_grad()


def for_some_parameters_only():
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    yield model
    for x, y in batches(3):
        out = model(x)
        out.square().mean().backward(inputs=[*model[:2].parameters()], retain_graph=True)
        nn.functional.cross_entropy(out, y).backward(inputs=[*model[2:].parameters()])
        optimizer.step()
        optimizer.zero_grad()
