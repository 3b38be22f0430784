"""Every reading of a layer against plain autograd, on nets that share, tie, split and overwrite."""

from __future__ import annotations

import copy
from collections import UserDict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Categorical, Normal
from torch.nn import functional as F

import gradscope
from reference import Reference, root_sum_square


@pytest.fixture
def batch():
    torch.manual_seed(1)
    return torch.randn(16, 6, dtype=torch.float64), torch.randint(0, 3, (16,))


def mlp(*, inplace=False):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 12),
        nn.Tanh(),
        nn.Linear(12, 12, bias=False),
        nn.LayerNorm(12),
        nn.ReLU(inplace=inplace),
        nn.Linear(12, 3),
    ).double()


class Residual(nn.Module):
    def __init__(self, width=8, blocks=3, inplace=False):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Linear(6, width)
        self.fc1 = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.fc2 = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.act = nn.ModuleList(nn.Tanh() for _ in range(blocks))
        self.head = nn.Linear(width, 3)
        self.inplace = inplace
        self.double()

    def forward(self, x):
        x = self.stem(x)
        for fc1, act, fc2 in zip(self.fc1, self.act, self.fc2, strict=True):
            out = fc2(act(fc1(x)))
            if self.inplace:
                out += x
                x = out
            else:
                x = out + x
        return self.head(x)


def train_step(model, optimizer, batch, loss_fn=F.cross_entropy):
    x, y = batch
    optimizer.zero_grad()
    loss_fn(model(x), y).backward()
    optimizer.step()


def record(model, batch, path, steps=1, optimizer=None, **settings):
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(model, path, **settings) as scope:
        for _ in range(steps):
            train_step(model, optimizer, batch)
    return scope.run


def readings(run, step=0):
    frame = run.frame()
    return frame[frame["step"] == step].set_index("name")


@pytest.mark.parametrize("build", [mlp, Residual], ids=["plain", "residual"])
def test_gradients_and_signals_equal_plain_autograd(build, batch, tmp_path):
    model = build()
    reference = Reference(model, lambda m: F.cross_entropy(m(batch[0]), batch[1]))
    read = readings(record(model, batch, tmp_path / "run"))
    for name in read.index:
        assert read.signal_norm[name] == pytest.approx(reference.signal(name), rel=1e-12)
        gradient = reference.gradient(name)
        if gradient:
            assert read.grad_norm[name] == pytest.approx(gradient, rel=1e-12)
        else:
            assert np.isnan(read.grad_norm[name])
        if reference.inputs[name][0].requires_grad:
            expected = reference.input_signal(name)
            assert read.input_signal_norm[name] == pytest.approx(expected, rel=1e-12)
        else:
            assert np.isnan(read.input_signal_norm[name])


def test_activations_equal_their_tensors_statistics(batch, tmp_path):
    model = mlp()
    reference = Reference(model, lambda m: F.cross_entropy(m(batch[0]), batch[1]))
    read = readings(record(model, batch, tmp_path / "run"))
    for name in read.index:
        (output,) = reference.outputs[name]
        assert read.activation_norm[name] == pytest.approx(output.norm().item(), rel=1e-12)
        assert read.activation_mean[name] == pytest.approx(output.mean().item(), rel=1e-9)
        expected = output.std(correction=0).item()
        assert read.activation_std[name] == pytest.approx(expected, rel=1e-9)


def test_deviation_survives_a_mean_far_from_zero(batch, tmp_path):
    model = nn.Sequential(nn.Linear(6, 12), nn.Linear(12, 3))
    with torch.no_grad():
        model[0].bias.fill_(1000.0)
    x = batch[0].float()
    expected = model[0](x).double().std(correction=0).item()
    run = record(model, (x, batch[1]), tmp_path / "run")
    assert readings(run).activation_std["0"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "plain, overwriting",
    [(mlp(), mlp(inplace=True)), (Residual(), Residual(inplace=True))],
    ids=["inplace ReLU", "out += identity"],
)
def test_overwritten_outputs_read_like_their_copies(plain, overwriting, batch, tmp_path):
    first = record(plain, batch, tmp_path / "plain").frame()
    second = record(overwriting, batch, tmp_path / "overwriting").frame()
    for column in ("signal_norm", "input_signal_norm", "grad_norm", "activation_norm"):
        np.testing.assert_allclose(first[column], second[column], rtol=1e-12)


