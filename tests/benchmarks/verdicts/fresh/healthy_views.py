"""Pictures compared: views made alike, classes by angle or prototype, few labels."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import images
from ..loops import adam, adamw, by_loss, sgd, supervised
from ..trainings import Scalars, Step, healthy
from .healthy_nets import encoder, follow, two_views


@healthy("queue of keys beside a slow encoder SGD")
def moco() -> tuple[nn.Module, Step]:
    query = encoder()
    model = nn.ModuleDict({"query": query, "key": copy.deepcopy(query).requires_grad_(False)})
    with torch.no_grad():
        queue = torch.cat([F.normalize(model["key"](two_views(n)[0]), dim=1) for n in range(8)])

    def loss_of(number: int) -> Tensor:
        nonlocal queue
        first, second, _ = two_views(number)
        q = F.normalize(model["query"](first), dim=1)
        with torch.no_grad():
            follow(model["key"], model["query"], 0.02)
            k = F.normalize(model["key"](second), dim=1)
        logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue.T], 1) / 0.2
        queue = torch.cat([k, queue])[:256]
        return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long))

    return model, by_loss(sgd(query, 0.06), loss_of)


@healthy("correlations of two views made the identity AdamW")
def barlow() -> tuple[nn.Module, Step]:
    model = nn.Sequential(encoder(48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 64))

    def loss_of(number: int) -> Tensor:
        first, second, _ = two_views(number, 64)
        one, two = (F.batch_norm(model(v), None, None, training=True) for v in (first, second))
        across = one.T @ two / len(one)
        off = across - torch.diag(across.diag())
        return (1 - across.diag()).square().sum() + 0.005 * off.square().sum()

    return model, by_loss(adamw(model, 1e-3), loss_of)


@healthy("prototypes to which views are assigned in turn SGD")
def swav() -> tuple[nn.Module, Step]:
    body, prototypes = encoder(), nn.Linear(32, 30, bias=False)
    model = nn.ModuleDict({"body": body, "prototypes": prototypes})

    def assigned(scores: Tensor) -> Tensor:
        share = (scores / 0.05).exp()
        for _ in range(3):
            share = share / share.sum(0, keepdim=True) / 30
            share = share / share.sum(1, keepdim=True) / len(share)
        return share * len(share)

    def loss_of(number: int) -> Tensor:
        first, second, _ = two_views(number, 64)
        with torch.no_grad():
            prototypes.weight.copy_(F.normalize(prototypes.weight, dim=1))
        scores = [prototypes(F.normalize(body(v), dim=1)) for v in (first, second)]
        wanted = [assigned(s.detach()) for s in scores]
        return (
            sum(-(wanted[1 - i] * (scores[i] / 0.1).log_softmax(1)).sum(1).mean() for i in (0, 1))
            / 2
        )

    return model, by_loss(sgd(model, 0.05), loss_of)


@healthy("angles between classes with a margin SGD")
def margins() -> tuple[nn.Module, Step]:
    class Arc(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.classes = encoder(), nn.Parameter(torch.randn(10, 32))

        def forward(self, x: Tensor) -> Tensor:
            return F.normalize(self.body(x), dim=1) @ F.normalize(self.classes, dim=1).T

    def arc(cosine: Tensor, y: Tensor) -> Tensor:
        angle = cosine.clamp(-1 + 1e-6, 1 - 1e-6).acos()
        return F.cross_entropy(16 * (angle + 0.2 * F.one_hot(y, 10)).cos(), y)

    model = Arc()
    return model, supervised(model, sgd(model, 0.05), images(32, 12, 1), arc)


@healthy("few examples told apart by prototypes Adam")
def prototypes() -> tuple[nn.Module, Step]:
    model = encoder()
    x, y = images(1024, 12, 1, most=1024)(0)
    by_class = [x[y == kind] for kind in range(10)]

    def loss_of(number: int) -> Tensor:
        kinds = torch.randperm(10)[:5].tolist()
        drawn = [by_class[k][torch.randperm(len(by_class[k]))[:8]] for k in kinds]
        told = model(torch.cat(drawn)).view(5, 8, -1)
        middle = told[:, :3].mean(1)
        far = torch.cdist(told[:, 3:].flatten(0, 1), middle).square()
        return F.cross_entropy(-far, torch.arange(5).repeat_interleave(5))

    return model, by_loss(adam(model, 1e-3), loss_of)


@healthy("pictures without labels named by the net itself SGD")
def fixmatch() -> tuple[nn.Module, Step]:
    model = encoder(10)
    known = images(16, 12, 1, most=64)

    def step_loss(number: int) -> tuple[Tensor, Tensor]:
        x, y = known(number)
        weak, strong, _ = two_views(number, 64)
        with torch.no_grad():
            sure, named = model(weak).softmax(1).max(1)
        told = F.cross_entropy(model(strong), named, reduction="none")
        own = F.cross_entropy(model(x), y)
        return own + (told * (sure > 0.8)).mean(), own

    optimizer = sgd(model, 0.03)

    def step(number: int) -> Scalars:
        optimizer.zero_grad()
        loss, own = step_loss(number)
        loss.backward()
        optimizer.step()
        return {"loss": loss.detach(), "labelled": own.detach(), "progress": own.detach()}

    return model, step


@healthy("noisy student and a mean of its weights Adam")
def mean_teacher() -> tuple[nn.Module, Step]:
    student = encoder(10)
    model = nn.ModuleDict({"student": student, "mean": copy.deepcopy(student)})
    model["mean"].requires_grad_(False)
    known = images(16, 12, 1, most=64)

    def loss_of(number: int) -> Tensor:
        x, y = known(number)
        first, second, _ = two_views(number)
        with torch.no_grad():
            follow(model["mean"], student)
            wanted = model["mean"](second).softmax(1)
        weight = min(1.0, number / 50)
        return F.cross_entropy(student(x), y) + weight * F.mse_loss(
            student(first).softmax(1), wanted
        )

    return model, by_loss(adam(student, 2e-3), loss_of)
