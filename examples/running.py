"""What the examples share: their command line, their folders, the way to the dashboard."""

from __future__ import annotations

import argparse
import subprocess
import sys
from contextlib import suppress
from pathlib import Path


def arguments(description: str, steps: int) -> argparse.Namespace:
    """Read the command line; `steps` is the default number of training steps of each net."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--steps", type=int, default=steps, help="training steps of each net")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, mps ...")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder for the runs")
    parser.add_argument(
        "--no-dashboard", dest="dashboard", action="store_false", help="stop after the tables"
    )
    parser.add_argument(
        "--no-browser", dest="browser", action="store_false", help="only print the dashboard's URL"
    )
    args = parser.parse_args()
    if args.steps < 1:
        parser.error(f"--steps must be 1 or more, got {args.steps}")
    return args


def free_folder(parent: Path, name: str) -> Path:
    """Return `parent`/`name`, or with a number behind it where earlier runs are in the way."""
    folder, number = parent / name, 1
    while folder.exists():
        number += 1
        folder = parent / f"{name}-{number}"
    return folder


def open_dashboard(args: argparse.Namespace) -> None:
    """Show the runs, unless the command line says not to; returns when the user ends it."""
    if args.dashboard:
        browser = [] if args.browser else ["--no-browser"]
        command = [sys.executable, "-m", "gradscope", "dashboard", str(args.runs), *browser]
        with suppress(KeyboardInterrupt):  # Ctrl-C ends the dashboard, and so the example
            sys.exit(subprocess.run(command, check=False).returncode)
