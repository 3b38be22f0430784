"""What is left of a run when files in it are damaged, missing or foreign: never a wrong number."""

from __future__ import annotations

import copy
import itertools
import json
import random
import shutil
import warnings
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import synthetic
from gradscope.diagnosis.ledger import ledger
from gradscope.diagnosis.verdict import diagnose
from gradscope.errors import GradscopeError, GradscopeWarning
from gradscope.plots.report import report_html
from gradscope.runs.loading import load
from gradscope.runs.run import Run
from gradscope.storage.writer import RunWriter


@pytest.fixture
def run_path(tmp_path: Path) -> Path:
    return synthetic.write_run(tmp_path / "run", n_layers=6, n_steps=30, residual=True, flush=10)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"not a part\n" * 50])
def test_a_truncated_part_costs_its_own_steps_and_is_named(run_path: Path, content: bytes) -> None:
    expected = load(run_path).layer_readings
    part = sorted((run_path / "layers").glob("part-*"))[1]
    part.write_bytes(content)
    run = load(run_path)
    with pytest.warns(GradscopeWarning, match=rf"{part.name}: damaged, steps 10-19 of it"):
        readings = run.layer_readings
    assert len(readings) == len(expected)
    gone = readings["step"].between(10, 19)
    assert readings[gone].drop(columns=["step", "layer"]).isna().all(axis=None)
    pd.testing.assert_frame_equal(readings[~gone], expected[~gone])


def test_a_damaged_steps_part_costs_its_steps(run_path: Path) -> None:
    part = sorted((run_path / "steps").glob("part-*"))[1]
    part.write_bytes(part.read_bytes()[:-9])
    with pytest.warns(GradscopeWarning, match=rf"{part.name}: damaged"):
        run = load(run_path)
    with pytest.warns(GradscopeWarning, match="holds 10 steps, 10 to 19, that the table `steps`"):
        steps = synthetic.check_rows(run)
    assert steps.tolist() == [*range(10), *range(20, 30)]


def test_a_part_of_another_run_is_left_out(run_path: Path, tmp_path: Path) -> None:
    other = synthetic.write_run(tmp_path / "other", n_layers=6, n_steps=30, flush=10)
    (part,) = (run_path / "layers").glob("part-000000000010-*")
    part.unlink()
    (stranger,) = (other / "layers").glob("part-000000000010-*")
    shutil.copy(stranger, run_path / "layers")
    run = load(run_path)
    with pytest.warns(GradscopeWarning, match=rf"{stranger.name}: .*it belongs to another run"):
        signal = run.matrix("signal_norm")[1]
    assert np.isnan(signal[10:20]).all()
    assert np.isfinite(signal[:10]).all() and np.isfinite(signal[20:]).all()


@pytest.mark.filterwarnings("ignore:.*does not match its checksum")
def test_layers_that_run_json_does_not_list_are_left_out(run_path: Path) -> None:
    file = run_path / "run.json"
    meta = json.loads(file.read_text())
    file.write_text(json.dumps({**meta, "layers": meta["layers"][:5]}))
    run = load(run_path)
    with pytest.warns(GradscopeWarning, match=r"run\.json lists 5 layers, it holds more"):
        assert np.isnan(run.matrix("signal_norm")[1]).all()


def test_foreign_files_are_left_out_and_named(run_path: Path) -> None:
    (run_path / "layers" / "part-copy.parquet").write_bytes(b"x")
    (run_path / "steps" / "notes.txt").write_text("x")
    with pytest.warns(GradscopeWarning) as told:
        run = load(run_path)
    names = [str(w.message).split(": ")[0].rsplit("/", 2)[1:] for w in told]
    assert names == [["layers", "part-copy.parquet"], ["steps", "notes.txt"]]
    synthetic.check_rows(run)


def test_a_missing_part_is_told(run_path: Path) -> None:
    next((run_path / "layers").glob("part-000000000010-*")).unlink()
    run = load(run_path)
    with pytest.warns(GradscopeWarning, match=r"layers: no rows of 10 recorded steps, 10 to 19"):
        signal = run.matrix("signal_norm")[1]
    assert np.isnan(signal[10:20]).all()
    assert np.isfinite(signal[:10]).all() and np.isfinite(signal[20:]).all()


@pytest.mark.parametrize("first", [0, 10])
def test_a_missing_part_of_the_steps_is_told(run_path: Path, first: int) -> None:
    next((run_path / "steps").glob(f"part-{first:012d}-*")).unlink()
    run = load(run_path)
    with pytest.warns(
        GradscopeWarning, match=f"layers: holds 10 steps, {first} to {first + 9}, that"
    ):
        frame = run.frame()
    assert frame["step"].nunique() == 20


