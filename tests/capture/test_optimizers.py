"""Several optimizers in one step, optimizers that perturb the weights, gradients thrown away."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.optim import SGD, AdamW, Optimizer

import gradscope
from reference import root_sum_square


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2)).double()


def batches(n: int = 6) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(4, 5, generator=generator, dtype=torch.float64) for _ in range(n)]


def loss_of(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return model(x).square().sum()


class Lookahead(Optimizer):
    """Steps within its own step, and pulls the weights back every second time."""

    def __init__(self, inner: Optimizer) -> None:
        self.inner = inner
        super().__init__([p for g in inner.param_groups for p in g["params"]], {})
        self.slow = [p.detach().clone() for g in self.param_groups for p in g["params"]]
        self.count = 0

    def step(self, closure=None):
        self.inner.step()
        self.count += 1
        if self.count % 2 == 0:
            with torch.no_grad():
                for p, slow in zip(self.param_groups[0]["params"], self.slow, strict=True):
                    slow.lerp_(p, 0.5)
                    p.copy_(slow)


class SAM(Optimizer):
    """Sharpness-aware minimisation as people write it: perturb, ask again, go back, step."""

    def __init__(self, params, base, **settings) -> None:
        super().__init__(params, settings)
        self.base = base(self.param_groups, **settings)

    @torch.no_grad()
    def first_step(self) -> None:
        for p in self.param_groups[0]["params"]:
            self.state[p]["old"] = p.data.clone()
            p.add_(0.05 * p.grad / p.grad.norm())
        self.zero_grad()

    @torch.no_grad()
    def second_step(self) -> None:
        for p in self.param_groups[0]["params"]:
            p.data = self.state[p]["old"]
        self.base.step()
        self.zero_grad()

    def step(self, closure) -> None:
        closure = torch.enable_grad()(closure)
        self.first_step()
        closure()
        self.second_step()


def lookahead(model, x, optimizer):
    loss_of(model, x).backward()
    optimizer.step()
    optimizer.zero_grad()


def sam_by_hand(model, x, optimizer):
    loss_of(model, x).backward()
    optimizer.first_step()
    loss_of(model, x).backward()
    optimizer.second_step()


def sam_as_wrapper(model, x, optimizer):
    def closure():
        loss_of(model, x).backward()

    closure()
    optimizer.step(closure)


def outer_after_inner(model, x, optimizers):
    inner, outer = optimizers
    loss_of(model, x).backward()
    inner.step()
    outer.step()
    inner.zero_grad()


LOOPS = {
    "lookahead": (lookahead, lambda m: Lookahead(SGD(m.parameters(), lr=0.05))),
    "sam by hand": (sam_by_hand, lambda m: SAM(m.parameters(), SGD, lr=0.05)),
    "sam as a wrapper": (sam_as_wrapper, lambda m: SAM(m.parameters(), AdamW, lr=0.05)),
    "one after the other": (
        outer_after_inner,
        lambda m: (SGD(m.parameters(), lr=0.05), SGD(m.parameters(), lr=0.01)),
    ),
}


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("loop", LOOPS)
def test_the_update_is_that_of_the_whole_step(loop, every, tmp_path):
    step, make = LOOPS[loop]
    model, twin = net(), net()
    optimizer, other = make(model), make(twin)
    weights, updates = [], []
    with gradscope.watch(model, tmp_path / "run", every=every) as scope:
        for x in batches():
            before = copy.deepcopy(twin)
            step(twin, x, other)
            step(model, x, optimizer)
            pairs = [
                (before[i].weight, twin[i].weight, before[i].bias, twin[i].bias) for i in (0, 2)
            ]
            weights.append([torch.cat([w.flatten(), b]).norm().item() for w, _, b, _ in pairs])
            updates.append(
                [torch.cat([(v - w).flatten(), d - b]).norm().item() for w, v, b, d in pairs]
            )
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p, q)
    run = scope.run
    one_by_one = loop == "one after the other"
    assert [note.split(",")[0] for note in run.notes] == [
        "several optimizers update the same parameters in one step"
    ] * one_by_one
    assert run.steps.step.tolist() == list(range(0, 6, every))
    np.testing.assert_allclose(run.matrix("weight_norm")[1][:, [0, 2]], weights[::every])
    read = run.matrix("update_norm")[1][:, [0, 2]]
    if one_by_one:  # known to be so from the second recorded step on
        assert np.isnan(read[0]).all()
        read, updates = read[1:], updates[every:]
    np.testing.assert_allclose(read, updates[::every], rtol=1e-9)


@pytest.mark.parametrize("every", [1, 2])
def test_gradients_that_wait_for_another_optimizer_are_of_no_step(every, tmp_path):
    """As of actor and critic: each is zeroed before its own backward, and kept over the other's."""
    model = net()
    critic, actor = SGD(model[2].parameters(), lr=0.05), SGD(model[0].parameters(), lr=0.05)
    expected = []  # norm that each of the two layers gave to its optimizer
    with gradscope.watch(model, tmp_path / "run", every=every) as scope:
        for step, x in enumerate(batches(6)):
            optimizer, layer = ((critic, 2), (actor, 0))[step % 2]
            optimizer.zero_grad()
            loss_of(model, x).backward()
            norm = sum(p.grad.square().sum().item() for p in model[layer].parameters()) ** 0.5
            expected.append([norm if i == layer else np.nan for i in (0, 2)])
            optimizer.step()
    run, expected = scope.run, np.array(expected)[::every]
    np.testing.assert_allclose(run.matrix("grad_norm")[1][:, [0, 2]], expected)
    np.testing.assert_allclose(run.steps.grad_norm, run.steps.clipped_grad_norm)
    np.testing.assert_allclose(run.steps.grad_norm, np.nansum(expected, axis=1))


