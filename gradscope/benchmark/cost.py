"""What watching costs on this machine, in ratios: `gradscope bench`.

Blocks of steps of several copies of a net (two bare ones, one for each watcher) are interleaved in
random order in one process. What counts is, round by round, the time of a step of the watched copy
over that of the faster bare one; the ratios of the bare copies show the noise.
"""

from __future__ import annotations

import gc
import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gradscope._version import __version__
from gradscope.benchmark.copies import Copy
from gradscope.benchmark.rivals import Bare, Watcher, alternatives, gradscopes
from gradscope.benchmark.table import Bench, Cost
from gradscope.benchmark.workloads import ON_A_GPU, ON_THE_CPU, TF32, Workload
from gradscope.errors import GradscopeError
from gradscope.measure.cpu_kernel import kernel as compiled_kernel

Track = Callable[[Iterable[Cost], int], Iterable[Cost]]
Result = TypeVar("Result")

BARE: dict[str, Watcher] = {"bare": Bare, "bare once more (noise)": Bare}
_OUT_OF_MEMORY = "out of memory"


def bench(
    device: str = "cpu",
    nets: Sequence[str] = (),
    threads: Sequence[int] = (1, 2),
    rounds: int = 7,
    alone: bool = False,
    every: Sequence[int] = (1, 10),
    against: Sequence[str] = (),
    track: Track = lambda costs, total: costs,
) -> Bench:
    """Measure what watching costs.

    Parameters
    ----------
    device : str
        "cpu", "cuda", "mps" ...
    nets : names of workloads
        By default `ON_A_GPU` on a CUDA device, `ON_THE_CPU` elsewhere; those of the other are known
        by name, too.
    threads : of torch, one measurement for each; on an accelerator the first
    rounds : int
        Of a block of each copy. More rounds resolve smaller differences.
    alone : bool
        Measure gradscope and none of the alternatives.
    every : of gradscope, measured with each
    against : names of alternatives, by default all that are installed
    track : called with the costs as they are measured and their number, returns them one by one
        May show progress.

    Returns
    -------
    Bench

    Raises
    ------
    GradscopeError
        If there is no such net, device or alternative, or `rounds`, `threads` or `every` are no
        positive numbers.
    """
    place = _place(device)
    own, others = (ON_A_GPU, ON_THE_CPU) if place.type == "cuda" else (ON_THE_CPU, ON_A_GPU)
    known = {workload.name: workload for workload in own}
    known |= {workload.name: workload for workload in others if workload.name not in known}
    unknown = [name for name in nets if name not in known]
    if unknown:
        raise GradscopeError(f"there is no net {unknown[0]!r}; there are {', '.join(known)}")
    for what, numbers in (("rounds", [rounds]), ("threads", threads), ("every", every)):
        if not numbers or min(numbers) < 1:
            raise GradscopeError(f"bench needs {what} of 1 or more, got {list(numbers)}")
    if place.type != "cpu":
        threads = threads[:1]
    watchers = {**BARE, **gradscopes(every), **({} if alone else alternatives(against))}
    workloads = [known[name] for name in nets] or list(own)
    measured = (
        cost
        for workload in workloads
        for count in threads
        for cost in measure(workload, watchers, place, count, rounds)
    )
    costs = tuple(track(measured, len(workloads) * len(threads) * len(watchers)))
    if place.type == "cuda":  # at the end, as what has been profiled once may be slower ever after
        costs = tuple(track(_with_device_work(costs, known, watchers, place), len(costs)))
    return Bench(_machine(place), tuple(w.said_of(place) for w in workloads), costs)


def _place(device: str) -> torch.device:
    try:
        place = torch.device(device)
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise GradscopeError(f"device {device!r} cannot be used: {reason}") from error
    return place