def test_a_missing_last_part_of_the_steps_is_told(run_path: Path) -> None:
    next((run_path / "steps").glob("part-000000000020-*")).unlink()
    with pytest.warns(GradscopeWarning, match=r"steps: ends at step 19, but .* up to step 29"):
        run = load(run_path)
    assert synthetic.check_rows(run).tolist() == list(range(20))


@pytest.mark.parametrize(
    "name", ["part-000000000010-000000000024", "part-000000000005-000000000019"]
)
def test_a_renamed_part_is_left_out_and_named(run_path: Path, name: str) -> None:
    part = sorted((run_path / "layers").glob("part-*"))[1]
    renamed = part.rename(part.with_name(name + part.name[30:]))
    run = load(run_path)
    with pytest.warns(GradscopeWarning, match=rf"{renamed.name}: .*it holds the steps 10-19"):
        signal = run.matrix("signal_norm")[1]
    assert np.isnan(signal[10:20]).all()
    assert np.isfinite(signal[:10]).all()


@pytest.mark.parametrize(
    "table, other", list(itertools.permutations(["layers", "shortcuts", "steps"], 2))
)
def test_a_part_of_another_table_is_left_out(run_path: Path, table: str, other: str) -> None:
    expected = everything(load(run_path))
    (part,) = (run_path / table).glob("part-000000000010-*")
    (stranger,) = (run_path / other).glob("part-000000000010-*")
    content = stranger.read_bytes()
    part.unlink()
    moved = run_path / table / stranger.name
    moved.write_bytes(content)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        read = everything(load(run_path))
    assert any(f"{moved}: damaged, steps 10-19" in str(warning.message) for warning in told)
    for name in ("layer_readings", "shortcut_readings", "steps"):
        assert list(read[name].columns) == list(expected[name].columns)
        check_present_rows(read[name], expected[name])


def test_a_part_whose_name_is_none_is_left_out_and_kept(run_path: Path) -> None:
    part = sorted((run_path / "steps").glob("part-*"))[1]
    renamed = part.rename(part.with_name(f"part-{19:012d}-{10:012d}{part.name[30:]}"))
    with pytest.warns(GradscopeWarning, match=f"{renamed.name}: no part file of gradscope"):
        load(run_path)
    RunWriter(run_path, {}, resume=True).close()
    assert renamed.exists()


def test_a_table_that_is_a_file_costs_its_rows_alone(run_path: Path) -> None:
    shutil.rmtree(run_path / "layers")
    (run_path / "layers").write_text("x")
    run = load(run_path)
    with pytest.warns(GradscopeWarning, match="layers: no rows of 30 recorded steps, 0 to 29"):
        assert np.isnan(run.matrix("signal_norm")[1]).all()
    assert len(run.shortcut_readings) == 60


@pytest.mark.parametrize("last", ["x", None, float("inf"), [3]])
def test_lost_steps_that_make_no_sense_keep_no_run_from_being_read(
    run_path: Path, last: object
) -> None:
    edit(run_path, lambda meta: meta.update(lost=[{"first": 1, "last": last, "why": 3}]))
    with pytest.warns(GradscopeWarning, match="lost steps"):
        synthetic.check_rows(load(run_path))
    RunWriter(run_path, {}, resume=True).close()


@pytest.mark.parametrize("position", [-5, 1.5, float("inf")])
def test_a_place_of_a_shortcut_that_is_none_is_refused(run_path: Path, position: float) -> None:
    edit(run_path, lambda meta: meta["shortcuts"][1].update(position=position))
    with pytest.raises(GradscopeError, match=r"run\.json: broken, .*`position` is not between 0"):
        load(run_path)


def test_text_that_no_file_can_hold_is_replaced(run_path: Path) -> None:
    edit(run_path, lambda meta: meta.update(model="\ud800", notes=["\udfff"]))
    run = load(run_path)
    assert (run.meta["model"], run.notes) == ("?", ["?"])
    report_html([run]).encode()


def edit(path: Path, change: Callable[[dict], None]) -> None:
    """Change `run.json` as its author could: its checksum is right."""
    meta = json.loads((path / "run.json").read_text())
    del meta["crc32"]
    change(meta)
    crc = zlib.crc32(json.dumps(meta, sort_keys=True).encode())
    (path / "run.json").write_text(json.dumps({**meta, "crc32": crc}))


