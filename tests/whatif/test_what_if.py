"""What is tried, what is said of it, and where it lies."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import gradscope
import learners
from gradscope.probes.changes.catalogue import CHANGES
from gradscope.runs.tries import read_tried

CROSS_ENTROPY = nn.CrossEntropyLoss()


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """A plain net of 14 tanh layers, and what was tried on it unasked."""
    model = learners.plain(14)
    optimizer = learners.momentum(model, 0.02)
    run = tmp_path_factory.mktemp("runs") / "plain-14"
    data = learners.batches(12)
    return gradscope.what_if(model, CROSS_ENTROPY, data, optimizer, steps=12, run=run)


def test_the_best_change_comes_first_and_those_that_do_not_help_last(deep):
    assert deep.best is deep.tried[0]
    assert deep.unchanged.verdict == "vanishing" and deep.best.verdict == "healthy"
    helps = [row.helps for row in deep.tried]
    assert helps == sorted(helps, reverse=True) and not all(helps)
    losses = [row.loss for row in deep.tried if not row.helps]
    assert losses == sorted(losses)


def test_only_what_fits_the_finding_is_tried(deep):
    tried = {row.change for row in deep.tried}
    fitting = {c.name for c in CHANGES.values() if c.against & {"vanishing"}}
    assert tried <= fitting
    assert "learning rate x 10" not in tried and "He weights" in tried


def test_better_is_said_only_beyond_the_spread_of_the_seeds(deep):
    for row in deep.tried:
        lower = deep.unchanged.loss - row.loss
        if row.helps:
            assert row.seeds == 3
            assert lower > max(row.spread, deep.unchanged.spread)


def test_every_try_is_a_run_of_its_own_beside_the_run(deep):
    for row in deep.tried:
        run = gradscope.load(deep.run / "what-if" / row.folder)
        assert len(run.steps) == 12
        diagnosis = gradscope.diagnose(run)
        assert diagnosis.verdict == row.verdict
        assert diagnosis.decades == pytest.approx(row.decades)
        assert run.steps["train_loss"].notna().all()
    assert [run.name for run in gradscope.load_all(deep.run.parent)] == ["plain-14"]
    assert str(read_tried(deep.run)) == str([deep.unchanged, *deep.tried])  # NaN among them


def test_the_unchanged_copy_trains_as_the_model_itself_would(deep):
    model = learners.plain(14)
    losses = learners.steps(model, learners.momentum(model, 0.02), learners.batches(12))
    recorded = gradscope.load(deep.run).steps["train_loss"].tolist()
    assert recorded == pytest.approx(losses, rel=1e-6)


def test_diagnose_lists_what_was_tried_before_what_was_not(deep):
    diagnosis = gradscope.diagnose(gradscope.load(deep.run))
    (finding,) = [f for f in diagnosis.findings if f.verdict == "vanishing"]
    tried = [remedy.startswith("tried") for remedy in finding.remedies]
    assert tried == sorted(tried, reverse=True) and not all(tried)
    best = deep.best
    assert finding.remedies[0] == (
        f"tried: {best.change}: D {deep.unchanged.decades:+.1f} ->"
        f" {best.decades:+.1f}, loss {deep.unchanged.loss:.3g} -> {best.loss:.3g} in 12 steps"
    )
    assert f"\n  {finding.remedies[0]}" in str(diagnosis)
    assert "does not help" in str(diagnosis)


def test_the_table_says_it_in_words_and_as_a_frame(deep):
    text = str(deep)
    assert text.startswith(f"Best: {deep.best.change}. D -")
    lines = text.splitlines()
    assert len([line for line in lines if line.endswith("  helps")]) == sum(
        row.helps for row in deep.tried
    )
    assert any(line.startswith("unchanged") for line in lines)
    frame = deep.to_frame()
    assert frame["change"].tolist() == [row.change for row in (*deep.tried, deep.unchanged)]
    assert frame["helps"].dtype == bool
    assert "<td>shortcuts around pairs of layers</td>" in deep._repr_html_()


def test_on_a_net_that_learns_nothing_helps(tmp_path):
    model = learners.plain(3, nn.ReLU)
    what = gradscope.what_if(
        model, CROSS_ENTROPY, learners.batches(), learners.momentum(model), run=tmp_path / "run"
    )
    assert what.unchanged.verdict == "healthy"
    assert what.best is None and what.tried
    assert str(what).startswith(f"Nothing helps: none of {len(what.tried)} changes helps")


def test_a_change_that_changes_nothing_does_not_help(tmp_path):
    def nothing(model: nn.Module) -> None:
        pass

    model = learners.plain(24)
    what = gradscope.what_if(
        model, CROSS_ENTROPY, learners.batches(), learners.momentum(model),
        changes=[nothing, "shortcuts"], steps=20, run=tmp_path / "run",
    )  # fmt: skip
    assert [row.helps for row in what.tried] == [True, False]
    vain = what.tried[1]
    assert vain.change == "nothing"
    assert vain.loss == pytest.approx(what.unchanged.loss, rel=1e-3)
    assert vain.decades == pytest.approx(what.unchanged.decades)


def test_changes_made_together_build_on_one_another(tmp_path):
    model = learners.plain(12, nn.Sigmoid)
    chain = ["relu", ["relu", "he"], ["relu", "he", "shortcuts"]]
    what = gradscope.what_if(
        model, CROSS_ENTROPY, learners.batches(), learners.momentum(model),
        changes=chain, steps=20, run=tmp_path / "run",
    )  # fmt: skip
    decades = {row.folder: row.decades for row in what.tried}
    assert what.unchanged.decades < decades["relu"] - 1 < decades["relu+he"] - 2
    run = gradscope.load(what.run / "what-if" / "relu+he+shortcuts")
    assert len(run.shortcuts) == 5
    assert set(run.frame()["kind"]) == {"Linear", "ReLU"}


def test_a_second_asking_leaves_the_first_tries_where_they_are(tmp_path):
    model = learners.plain(6)
    optimizer = learners.momentum(model)
    data = learners.batches()
    with gradscope.watch(model, tmp_path / "run") as scope:
        learners.steps(model, optimizer, data)
        for _ in range(2):
            what = scope.what_if(CROSS_ENTROPY, data, changes=["he"], steps=4)
    assert sorted(path.name for path in (tmp_path / "run" / "what-if").iterdir() if path.is_dir()) \
        == ["he", "he-2", "unchanged", "unchanged-2"]  # fmt: skip
    assert (what.unchanged.folder, what.tried[0].folder) == ("unchanged-2", "he-2")


def test_a_loss_that_becomes_nan_is_worse_than_any(tmp_path):
    def huge(model: nn.Module) -> None:
        with torch.no_grad():
            model.first.weight.mul_(1e30)
            model.body[0].fc.weight.mul_(1e30)

    model = learners.plain(5, nn.ReLU)
    what = gradscope.what_if(
        model, CROSS_ENTROPY, learners.batches(), learners.momentum(model),
        changes=[huge, "lr/10"], steps=6, run=tmp_path / "run",
    )  # fmt: skip
    assert what.tried[-1].change == "huge"
    assert not math.isfinite(what.tried[-1].loss) and not what.tried[-1].helps
    assert read_tried(what.run)[-1].change == "huge"
