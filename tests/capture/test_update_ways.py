"""How a step's update is told: by a copy of the weights, of a sample of them, or not at all."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

import gradscope
from gradscope.autograd import torch_internals
from gradscope.capture.training import sampling
from gradscope.capture.training.sampling import SAMPLE, WHOLE, distance, sample_of
from gradscope.errors import GradscopeError
from ways import interpreted  # noqa: F401

WAYS = (True, "sampled", False)


class Net(nn.Module):
    """Parameters that are sampled, and others that are too small for that."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(300, 420, dtype=dtype)
        self.conv = nn.Conv1d(1, 260, 300, dtype=dtype)
        self.head = nn.Linear(420, 3, dtype=dtype)

    def forward(self, x):
        x = torch.tanh(self.inner(x)) + self.conv(x[:, None]).squeeze(-1).mean(1, keepdim=True)
        return self.head(x)


def inputs(step, dtype=torch.float32):
    return torch.randn(8, 300, generator=torch.Generator().manual_seed(step)).to(dtype)


def train(model, optimizer, steps, dtype=torch.float32):
    """Train, and return weight and update norms by parameter, of clones in float64."""
    found = []
    for step in range(steps):
        model(inputs(step, dtype)).square().mean().backward()
        before = {n: p.detach().double().clone() for n, p in model.named_parameters()}
        optimizer.step()
        optimizer.zero_grad()
        after = {n: p.detach().double() for n, p in model.named_parameters()}
        found.append(
            {n: (w.norm().item(), (after[n] - w).norm().item()) for n, w in before.items()}
        )
    return found


OPTIMIZERS = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
    "adam": lambda params: torch.optim.Adam(params, lr=1e-2),
    "one tensor at a time": lambda params: torch.optim.AdamW(params, lr=1e-2, foreach=False),
}


def recorded(tmp_path, updates, make, dtype=torch.float32, steps=4):
    model = Net(dtype)
    optimizer = make(model.parameters())
    state = torch.get_rng_state()
    with gradscope.watch(model, tmp_path / f"{updates}", updates=updates) as scope:
        truth = train(model, optimizer, steps, dtype)
    assert torch.equal(torch.get_rng_state(), state)
    return scope.run, truth, [p.detach().clone() for p in model.parameters()]


def of_layers(truth, which):
    """Return float64[steps, layers] of what was found of parameters: root of sums of squares."""
    names = ("inner", "conv", "head")
    return np.array(
        [
            [math.hypot(step[f"{n}.weight"][which], step[f"{n}.bias"][which]) for n in names]
            for step in truth
        ]
    )


def read(run, column):
    wanted = run.layers.name.isin(["inner", "conv", "head"])
    order = [list(run.layers.name[wanted]).index(name) for name in ("inner", "conv", "head")]
    return run.matrix(column)[1][:, np.flatnonzero(wanted)][:, order]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_sample_tells_the_update_within_its_standard_error(tmp_path, optimizer):
    run, truth, weights = recorded(tmp_path, "sampled", OPTIMIZERS[optimizer])
    np.testing.assert_allclose(read(run, "weight_norm"), of_layers(truth, 0), rtol=1e-5)
    # elements of a gradient have heavier tails than draws from a normal distribution
    np.testing.assert_allclose(read(run, "update_norm"), of_layers(truth, 1), rtol=5 * 0.011)
    np.testing.assert_allclose(
        read(run, "update_norm")[:, 2], of_layers(truth, 1)[:, 2], rtol=1e-4
    )  # a small layer is read whole
    *_, bare = recorded(tmp_path, True, OPTIMIZERS[optimizer])
    assert all(map(torch.equal, weights, bare))


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(
    ("updates", "dtype", "rtol"),
    [(True, torch.bfloat16, 2**-9), ("sampled", torch.float32, 0.055)],
)
def test_gpu_kernels_read_both_ways(tmp_path, updates, dtype, rtol):
    run, truth, _ = recorded(tmp_path, updates, OPTIMIZERS["sgd"], dtype, steps=2)
    np.testing.assert_allclose(read(run, "weight_norm"), of_layers(truth, 0), rtol=1e-5)
    np.testing.assert_allclose(read(run, "update_norm"), of_layers(truth, 1), rtol=rtol)


