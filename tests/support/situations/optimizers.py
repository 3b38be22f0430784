"""Optimizers that do not step once after each backward, on all parameters."""

from __future__ import annotations

from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.optim import LBFGS, SGD, Adam

from loops import batches, loss_of, net


def one_for_each_half():
    model = net()
    optimizers = SGD(model[:2].parameters(), lr=0.1), Adam(model[2:].parameters(), lr=0.01)
    yield model
    for batch in batches(3):
        loss_of(model, batch).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


def frozen_at_first():
    model = net()
    model[0].requires_grad_(False)
    optimizer = SGD(model[2:].parameters(), lr=0.1)
    yield model
    for i, batch in enumerate(batches(4)):
        if i == 2:
            model[0].requires_grad_(True)
            optimizer.add_param_group({"params": model[0].parameters()})
        loss_of(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()


def saved_after_each_step():
    """With plain SGD torch makes a step on zeros each time it is asked for the state."""
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    yield model
    for batch in batches(3):
        loss_of(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
        get_state_dict(model, optimizer)


def several_evaluations_a_step():
    model = net()
    optimizer = LBFGS(model.parameters(), max_iter=3)
    yield model
    for batch in batches(3):

        def closure(batch=batch):
            optimizer.zero_grad()
            loss = loss_of(model, batch)
            loss.backward()
            return loss

        optimizer.step(closure)
