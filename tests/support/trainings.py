"""Small trainings, the same each time, in processes of their own that tests may end in any way.

Run as a program, this file imports everything once, and forks a process for each training that it
is told of on its standard input.
"""

from __future__ import annotations

import copy
import faulthandler
import itertools
import mmap
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from torch import nn

    import gradscope

DEADLINE = 300
"""Seconds after which a training that hangs is ended by SIGALRM."""


class Warm:
    """A process that forks trainings, one at a time; a context manager."""

    def __enter__(self) -> Warm:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "OMP_NUM_THREADS": "1",
        }
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        return self

    def __exit__(self, *error: object) -> None:
        self._process.stdin.close()
        assert self._process.wait() == 0

    def start(self, training: str, path: Path) -> int:
        """Start a training of this file that records into `path`; return its process id."""
        self._process.stdin.write(f"{training} {path}\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def wait(self) -> int:
        """Wait for its end; return its exit status, the negative signal if one ended it."""
        return int(self._process.stdout.readline())

    def run(self, training: str, path: Path) -> tuple[int, str]:
        """Return the exit status of a training and what it wrote to its standard error."""
        self.start(training, path)
        return self.wait(), errors(path)


def errors(path: Path) -> str:
    """Return what the training that recorded into `path` wrote to its standard error."""
    return Path(f"{path}.errors").read_text()


def flushed(path: Path) -> int:
    """Return how many steps of the run in `path` are on disk, by the names of its parts."""
    return max((int(part.name[18:30]) + 1 for part in (path / "steps").glob("part-*")), default=0)


def wait_for(condition: Callable[[], object]) -> None:
    while not condition():
        time.sleep(0.0005)


def check_steps(run: gradscope.Run, reference: pd.DataFrame) -> int:
    """Check that steps 0.. are there without a gap, and right; return how many."""
    import pandas as pd

    frame = run.frame()
    count = len(run.steps)
    assert run.steps.step.tolist() == list(range(count))
    assert count <= 80
    pd.testing.assert_frame_equal(frame, reference[: len(frame)])
    return count


class Progress:
    """How many steps a training has made, in memory that it shares with the test."""

    def __init__(self, path: Path) -> None:
        file = Path(f"{path}.progress")
        if not file.exists():
            file.write_bytes(bytes(8))
        with open(file, "r+b") as shared:
            self._memory = mmap.mmap(shared.fileno(), 8)

    @property
    def made(self) -> int:
        return struct.unpack("q", self._memory)[0]

    @made.setter
    def made(self, steps: int) -> None:
        self._memory[:] = struct.pack("q", steps)


# --- a residual net and its data ----------------------------------------------------------------


def net() -> nn.Module:
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(6, 6)
            self.act = nn.Tanh()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.act(self.inner(x))

    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), Block(), Block(), nn.Linear(6, 2))


def learner(model: nn.Module) -> torch.optim.Optimizer:
    import torch

    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    """Make the steps; the data of each follow from its number."""
    import torch

    for step in steps:
        x = torch.sin(torch.arange(12.0).reshape(3, 4) + step)
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


# --- trainings ----------------------------------------------------------------------------------

FLUSH_EVERY = 5


def whole(path: Path) -> None:
    """Train 80 steps, undisturbed."""
    import gradscope

    model = net()
    with gradscope.watch(model, path):
        train(model, learner(model), range(80))


def by_rows(path: Path) -> None:
    """Train until killed; flush when 5 rows wait."""
    _train_until_killed(path, flush_every=FLUSH_EVERY, flush_seconds=10)


def by_seconds(path: Path) -> None:
    """Train until killed; flush after some time."""
    _train_until_killed(path, flush_every=10**6, flush_seconds=0.005)


def _train_until_killed(path: Path, **flush: float) -> None:
    """After each 5 closed steps, wait until they are on disk."""
    import gradscope

    progress = Progress(path)
    model = net()
    optimizer = learner(model)
    gradscope.watch(model, path, **flush)
    for step in itertools.count():
        train(model, optimizer, range(step, step + 1))
        progress.made = step + 1
        wait_for(lambda: step % FLUSH_EVERY or flushed(path) >= step)  # noqa: B023


def resumed(path: Path) -> None:
    """Train 3 steps more."""
    import gradscope

    model = net()
    with gradscope.watch(model, path, resume=True):
        train(model, learner(model), range(3))


def until_terminated(path: Path) -> None:
    """Train; nothing is flushed by itself."""
    import gradscope

    progress = Progress(path)
    model = net()
    optimizer = learner(model)
    gradscope.watch(model, path, flush_seconds=10)
    for step in itertools.count():
        train(model, optimizer, range(step, step + 1))
        progress.made = step + 1


