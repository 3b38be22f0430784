"""Reading runs: frames, arrays, and refreshing them while they grow."""

from __future__ import annotations

import shutil
import sys
import threading
import urllib.request
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import gradscope
import synthetic
from gradscope import schema
from gradscope.errors import GradscopeError, GradscopeWarning
from gradscope.runs.loading import load
from gradscope.storage.writer import RunWriter
from synthetic import span


def check_contract(frame: pd.DataFrame, table: schema.Table) -> None:
    assert list(frame.columns) == schema.names(table)
    for column in table:
        expected = pd.Series([], dtype=column.dtype).dtype
        assert frame[column.name].dtype == expected, column.name


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return synthetic.write_run(tmp_path / "runs" / "net", n_layers=11, n_steps=40, residual=True)


def test_frames_have_the_columns_and_dtypes_of_the_contract(path: Path) -> None:
    run = load(path)
    check_contract(run.layers, schema.LAYERS)
    check_contract(run.shortcuts, schema.SHORTCUTS)
    check_contract(run.steps[schema.names(schema.STEPS)], schema.STEPS)
    check_contract(run.layer_readings, schema.LAYER_READINGS)
    check_contract(run.shortcut_readings, schema.SHORTCUT_READINGS)
    check_contract(run.frame(), schema.FRAME)
    assert list(run.steps.columns[len(schema.STEPS) :]) == ["train_loss", "val_loss"]


def test_frames_without_rows_have_the_same_columns_and_dtypes(tmp_path: Path) -> None:
    RunWriter(tmp_path / "run", {}).close()
    with pytest.warns(GradscopeWarning, match="no step is recorded"):
        run = load(tmp_path / "run")
        frame = run.frame()
    check_contract(frame, schema.FRAME)
    check_contract(run.layers, schema.LAYERS)
    check_contract(run.shortcuts, schema.SHORTCUTS)
    check_contract(run.steps, schema.STEPS)
    check_contract(run.layer_readings, schema.LAYER_READINGS)
    check_contract(run.shortcut_readings, schema.SHORTCUT_READINGS)
    steps, values = run.matrix("grad_norm")
    assert steps.dtype == np.int64 and steps.shape == (0,) and values.shape == (0, 0)


def test_layers_without_a_step_give_frames_without_rows(tmp_path: Path) -> None:
    synthetic.start(tmp_path / "run", n_layers=4).close()
    with pytest.warns(GradscopeWarning, match="no step is recorded"):
        run = load(tmp_path / "run")
        check_contract(run.frame(), schema.FRAME)
    assert len(run.layers) == 4
    assert run.matrix("relative_signal")[1].shape == (0, 4)
    assert run.shortcut_matrix("cosine")[1].shape == (0, 0)


@pytest.mark.parametrize(
    ("notes", "close", "said"),
    [
        (["no backward pass was seen", "compiled before watch()"], True, "no backward pass was"),
        ([], True, "before it ended"),
        ([], False, "nothing was flushed to disk yet"),
    ],
)
def test_a_run_without_steps_says_why_once(
    tmp_path: Path, notes: list[str], close: bool, said: str
) -> None:
    writer = synthetic.start(tmp_path / "run")
    writer.update(notes=notes)
    if close:
        writer.close()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        run = load(tmp_path / "run")
        run.frame()
        run.steps  # noqa: B018
        run.matrix("grad_norm")
    assert [said in str(w.message) for w in told] == [True]
    writer.close()


def test_every_layer_stands_at_every_step_in_order(path: Path) -> None:
    readings = load(path).layer_readings
    assert readings["step"].tolist() == np.repeat(span(0, 39), 11).tolist()
    assert readings["layer"].tolist() == list(range(11)) * 40
    expected = synthetic.layer_rows(11, span(0, 39), synthetic.RESIDUAL_DECADES)
    pd.testing.assert_frame_equal(readings, pd.DataFrame(expected))


def test_shortcut_readings_are_as_written(path: Path) -> None:
    expected = pd.DataFrame(synthetic.shortcut_rows(5, span(0, 39)))
    run = load(path)
    pd.testing.assert_frame_equal(run.shortcut_readings, expected)
    steps, values = run.shortcut_matrix("total_norm")
    assert steps.tolist() == list(range(40))
    np.testing.assert_array_equal(values.ravel(), expected["total_norm"])


