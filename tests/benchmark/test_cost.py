"""`gradscope bench`: its nets, its table, and that every watcher it compares does its work."""

from __future__ import annotations

import gc
import json
import math
import mmap
import weakref
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gradscope
from gradscope.benchmark import cost as benchmark
from gradscope.benchmark import rivals
from gradscope.benchmark.copies import Copy, work_of
from gradscope.benchmark.cost import BARE, bench, measure
from gradscope.benchmark.nets import gpt2, mlp, resnet50
from gradscope.benchmark.rivals import Bare, Gradscope, Naive, alternatives, gradscopes
from gradscope.benchmark.table import Bench, Cost
from gradscope.benchmark.workloads import (
    BFLOAT16,
    FLOAT32,
    ON_A_GPU,
    ON_THE_CPU,
    Workload,
    classes,
    images,
    text,
)
from gradscope.cli import main
from gradscope.errors import GradscopeError

TINY = Workload(
    "tiny",
    "MLP, 2 layers of 4",
    lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)),
    lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
    lambda: (torch.randn(6, 4), torch.randint(4, (6,))),
    steps=10,
)
SMALL = {  # of the nets for a GPU
    "gpt2": (lambda: gpt2(2, 16, 2, 64, 8), lambda: text(2, 8, 64)),
    "resnet50": (lambda: resnet50(4, (1, 1, 1, 2), 10), lambda: images(4, 32, 10)),
    "deep": (lambda: mlp(5, 8, 4, 10, nn.Tanh), lambda: classes(6, 4, of=10)),
    "wide": (lambda: mlp(3, 32, 32, 10, nn.Tanh), lambda: classes(6, 32, of=10)),
}
ON_A_SMALL_GPU = tuple(
    replace(workload, model=SMALL[workload.name][0], batch=SMALL[workload.name][1], steps=2)
    for workload in ON_A_GPU
)
PARAMETERS = {
    "cpu": {"deep": 50 * (256 * 257), "resnet": 11_173_962, "wide": 4 * 4096 * 4097},
    "gpu": {
        "gpt2": 124_475_904,  # as published, but for 47 words more of 768
        "resnet50": 25_557_032,  # torchvision's
        "deep": 256 * 65 + 48 * 256 * 257 + 10 * 257,
        "wide": 5 * 4096 * 4097 + 10 * 4097,
    },
}
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("place", "workload"),
    [("cpu", workload) for workload in ON_THE_CPU] + [("gpu", workload) for workload in ON_A_GPU],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_net_has_the_size_that_its_name_promises_and_trains(place, workload):
    torch.manual_seed(0)
    inputs, targets = workload.batch()
    with torch.device("meta"):
        model = workload.model()
    size = sum(parameter.numel() for parameter in model.parameters())
    assert size == PARAMETERS[place].get(workload.name, size)
    loss = F.cross_entropy(model(inputs.to("meta")), targets.to("meta"))
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_resnet_for_a_gpu_is_that_of_torchvision():
    torchvision = pytest.importorskip("torchvision")
    with torch.device("meta"):
        ours, theirs = resnet50(), torchvision.models.resnet50()
    for kind in (nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.Linear):
        shapes = [
            sorted(
                tuple(tuple(p.shape) for p in m.parameters())
                for m in net.modules()
                if type(m) is kind
            )
            for net in (ours, theirs)
        ]
        assert shapes[0] == shapes[1]
    assert all(
        module.weight.is_contiguous(memory_format=torch.channels_last)
        for module in ours.modules()
        if isinstance(module, nn.Conv2d)
    )


