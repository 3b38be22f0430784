"""Windows and macOS, as far as Linux can play them: what is not there is taken away.

What is left of the real systems is said in docs/platforms.md.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

PLAYED = """
import os, sys
import filelock, numpy, pandas, pyarrow.parquet, torch, torch.utils.data  # as they are here
import copy, ctypes, pathlib, shutil, tempfile

platform = sys.argv[1]
sys.platform = platform
if platform == "win32":
    import fcntl  # filelock of Linux needs it
    for name in ("fcntl", "resource", "pwd", "grp", "termios"):
        sys.modules[name] = None
    for name in ("fork", "getuid", "geteuid", "register_at_fork"):
        if hasattr(os, name):
            delattr(os, name)
real = pathlib.Path.read_text
def read_text(path, *args, **kwargs):
    if str(path).startswith("/proc"):
        raise FileNotFoundError(path)
    return real(path, *args, **kwargs)
pathlib.Path.read_text = read_text
"""

TRAINED = """
import warnings
warnings.simplefilter("error")
import gradscope
import gradscope.storage.lock
if platform == "win32":
    assert gradscope.storage.lock.fcntl is None
    sys.modules["fcntl"] = fcntl
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)
    def forward(self, x):
        return x + torch.relu(self.fc(x))

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(5, 8), Block(), nn.Linear(8, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
scope = gradscope.watch(model, "run", flush_every=2)
for _ in range(20):
    optimizer.zero_grad()
    model(torch.randn(4, 5)).square().sum().backward()
    optimizer.step()
run = scope.run
assert run.status == "running", run.status
try:
    gradscope.watch(copy.deepcopy(model), "run", resume=True)
except gradscope.GradscopeError as error:
    assert "another process or scope writes this run" in str(error), error
else:
    raise AssertionError("two writers")
scope.close()
run = gradscope.load("run")
assert run.status == "closed" and run.notes == [], run.notes
assert len(run.steps) == 20 and len(run.shortcuts) == 1
frame = run.frame()
assert frame.grad_norm.notna().all() and frame.update_norm.notna().all()
assert run.shortcut_readings.cosine.notna().all()
gradscope.watch(model, "run", resume=True).close()
print(gradscope.diagnose(run).verdict)
from gradscope.measure.cpu_kernel import kernel
print("kernel", kernel() is not None)
"""


@pytest.mark.parametrize("platform", ["win32", "darwin"])
def test_a_training_is_recorded_without_what_other_systems_do_not_have(platform, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PLAYED + TRAINED, platform],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert ("kernel True" in done.stdout) <= (platform == "darwin")
