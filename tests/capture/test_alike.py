"""Layers whose units start from the same weights, seen when the watching begins."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import gradscope


def fill(model, value):
    for weight in model.parameters():
        nn.init.constant_(weight, value)
    return model


def repeated():
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2))
    with torch.no_grad():
        model[0].weight[:] = model[0].weight[0]
    return model


def mlp():
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))


class Gained(nn.Linear):
    """One whose units have a gain each, and a second matrix, constant or not."""

    def __init__(self, second):
        super().__init__(4, 6)
        self.gain, self.second = nn.Parameter(torch.ones(6, 1)), nn.Parameter(second)

    def forward(self, x):
        return x @ (self.gain * self.weight).T + x @ self.second.T


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (mlp, None),
        (lambda: fill(mlp(), 0.1), ["0", "2"]),
        (lambda: fill(mlp(), 0.1).bfloat16(), ["0", "2"]),
        (lambda: fill(mlp(), 0.0), None),
        (lambda: fill(mlp(), 0.1).requires_grad_(False).append(nn.Linear(2, 2)), None),
        (repeated, ["0"]),
        (lambda: fill(nn.Sequential(nn.Conv1d(4, 6, 3), nn.Flatten()), 0.1), ["0"]),
        (lambda: fill(nn.Sequential(nn.Conv1d(4, 4, 3, groups=4), nn.Flatten()), 0.1), None),
        (lambda: fill(mlp(), 0.1).to("meta"), None),
        (lambda: Gained(torch.randn(6, 4)), None),
        (lambda: Gained(torch.ones(6, 4)), None),
        (lambda: nn.Sequential(fill(Gained(torch.ones(6, 4)), 0.1)), ["0"]),
    ],
    ids=[
        *["random", "constant", "half", "zero", "frozen", "rows", "conv", "depthwise", "meta"],
        *["gain", "one of two matrices", "both"],
    ],
)
def test_layers_whose_units_start_alike_are_named(build, expected, tmp_path):
    model = build()
    with gradscope.watch(model, tmp_path / "run") as scope:
        weight = next(model.parameters())
        x = torch.ones(3, 4, *[5] * (weight.dim() - 2), dtype=weight.dtype, device=weight.device)
        if any(p.requires_grad for p in model.parameters()):
            model(x).sum().backward()
    assert scope.run.facts.get("units_alike") == expected
