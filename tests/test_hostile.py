"""Names that try to be markup, formulas or paths, and run folders that were made to do harm."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import gradscope
import synthetic
import trainings
from gradscope.errors import GradscopeError, GradscopeWarning
from gradscope.runs import loading
from gradscope.storage import parts
from gradscope.storage.writer import RunWriter

ROOT = Path(__file__).parents[1]

NAMES = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "=cmd|' /C calc'!A0",
    "../../../etc/passwd",
    "C:\\windows\\system32",
    "two\nlines",
    "tab\tand\x00nul",
    "x" * 10_000,
    "%s %(name)s {0} {name} $name",
    "مرحبا \u202e right to left",
    "e\u0301 \U0001f600 \ufffe",
    "\ud800 lone surrogate",
    " ",
]
"""Names of modules; torch refuses none but those with a dot, and those not everywhere."""

PLAIN = [f"layer{i}" for i in range(len(NAMES))]


def net(names: list[str]) -> nn.Module:
    """Return residual blocks with these names."""

    class Block(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self._modules[name] = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            (inner,) = self.children()
            return x + torch.tanh(inner(x))

    torch.manual_seed(0)
    model = nn.Sequential()
    for name in names:
        model._modules[name] = Block(name)
    return model


def record(path: Path, names: list[str]) -> gradscope.Run:
    model = net(names)
    with gradscope.watch(model, path) as scope:
        trainings.train(model, trainings.learner(model), range(25))
    return scope.run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the runs `hostile` and `plain` of one net under two sets of names."""
    folder = tmp_path_factory.mktemp("runs")
    record(folder / "hostile", NAMES)
    record(folder / "plain", PLAIN)
    return folder


# --- names --------------------------------------------------------------------------------------


def test_names_do_not_change_what_is_recorded(folder: Path) -> None:
    hostile, plain = gradscope.load(folder / "hostile"), gradscope.load(folder / "plain")
    shown = [name.replace("\ud800", "?") for name in NAMES]
    assert hostile.layers.name.tolist() == [f"{name}.{name}" for name in shown]
    assert hostile.shortcuts.name.tolist() == shown[1:]  # the data need no gradient
    for frame in ("layer_readings", "shortcut_readings"):
        np.testing.assert_array_equal(getattr(hostile, frame), getattr(plain, frame))
    assert hostile.notes == []


def test_names_make_no_files(folder: Path) -> None:
    files = {path.relative_to(folder / "hostile") for path in (folder / "hostile").rglob("*")}
    assert {str(file.parent) for file in files} == {".", "layers", "shortcuts", "steps"}
    files -= {Path("layers"), Path("shortcuts"), Path("steps")}
    assert all(re.fullmatch(r"run\.json|\.lock|part-[-0-9a-f]*\.parquet", f.name) for f in files)
    assert sorted(os.listdir(folder)) == ["hostile", "plain"]


def test_names_stay_text_in_the_csv(folder: Path, tmp_path: Path) -> None:
    gradscope.load(folder / "hostile").to_csv(tmp_path / "run.csv")
    text = (tmp_path / "run.csv").read_text(encoding="utf-8")
    assert "\"'=cmd|" in text
    assert '"=cmd' not in text