def measure(
    workload: Workload,
    watchers: dict[str, Watcher],
    device: torch.device,
    threads: int,
    rounds: int,
) -> list[Cost]:
    """Return the cost of each of `watchers` on one net; those of `BARE` must be among them."""

    def measured() -> list[Cost]:
        model, batch = _prepared(workload, device)
        copies: dict[str, Copy] = {}
        try:
            for name, watcher in watchers.items():
                copies[name] = Copy(workload, model, batch, watcher)
            seconds = _interleaved(copies, rounds)
        finally:
            for copy in copies.values():
                copy.close()
        bare = np.min([seconds[name] for name in BARE], axis=0)
        rise = min(copies[name].rise for name in BARE)
        size = sum(parameter.numel() for parameter in model.parameters())
        costs = []
        for name in watchers:
            lower, ratio, upper = np.percentile(seconds[name] / bare, [25, 50, 75]).tolist()
            ms = float(np.median(seconds[name])) * 1e3
            peak = max(copies[name].rise - rise, 0.0)
            costs.append(
                Cost(
                    workload.name, name, threads, rounds, ratio, lower, upper, ms, peak, peak / size
                )
            )
        return costs

    with _settings(workload, device, threads):
        costs = _unless_out_of_memory(measured, device)
    return costs or [
        Cost(workload.name, name, threads, rounds, failure=_OUT_OF_MEMORY) for name in watchers
    ]


def _with_device_work(
    costs: Iterable[Cost],
    known: dict[str, Workload],
    watchers: dict[str, Watcher],
    device: torch.device,
) -> Iterator[Cost]:
    """Yield `costs` with the kernels of a step, and their time on the device."""
    for cost in costs:
        work = None
        if not cost.failure:
            with _settings(known[cost.net], device, cost.threads):
                profiled = partial(_device_work, known[cost.net], watchers[cost.watcher], device)
                work = _unless_out_of_memory(profiled, device)
        kernels, ms = work or (math.nan, math.nan)
        yield replace(cost, kernels=kernels, device_ms=ms)


def _device_work(workload: Workload, watcher: Watcher, device: torch.device) -> tuple[float, float]:
    copy = Copy(workload, *_prepared(workload, device), watcher)
    try:
        return copy.device_work()
    finally:
        copy.close()


def _prepared(workload: Workload, device: torch.device) -> tuple[nn.Module, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    return workload.model().to(device), tuple(tensor.to(device) for tensor in workload.batch())


@contextmanager
def _settings(workload: Workload, device: torch.device, threads: int) -> Iterator[None]:
    """Let torch train with so many threads, and as fast as people have it on a GPU."""
    cudnn = torch.backends.cudnn
    before = torch.get_num_threads(), torch.get_float32_matmul_precision(), cudnn.benchmark
    try:
        torch.set_num_threads(threads)
        if workload.precision_on(device) == TF32:
            torch.set_float32_matmul_precision("high")
        cudnn.benchmark = True
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.set_float32_matmul_precision(before[1])
        cudnn.benchmark = before[2]


def _unless_out_of_memory(work: Callable[[], Result], device: torch.device) -> Result | None:
    """Return what `work` returns, None where memory did not suffice for it."""
    try:
        return work()
    except (RuntimeError, MemoryError) as error:
        if not _is_of_memory(error):
            raise
        return None
    finally:
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _is_of_memory(error: RuntimeError | MemoryError) -> bool:
    known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return known or "can't allocate memory" in str(error)  # as torch says it on the CPU


def _interleaved(copies: dict[str, Copy], rounds: int) -> dict[str, NDArray[np.float64]]:
    """Return the seconds of a step of each copy in each round, the copies in random order."""
    order = random.Random(0)
    seconds = {name: np.empty(rounds) for name in copies}
    for i in range(rounds):
        gc.collect()
        for name in order.sample(list(copies), len(copies)):
            seconds[name][i] = copies[name].block()
    return seconds


def _machine(device: torch.device) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    kernel = "compiled" if compiled_kernel() is not None else "no"
    how = f", {kernel} kernel" if device.type == "cpu" else ""
    return f"gradscope {__version__}, torch {torch.__version__}, {name}{how}"
