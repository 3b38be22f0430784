"""`gradscope what-if`, started from the page, where whoever started the dashboard allows it."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path


class Starter:
    """Runs `gradscope what-if` on the script that was named, one at a time.

    Parameters
    ----------
    script : str
        `train.py:setup`, named on the command line: a page can start this one and nothing else.
    folder : Path
        Of the runs.
    """

    def __init__(self, script: str, folder: Path) -> None:
        self.script = script
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `stop`)

    @property
    def state(self) -> str:
        """How it stands: "", "running", or what was said at the end."""
        if self._process is None:
            return ""
        code = self._process.poll()
        if code is None:
            return "running"
        self._said.seek(0)
        lines = self._said.read().decode("utf-8", "replace").strip().splitlines() or [""]
        return "Done." if code == 0 else f"Failed: {lines[-1]}"

    def start(self) -> str:
        """Start it, unless it runs; return what to say."""
        if self.state == "running":
            return " It is running already."
        self._said.seek(0)
        self._said.truncate()
        run = self._folder / f"{time.strftime('%Y%m%d-%H%M%S')}-what-if"
        command = [sys.executable, "-m", "gradscope", "what-if", self.script, "--run", str(run)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=self._said)
        return " Started."

    def stop(self) -> None:
        """End what runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait()
        self._said.close()