def test_without_updates_all_else_is_read_and_it_is_noted_once(tmp_path):
    run, truth, weights = recorded(tmp_path, False, OPTIMIZERS["adam"], steps=25)
    whole, _, others = recorded(tmp_path, True, OPTIMIZERS["adam"], steps=25)
    assert all(map(torch.equal, weights, others))
    assert np.isnan(read(run, "update_norm")).all()
    assert run.frame().update_ratio.isna().all()
    np.testing.assert_allclose(read(run, "weight_norm"), of_layers(truth, 0), rtol=1e-5)
    others = run.layer_readings.drop(columns="update_norm")
    assert others.equals(whole.layer_readings.drop(columns="update_norm"))
    assert run.meta["updates"] is False
    assert [note for note in run.notes if "updates=False" in note] == run.notes != []
    assert "not-updated" not in gradscope.diagnose(run).verdicts
    assert "updates" not in whole.meta and whole.notes == []


@pytest.mark.parametrize("updates", WAYS)
def test_no_more_memory_is_taken_than_is_said(tmp_path, updates, monkeypatch):
    taken = []
    empty_like = torch.empty_like

    def counted(x, **options):
        result = empty_like(x, **options)
        taken.append(result.numel())
        return result

    with monkeypatch.context() as patched:
        patched.setattr(torch, "empty_like", counted)
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with gradscope.watch(model, tmp_path / "run", updates=updates):
            train(model, optimizer, 1)
            taken.clear()
            train(model, optimizer, 1)
    sizes = [p.numel() for p in model.parameters()]
    held = {True: 0, "sampled": sum(n > WHOLE for n in sizes) * SAMPLE, False: 0}
    assert sum(taken) <= held[updates]  # on the CPU whole copies are kept from step to step


@pytest.mark.parametrize("updates", WAYS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_copied_as_they_are_and_do_not_round(tmp_path, dtype, updates):
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(300, 400).to(dtype))

    class Of(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = weight

        def forward(self, x):
            return (x.to(dtype) @ self.weight.t()).float()

    model = Of()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    moved = []
    with gradscope.watch(model, tmp_path / "run", updates=updates) as scope:
        copies = scope._recorder._updates._parameters._copies
        for lr in (1e-3, 3e2):  # the second one changes all signs and sizes
            optimizer.param_groups[0]["lr"] = lr
            model(torch.randn(4, 400)).square().mean().backward()
            before = weight.detach().double().clone()
            optimizer.step()
            optimizer.zero_grad()
            moved.append((weight.detach().double() - before).norm().item())
        if updates is True:
            assert [copy.dtype for copy in copies.values()] == [dtype]
    found = scope.run.matrix("update_norm")[1][:, 0]
    if updates is False:
        assert np.isnan(found).all()
        return
    np.testing.assert_allclose(found, moved, rtol=0.055 if updates == "sampled" else 1e-6)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 2**-9), (torch.float16, 2**-12)])
@pytest.mark.parametrize("moves", [1e-3, 1e-1, 10.0])
def test_by_torch_on_an_accelerator_half_types_round_as_is_said(dtype, bound, moves):
    before = torch.randn(70000, generator=torch.Generator().manual_seed(0)).to(dtype)
    after = (before + moves * torch.randn(70000, generator=torch.Generator().manual_seed(1))).to(
        dtype
    )
    truth = (after.double() - before.double()).norm().item()
    copy = before.clone()
    torch_internals.subtract_all([copy], [after])  # as measure.difference_norms does there
    found = copy.double().norm().item()
    assert abs(found / truth - 1) <= bound
    assert moves > 1e-3 or abs(found / truth - 1) < 1e-4  # few more than double or halve


# --- optimizers that report nothing ---------------------------------------------------------------


class OnData:
    """Writes to p.data, which leaves no mark."""

    def __init__(self, params):
        self.params = list(params)

    def step(self):
        for p in self.params:
            p.data = p.data - 0.1 * p.grad

    def zero_grad(self):
        for p in self.params:
            p.grad = None


@pytest.mark.parametrize("updates", WAYS)
def test_an_optimizer_that_reports_nothing_is_found_in_all_ways(tmp_path, updates):
    model = Net()
    told = pytest.warns(gradscope.GradscopeWarning, match=r"no torch\.optim\.Optimizer")
    with told, gradscope.watch(model, tmp_path / "run", updates=updates) as scope:
        truth = train(model, OnData(model.parameters()), 3)
    assert scope.run.steps.step.tolist() == [0, 1, 2]
    np.testing.assert_allclose(read(scope.run, "weight_norm"), of_layers(truth, 0), rtol=1e-5)
    if updates is False:
        assert np.isnan(read(scope.run, "update_norm")).all()
    else:
        rtol = 1e-4 if updates is True else 0.055
        np.testing.assert_allclose(read(scope.run, "update_norm"), of_layers(truth, 1), rtol=rtol)


# --- the sample -----------------------------------------------------------------------------------