def test_rows_in_any_order_within_a_step_come_back_in_layer_order(tmp_path: Path) -> None:
    writer = synthetic.start(tmp_path / "run", n_layers=6)
    rows = pd.DataFrame(synthetic.layer_rows(6, span(0, 4), decades=2.0))
    shuffled = rows.sample(frac=1, random_state=0).sort_values("step", kind="stable")
    writer.add_rows("layers", {name: shuffled[name].to_numpy() for name in shuffled})
    writer.add_rows("steps", synthetic.step_rows(span(0, 4), loss_floor=0.0))
    writer.close()
    pd.testing.assert_frame_equal(load(tmp_path / "run").layer_readings, rows)


def test_steps_before_a_layer_appeared_are_nan_there(tmp_path: Path) -> None:
    writer = synthetic.start(tmp_path / "run", n_layers=4)
    synthetic.extend(writer, span(0, 4))
    writer.flush()
    run = load(tmp_path / "run")
    assert run.matrix("signal_norm")[1].shape == (5, 4)
    writer.update(layers=synthetic.layer_table(6))
    assert run.refresh()
    assert run.matrix("signal_norm")[1].shape == (5, 6)
    synthetic.extend(writer, span(5, 9))
    writer.close()
    assert run.refresh()
    for reader in (run, load(tmp_path / "run")):
        _, signal = reader.matrix("signal_norm")
        assert signal.shape == (10, 6)
        assert np.isnan(signal[:5, 4:]).all()
        assert np.isfinite(signal[:5, :4]).all() and np.isfinite(signal[5:]).all()
        frame = reader.frame()
        assert len(frame) == 60
        assert frame["name"].tolist() == reader.layers["name"].tolist() * 10


def test_frame_adds_names_and_the_two_derived_columns(path: Path) -> None:
    run = load(path)
    frame = run.frame()
    merged = run.layer_readings.merge(run.layers, on="layer").sort_values(["step", "layer"])
    for name in ("name", "kind", "depth", "parameters"):
        assert frame[name].tolist() == merged[name].tolist()
    with np.errstate(all="ignore"):
        ratio = frame["update_norm"].astype(float) / frame["weight_norm"].astype(float)
    pd.testing.assert_series_equal(frame["update_ratio"], ratio, check_names=False)
    for _, step in frame.groupby("step"):
        signal = step["signal_norm"].astype(float).to_numpy()
        np.testing.assert_array_equal(step["relative_signal"], signal / signal[-1])


def test_relative_signal_is_over_the_last_layer_that_has_a_signal(tmp_path: Path) -> None:
    writer = synthetic.start(tmp_path / "run", n_layers=3)
    rows = synthetic.layer_rows(3, span(0, 3), decades=1.0)
    nan, inf = np.nan, np.inf
    rows["signal_norm"] = np.float32([1, 2, nan, nan, nan, nan, 3, 2, 0, nan, 5, inf])
    writer.add_rows("layers", rows)
    writer.add_rows("steps", synthetic.step_rows(span(0, 3), loss_floor=0.0))
    writer.close()
    _, relative = load(tmp_path / "run").matrix("relative_signal")
    np.testing.assert_array_equal(
        relative, [[0.5, 1, nan], [nan, nan, nan], [nan, nan, nan], [nan, nan, nan]]
    )


def test_matrix_of_every_metric_equals_the_frame(path: Path) -> None:
    run = load(path)
    frame = run.frame()
    metrics = [*schema.names(schema.LAYER_METRICS), "update_ratio", "relative_signal"]
    for metric in metrics:
        steps, values = run.matrix(metric)
        assert values.shape == (steps.size, 11)
        np.testing.assert_array_equal(values.ravel(), frame[metric])


@pytest.mark.parametrize("column", ["signal_norm", "update_ratio", "relative_signal"])
@pytest.mark.parametrize(("first", "last"), [(None, None), (7, 19), (7, None), (None, 0), (90, 99)])
@pytest.mark.parametrize("layers", [None, [4], [10, 0, 3]])
def test_some_steps_and_layers_of_a_matrix_are_those_of_all(
    path: Path, column: str, first: int | None, last: int | None, layers: list[int] | None
) -> None:
    all_steps, everything = load(path).matrix(column)
    run = load(path)
    inside = slice(first, None if last is None else last + 1)
    for _ in range(2):  # the second time some of it was read before
        steps, values = run.matrix(column, first, last, layers)
        np.testing.assert_array_equal(steps, all_steps[inside])
        expected = everything[inside]
        np.testing.assert_array_equal(values, expected if layers is None else expected[:, layers])


