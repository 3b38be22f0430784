"""`gradscope bench`: its nets, its table, and that every watcher it compares does its work."""

from __future__ import annotations

import json
import math
import mmap

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gradscope
from gradscope.benchmark import cost as benchmark
from gradscope.benchmark.cost import Bench, Copy, Cost, measure
from gradscope.benchmark.rivals import GRADSCOPE, Bare, Gradscope, Naive, alternatives
from gradscope.benchmark.workloads import WORKLOADS, Workload
from gradscope.cli import main

TINY = Workload(
    "tiny",
    "MLP, 2 layers of 4",
    lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)),
    lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
    lambda: (torch.randn(6, 4), torch.randint(4, (6,))),
    steps=10,
)
PARAMETERS = {"deep": 50 * (256 * 257), "resnet": 11_173_962, "wide": 4 * 4096 * 4097}


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.name)
def test_a_net_has_the_size_that_its_name_promises_and_trains(workload):
    torch.manual_seed(0)
    inputs, targets = workload.batch()
    with torch.device("meta"):
        model = workload.model()
    size = sum(parameter.numel() for parameter in model.parameters())
    assert size == PARAMETERS.get(workload.name, size)
    loss = F.cross_entropy(model(inputs.to("meta")), targets.to("meta"))
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_naive_loop_reads_what_gradscope_reads(tmp_path):
    torch.manual_seed(0)
    model = TINY.model()
    optimizer = TINY.optimizer(model)
    inputs, targets = TINY.batch()
    naive = Naive(model, tmp_path)
    with gradscope.watch(model, tmp_path / "run") as scope:
        F.cross_entropy(model(inputs), targets).backward()
        naive.before_step()
        optimizer.step()
        naive.after_step()
    naive.close()
    rows = scope.run.frame().set_index("name")
    for name in ("0", "1", "2"):
        assert naive.norms["signal", name] == pytest.approx(rows.signal_norm[name])
        assert naive.norms["activation", name] == pytest.approx(rows.activation_norm[name])
    for what in ("weight", "update"):
        parts = [naive.norms[what, f"2.{part}"] for part in ("weight", "bias")]
        assert math.hypot(*parts) == pytest.approx(rows[f"{what}_norm"]["2"])


@pytest.mark.parametrize("name", ["bare", *GRADSCOPE, *alternatives()])
def test_a_watcher_leaves_the_model_as_it_was(name):
    watcher = {"bare": Bare, **GRADSCOPE, **alternatives()}[name]
    watched = Copy(TINY, TINY.model(), TINY.batch(), watcher)
    assert watched.block() > 0
    watched.close()
    for module in watched.model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks
        assert not module._backward_hooks and not module._backward_pre_hooks


def test_each_watcher_is_compared_with_two_bare_copies():
    watchers = {benchmark._NOISE: Bare, **GRADSCOPE}
    costs = list(measure(TINY, watchers, torch.device("cpu"), torch.get_num_threads(), 3))
    assert [(cost.net, cost.watcher, cost.rounds) for cost in costs] == [
        ("tiny", watcher, 3) for watcher in watchers
    ]
    assert all(0 < cost.lower <= cost.ratio <= cost.upper for cost in costs)


def test_a_block_has_its_share_of_recorded_steps():
    recorded = []

    class Counting(Gradscope):
        def end_of_block(self):
            super().end_of_block()
            recorded.append(len(self._scope.run.steps))

    copy = Copy(TINY, TINY.model(), TINY.batch(), lambda m, f: Counting(m, f, every=4))
    copy.block()
    copy.close()
    assert recorded == [3, 6]  # of blocks of 12 steps, as 10 are no multiple of 4


def test_what_a_watcher_keeps_counts_as_its_memory():
    size = 10_000_000

    class Hoarder(Bare):
        def __init__(self, model, folder):
            super().__init__(model, folder)
            fresh = mmap.mmap(-1, 4 * size)  # not what an earlier test has freed
            self.hoard = torch.frombuffer(fresh, dtype=torch.float32).fill_(1)

    bare, hoarding = (Copy(TINY, TINY.model(), TINY.batch(), way) for way in (Bare, Hoarder))
    assert hoarding.rise - bare.rise == pytest.approx(4 * size, rel=0.1)


def test_the_table_has_a_row_a_watcher_and_a_column_a_net():
    every = next(iter(GRADSCOPE))
    costs = [
        Cost(net, watcher, threads, 11, ratio, ratio - 0.01, ratio + 0.01, memory)
        for net in ("deep", "wide")
        for threads in (1, 2)
        for watcher, ratio, memory in (("bare", 1.0, 0.0), (every, 1.0 + 0.05 * threads, 4.25))
    ]
    lines = str(Bench("gradscope 1, torch 2, cpu", tuple(costs))).splitlines()
    assert lines[0] == "gradscope 1, torch 2, cpu"
    assert "median of 11 rounds" in lines[1] and "with 1 / 2 threads" in lines[1]
    assert lines[3:] == [
        "| | deep | wide |",
        "|---|---|---|",
        "| bare | 1.00 ± 0.01 / 1.00 ± 0.01 | 1.00 ± 0.01 / 1.00 ± 0.01 |",
        f"| {every} | 1.05 ± 0.01 / 1.10 ± 0.01 | 1.05 ± 0.01 / 1.10 ± 0.01 |",
        f"| {every}: bytes a parameter | 4.2 | 4.2 |",
    ]


def test_the_command_measures_the_nets_that_were_asked_for(monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "WORKLOADS", (TINY,))
    threads = torch.get_num_threads()
    arguments = ["bench", "--nets", "tiny", "--rounds", "1", "--threads", "1", "--alone"]
    assert main(arguments) == 0
    assert "| gradscope, every step | " in capsys.readouterr().out
    assert main([*arguments, "--json"]) == 0
    read = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert [cost["watcher"] for cost in read["costs"]][1:] == list(GRADSCOPE)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--nets", "huge"], "there is no net 'huge'; there are deep, resnet, gpt, wide"),
        (["--rounds", "0"], "bench needs rounds and threads of 1 or more"),
        (["--device", "warp"], "device 'warp' cannot be used"),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments, said, capsys):
    assert main(["bench", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
