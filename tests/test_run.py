"""Reading runs: frames, arrays, CSV, refreshing, discovery, and what is wrong with a path."""

from __future__ import annotations

import io
import json
import shutil
import threading
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import synthetic

from gradscope import schema
from gradscope.errors import GradscopeError, GradscopeWarning
from gradscope.run import Run, discover, load, load_all
from gradscope.store import RunWriter


def span(first: int, last: int) -> np.ndarray:
    return np.arange(first, last + 1, dtype=np.int64)


def check_contract(frame: pd.DataFrame, table: schema.Table) -> None:
    assert list(frame.columns) == schema.names(table)
    for column in table:
        expected = pd.Series([], dtype=column.dtype).dtype
        assert frame[column.name].dtype == expected, column.name


def edit_meta(path: Path, **fields: object) -> None:
    """Change run.json as a user with an editor would."""
    file = path / "run.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


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
    writer.append("layers", {name: shuffled[name].to_numpy() for name in shuffled})
    writer.append("steps", synthetic.step_rows(span(0, 4), loss_floor=0.0))
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
    writer.append("layers", rows)
    writer.append("steps", synthetic.step_rows(span(0, 3), loss_floor=0.0))
    writer.close()
    _, relative = load(tmp_path / "run").matrix("relative_signal")
    np.testing.assert_array_equal(
        relative, [[0.5, 1, nan], [nan, nan, nan], [inf, inf, nan], [nan, 0, nan]]
    )


def test_matrix_of_every_metric_equals_the_frame(path: Path) -> None:
    run = load(path)
    frame = run.frame()
    metrics = [*schema.names(schema.LAYER_METRICS), "update_ratio", "relative_signal"]
    for metric in metrics:
        steps, values = run.matrix(metric)
        assert values.shape == (steps.size, 11)
        np.testing.assert_array_equal(values.ravel(), frame[metric])


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


def test_csv_holds_the_frame_with_all_digits(path: Path, tmp_path: Path) -> None:
    run = load(path)
    run.to_csv(tmp_path / "report.csv")
    read = pd.read_csv(tmp_path / "report.csv", dtype=str)
    read = read.astype(run.frame().dtypes)
    pd.testing.assert_frame_equal(read, run.frame(), check_exact=True)


def test_csv_of_a_run_longer_than_a_piece_is_whole(tmp_path: Path) -> None:
    path = synthetic.write_run(tmp_path / "run", n_layers=300, n_steps=1000, flush=300)
    chunks = list(load(path).csv_chunks())
    assert len(chunks) > 2
    read = pd.read_csv(io.BytesIO(b"".join(chunks)), usecols=["step", "layer", "signal_norm"])
    frame = load(path).frame()
    pd.testing.assert_frame_equal(
        read, frame[list(read.columns)].astype(read.dtypes), check_exact=False, rtol=1e-7
    )


def test_csv_keeps_inf_and_zero_and_leaves_nan_empty(tmp_path: Path) -> None:
    writer = synthetic.start(tmp_path / "run", n_layers=4)
    rows = synthetic.layer_rows(4, span(0, 0), decades=1.0)
    rows["signal_norm"] = np.float32([np.inf, -np.inf, 0.0, np.nan])
    writer.append("layers", rows)
    writer.append("steps", synthetic.step_rows(span(0, 0), loss_floor=0.0))
    writer.close()
    load(tmp_path / "run").to_csv(tmp_path / "r.csv")
    cells = pd.read_csv(tmp_path / "r.csv", dtype=str, keep_default_na=False)["signal_norm"]
    assert cells.tolist() == ["inf", "-inf", "0", ""]


def test_csv_of_a_run_without_steps_is_its_header(tmp_path: Path) -> None:
    RunWriter(tmp_path / "run", {}).close()
    with pytest.warns(GradscopeWarning, match="no step is recorded"):
        load(tmp_path / "run").to_csv(tmp_path / "r.csv")
    assert (tmp_path / "r.csv").read_text() == ",".join(schema.names(schema.FRAME)) + "\n"


