"""What watching costs on this machine, in ratios: `gradscope bench`.

Blocks of steps of several copies of a net (two bare ones, one for each watcher) are interleaved in
random order in one process. What counts is, round by round, the time of a step of the watched copy
over that of the bare ones; the ratio of the two bare copies shows the noise.
"""

from __future__ import annotations

import copy
import gc
import math
import random
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from gradscope._version import __version__
from gradscope.benchmark.rivals import GRADSCOPE, Bare, Watcher, alternatives
from gradscope.benchmark.workloads import WORKLOADS, Workload
from gradscope.errors import GradscopeError
from gradscope.measure.cpu_kernel import kernel as compiled_kernel

Track = Callable[[Iterable["Cost"], int], Iterable["Cost"]]

_BARE = "bare"
_NOISE = "bare once more (noise)"


@dataclass(frozen=True)
class Cost:
    """Of one watcher on one net, in step times of the bare net.

    Attributes
    ----------
    net, watcher : str
    threads : int
    rounds : int
    ratio, lower, upper : float
        Median and quartiles of the rounds' ratios, watched / bare.
    memory : float
        Bytes a parameter that watching adds to the peak of a block, NaN where the platform does
        not tell.
    """

    net: str
    watcher: str
    threads: int
    rounds: int
    ratio: float
    lower: float
    upper: float
    memory: float


@dataclass(frozen=True)
class Bench:
    """All costs that were measured, and where: `str(bench)` is a table."""

    machine: str
    costs: tuple[Cost, ...]

    def __str__(self) -> str:
        """Return a Markdown table: a row a watcher, a column a net."""
        nets = list(dict.fromkeys(cost.net for cost in self.costs))
        watchers = list(dict.fromkeys(cost.watcher for cost in self.costs))
        threads = list(dict.fromkeys(cost.threads for cost in self.costs))
        found = {(c.watcher, c.net, c.threads): c for c in self.costs}
        lines = [
            self.machine,
            "Step time over that of the bare net: median of"
            f" {self.costs[0].rounds} rounds ± half the distance of their quartiles, with"
            f" {' / '.join(map(str, threads))} thread{'s' if threads != [1] else ''}.",
            "",
            f"| | {' | '.join(nets)} |",
            "|---" * (len(nets) + 1) + "|",
        ]
        for watcher in watchers:
            cells = [
                " / ".join(_cell(found[watcher, net, count]) for count in threads) for net in nets
            ]
            lines.append(f"| {watcher} | {' | '.join(cells)} |")
        for watcher in watchers:
            peaks = [found[watcher, net, threads[0]].memory for net in nets]
            if watcher in GRADSCOPE and not all(map(math.isnan, peaks)):
                cells = [f"{peak:.1f}" for peak in peaks]
                lines.append(f"| {watcher}: bytes a parameter | {' | '.join(cells)} |")
        return "\n".join(lines)


def bench(
    device: str = "cpu",
    nets: Sequence[str] = (),
    threads: Sequence[int] = (1, 2),
    rounds: int = 7,
    alone: bool = False,
    track: Track = lambda costs, total: costs,
) -> Bench:
    """Measure what watching costs.

    Parameters
    ----------
    device : str
        "cpu", "cuda", "mps" ...
    nets : names of `WORKLOADS`, all by default
    threads : of torch, one measurement for each; on an accelerator the first
    rounds : int
        Of a block of each copy. More rounds resolve smaller differences.
    alone : bool
        Measure gradscope and none of the alternatives that are installed.
    track : called with the costs as they are measured and their number, returns them one by one
        May show progress.

    Returns
    -------
    Bench

    Raises
    ------
    GradscopeError
        If there is no such net or device, or `rounds` or `threads` are no positive numbers.
    """
    known = {workload.name: workload for workload in WORKLOADS}
    unknown = [name for name in nets if name not in known]
    if unknown:
        raise GradscopeError(f"there is no net {unknown[0]!r}; there are {', '.join(known)}")
    if rounds < 1 or not threads or min(threads) < 1:
        raise GradscopeError(
            f"bench needs rounds and threads of 1 or more, got {rounds} and {list(threads)}"
        )
    try:
        place = torch.device(device)
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise GradscopeError(f"device {device!r} cannot be used: {reason}") from error
    if place.type != "cpu":
        threads = threads[:1]
    watchers = {_NOISE: Bare, **GRADSCOPE, **({} if alone else alternatives())}
    work = [(known[n], count) for n in (nets or known) for count in threads]
    before = torch.get_num_threads()
    try:
        measured = (
            cost
            for workload, count in work
            for cost in measure(workload, watchers, place, count, rounds)
        )
        costs = tuple(track(measured, len(work) * len(watchers)))
    finally:
        torch.set_num_threads(before)
    return Bench(_machine(place), costs)


