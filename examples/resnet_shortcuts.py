"""Train torchvision's ResNet-18 and its plain twin, and see what its shortcuts carry.

    python examples/resnet_shortcuts.py

Both nets have the same layers and start from the same weights; the twin does not add the block's
input to its output. Data: scikit-learn's handwritten digits, enlarged to 32x32 pixels.
Writes one run a net under runs/ and opens the dashboard: its flow map shows the same as the tables.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

import digits
import gradscope
import running

try:
    from torchvision.models.resnet import BasicBlock, ResNet
except ImportError:
    raise SystemExit(
        "this example needs torchvision: pip install 'gradscope-torch[examples]'"
    ) from None

BLOCKS = [2, 2, 2, 2]
BATCH = 32


def main() -> None:
    """Train both nets, and print what reaches their layers, and by which way."""
    args = running.arguments("Train a ResNet-18 and its plain twin; show the shortcuts.", 40)
    torch.manual_seed(0)
    residual = ResNet(BasicBlock, BLOCKS, num_classes=10)
    runs = []
    for name, model in (("resnet18", residual), ("plain18", plain_twin(residual))):
        folder = running.free_folder(args.runs, name)
        train(model, folder, args.steps, args.device)
        runs.append(gradscope.load(folder))
    print_blocks(runs[0])
    print_signals(*runs)
    running.open_dashboard(args)


def plain_twin(model: ResNet) -> ResNet:
    """Return a copy of `model` whose blocks are their branches alone, with the same weights."""
    twin = copy.deepcopy(model)
    for stage in (twin.layer1, twin.layer2, twin.layer3, twin.layer4):
        for i, block in enumerate(stage):
            branch = {
                name: getattr(block, name) for name in ("conv1", "bn1", "relu", "conv2", "bn2")
            }
            stage[i] = nn.Sequential(OrderedDict(**branch, last_relu=block.relu))
    return twin


def train(model: nn.Module, folder: Path, steps: int, device: str) -> None:
    """Train `model` on the digits; every tenth step its shortcuts are cut in a second backward."""
    data = digits.load()
    images = nn.functional.interpolate(data.train_x.view(-1, 1, 8, 8), scale_factor=4.0)
    images, labels = images.expand(-1, 3, -1, -1).to(device), data.train_y.to(device)
    model.to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    torch.manual_seed(1)
    with gradscope.watch(model, run=folder, cut="shortcuts", cut_every=10) as scope:
        for _ in tqdm(range(steps), folder.name):
            rows = torch.randint(len(images), (BATCH,))
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images[rows]), labels[rows])
            loss.backward()
            optimizer.step()
            scope.log(train_loss=loss)


def print_blocks(run: gradscope.Run) -> None:
    """Print for each shortcut how the gradient at the block's input is divided."""
    medians = run.shortcut_readings.groupby("shortcut").median()
    print(f"\n{run.name}: the gradient at each block's input, medians over the steps\n")
    print(f"{'block':10}{'form':12}{'total':>10}{'via shortcut':>14}{'via branch':>12}", end="")
    print(f"{'cosine':>8}{'energy share':>14}{'|F(x)|/|S(x)|':>15}")
    for shortcut, reading in zip(run.shortcuts.itertuples(), medians.itertuples(), strict=True):
        print(
            f"{shortcut.name:10}{shortcut.form:12}{reading.total_norm:10.2e}"
            f"{reading.shortcut_norm:14.2e}{reading.branch_norm:12.2e}{reading.cosine:8.2f}"
            f"{reading.energy_share:14.2f}{reading.branch_ratio:15.2f}"
        )
    print("\nThe two parts add up to the total as vectors; their norms do not.")


def print_signals(residual: gradscope.Run, plain: gradscope.Run) -> None:
    """Print the signal at each convolution: with shortcuts, with these cut, and without any."""
    frame = residual.frame().dropna(subset="cut_signal_norm")
    both = frame.groupby("name")[["signal_norm", "cut_signal_norm"]].median()
    twin = plain.frame().groupby("name")["signal_norm"].median()
    order = residual.layers.query("kind == 'Conv2d'")["name"]
    print(f"\nSignal |dL/d(output)|\n\n{'layer':22}{'ResNet':>10}{'cut':>10}{'plain':>10}")
    for name in order[order.isin(twin.index)]:
        print(f"{name:22}{both.signal_norm[name]:10.2e}{both.cut_signal_norm[name]:10.2e}", end="")
        print(f"{twin[name]:10.2e}")
    print(
        "\nA net with its shortcuts cut is not the plain net: the cut stops the gradient in"
        "\nbackward only, while the plain net lacks the shortcuts in its forward pass, too."
    )


if __name__ == "__main__":
    main()
