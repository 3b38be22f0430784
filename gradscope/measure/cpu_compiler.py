"""The C compiler of the machine, where there is one, and what it made: kept in the user's cache."""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TypeVar

Loaded = TypeVar("Loaded")

_FLAGS = ("-O2", "-ftree-vectorize", "-march=native", "-shared", "-fPIC")
_PATIENCE = 30  # seconds that the compiler may take


def load(source: Path, read: Callable[[Path], Loaded]) -> Loaded | None:
    """Compile `source`, unless that was done, and `read` it; None where it cannot be had.

    That is so on Windows, with GRADSCOPE_KERNEL=0, and without a compiler that works.
    """
    command = compiler()
    if command is None:
        return None
    name = f"kernel-{_fingerprint(command, source)}.so"
    with suppress(OSError, RuntimeError, subprocess.SubprocessError):  # Runtime: there is no home
        path = cache_folder() / name
        if not path.exists():
            _compile(command, source, path)
        return read(path)
    with suppress(OSError, subprocess.SubprocessError), tempfile.TemporaryDirectory() as folder:
        _compile(command, source, Path(folder, name))
        return read(Path(folder, name))  # once loaded, the file is not needed any more
    return None


def compiler() -> tuple[str, ...] | None:
    """Return the command of the compiler, None where there is none or it is not wanted.

    `CC` may have arguments, as `gcc -m64` or `ccache cc` have.
    """
    if os.environ.get("GRADSCOPE_KERNEL") == "0" or sys.platform == "win32":
        return None
    with suppress(ValueError):  # a quotation mark too many
        command, *arguments = shlex.split(os.environ.get("CC") or "cc")
        if (found := shutil.which(command)) is not None:
            return found, *arguments
    return None


def cache_folder() -> Path:
    """Return the folder for compiled kernels; OSError where somebody else could write to it."""
    home = os.environ.get("XDG_CACHE_HOME")
    folder = (Path(home) if home else Path.home() / ".cache") / "gradscope"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    status = folder.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise PermissionError(f"{folder}: others could replace what is loaded from here")
    return folder


def _compile(command: tuple[str, ...], source: Path, path: Path) -> None:
    """Compile to `path`, whole or not at all: other processes may be doing the same."""
    draft = path.with_suffix(f".{os.getpid()}")
    try:
        subprocess.run(
            [*command, *_FLAGS, *_threading(command), "-o", str(draft), str(source), "-lm"],
            check=True,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PATIENCE,
        )
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _threading(command: tuple[str, ...]) -> list[str]:
    """Return what makes the kernel use the threads that torch has, none where that cannot be.

    A second OpenMP runtime in the process would have threads of its own, waiting in busy loops. So
    there is one thread where torch brings another runtime than GCC's, as on macOS, and where the
    compiler is clang, whose code asks for another.
    """
    with suppress(OSError):
        for line in Path("/proc/self/maps").read_text().splitlines():
            path = line.partition("/")[2]
            if Path(path).name.startswith("libgomp"):
                return [] if _is_clang(command) else ["-fopenmp", f"/{path}"]
    return []


@cache
def _is_clang(command: tuple[str, ...]) -> bool:
    """Whether a compiler is clang, by what it says: on macOS `cc` and `gcc` are."""
    with suppress(OSError, subprocess.SubprocessError):
        said = subprocess.run(
            [*command, "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PATIENCE,
        )
        return b"clang" in said.stdout.lower()
    return False


def _fingerprint(command: tuple[str, ...], source: Path) -> str:
    """Return a hash of what the compiled kernel depends on, the processor too: homes are shared."""
    told = [*command, *_FLAGS, *_threading(command), platform.machine(), source.read_text()]
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        told += sorted({line for line in lines if line.startswith(("flags", "Features"))})
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]