def with_handler(path: Path) -> None:
    """Train until the program's own handler of SIGTERM says so."""
    import gradscope

    told = []
    signal.signal(signal.SIGTERM, lambda *_: told.append(True))
    progress = Progress(path)
    model = net()
    optimizer = learner(model)
    with gradscope.watch(model, path, flush_seconds=10):
        while not told:
            train(model, optimizer, range(1))
            progress.made += 1
    print("ended by itself", file=sys.stderr)


def with_later_handler(path: Path) -> None:
    """Train with a handler of SIGTERM that was put in after watch(), and calls the one before."""
    import gradscope

    told = []
    progress = Progress(path)
    model = net()
    optimizer = learner(model)
    scope = gradscope.watch(model, path, flush_seconds=10)
    before = signal.getsignal(signal.SIGTERM)

    def handler(number: int, frame: object) -> None:
        before(number, frame)
        told.append(flushed(path))

    signal.signal(signal.SIGTERM, handler)
    while not told:
        train(model, optimizer, range(1))
        progress.made += 1
    scope.close()
    print(f"{told[0]} steps on disk", file=sys.stderr)


def _flush_beside(scope: gradscope.Scope) -> None:
    """Flush in a thread of its own, as a program may."""
    threading.Thread(target=scope.flush, daemon=True).start()


def without_close(path: Path) -> None:
    """Exit while rows are being flushed, and more of them wait."""
    import gradscope

    model = net()
    scope = gradscope.watch(model, path, flush_every=1)
    train(model, learner(model), range(80))
    _flush_beside(scope)
    sys.exit(0)


def forking(path: Path) -> None:
    """Fork at 20 moments of a training that flushes after each step; workers use the model."""
    import gradscope

    model = net()
    optimizer = learner(model)
    scope = gradscope.watch(model, path, flush_every=1)
    for step in range(20):
        train(model, optimizer, range(step, step + 1))
        if step % 2:  # a flush is under way, or not
            _flush_beside(scope)
        worker = os.fork()
        if worker == 0:
            signal.alarm(DEADLINE // 2)
            _use(model, scope)
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
            if step in (8, 9):
                sys.exit(7)  # as a program ends, which takes long
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]) == 7
    scope.close()


def _use(model: nn.Module, scope: object) -> None:
    """Do in a worker what might record, flush or hang."""
    import torch

    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    with torch.no_grad():
        model(torch.ones(3, 4))
    model(torch.ones(3, 4))
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    scope.log(loss=1.0)
    scope.flush()
    assert scope.run.status == "running"  # the parent's
    scope.close()


class Data:
    """A data set whose items come from the watched model."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> torch.Tensor:
        import torch

        self.model(torch.ones(3, 4)).sum().backward()
        return torch.full((3, 4), float(index))


def with_no_worker(path: Path) -> None:
    _train_with_workers(path, None)


def with_a_forked_worker(path: Path) -> None:
    _train_with_workers(path, "fork")


def with_a_spawned_worker(path: Path) -> None:
    _train_with_workers(path, "spawn")


def _train_with_workers(path: Path, context: str | None) -> None:
    """Train on what a worker of a DataLoader, or a copy, computes with the watched model."""
    import torch
    from torch.utils.data import DataLoader

    import gradscope

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh())
    optimizer = learner(model)
    with gradscope.watch(model, path, flush_every=1):
        data = Data(model if context else copy.deepcopy(model))
        workers = 1 if context else 0
        for x in DataLoader(data, num_workers=workers, multiprocessing_context=context):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()


def until_stopped(path: Path) -> None:
    """Train, flushing often, until there is a file `<path>.stop`."""
    import gradscope

    model = net()
    optimizer = learner(model)
    with gradscope.watch(model, path, flush_every=7):
        for step in itertools.count():
            train(model, optimizer, range(step, step + 1))
            if os.path.exists(f"{path}.stop"):
                return


def _serve() -> None:
    import gradscope.runs.loading
    import gradscope.session.scope  # noqa: F401

    learner(net())  # which imports more; no thread is started
    for line in sys.stdin:
        name, path = line.strip().split(" ", 1)
        process = os.fork()
        if process == 0:
            signal.alarm(DEADLINE)
            errors = os.open(f"{path}.errors", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(errors, 2)
            faulthandler.register(signal.SIGALRM, chain=True)  # says where it hangs
            os.dup2(2, 1)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            globals()[name](Path(path))
            os._exit(0)  # at once; trainings that are about the exit do it themselves
        print(process, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)


if __name__ == "__main__":
    _serve()
