"""What is left of a run, and of training, when the process or the disk fails."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import threading
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest

import synthetic
from disk import full_disk
from gradscope.errors import GradscopeError, GradscopeWarning
from gradscope.runs.loading import load
from gradscope.storage.writer import MEMORY_LIMIT, RunWriter
from synthetic import span

WRITER = """
import sys
import numpy as np, synthetic
from gradscope.storage.writer import RunWriter

writer = RunWriter(sys.argv[1], {}, resume=True)
writer.update(layers=synthetic.layer_table(6), shortcuts=synthetic.shortcut_table(2))
for step in range(writer.next_step, writer.next_step + int(sys.argv[2])):
    synthetic.extend(writer, np.array([step]))
    writer.flush()
    print(step, flush=True)
writer.close()
"""
"""Writes and flushes step by step, and prints each step that is on disk."""


def start_process(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


# --- the process dies ---------------------------------------------------------------------------


@pytest.mark.slow
def test_a_killed_process_loses_only_what_was_not_flushed(tmp_path: Path) -> None:
    moments = random.Random(0)
    path = tmp_path / "run"
    flushed = -1
    for _ in range(8):
        with start_process(WRITER, path, 10_000) as process:
            assert process.stdout is not None
            for _ in range(moments.randrange(1, 30)):
                flushed = int(process.stdout.readline())
            try:  # somewhere within the next flushes
                process.wait(timeout=moments.uniform(0, 0.02))
            except subprocess.TimeoutExpired:
                process.kill()
            flushed = max([flushed, *map(int, process.stdout.read().split())])
        run = load(path)
        assert run.status == "crashed"
        steps = synthetic.check_rows(run)
        assert steps.tolist() == list(range(len(steps)))
        assert steps[-1] in (flushed, flushed + 1)  # killed after the flush, before the print


def test_a_dead_process_holds_no_lock(tmp_path: Path) -> None:
    with start_process(WRITER, tmp_path / "run", 10_000) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert load(tmp_path / "run").status == "running"
        with pytest.raises(GradscopeError, match="another process or scope writes this run"):
            RunWriter(tmp_path / "run", {}, resume=True)
        process.kill()
    RunWriter(tmp_path / "run", {}, resume=True).close()


FORKING = """
import os, sys
import numpy as np, synthetic

writer = synthetic.start(sys.argv[1], n_layers=6, residual=True)
synthetic.extend(writer, np.arange(5))
child = os.fork()
if child == 0:
    synthetic.extend(writer, np.arange(5, 9))
    writer.flush()
    writer.update(notes=["from the worker"])
    writer.close()
    os.write(1, b"forked\\n")
    os.read(0, 1)  # lives on until its stdin is closed
    os._exit(0)
