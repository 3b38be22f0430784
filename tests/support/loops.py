"""A small net, its batches and loss, and the readings of one step."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


def net(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2)
    ).to(dtype)


def batches(n, dtype=torch.float64, size=12):
    torch.manual_seed(1)
    return [(torch.randn(size, 5, dtype=dtype), torch.randint(0, 2, (size,))) for _ in range(n)]


def loss_of(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def step_frame(run, step):
    assert run.notes == []
    frame = run.frame()
    return frame[frame.step == step].set_index("name")