def test_addition_into_a_view_keeps_the_signal(tmp_path):
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.stem, self.fc, self.head = (nn.Linear(4, 4).double() for _ in range(3))

        def forward(self, x):
            x = self.stem(x)
            y = self.fc(x)  # 3-D: a view of a matrix product
            y += x
            return self.head(y)

    model = Tokens()
    x = torch.randn(2, 5, 4, dtype=torch.float64)
    hidden = model.stem(x).detach().requires_grad_()
    branch = model.fc(hidden).detach().requires_grad_()
    out = model.head(branch + hidden)
    (expected,) = torch.autograd.grad(out.square().sum(), branch)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(model, tmp_path / "run") as scope:
        model(x).square().sum().backward()
        optimizer.step()
    read = readings(scope.run)
    assert read.signal_norm["fc"] == pytest.approx(expected.norm().item(), rel=1e-12)
    weight = model.fc.weight + 0.1 * model.fc.weight.grad  # before the step
    expected = (expected @ weight).norm().item()
    assert read.input_signal_norm["fc"] == pytest.approx(expected, rel=1e-12)


def test_update_of_plain_sgd_is_lr_times_gradient(batch, tmp_path):
    run = record(mlp(), batch, tmp_path / "run", steps=4)
    frame = run.frame().dropna(subset=["grad_norm"])
    np.testing.assert_allclose(frame.update_norm, 0.1 * frame.grad_norm, rtol=1e-9)


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop])
def test_update_is_the_true_change_of_the_weights(kind, batch, tmp_path):
    model = mlp()
    optimizer = kind(model.parameters(), lr=1e-2, weight_decay=0.1)
    changes = []
    with gradscope.watch(model, tmp_path / "run") as scope:
        for _ in range(3):
            before = copy.deepcopy(dict(model.named_parameters()))
            train_step(model, optimizer, batch)
            changes.append({n: p.detach() - before[n] for n, p in model.named_parameters()})
    for step, change in enumerate(changes):
        read = readings(scope.run, step)
        for name in ("0", "2", "3", "5"):
            own = [d for n, d in change.items() if n.startswith(f"{name}.")]
            assert read.update_norm[name] == pytest.approx(root_sum_square(own), rel=1e-9)


def test_weights_are_read_before_the_step(batch, tmp_path):
    model = mlp()
    expected = root_sum_square(model[0].parameters())
    read = readings(record(model, batch, tmp_path / "run"))
    assert read.weight_norm["0"] == pytest.approx(expected, rel=1e-12)
    assert read.update_ratio["0"] == pytest.approx(read.update_norm["0"] / expected, rel=1e-12)


def test_gradients_are_read_before_and_after_clipping(batch, tmp_path):
    model = mlp()
    reference = Reference(model, lambda m: F.cross_entropy(m(batch[0]), batch[1]))
    total = root_sum_square(p.grad for p in reference.model.parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(model, tmp_path / "run") as scope:
        F.cross_entropy(model(batch[0]), batch[1]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), total / 4)
        optimizer.step()
    (step,) = scope.run.steps.itertuples()
    assert step.grad_norm == pytest.approx(total, rel=1e-12)
    assert step.clipped_grad_norm == pytest.approx(total / 4, rel=1e-5)
    read = readings(scope.run)
    assert read.grad_norm["0"] == pytest.approx(reference.gradient("0"), rel=1e-12)
    assert read.clipped_grad_norm["0"] == pytest.approx(reference.gradient("0") / 4, rel=1e-5)


