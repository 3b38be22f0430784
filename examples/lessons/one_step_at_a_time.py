"""What does each remedy do? From sigmoids to ReLU, He weights and shortcuts, one step at a time.

Nielsen's sigmoid net loses its gradient to the activation, whose derivative is 1/4 at most. ReLU
mends that, and torch's own weights lose the gradient then, by 1/sqrt(6) a layer; He's weights mend
that (He et al. 2015, Delving Deep into Rectifiers). How the deep net trains is another question,
which shortcuts answer (He et al. 2015, Deep Residual Learning). Each step is measured on a copy by
`gradscope.what_if`, against the net without it.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pandas as pd
import plotly.express as px
import torch
from lesson import FOLDER, digits, nets, present
from plotly.graph_objects import Figure
from torch import nn

import gradscope

STEPS = {
    "sigmoid": None,
    "ReLU": "relu",
    "ReLU, He": ["relu", "he"],
    "ReLU, He, shortcuts": ["relu", "he", "shortcuts"],
    "ReLU, He, shortcuts from zero": ["relu", "he", "shortcuts", "quiet"],
}


def measure(depth: int = 24, steps: int = 100, width: int = 64) -> pd.DataFrame:
    """Return decades lost and the loss after `steps`, of each step of the story."""
    data = digits.load()
    torch.manual_seed(0)
    model = nets.plain(depth, width, nn.Sigmoid)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    batches = []
    for _ in range(steps):
        rows = torch.randint(len(data.train_x), (64,))
        batches.append((data.train_x[rows], data.train_y[rows]))
    run = Path(tempfile.mkdtemp(dir=FOLDER.name)) / "sigmoid"
    changes = [change for change in STEPS.values() if change is not None]
    what = gradscope.what_if(
        model, nn.CrossEntropyLoss(), batches, optimizer, changes=changes, steps=steps, run=run
    )
    tried = {row.folder: row for row in (what.unchanged, *what.tried)}
    rows = []
    for name, change in STEPS.items():
        folder = "" if change is None else "+".join([change] if isinstance(change, str) else change)
        row = tried[folder]
        rows.append((name, row.decades, row.early_speed, row.loss, row.spread, row.verdict))
    columns = ["net", "decades", "early speed", "loss", "spread", "verdict"]
    return pd.DataFrame(rows, columns=columns)
