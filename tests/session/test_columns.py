"""Tables of rows of several layouts: what is read at some steps only, a layer called at some."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import nn

import gradscope
from gradscope.capture.keys import OfLayer
from gradscope.capture.net.catalogue import Catalogue, LayerInfo
from gradscope.session.columns import Decoder, by_layout, columns, in_order
from gradscope.session.tape import HostRow


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


def test_rows_of_layouts_that_are_equal_and_not_the_same_are_written_in_order():
    """Equal ones are decoded as one; they came, sorted by what they are, out of order."""
    catalogue = Catalogue()
    catalogue.add_layers([LayerInfo(0, "layer", "Linear", 6, True, None)], [0])

    def layout():
        return ((OfLayer("signal_norm", 0),),)

    layouts = layout(), tuple([*layout()])
    assert layouts[0] == layouts[1] and layouts[0] is not layouts[1]
    rows = [
        HostRow(step, 0.0, False, False, [(layouts[step % 2], np.array([float(step)]))], {})
        for step in range(7)
    ]
    decoded = Decoder(catalogue).decoded(by_layout(rows))
    tables = in_order([columns(some) for some in decoded])
    assert tables["steps"]["step"].tolist() == list(range(7))
    assert tables["layers"]["step"].tolist() == list(range(7))
    assert tables["layers"]["signal_norm"].tolist() == list(range(7))


def test_a_net_whose_derivatives_are_its_loss_loses_no_step(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    with gradscope.watch(model, tmp_path / "run") as scope:
        for _ in range(24):
            x, t = torch.rand(2, 16, 1).requires_grad_().unbind()
            optimizer.zero_grad()
            u = model(torch.cat([x, t], 1))
            (u_t,) = torch.autograd.grad(u.sum(), t, create_graph=True)
            (u_x,) = torch.autograd.grad(u.sum(), x, create_graph=True)
            (u_xx,) = torch.autograd.grad(u_x.sum(), x, create_graph=True)
            edges = [model(torch.rand(8, 2)).square().mean() for _ in range(3)]
            ((u_t - u_xx).square().mean() + sum(edges)).backward()
            optimizer.step()
    assert scope.run.notes == []
    assert scope.run.steps["step"].tolist() == list(range(24))
