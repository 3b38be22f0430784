"""What `RunWriter` puts on disk: rows, run.json, part files, the lock."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

import synthetic
from gradscope import schema
from gradscope.errors import GradscopeError, GradscopeWarning
from gradscope.runs.loading import load
from gradscope.storage import parts
from gradscope.storage.writer import RunWriter
from synthetic import span


def part_files(run: Path, table: str) -> list[Path]:
    return sorted((run / table).glob("part-*.parquet"))


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = synthetic.layer_rows(7, span(0, 9), decades=3.0)
    for name in schema.names(schema.LAYER_METRICS):
        rows[name] = rng.standard_normal(70).astype(np.float32)
        rows[name][:4] = [np.nan, np.inf, -np.inf, 0.0]
    writer = synthetic.start(tmp_path / "run", n_layers=7)
    writer.add_rows("layers", rows)
    writer.add_rows("steps", synthetic.step_rows(span(0, 9), loss_floor=0.0))
    writer.close()
    readings = load(tmp_path / "run").layer_readings
    for name, values in rows.items():
        np.testing.assert_array_equal(readings[name].to_numpy(), values)
        assert readings[name].dtype == values.dtype


def test_float64_readings_stay_float64(tmp_path: Path) -> None:
    rows = synthetic.layer_rows(3, span(0, 1), decades=1.0)
    rows["signal_norm"] = np.full(6, 1 / 3)
    writer = synthetic.start(tmp_path / "run", n_layers=3)
    writer.add_rows("layers", rows)
    writer.add_rows("steps", synthetic.step_rows(span(0, 1), loss_floor=0.0))
    writer.close()
    readings = load(tmp_path / "run").layer_readings
    assert readings["signal_norm"].dtype == np.float64
    assert (readings["signal_norm"] == 1 / 3).all()
    assert readings["grad_norm"].dtype == np.float32


def test_a_metric_that_is_left_out_is_nan(tmp_path: Path) -> None:
    writer = synthetic.start(tmp_path / "run", n_layers=2)
    writer.add_rows("layers", {"step": np.zeros(2, int), "layer": np.arange(2)})
    writer.add_rows("steps", {"step": np.zeros(1, int), "skipped": np.zeros(1, bool)})
    writer.close()
    run = load(tmp_path / "run")
    assert run.layer_readings.drop(columns=["step", "layer"]).isna().all(axis=None)
    assert run.steps["grad_norm"].isna().all()


def test_scalars_of_some_steps_are_nan_at_the_others(tmp_path: Path) -> None:
    writer = synthetic.start(tmp_path / "run", n_layers=1)
    for step, extra in enumerate([{}, {"val_loss": np.array([0.5])}, {}]):
        row = {"step": np.array([step]), "skipped": np.array([False]), **extra}
        writer.add_rows("steps", row)
        if step == 1:
            writer.flush()
    writer.close()
    steps = load(tmp_path / "run").steps
    assert list(steps.columns) == [*schema.names(schema.STEPS), "val_loss"]
    np.testing.assert_array_equal(steps["val_loss"], [np.nan, 0.5, np.nan])


def test_the_arrays_may_be_reused_after_append(tmp_path: Path) -> None:
    writer = synthetic.start(tmp_path / "run", n_layers=4)
    rows = synthetic.layer_rows(4, span(0, 0), decades=1.0)
    expected = rows["signal_norm"].copy()
    writer.add_rows("layers", rows)
    rows["signal_norm"][:] = -1
    writer.add_rows("steps", synthetic.step_rows(span(0, 0), loss_floor=0.0))
    writer.close()
    np.testing.assert_array_equal(load(tmp_path / "run").matrix("signal_norm")[1][0], expected)


def test_a_step_counts_once_its_steps_row_is_on_disk(tmp_path: Path) -> None:
    writer = synthetic.start(tmp_path / "run", n_layers=5)
    synthetic.extend(writer, span(0, 9))
    writer.add_rows("layers", synthetic.layer_rows(5, span(10, 19), decades=1.0))
    writer.flush()
    run = load(tmp_path / "run")
    assert len(run.layer_readings) == 50
    writer.add_rows("steps", synthetic.step_rows(span(10, 19), loss_floor=0.0))
    assert not run.refresh()
    writer.flush()
    assert run.refresh()
    assert len(run.layer_readings) == 100
    writer.close()


def test_parts_are_zstd_and_byte_stream_split_without_dictionary(tmp_path: Path) -> None:
    path = synthetic.write_run(tmp_path / "run", n_steps=10)
    group = pq.ParquetFile(part_files(path, "layers")[0]).metadata.row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    assert list(columns) == schema.names(schema.LAYER_READINGS)
    for name in schema.names(schema.LAYER_METRICS):
        assert columns[name].compression == "ZSTD"
        assert "BYTE_STREAM_SPLIT" in columns[name].encodings
        assert not columns[name].has_dictionary_page


def test_parts_are_readable_as_they_stand(tmp_path: Path) -> None:
    path = synthetic.write_run(tmp_path / "run", n_steps=120, residual=True)
    run = load(path)
    for table, frame in [("layers", run.layer_readings), ("shortcuts", run.shortcut_readings)]:
        read = pd.concat([pd.read_parquet(p) for p in part_files(path, table)], ignore_index=True)
        pd.testing.assert_frame_equal(read, frame)
    assert pd.read_parquet(path / "steps")["step"].tolist() == list(range(120))


def test_names_of_parts_sort_in_order_of_steps(tmp_path: Path) -> None:
    path = synthetic.write_run(tmp_path / "run", n_steps=1500, n_layers=3, flush=37)
    firsts = [pq.read_table(p)["step"][0].as_py() for p in part_files(path, "layers")]
    assert firsts == sorted(firsts)
    assert len(firsts) > 5


def test_parts_are_merged_as_they_grow_in_number(tmp_path: Path) -> None:
    path = synthetic.write_run(tmp_path / "run", n_steps=200, n_layers=4, residual=True, flush=1)
    for table in schema.TABLES:
        assert len(part_files(path, table)) <= 7 * 3  # 200 = 8 ** 2.5
    run = load(path)
    expected = synthetic.layer_rows(4, span(0, 199), synthetic.RESIDUAL_DECADES)
    pd.testing.assert_frame_equal(run.layer_readings, pd.DataFrame(expected))
    assert run.steps["step"].tolist() == list(range(200))


def test_parts_behind_a_damaged_one_are_merged(tmp_path: Path) -> None:
    path = tmp_path / "run"
    writer = synthetic.start(path, n_layers=4, residual=True)
    for step in range(200):
        synthetic.extend(writer, span(step, step))
        writer.flush()
        if step == 3:
            damaged = part_files(path, "layers")[2]
            damaged.write_bytes(b"")
    writer.close()
    assert damaged in part_files(path, "layers")
    assert len(part_files(path, "layers")) <= 8 + 7 * 3
    with pytest.warns(GradscopeWarning, match=f"{damaged.name}: damaged, steps 2-2"):
        signal = load(path).matrix("signal_norm")[1]
    assert np.flatnonzero(np.isnan(signal).any(axis=1)).tolist() == [2]


def test_merged_parts_widen_where_their_columns_differ(tmp_path: Path) -> None:
    writer = synthetic.start(tmp_path / "run", n_layers=2)
    for step in range(8):
        rows = synthetic.layer_rows(2, span(step, step), decades=1.0)
        scalars = {}
        if step == 5:
            rows["signal_norm"] = np.array([1 / 3, 2 / 3])
            scalars = {"accuracy": np.array([0.9])}
        writer.add_rows("layers", rows)
        steps = {"step": np.array([step]), "skipped": np.array([step == 3])}
        writer.add_rows("steps", {**steps, **scalars})
        writer.flush()
    writer.close()
    assert len(part_files(tmp_path / "run", "layers")) == 1
    run = load(tmp_path / "run")
    signal = run.matrix("signal_norm")[1]
    assert signal[5].tolist() == [1 / 3, 2 / 3]
    np.testing.assert_array_equal(signal[4], np.float32([0.1 / (1 + 4 / 500), 1 / (1 + 4 / 500)]))
    assert run.steps["accuracy"].notna().tolist() == [step == 5 for step in range(8)]
    assert run.steps["skipped"].tolist() == [step == 3 for step in range(8)]


def test_parts_that_a_merge_replaced_are_not_counted_twice(tmp_path: Path) -> None:
    path = synthetic.write_run(tmp_path / "run", n_steps=70, n_layers=3, flush=10)
    before = {p: p.read_bytes() for p in part_files(path, "layers")}
    writer = RunWriter(path, {}, resume=True)
    synthetic.extend(writer, span(70, 79))
    writer.close()
    for replaced, content in before.items():  # a crash before they were deleted
        assert not replaced.exists()
        replaced.write_bytes(content)
    assert len(load(path).layer_readings) == 80 * 3
    RunWriter(path, {}, resume=True).close()
    assert not any(p.exists() for p in before)
    assert len(load(path).layer_readings) == 80 * 3


def test_run_json_says_what_was_watched(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "deep" / "run", {"model": "Net", "every": 3})
    meta = json.loads((tmp_path / "deep" / "run" / "run.json").read_text())
    assert meta["format"] == schema.FORMAT_VERSION
    assert (meta["name"], meta["model"], meta["every"]) == ("run", "Net", 3)
    assert meta["status"] == "running"
    assert meta["created"].endswith("+00:00")
    writer.update(notes=["hello"])
    assert json.loads((writer.path / "run.json").read_text())["notes"] == ["hello"]
    writer.close("failed")
    writer.close()
    assert json.loads((writer.path / "run.json").read_text())["status"] == "failed"


def test_run_json_keeps_the_lists_as_they_were_given(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run", {})
    notes = ["first"]
    writer.update(notes=notes)
    notes.append("second")
    writer.close()
    assert load(tmp_path / "run").notes == ["first"]


def test_a_second_run_in_one_folder_is_refused(tmp_path: Path) -> None:
    path = synthetic.write_run(tmp_path / "run", n_steps=5)
    with pytest.raises(GradscopeError, match=r"run: there is a run already; .*resume=True"):
        RunWriter(path, {})


def test_a_folder_that_holds_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(GradscopeError, match="not empty"):
        RunWriter(tmp_path, {})
    assert sorted(os.listdir(tmp_path)) == ["thesis.tex"]


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    RunWriter(tmp_path, {}).close()
    assert load(tmp_path).status == "closed"


def test_a_path_that_cannot_be_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "run", tmp_path / ("x" * 300)):
        with pytest.raises(GradscopeError, match="cannot be written"):
            RunWriter(path, {})


def test_resume_goes_on_after_the_last_step(tmp_path: Path) -> None:
    path = synthetic.write_run(tmp_path / "run", n_steps=30, n_layers=3)
    created = load(path).meta["created"]
    writer = RunWriter(path, {"torch": "9"}, resume=True)
    assert writer.next_step == 30
    assert load(path).status == "running"
    synthetic.extend(writer, span(30, 44))
    writer.close()
    run = load(path)
    assert run.steps["step"].tolist() == list(range(45))
    assert len(run.layer_readings) == 45 * 3
    assert (run.meta["torch"], run.meta["model"]) == ("9", "PlainNet")
    assert run.meta["created"] == created


def test_resume_starts_a_run_where_there_is_none(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run", {}, resume=True)
    assert writer.next_step == 0
    writer.close()


def test_resume_removes_rows_of_steps_that_never_counted(tmp_path: Path) -> None:
    path = synthetic.write_run(tmp_path / "run", n_steps=10, n_layers=3)
    stray = synthetic.layer_rows(3, span(10, 29), decades=9.0)  # a crash before `steps` followed
    table = parts.arrow_table(stray)
    parts.write_part(
        path / "layers", load(path).meta["id"], [table], table.schema, (10, 29), level=0
    )
    (path / "layers" / ".part.tmp").write_bytes(b"half a part")
    writer = RunWriter(path, {}, resume=True)
    assert writer.next_step == 10
    synthetic.extend(writer, span(10, 14))
    writer.close()
    assert sorted(p.name[5:30] for p in (path / "layers").iterdir()) == [
        "000000000000-000000000009",
        "000000000010-000000000014",
    ]
    signal = load(path).matrix("signal_norm")[1]
    expected = synthetic.signal(3, span(0, 14), synthetic.PLAIN_DECADES).astype(np.float32)
    np.testing.assert_array_equal(signal, expected)


def test_two_writers_of_one_run_are_refused(tmp_path: Path) -> None:
    writer = synthetic.start(tmp_path / "run")
    with pytest.raises(GradscopeError, match="another process or scope writes this run"):
        RunWriter(tmp_path / "run", {}, resume=True)
    writer.close()
    RunWriter(tmp_path / "run", {}, resume=True).close()
