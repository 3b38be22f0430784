"""Parallel layouts on four processes, against plain autograd on the whole batch in one.

A row of the table in docs/on-a-cluster.md is one of TABLE here.
"""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import gradscope
from gradscope.runs.merging import merge
from layouts_training import (
    EACH,
    LR,
    MICRO,
    SIZE,
    STEPS,
    Attending,
    Block,
    Experts,
    Net,
    batches,
    loss_of,
)
from releases import shards_on_the_cpu

pytestmark = [
    pytest.mark.xdist_group("layouts"),  # all are trained by one fixture
    shards_on_the_cpu,
]

SCRIPT = Path(__file__).parents[1] / "support" / "layouts_training.py"

PARAMETERS = ["grad_norm", "clipped_grad_norm", "weight_norm", "update_norm"]
SIGNALS = ["signal_norm", "input_signal_norm"]
ACTIVATIONS = ["activation_norm", "activation_mean", "activation_std", "output_elements"]
SHORTCUTS = ["total_norm", "shortcut_norm", "branch_norm"]


def norm(tensors: list[Tensor]) -> float:
    return float(sum(t.detach().square().sum() for t in tensors)) ** 0.5


def truth_of_step(model: nn.Module, x: Tensor, y: Tensor) -> pd.DataFrame:
    """Return what one step should show of each layer; makes the step."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def look(name, inputs, output):
        into = inputs[0].detach().requires_grad_() if inputs[0].is_floating_point() else None
        seen[name] = into, output
        output.retain_grad()

    layers = {n: m for n, m in model.named_modules() if not list(m.children())}
    handles = [
        m.register_forward_hook(lambda m, a, out, n=n: look(n, a, out)) for n, m in layers.items()
    ]
    model.zero_grad()
    loss_of(model(x), y).backward()
    for handle in handles:
        handle.remove()
    rows = {}
    for name, (into, out) in seen.items():
        module, grads = layers[name], [p.grad for p in layers[name].parameters()]
        through = float("nan")
        if into is not None:
            (back,) = torch.autograd.grad(module(into), into, out.grad)
            through = norm([back])
        rows[name] = {
            "grad_norm": norm(grads) if grads else float("nan"),
            "clipped_grad_norm": norm(grads) if grads else float("nan"),
            "weight_norm": norm(list(module.parameters())) if grads else float("nan"),
            "update_norm": LR * norm(grads) if grads else float("nan"),
            "signal_norm": norm([out.grad]),
            "input_signal_norm": through,
            "activation_norm": norm([out]),
            "activation_mean": float(out.detach().mean()),
            "activation_std": float(out.detach().std(correction=0)),
            "output_elements": out.numel(),
        }
    with torch.no_grad():
        for p in model.parameters():
            p -= LR * p.grad
    frame = pd.DataFrame.from_dict(rows, orient="index")
    idle = frame["output_elements"] == 0  # an expert that gets no token has no output to read
    return frame.mask(np.outer(idle, frame.columns.isin(ACTIVATIONS)))


def truth(model: nn.Module) -> list[pd.DataFrame]:
    return [truth_of_step(model, x, y) for x, y in batches()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where all layouts have been trained, each to a run of its name."""
    path = tmp_path_factory.mktemp("layouts")
    command = [sys.executable, str(SCRIPT), str(path), *TABLE, "stages_of_one_name"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, env=environment, timeout=300, check=True)
    return path


@pytest.fixture(scope="module")
def truths() -> dict[type[nn.Module], list[pd.DataFrame]]:
    return {block: truth(Net(block)) for block in (Block, Attending, Experts)}


@dataclass
class Cell:
    """What a run of a layout should show."""

    notes: tuple[str, ...] = ()
    """Words of each note."""
    unknown: dict[str, str] = field(default_factory=dict)
    """Metric -> pattern of the names of the layers of which it is NaN."""
    times: dict[str, float] = field(default_factory=dict)
    """Metric -> what it is a multiple of the truth by."""
    block: type[nn.Module] = Block


SPLIT = {"input_signal_norm": r"up$|head"}
COLUMNS = "weights are split by outputs (column parallel): input_signal_norm is NaN"
SUMMANDS = "each process has a summand of their gradient"
LATE = "gradients that were not there when the backward ended"
OF_NORMS = dict.fromkeys(["grad_norm", "clipped_grad_norm"], "norm")
OF_OUTPUTS = ["signal_norm", *ACTIVATIONS]
MICRO_BATCHES = dict.fromkeys(SIGNALS, float(MICRO))

TABLE = {
    "ddp": Cell(),
    "zero": Cell(),
    "summed": Cell(),
    "fsdp2": Cell(),
    "hsdp": Cell(),
    "fsdp1": Cell(),
    "fsdp1_hybrid": Cell(),
    "fsdp1_flat": Cell(("use_orig_params=True",), dict.fromkeys(PARAMETERS, "")),
    "tensor_parallel": Cell((COLUMNS,), SPLIT),
    "function_of_its_own": Cell(
        ("'layers.2.act': which part of their outputs", COLUMNS),
        {"input_signal_norm": r"up$|head|2.act"} | dict.fromkeys(OF_OUTPUTS, "2.act"),
    ),
    "sequence_parallel": Cell((COLUMNS, SUMMANDS), {**SPLIT, **OF_NORMS}),
    "loss_parallel": Cell((COLUMNS, SUMMANDS), {**SPLIT, **OF_NORMS}),
    "tensor_and_fsdp2": Cell((COLUMNS,), SPLIT),
    "pipeline": Cell(),
    "pipeline_and_data": Cell((LATE,), {"grad_norm": ""}, MICRO_BATCHES),
    "interleaved_and_data": Cell((LATE,), {"grad_norm": r"embed|\.[01]\."}, MICRO_BATCHES),
    "context_parallel": Cell(block=Attending),
    "expert_parallel": Cell(block=Experts),
}


