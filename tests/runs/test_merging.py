"""The runs of several ranks put together, against the whole batch on one process."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

import gradscope
from distributed_training import train_whole
from gradscope import schema
from gradscope.cli import main
from gradscope.runs.merging import merge
from gradscope.storage.writer import RunWriter


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The same training in one process, on the whole batch."""
    return train_whole(tmp_path_factory.mktemp("whole") / "run")


def assert_equals_whole(run, whole):
    assert (run.status, run.notes) == ("closed", [])
    assert run.layers.drop(columns="kind").equals(whole.layers.drop(columns="kind"))
    assert run.shortcuts.equals(whole.shortcuts)
    both, alone = run.frame(), whole.frame()
    # the spread between the samples of a process is that between fewer
    for column in both.columns.difference(["step", "layer", "name", "kind", "sample_spread"]):
        np.testing.assert_allclose(
            both[column], alone[column], rtol=2e-5, atol=1e-8, err_msg=column
        )
    for column in ("grad_norm", "clipped_grad_norm"):
        np.testing.assert_allclose(run.steps[column], whole.steps[column], rtol=1e-5)
    columns = ["total_norm", "shortcut_norm", "branch_norm", "other_norm", "energy_share"]
    np.testing.assert_allclose(
        run.shortcut_readings[columns], whole.shortcut_readings[columns], rtol=1e-5
    )
    assert run.steps.train_loss.iloc[-1] == 1.0  # rank 0's


def test_norms_over_the_ranks_of_ddp_equal_the_single_process(ranks, whole, tmp_path):
    assert_equals_whole(merge([ranks], tmp_path / "merged"), whole)


def test_norms_over_the_shards_of_fully_shard_equal_the_single_process(ranks, whole, tmp_path):
    assert_equals_whole(merge([f"{ranks}-sharded"], tmp_path / "merged"), whole)


def test_the_command_says_what_it_wrote(ranks, tmp_path, capsys):
    folders = [str(ranks / "rank1"), str(ranks / "rank0")]
    assert main(["merge", *folders, "-o", str(tmp_path / "merged")]) == 0
    assert capsys.readouterr() == (f"merged 2 ranks, 3 steps, to {tmp_path / 'merged'}\n", "")
    assert gradscope.load(tmp_path / "merged").meta["merged"] == 2


def test_long_runs_are_merged_piece_by_piece(ranks, tmp_path, monkeypatch):
    at_once = merge([ranks], tmp_path / "at once")
    monkeypatch.setattr("gradscope.runs.merging._ROWS_AT_ONCE", 1)
    pieces = []
    bit_by_bit = merge([ranks], tmp_path / "bit by bit", track=lambda p: pieces.extend(p) or p)
    assert len(pieces) == 3
    assert bit_by_bit.frame().equals(at_once.frame())


def test_only_steps_of_all_ranks_are_merged_and_that_is_noted(tmp_path):
    for rank, steps in enumerate(([0, 1, 2], [0, 2, 3])):
        write_rank(tmp_path / "run" / f"rank{rank}", rank, 2, steps)
    run = merge([tmp_path / "run"], tmp_path / "merged")
    assert run.steps.step.tolist() == [0, 2]
    assert run.notes == ["steps that not every rank has on disk are left out"]


def test_layers_are_matched_by_name_and_what_one_rank_lacks_is_nan(tmp_path):
    write_rank(tmp_path / "run" / "rank0", 0, 2, [0], {"a": 3.0, "b": 1.0})
    write_rank(tmp_path / "run" / "rank1", 1, 2, [0], {"b": 1.0, "a": 4.0, "c": 1.0})
    run = merge([tmp_path / "run"], tmp_path / "merged")
    assert run.layers.name.tolist() == ["a", "b", "c"]
    readings = run.frame().set_index("name").activation_norm
    assert readings["a"] == 5.0
    assert readings["b"] == pytest.approx(2**0.5)
    assert readings["c"] == 1.0


def test_functions_on_the_output_of_a_layer_keep_their_names(tmp_path):
    write_rank(tmp_path / "run" / "rank0", 0, 2, [0], {"a": 1.0})
    write_rank(tmp_path / "run" / "rank1", 1, 2, [0], {"b": 1.0, "a": 1.0}, {"a": "ReLU"})
    run = merge([tmp_path / "run"], tmp_path / "merged")
    assert list(run.layers.name) == ["a", "b"]
    assert run.functions == {0: "ReLU"}


def write_rank(path, rank, size, steps, norms=None, functions=None):
    writer = RunWriter(path, {"model": "Net", "every": 1, "rank": rank, "ranks": size})
    norms = norms or {"a": 1.0}
    layer = {"kind": "Linear", "depth": 1, "parameters": 4}
    rows = [{"layer": i, "name": name, **layer} for i, name in enumerate(norms)]
    for row in rows:
        if row["name"] in (functions or {}):
            row[schema.FUNCTION] = functions[row["name"]]
    writer.update(layers=rows)
    steps = np.array(steps)
    writer.add_rows(
        "layers",
        {
            "step": np.repeat(steps, len(norms)),
            "layer": np.tile(np.arange(len(norms)), steps.size),
            "activation_norm": np.tile(list(norms.values()), steps.size),
        },
    )
    ones = np.ones(steps.size)
    writer.add_rows(
        "steps",
        {"step": steps, "time": ones, "skipped": ones > 1, "grad_norm": ones,
         "clipped_grad_norm": ones, "loss_scale": ones},
    )  # fmt: skip
    writer.close()


def test_what_cannot_be_merged_is_refused(pair, tmp_path, ranks):
    def refusal(folder, target="merged"):
        with pytest.raises(gradscope.GradscopeError) as refused:
            merge(folder if isinstance(folder, list) else [folder], tmp_path / target)
        assert "\n" not in str(refused.value)
        return str(refused.value)

    assert "holds no runs of several ranks" in refusal(pair)
    shutil.copytree(ranks, tmp_path / "copy")
    assert "rank 0 is there twice" in refusal([ranks, tmp_path / "copy"])
    shutil.rmtree(tmp_path / "copy" / "rank1")
    assert "rank 1 of 2 is missing" in refusal(tmp_path / "copy")
    RunWriter(
        tmp_path / "copy" / "rank1", {"model": "Net", "every": 5, "rank": 1, "ranks": 2}
    ).close()
    assert "not of one training, their `every` differs: 1, 5" in refusal(tmp_path / "copy")
    assert "there is a run already" in refusal(ranks, "copy/rank0")