@pytest.mark.parametrize("workload", ON_A_SMALL_GPU, ids=lambda workload: workload.name)
def test_the_nets_for_a_gpu_train_watched_as_they_do_bare(workload, tmp_path):
    torch.manual_seed(0)
    model, batch = workload.model(), workload.batch()
    (every,) = gradscopes([1]).values()
    copies = [Copy(workload, model, batch, watcher) for watcher in (Bare, every)]
    for trained in copies:
        trained.block()
        trained.close()
    bare, watched = (trained.model.state_dict() for trained in copies)
    assert all(torch.equal(bare[name], watched[name]) for name in bare)
    assert any(not torch.equal(bare[name], entry) for name, entry in model.state_dict().items())


def test_a_precision_that_the_device_lacks_is_float32_and_said():
    nets = {workload.name: workload for workload in ON_A_GPU}
    cpu, meta = CPU, torch.device("meta")
    assert nets["gpt2"].precision_on(cpu) == BFLOAT16
    assert nets["gpt2"].precision_on(meta) == nets["wide"].precision_on(cpu) == FLOAT32
    assert nets["gpt2"].said_of(cpu).endswith("fused AdamW, bfloat16 autocast")
    assert (
        nets["gpt2"]
        .said_of(meta)
        .endswith("fused AdamW, float32, as there is no bfloat16 autocast here")
    )
    assert nets["wide"].said_of(cpu).endswith("float32, as there is no TF32 here")
    assert nets["deep"].said_of(meta).endswith("fused AdamW, float32")


def test_a_net_in_bfloat16_multiplies_in_it_and_keeps_its_weights_in_float32():
    seen = []

    class Listening(Bare):
        def __init__(self, model, folder):
            model.register_forward_hook(lambda module, args, output: seen.append(output.dtype))

    for precision in (FLOAT32, BFLOAT16):
        workload = replace(TINY, precision=precision, steps=1)
        copy = Copy(workload, workload.model(), workload.batch(), Listening)
        assert {parameter.dtype for parameter in copy.model.parameters()} == {torch.float32}
    assert seen == [torch.float32, torch.bfloat16]


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


@pytest.mark.parametrize("name", ["bare", *gradscopes([1, 10]), *alternatives()])
def test_a_watcher_leaves_the_model_as_it_was(name):
    watcher = {"bare": Bare, **gradscopes([1, 10]), **alternatives()}[name]
    watched = Copy(TINY, TINY.model(), TINY.batch(), watcher)
    assert watched.block() > 0
    watched.close()
    for module in watched.model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks
        assert not module._backward_hooks and not module._backward_pre_hooks


def test_each_watcher_is_compared_with_the_faster_of_two_bare_copies():
    watchers = {**BARE, **gradscopes([1, 10])}
    costs = measure(TINY, watchers, CPU, torch.get_num_threads(), 3)
    assert [(cost.net, cost.watcher, cost.rounds) for cost in costs] == [
        ("tiny", watcher, 3) for watcher in watchers
    ]
    assert all(0 < cost.lower <= cost.ratio <= cost.upper and cost.ms > 0 for cost in costs)
    assert min(cost.lower for cost in costs[:2]) == 1
    assert all(cost.upper >= 1 for cost in costs[:2])


def test_settings_are_those_of_before_when_all_is_measured():
    def settings():
        precision = torch.get_float32_matmul_precision()
        return torch.get_num_threads(), precision, torch.backends.cudnn.benchmark

    before = settings()
    measure(replace(TINY, precision=BFLOAT16), dict(BARE), CPU, before[0] + 1, 1)
    assert settings() == before


def test_a_net_that_memory_does_not_suffice_for_is_said_in_its_row(monkeypatch, capsys):
    alive = weakref.WeakSet()

    class Greedy(nn.Sequential):
        def forward(self, x):
            alive.add(self)
            return super().forward(x) + (torch.empty(2**52) if self.training else 0)

    huge = replace(TINY, name="huge", model=lambda: Greedy(nn.Linear(4, 4)))
    monkeypatch.setattr(benchmark, "ON_THE_CPU", (huge, TINY))
    arguments = ["bench", "--rounds", "1", "--threads", "1", "--against", "naive"]
    assert main(arguments) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| gradsc")]
    assert [row.split(" | ")[1] for row in rows] == ["out of memory"] * 2
    assert all(float(row.split(" | ")[2].split()[0]) > 0 for row in rows)
    gc.collect()
    assert not alive


