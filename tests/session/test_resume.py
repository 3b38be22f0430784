"""A training that is restarted goes on in the same run, or is told why it cannot."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import gradscope
import trainings
from disk import full_disk


def record(path: Path, steps: range, state: dict | None = None, **settings: object) -> dict:
    """Train the net of `trainings` from a checkpoint, and return the next one."""
    model = trainings.net()
    optimizer = trainings.learner(model)
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    with gradscope.watch(model, path, resume=True, **settings):
        trainings.train(model, optimizer, steps)
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}


def refused(match: str, model: nn.Module, *args: object) -> None:
    with pytest.raises(gradscope.GradscopeError, match=match) as caught:
        gradscope.watch(model, *args, resume=True)
    assert "\n" not in str(caught.value)


def edit_meta(path: Path, **fields: object) -> None:
    file = path / "run.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def test_a_resumed_run_is_that_of_an_uninterrupted_training(tmp_path: Path) -> None:
    record(tmp_path / "whole", range(12))
    state = record(tmp_path / "parts", range(5))
    state = record(tmp_path / "parts", range(5, 6), state)
    record(tmp_path / "parts", range(6, 12), state)
    whole, parts = gradscope.load(tmp_path / "whole"), gradscope.load(tmp_path / "parts")
    assert len(parts.shortcuts) == 2
    for frame in ("layers", "shortcuts", "layer_readings", "shortcut_readings"):
        pd.testing.assert_frame_equal(getattr(parts, frame), getattr(whole, frame))
    for column in ("step", "grad_norm"):
        assert parts.steps[column].tolist() == whole.steps[column].tolist()
    assert (np.diff(parts.steps.time) > 0).all()
    assert parts.status == "closed"


def test_the_break_is_no_time_of_the_run(tmp_path: Path) -> None:
    record(tmp_path / "run", range(3))
    file = tmp_path / "run" / "run.json"
    created = json.loads(file.read_text())["created"]
    before = gradscope.load(tmp_path / "run").steps.time.iloc[-1]
    model = trainings.net()
    optimizer = trainings.learner(model)
    with gradscope.watch(model, tmp_path / "run", resume=True) as scope:
        trainings.train(model, optimizer, range(1))
    assert scope.run.steps.time.iloc[-1] > before
    assert json.loads(file.read_text())["created"] == created


class Detour(nn.Module):
    """Runs its layers in an order that is not that of their definition."""

    def __init__(self, reverse: bool) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.reverse = reverse

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.a(self.b(x)) if self.reverse else self.b(self.a(x))


def test_layers_keep_their_numbers_whatever_runs_first(tmp_path: Path) -> None:
    for reverse in (True, False):
        model = Detour(reverse)
        with gradscope.watch(model, tmp_path / "run", resume=True) as scope:
            trainings.train(model, trainings.learner(model), range(2))
        assert scope.run.layers.name.tolist() == ["b", "a"]
    last = scope.run.layer_readings.query("step == 3")
    norms = [p.grad.norm().hypot(q.grad.norm()) for p, q in (model.b.parameters(),)]
    assert last.grad_norm.iloc[0] == pytest.approx(float(norms[0]), rel=1e-5)


def test_a_run_that_does_not_exist_is_begun(tmp_path: Path) -> None:
    record(tmp_path / "run", range(2))
    assert gradscope.load(tmp_path / "run").steps.step.tolist() == [0, 1]


def test_a_run_without_a_step_is_resumed_with_any_layers(tmp_path: Path) -> None:
    other = nn.Linear(2, 2)
    scope = gradscope.watch(other, tmp_path / "run")
    with pytest.warns(gradscope.GradscopeWarning, match="no step was recorded"):
        scope.close()
    record(tmp_path / "run", range(2))
    assert len(gradscope.load(tmp_path / "run").layers) == 6


def test_recorded_steps_stay_multiples_of_every(tmp_path: Path) -> None:
    state = record(tmp_path / "run", range(8), every=3)  # 0, 3, 6 are recorded
    record(tmp_path / "run", range(8, 14), state, every=3)  # counts on from 7
    assert gradscope.load(tmp_path / "run").steps.step.tolist() == [0, 3, 6, 9, 12]


def broken_sink(step: int, values: dict[str, float]) -> None:
    raise OSError("no route to host")


@pytest.mark.filterwarnings("ignore:.*nothing is sent to broken_sink any more")
def test_notes_and_lost_steps_stay_and_are_not_made_again(tmp_path: Path) -> None:
    model = trainings.net()
    optimizer = trainings.learner(model)
    scope = gradscope.watch(model, tmp_path / "run")
    scope.send_to(broken_sink)
    trainings.train(model, optimizer, range(3))
    scope.flush()
    room = (tmp_path / "run" / "run.json").stat().st_size + 300
    with full_disk(room), pytest.warns(gradscope.GradscopeWarning):
        trainings.train(model, optimizer, range(3, 9))
        scope.close()
    record(tmp_path / "run", range(9, 11))
    with pytest.warns(gradscope.GradscopeWarning, match=r"lost steps \d-8: file too large"):
        run = gradscope.load(tmp_path / "run")
    (lost,) = run.meta["lost"]
    assert run.steps.step.tolist() == [*range(lost["first"]), 9, 10]
    assert run.notes == ["nothing is sent to broken_sink any more: OSError: no route to host"]


def test_a_lazy_layer_is_resumed(tmp_path: Path) -> None:
    for _ in range(2):
        model = nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 2))
        with gradscope.watch(model, tmp_path / "run", resume=True) as scope:
            with torch.no_grad():
                model(torch.ones(1, 4))
            trainings.train(model, trainings.learner(model), range(2))
    assert scope.run.layers.kind.tolist() == ["Linear", "Linear"]
    assert len(scope.run.steps) == 4


def test_a_damaged_last_part_does_not_keep_a_run_from_being_resumed(tmp_path: Path) -> None:
    record(tmp_path / "run", range(3))
    record(tmp_path / "run", range(3))
    time = gradscope.load(tmp_path / "run").steps.time
    (part,) = (tmp_path / "run" / "steps").glob("part-000000000003-*")
    part.write_bytes(b"")
    record(tmp_path / "run", range(3))
    with pytest.warns(gradscope.GradscopeWarning, match=f"{part.name}: damaged"):
        steps = gradscope.load(tmp_path / "run").steps
    assert steps.step.tolist() == [0, 1, 2, 6, 7, 8]
    assert steps.time.iloc[3] > time.iloc[2]


# --- what is refused ----------------------------------------------------------------------------


def changed(name: str, module: nn.Module) -> nn.Module:
    """Return the net with another module of this name."""
    model = trainings.net()
    model._modules[name] = module
    return model


@pytest.mark.parametrize(
    "model, difference",
    [
        (changed("0", nn.Linear(5, 6)), r"layer '0' is a Linear of 30 parameters, .* of 36"),
        (changed("0", nn.Conv1d(4, 6, 1)), r"layer '0' is a Linear .* model a Conv1d of 30"),
        (changed("4", nn.Linear(2, 2)), r"the model has the layer '4', which it has not"),
        (changed("1", nn.Identity()), r"it has the layer '1.inner', which the model has not"),
    ],
)
def test_another_model_is_refused_and_the_run_stays_as_it_is(
    tmp_path: Path, model: nn.Module, difference: str
) -> None:
    record(tmp_path / "run", range(2))
    before = (tmp_path / "run" / "run.json").read_bytes()
    refused(f"run: this run cannot be resumed, .*{difference}", model, tmp_path / "run")
    assert (tmp_path / "run" / "run.json").read_bytes() == before
    record(tmp_path / "run", range(2))


def test_the_run_to_resume_has_to_be_named() -> None:
    refused(r"which run\? Name its folder", nn.Linear(2, 2))


def test_a_run_that_is_written_is_refused(tmp_path: Path) -> None:
    model = trainings.net()
    scope = gradscope.watch(model, tmp_path / "run")
    refused("another process or scope writes this run", trainings.net(), tmp_path / "run")
    trainings.train(model, trainings.learner(model), range(2))
    scope.close()
    assert len(scope.run.steps) == 2


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    refused("the folder is not empty", trainings.net(), tmp_path)


@pytest.mark.filterwarnings("ignore:.*does not match its checksum")
@pytest.mark.parametrize("fields", [{"layers": [3]}, {"shortcuts": [{}]}, {"layers": [{}]}])
def test_a_broken_run_json_is_refused(tmp_path: Path, fields: dict[str, object]) -> None:
    record(tmp_path / "run", range(2))
    edit_meta(tmp_path / "run", **fields)
    refused(r"run\.json: broken, its lists", trainings.net(), tmp_path / "run")


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    record(tmp_path / "run", range(2))
    edit_meta(tmp_path / "run", format=99)
    refused(r"format 99 is newer", trainings.net(), tmp_path / "run")
