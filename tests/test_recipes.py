"""The recipes of CONTRIBUTING.md, followed to the letter."""

from __future__ import annotations

import ast
import os
import re
import shutil
import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType

import pytest
import torch

import gradscope
import learners
import plain_loop
import situations
import truth
from gradscope.diagnosis import verdict
from gradscope.session import sinks
from situations import accumulation

ROOT = Path(__file__).parents[1]
RECIPE = r"```python\n(# (\S+\.py).*?)```"


def recipes() -> dict[str, str]:
    """The code blocks of CONTRIBUTING.md, by the file that they name in their first line."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    return {file: block for block, file in re.findall(RECIPE, text, re.DOTALL)}


def module_of(file: str, patch: pytest.MonkeyPatch) -> ModuleType:
    """Import a recipe's block as the module that it would be."""
    name = file.removeprefix("dashboard/").removesuffix(".py").replace("/", ".")
    module = ModuleType(name)
    patch.setitem(sys.modules, name, module)
    exec(compile(recipes()[file], file, "exec"), module.__dict__)
    return module


def test_every_recipe_is_shorter_than_30_lines():
    assert len(recipes()) == 9
    blocks = (ROOT / "CONTRIBUTING.md").read_text().count("```python")
    assert blocks == len(recipes())
    assert [file for file, block in recipes().items() if block.count("\n") >= 30] == []


# --- a reading, added to a copy of the package ---------------------------------------------------


def add(file: Path, name: str, code: str) -> None:
    """Put `code` at the end of the tuple, or of the function, that is called `name`."""
    lines = file.read_text().splitlines()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == name:
            at, indent = node.end_lineno - 1, "    "
            break
        if isinstance(node, ast.FunctionDef) and node.name == name:
            at, indent = node.end_lineno, " " * node.body[0].col_offset
            break
    else:
        raise LookupError(f"{file} has no {name}")
    file.write_text(
        "\n".join([*lines[:at], *textwrap.indent(code, indent).splitlines(), *lines[at:]])
    )


@pytest.fixture(scope="module")
def changed(tmp_path_factory) -> Path:
    """A copy of the package with the reading of the recipe."""
    folder = tmp_path_factory.mktemp("changed")
    shutil.copytree(ROOT / "gradscope", folder / "gradscope")
    block = recipes()["gradscope/schema.py"]
    pieces = re.findall(r"^# (\S+\.py), in (\w+).*\n((?:(?!# \S+\.py).*\n)+)", block, re.MULTILINE)
    assert len(pieces) == 2
    for file, name, code in pieces:
        add(folder / file, name, code)
    return folder


TRAINING = '''
import os, sys
import torch
import torch.distributed as dist
from torch import nn
import gradscope

path, *kinds = sys.argv[1:]
rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
if size > 1:
    dist.init_process_group("gloo")

def expected(inner, batches):
    """Mean of |dL/d(output)| over the elements of all micro-batches, by plain autograd."""
    found = []
    for x, y in batches:
        middle = inner[0](x)
        found += torch.autograd.grad(loss(inner[1:](middle), y), middle)
    return torch.cat(found).abs().mean().item()

loss = nn.MSELoss()
for kind in kinds:
    torch.manual_seed(0)
    model = inner = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    x, y = torch.randn(8, 3), torch.randn(8, 2)
    batches = [(x[:2], y[:2]), (x[2:], y[2:])] if kind == "micro-batches" else [(x, y)]
    wanted = expected(inner, batches)
    if size > 1:
        model = nn.parallel.DistributedDataParallel(inner)
        half = slice(4 * rank, 4 * rank + 4)
        batches = [(x[half], y[half])]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=kind == "scaler")
    with gradscope.watch(model, f"{path}-{kind}") as scope:
        for some, target in batches:
            scaler.scale(loss(model(some), target)).backward()
        scaler.step(optimizer)
        scaler.update()
    if rank == 0:
        print(kind, wanted, scope.run.frame().set_index("name").signal_mean["0"])
if size > 1:
    dist.barrier()
    dist.destroy_process_group()
'''


