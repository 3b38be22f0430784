"""A training of two ranks, with torchrun's environment, and the same on the whole batch."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

import gradscope
from plain_loop import Net

STEPS = 3


def batches():
    torch.manual_seed(1)
    return [(torch.randn(8, 5), torch.randint(0, 2, (8,))) for _ in range(STEPS)]


def train(model, optimizer, data):
    for x, y in data:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


def train_whole(path):
    """Train in this process, on the whole batch; return the run."""
    model = Net()
    with gradscope.watch(model, path) as scope:
        train(model, torch.optim.AdamW(model.parameters(), lr=0.01), batches())
    return scope.run


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
    if kind == "zero":
        from torch.distributed.optim import ZeroRedundancyOptimizer

        model = nn.parallel.DistributedDataParallel(model)
        optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.AdamW, lr=0.01)
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
        torch.save(inner.state_dict(), f"{path}-{rank}.pt")
    dist.barrier()  # or one may take down its side while the other still reads: gloo aborts
    dist.destroy_process_group()


class Two:
    """A process that has imported everything and forks two ranks for each training."""

    def __enter__(self):
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "OMP_NUM_THREADS": "1",
            "PYTHONWARNINGS": "error::gradscope.errors.GradscopeWarning",
        }
        command = [sys.executable, __file__]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen(command, env=environment, **pipes)
        self._said = tempfile.TemporaryDirectory()
        return self

    def __exit__(self, *error):
        self._process.stdin.close()
        assert self._process.wait() == 0
        self._process.stdout.close()
        self._said.cleanup()

    def train(self, kind, path):
        """Train on two processes; return what each of them printed."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        print(kind, port, self._said.name, path, file=self._process.stdin, flush=True)
        codes = self._process.stdout.readline().split()
        folder = Path(self._said.name)
        errors = [(folder / f"{rank}.err").read_text() for rank in range(2)]
        assert codes == ["0", "0"], errors
        return [(folder / f"{rank}.out").read_text() for rank in range(2)]


def serve():
    """Fork two ranks for each line of the standard input; say how they ended."""
    import torch._dynamo  # as DistributedDataParallel does
    import torch.distributed.device_mesh
    import torch.distributed.fsdp  # noqa: F401

    import gradscope.session.scope  # noqa: F401

    for line in sys.stdin:
        kind, port, said, path = line.rstrip("\n").split(" ", 3)
        ranks = []
        for rank in range(2):
            ranks.append(os.fork())
            if ranks[-1] == 0:
                signal.alarm(120)
                for stream, end in ((1, "out"), (2, "err")):
                    file = os.open(f"{said}/{rank}.{end}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                    os.dup2(file, stream)
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                os.environ.update(RANK=str(rank), MASTER_PORT=port)
                main(kind, path)
                return  # and end as a program does
        print(*(os.waitstatus_to_exitcode(os.waitpid(rank, 0)[1]) for rank in ranks), flush=True)


if __name__ == "__main__":
    serve()
