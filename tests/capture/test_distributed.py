"""DistributedDataParallel and fully_shard on two processes, against the whole batch on one."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

import gradscope
from distributed_training import train_whole
from releases import shards_on_the_cpu


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The same training in one process, on the whole batch."""
    return train_whole(tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture(scope="module")
def trained(run_two, tmp_path_factory):
    """Return a function that trains on two processes, each kind once, and returns the path."""
    folder = tmp_path_factory.mktemp("trained")

    @cache
    def path_of(kind):
        run_two(kind, folder / kind)
        return folder / kind

    return path_of


@pytest.mark.parametrize("kind", ["ddp", pytest.param("fsdp", marks=shards_on_the_cpu), "zero"])
def test_norms_over_two_processes_equal_the_single_process(kind, whole, trained):
    run = gradscope.load(trained(kind))
    assert run.notes == []
    assert run.layers.name.tolist() == whole.layers.name.tolist()
    assert run.layers.kind.tolist() == whole.layers.kind.tolist()
    assert run.layers.parameters.tolist() == whole.layers.parameters.tolist()
    assert run.layers.training.tolist() == whole.layers.training.tolist()
    assert len(run.edges)
    assert run.edges.equals(whole.edges)
    both, alone = run.frame(), whole.frame()
    for column in (
        "grad_norm",
        "clipped_grad_norm",
        "weight_norm",
        "update_norm",
        "signal_norm",
        "input_signal_norm",
        "activation_norm",
        "activation_mean",
        "activation_std",
        "derivative_mean",
    ):
        np.testing.assert_allclose(
            both[column], alone[column], rtol=2e-5, atol=1e-8, err_msg=column
        )
    for column in ("grad_norm", "clipped_grad_norm"):
        np.testing.assert_allclose(run.steps[column], whole.steps[column], rtol=1e-5)
    columns = ["total_norm", "shortcut_norm", "branch_norm", "energy_share", "branch_ratio"]
    np.testing.assert_allclose(
        run.shortcut_readings[columns], whole.shortcut_readings[columns], rtol=1e-5
    )
    assert run.steps.train_loss.iloc[-1] == 1.0  # rank 0's


def test_weights_under_ddp_are_the_same_to_the_bit_with_and_without_watching(trained):
    for rank in range(2):
        bare = torch.load(f"{trained('bare')}-{rank}.pt")
        watched = torch.load(f"{trained('ddp')}-{rank}.pt")
        for name in bare:
            assert torch.equal(bare[name], watched[name])


def test_every_rank_may_write_its_own_readings(ranks):
    first, second = (gradscope.load(ranks / f"rank{rank}") for rank in range(2))
    np.testing.assert_array_equal(first.steps.grad_norm, second.steps.grad_norm)  # all-reduced
    assert (first.frame().signal_norm != second.frame().signal_norm).all()
    assert (first.meta["rank"], second.meta["rank"]) == (0, 1)


def test_what_one_rank_cannot_do_is_an_error_on_all(run_two, tmp_path):
    (tmp_path / "file").touch()
    for rank, out in enumerate(run_two("refused", tmp_path / "file" / "run")):
        cut, folder = out.splitlines()
        assert cut.startswith(f"rank {rank}: watch(cut=") and "DistributedDataParallel" in cut
        assert "cannot be written" in folder


@pytest.mark.slow
def test_two_processes_resume_one_run(run_two, whole, tmp_path):
    for _ in range(2):
        run_two("resumed", tmp_path / "run")
    run = gradscope.load(tmp_path / "run")
    assert run.steps.step.tolist() == list(range(6))
    assert run.layers.name.tolist() == whole.layers.name.tolist()
    assert len(run.shortcuts) == len(whole.shortcuts)
    for column in ("grad_norm", "signal_norm"):
        first, second = np.split(run.matrix(column)[1], 2)
        np.testing.assert_array_equal(first, second)
