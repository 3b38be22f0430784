"""A copy of a net that trains under the eyes of a watcher: its time, memory, work of the device."""

from __future__ import annotations

import copy
import math
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from gradscope.benchmark.rivals import Bare, Watcher
from gradscope.benchmark.workloads import BFLOAT16, Workload

_WARM_UP = 2
_PROFILED = 3


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
        self._device = batch[0].device
        self._bfloat16 = workload.precision_on(self._device) == BFLOAT16
        self.model = copy.deepcopy(model)
        self._optimizer = workload.optimizer(self.model)
        self._folder = tempfile.TemporaryDirectory(prefix="gradscope-bench-")
        self._watcher = Bare(self.model, Path(self._folder.name))
        self._steps = workload.steps
        try:
            self.block(_WARM_UP)  # allocates the optimizer's state, warms caches
            self.rise = _rise(self._device, lambda: self._begin(watcher))
        except BaseException:
            self.close()
            raise

    def _begin(self, watcher: Watcher) -> None:
        self._watcher = watcher(self.model, Path(self._folder.name))
        self.block()

    def block(self, steps: int | None = None) -> float:
        """Train for a block, and return the seconds that a step took in the mean.

        It has `steps`, the workload's by default, and more where the watcher's `every` asks for it.
        """
        inputs, targets = self._batch
        steps = self._fair(steps or self._steps)
        _wait(self._device)
        start = time.perf_counter()
        for _ in range(steps):
            self._optimizer.zero_grad()
            with self._autocast():
                loss = F.cross_entropy(self.model(inputs), targets)
            torch.autograd.backward(loss)
            self._watcher.before_step()
            self._optimizer.step()
            self._watcher.after_step()
        self._watcher.end_of_block()
        _wait(self._device)
        return (time.perf_counter() - start) / steps

    def _autocast(self) -> AbstractContextManager[object]:
        return (
            torch.autocast(self._device.type, torch.bfloat16) if self._bfloat16 else nullcontext()
        )

    def device_work(self) -> tuple[float, float]:
        """Return how many kernels a step runs on a CUDA device, and the ms that they take.

        Copies count, too. NaN where there is no other device, or it may not be profiled.
        """
        if self._device.type != "cuda":
            return math.nan, math.nan
        steps = self._fair(_PROFILED)
        kernels, ms = work_of(ProfilerActivity.CUDA, lambda: self.block(steps))
        return (kernels / steps, ms / steps) if kernels else (math.nan, math.nan)

    def _fair(self, steps: int) -> int:
        """Return so many steps or more, with their share of watched ones."""
        return -(-steps // self._watcher.every) * self._watcher.every

    def close(self) -> None:
        """Stop watching, and free what it took."""
        self._watcher.close()
        self._folder.cleanup()


def work_of(activity: ProfilerActivity, work: Callable[[], object]) -> tuple[int, float]:
    """Return how many operations ran on a kind of device during `work`, and the device's ms."""
    with profile(activities=[activity], acc_events=True) as profiled:
        work()
    found = [
        event
        for event in profiled.key_averages()
        if event.device_type.name == activity.name and not event.is_user_annotation
    ]
    microseconds = sum(event.self_device_time_total for event in found)
    return sum(event.count for event in found), microseconds / 1e3


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