def test_layers_stand_in_order_of_first_execution(batch, tmp_path):
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.middle, self.first = nn.Linear(4, 3), nn.Tanh(), nn.Linear(6, 4)
            self.unused = nn.Linear(2, 2)

        def forward(self, x):
            return self.last(self.middle(self.first(x)))

    run = record(Backwards().double(), batch, tmp_path / "run")
    assert run.layers.name.tolist() == ["first", "middle", "last", "unused"]
    assert run.layers.kind.tolist() == ["Linear", "Tanh", "Linear", "Linear"]
    assert run.layers.depth.tolist() == [1, 1, 2, 3]
    assert run.layers.parameters.tolist() == [28, 0, 15, 6]


def test_a_module_called_twice_is_one_layer(batch, tmp_path):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.stem, self.fc, self.head = nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 3)

        def forward(self, x):
            return self.head(self.fc(torch.tanh(self.fc(self.stem(x)))))

    model = Twice().double()
    reference = Reference(model, lambda m: F.cross_entropy(m(batch[0]), batch[1]))
    read = readings(record(model, batch, tmp_path / "run"))
    assert list(read.index) == ["stem", "fc", "head"]
    first, second = reference.outputs["fc"]
    both = torch.stack([first, second])
    assert read.signal_norm["fc"] == pytest.approx(reference.signal("fc"), rel=1e-12)
    assert read.input_signal_norm["fc"] == pytest.approx(reference.input_signal("fc"), rel=1e-12)
    assert read.grad_norm["fc"] == pytest.approx(reference.gradient("fc"), rel=1e-12)
    assert read.activation_norm["fc"] == pytest.approx(both.norm().item(), rel=1e-12)
    assert read.activation_mean["fc"] == pytest.approx(both.mean().item(), rel=1e-9)
    assert read.activation_std["fc"] == pytest.approx(both.std(correction=0).item(), rel=1e-9)


def test_tied_weights_belong_to_the_owner_first_in_order(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.decoder = nn.Linear(4, 7, bias=False)
            self.embedding = nn.Embedding(7, 4)
            self.decoder.weight = self.embedding.weight

        def forward(self, x):
            return self.decoder(self.embedding(x))

    model = Tied()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(model, tmp_path / "run") as scope:
        model(torch.tensor([1, 2, 5])).square().sum().backward()
        expected = model.embedding.weight.grad.norm().item()
        optimizer.step()
    read = readings(scope.run)
    assert read.grad_norm["embedding"] == pytest.approx(expected, rel=1e-6)
    assert np.isnan(read.grad_norm["decoder"])
    assert scope.run.steps.grad_norm[0] == pytest.approx(expected, rel=1e-6)


def test_parameters_of_the_model_itself_stand_under_root(batch, tmp_path):
    class Shift(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 3)
            self.shift = nn.Parameter(torch.ones(3))

        def forward(self, x):
            return self.fc(x) + self.shift

    model = Shift().double()
    read = readings(record(model, batch, tmp_path / "run"))
    assert read.grad_norm["(root)"] == pytest.approx(model.shift.grad.norm().item(), rel=1e-12)
    assert read.weight_norm["(root)"] == pytest.approx(3**0.5, rel=1e-12)


def test_an_owner_that_is_never_called_has_its_parameter_readings_only(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.TransformerEncoderLayer(4, 2, 8, batch_first=True))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(model, tmp_path / "run") as scope:
        model(torch.randn(2, 3, 4)).sum().square().backward()
        optimizer.step()
    read = readings(scope.run)
    own = read.loc["1.self_attn.out_proj"]
    projection = model[1].self_attn.out_proj
    assert own.grad_norm == pytest.approx(
        root_sum_square(p.grad for p in projection.parameters()), rel=1e-5
    )
    assert np.isnan(own[["signal_norm", "activation_norm"]].astype(float)).all()
    names = list(read.index)
    assert names.index("1.self_attn.out_proj") == names.index("1.self_attn") + 1


def test_frozen_parameters_are_not_recorded(batch, tmp_path):
    model = mlp()
    model[2].requires_grad_(False)
    model[5].bias.requires_grad_(False)
    read = readings(record(model, batch, tmp_path / "run"))
    assert read.loc["2", ["grad_norm", "weight_norm", "update_norm"]].isna().all()
    expected = model[5].weight.grad.norm().item()
    assert read.grad_norm["5"] == pytest.approx(expected, rel=1e-12)
    assert read.signal_norm["2"] > 0  # gradient passes through it all the same


def test_outputs_in_dicts_and_tuples_are_read(batch, tmp_path):
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 3), nn.Linear(6, 2)
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x):
            return self.a(x) * self.scale, {"b": self.b(x), "note": "not a tensor"}

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.stem, self.pair = nn.Linear(6, 6), Pair()

        def forward(self, x):
            a, rest = self.pair(self.stem(x))
            return {"logits": a, "b": rest["b"]}

    model = Net().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(model, tmp_path / "run") as scope:
        out = model(batch[0])
        out["logits"].retain_grad()
        out["b"].retain_grad()
        (out["logits"].square().sum() + out["b"].sum()).backward()
        optimizer.step()
    expected = root_sum_square([out["logits"].grad, out["b"].grad])
    assert readings(scope.run).signal_norm["pair"] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("learnt", [True, False])
