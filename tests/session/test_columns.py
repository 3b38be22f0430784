"""Tables of rows of several layouts: what is read at some steps only, a layer called at some."""

from __future__ import annotations

import pandas as pd
import torch
from torch import nn

import gradscope


def frames_of(path, flush_each_step):
    """Record a net whose first layer is called at every third step from the second on."""
    torch.manual_seed(0)

    class Sometimes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.some, self.all, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x, number):
            x = self.some(x).relu() if number % 3 == 2 else x
            return self.head(self.all(x).relu())

    model = Sometimes()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with gradscope.watch(model, path) as scope:
        for number in range(20):
            optimizer.zero_grad()
            loss = model(torch.randn(4, 8), number).square().mean()
            loss.backward()
            optimizer.step()
            if number % 2:
                scope.log(loss=loss)
            if flush_each_step:
                scope.flush()
    run = scope.run
    return run.steps.drop(columns="time"), run.layer_readings, run.layers


def test_steps_of_several_layouts_are_written_alike_however_often_they_are_flushed(tmp_path):
    often, once = (frames_of(tmp_path / str(each), each) for each in (True, False))
    for each, other in zip(often, once, strict=True):
        pd.testing.assert_frame_equal(each, other)
    assert once[0]["step"].is_monotonic_increasing
