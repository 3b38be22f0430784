"""What `scope.send_to` sends: to functions, TensorBoard, Weights & Biases and MLflow."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gradscope


class Block(nn.Module):
    """Two shortcuts of one holder, as a transformer's block has."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        x = x + self.first(x)
        return x + self.second(x)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.stem, self.act, self.block, self.head = (
            nn.Linear(3, 4),
            nn.Tanh(),
            Block(),
            nn.Linear(4, 2),
        )

    def forward(self, x):
        return self.head(self.block(self.act(self.stem(x * self.scale))))


def train(model, steps=4):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(torch.randn(5, 3)), torch.tensor([0, 1, 0, 1, 1])).backward()
        optimizer.step()


def test_a_function_gets_every_reading_under_its_name(tmp_path):
    sent = {}
    model = Net()
    with gradscope.watch(model, tmp_path / "run") as scope:
        metrics = ["grad_norm", "relative_signal", "update_ratio", "cosine", "loss_scale"]
        scope.send_to(lambda step, values: sent.update({step: values}), metrics)
        train(model)
    run = gradscope.load(tmp_path / "run")
    assert list(sent) == [0, 1, 2, 3]
    frame = run.frame().set_index(["step", "name"])
    joins = run.shortcut_readings.set_index(["step", "shortcut"])
    assert run.shortcuts.name.tolist() == ["block", "block"]
    for step, values in sent.items():
        expected = {
            f"{metric}/{name}": frame.loc[(step, name), metric]
            for metric in ("grad_norm", "relative_signal", "update_ratio")
            for name in run.layers.name
        }
        expected["cosine/block"] = joins.loc[(step, 0), "cosine"]
        expected["cosine/block-2"] = joins.loc[(step, 1), "cosine"]
        expected["steps/grad_norm"] = run.steps.grad_norm[step]
        expected["steps/loss_scale"] = 1.0
        expected = {name: value for name, value in expected.items() if not math.isnan(value)}
        assert "grad_norm/act" not in expected  # an activation has no parameters
        assert values == pytest.approx(expected, rel=1e-6)


def test_only_the_asked_for_steps_are_sent(tmp_path):
    sent = []
    model = Net()
    with gradscope.watch(model, tmp_path / "run", every=2) as scope:
        scope.send_to(lambda step, values: sent.append(step), "grad_norm", every=4)
        train(model, 10)
    assert sent == [0, 4, 8]


def test_what_is_not_a_number_is_not_sent_and_infinity_is(tmp_path):
    sent = {}
    model = Net()
    model.stem.weight.register_hook(lambda gradient: gradient * math.nan)
    model.head.weight.register_hook(lambda gradient: gradient.abs() / 0)
    with gradscope.watch(model, tmp_path / "run") as scope:
        scope.send_to(lambda step, values: sent.update({step: values}), "grad_norm")
        train(model, 1)
    assert sent[0]["grad_norm/head"] == math.inf
    assert math.isfinite(sent[0]["grad_norm/block.first"])
    assert sent[0].keys().isdisjoint({"grad_norm/stem", "steps/grad_norm"})
    assert math.isnan(gradscope.load(tmp_path / "run").steps.grad_norm[0])


def test_a_sink_that_fails_is_told_of_once_and_training_and_the_others_go_on(tmp_path):
    calls, sent = [], []

    def broken(step, values):
        calls.append(step)
        raise OSError("no route to host")

    model = Net()
    with (
        pytest.warns(gradscope.GradscopeWarning, match="nothing is sent to broken") as told,
        gradscope.watch(model, tmp_path / "run") as scope,
    ):
        scope.send_to(broken)
        scope.send_to(lambda step, values: sent.append(step))
        for _ in range(3):
            train(model, 2)
            scope.flush()
    assert len(told) == 1 and len(calls) == 1
    assert sent == [0, 1, 2, 3, 4, 5]
    (note,) = gradscope.load(tmp_path / "run").notes
    assert note == "nothing is sent to broken any more: OSError: no route to host"


def test_a_sink_finds_on_disk_what_it_is_sent(tmp_path):
    found = []
    model = Net()
    with gradscope.watch(model, tmp_path / "run") as scope:
        scope.send_to(lambda step, values: found.append((step, scope.run.steps.step.max())))
        train(model)
    assert [step for step, _ in found] == [0, 1, 2, 3]
    assert all(last >= step for step, last in found)