def test_the_standard_error_is_the_one_that_is_stated():
    generator = torch.Generator().manual_seed(0)
    for size in (WHOLE + 1, 30030 * 3, 2**18, 1000 * 777):
        errors = []
        for _ in range(60):
            x = torch.randn(size, generator=generator)
            k = sample_of(x).numel()
            estimate = sample_of(x).double().norm() * math.sqrt(size / k)
            errors.append((estimate / x.double().norm() - 1).item())
        stated = math.sqrt((1 - k / size) / (2 * k))
        assert stated <= 0.0111
        assert 0.6 * stated < np.std(errors) < 1.4 * stated  # 60 draws: 9 % of it is chance
        assert abs(np.mean(errors)) < 0.5 * stated


def test_of_rows_of_which_few_move_the_error_is_the_one_that_is_stated():
    generator = torch.Generator().manual_seed(0)
    rows, width, share = 5000, 256, 0.02
    errors = []
    for _ in range(60):
        x = torch.zeros(rows, width)
        some = torch.randperm(rows, generator=generator)[: int(share * rows)]
        x[some] = torch.randn(len(some), width, generator=generator)
        k = sample_of(x).numel()
        estimate = sample_of(x).double().norm() * math.sqrt(x.numel() / k)
        errors.append((estimate / x.double().norm() - 1).item())
    assert np.std(errors) < 1.4 * math.sqrt(3 / share / SAMPLE) / 2


@pytest.mark.parametrize(
    "shape", [(512, 256), (4096, 33), (640, 5, 7, 8), (77, 1024), (2, 3, 40000)]
)
def test_a_sample_goes_through_all_rows_and_columns_alike(shape):
    size = math.prod(shape)
    places = sample_of(torch.arange(size).reshape(shape)).tolist()
    for dim, index in enumerate(np.unravel_index(places, shape)):
        counts = np.bincount(index, minlength=shape[dim])
        # of columns each as often; of rows those of one block after the other
        assert counts.min() >= 0.5 * len(places) / shape[dim] - 1
        assert counts.max() <= 1.5 * len(places) / shape[dim] + 1


def test_a_sample_is_of_the_stated_size():
    for size in [*range(WHOLE + 1, WHOLE + 3000), 510510, 9699690, 2**24, 3**15, 50257 * 768]:
        count = -(-size // distance(size))
        assert SAMPLE / 4 <= count <= SAMPLE, size
    assert distance(WHOLE) == 1


def test_a_sample_is_a_view_in_any_order_of_memory_and_whole_where_there_are_gaps():
    x = torch.randn(64, 32, 8, 8)
    for y in (x, x.to(memory_format=torch.channels_last), x.transpose(0, 1), x.permute(3, 2, 1, 0)):
        sample = sample_of(y)
        assert sample.untyped_storage().data_ptr() == y.untyped_storage().data_ptr()
        assert sample.numel() == -(-x.numel() // distance(x.numel()))
    gaps = torch.randn(600, 400)[:, ::2]
    assert sample_of(gaps).numel() == gaps.numel()
    assert sampling.scale_up(torch.ones(1), [gaps], [sample_of(gaps)]).item() == 1.0


def test_shards_are_sampled_by_each_process(tmp_path):
    import torch.distributed as dist
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        model = Net()
        for module in (model.inner, model.head):
            for name, p in list(module.named_parameters()):
                sharded = distribute_tensor(p.detach(), mesh, [Shard(0)])
                setattr(module, name, nn.Parameter(sharded))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with gradscope.watch(model, tmp_path / "run", updates="sampled") as scope:
            for p in model.parameters():
                p.grad = torch.ones_like(p)
            before = [p.detach().clone() for p in model.inner.parameters()]
            optimizer.step()
            moved = [p.detach() - b for p, b in zip(model.inner.parameters(), before, strict=True)]
            truth = math.hypot(*(m.to_local().norm().item() for m in moved))
        found = scope.run.frame().set_index("name").update_norm["inner"]
    finally:
        dist.destroy_process_group()
    assert found == pytest.approx(truth, rel=1e-3)  # all elements alike: no error


# --- what is asked --------------------------------------------------------------------------------


@pytest.mark.parametrize("updates", ["all", None, 1, 0.5, "Sampled"])
def test_other_words_are_refused(tmp_path, updates):
    with pytest.raises(GradscopeError, match=r"updates=.*sampled"):
        gradscope.watch(Net(), tmp_path / "run", updates=updates)
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_notes_once_what_was_asked(tmp_path):
    for _ in range(2):
        model = Net()
        with gradscope.watch(model, tmp_path / "run", updates="sampled", resume=True):
            train(model, torch.optim.SGD(model.parameters(), lr=0.1), 2)
    notes = json.loads((tmp_path / "run" / "run.json").read_bytes())["notes"]
    assert len(notes) == 1 and "sampled" in notes[0]