def measure(
    workload: Workload,
    watchers: dict[str, Watcher],
    device: torch.device,
    threads: int,
    rounds: int,
) -> Iterator[Cost]:
    """Yield the cost of each of `watchers` on one net."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = workload.model().to(device)
    batch = tuple(tensor.to(device) for tensor in workload.batch())
    size = sum(parameter.numel() for parameter in model.parameters())
    copies: dict[str, Copy] = {}
    try:
        for name, watcher in {_BARE: Bare, **watchers}.items():
            copies[name] = Copy(workload, model, batch, watcher)
        seconds = _interleaved(copies, rounds)
    finally:
        for copy in copies.values():
            copy.close()
    for name in watchers:
        bare = seconds[_BARE] if name == _NOISE else (seconds[_BARE] + seconds[_NOISE]) / 2
        lower, ratio, upper = np.percentile(seconds[name] / bare, [25, 50, 75]).tolist()
        above = max(copies[name].rise - copies[_BARE].rise, 0.0) / size
        yield Cost(workload.name, name, threads, rounds, ratio, lower, upper, above)


class Copy:
    """A copy of the net that trains in blocks.

    Attributes
    ----------
    model : nn.Module
    rise : float
        Bytes by which memory rose when it got its watcher and trained for a block.
    """

    def __init__(
        self,
        workload: Workload,
        model: nn.Module,
        batch: tuple[torch.Tensor, ...],
        watcher: Watcher,
    ) -> None:
        self._batch = batch
        self.model = copy.deepcopy(model)
        self._optimizer = workload.optimizer(self.model)
        self._folder = tempfile.TemporaryDirectory(prefix="gradscope-bench-")
        self._watcher = Bare(self.model, Path(self._folder.name))
        self._steps = 2
        self.block()  # allocates the optimizer's state, warms caches
        self.rise = _rise(batch[0].device, lambda: self._begin(workload, watcher))

    def _begin(self, workload: Workload, watcher: Watcher) -> None:
        self._watcher = watcher(self.model, Path(self._folder.name))
        self._steps = -(-workload.steps // self._watcher.every) * self._watcher.every
        self.block()

    def block(self) -> float:
        """Train for a block of steps, and return the seconds that one took in the mean."""
        inputs, targets = self._batch
        _wait(inputs.device)
        start = time.perf_counter()
        for _ in range(self._steps):
            self._optimizer.zero_grad()
            torch.autograd.backward(F.cross_entropy(self.model(inputs), targets))
            self._watcher.before_step()
            self._optimizer.step()
            self._watcher.after_step()
        self._watcher.end_of_block()
        _wait(inputs.device)
        return (time.perf_counter() - start) / self._steps

    def close(self) -> None:
        """Stop watching, and free what it took."""
        self._watcher.close()
        self._folder.cleanup()


def _interleaved(copies: dict[str, Copy], rounds: int) -> dict[str, NDArray[np.float64]]:
    """Return the seconds of a step of each copy in each round, the copies in random order."""
    order = random.Random(0)
    seconds = {name: np.empty(rounds) for name in copies}
    for i in range(rounds):
        gc.collect()
        for name in order.sample(list(copies), len(copies)):
            seconds[name][i] = copies[name].block()
    return seconds


def _rise(device: torch.device, work: Callable[[], object]) -> float:
    """Return how far memory rises above its start while `work` is done, NaN where unknown."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        start = torch.cuda.memory_allocated(device)
        work()
        return float(torch.cuda.max_memory_allocated(device) - start)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the peak so far
        start = _resident("VmRSS")
        work()
        return float(_resident("VmHWM") - start)
    except OSError:
        return math.nan


def _resident(what: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(what):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {what}")


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _cell(cost: Cost) -> str:
    return f"{cost.ratio:.2f} ± {(cost.upper - cost.lower) / 2:.2f}"


def _machine(device: torch.device) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    kernel = "compiled" if compiled_kernel() is not None else "no"
    how = f", {kernel} kernel" if device.type == "cpu" else ""
    return f"gradscope {__version__}, torch {torch.__version__}, {name}{how}"
