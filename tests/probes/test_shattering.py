"""The shattering probe, against gradients taken sample by sample."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gradscope.errors import GradscopeError
from gradscope.probes.shattering import shattering


def plain(depth: int, width: int = 32, norm: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(width, width), *([nn.BatchNorm1d(width)] if norm else []), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 5))


def batch(n: int = 64, width: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(n, width), torch.randint(5, (n,))


def test_a_linear_net_with_a_linear_loss_does_not_shatter() -> None:
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 1))
    x, y = batch()
    result = shattering(model, lambda output, target: output.sum(), (x, y))
    assert result.cosine == pytest.approx(1, abs=1e-6)
    assert result.verdict == "healthy"


def test_a_deep_plain_net_with_batchnorm_shatters_and_a_shallow_one_does_not() -> None:
    loss = nn.CrossEntropyLoss()
    assert shattering(plain(50, norm=True), loss, batch()).verdict == "shattered"
    assert shattering(plain(2), loss, batch()).verdict == "healthy"


def test_the_cosines_are_those_of_single_samples() -> None:
    model, (x, y) = plain(4).double(), batch(5)
    x = x.double()
    result = shattering(model, nn.CrossEntropyLoss(), (x, y))
    step = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).double()
    step *= 0.1 * x.norm(dim=1, keepdim=True) / step.norm(dim=1, keepdim=True)
    for i in range(5):
        pair = []
        for inputs in (x[i : i + 1], (x + step)[i : i + 1]):
            inputs = inputs.clone().requires_grad_()
            loss = nn.functional.cross_entropy(model(inputs), y[i : i + 1])
            pair.append(torch.autograd.grad(loss, inputs)[0].flatten())
        expected = torch.nn.functional.cosine_similarity(*pair, dim=0).item()
        assert result.cosines[i].item() == pytest.approx(expected, abs=1e-5)


def test_gradients_buffers_and_randomness_are_left_alone() -> None:
    model = nn.Sequential(plain(3, norm=True), nn.Dropout())
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    inputs = batch()
    state = torch.random.get_rng_state()
    shattering(model, nn.CrossEntropyLoss(), inputs)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(p.grad is None for p in model.parameters())
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name])


def test_inputs_without_a_gradient_are_refused() -> None:
    model = nn.Embedding(5, 3)
    tokens = torch.zeros(4, dtype=torch.long)
    with pytest.raises(GradscopeError, match=r"floating-point inputs, got torch\.int64"):
        shattering(model, nn.CrossEntropyLoss(), (tokens, tokens))
    with pytest.raises(GradscopeError, match="pair of tensors"):
        shattering(model, nn.CrossEntropyLoss(), tokens)  # type: ignore[arg-type]


def test_a_loss_apart_from_the_inputs_is_refused() -> None:
    model = nn.Linear(32, 5)
    with pytest.raises(GradscopeError, match="does not depend on the inputs"):
        shattering(model, lambda output, target: output.detach().sum(), batch())