def test_csv_is_not_overwritten_unless_told_to(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "report.csv"
    target.write_text("mine")
    with pytest.raises(GradscopeError, match=r"report\.csv: exists already.*overwrite=True"):
        load(path).to_csv(target)
    assert target.read_text() == "mine"
    load(path).to_csv(target, overwrite=True)
    assert len(pd.read_csv(target)) == 440
    with pytest.raises(GradscopeError, match="not a file"):
        load(path).to_csv(tmp_path, overwrite=True)


def test_csv_that_cannot_be_written_leaves_nothing_behind(path: Path, tmp_path: Path) -> None:
    with pytest.raises(GradscopeError, match="cannot be written, no such file or directory"):
        load(path).to_csv(tmp_path / "missing" / "r.csv")
    assert [p.name for p in tmp_path.iterdir()] == ["runs"]


HOSTILE = [
    "=HYPERLINK(1)",
    "+1",
    "-1",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    'a"b,c\nd',
    "<script>alert(1)</script>",
    "../../etc/passwd",
    "x" * 10_000,
    "\x1b[31m",
    "日本語 😀 é",
    "\ud800 lone",
]


def hostile_run(path: Path) -> Run:
    table = synthetic.layer_table(len(HOSTILE))
    for row, name in zip(table, HOSTILE, strict=True):
        row["name"] = row["kind"] = name
    writer = RunWriter(path, {"model": HOSTILE[7]})
    writer.update(layers=table)
    writer.append("layers", synthetic.layer_rows(len(HOSTILE), span(0, 2), decades=1.0))
    writer.append("steps", synthetic.step_rows(span(0, 2), loss_floor=0.0))
    writer.close()
    return load(path)


def test_names_come_back_whatever_they_hold(tmp_path: Path) -> None:
    run = hostile_run(tmp_path / "run")
    assert run.layers["name"].tolist() == [*HOSTILE[:-1], "? lone"]  # no UTF-8 for a surrogate
    assert run.frame()["kind"].tolist() == [*HOSTILE[:-1], "? lone"] * 3


def test_csv_defuses_formulas_in_names(tmp_path: Path) -> None:
    hostile_run(tmp_path / "run").to_csv(tmp_path / "r.csv")
    with open(tmp_path / "r.csv", encoding="utf-8", newline="") as file:
        read = pd.read_csv(file, lineterminator="\n")
    names = read["name"][: len(HOSTILE)].tolist()
    assert names == [f"'{name}" for name in HOSTILE[:6]] + [*HOSTILE[6:-1], "? lone"]


def test_the_html_of_a_run_escapes_its_names(tmp_path: Path) -> None:
    run = hostile_run(tmp_path / "run <b>")
    page = run._repr_html_()
    assert "<script>" not in page and "&lt;script&gt;" in page
    assert "<b>" not in page and "run &lt;b&gt;" in page


def test_repr_says_what_the_run_is(path: Path) -> None:
    assert repr(load(path)) == (
        "<Run 'net': ResidualNet, 11 layers, 5 shortcuts, 40 recorded steps, closed>"
    )


def test_a_run_is_named_after_its_folder(path: Path) -> None:
    moved = path.with_name("renamed")
    shutil.move(path, moved)
    assert load(moved).name == "renamed"


def test_discover_lists_runs_two_folders_deep(path: Path, tmp_path: Path) -> None:
    other = synthetic.write_run(tmp_path / "runs" / "sweep" / "a", n_steps=3)
    synthetic.write_run(tmp_path / "runs" / "one" / "two" / "three", n_steps=3)
    synthetic.write_run(tmp_path / "runs" / ".trash" / "gone", n_steps=3)
    assert discover(tmp_path / "runs") == [path, other]
    assert discover(path) == [path]
    assert discover(str(path / "layers")) == []
    with pytest.raises(GradscopeError, match="nowhere: there is no such folder"):
        discover(tmp_path / "nowhere")


def test_discover_reads_no_parts(path: Path) -> None:
    for part in path.rglob("*.parquet"):
        part.write_bytes(b"")
    assert discover(path.parent) == [path]


def test_load_all_opens_every_run_and_tells_of_broken_ones(path: Path, tmp_path: Path) -> None:
    broken = synthetic.write_run(tmp_path / "runs" / "broken", n_steps=3)
    (broken / "run.json").write_text("{")
    synthetic.write_run(tmp_path / "runs" / "other", n_steps=3)
    with pytest.warns(GradscopeWarning, match=r"broken/run\.json: broken, not JSON"):
        runs = load_all(tmp_path / "runs")
    assert [run.name for run in runs] == ["net", "other"]


def test_load_guesses_which_folder_was_meant(path: Path, tmp_path: Path) -> None:
    with pytest.raises(GradscopeError, match=r"not a run, .* did you mean \S+/runs/net\?"):
        load(path.parent)
    for name in "abc":
        shutil.copytree(path, path.with_name(name))
    with pytest.raises(GradscopeError, match=r"did you mean one of \S+/a, .* or 1 more\?"):
        load(path.parent)
    (tmp_path / "empty").mkdir()
    with pytest.raises(GradscopeError, match=r"not a run, it holds no run\.json$"):
        load(tmp_path / "empty")


def test_load_refuses_what_is_no_folder(path: Path, tmp_path: Path) -> None:
    with pytest.raises(GradscopeError, match="there is no such folder"):
        load(tmp_path / "nothing")
    with pytest.raises(GradscopeError, match=r"run\.json: not a folder"):
        load(path / "run.json")
    with pytest.raises(GradscopeError, match="there is no such folder"):
        load("x" * 5000)


def test_load_refuses_a_newer_format(path: Path) -> None:
    edit_meta(path, format=schema.FORMAT_VERSION + 1)
    with pytest.raises(GradscopeError, match=r"run\.json: format 2 is newer .* pip install -U"):
        load(path)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "{}", '{"format": "1"}', '{"format": true}', "[" * 100_000, "\ufffe"],
)
def test_load_refuses_a_broken_run_json(path: Path, text: str) -> None:
    (path / "run.json").write_text(text)
    with pytest.raises(GradscopeError, match=r"run\.json: "):
        load(path)