def test_names_stay_text_in_the_report(folder: Path, tmp_path: Path) -> None:
    gradscope.report([gradscope.load(folder / "hostile")], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in text
    assert "<img src=x" not in text


def test_a_diagnosis_takes_any_name(folder: Path) -> None:
    hostile = gradscope.diagnose(gradscope.load(folder / "hostile"))
    plain = gradscope.diagnose(gradscope.load(folder / "plain"))
    assert hostile.verdict == plain.verdict
    str(hostile).encode()


def test_a_resumed_run_knows_its_layers_whatever_they_are_called(tmp_path: Path) -> None:
    record(tmp_path / "run", NAMES)
    model = net(NAMES)
    with gradscope.watch(model, tmp_path / "run", resume=True) as scope:
        trainings.train(model, trainings.learner(model), range(2))
    assert len(scope.run.layers) == len(NAMES)
    assert len(scope.run.shortcuts) == len(NAMES) - 1
    assert len(scope.run.steps) == 27


def test_a_class_of_any_name_gets_a_folder_in_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("../../up", "a/b", "x" * 5000, "<b>", "日本"):
        model = type(name, (nn.Linear,), {})(4, 2)
        with gradscope.watch(model):
            trainings.train(model, trainings.learner(model), range(2))
    assert os.listdir(tmp_path) == ["runs"]
    assert len(loading.discover(tmp_path)) == 5


def test_scalars_may_have_any_name_that_a_file_can_hold(tmp_path: Path) -> None:
    model = trainings.net()
    names = [*NAMES[:11], "a.b", "a", "", "steps", "STEP"]
    with gradscope.watch(model, tmp_path / "run", flush_every=1) as scope:
        for step in range(20):  # parts are merged
            trainings.train(model, optimizer := trainings.learner(model), range(1))
            scope.log(**{name: step + i for i, name in enumerate(names)})
            scope.flush()
        del optimizer
        with pytest.raises(GradscopeError, match="no file can hold this name"):
            scope.log(**{"\ud800": 1.0})
    steps = scope.run.steps
    for i, name in enumerate(names):
        np.testing.assert_array_equal(steps[name].dropna().iloc[:19], np.arange(19) + i)


# --- folders ------------------------------------------------------------------------------------


@pytest.fixture
def run_path(tmp_path: Path) -> Path:
    return synthetic.write_run(tmp_path / "runs" / "run", n_layers=6, n_steps=30, flush=10)


@pytest.mark.filterwarnings("ignore:.*does not match its checksum")
def test_no_path_is_taken_from_run_json(run_path: Path, tmp_path: Path) -> None:
    other = synthetic.write_run(tmp_path / "other", n_layers=9, n_steps=3)
    file = run_path / "run.json"
    meta = json.loads(file.read_text())
    for key in ("name", "model", "path", "folder", "layers_path", "parts", "id_path"):
        meta[key] = str(other)
    file.write_text(json.dumps(meta))
    run = gradscope.load(run_path)
    assert (run.path, run.name) == (run_path, "run")
    assert len(run.steps) == 30
    assert loading.discover(tmp_path / "runs") == [run_path]


def test_a_run_json_that_leads_elsewhere_shows_nothing_of_it(
    run_path: Path, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("root:hunter2:0:0")
    (run_path / "run.json").unlink()
    (run_path / "run.json").symlink_to(secret)
    with pytest.raises(GradscopeError, match="broken, not JSON") as caught:
        gradscope.load(run_path)
    assert "hunter2" not in str(caught.value)


def test_parts_that_lead_elsewhere_show_nothing_of_it(run_path: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("root:hunter2:0:0" * 100)
    part = sorted((run_path / "layers").iterdir())[1]
    part.unlink()
    part.symlink_to(secret)
    run = gradscope.load(run_path)
    with pytest.warns(GradscopeWarning, match="damaged") as told:
        frame = run.layer_readings
    assert not any("hunter2" in str(warning.message) for warning in told)
    assert frame.signal_norm[frame.step.between(10, 19)].isna().all()


def test_pipes_and_devices_in_a_run_are_not_opened(run_path: Path) -> None:
    first, second = sorted((run_path / "layers").iterdir())[:2]
    for part in (first, second):
        part.unlink()
    os.mkfifo(first)
    second.symlink_to("/dev/zero")
    run = gradscope.load(run_path)
    with pytest.warns(GradscopeWarning, match="it is no file"):
        frame = run.layer_readings
    assert frame.signal_norm[frame.step < 20].isna().all()
    (run_path / "run.json").unlink()
    os.mkfifo(run_path / "run.json")
    with pytest.raises(GradscopeError, match=r"it holds no run\.json"):
        gradscope.load(run_path)


@pytest.mark.parametrize(
    "name", [".room", ".run.json.tmp", "layers/.part.tmp", "steps/.part.tmp", "run.json"]
)
@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to])
def test_to_resume_a_run_writes_through_no_link(tmp_path: Path, name: str, link: object) -> None:
    path = tmp_path / "run"
    record(path, PLAIN)
    treasure = tmp_path / "treasure"
    treasure.write_bytes((path / "run.json").read_bytes())  # run.json itself may be the link
    before = treasure.read_bytes()
    (path / name).unlink(missing_ok=True)
    link(path / name, treasure)
    model = net(PLAIN)
    with gradscope.watch(model, path, resume=True) as scope:
        trainings.train(model, trainings.learner(model), range(3))
    assert treasure.read_bytes() == before
    assert len(scope.run.steps) == 28


def test_to_resume_a_run_neither_writes_nor_deletes_in_another_folder(
    run_path: Path, tmp_path: Path
) -> None:
    other = synthetic.write_run(tmp_path / "other", n_layers=6, n_steps=50, flush=10)
    before = sorted(other.rglob("*"))
    for part in (run_path / "layers").iterdir():
        part.unlink()
    (run_path / "layers").rmdir()
    (run_path / "layers").symlink_to(other / "layers")
    with pytest.raises(GradscopeError, match="layers: a link to another folder"):
        RunWriter(run_path, {}, resume=True)
    assert sorted(other.rglob("*")) == before
    assert parts.list_parts(other / "layers")


# --- nothing in a run is executed ---------------------------------------------------------------

FORBIDDEN = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "imp"}
LOADERS = {"eval", "exec", "load_module", "read_pickle", "unsafe_load"}


def test_no_reader_imports_pickle_or_loads_objects() -> None:
    files = [*ROOT.glob("gradscope/**/*.py"), *ROOT.glob("dashboard/**/*.py")]
    assert len(files) > 50
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names = {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names = {(node.module or "").partition(".")[0]}
            elif isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("torch.load", "np.load", "numpy.load"), (file, called)
                assert not any(word.arg == "allow_pickle" for word in node.keywords), file
                names = {called.rpartition(".")[2]} & LOADERS
            else:
                continue
            assert not names & (FORBIDDEN | LOADERS), (file, names)


READER = """
import sys

executed = []
def hook(event, arguments):
    if event in ("pickle.find_class", "os.system", "subprocess.Popen", "marshal.loads"):
        executed.append((event, arguments))

import gradscope
from gradscope import report
from gradscope.runs.loading import load_all
import gradscope.diagnosis.verdict, gradscope.diagnosis.comparison

runs = load_all(sys.argv[1])
report(runs, sys.argv[1] + "/first.html")  # so that everything is imported
sys.addaudithook(hook)
for run in load_all(sys.argv[1]):
    run.frame(), run.shortcut_readings, run.steps, gradscope.diagnose(run)
    run.to_csv(sys.argv[1] + "/run.csv", overwrite=True)
report(runs, sys.argv[1] + "/report.html")
print(executed)
"""


def test_reading_a_run_unpickles_and_starts_nothing(folder: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(READER), str(folder)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout == "[]\n"
