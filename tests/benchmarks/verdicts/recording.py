"""Record a training once: its run as it was on disk after each look, and its losses."""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import os
import random
import shutil
import textwrap
import time
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import gradscope

from . import trainings
from .trainings import LOOKS, Training

RECORDERS = ("arithmetic", "autograd", "capture", "measure", "schema", "session", "storage")
"""Parts of gradscope that decide what is recorded."""

ABOUT = "training.json"


def folder_of(cache: Path, training: Training, log_loss: bool) -> Path:
    """Return where a training is recorded: another folder once its code or the options changed."""
    build, arguments = training.build, ""
    if isinstance(build, partial):
        build, arguments = build.func, repr((build.args, build.keywords))
    code = ast.parse(textwrap.dedent(inspect.getsource(build))).body[0]
    assert isinstance(code, ast.FunctionDef)
    body = [ast.unparse(line) for line in code.body]  # not what the decorator expects
    told = json.dumps([body, arguments, LOOKS, log_loss])
    key = hashlib.sha256(told.encode()).hexdigest()[:8]
    return cache / f"{training.name.replace(' ', '_').replace('/', '-')}-{key}"


def look_of(folder: Path, steps: int) -> Path:
    """Return the run as it was after `steps` steps."""
    return folder / f"after-{steps}"


def about(folder: Path) -> dict[str, Any] | None:
    """Return what is known of a recorded training: losses, seconds, recorder; None if it is not."""
    file = folder / ABOUT
    return json.loads(file.read_text()) if file.is_file() else None


def record(name: str, more: list[Path], cache: Path, log_loss: bool) -> str:
    """Train for the longest look, watched; return "" or what went wrong."""
    training = trainings.load(more)[name]
    folder = folder_of(cache, training, log_loss)
    growing = folder.with_name(f".{folder.name}-{os.getpid()}")
    shutil.rmtree(growing, ignore_errors=True)
    growing.mkdir(parents=True)
    try:
        told = train(training, growing, log_loss)
    except Exception as error:
        shutil.rmtree(growing, ignore_errors=True)
        return f"{type(error).__name__}: {error}"
    (growing / ABOUT).write_text(json.dumps(told, indent=1))
    shutil.rmtree(folder, ignore_errors=True)
    growing.rename(folder)
    return ""


def train(training: Training, folder: Path, log_loss: bool) -> dict[str, Any]:
    """Train for the longest look, and leave a copy of the run at each in `folder`."""
    seed = training.name.encode()
    torch.set_num_threads(1)
    for start in (torch.manual_seed, random.seed, np.random.seed):
        start(int.from_bytes(hashlib.sha256(seed).digest()[:4], "big"))
    began = time.perf_counter()
    model, step = training.build()
    progress: list[float] = []
    with gradscope.watch(model, run=folder / "run") as scope:
        for number in range(1, max(LOOKS) + 1):
            scalars = step(number - 1)
            scalars = dict(scalars) if isinstance(scalars, Mapping) else {"loss": scalars}
            scalars = {key: float(value) for key, value in scalars.items()}
            told = scalars.pop("progress", scalars.get("loss"))
            progress.append(told)
            if log_loss:
                scope.log(**scalars)
            if number in LOOKS:
                scope.flush()
                shutil.copytree(folder / "run", look_of(folder, number))
    shutil.rmtree(folder / "run")
    return {
        "name": training.name,
        "progress": progress,
        "seconds": round(time.perf_counter() - began, 1),
        "recorder": recorder(),
    }


@cache
def recorder() -> str:
    """Return a hash of the code that records."""
    told = hashlib.sha256()
    top = Path(gradscope.__file__).parent
    for part in RECORDERS:
        path = top / part
        for file in [path.with_suffix(".py")] if not path.is_dir() else sorted(path.rglob("*.py")):
            told.update(file.read_bytes())
    return told.hexdigest()[:8]


def learnt(progress: list[float]) -> bool:
    """Whether the loss, or what stands for it, fell by a tenth of where it began, or more."""
    start, end = np.mean(progress[:3]), np.median(progress[-10:])
    return bool(np.isfinite(progress).all() and end < start - 0.1 * abs(start))