def test_any_other_error_of_a_net_is_raised():
    broken = replace(TINY, batch=lambda: (torch.randn(6, 5), torch.randint(4, (6,))))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        measure(broken, dict(BARE), CPU, torch.get_num_threads(), 1)


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


def test_operations_are_counted_on_the_device_where_they_run():
    x = torch.randn(4, 4)
    count, _ = work_of(torch.profiler.ProfilerActivity.CPU, lambda: [x.neg() for _ in range(5)])
    assert count == 5


def test_where_no_kernels_run_none_are_told_and_the_rest_is_kept():
    watchers = gradscopes([1])
    (name,) = watchers
    costs = [cost("tiny", name, ratio=1.5), cost("tiny", name, failure="out of memory")]
    kept = list(benchmark._with_device_work(costs, {"tiny": TINY}, watchers, CPU))
    assert list(map(repr, kept)) == list(map(repr, costs))  # NaN is as NaN here


def cost(net, watcher, threads=1, **numbers):
    return Cost(net, watcher, threads, 11, **numbers)


def test_the_tables_have_a_column_a_net_and_a_row_a_net_and_watcher():
    costs = [
        cost(
            net,
            watcher,
            threads,
            ratio=ratio,
            lower=ratio - 0.01,
            upper=ratio + 0.01,
            ms=10 * ratio,
            peak=peak,
            memory=peak / 2**20,
        )
        for net in ("deep", "wide")
        for threads in (1, 2)
        for watcher, ratio, peak in (("bare", 1.0, 0.0), ("watched", 1 + 0.05 * threads, 2.0**22))
    ]
    lines = str(Bench("gradscope 1, torch 2, cpu", ("deep: an MLP",), tuple(costs))).splitlines()
    assert lines[:3] == ["gradscope 1, torch 2, cpu", "deep: an MLP", ""]
    assert "median of 11 rounds" in lines[3] and "with 1 / 2 threads" in lines[3]
    assert lines[5:9] == [
        "| | deep | wide |",
        "|---|---|---|",
        "| bare | 1.00 ± 0.01 / 1.00 ± 0.01 | 1.00 ± 0.01 / 1.00 ± 0.01 |",
        "| watched | 1.05 ± 0.01 / 1.10 ± 0.01 | 1.05 ± 0.01 / 1.10 ± 0.01 |",
    ]
    assert lines[12:] == [  # kernels were not counted
        "| net | watcher | ms | MiB above bare | bytes a parameter |",
        "|---|---|---|---|---|",
        "| deep | bare | 10.00 / 10.00 | 0 | 0.0 |",
        "| deep | watched | 10.50 / 11.00 | 4 | 4.0 |",
        "| wide | bare | 10.00 / 10.00 | 0 | 0.0 |",
        "| wide | watched | 10.50 / 11.00 | 4 | 4.0 |",
    ]


def test_the_tables_of_a_gpu_have_kernels_and_say_what_failed():
    costs = (
        cost("gpt2", "bare", failure="out of memory"),
        cost("deep", "bare", ratio=1.0, lower=1.0, upper=1.0, ms=7.0, kernels=356.3, device_ms=1.5),
    )
    lines = str(Bench("H100", (), costs)).splitlines()
    assert "| bare | out of memory | 1.00 ± 0.00 |" in lines
    assert lines[-4:] == [
        "| net | watcher | ms | kernels | device ms |",
        "|---|---|---|---|---|",
        "| gpt2 | bare | - | - | - |",
        "| deep | bare | 7.00 | 356 | 1.50 |",
    ]


