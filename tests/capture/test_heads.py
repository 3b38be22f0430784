"""`run.heads`: which losses a net was trained with, and what they came after."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gradscope


def heads(path, loss_of, last=None, steps=2, **settings):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3), *([last] if last else []))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = torch.randn(6, 4), torch.randint(0, 3, (6,))
    with gradscope.watch(model, path, **settings) as scope:
        for _ in range(steps):
            loss_of(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert scope.run.notes == []
    return set(scope.run.heads.itertuples(index=False, name=None))


def one_hot(y):
    return F.one_hot(y, 3).float()


CE = "cross_entropy"
BCE = "binary_cross_entropy_with_logits"
CASES = {
    "right": (None, F.cross_entropy, (CE, "")),
    "right, by a module": (None, nn.CrossEntropyLoss(), (CE, "")),
    "softmax in the model": (nn.Softmax(-1), F.cross_entropy, (CE, "softmax")),
    "softmax in the loss": (
        None,
        lambda out, y: F.cross_entropy(out.softmax(1), y) * 0.5 + 0.01 * out.square().mean(),
        (CE, "softmax"),
    ),
    "softmax, then other steps": (
        None,
        lambda out, y: F.cross_entropy(out.softmax(1).unsqueeze(0).squeeze(0).clone(), y),
        (CE, "softmax"),
    ),
    "sigmoid": (nn.Sigmoid(), F.cross_entropy, (CE, "sigmoid")),
    "relu": (nn.ReLU(), F.cross_entropy, (CE, "relu")),
    "log-softmax twice": (nn.LogSoftmax(-1), F.cross_entropy, (CE, "log_softmax")),
    "log-softmax, then nll": (nn.LogSoftmax(-1), F.nll_loss, (CE, "")),
    "softmax, then nll": (nn.Softmax(-1), F.nll_loss, ("nll_loss", "softmax")),
    "nll of logits": (None, F.nll_loss, ("nll_loss", "")),
    "smoothed labels": (
        nn.Softmax(-1),
        lambda out, y: F.cross_entropy(out, y, label_smoothing=0.1),
        (CE, "softmax"),
    ),
    "probabilities": (None, lambda out, y: F.cross_entropy(out, one_hot(y)), (CE, "")),
    "sigmoid twice": (
        nn.Sigmoid(),
        lambda out, y: F.binary_cross_entropy_with_logits(out, one_hot(y)),
        (BCE, "sigmoid"),
    ),
    "binary": (
        nn.Sigmoid(),
        lambda out, y: F.binary_cross_entropy(out, one_hot(y)),
        ("binary_cross_entropy", "sigmoid"),
    ),
    "sigmoid twice, by hand": (
        nn.Sigmoid(),
        lambda out, y: F.binary_cross_entropy(out.sigmoid(), one_hot(y)),
        (BCE, "sigmoid"),
    ),
    "softmax, then sigmoid": (
        nn.Softmax(-1),
        lambda out, y: F.binary_cross_entropy(out.view(-1).sigmoid(), one_hot(y).view(-1)),
        (BCE, "softmax"),
    ),
    "softmax, logarithm, then nll": (
        nn.Softmax(-1),
        lambda out, y: F.nll_loss(out.log(), y),
        (CE, ""),
    ),
    "softmax twice, by hand": (
        nn.Softmax(-1),
        lambda out, y: F.nll_loss(out.softmax(1).log(), y),
        (CE, "softmax"),
    ),
    "an output that is bounded": (
        nn.Tanh(),
        lambda out, y: F.mse_loss(out, 5 * one_hot(y)),
        ("mse_loss", "tanh"),
    ),
    "two outputs": (
        None,
        lambda out, y: 3 * F.mse_loss(out[:3], out[3:]),
        ("mse_loss", "outputs"),
    ),
    "two outputs, of which one is held": (
        None,
        lambda out, y: F.mse_loss(out[:3], out[3:].detach()),
        ("mse_loss", ""),
    ),
    "two outputs, and what may hold them apart": (
        None,
        lambda out, y: F.mse_loss(out[:3], out[3:]) + F.relu(1 - out.std(0)).mean(),
        ("mse_loss", ""),
    ),
    "directions of two outputs": (
        None,
        lambda out, y: 1 - F.cosine_similarity(out[:3], out[3:]).mean(),
        ("cosine_similarity", "outputs"),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_losses_and_what_they_come_after_are_seen(name, tmp_path):
    last, loss_of, expected = CASES[name]
    assert heads(tmp_path / "run", loss_of, last) == {expected}


def test_other_losses_are_not_guessed(tmp_path):
    assert heads(tmp_path / "run", lambda out, y: out.softmax(1).square().sum()) == set()


def test_attention_within_the_model_is_no_head(tmp_path):
    class Attends(nn.Module):
        def forward(self, x):
            return torch.softmax(x @ x.T, -1) @ x

    assert heads(tmp_path / "run", F.cross_entropy, Attends()) == {(CE, "")}


def test_several_losses_are_all_seen(tmp_path):
    def both(out, y):
        return F.cross_entropy(out, y) + F.mse_loss(out.softmax(1), one_hot(y))

    assert heads(tmp_path / "run", both) == {(CE, ""), ("mse_loss", "softmax")}


def test_a_run_that_is_resumed_and_an_older_run_have_what_they_have(tmp_path):
    heads(tmp_path / "run", F.cross_entropy, nn.Softmax(-1))
    assert heads(tmp_path / "run", F.cross_entropy, nn.Softmax(-1), resume=True)
    file = tmp_path / "run" / "run.json"
    meta = json.loads(file.read_bytes())
    del meta["heads"]
    file.write_text(json.dumps(meta))
    with pytest.warns(gradscope.GradscopeWarning, match="checksum"):
        assert gradscope.load(tmp_path / "run").heads.empty


def test_a_backward_of_another_thread_leaves_it_unknown(tmp_path):
    import threading

    waits, goes_on = threading.Event(), threading.Event()

    class Waits(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            waits.set()
            goes_on.wait(60)
            return gradient

    other = torch.ones(2, requires_grad=True)
    thread = threading.Thread(target=lambda: Waits.apply(other).sum().backward())
    thread.start()
    waits.wait(60)
    try:
        assert heads(tmp_path / "run", F.cross_entropy) == set()
    finally:
        goes_on.set()
        thread.join()