def test_an_output_is_all_that_a_layer_returns_with_a_gradient_or_without(learnt, tmp_path):
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.z = nn.Parameter(torch.full((4, 6), 1.0), requires_grad=learnt)
            self.register_buffer("t", torch.arange(24.0).reshape(4, 6))

        def forward(self):
            return self.z + 0, {"at": torch.arange(6), "t": self.t + 0}

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.positions, self.fc = Positions(), nn.Linear(6, 6)

        def forward(self, x):
            z, rest = self.positions()
            return self.fc(x + z) * rest["t"]

    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with gradscope.watch(model, tmp_path / "run") as scope:
        for _ in range(6):
            optimizer.zero_grad()
            model(torch.ones(4, 6)).square().mean().backward()
            optimizer.step()
    frame = scope.run.frame()
    read = frame[frame.name == "positions"]
    true = torch.cat([model.positions.z.flatten(), model.positions.t.flatten()])
    assert len(read) == 6 and set(read.output_elements) == {48}
    np.testing.assert_allclose(read.activation_norm, true.norm().item(), rtol=1e-6)
    np.testing.assert_allclose(read.activation_mean, true.mean().item(), rtol=1e-6)
    np.testing.assert_allclose(read.activation_std, true.std(correction=0).item(), rtol=1e-6)


class Holder:
    def __init__(self, value):
        self.value = value


@pytest.mark.parametrize(
    ("wrap", "loss"),
    [
        (lambda y: Normal(y, 1.0), lambda out: -out.log_prob(torch.zeros(3)).mean()),
        (lambda y: (Categorical(logits=y), y.sum(1)), lambda out: out[0].entropy().mean()),
        (lambda y: SimpleNamespace(y=y), lambda out: out.y.square().mean()),
        (lambda y: [Holder(Holder(y))], lambda out: out[0].value.value.square().mean()),
        (lambda y: UserDict(y=y), lambda out: out["y"].square().mean()),
    ],
    ids=["Normal", "Categorical in a tuple", "SimpleNamespace", "own class", "mapping"],
)
def test_what_the_model_returns_may_be_held_by_objects(wrap, loss, batch, tmp_path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x):
            return wrap(self.b(torch.tanh(self.a(x))))

    model = Net().double()
    twin = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(model, tmp_path / "run") as scope:
        loss(model(batch[0])).backward()
        optimizer.step()
    reference = Reference(twin, lambda m: loss(m(batch[0])))
    read = readings(scope.run)
    assert scope.run.notes == []
    for name in ("a", "b"):
        assert read.signal_norm[name] == pytest.approx(reference.signal(name), rel=1e-12)


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("since", [None, 0, 4])
def test_an_output_is_what_the_users_own_hooks_make_of_it(since, every, batch, tmp_path):
    model, got, sent = mlp(), [], []

    def arrived(layer, args):
        got.append(args[0].norm().item())
        args[0].register_hook(lambda gradient: sent.append(gradient.norm().item()))

    def tripled(layer, args, output):
        return 3 * output

    model[3].register_forward_pre_hook(arrived)
    if since is None:
        model[2].register_forward_hook(tripled)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with gradscope.watch(model, tmp_path / "run", every=every) as scope:
        for step in range(8):
            if step == since:
                model[2].register_forward_hook(tripled)
            optimizer.zero_grad()
            F.cross_entropy(model(batch[0]), batch[1]).backward()
            optimizer.step()
    read = scope.run.frame().set_index("name").loc["2"]
    np.testing.assert_allclose(read.activation_norm, got[::every], rtol=1e-6)
    np.testing.assert_allclose(read.signal_norm, sent[::every], rtol=1e-6)


