"""Train a deep plain net and the same net with shortcuts, and look at their gradients.

    python examples/plain_vs_residual.py

Both nets have 50 layers, the same modules and the same initial weights; the second one adds an
identity shortcut around every two layers. Data: scikit-learn's handwritten digits.
Writes one run a net under runs/, the readings of both to report.csv, and opens the dashboard.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

import digits
import gradscope
import nets
import running

DEPTH = 50
BATCH = 64


def main() -> None:
    """Train both nets, report, and open the dashboard."""
    args = running.arguments(
        "Train a deep plain net and its residual twin, and look at their gradients.", steps=400
    )
    runs = []
    for build in (nets.plain, nets.residual):
        torch.manual_seed(0)
        folder = running.free_folder(args.runs, f"{build.__name__}-{DEPTH}")
        train(build(DEPTH), folder, args.steps, args.device)
        runs.append(gradscope.load(folder))

    print_table(runs)
    frames = {run.name: run.frame() for run in runs}
    pd.concat(frames, names=["run"]).reset_index(level="run").to_csv("report.csv", index=False)
    print(f"\nReadings: report.csv, runs: {', '.join(str(run.path) for run in runs)}")

    running.open_dashboard(args)


def train(model: nn.Module, folder: Path, steps: int, device: str) -> None:
    """Train `model` on the digits for `steps` steps; watching it takes the two `scope` lines."""
    data = digits.Digits(*(tensor.to(device) for tensor in digits.load()))
    model.to(device)
    loss_of = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    with gradscope.watch(model, run=folder) as scope:
        for step, rows in enumerate(tqdm(batches(steps, len(data.train_x)), folder.name, steps)):
            optimizer.zero_grad()
            loss = loss_of(model(data.train_x[rows]), data.train_y[rows])
            loss.backward()
            optimizer.step()
            scope.log(train_loss=loss)

            if step % 25 == 0 or step == steps - 1:
                with torch.no_grad():
                    train_output, val_output = model(data.train_x), model(data.val_x)
                scope.log(
                    val_loss=loss_of(val_output, data.val_y),
                    train_error=error(train_output, data.train_y),
                    val_error=error(val_output, data.val_y),
                )


def batches(steps: int, size: int) -> Iterator[Tensor]:
    """Yield the rows of `steps` random batches."""
    for _ in range(steps):
        yield torch.randint(size, (BATCH,))


def error(output: Tensor, target: Tensor) -> Tensor:
    """Return the share of wrong answers."""
    return (output.argmax(1) != target).float().mean()


def print_table(runs: list[gradscope.Run]) -> None:
    """Print for each run the gradient early and late in the net, the accuracy and the verdict."""
    print(f"\n{'run':16}{'first layer':>13}{'last hidden':>13}{'train acc.':>12}  verdict")
    diagnoses = [gradscope.diagnose(run) for run in runs]
    for run, diagnosis in zip(runs, diagnoses, strict=True):
        errors = run.steps["train_error"].dropna()
        print(
            f"{run.name:16}{diagnosis.early_signal:13.1e}{diagnosis.late_signal:13.1e}"
            f"{1 - errors.iloc[-1]:12.1%}  {diagnosis.verdict}"
        )
    for diagnosis in diagnoses:
        print(f"\n{diagnosis.run}: {diagnosis.summary}")


if __name__ == "__main__":
    main()
