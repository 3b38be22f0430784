"""Ask what would make a plain net of 50 layers learn, instead of guessing.

    python examples/what_if.py

The net does not learn: its gradient loses twelve decades on the way to the first layer. `what_if`
tries what fits that finding on copies of it, on scikit-learn's handwritten digits, and prints which
change helps, by how much, and at what cost. The net itself stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

import digits
import gradscope
import nets
import running

DEPTH = 50
BATCH = 64


def setup() -> tuple[nn.Module, nn.Module, Iterator[tuple[Tensor, Tensor]], torch.optim.Optimizer]:
    """Return model, loss, batches and optimizer: what `gradscope what-if` asks a script for."""
    torch.manual_seed(0)
    model = nets.plain(DEPTH)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    return model, nn.CrossEntropyLoss(), batches(), optimizer


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    """Yield random batches of digits."""
    data = digits.load()
    while True:
        rows = torch.randint(len(data.train_x), (BATCH,))
        yield data.train_x[rows], data.train_y[rows]


def main() -> None:
    """Ask, print the table and the diagnosis, and open the dashboard."""
    args = running.arguments("Ask what would make a plain net of 50 layers learn.", steps=50)
    model, loss_fn, data, optimizer = setup()
    model.to(args.device)
    folder = running.free_folder(args.runs, f"plain-{DEPTH}")
    what = gradscope.what_if(model, loss_fn, data, optimizer, steps=args.steps, run=folder)
    print(what)
    print()
    print(gradscope.diagnose(gradscope.load(folder)))
    running.open_dashboard(args)


if __name__ == "__main__":
    main()