def test_some_shortcuts_of_a_matrix_are_those_of_all(path: Path) -> None:
    steps, everything = load(path).shortcut_matrix("total_norm")
    some, values = load(path).shortcut_matrix("total_norm", 3, 8, [4, 1])
    np.testing.assert_array_equal(some, steps[3:9])
    np.testing.assert_array_equal(values, everything[3:9, [4, 1]])


def test_single_layers_grow_with_the_run(tmp_path: Path) -> None:
    writer = synthetic.start(tmp_path / "run", n_layers=5)
    synthetic.extend(writer, span(0, 9))
    writer.flush()
    run = load(tmp_path / "run")
    assert run.matrix("signal_norm", layers=[2])[1].shape == (10, 1)
    synthetic.extend(writer, span(10, 14))
    writer.close()
    run.refresh()
    expected = load(tmp_path / "run").matrix("signal_norm")[1]
    np.testing.assert_array_equal(run.matrix("signal_norm", layers=[2])[1], expected[:, [2]])


def test_a_layer_that_appears_late_shifts_no_reading(tmp_path: Path) -> None:
    writer = synthetic.start(tmp_path / "run", n_layers=5)
    synthetic.extend(writer, span(0, 1199))
    writer.flush()
    run = load(tmp_path / "run")
    before = run.matrix("signal_norm")[1]
    writer.update(layers=synthetic.layer_table(6))
    synthetic.extend(writer, span(1200, 1201))
    writer.close()
    run.refresh()
    after = run.matrix("activation_std")[1]
    assert np.isnan(after[:1200, 5]).all() and not np.isnan(after[:1200, :5]).any()
    np.testing.assert_array_equal(run.matrix("signal_norm", 0, 1199)[1][:, :5], before)


def test_steps_of_one_part_are_read_without_the_others(tmp_path: Path) -> None:
    path = synthetic.write_run(tmp_path / "run", n_layers=5, n_steps=40, flush=10)
    expected = load(path).matrix("signal_norm")[1]
    run = load(path)
    for part in (path / "layers").iterdir():
        if "part-000000000020-" not in part.name:
            part.write_bytes(b"broken")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steps, values = run.matrix("signal_norm", 22, 27)
    np.testing.assert_array_equal(steps, span(22, 27))
    np.testing.assert_array_equal(values, expected[22:28])


def test_layers_with_a_reading_at_any_step_are_told(tmp_path: Path) -> None:
    writer = synthetic.start(tmp_path / "run", n_layers=5, residual=True)
    rows = synthetic.layer_rows(5, span(0, 9), 1.0)
    rows["grad_norm"][:] = np.nan
    rows["grad_norm"][(rows["layer"] == 0) & (rows["step"] == 3)] = 1.0
    rows["grad_norm"][(rows["layer"] == 4) & (rows["step"] == 9)] = 1.0
    writer.add_rows("layers", rows)
    writer.add_rows("shortcuts", synthetic.shortcut_rows(2, span(0, 9)))
    writer.add_rows("steps", synthetic.step_rows(span(0, 9), 0.1))
    writer.flush()
    run = load(tmp_path / "run")
    assert run.was_read("grad_norm").tolist() == [True, False, False, False, True]
    assert run.was_read("grad_norm", np.array([2, 0])).tolist() == [False, True]
    assert run.shortcut_was_read("total_norm").all()
    synthetic.extend(writer, span(10, 10))
    writer.close()
    run.refresh()
    assert run.was_read("grad_norm").tolist() == [True, False, True, False, True]


def test_an_unknown_metric_is_refused_by_name(path: Path) -> None:
    run = load(path)
    with pytest.raises(GradscopeError, match="no metric 'gradnorm'; there are grad_norm"):
        run.matrix("gradnorm")
    with pytest.raises(GradscopeError, match="no metric 'grad_norm'; there are total_norm"):
        run.shortcut_matrix("grad_norm")


def test_changing_a_frame_changes_nothing_in_the_run(path: Path) -> None:
    run = load(path)
    for name in ("layers", "shortcuts", "steps", "layer_readings", "shortcut_readings"):
        before = getattr(run, name)
        changed = getattr(run, name)
        changed.iloc[:, 0] = 99
        changed.loc[:, changed.columns[-1]] = changed[changed.columns[-1]].iloc[0]
        pd.testing.assert_frame_equal(getattr(run, name), before)
    assert not run.matrix("grad_norm")[1].flags.writeable