os.write(1, b"parent\\n")
os.kill(os.getpid(), 9)
"""


def test_a_forked_worker_neither_writes_nor_holds_the_lock(tmp_path: Path) -> None:
    read, write = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", FORKING, str(tmp_path / "run")],
        stdin=read,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    with process:
        assert process.stdout is not None
        assert sorted(process.stdout.readline() for _ in "12") == ["forked\n", "parent\n"]
        process.wait()
        assert load(tmp_path / "run").notes == []
        writer = RunWriter(tmp_path / "run", {}, resume=True)
        assert writer.next_step == 0
        writer.close()
        os.close(write)
        os.close(read)


# --- others read meanwhile ----------------------------------------------------------------------


@pytest.mark.slow
def test_readers_of_a_live_run_never_fail_and_see_whole_steps(tmp_path: Path) -> None:
    path = tmp_path / "run"
    wrong: list[BaseException] = []

    def poll(process: subprocess.Popen[str]) -> None:
        try:
            seen = 0
            run = load(path)
            while process.poll() is None or seen == 0:
                run.refresh()
                for reader in (run, load(path)):
                    steps = synthetic.check_rows(reader)
                    assert steps.tolist() == list(range(len(steps)))
                    assert len(steps) >= seen
                seen = len(steps)
        except BaseException as error:
            wrong.append(error)

    with start_process(WRITER, path, 150) as process:
        assert process.stdout is not None
        process.stdout.readline()
        readers = [threading.Thread(target=poll, args=[process]) for _ in range(4)]
        for reader in readers:
            reader.start()
        assert process.stdout.read().split() == [str(step) for step in range(1, 150)]
    for reader in readers:
        reader.join()
    assert wrong == []
    assert len(load(path).steps) == 150


# --- the disk refuses ---------------------------------------------------------------------------


def test_rows_wait_for_a_full_disk_to_come_back(tmp_path: Path) -> None:
    writer = synthetic.start(tmp_path / "run", n_layers=6, residual=True)
    synthetic.extend(writer, span(0, 9))
    writer.flush()
    with full_disk(), pytest.warns(GradscopeWarning, match="rows cannot be written, file too"):
        for step in range(10, 40):
            synthetic.extend(writer, span(step, step))
            writer.flush()
    run = load(tmp_path / "run")
    assert synthetic.check_rows(run).tolist() == list(range(10))
    assert not list((tmp_path / "run").rglob("*.tmp"))
    synthetic.extend(writer, span(40, 49))
    writer.flush()
    writer.close()
    assert run.refresh()
    assert synthetic.check_rows(run).tolist() == list(range(50))
    assert run.meta["lost"] == []


@pytest.mark.slow
def test_a_disk_that_takes_some_files_loses_and_doubles_nothing(tmp_path: Path) -> None:
    writer = synthetic.start(tmp_path / "run", n_layers=6, residual=True)

    def extend(step: int) -> None:
        rows = span(step, step)
        writer.add_rows("layers", synthetic.layer_rows(6, rows, synthetic.RESIDUAL_DECADES))
        writer.add_rows("shortcuts", synthetic.shortcut_rows(2, rows))
        scalars = {f"accuracy of class {i}": np.array([0.5]) for i in range(50)}
        writer.add_rows("steps", {**synthetic.step_rows(rows, loss_floor=0.0), **scalars})

    extend(0)
    writer.flush()
    sizes = [part.stat().st_size for part in (tmp_path / "run").rglob("part-*")]
    chance = random.Random(0)
    torn = 0
    for step in range(1, 60):
        with full_disk(chance.choice([*sizes, 2**20])), warnings.catch_warnings():
            warnings.simplefilter("ignore", GradscopeWarning)
            extend(step)
            writer.flush()
        last = synthetic.check_rows(load(tmp_path / "run"))[-1]
        layers = max(part.name[18:30] for part in (tmp_path / "run" / "layers").glob("part-*"))
        torn += int(layers) > last  # the layers' part fitted, that of the steps did not
    writer.close()
    assert torn > 0
    assert synthetic.check_rows(load(tmp_path / "run")).tolist() == list(range(60))


def test_a_full_disk_is_told_once_and_never_raises(tmp_path: Path) -> None:
    writer = synthetic.start(tmp_path / "run")
    with full_disk():
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            for step in range(5):
                synthetic.extend(writer, span(step, step))
                writer.flush()
            writer.update(notes=["x"])
        assert len(told) == 1
    writer.flush()
    with full_disk(), warnings.catch_warnings():
        warnings.simplefilter("error")
        synthetic.extend(writer, span(5, 5))
        writer.flush()
    writer.close()
    assert len(load(tmp_path / "run").steps) == 6


def test_memory_stays_bounded_and_dropped_steps_are_told(tmp_path: Path) -> None:
    writer = synthetic.start(tmp_path / "run", n_layers=300)
    synthetic.extend(writer, span(0, 99))
    writer.flush()
    filled = False
    tracemalloc.start()
    with full_disk(), pytest.warns(GradscopeWarning, match="wait in memory"):
        before, _ = tracemalloc.get_traced_memory()
        for begin in range(100, 5300, 400):
            synthetic.extend(writer, span(begin, begin + 399))
            held = tracemalloc.get_traced_memory()[0] - before
            assert held <= MEMORY_LIMIT + 2**23  # and a little that is no row
            filled = filled or held > 0.5 * MEMORY_LIMIT
    tracemalloc.stop()
    assert filled
    writer.close()
    with pytest.warns(GradscopeWarning, match=r"lost steps 100-\d+: file too large"):
        run = load(tmp_path / "run")
    (lost,) = run.meta["lost"]
    steps, signal = run.matrix("signal_norm")
    assert steps.tolist() == [*range(100), *range(lost["last"] + 1, 5300)]
    assert lost["last"] < 4300
    expected = synthetic.signal(300, steps, synthetic.PLAIN_DECADES).astype(np.float32)
    np.testing.assert_array_equal(signal, expected)


def test_a_disk_full_to_the_end_is_told_in_the_run(small_disk: Path) -> None:
    writer = synthetic.start(small_disk / "run", n_layers=6, residual=True)
    synthetic.extend(writer, span(0, 9))
    writer.flush()
    with pytest.raises(OSError, match="No space left"):
        (small_disk / "ballast").write_bytes(bytes(2**20))
    synthetic.extend(writer, span(10, 29))
    with pytest.warns(GradscopeWarning, match="no space left on device"):
        writer.flush()
    with pytest.warns(GradscopeWarning, match="lost steps 10-29: no space left on device"):
        writer.close()
    with pytest.warns(GradscopeWarning, match="lost steps 10-29: no space left on device"):
        run = load(small_disk / "run")
    assert run.status == "closed"
    assert synthetic.check_rows(run).tolist() == list(range(10))


def test_rows_are_written_once_a_full_disk_has_space_again(small_disk: Path) -> None:
    writer = synthetic.start(small_disk / "run", n_layers=6, residual=True)
    ballast = small_disk / "ballast"
    with pytest.raises(OSError, match="No space left"):
        ballast.write_bytes(bytes(2**20))
    synthetic.extend(writer, span(0, 29))
    with pytest.warns(GradscopeWarning, match="no space left on device"):
        writer.flush()
    ballast.unlink()
    writer.close()
    assert synthetic.check_rows(load(small_disk / "run")).tolist() == list(range(30))


def test_a_disk_that_turns_read_only_keeps_its_run(small_disk: Path) -> None:
    writer = synthetic.start(small_disk / "run", n_layers=6, residual=True)
    synthetic.extend(writer, span(0, 9))
    writer.flush()
    # another mount of the same files: this one can turn read-only while they are open for writing
    subprocess.run(["mount", "--bind", str(small_disk), str(small_disk)], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(small_disk)], check=True)
        with pytest.raises(GradscopeError, match="cannot be written, read-only file system"):
            RunWriter(small_disk / "other", {})
        synthetic.extend(writer, span(10, 19))
        with pytest.warns(GradscopeWarning, match="read-only file system"):
            writer.flush()
        assert synthetic.check_rows(load(small_disk / "run")).tolist() == list(range(10))
    finally:
        subprocess.run(["umount", str(small_disk)], check=True)
    writer.close()
    assert synthetic.check_rows(load(small_disk / "run")).tolist() == list(range(20))


def test_a_folder_that_comes_back_gets_the_rows_that_waited(tmp_path: Path) -> None:
    writer = synthetic.start(tmp_path / "run", n_layers=6, residual=True)
    synthetic.extend(writer, span(0, 9))
    writer.flush()
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    synthetic.extend(writer, span(10, 19))
    with pytest.warns(GradscopeWarning, match="no such file or directory"):
        writer.flush()
    (tmp_path / "elsewhere").rename(tmp_path / "run")
    writer.close()
    assert synthetic.check_rows(load(tmp_path / "run")).tolist() == list(range(20))


def test_a_new_run_in_a_removed_folder_is_left_alone(tmp_path: Path) -> None:
    old = synthetic.start(tmp_path / "run", n_layers=6, residual=True)
    synthetic.extend(old, span(0, 9))
    old.flush()
    shutil.rmtree(tmp_path / "run")
    new = synthetic.start(tmp_path / "run", n_layers=6, residual=True)
    synthetic.extend(new, span(0, 4))
    new.flush()
    synthetic.extend(old, span(10, 19))
    with pytest.warns(GradscopeWarning, match="another run is in its folder now"):
        old.flush()
    old.update(notes=["of the old run"])
    with pytest.warns(GradscopeWarning, match="lost steps 10-19: another run is in its folder"):
        old.close()
    assert (tmp_path / "run" / ".room").exists()  # the new run's
    synthetic.extend(new, span(5, 29))
    new.close()
    run = load(tmp_path / "run")
    assert synthetic.check_rows(run).tolist() == list(range(30))
    assert run.notes == []


def test_a_run_whose_lock_is_removed_or_copied_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "run"
    writer = synthetic.start(path, n_layers=6, residual=True)
    synthetic.extend(writer, span(0, 9))
    writer.flush()
    (path / ".lock").unlink()
    synthetic.extend(writer, span(10, 19))
    writer.flush()
    shutil.copytree(path, tmp_path / "copy")
    shutil.rmtree(path)
    (tmp_path / "copy").rename(path)
    synthetic.extend(writer, span(20, 29))
    writer.flush()
    assert load(path).status == "running"
    with pytest.raises(GradscopeError, match="another process or scope writes this run"):
        RunWriter(path, {}, resume=True)
    writer.close()
    assert synthetic.check_rows(load(path)).tolist() == list(range(30))


def test_a_copied_run_that_another_process_writes_is_left_to_it(tmp_path: Path) -> None:
    path = tmp_path / "run"
    old = synthetic.start(path, n_layers=6, residual=True)
    synthetic.extend(old, span(0, 9))
    old.flush()
    path.rename(tmp_path / "elsewhere")
    shutil.copytree(tmp_path / "elsewhere", path)
    new = RunWriter(path, {}, resume=True)
    synthetic.extend(old, span(10, 14))
    with pytest.warns(GradscopeWarning, match="another process writes it now"):
        old.flush()
    synthetic.extend(new, span(10, 29))
    new.close()
    with (
        pytest.warns(GradscopeWarning, match="rows cannot be written, another process has gone on"),
        pytest.warns(GradscopeWarning, match="lost steps 10-14: another process has gone on"),
    ):
        old.close()
    parts = sorted(part.name[:30] for part in (path / "steps").glob("part-*"))
    assert parts == ["part-000000000000-000000000009", "part-000000000010-000000000029"]
    assert synthetic.check_rows(load(path)).tolist() == list(range(30))


def test_a_removed_folder_stays_removed_and_training_goes_on(tmp_path: Path) -> None:
    writer = synthetic.start(tmp_path / "run", n_layers=6)
    synthetic.extend(writer, span(0, 9))
    writer.flush()
    run = load(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    synthetic.extend(writer, span(10, 19))
    with pytest.warns(GradscopeWarning, match="no such file or directory"):
        writer.flush()
    with pytest.warns(GradscopeWarning, match="lost steps 10-19"):
        writer.close()
    assert not (tmp_path / "run").exists()
    with pytest.raises(GradscopeError, match="cannot be read, no such file"):
        run.refresh()
