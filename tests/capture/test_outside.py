"""Values that are used outside of the outermost call: the gradient through one layer is its own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import gradscope
from reference import Reference


class Features(nn.Module):
    """Returns what it computes on the way, too."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.act, self.head = nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2)
        self.double()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.act(self.body(x))
        return {"logits": self.head(features), "features": features}


class Parts(nn.Module):
    """A model whose loss calls its parts, and not its forward."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.mean, self.spread, self.decoder = (
            nn.Linear(5, 8),
            nn.Linear(8, 3),
            nn.Linear(8, 3),
            nn.Linear(3, 5),
        )
        self.double()

    def loss(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.encoder(x))
        mean, spread = self.mean(hidden), self.spread(hidden)
        rebuilt = self.decoder(mean + spread.exp())
        return (rebuilt - x).square().sum() + mean.square().sum() + hidden.sum()


def loss_of_both(model: nn.Module, x: Tensor) -> Tensor:
    found = model(x)
    return found["logits"].square().sum() + 3 * found["features"].square().sum()


class Critic(nn.Module):
    """A generator whose output a critic judges, and that is to be near a target, too."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.generator, self.critic = nn.Linear(5, 4), nn.Linear(4, 1)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError


def adversarial(model: nn.Module, x: Tensor) -> Tensor:
    made = model.generator(x)
    return model.critic(made).sum() + 5 * (made - 1).square().sum()


class Stashing(nn.Module):
    """Keeps what it computes on the way, whole and as a view, for losses of others."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Linear(5, 6), nn.Linear(6, 2)
        self.blocks = nn.Sequential(
            *(nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)) for _ in range(3))
        )
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        self.features = x
        for block in self.blocks:
            x = x + block(x)
            self.last = x.flatten()
        return self.head(x)


def loss_of_stashed(model: nn.Module, x: Tensor) -> Tensor:
    out = model(x)
    return out.square().sum() + 3 * model.features.square().sum() + model.last.pow(3).sum()


def loss_of_hooked(*names: str) -> Callable[[nn.Module, Tensor], Tensor]:
    """A loss on what forward hooks of the user's keep, as extractors of features do."""

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        found: list[Tensor] = []
        handles = [
            model.get_submodule(name).register_forward_hook(lambda m, args, out: found.append(out))
            for name in names
        ]
        out = model(x)
        for handle in handles:
            handle.remove()
        return out.square().sum() + 3 * sum(f.square().sum() for f in found)

    return loss


CASES = {
    "returned": (Features, loss_of_both),
    "parts": (Parts, lambda m, x: m.loss(x)),
    "two losses": (Critic, adversarial),
    "kept on the module": (Stashing, loss_of_stashed),
    "kept by a hook": (Stashing, loss_of_hooked("blocks.1.1")),
    "kept by several": (Stashing, loss_of_hooked("stem", "blocks.0.0", "blocks.0.1", "head")),
}


@pytest.mark.parametrize("case", CASES)
def test_the_gradient_at_an_input_is_that_through_the_layer_alone(case, tmp_path):
    make, loss = CASES[case]
    model = make()
    x = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = Reference(model, lambda m: loss(m, x))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(model, tmp_path / "run") as scope:
        loss(model, x).backward()
        optimizer.step()
    frame = scope.run.frame().set_index("name")
    for name, row in frame.iterrows():
        assert row.signal_norm == pytest.approx(expected.signal(name), rel=1e-9), name
        if expected.inputs[name] and expected.inputs[name][0].requires_grad:
            read = row.input_signal_norm
            assert read == pytest.approx(expected.input_signal(name), rel=1e-9), name


