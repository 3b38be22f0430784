"""Optimizers that do not step once after each backward, on all parameters."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.optim import _apply_optimizer_in_backward
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


def steps_in_the_backward():
    model = net()
    _apply_optimizer_in_backward(SGD, list(model.parameters()), {"lr": 0.1})
    yield model
    for batch in batches(3):
        loss_of(model, batch).backward()


def line_search():
    model = net()
    optimizer = LBFGS(model.parameters(), max_iter=4, line_search_fn="strong_wolfe")
    yield model
    for batch in batches(3):

        def closure(batch=batch):
            optimizer.zero_grad()
            loss = loss_of(model, batch)
            loss.backward()
            return loss

        optimizer.step(closure)


def averages_swapped_in():
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    average = [p.detach().clone() for p in model.parameters()]
    yield model
    for batch in batches(4):
        loss_of(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
        for mean, p in zip(average, model.parameters(), strict=True):
            mean.lerp_(p.detach(), 0.1)
        for _ in range(2):  # in, and out again
            with torch.no_grad():
                loss_of(model, batch)
            for i, p in enumerate(model.parameters()):
                p.data, average[i] = average[i], p.data


def restored():
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    best = copy.deepcopy(model.state_dict())
    yield model
    for i, batch in enumerate(batches(6)):
        loss_of(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
        if i == 2:
            model.load_state_dict(best)
        if i == 4:
            model.load_state_dict(best, assign=True)
            optimizer = SGD(model.parameters(), lr=0.1)


def clipped_by_value_then_by_norm():
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    yield model
    for batch in batches(3):
        loss_of(model, batch).backward()
        nn.utils.clip_grad_value_(model.parameters(), 0.02)
        nn.utils.clip_grad_norm_(model.parameters(), 0.05)
        for p in model.parameters():
            p.grad = p.grad * 0.5  # a new tensor
        optimizer.step()
        optimizer.zero_grad()