@pytest.mark.parametrize("given", [False, True])
def test_gradients_of_one_yet_to_make_its_first_step_are_of_no_step(given, tmp_path):
    """As of a critic in one module with its generator, which steps first, and twice at that."""
    model = net()
    actor, critic = SGD(model[0].parameters(), lr=0.05), SGD(model[2].parameters(), lr=0.05)
    settings = {"optimizer": [actor, critic]} if given else {}
    expected = []
    with gradscope.watch(model, tmp_path / "run", **settings) as scope:
        for optimizer, x in zip([actor, actor, critic, actor], batches(4), strict=True):
            optimizer.zero_grad()
            loss_of(model, x).backward()
            own = optimizer.param_groups[0]["params"]
            expected.append(root_sum_square(p.grad for p in own))
            optimizer.step()
    assert scope.run.notes == []
    np.testing.assert_allclose(scope.run.steps.grad_norm, expected)
    read = scope.run.matrix("grad_norm")[1][:, 2]
    np.testing.assert_allclose(read, [np.nan, np.nan, expected[2], np.nan])


@pytest.mark.parametrize(
    "zero",
    [
        lambda o: o.zero_grad(),
        lambda o: o.zero_grad(set_to_none=False),
        lambda o: [p.grad.data.zero_() for g in o.param_groups for p in g["params"]],
    ],
    ids=["None", "zeros", "data"],
)
def test_micro_batches_that_were_thrown_away_are_of_no_step(zero, tmp_path):
    """As where a loss is not finite, or a batch only warms something up."""

    def record(path, thrown):
        model = net()
        optimizer = SGD(model.parameters(), lr=0.05)
        with gradscope.watch(model, path) as scope:
            for x in batches(3):
                if thrown:
                    loss_of(model, 10 * x).backward()
                    zero(optimizer)
                for part in x.split(2):
                    loss_of(model, part).backward()
                optimizer.step()
                optimizer.zero_grad()
        return scope.run

    whole, run = record(tmp_path / "whole", False), record(tmp_path / "run", True)
    assert run.notes == []
    for column in ("signal_norm", "activation_norm", "grad_norm", "clipped_grad_norm"):
        np.testing.assert_allclose(run.frame()[column], whole.frame()[column], err_msg=column)


def test_accumulated_micro_batches_all_count(tmp_path):
    model = net()
    optimizer = SGD(model.parameters(), lr=0.05)
    expected = []
    with gradscope.watch(model, tmp_path / "run") as scope:
        for x in batches(2):
            squares = 0.0
            for part in x.split(1):
                out = model(part)
                squares += (2 * out).square().sum().item()
                out.square().sum().backward()
                nn.utils.clip_grad_value_(model.parameters(), 1e-3)  # after each, as some do
            expected.append(squares**0.5)
            optimizer.step()
            optimizer.zero_grad()
    np.testing.assert_allclose(scope.run.matrix("signal_norm")[1][:, 2], expected)


def torch_s_own(model, optimizer):
    get_state_dict(model, optimizer)