def load(path: Path) -> gradscope.Run:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", gradscope.GradscopeWarning)
        return gradscope.load(path)


@pytest.mark.parametrize("kind", TABLE)
def test_a_layout_reads_as_the_whole_batch_in_one_process(kind, folder, truths):
    cell = TABLE[kind]
    assert not list(folder.glob(f"{kind}-*.error"))
    run, expected = load(folder / kind), truths[cell.block]
    for note, words in zip(run.notes, cell.notes, strict=True):
        assert words in note
    assert run.steps.step.tolist() == list(range(len(expected)))
    assert run.steps.loss_by_rank.isin(range(SIZE)).all()
    frame = run.frame()
    frame["name"] = frame["name"].str.replace(r"^\d\.(?=\D)", "", regex=True)  # of nn.ModuleDict
    listed = list(dict.fromkeys(frame["name"]))
    if kind != "fsdp1_flat":
        assert listed == expected[0].index.tolist()
    for step, of_step in enumerate(expected):
        read = frame[frame.step == step].set_index("name")
        for metric in PARAMETERS + SIGNALS + ACTIVATIONS:
            right = of_step[metric].loc[[name for name in of_step.index if name in listed]]
            pattern = cell.unknown.get(metric)
            if pattern is not None:
                right = right.mask(right.index.str.contains(pattern))
            np.testing.assert_allclose(
                read[metric].reindex(right.index),
                right * cell.times.get(metric, 1.0),
                rtol=1e-9,
                atol=1e-12,
                err_msg=f"{metric} at step {step}",
            )
        for metric in "grad_norm", "clipped_grad_norm":
            total = np.nan if metric in cell.unknown else (of_step[metric] ** 2).sum() ** 0.5
            got = run.steps[metric][step]
            assert got == pytest.approx(total, rel=1e-9, nan_ok=True)


@pytest.mark.parametrize("kind", [kind for kind in TABLE if kind != "fsdp1_flat"])
def test_the_shortcuts_of_a_layout_are_those_of_one_process(kind, folder, tmp_path):
    cell = TABLE[kind]
    model = Net(cell.block)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    with gradscope.watch(model, tmp_path / "whole") as scope:
        for x, y in batches():
            optimizer.zero_grad()
            loss_of(model(x), y).backward()
            optimizer.step()
    run, whole = load(folder / kind), scope.run
    assert run.shortcuts.form.tolist() == whole.shortcuts.form.tolist()
    if cell.block is not Experts:  # whose branches begin with other layers on each process
        names = run.shortcuts.branch.str.replace(r"^\d\.(?=\D)", "", regex=True)
        assert names.tolist() == whole.shortcuts.branch.tolist()
    both = run.shortcut_readings, whole.shortcut_readings
    np.testing.assert_allclose(
        both[0][SHORTCUTS],
        both[1][SHORTCUTS] * cell.times.get("signal_norm", 1.0),
        rtol=1e-9,
        err_msg=kind,
    )
    ratios = [some["branch_ratio"].to_numpy() for some in both]
    known = ~np.isnan(ratios[0])
    np.testing.assert_allclose(ratios[0][known], ratios[1][known], rtol=1e-9)


@pytest.mark.parametrize("kind", EACH)
def test_runs_of_all_processes_are_merged_as_while_training_or_not_at_all(kind, folder, tmp_path):
    whole = load(folder / kind)
    merged = merge([folder / f"each-{kind}"], tmp_path / "merged")
    read = merged.frame().set_index(["step", "name"])
    right = whole.frame().set_index(["step", "name"]).reindex(read.index)
    for metric in PARAMETERS + OF_OUTPUTS:
        if kind == "tensor_and_fsdp2" and metric in OF_OUTPUTS:
            assert read[metric].isna().all()
        else:
            known = read[metric].notna() if kind == "tensor_and_fsdp2" else slice(None)
            np.testing.assert_allclose(
                read[metric][known], right[metric][known], rtol=1e-9, err_msg=metric
            )
    if kind == "tensor_and_fsdp2":
        assert read.grad_norm.isna().any() and "signals" in merged.notes[0]


def test_a_pipeline_resumes_its_run(folder):
    whole, run = load(folder / "pipeline_and_data"), load(folder / "resumed")
    assert run.steps.step.tolist() == list(range(2 * STEPS))
    assert run.layers.equals(whole.layers) and run.edges.equals(whole.edges)
    assert run.shortcuts.equals(whole.shortcuts)
    for metric in "clipped_grad_norm", "signal_norm":
        first, second = np.split(run.matrix(metric)[1], 2)
        np.testing.assert_array_equal(first, second)


def test_stages_that_call_other_layers_by_the_same_names_are_not_added_up(folder):
    run = load(folder / "stages_of_one_name")
    assert len(run.steps) == STEPS
    read = run.frame()[PARAMETERS + SIGNALS + ACTIVATIONS]
    assert read.isna().all().all() and run.steps.grad_norm.isna().all()
    (note,) = run.notes
    assert "train weights of their own" in note and 'ranks="all"' in note


@pytest.mark.parametrize("kind", ["pipeline", "interleaved_and_data"])
def test_data_flow_from_stage_to_stage(kind, folder):
    run = load(folder / kind)
    edges = run.edges
    last = len(run.layers) - 1
    assert edges[edges.target == -1].source.tolist() == [last]
    assert set(edges.target) == {-1, *range(1, len(run.layers))}
    assert gradscope.diagnose(run).verdict == "healthy"