def test_one_part_of_a_larger_model_is_read_as_within_it(tmp_path):
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 4)).double()
    head = nn.Linear(4, 2).double()
    x = torch.randn(6, 5, dtype=torch.float64)

    def loss(model: nn.Module) -> Tensor:
        code = model(x)
        return head(code).square().sum() + code.abs().sum()

    expected = Reference(encoder, loss)
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1)
    with gradscope.watch(encoder, tmp_path / "run") as scope:
        loss(encoder).backward()
        optimizer.step()
    for row in scope.run.frame().itertuples():
        assert row.signal_norm == pytest.approx(expected.signal(row.name), rel=1e-9)


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("batches", [1, 2])
def test_what_reaches_a_block_s_input_from_outside_is_no_part_of_the_block(
    batches, every, tmp_path
):
    model = Stashing()
    x = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    squares = torch.zeros(3, 4, dtype=torch.float64)
    for part in x.chunk(batches):
        stream = [model.stem(part)]
        for block in model.blocks:
            stream.append(stream[-1] + block(stream[-1]))
        out = model.head(stream[-1])
        loss = out.square().sum() + 3 * stream[0].square().sum() + stream[-1].pow(3).sum()
        totals = torch.autograd.grad(loss, stream, retain_graph=True)
        for i, block in enumerate(model.blocks):
            leaf = stream[i].detach().requires_grad_()
            (branch,) = torch.autograd.grad(block(leaf), leaf, totals[i + 1])
            rest = totals[i] - totals[i + 1] - branch
            parts = totals[i], totals[i + 1], branch, rest if i == 0 else torch.zeros(1)
            squares[i] += torch.stack([p.square().sum() for p in parts])
    with gradscope.watch(model, tmp_path / "run", every=every) as scope:
        for _ in range(3):
            for part in x.chunk(batches):
                loss_of_stashed(model, part).backward()
            optimizer.step()
            optimizer.zero_grad()
    read = scope.run.shortcut_readings
    assert read.step.unique().tolist() == list(range(0, 3, every))
    for row in read.itertuples():
        found = [row.total_norm, row.shortcut_norm, row.branch_norm, row.other_norm]
        assert found == pytest.approx(squares[row.shortcut].sqrt().tolist(), rel=1e-9, abs=1e-9)


def test_a_gradient_of_another_backward_is_not_taken_for_one_through_a_layer(tmp_path):
    """A penalty's own backward passes the layer, that of the loss reaches its input alone."""
    model = Stashing()
    x = torch.randn(6, 5, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(model, tmp_path / "run") as scope:
        out = model(x)
        torch.autograd.grad(out.sum(), model.features, retain_graph=True)
        model.features.square().sum().backward()
        optimizer.step()
    frame = scope.run.frame().set_index("name")
    assert frame.signal_norm["stem"] > 0
    assert frame.input_signal_norm[["blocks.0.0", "head"]].isna().all()


def test_what_a_model_returns_is_cut_as_a_whole(tmp_path):
    x = torch.randn(6, 5, dtype=torch.float64)

    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Features()
            self.block = nn.Sequential(nn.Linear(8, 8), nn.Tanh()).double()

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            found = self.inner(x)
            features = found["features"] + self.block(found["features"])
            return {"logits": found["logits"] + self.inner.head(features), "features": features}

    around = Around()
    optimizer = torch.optim.SGD(around.parameters(), lr=0.1)
    with gradscope.watch(around, tmp_path / "run", cut="branches", cut_every=1) as scope:
        loss_of_both(around, x).backward()
        optimizer.step()
    assert scope.run.notes == []
    assert scope.run.frame().cut_signal_norm.notna().any()


def test_a_cut_that_does_not_cut_all_gradient_is_not_read(tmp_path):
    model = Stashing()
    x = torch.randn(6, 5, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with (
        pytest.warns(gradscope.GradscopeWarning, match="take values from within the forward"),
        gradscope.watch(model, tmp_path / "run", cut="shortcuts", cut_every=1) as scope,
    ):
        for _ in range(3):
            loss_of_stashed(model, x).backward()
            optimizer.step()
            optimizer.zero_grad()
    frame = scope.run.frame()
    assert frame.cut_signal_norm.isna().all() and frame.signal_norm.notna().all()
    assert len(scope.run.notes) == 1