def test_a_mapping_that_computes_what_it_holds_is_not_asked_within_the_model(batch, tmp_path):
    class Lazy(UserDict):
        def values(self):
            raise AssertionError("computed")

    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(6, 3)

        def forward(self, given):
            return Lazy(y=self.a(given["x"]))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Inner()

        def forward(self, x):
            return self.inner(Lazy(x=x))["y"]

    model = Net().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(model, tmp_path / "run") as scope:
        F.cross_entropy(model(batch[0]), batch[1]).backward()
        optimizer.step()
    assert scope.run.notes == []
    assert readings(scope.run).signal_norm["inner.a"] > 0


@pytest.mark.parametrize("head", [nn.Tanh(), nn.Threshold(0.1, 0.0), nn.Flatten(), nn.Sigmoid()])
def test_an_output_that_leads_to_no_loss_has_no_signal(head, batch, tmp_path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.head, self.c = nn.Linear(6, 8), head, nn.Linear(8, 3)

        def forward(self, x):
            h = self.a(x)
            self.chosen = self.head(h).argmax(-1)  # looked at, no more
            return self.c(h)

    model = Net().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(model, tmp_path / "run") as scope:
        for _ in range(3):
            F.cross_entropy(model(batch[0]), batch[1]).backward()
            optimizer.step()
    read = scope.run.frame().set_index("name")
    assert read.signal_norm["a"].notna().all()
    assert np.isnan(np.atleast_1d(read.signal_norm.get("head", np.nan))).all()


def test_the_ratio_of_a_block_is_of_the_same_forwards_or_none(tmp_path):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(8, 8), nn.Linear(8, 8)
            self.norms = []

        def forward(self, x):
            y = self.fc2(torch.relu(self.fc1(x)))
            self.norms.append((x.detach().norm().item(), y.detach().norm().item()))
            return x + y

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.head = nn.Linear(4, 8), nn.Linear(8, 2)
            self.blocks = nn.ModuleList(Block() for _ in range(3))

        def forward(self, x):
            x = self.stem(x)
            for place, block in enumerate(self.blocks):
                if place == 0 or torch.rand(()) < 0.7:
                    x = block(x)
            return self.head(x)

    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    right = []
    with gradscope.watch(model, tmp_path / "run") as scope:
        for _ in range(16):
            first = model.blocks[0]
            first.norms.clear()
            for _ in range(4):
                model(torch.randn(5, 4)).square().mean().backward()
            x, y = np.square(first.norms).sum(0)
            right.append((y / x) ** 0.5)
            optimizer.step()
            optimizer.zero_grad()
    run = scope.run
    (number,) = run.shortcuts.index[run.shortcuts.name == "blocks.0"]
    rows = run.shortcut_readings
    read = rows.branch_ratio[rows.shortcut == number].to_numpy()
    assert np.isnan(read).sum() < 8
    known = ~np.isnan(read)
    np.testing.assert_allclose(read[known], np.array(right)[known], rtol=1e-4)


def test_a_loss_on_an_inner_layer_reaches_its_reading(batch, tmp_path):
    class Auxiliary(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.fc, self.side = nn.Linear(6, 3), nn.Linear(6, 2)

        def forward(self, x):
            self.kept = self.side(x)  # the outputs do not depend on it
            return self.fc(x)

    model = Auxiliary().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(model, tmp_path / "run") as scope:
        out = model(batch[0])
        (out.sum() + model.kept.square().sum()).backward()
        optimizer.step()
    expected = (2 * model.kept).norm().item()
    assert readings(scope.run).signal_norm["side"] == pytest.approx(expected, rel=1e-12)


def test_every_nth_step_is_recorded_and_nothing_in_between(batch, tmp_path):
    all_steps = record(mlp(), batch, tmp_path / "all", steps=7)
    third = record(mlp(), batch, tmp_path / "third", steps=7, every=3)
    assert third.steps.step.tolist() == [0, 3, 6]
    expected = all_steps.frame()
    expected = expected[expected.step % 3 == 0].reset_index(drop=True)
    columns = ["step", "layer", "grad_norm", "signal_norm", "update_norm", "activation_norm"]
    np.testing.assert_array_equal(third.frame()[columns], expected[columns])


def test_between_recorded_steps_only_the_outermost_module_has_hooks(batch, tmp_path):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(model, tmp_path / "run", every=10):
        for _ in range(2):
            train_step(model, optimizer, batch)
        hooked = [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]
        assert hooked == [model]


def test_half_precision_norms_neither_overflow_nor_round_away(tmp_path):
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)).to(torch.bfloat16)
    x = torch.randn(32, 64, dtype=torch.bfloat16) * 1e30
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with gradscope.watch(model, tmp_path / "run") as scope:
        out = model(x)
        (out.float() * 1e-30).sum().backward()
        before = [p.detach().clone() for p in model.parameters()]
        optimizer.step()
    read = readings(scope.run)
    assert read.activation_norm["1"] == pytest.approx(out.double().norm().item(), rel=1e-5)
    moved = root_sum_square(
        p.detach().double() - b for p, b in zip(model[1].parameters(), before[2:], strict=True)
    )
    assert read.update_norm["1"] == pytest.approx(moved, rel=1e-5)


