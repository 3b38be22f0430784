"""One rank of a training of two: started by `run_two` with torchrun's environment."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

import gradscope

STEPS = 3


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.act, self.fc, self.head = (
            nn.Linear(5, 8),
            nn.Tanh(),
            nn.Linear(8, 8),
            nn.Linear(8, 2),
        )

    def forward(self, x):
        x = self.act(self.stem(x))
        return self.head(x + self.fc(x))


def batches():
    torch.manual_seed(1)
    return [(torch.randn(8, 5), torch.randint(0, 2, (8,))) for _ in range(STEPS)]


def train(model, optimizer, data):
    for x, y in data:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


def shard(model):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2,))
    fully_shard(model.fc, mesh=mesh)
    fully_shard(model, mesh=mesh)


def main(kind, path):
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    model = Net()
    ranks = 0
    if kind == "ddp":
        model = nn.parallel.DistributedDataParallel(model)
    elif kind == "fsdp":
        shard(model)
    elif kind == "all":
        model = nn.parallel.DistributedDataParallel(model)
        ranks = "all"
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    half = [(x[rank * 4 : rank * 4 + 4], y[rank * 4 : rank * 4 + 4]) for x, y in batches()]
    if kind == "refused":
        for attempt in ({"cut": "shortcuts"}, {}):
            try:
                gradscope.watch(nn.parallel.DistributedDataParallel(model), path, **attempt)
            except gradscope.GradscopeError as error:
                print(f"rank {rank}: {error}")
    elif kind == "resumed":
        model = nn.parallel.DistributedDataParallel(model)
        with gradscope.watch(model, path, resume=True):
            train(model, optimizer, half)
    elif kind == "bare":
        model = nn.parallel.DistributedDataParallel(model)
        train(model, optimizer, half)
    else:
        with gradscope.watch(model, path, ranks=ranks) as scope:
            train(model, optimizer, half)
            scope.log(train_loss=1.0 + rank)
    if kind == "all":  # once more, sharded
        model = Net()
        shard(model)
        with gradscope.watch(model, f"{path}-sharded", ranks=ranks) as scope:
            train(model, torch.optim.AdamW(model.parameters(), lr=0.01), half)
            scope.log(train_loss=1.0 + rank)
    if kind in ("ddp", "bare"):
        inner = model.module
        torch.save(inner.state_dict(), f"{path}-{kind}-{rank}.pt")
    dist.barrier()  # or one may take down its side while the other still reads: gloo aborts
    dist.destroy_process_group()


def run_two(kind, path):
    """Train on two processes; return what each of them printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(2):
        environment = {
            **os.environ,
            "RANK": str(rank),
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
            "PYTHONWARNINGS": "error::gradscope.errors.GradscopeWarning",
        }
        command = [sys.executable, __file__, kind, str(path)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(command, env=environment, **pipes))
    outputs = [process.communicate(timeout=120) for process in processes]
    for process, (_, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors
    return [out for out, _ in outputs]


if __name__ == "__main__":
    main(*sys.argv[1:])