def test_pickles_are_never_read(run_path: Path) -> None:
    part = sorted((run_path / "layers").glob("part-*"))[0]
    part.write_bytes(b"cos\nsystem\n(S'touch " + bytes(run_path / "owned") + b"'\ntR.")
    with pytest.warns(GradscopeWarning, match="damaged"):
        load(run_path).frame()
    assert not (run_path / "owned").exists()


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Return `content` with a bit flipped, some bytes overwritten, or its end cut off."""
    bytes_ = bytearray(content)
    kind = chance.randrange(4)
    at = chance.randrange(len(bytes_))
    if kind <= 1:
        bytes_[at] ^= 1 << chance.randrange(8)
    elif kind == 2:
        bytes_[at : at + 16] = chance.randbytes(len(bytes_[at : at + 16]))
    else:
        del bytes_[at:]
    return bytes(bytes_)


def everything(run: Run) -> dict[str, pd.DataFrame]:
    names = ("layers", "shortcuts", "steps", "layer_readings", "shortcut_readings")
    return {name: getattr(run, name) for name in names}


def check_present_rows(frame: pd.DataFrame, intact: pd.DataFrame) -> None:
    """Each row that is there is the intact one, but for readings that are NaN."""
    width = len(intact) // intact["step"].nunique()
    index = frame.iloc[:, 1] if width > 1 else 0  # of the layer or shortcut
    true = intact.iloc[(frame["step"] * width + index).to_numpy()]
    assert (frame.isna().to_numpy() | (frame.to_numpy() == true.to_numpy())).all()


@pytest.mark.slow
def test_no_damage_gives_a_wrong_number_or_a_foreign_exception(run_path: Path) -> None:
    intact = everything(load(run_path))
    files = sorted(file for file in run_path.rglob("*") if file.name[0] != ".")
    files = [file for file in files if file.is_file()]
    chance = random.Random(0)
    outcomes = dict.fromkeys(("refused", "warned", "unharmed"), 0)
    for _ in range(1200):
        file = chance.choice(files)
        content = file.read_bytes()
        file.write_bytes(damaged(content, chance))
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            try:
                read = everything(load(run_path))
            except GradscopeError as error:
                assert str(file) in str(error)
                outcomes["refused"] += 1
                continue
            finally:
                file.write_bytes(content)
        assert all(w.category is GradscopeWarning for w in told), [str(w.message) for w in told]
        if not told:
            for name, frame in read.items():
                pd.testing.assert_frame_equal(frame, intact[name])
            outcomes["unharmed"] += 1
            continue
        outcomes["warned"] += 1
        assert any(str(file) in str(w.message) for w in told)
        if file.name != "run.json":  # whose warning is about all that it lists
            for name in ("layer_readings", "shortcut_readings", "steps"):
                assert list(read[name].columns) == list(intact[name].columns)
                check_present_rows(read[name], intact[name])
    assert outcomes["refused"] > 0
    assert outcomes["warned"] > 840


# --- a run.json that somebody wrote -------------------------------------------------------------

JUNK = [
    None, True, -1, 0.5, 1e308, 2**70, float("nan"), "", "\ud800", "x" * 50, "closed", [], {}, [[]],
    [None], {"a": 1}, [{"first": 1, "last": "x", "why": []}], [{"first": 3, "last": 1, "why": 0}],
]  # fmt: skip


def mutate(value: dict | list, chance: random.Random) -> None:
    """Replace, remove or double something somewhere in `value`."""
    key = chance.choice(list(value) if isinstance(value, dict) else range(len(value)))
    if isinstance(value[key], (dict, list)) and value[key] and chance.random() < 0.75:
        return mutate(value[key], chance)
    kind = chance.randrange(5)
    if kind == 0:
        del value[key]
    elif kind == 1 and isinstance(value, list):
        value.append(copy.deepcopy(value[key]))
    else:
        value[key] = copy.deepcopy(chance.choice(JUNK))


def use(path: Path) -> None:
    """Do with a run what can be done with it."""
    run = load(path)
    everything(run)
    repr(run), run._repr_html_(), run.status, run.notes, run.functions
    str(diagnose(run))
    b"".join(run.csv_chunks())
    for use_further in (ledger, lambda run: report_html([run]).encode()):
        with suppress(GradscopeError):  # nothing to tell
            use_further(run)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::gradscope.errors.GradscopeWarning")
def test_whatever_a_run_json_holds_it_is_read_or_refused(run_path: Path) -> None:
    """Its checksum is right: this is no damage, somebody wrote it."""
    chance = random.Random(0)
    content = (run_path / "run.json").read_bytes()
    refused = 0
    for _ in range(200):
        (run_path / "run.json").write_bytes(content)
        edit(run_path, lambda meta: mutate(meta, chance))
        try:
            use(run_path)
        except GradscopeError as error:
            assert str(run_path) in str(error)
            refused += 1
    assert 50 < refused < 150