@pytest.mark.parametrize("scale", [1e-30, 1e-22, 1e22])
def test_signals_beyond_the_square_root_of_the_range_are_read(scale, batch, tmp_path):
    model = mlp().float()
    x = batch[0].float()
    reference = Reference(model, lambda m: m(x).sum() * scale)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with gradscope.watch(model, tmp_path / "run") as scope:
        (model(x).sum() * scale).backward()
        optimizer.step()
    read = readings(scope.run)
    for name in read.index:
        assert read.signal_norm[name] == pytest.approx(reference.signal(name), rel=1e-5)
        if reference.gradient(name):
            assert read.grad_norm[name] == pytest.approx(reference.gradient(name), rel=1e-5)


def test_zero_infinite_and_nan_gradients_are_kept_as_they_are(tmp_path):
    seen = {}
    for value in (0.0, float("inf"), float("nan")):
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with gradscope.watch(model, tmp_path / str(value)) as scope:
            (model(torch.ones(2, 3)) * value).sum().backward()
            optimizer.step()
        seen[value] = readings(scope.run).signal_norm["1"]
    assert seen[0.0] == 0
    assert seen[float("inf")] == float("inf")
    assert any(np.isnan(v) for v in seen.values())


def test_training_is_the_same_to_the_bit_with_and_without_watching(tmp_path):
    def train(watched):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(6, 32),
            nn.BatchNorm1d(32),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            Residual(),
            nn.Linear(3, 3),
        ).float()
        model[4].stem = nn.Linear(32, 8)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        scope = gradscope.watch(model, tmp_path / "run") if watched else None
        for _ in range(5):
            optimizer.zero_grad()
            F.cross_entropy(model(torch.randn(16, 6)), torch.randint(0, 3, (16,))).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        if scope:
            scope.close()
        return model.state_dict(), torch.rand(3)

    (bare, bare_random), (watched, watched_random) = train(False), train(True)
    assert torch.equal(bare_random, watched_random)
    for name, tensor in bare.items():
        assert torch.equal(tensor, watched[name]), name