def test_refresh_takes_in_what_was_added_and_reads_nothing_twice(tmp_path: Path) -> None:
    writer = synthetic.start(tmp_path / "run", n_layers=5)
    synthetic.extend(writer, span(0, 19))
    writer.flush()
    run = load(tmp_path / "run")
    assert run.status == "running"
    assert run.matrix("signal_norm")[1].shape == (20, 5)
    assert not run.refresh()
    for table in ("layers", "steps"):
        for part in (tmp_path / "run" / table).iterdir():
            part.write_bytes(b"")  # whoever reads it again notices
    synthetic.extend(writer, span(20, 29))
    writer.close()
    assert run.refresh()
    assert run.status == "closed"
    assert not run.refresh()
    expected = synthetic.signal(5, span(0, 29), synthetic.PLAIN_DECADES)
    np.testing.assert_array_equal(run.matrix("signal_norm")[1], expected.astype(np.float32))


def test_a_run_shows_the_steps_of_its_last_refresh_in_all_frames(tmp_path: Path) -> None:
    writer = synthetic.start(tmp_path / "run", n_layers=5, residual=True)
    synthetic.extend(writer, span(0, 9))
    writer.flush()
    run = load(tmp_path / "run")
    synthetic.extend(writer, span(10, 19))
    writer.close()
    assert len(run.steps) == 10
    assert run.layer_readings["step"].max() == 9
    assert run.shortcut_readings["step"].max() == 9
    run.refresh()
    assert run.frame()["step"].max() == 19


def test_merges_between_two_reads_go_unnoticed(tmp_path: Path) -> None:
    writer = synthetic.start(tmp_path / "run", n_layers=3)
    run = load(tmp_path / "run")
    for step in range(70):
        synthetic.extend(writer, span(step, step))
        writer.flush()
        run.refresh()
        steps, values = run.matrix("signal_norm")
        assert steps.tolist() == list(range(step + 1))
        expected = synthetic.signal(3, steps, synthetic.PLAIN_DECADES).astype(np.float32)
        np.testing.assert_array_equal(values, expected)
    writer.close()


def test_threads_share_a_run_that_grows(tmp_path: Path) -> None:
    writer = synthetic.start(tmp_path / "run", n_layers=6)
    synthetic.extend(writer, span(0, 0))
    writer.flush()
    run = load(tmp_path / "run")
    done = threading.Event()
    wrong: list[object] = []

    def poll() -> None:
        try:
            while not done.is_set():
                run.refresh()
                steps, values = run.matrix("signal_norm")
                expected = synthetic.signal(6, steps, synthetic.PLAIN_DECADES).astype(np.float32)
                if not np.array_equal(values, expected) or len(run.frame()) % 6:
                    wrong.append(steps)
        except Exception as error:
            wrong.append(error)

    pollers = [threading.Thread(target=poll) for _ in range(4)]
    for thread in pollers:
        thread.start()
    for step in range(1, 60):
        synthetic.extend(writer, span(step, step))
        writer.flush()
    done.set()
    for thread in pollers:
        thread.join()
    writer.close()
    assert wrong == []


def test_repr_says_what_the_run_is(path: Path) -> None:
    assert repr(load(path)) == (
        "<Run 'net': ResidualNet, 11 layers, 5 shortcuts, 40 recorded steps, closed>"
    )


def test_a_run_is_named_after_its_folder(path: Path) -> None:
    moved = path.with_name("renamed")
    shutil.move(path, moved)
    assert load(moved).name == "renamed"


def test_a_run_without_a_close_has_crashed(tmp_path: Path) -> None:
    path = synthetic.write_run(tmp_path / "run", n_steps=3)
    writer = RunWriter(path, {}, resume=True)
    copy = tmp_path / "copy"
    shutil.copytree(path, copy)
    assert load(path).status == "running"
    assert load(copy).status == "crashed"
    writer.close()
    assert load(path).status == "closed"


def test_a_run_serves_its_dashboard_and_writes_its_report(tmp_path):
    run = load(synthetic.write_run(tmp_path / "run", n_layers=6, n_steps=4))
    with gradscope.dashboard(run) as server, urllib.request.urlopen(server.url) as page:
        assert b"gradscope" in page.read()
    gradscope.report(run, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text().lstrip().lower().startswith("<!doctype html>")
    with pytest.raises(GradscopeError, match=r"report\.html"):
        gradscope.report(run, tmp_path / "report.html")


def test_without_dash_the_pip_line_is_told(tmp_path, monkeypatch):
    run = load(synthetic.write_run(tmp_path / "run", n_layers=6, n_steps=4))
    for name in [m for m in sys.modules if m.split(".")[0] in ("gradscope_dashboard", "dash")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "dash", None)
    with pytest.raises(GradscopeError, match=r"pip install 'gradscope-torch\[dashboard\]'"):
        gradscope.dashboard(run)