@pytest.mark.parametrize(
    "fields",
    [
        {"layers": 3},
        {"layers": [1, 2]},
        {"layers": [{"layer": 0}]},
        {"layers": [{**synthetic.layer_table(1)[0], "layer": 1}]},
        {"layers": [{**synthetic.layer_table(1)[0], "name": 7}]},
        {"layers": [{**synthetic.layer_table(1)[0], "parameters": 10**30}]},
        {"layers": [{**synthetic.layer_table(1)[0], "depth": 1.5}]},
        {"shortcuts": [{**synthetic.shortcut_table(1)[0], "position": "first"}]},
        {"notes": "x"},
        {"lost": {}},
    ],
)
@pytest.mark.filterwarnings("ignore:.*does not match its checksum")
def test_load_refuses_lists_that_are_broken(path: Path, fields: dict[str, object]) -> None:
    edit_meta(path, **fields)
    with pytest.raises(GradscopeError, match=r"run\.json: broken, "):
        load(path)


def test_an_edited_run_json_is_read_with_a_warning(path: Path) -> None:
    edit_meta(path, model="Better")
    with pytest.warns(GradscopeWarning, match=r"run\.json: does not match its checksum"):
        assert load(path).meta["model"] == "Better"


def test_load_tells_of_lost_steps(path: Path) -> None:
    writer = RunWriter(path, {}, resume=True)
    writer.update(lost=[{"first": 1200, "last": 1350, "why": "no space left on device"}])
    writer.close()
    with pytest.warns(GradscopeWarning, match="lost steps 1200-1350: no space left on device"):
        load(path)


def test_a_run_without_a_close_has_crashed(tmp_path: Path) -> None:
    path = synthetic.write_run(tmp_path / "run", n_steps=3)
    writer = RunWriter(path, {}, resume=True)
    copy = tmp_path / "copy"
    shutil.copytree(path, copy)
    assert load(path).status == "running"
    assert load(copy).status == "crashed"
    writer.close()
    assert load(path).status == "closed"
