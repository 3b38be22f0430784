"""Trainers that need nothing but `watch`: ignite, skorch, fastai, each against the same loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import gradscope
import plain_loop


def batches(steps=6, size=4):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(steps * size, 5, generator=generator)
    y = torch.randint(0, 2, (steps * size,), generator=generator)
    return list(zip(x.split(size), y.split(size), strict=True))


def by_ignite(model, path):
    engine = pytest.importorskip("ignite.engine", reason="pytorch-ignite is not installed")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = engine.create_supervised_trainer(model, optimizer, F.cross_entropy)
    with gradscope.watch(model, path) as scope:
        trainer.run(batches(), max_epochs=1)
    return scope.run


def by_skorch(model, path):
    skorch = pytest.importorskip("skorch", reason="skorch is not installed")
    net = skorch.NeuralNet(
        model, criterion=torch.nn.CrossEntropyLoss, optimizer=torch.optim.SGD, lr=0.1,
        batch_size=4, max_epochs=1, train_split=None, verbose=0, iterator_train__shuffle=False,
    ).initialize()  # fmt: skip
    x, y = (torch.cat(part) for part in zip(*batches(), strict=True))
    with gradscope.watch(net.module_, path) as scope:
        net.partial_fit(x, y)  # `fit` would begin with a new module
    return scope.run


def by_fastai(model, path):
    pytest.importorskip("fastai", reason="fastai brings much along, and is no extra of the tests")
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner
    from fastai.optimizer import OptimWrapper

    data = DataLoaders(batches(), [])
    learn = Learner(
        data, model, loss_func=F.cross_entropy, lr=0.1, cbs=[], path=path.parent,
        opt_func=lambda parameters, **options: OptimWrapper(parameters, torch.optim.SGD, **options),
    )  # fmt: skip
    with gradscope.watch(model, path) as scope, learn.no_logging():
        learn.fit(1)
    return scope.run


def loss_of(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y)


@pytest.mark.parametrize("fit", [by_ignite, by_skorch, by_fastai])
def test_a_trainer_is_read_as_the_loop_that_it_stands_for(fit, tmp_path):
    model, twin = plain_loop.Net(), plain_loop.Net()
    run = fit(model, tmp_path / "run")
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    expected = plain_loop.train(twin, optimizer, batches(), loss_of, tmp_path / "plain")
    for name, weight in twin.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], weight)
    assert run.notes == [] and run.steps.step.tolist() == list(range(6))
    for column in plain_loop.READINGS:
        np.testing.assert_allclose(run.frame()[column], expected.frame()[column], rtol=1e-5)
    np.testing.assert_allclose(
        run.shortcut_readings.cosine, expected.shortcut_readings.cosine, rtol=1e-4
    )