def by_hand(model, optimizer):
    if not optimizer.state:
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
        optimizer.zero_grad()


def without_gradients(model, optimizer):
    optimizer.step()


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("make", [SGD, AdamW])
@pytest.mark.parametrize("save", [torch_s_own, by_hand, without_gradients])
def test_a_step_that_only_makes_the_optimizer_s_state_is_none(save, make, every, tmp_path):
    """`get_state_dict` of torch.distributed.checkpoint makes one, and with plain SGD each time."""

    model = net()
    optimizer = make(model.parameters(), lr=0.05)
    expected = []
    with gradscope.watch(model, tmp_path / "run", every=every) as scope:
        for x in batches(5):
            save(model, optimizer)
            loss_of(model, x).backward()
            before = [p.detach().clone() for p in model.parameters()]
            gradient = root_sum_square(p.grad for p in model.parameters())
            optimizer.step()
            moved = [p.detach() - q for p, q in zip(model.parameters(), before, strict=True)]
            expected.append((gradient, root_sum_square(before), root_sum_square(moved[:2])))
            optimizer.zero_grad()
    run = scope.run
    assert run.notes == []
    assert run.steps.step.tolist() == list(range(0, 5, every))
    gradients, weights, updates = np.transpose(expected[::every])
    np.testing.assert_allclose(run.steps.grad_norm, gradients, rtol=1e-12)
    read = np.linalg.norm(run.matrix("weight_norm")[1][:, [0, 2]], axis=1)
    np.testing.assert_allclose(read, weights, rtol=1e-12)
    np.testing.assert_allclose(run.matrix("update_norm")[1][:, 0], updates, rtol=1e-9)


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("make", [SGD, AdamW])
def test_a_step_on_gradients_of_zero_that_a_backward_gave_is_one(make, every, tmp_path):
    model = net()
    optimizer = make(model.parameters(), lr=0.0)
    with gradscope.watch(model, tmp_path / "run", every=every) as scope:
        for x in batches(5):
            (0 * loss_of(model, x)).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert scope.run.steps.step.tolist() == list(range(0, 5, every))
    assert (scope.run.steps.grad_norm == 0).all()


def test_a_step_on_gradients_set_by_hand_is_one(tmp_path):
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    with (
        pytest.warns(gradscope.GradscopeWarning, match="no forward"),
        gradscope.watch(model, tmp_path / "run") as scope,
    ):
        for _ in range(3):
            for p in model.parameters():
                p.grad = torch.ones_like(p)
            optimizer.step()
    assert scope.run.steps.step.tolist() == [0, 1, 2]


def test_the_first_step_of_a_closure_is_one(tmp_path):
    model = net()
    optimizer = AdamW(model.parameters(), lr=0.05)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    with gradscope.watch(model, tmp_path / "run") as scope:
        for x in batches(3):
            optimizer.step(lambda x=x: loss_of(model, x).backward())
    assert scope.run.steps.step.tolist() == [0, 1, 2]
    assert scope.run.frame().update_norm.iloc[0] > 0


class Growing(Optimizer):
    """Gives the last layer one more output as it steps, as nets that grow do."""

    def __init__(self, params, lr) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        params = self.param_groups[0]["params"]
        for p in params:
            p.sub_(p.grad, alpha=self.param_groups[0]["lr"])
        for p in params[-2:]:
            p.data = torch.cat([p, p[:1]])


@pytest.mark.parametrize("updates", [True, "sampled"])
def test_weights_that_grow_within_a_step_cost_their_updates_alone(tmp_path, updates):
    model, bare = net().float(), net().float()
    optimizer, other = (Growing(m.parameters(), lr=0.1) for m in (model, bare))
    told = pytest.warns(gradscope.GradscopeWarning, match="had another shape after a step")
    with told, gradscope.watch(model, tmp_path / "run", updates=updates) as scope:
        for x in batches():
            lookahead(model, x.float(), optimizer)
            lookahead(bare, x.float(), other)
    assert all(map(torch.equal, model.parameters(), bare.parameters()))
    read = scope.run.frame().set_index("name")
    assert read.update_norm["2"].isna().all() and len(read.update_norm["2"]) == 6
    assert read.update_norm["0"].to_numpy() == pytest.approx(0.1 * read.grad_norm["0"].to_numpy())
    assert read.loc[["0", "2"], ["weight_norm", "clipped_grad_norm"]].notna().all(axis=None)
    assert sum("another shape" in note for note in scope.run.notes) == 1
