"""What does each remedy do? From sigmoids to ReLU, He weights and shortcuts, one step at a time.

A deep net of sigmoids loses its gradient to them, as their derivative is 1/4 at most (Nielsen).
ReLU mends that; then torch's own weights lose it, by 1/sqrt(6) a layer, and He's do not (He et al.
2015, Delving Deep into Rectifiers). That the gradient arrives does not make a deep plain net train
well; shortcuts do (He et al. 2015, Deep Residual Learning), but with He's weights and without a
normalisation each block grows the signal, and the net explodes. `gradscope.what_if` measures every
step on a copy.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import plotly.express as px
import torch
from lesson import FOLDER, digits, nets, present
from plotly.graph_objects import Figure
from torch import nn

import gradscope

STEPS: dict[str, Sequence[str]] = {
    "sigmoid": (),
    "ReLU": ("relu",),
    "ReLU, He": ("relu", "he"),
    "ReLU, He, shortcuts": ("relu", "he", "shortcuts"),
    "ReLU, shortcuts": ("relu", "shortcuts"),
}


def measure(depth: int = 50, steps: int = 100, width: int = 64) -> pd.DataFrame:
    """Return decades lost, verdict and the loss after `steps`, of each step of the story."""
    data = digits.load()
    torch.manual_seed(0)
    model = nets.plain(depth, width, nn.Sigmoid)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    rows = [torch.randint(len(data.train_x), (64,)) for _ in range(steps)]
    what = gradscope.what_if(
        model,
        nn.CrossEntropyLoss(),
        [(data.train_x[row], data.train_y[row]) for row in rows],
        optimizer,
        changes=[list(names) for names in STEPS.values() if names],
        steps=steps,
        run=Path(tempfile.mkdtemp(dir=FOLDER.name)) / "sigmoid",
    )
    tried = {row.folder: row for row in (what.unchanged, *what.tried)}
    table = pd.DataFrame([vars(tried["+".join(names)]) for names in STEPS.values()])
    table.insert(0, "net", list(STEPS))
    return table[["net", "decades", "early_speed", "loss", "spread", "verdict"]]


def draw(table: pd.DataFrame) -> Figure:
    """Draw the decades between last and first hidden layer."""
    return px.bar(table, x="net", y="decades", color="verdict")


def sentence(table: pd.DataFrame) -> str:
    """Say what one sees."""
    net = table.set_index("net")
    lost, loss = net["decades"], net["loss"]
    both = loss["ReLU, He, shortcuts"]
    exploded = "infinite" if not math.isfinite(both) else f"{both:.2g}"
    return (
        f"ReLU wins {lost['ReLU'] - lost['sigmoid']:.0f} of {-lost['sigmoid']:.0f} decades back,"
        f" He's weights the rest; yet the loss is {loss['ReLU, He']:.2g} then, and with shortcuts"
        f" around torch's own, smaller weights {loss['ReLU, shortcuts']:.2g}. Shortcuts around He's"
        f" make the gradient grow by {lost['ReLU, He, shortcuts']:+.1f} decades, and the loss"
        f" {exploded}."
    )


if __name__ == "__main__":
    result = measure()
    present("One step at a time", result, draw(result), sentence(result))
