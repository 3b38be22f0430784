"""One writer a run, seen by readers: by flock and, where there is none as on Windows, filelock."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from gradscope.errors import GradscopeError
from gradscope.storage import files, lock
from gradscope.storage.lock import Lock, is_live


@pytest.fixture(params=["flock", "filelock"], autouse=True)
def way(request, monkeypatch):
    if request.param == "filelock":
        monkeypatch.setattr(lock, "fcntl", None)
    return request.param


def test_a_second_writer_is_refused_until_the_first_lets_go(tmp_path):
    first = Lock(tmp_path)
    with pytest.raises(GradscopeError, match="another process or scope writes this run"):
        Lock(tmp_path)
    assert first.held and first.is_in(tmp_path) and is_live(tmp_path)
    first.release()
    assert not first.held and not is_live(tmp_path)
    second = Lock(tmp_path)
    assert is_live(tmp_path)
    second.release()


def test_a_lock_ends_with_its_process(tmp_path, way):
    without = "lock.fcntl = None;" if way == "filelock" else ""
    script = (
        f"from gradscope.storage import lock; {without}"
        "from pathlib import Path; import sys, time;"
        "held = lock.Lock(Path(sys.argv[1])); print('held', flush=True); time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stdout.readline().strip() == b"held"
        assert is_live(tmp_path)
        process.kill()
        process.wait()
    assert not is_live(tmp_path)
    Lock(tmp_path).release()


def test_a_run_whose_lock_is_gone_or_was_never_there_is_not_live(tmp_path):
    assert not is_live(tmp_path)
    assert list(tmp_path.iterdir()) == []
    held = Lock(tmp_path)
    (tmp_path / lock.LOCK_NAME).unlink()
    assert not held.is_in(tmp_path)
    held.release()


def test_a_file_that_is_read_for_a_while_is_replaced_and_removed_after_that(tmp_path, monkeypatch):
    """As on Windows, where neither can be while a reader has it open."""
    monkeypatch.setattr(files, "READERS_BLOCK", True)
    read = threading.Event()
    replace, unlink = files.os.replace, Path.unlink

    def refusing(change):
        def change_unless_read(*args, **kwargs):
            if not read.is_set():
                raise PermissionError("used by another process")
            return change(*args, **kwargs)

        return change_unless_read

    monkeypatch.setattr(files.os, "replace", refusing(replace))
    monkeypatch.setattr(Path, "unlink", refusing(unlink))
    (tmp_path / "new").write_text("new")
    (tmp_path / "old").write_text("old")
    threading.Timer(0.1, read.set).start()
    files.replace(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old").read_text() == "new" and not (tmp_path / "new").exists()
    read.clear()
    threading.Timer(0.1, read.set).start()
    files.remove(tmp_path / "old")
    assert list(tmp_path.iterdir()) == []


def test_what_stays_refused_is_an_error_and_not_waited_for_where_readers_block_nothing(
    tmp_path, monkeypatch
):
    tries = []

    def refuse(*_):
        tries.append(1)
        raise PermissionError("no")

    monkeypatch.setattr(files.os, "replace", refuse)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    for block, expected in ((False, 1), (True, 50)):
        tries.clear()
        monkeypatch.setattr(files, "READERS_BLOCK", block)
        with pytest.raises(PermissionError):
            files.replace(tmp_path / "new", tmp_path / "old")
        assert len(tries) == expected
