"""One net gets one verdict, whatever numbers it computes with."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from small_trainings import Last, net, sgd, train

DTYPES = [torch.float64, torch.float32, torch.bfloat16]


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.body = nn.LayerNorm(16), net(16, 32, 16)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(self.norm(x))


class Cut(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.detach()


def off() -> nn.Module:
    model = net(16, 32, 32, 4)
    model[2].bias.data[:28] = -100
    return model


def alike() -> nn.Module:
    model = net(16, 32, 32, 32, 4)
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.0625)
    return model


def large() -> nn.Module:
    model = net(*[32] * 12, act=nn.Identity)
    for layer in model[::2]:
        layer.weight.data *= 4
    return nn.Sequential(nn.Linear(16, 32), *model, nn.Linear(32, 4))


def in_eval() -> nn.Module:
    model = net(16, 32, 32, 4)
    model.insert(1, nn.BatchNorm1d(32))
    model[0].weight.data *= 16
    return model.eval()


def flat() -> nn.Module:
    model = net(16, 32, 32, 4, act=nn.Tanh)
    model[2].weight.data *= 64
    return model


NETS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "healthy": (lambda: net(16, 32, 32, 4), "healthy"),
    "residual": (lambda: nn.Sequential(Residual(), Residual(), nn.Linear(16, 4)), "healthy"),
    "GRU": (lambda: Last(nn.GRU(4, 8, batch_first=True), 4), "healthy"),
    "vanishing": (lambda: net(16, *[32] * 11, 4, act=nn.Sigmoid), "vanishing"),
    "exploding": (large, "exploding"),
    "dead": (off, "dead"),
    "saturated": (flat, "saturated"),
    "disconnected": (
        lambda: nn.Sequential(net(16, 32, 32), Cut(), net(32, 32, 4)),
        "disconnected",
    ),
    "softmax twice": (lambda: net(16, 32, 32, 4).append(nn.Softmax(1)), "output"),
    "BatchNorm in eval": (in_eval, "batchnorm-eval"),
    "units alike": (alike, "collapsed"),
}


@pytest.mark.parametrize(("build", "verdict"), NETS.values(), ids=NETS)
def test_the_verdict_is_that_of_the_net_in_any_precision(build, verdict, tmp_path):
    found = []
    for dtype in DTYPES:
        torch.manual_seed(0)
        model = build().to(dtype)
        rate = 1e-7 if verdict == "exploding" else 0.02
        diagnosis = train(
            tmp_path / str(dtype),
            model,
            sgd(model, rate),
            steps=8 if verdict == "exploding" else 24,
            before=lambda step, x, dtype=dtype: x.to(dtype),
        )
        found.append(diagnosis.verdict)
    assert found == [verdict] * len(DTYPES)


def test_so_is_the_one_about_gradients_that_pile_up_and_weights_that_decay(tmp_path):
    for dtype in DTYPES:

        def in_dtype(step: int, x: Tensor, dtype: torch.dtype = dtype) -> Tensor:
            return x.to(dtype)

        model = net(16, 32, 32, 4).to(dtype)
        path = tmp_path / f"piled-{dtype}"
        piled = train(path, model, sgd(model, 2e-3), zero=False, before=in_dtype)
        model = net(16, 32, 32, 4).to(dtype)
        decay = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=20.0)
        decayed = train(tmp_path / f"decayed-{dtype}", model, decay, before=in_dtype)
        assert (piled.verdict, decayed.verdict) == ("accumulated", "update-speed")
