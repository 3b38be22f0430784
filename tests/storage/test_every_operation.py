"""A writer that dies, or whose disk fails, at each single operation on the disk in turn.

`test_faults.py` and `session/test_process_end.py` strike at random moments; here none is left out:
within a merge, between two renames, before a folder is synced.
"""

from __future__ import annotations

import builtins
import errno
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

import synthetic
import trainings
from gradscope.errors import GradscopeError, GradscopeWarning
from gradscope.runs.loading import load
from gradscope.storage import parts
from gradscope.storage.writer import RunWriter

STEPS = 6


def write(path: Path, flushed: Callable[[int], None] = lambda steps: None) -> None:
    """Write a run step by step, and say after each how many are on disk; go on with one there is.

    Two parts are merged to one, so that few steps make merges of merged parts.
    """
    with patch.object(parts, "PARTS_PER_MERGE", 2):
        writer = RunWriter(path, {"model": "Net"}, resume=True)
        writer.update(layers=synthetic.layer_table(6), shortcuts=synthetic.shortcut_table(2))
        for step in range(writer.next_step, STEPS):
            synthetic.extend(writer, np.array([step]))
            writer.flush()
            flushed(step + 1)
        writer.close()


class Strike:
    """Calls `act` before, or after, the operation number `at`; a context manager.

    Syncs are counted, but left out: no power is lost here.
    """

    def __init__(self, at: int, act: Callable[[], None], after: bool = False) -> None:
        self.count = 0
        self._at, self._act, self._after = at, act, after
        operations = [(builtins, "open"), (os, "open"), (os, "fsync")]
        operations += [(os, name) for name in ("replace", "unlink", "mkdir")]
        self._patches = [patch.object(*o, self._struck(*o)) for o in operations]

    def _struck(self, module: object, name: str) -> Callable[..., object]:
        real = getattr(module, name)

        def operation(*arguments: object, **options: object) -> object:
            due = self.count == self._at
            self.count += 1
            if due and (name == "open" or not self._after):
                self._act()
            result = None if name == "fsync" else real(*arguments, **options)
            if due:
                self._act()
            return result

        return operation

    def __enter__(self) -> Strike:
        for patched in self._patches:
            patched.start()
        return self

    def __exit__(self, *error: object) -> None:
        for patched in self._patches:
            patched.stop()


def operations(path: Path) -> int:
    """Return how many operations it takes to write the run."""
    with Strike(-1, lambda: None) as counted:
        write(path)
    assert synthetic.check_rows(load(path)).size == STEPS
    shutil.rmtree(path)
    assert counted.count > 100
    return counted.count


def die_at_each(folder: Path) -> None:
    """Write a run `<folder>/<at>` for each operation `at`, and die there: a training of its own."""
    for at in range(operations(folder / "counted")):
        process = os.fork()
        if process == 0:
            path = folder / str(at)
            progress = trainings.Progress(path)

            def count(steps: int) -> None:
                progress.made = steps  # noqa: B023

            with Strike(at, lambda: os._exit(9)):
                write(path, count)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 9


def check_left(path: Path, at: int, flushed: int) -> None:
    """Check what a writer that died left behind."""
    if not (path / "run.json").exists():
        assert flushed == 0
        return
    run = load(path)
    assert run.status == "crashed" or flushed == STEPS, at
    steps = synthetic.check_rows(run) if len(run.layers) else run.steps.step.to_numpy()
    assert steps.tolist() == list(range(len(steps))), at
    assert flushed <= len(steps) <= flushed + 1, at


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*no step is recorded")
def test_a_writer_that_dies_at_any_operation_loses_nothing_that_was_flushed(
    tmp_path: Path,
) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, __file__, str(tmp_path)], check=True, env=environment)
    dead = sorted(int(file.stem) for file in tmp_path.glob("*.progress"))
    assert len(dead) > 100
    for at in dead:
        path = tmp_path / str(at)
        check_left(path, at, trainings.Progress(path).made)
        with Strike(-1, lambda: None):
            write(path)
        run = load(path)
        assert run.status == "closed"
        assert synthetic.check_rows(run).tolist() == list(range(STEPS)), at
        assert not list(path.rglob("*.tmp")), at


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True], ids=["undone", "done"])
def test_a_disk_that_fails_at_any_operation_loses_and_doubles_nothing(
    tmp_path: Path, after: bool
) -> None:
    """Once, as a network file system does: what it was to do may have been done nevertheless."""

    def fail() -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    told = refused = 0
    for at in range(operations(tmp_path / "counted")):
        path = tmp_path / str(at)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                with Strike(at, fail, after):
                    write(path)
            except GradscopeError as error:  # nothing was begun: the user is told, and may retry
                assert "input/output error" in str(error)
                refused += 1
                with Strike(-1, fail):
                    write(path)
            run = load(path)
            steps = run.steps.step.tolist()
        assert all(warning.category is GradscopeWarning for warning in said)
        told += bool(said)
        lost = [step for gap in run.meta["lost"] for step in range(gap["first"], gap["last"] + 1)]
        assert sorted(steps + lost) == list(range(STEPS)), at
        assert lost in ([], [STEPS - 1]), at
        synthetic.check_rows(run)
        assert not list(path.rglob("*.tmp")), at
    assert refused > 3
    assert told > 100


if __name__ == "__main__":  # in a process that has no threads, since it forks
    die_at_each(Path(sys.argv[1]))
