"""Several backwards a step."""

from __future__ import annotations

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
