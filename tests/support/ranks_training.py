"""One process of several in a training that does not end well: run by test_ranks.py."""

from __future__ import annotations

import os
import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn

import gradscope

STEPS = 6


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2))


def train(model: nn.Module, steps: int = STEPS) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.manual_seed(int(os.environ["RANK"]))
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 5)).square().sum().backward()
        optimizer.step()


def main(kind: str, path: str) -> None:
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    inner = net()
    model = nn.parallel.DistributedDataParallel(inner)
    if (
        kind == "exception"
    ):  # rank 0 fails while rank 1 waits for it in the training's own collective
        with gradscope.watch(model, path):
            train(model)
            if rank == 0:
                raise KeyError("the user's")
            train(model)
    elif kind == "destroyed":  # as every script of torchrun ends, without a close
        gradscope.watch(model, path, flush_seconds=10)
        train(model)
        dist.destroy_process_group()
    elif kind == "alone":
        scope = gradscope.watch(model, path) if rank == 0 else None
        train(model)
        if scope is not None:
            scope.close()
    elif kind == "refused":
        try:
            gradscope.watch(model, path, every=0 if rank == 1 else 1)
        except gradscope.GradscopeError as error:
            print(rank, error)
    elif kind == "fewer steps":
        with gradscope.watch(model, path):
            train(model)
            time.sleep(3)  # a flush a second
            if rank == 1:
                os._exit(0)
            with model.no_sync():  # goes on by itself
                train(model, 2)


if __name__ == "__main__":
    main(*sys.argv[1:])
