"""What to know of this machine where something is wrong: what a report of a fault should hold."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gradscope._version import __version__
from gradscope.autograd.torch_internals import TESTED, self_check
from gradscope.measure import cpu_compiler, cpu_kernel, gpu_kernel
from gradscope.session.watch import watch

_PACKAGES = ("numpy", "pandas", "pyarrow", "filelock", "triton", "plotly", "dash")
_STEPS = 3


class Line(NamedTuple):
    """One thing that was looked at; `is_wrong` where it keeps gradscope from reading rightly."""

    what: str
    found: str
    is_wrong: bool = False


def examine() -> Iterator[Line]:
    """Yield what this machine has, and whether a small training is recorded rightly on it."""
    yield Line("gradscope", f"{__version__}, {Path(__file__).parent}")
    yield Line("Python", f"{platform.python_version()}, {platform.platform()}")
    low, high = TESTED
    yield Line("torch", f"{torch.__version__} (tested from {low} to {high})")
    yield Line("packages", ", ".join(f"{name} {_release(name)}" for name in _PACKAGES))
    yield Line("devices", ", ".join(_devices()))
    yield from _kernels()
    yield _cache()
    yield Line("browser", _browser())
    check = self_check()
    yield Line("this torch", check.message or "has all that is asked of it", bool(check.missing))
    yield _training()


def _release(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _devices() -> list[str]:
    found = [f"cpu ({torch.get_num_threads()} threads of {os.cpu_count()} cores)"]
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        found += [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(count)]
    if torch.backends.mps.is_available():
        found.append("mps")
    return found


def _kernels() -> Iterator[Line]:
    """Yield what reads float32 on the CPU, and tensors on each GPU."""
    command = cpu_compiler.compiler()
    if cpu_kernel.kernel() is not None and command is not None:
        found = f"C, by {shlex.join(command)}"
    elif os.environ.get("GRADSCOPE_KERNEL") == "0":
        found = "torch, as GRADSCOPE_KERNEL=0 asks for"
    elif command is None:
        found = "torch: there is no C compiler, or none is looked for on this system"
    else:
        found = f"torch: {shlex.join(command)} did not compile the kernel"
    yield Line("kernel on cpu", found)
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        device = torch.device("cuda", i)
        is_there = gpu_kernel.kernel(device) is not None
        problems = "; ".join(p for p in gpu_kernel.problems() if str(device) in p)
        yield Line(f"kernel on {device}", "Triton" if is_there else f"torch: {problems or 'asked'}")


def _cache() -> Line:
    if sys.platform == "win32":
        return Line("cache folder", "none is needed")
    try:
        return Line("cache folder", str(cpu_compiler.cache_folder()))
    except (OSError, RuntimeError) as error:
        return Line("cache folder", f"none, the kernel is compiled in each process: {error}")


def _browser() -> str:
    if _release("dash") == "not installed":
        return "the dashboard is the extra [dashboard], which is not installed"
    from gradscope_dashboard.server import has_display

    return (
        "can be opened" if has_display() else "none can be opened: the dashboard prints its address"
    )


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.relu(self.fc(x))
        return x + y


def _training() -> Line:
    """Train a net of one block, and hold what is read of its last step to plain autograd."""
    what = "a training"
    try:
        with torch.random.fork_rng(devices=[]), tempfile.TemporaryDirectory() as folder:
            return Line(what, *_trained(Path(folder)))
    except Exception as error:
        return Line(what, f"failed: {type(error).__name__}: {error}", True)


def _trained(folder: Path) -> tuple[str, bool]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), _Block(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    expected: list[float] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with watch(model, folder / "run") as scope:
            for _ in range(_STEPS):
                optimizer.zero_grad()
                loss = model(torch.randn(4, 5)).square().sum()
                gradients = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
                expected.append(torch.cat([g.flatten() for g in gradients]).norm().item())
                loss.backward()
                optimizer.step()
        run = scope.run
    read = run.steps.grad_norm.tolist()
    said = "; ".join(run.notes)
    if len(read) != _STEPS or any(
        abs(a - b) > 1e-4 * b for a, b in zip(read, expected, strict=True)
    ):
        return f"is read wrongly: gradient norms {read}, by autograd {expected}. {said}", True
    lost = [name for name in ("signal_norm", "update_norm") if run.frame()[name].isna().any()]
    if lost or len(run.shortcuts) != 1:
        return f"is not read whole: {', '.join(lost) or 'its shortcut is not found'}. {said}", True
    return f"of {_STEPS} steps is read rightly", False