def train(package: Path, path: Path, size: int, *kinds: str) -> dict[str, tuple[float, float]]:
    """Return what the reading must be, and what it is, in each kind of training."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TRAINING, str(path), *kinds],
            stdout=subprocess.PIPE,
            text=True,
            cwd=package,
            env={
                **os.environ,
                **(address | {"RANK": str(rank), "WORLD_SIZE": str(size)} if size > 1 else {}),
                "PYTHONPATH": str(package),
                "PYTHONWARNINGS": "error::gradscope.errors.GradscopeWarning",
            },
        )
        for rank in range(size)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * size
    rows = (line.split() for line in outputs[0].splitlines())
    return {kind: (float(wanted), float(read)) for kind, wanted, read in rows}


@pytest.mark.parametrize(
    ("size", "kinds"), [(1, ("plain", "micro-batches", "scaler")), (2, ("processes",))]
)
def test_a_reading_by_the_recipe_is_right(size, kinds, changed, tmp_path):
    found = train(changed, tmp_path / "run", size, *kinds)
    assert set(found) == set(kinds)
    for kind, (wanted, read) in found.items():
        assert read == pytest.approx(wanted, rel=1e-5), kind


def test_the_test_in_the_recipe_passes(changed, tmp_path):
    head = "import pytest, torch\nimport gradscope\nfrom torch import nn\n\n"
    file = tmp_path / "test_signal_mean.py"
    file.write_text(head + recipes()["tests/capture/test_signal_mean.py"])
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "--rootdir", tmp_path, file]
    environment = {**os.environ, "PYTHONPATH": str(changed)}
    done = subprocess.run(command, cwd=changed, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


# --- a verdict, a training to judge it by --------------------------------------------------------


def test_the_recipe_for_a_verdict_finds_what_it_is_for(monkeypatch, tmp_path):
    rule = module_of("gradscope/diagnosis/rules/skipped.py", monkeypatch).skipped
    monkeypatch.setattr(verdict, "RULES", (*verdict.RULES, rule))
    monkeypatch.setattr(verdict, "GRAVEST_FIRST", ("skipped", *verdict.GRAVEST_FIRST))
    for scale, skips in ((2.0**127, True), (1.0, False)):
        model = plain_loop.Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, backoff_factor=0.99)
        with gradscope.watch(model, tmp_path / f"{skips}") as scope:
            for _ in range(8):
                optimizer.zero_grad()
                scaler.scale(100 * model(torch.ones(4, 5)).square().mean()).backward()
                scaler.step(optimizer)
                scaler.update()
        found = {finding.verdict for finding in gradscope.diagnose(scope.run).findings}
        assert ("skipped" in found) is skips


def test_the_training_of_the_recipe_is_judged(monkeypatch, tmp_path):
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    from verdicts import trainings
    from verdicts.broken import paths

    monkeypatch.setattr(trainings, "ALL", {})
    code = recipes()["tests/benchmarks/verdicts/broken/paths.py"]
    exec(compile(code, "CONTRIBUTING.md", "exec"), dict(vars(paths)))
    (training,) = trainings.ALL.values()
    model, step = training.build()
    with gradscope.watch(model, tmp_path / "run") as scope:
        for number in range(8):
            step(number)
    assert gradscope.diagnose(scope.run).verdict in training.fault.verdicts


# --- a view, an integration -----------------------------------------------------------------------


SCREEN = {"theme": "light", "narrow": False}


def test_the_recipe_for_a_view_draws(monkeypatch, pair):
    plot = module_of("gradscope/plots/clipping.py", monkeypatch)
    runs = gradscope.load_all(pair)
    figure = plot.clipping(runs)
    assert [line.name for line in figure.data] == [run.name for run in runs]
    assert plot.clipping([]).layout.annotations[0].text == "No step has been recorded."
    pytest.importorskip("dash", reason="the dashboard's packages are an extra")
    from gradscope_dashboard.library import Library
    from gradscope_dashboard.page import read_page
    from gradscope_dashboard.views import VIEWS

    view = module_of("dashboard/gradscope_dashboard/views/clipping.py", monkeypatch)
    page = read_page("?view=clipping", SCREEN, Library(pair), ["depth", "clipping"])
    (section,) = view.layout(page).children
    drawn = next(part for part in section.children if getattr(part, "id", None) == "clipping")
    assert [line["name"] for line in drawn.figure["data"]] == [run.name for run in runs]
    used = {name for name in vars(VIEWS[0]) if name.isupper() or name in ("layout", "table")}
    assert {name for name in used if not name.endswith("TITLE")} <= set(vars(view))


def test_the_recipe_for_an_integration_gets_readings(monkeypatch, tmp_path):
    class Experiment:
        def __init__(self):
            self.got = {}

        def get_key(self):
            return "key"

        def log_metrics(self, values, step):
            self.got[step] = values

    tracker = module_of("gradscope/session/trackers/comet.py", monkeypatch)
    monkeypatch.setattr(sinks, "TRACKERS", (*sinks.TRACKERS, tracker))
    model, experiment = torch.nn.Linear(2, 1), Experiment()
    with gradscope.watch(model, tmp_path / "run") as scope:
        scope.send_to(experiment)
        model(torch.ones(3, 2)).sum().backward()
        torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert experiment.got[0]["grad_norm/(root)"] == pytest.approx(27**0.5)


# --- a situation, which joins those that are there ------------------------------------------------


def test_the_recipe_for_a_change_changes_a_copy(monkeypatch, tmp_path):
    change = module_of("gradscope/probes/changes/bias.py", monkeypatch).NO_BIAS
    model = learners.plain(3)
    optimizer = learners.momentum(model)
    what = gradscope.what_if(
        model, torch.nn.CrossEntropyLoss(), learners.batches(), optimizer,
        changes=[change], steps=3, run=tmp_path / "run",
    )  # fmt: skip
    assert [row.change for row in what.tried] == ["biases at zero"]
    with torch.no_grad():
        model.first.bias.zero_(), model.body[0].fc.bias.zero_(), model.last.bias.zero_()
    with pytest.raises(gradscope.GradscopeError, match="no bias is other than zero"):
        gradscope.what_if(
            model, torch.nn.CrossEntropyLoss(), learners.batches(), optimizer,
            changes=[change], run=tmp_path / "again",
        )  # fmt: skip


def test_the_situation_of_the_recipe_joins_the_others_as_it_stands(monkeypatch, tmp_path):
    file = "tests/support/situations/accumulation.py"
    before = situations.found()
    with monkeypatch.context() as patch:
        patch.setattr(accumulation, "first_batch_twice", None, raising=False)
        exec(compile(recipes()[file], file, "exec"), vars(accumulation))
        found = situations.found()
    (name,) = found.keys() - before.keys()
    assert name == "accumulation.first_batch_twice"
    truth.hold(found[name], tmp_path / "run")