def test_the_command_measures_the_nets_that_were_asked_for(monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "ON_THE_CPU", (TINY,))
    threads = torch.get_num_threads()
    arguments = ["bench", "--nets", "tiny", "--rounds", "1", "--threads", "1", "--alone"]
    assert main([*arguments, "--every", "1", "3"]) == 0
    printed = capsys.readouterr().out
    assert "| gradscope, every=1 | " in printed and "| gradscope, every=3 | " in printed
    assert main([*arguments, "--json"]) == 0
    read = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert [c["watcher"] for c in read["costs"]] == [*BARE, *gradscopes([1, 10])]
    assert torch.get_num_threads() == threads


def test_nets_of_the_other_kind_of_device_are_known_by_name(monkeypatch):
    monkeypatch.setattr(benchmark, "ON_A_GPU", ON_A_SMALL_GPU)
    monkeypatch.setattr(benchmark, "ON_THE_CPU", (replace(TINY, name="deep"),))
    result = bench("cpu", ["gpt2", "resnet50", "deep"], [1], 1, every=[2], against=["naive"])
    assert list(dict.fromkeys(c.net for c in result.costs)) == ["gpt2", "resnet50", "deep"]
    assert [line.split(",")[0] for line in result.nets] == [
        "gpt2: GPT-2 small",
        "resnet50: ResNet-50 for ImageNet",
        "deep: MLP",
    ]
    assert all(c.ratio > 0 and not c.failure for c in result.costs)
    assert all(math.isnan(c.kernels) for c in result.costs)  # the CPU runs none


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_kernels_and_memory_of_a_training_on_the_device(monkeypatch):
    monkeypatch.setattr(benchmark, "ON_A_GPU", ON_A_SMALL_GPU)
    result = bench("cuda", rounds=1, every=[1], against=["naive"])
    assert torch.cuda.get_device_name() in result.machine
    for net in SMALL:
        bare, again, watched, naive = (c for c in result.costs if c.net == net)
        assert bare.kernels == pytest.approx(again.kernels, rel=0.02)
        assert watched.kernels > bare.kernels and naive.kernels > bare.kernels
        assert 0 < bare.device_ms < naive.device_ms
        assert all(c.peak >= 0 for c in (bare, again, watched, naive))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_memory_that_a_watcher_keeps_on_the_device_is_told_to_the_byte():
    class Hoarder(Bare):
        def __init__(self, model, folder):
            super().__init__(model, folder)
            self.hoard = torch.zeros(2**22, dtype=torch.uint8, device="cuda")

    batch = tuple(tensor.cuda() for tensor in TINY.batch())
    bare, hoarding = (Copy(TINY, TINY.model().cuda(), batch, way) for way in (Bare, Hoarder))
    assert hoarding.rise - bare.rise == 2**22


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_cuda_device_it_is_said_in_one_line(capsys):
    assert main(["bench", "--device", "cuda"]) == 2
    error = capsys.readouterr().err
    assert "device 'cuda' cannot be used" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--nets", "huge"],
            "there is no net 'huge'; there are deep, resnet, gpt, wide, gpt2, res",
        ),
        (["--rounds", "0"], "bench needs rounds of 1 or more, got [0]"),
        (["--threads", "2", "0"], "bench needs threads of 1 or more, got [2, 0]"),
        (["--every", "-1"], "bench needs every of 1 or more, got [-1]"),
        (
            ["--against", "nobody"],
            "there is no 'nobody' to compare with: naive, wandb, tensorboard",
        ),
        (["--device", "warp"], "device 'warp' cannot be used"),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments, said, capsys):
    assert main(["bench", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_an_alternative_that_is_not_installed_is_refused(monkeypatch):
    entry = ("Nobody's norms", "no_such_package", Bare)
    monkeypatch.setitem(rivals._ALTERNATIVES, "nobody", entry)
    assert "Nobody's norms" not in alternatives()
    with pytest.raises(GradscopeError, match="to compare with nobody, install it"):
        alternatives(["nobody"])
