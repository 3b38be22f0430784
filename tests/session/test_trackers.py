"""The lines of docs/ for trackers that take a function, run as they stand against doubles."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import nn

import gradscope
from trackers import Aim, Comet, Neptune, Trackio

PAGE = Path(__file__).parents[2] / "docs" / "integrations.md"


def test_each_line_sends_every_reading(tmp_path):
    (block,) = (
        block
        for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
        if "trackio_run.log" in block
    )
    trackers = {
        "experiment": Comet(), "trackio_run": Trackio(), "aim_run": Aim(), "neptune_run": Neptune(),
    }  # fmt: skip
    expected = {}
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(model, tmp_path / "run") as scope:
        scope.send_to(lambda step, values: expected.update({step: values}))
        exec(block, {"scope": scope, **trackers})
        for _ in range(4):
            optimizer.zero_grad()
            model(torch.randn(4, 5)).square().sum().backward()
            optimizer.step()
    assert block.count("send_to") == len(trackers) and scope.run.notes == []
    assert sorted(expected) == [0, 1, 2, 3] and "grad_norm/0" in expected[0]
    for name, tracker in trackers.items():
        assert tracker.got == expected, name
