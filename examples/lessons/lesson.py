"""What every lesson shares: recording a net for some steps, and showing what came out."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import pandas as pd
import torch
from plotly.graph_objects import Figure
from torch import Tensor, nn

import gradscope

sys.path.insert(0, str(Path(__file__).parents[1]))
import digits
import nets

__all__ = ["digits", "nets", "present", "record"]

FOLDER = tempfile.TemporaryDirectory()
"""Where the runs of a lesson are kept until it ends."""


def record(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    steps: int = 1,
    batch: int | None = None,
    lr: float = 0.0,
    loss_of: nn.Module | None = None,
    decay: bool = False,
    every: int = 1,
    name: str = "run",
) -> gradscope.Run:
    """Train `model` for `steps` steps of SGD with momentum and return what gradscope recorded.

    With the default learning rate of 0 the weights stay as they are: the net at initialisation.
    With `decay` it falls to 0 over the second half, so that the last step is no matter of luck.
    `batch` random rows make a step, or all of them; the training loss and error are logged.
    """
    loss_of = loss_of or nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    run = Path(tempfile.mkdtemp(dir=FOLDER.name)) / name
    with gradscope.watch(model, run=run, every=every) as scope:
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = lr * min(1, (step + 1) / 20)  # warm up
                if decay:
                    group["lr"] *= min(1, 2 * (1 - step / steps))
            rows = torch.randint(len(x), (batch,)) if batch else slice(None)
            optimizer.zero_grad()
            output = model(x[rows])
            loss = loss_of(output, y[rows])
            loss.backward()
            optimizer.step()
            scope.log(train_loss=loss)
            if step == steps - 1 and output.shape == (len(y[rows]), output.shape[-1]):
                with torch.no_grad():
                    scope.log(train_error=(model(x).argmax(1) != y).float().mean())
    return gradscope.load(run)


def present(title: str, table: pd.DataFrame, figure: Figure, sentence: str) -> None:
    """Print the table and the sentence, and open the figure in the browser unless told not to."""
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument(
        "--no-browser", action="store_true", help="print the table, do not open the figure"
    )
    parser.add_argument("--html", type=Path, help="write the figure to this file")
    args = parser.parse_args()
    print(f"{title}\n\n{table.to_string(index=False, float_format='{:.4g}'.format)}\n\n{sentence}")
    figure.update_layout(title=title)
    if args.html:
        figure.write_html(args.html)
    if not args.no_browser:
        figure.show()
