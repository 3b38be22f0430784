"""The map of the code: every module has a room, and imports only from the rooms below it.

Training needs neither pandas nor plotly nor dash, looking at a run needs no torch.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]


class Room(NamedTuple):
    """Modules that may import these libraries, what stands in these rooms, and before them here."""

    libraries: str
    below: str
    modules: str


ROOMS = {
    # what everybody may know: errors, the tables and columns of a run, words
    "foundation": Room(
        "numpy",
        "",
        "_version errors schema kinds words progress derived gradscope",
    ),
    # a run on disk, written so that a crash loses nothing that was flushed
    "files": Room("numpy pyarrow", "foundation", "parts meta lock store"),
    # tensors, modules and autograd graphs to readings on the device
    "measuring": Room(
        "torch numpy",
        "foundation",
        "kernel host measure activations catalogue layers modules graph flow sums rule joins tape"
        " functional plan cuts passes gradients ranks parameters taps scaling compiling",
    ),
    # the life of a training: watch() and Scope
    "recording": Room(
        "torch numpy",
        "foundation files measuring",
        "decode sinks alerts drain opening process recorder checks scope counterfactual probes",
    ),
    # a run as frames, arrays and CSV
    "reading": Room(
        "numpy pandas pyarrow", "foundation files", "export frames readings remote run loading"
    ),
    # frames to verdicts, their causes and remedies
    "judging": Room(
        "numpy pandas",
        "foundation reading",
        "findings blocks signal_path case gains rules rules.flow rules.layers rules.blocks"
        " diagnosis comparison",
    ),
    # frames to figures, and a page of them
    "drawing": Room(
        "numpy pandas plotly",
        "foundation reading judging",
        "plots.words plots.theme plots.metrics plots.sampling plots.readings plots.panels"
        " plots.profile_picture plots.road plots.layer_table plots.depth_profile plots.derivatives"
        " plots.flow_map plots.heatmap plots.history plots.ledger plots.speed plots.survival"
        " plots.training plots report",
    ),
    # other people's training loops and trackers
    "integrations": Room(
        "torch lightning pytorch_lightning transformers mlflow",
        "foundation recording",
        "integrations integrations.lightning integrations.transformers integrations.mlflow"
        " integrations.tensorboard integrations.wandb",
    ),
    # what people do with runs and machines beside training: merge ranks, measure the cost
    "tools": Room(
        "torch numpy pandas wandb lightning",
        "foundation files measuring recording reading",
        "merging workloads watchers bench",
    ),
    # the command line; its commands import what they need on use
    "command": Room("", "foundation", "cli __main__"),
    # the browser's side
    "dashboard": Room(
        "numpy pandas dash flask werkzeug",
        "foundation reading judging drawing",
        "background security library state cards page history views.depth views.flow views.layers"
        " views.layers_steps views.speed views.training views.why views exports controls app server"
        " gradscope_dashboard",
    ),
}
"""Rooms from the bottom to the top; within a room, a module imports only what is named before."""

LAZY = {
    "gradscope.alerts": "case diagnosis loading",  # a scope reads back what it has written
    "gradscope.cli": "bench diagnosis export findings loading merging report gradscope_dashboard",
    "gradscope.counterfactual": "pandas",
    "gradscope.remote": "fsspec",
    "gradscope.run": "gains",
    "gradscope.scope": "loading",
}
"""Module -> what it imports within functions, on use, from rooms or of libraries beyond its own."""


def files() -> dict[str, Path]:
    """Return the file of each module of both packages."""
    found = {}
    for package in (ROOT / "gradscope", ROOT / "dashboard" / "gradscope_dashboard"):
        for file in package.rglob("*.py"):
            parts = file.relative_to(package.parent).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


FILES = files()


def full(name: str, room: str) -> str:
    """Return the whole name of a module of ROOMS."""
    package = "gradscope_dashboard" if room == "dashboard" else "gradscope"
    return name if name == package else f"{package}.{name}"


PLACES = [(full(name, room), room) for room in ROOMS for name in ROOMS[room].modules.split()]
ROOM_OF = dict(PLACES)
ORDER = {name: place for place, (name, _) in enumerate(PLACES)}


def imports(file: Path) -> Iterator[tuple[str, bool]]:
    """Yield what a file imports, but not for types alone, and whether it does within a function."""
    tree = ast.parse(file.read_text())

    def inside(kind: type[ast.AST] | tuple[type[ast.AST], ...], text: str = "") -> set[int]:
        return {
            id(inner)
            for node in ast.walk(tree)
            if isinstance(node, kind) and (not text or ast.unparse(node.test) == text)  # type: ignore[attr-defined]
            for inner in ast.walk(node)
        }

    for_types = inside(ast.If, "TYPE_CHECKING")
    within = inside((ast.FunctionDef, ast.AsyncFunctionDef))
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in FILES else node.module for name in inner]
        if id(node) not in for_types:
            yield from ((name, id(node) in within) for name in names)


def is_allowed(module: str, imported: str) -> bool:
    """Whether `module` may import `imported` at its top."""
    room = ROOMS[ROOM_OF[module]]
    if imported in ROOM_OF:
        other = ROOM_OF[imported]
        here = other == ROOM_OF[module] and ORDER[imported] < ORDER[module]
        return here or other in room.below.split()
    library = imported.partition(".")[0]
    return library in sys.stdlib_module_names or library in room.libraries.split()


def test_every_module_has_one_room():
    assert len(PLACES) == len(ROOM_OF)
    assert set(ROOM_OF) == set(FILES)


def test_rooms_stand_on_rooms_below_them():
    for place, room in enumerate(ROOMS):
        assert set(ROOMS[room].below.split()) <= set(list(ROOMS)[:place])


@pytest.mark.parametrize("module", sorted(FILES))
def test_a_module_imports_only_from_the_rooms_below(module):
    lazy = LAZY.get(module, "").split()
    wrong = [
        name
        for name, within in imports(FILES[module])
        if not is_allowed(module, name) and not (within and name.removeprefix("gradscope.") in lazy)
    ]
    assert wrong == []


@pytest.mark.parametrize("module", sorted(LAZY))
def test_what_is_said_to_be_imported_on_use_is(module):
    beyond = {
        name.removeprefix("gradscope.")
        for name, within in imports(FILES[module])
        if within and not is_allowed(module, name)
    }
    assert beyond == set(LAZY[module].split())


def test_neither_side_needs_the_libraries_of_the_other():
    def needs(room: str) -> set[str]:
        return set(ROOMS[room].libraries.split()).union(*map(needs, ROOMS[room].below.split()))

    assert needs("recording").isdisjoint({"pandas", "plotly", "dash"})
    assert needs("judging").isdisjoint({"torch", "plotly", "dash"})
    assert needs("drawing").isdisjoint({"torch", "dash"})
    assert "torch" not in needs("dashboard")


def test_there_is_no_utils():
    assert not [file for file in FILES.values() if file.stem.startswith("util")]


@pytest.mark.parametrize(
    ("statement", "forbidden"),
    [
        ("import gradscope; gradscope.watch", ["pandas", "plotly", "dash", "gradscope.run"]),
        ("import gradscope; gradscope.load", ["torch", "plotly", "dash", "gradscope.scope"]),
        ("import gradscope; gradscope.diagnose", ["torch", "plotly", "dash"]),
        ("import gradscope.plots", ["torch", "dash"]),
        ("import gradscope_dashboard", ["torch", "gradscope.scope"]),
    ],
)
def test_a_user_pays_only_for_what_is_used(statement, forbidden):
    script = f"import sys; {statement}; print([m for m in {forbidden} if m in sys.modules])"
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "dashboard"), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=paths
    )
    assert done.stdout.strip() == "[]"
