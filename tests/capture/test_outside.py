"""Values that are used outside of the outermost call: the gradient through one layer is its own."""

from __future__ import annotations

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


CASES = {
    "returned": (Features, loss_of_both),
    "parts": (Parts, lambda m, x: m.loss(x)),
    "two losses": (Critic, adversarial),
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
