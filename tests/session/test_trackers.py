"""The documented lines for trackers that take a function, run as they stand against small doubles.

The doubles have the signature of the tracker's own method, and nothing else: the packages are
heavy, or want a server.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import torch
from torch import nn

import gradscope

PAGE = Path(__file__).parents[2] / "docs" / "integrations.md"


class Comet:
    """As comet_ml.Experiment."""

    def __init__(self):
        self.got = {}

    def log_metrics(self, dic, prefix=None, step=None, epoch=None):
        self.got[step] = dict(dic)


class Trackio:
    """As the module trackio."""

    def __init__(self):
        self.got = {}

    def log(self, metrics, step=None):
        self.got[step] = dict(metrics)


class Aim:
    """As aim.Run."""

    def __init__(self):
        self.got = defaultdict(dict)

    def track(self, value, name=None, step=None, epoch=None, *, context=None):
        self.got[step][name] = value


class Neptune:
    """As neptune.Run, whose fields are made by their names."""

    def __init__(self):
        self.got = defaultdict(dict)

    def __getitem__(self, name):
        run = self

        class Field:
            def append(self, value, *, step=None, timestamp=None, wait=False):
                run.got[step][name] = value

        return Field()


def test_each_line_sends_every_reading(tmp_path):
    (block,) = (
        block
        for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
        if "trackio.log" in block
    )
    trackers = {
        "experiment": Comet(), "trackio": Trackio(), "aim_run": Aim(), "neptune_run": Neptune(),
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
