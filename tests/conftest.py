"""Fixtures: runs on disk, and a browser that fails a test on any error on its console."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import releases
import synthetic
import trainings

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a worker for each core: one thread is enough
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before Triton is imported

CHROMIUM_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def pytest_configure() -> None:
    """Let Ctrl-C end what the tests start, also where a shell runs them in the background.

    It starts them with SIGINT ignored there, and a process hands that down.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs a browser by the fixture that starts it."""
    for item in items:
        if "chromium" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.browser)
            # one worker drives the browser: two at once on two cores lose clicks
            item.add_marker(pytest.mark.xdist_group("browser"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a folder on a file system of 512 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a small file system cannot be mounted here: {error}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(scope="session")
def warm() -> Iterator[trainings.Warm]:
    """Return a process that has imported everything and forks trainings."""
    with trainings.Warm() as process:
        yield process


@pytest.fixture(scope="session")
def run_two() -> Iterator[Callable[[str, Path], list[str]]]:
    """Return a function that trains on two processes and returns what each of them printed."""
    import distributed_training  # and torch with it, which not all tests need

    with distributed_training.Two() as two:
        yield two.train


@pytest.fixture(scope="session")
def ranks(run_two: Callable[..., object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a training by DDP on two processes, each with its own run.

    Beside it, with `-sharded` in its name, lies that of the same training by fully_shard.
    """
    if releases.RELEASE < (2, 9):
        pytest.skip(releases.SHARDS)
    folder = tmp_path_factory.mktemp("ranks") / "run"
    run_two("all", folder)
    return folder


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the synthetic runs `plain-50` and `residual-50`."""
    folder = tmp_path_factory.mktemp("pair")
    synthetic.write_pair(folder, n_layers=21, n_steps=60)
    return folder


HOSTILE = (
    '<img src=x onerror="window.stolen=1">',
    "</script><script>window.stolen=1</script>",
    '<a href="https://evil.example">click</a>',
    '=HYPERLINK("https://evil.example")',
    "a b&c?d=e#f%{x}",
)


@pytest.fixture(scope="session")
def hostile_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run whose layers have names that try to be markup, scripts and formulas."""
    path = tmp_path_factory.mktemp("hostile") / "run <b>bold</b> & co"
    writer = synthetic.start(path, n_layers=9)
    layers = synthetic.layer_table(9)
    for layer, name in zip(layers[::2], HOSTILE, strict=True):
        layer["name"] = name
    writer.update(layers=layers)
    synthetic.extend(writer, np.arange(30))
    writer.close()
    return path


@pytest.fixture(scope="session")
def chromium() -> Iterator[object]:
    """Start one Chromium for all tests; where there is none, skip, or fail in CI."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    path = next(filter(None, map(shutil.which, names)), None)
    with sync_api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=path, args=CHROMIUM_FLAGS)
        except sync_api.Error as error:
            reason = f"no Chromium could be started: {str(error).splitlines()[0]}"
            if os.environ.get("CI") == "true":
                pytest.fail(reason)
            pytest.skip(reason)
        yield browser
        browser.close()


@pytest.fixture
def dashboard() -> Iterator[Callable[[Path], str]]:
    """Return a function that serves the runs under a path and returns the address."""
    gradscope_dashboard = pytest.importorskip("gradscope_dashboard", reason="dash is missing")
    servers = []

    def serve(path: Path, **options: str) -> str:
        servers.append(gradscope_dashboard.start(path, **options))
        return servers[-1].url

    yield serve
    for server in servers:
        server.stop()


@pytest.fixture
def browse(dashboard: object, chromium: object) -> Iterator[Callable[..., object]]:
    """Return a function that opens an address in a fresh context and returns its page.

    The test fails if one of its pages wrote an error to the console or requested anything from
    another host.
    """
    problems: list[str] = []
    contexts = []

    def open_page(url: str, **options: object) -> object:
        options.setdefault("viewport", {"width": 1440, "height": 900})
        context = chromium.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on(
            "console",
            lambda said: problems.append(said.text) if said.type in ("error", "warning") else None,
        )
        host = url.split("/")[2]
        page.on(
            "request",
            lambda request: (
                problems.append(f"request to {request.url}")
                if request.url.startswith("http") and request.url.split("/")[2] != host
                else None
            ),
        )
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not problems
