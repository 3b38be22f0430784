"""Models whose forward does more than to call one layer after the other."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import SGD
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from loops import batches, loss_of, net


def checkpointed():
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    yield model
    for x, y in batches(3):
        hidden = checkpoint_sequential(model[:4], 2, x, use_reentrant=False)
        out = checkpoint(model[4], hidden, use_reentrant=False)
        nn.functional.cross_entropy(out, y).backward()
        optimizer.step()
        optimizer.zero_grad()


def features_kept_by_a_hook():
    model = net()
    found: list[torch.Tensor] = []
    model[1].register_forward_hook(lambda module, args, out: found.append(out))
    optimizer = SGD(model.parameters(), lr=0.1)
    yield model
    for batch in batches(3):
        found.clear()
        (loss_of(model, batch) + 3 * sum(f.square().mean() for f in found)).backward()
        optimizer.step()
        optimizer.zero_grad()


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.cell, self.head = nn.Linear(10, 5), nn.Linear(5, 2)
        self.double()

    def forward(self, x):
        state = torch.zeros_like(x)
        for _ in range(4):
            state = torch.tanh(self.cell(torch.cat([x, state], 1)))
        return self.head(state)


def one_layer_many_times():
    model = Recurrent()
    optimizer = SGD(model.parameters(), lr=0.1)
    yield model
    for batch in batches(3):
        loss_of(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()


def evaluated_in_between():
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    yield model
    for batch in batches(3):
        loss_of(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            loss_of(model.eval(), batch)
        model.train()


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return -0.3 * gradient


class Domains(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.features, self.label, self.domain = nn.Linear(5, 6), nn.Linear(6, 2), nn.Linear(6, 2)
        self.double()

    def forward(self, x):
        x = torch.tanh(self.features(x))
        return self.label(x), self.domain(Reversed.apply(x))


def gradient_reversed():
    model = Domains()
    optimizer = SGD(model.parameters(), lr=0.1)
    yield model
    for x, y in batches(3):
        label, domain = model(x)
        cross_entropy = nn.functional.cross_entropy
        (cross_entropy(label, y) + cross_entropy(domain, 1 - y)).backward()
        optimizer.step()
        optimizer.zero_grad()


def gradients_changed_by_hooks():
    model = net()
    model[2].register_full_backward_hook(lambda module, taken, given: (taken[0] * 0.5,))
    model[3].register_full_backward_pre_hook(lambda module, given: (given[0] * 2,))
    for p in model.parameters():
        p.register_hook(lambda gradient: gradient.clamp(-0.01, 0.01))
    optimizer = SGD(model.parameters(), lr=0.1)
    yield model
    for batch in batches(3):
        loss_of(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()


def frozen_critic():
    model = nn.ModuleDict({"maker": net(), "critic": nn.Linear(2, 1).double()})
    optimizers = [SGD(part.parameters(), lr=0.1) for part in model.values()]
    yield model
    for x, _ in batches(3):
        model["critic"].requires_grad_(False)
        (-model["critic"](model["maker"](x))).mean().backward()
        optimizers[0].step()
        optimizers[0].zero_grad()
        model["critic"].requires_grad_(True)
        model["critic"](model["maker"](x).detach()).mean().backward()
        optimizers[1].step()
        optimizers[1].zero_grad()


def critic_frozen_for_one_of_two_losses():
    model = nn.ModuleDict({"maker": net(), "critic": nn.Linear(2, 1).double()})
    optimizer = SGD(model.parameters(), lr=0.1)
    yield model
    for x, _ in batches(3):
        model["critic"].requires_grad_(False)
        (-model["critic"](model["maker"](x))).mean().backward()
        model["critic"].requires_grad_(True)
        model["critic"](model["maker"](x).detach()).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
