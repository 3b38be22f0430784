"""One process of several in a training that does not end well: run by test_ranks.py."""

from __future__ import annotations

import os
import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms import Join

import gradscope

STEPS = 6


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2))


def train(model: nn.Module, steps: int = STEPS, reduce: bool = False) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.manual_seed(int(os.environ["RANK"]))
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 5)).square().sum().backward()
        if reduce:
            for p in model.parameters():
                if not hasattr(p, "device_mesh"):  # else fully_shard has
                    dist.all_reduce(p.grad)
                    p.grad /= 2
        optimizer.step()


class Dropping(nn.Module):
    """Residual blocks, of which each call leaves out one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5)) for _ in range(3)
        )
        self.stem = nn.Linear(5, 5)
        self.double()

    def forward(self, x: Tensor, without: int) -> Tensor:
        return self.values(x, without)[-1]

    def values(self, x: Tensor, without: int) -> list[Tensor]:
        """Return the stream: what goes into each block that is not left out, and the end."""
        values = [self.stem(x)]
        for i, block in enumerate(self.blocks):
            if i != without:
                values.append(values[-1] + block(values[-1]))
        return values


def batch_of(rank: int, step: int) -> tuple[Tensor, int]:
    """Return what a process trains on in a step, and the block that it leaves out."""
    generator = torch.Generator().manual_seed(10 * step + rank)
    return torch.randn(4, 5, generator=generator, dtype=torch.float64), (rank + step) % 3


def train_dropping(path: str, rank: int) -> None:
    model = nn.parallel.DistributedDataParallel(Dropping(), find_unused_parameters=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with gradscope.watch(model, path):
        for step in range(STEPS):
            optimizer.zero_grad()
            model(*batch_of(rank, step)).square().sum().backward()
            optimizer.step()


def shard_weights(model: nn.Module) -> None:
    """Shard the weights, and leave it to the program what becomes of the biases."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    biases = {p for p in model.parameters() if p.dim() == 1}
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)), ignored_params=biases)


def main(kind: str, path: str) -> None:
    rank = int(os.environ["RANK"])
    if kind == "watched before":
        early = net()
        scope = gradscope.watch(early, f"{path}-{rank}")
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    inner = net()
    model = nn.parallel.DistributedDataParallel(inner)
    if kind == "watched before":
        train(nn.parallel.DistributedDataParallel(early))
        scope.close()
    elif (
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
    elif kind == "uneven":
        with gradscope.watch(model, path):
            for _ in range(2):
                with Join([model]):
                    train(model, 3 if rank == 0 else 2)
    elif kind == "every":
        with gradscope.watch(model, path, every=rank + 1):
            train(model)
    elif kind == "reduced by hand":
        with gradscope.watch(inner, path):
            train(inner, reduce=True)
    elif kind == "biases reduced by hand":
        shard_weights(inner)
        with gradscope.watch(inner, path):
            train(inner, reduce=True)
    elif kind == "layers left out":
        train_dropping(path, rank)
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