@pytest.mark.parametrize(
    ("target", "settings", "said"),
    [
        (3, {}, "cannot send to int 3; give a SummaryWriter"),
        (print, {"metrics": ["grad"]}, "no metric 'grad'; there are grad_norm, "),
        (print, {"every": 0}, "send_to(every=0): needs a whole number"),
        (print, {"every": 3}, "must be a multiple of 2"),
    ],
)
def test_what_cannot_be_sent_is_refused(tmp_path, target, settings, said):
    model = Net()
    with gradscope.watch(model, tmp_path / "run", every=2) as scope:
        with pytest.raises(gradscope.GradscopeError) as refused:
            scope.send_to(target, **settings)
        train(model, 1)
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_a_closed_scope_sends_nothing(tmp_path):
    model = Net()
    with gradscope.watch(model, tmp_path / "run") as scope:
        train(model, 1)
    with pytest.raises(gradscope.GradscopeError, match="the scope is closed"):
        scope.send_to(print)


def test_tensorboard_gets_scalars(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    model = Net()
    with (
        SummaryWriter(tmp_path / "events") as writer,
        gradscope.watch(model, tmp_path / "run") as scope,
    ):
        scope.send_to(writer)
        train(model)
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    read = gradscope.load(tmp_path / "run").frame()
    for metric in ("grad_norm", "update_ratio", "relative_signal"):
        for name in ("stem", "block.second", "(root)"):
            if metric == "relative_signal" and name == "(root)":
                continue
            scalars = events.Scalars(f"{metric}/{name}")
            assert [scalar.step for scalar in scalars] == [0, 1, 2, 3]
            np.testing.assert_allclose(
                [scalar.value for scalar in scalars], read[read.name == name][metric], rtol=1e-6
            )
    assert len(events.Scalars("steps/grad_norm")) == 4


def test_wandb_gets_every_step_whatever_its_own_counter_says(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_SILENT", "true")
    tracked = wandb.init(mode="offline", dir=tmp_path)
    model = Net()
    with gradscope.watch(model, tmp_path / "run") as scope:
        scope.send_to(tracked, "grad_norm")
        for step in range(4):
            train(model, 1)
            tracked.log({"loss": step})
    tracked.finish()
    wandb.teardown()  # ends the process that writes the file
    rows = wandb_history(tmp_path)
    sent = [row for row in rows if "gradscope/step" in row]
    frame = gradscope.load(tmp_path / "run").frame().set_index(["step", "name"])
    assert [row["gradscope/step"] for row in sent] == [0, 1, 2, 3]
    for row in sent:
        expected = frame.loc[(row["gradscope/step"], "head"), "grad_norm"]
        assert row["grad_norm/head"] == pytest.approx(expected)
    assert [row["loss"] for row in rows if "loss" in row] == [0, 1, 2, 3]


def wandb_history(folder: Path) -> list[dict[str, float]]:
    """Read back the rows of the only offline run under `folder`, a log in LevelDB's format."""
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = folder.rglob("*.wandb")
    data, place, piece, rows = file.read_bytes(), 7, b"", []
    while place + 7 <= len(data):
        if 2**15 - place % 2**15 < 7:  # a header is never split between two blocks
            place += 2**15 - place % 2**15
        _, length, kind = struct.unpack_from("<IHB", data, place)
        piece += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last piece of one
            record, piece = Record.FromString(piece), b""
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                rows.append({i.key or ".".join(i.nested_key): i.value_json for i in items})
    return [{name: json.loads(value) for name, value in row.items()} for row in rows]


def test_mlflow_gets_metrics_of_its_run(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(f"file://{tmp_path / 'mlruns'}")
    model = Net()
    with mlflow.start_run() as tracked, gradscope.watch(model, tmp_path / "run") as scope:
        scope.send_to(tracked)
        train(model)
    client = mlflow.MlflowClient()
    read = gradscope.load(tmp_path / "run").frame()
    for stored, name in (("stem", "stem"), ("block.first", "block.first"), ("_root_", "(root)")):
        history = client.get_metric_history(tracked.info.run_id, f"grad_norm/{stored}")
        assert [metric.step for metric in history] == [0, 1, 2, 3]
        np.testing.assert_allclose(
            [metric.value for metric in history], read[read.name == name].grad_norm
        )
    assert len(client.get_metric_history(tracked.info.run_id, "steps/grad_norm")) == 4
