"""Runs of every kind to look at the dashboard with: `python tests/benchmarks/gallery.py FOLDER`.

Each name is a folder of runs, made once and kept. `live` and `paused` train until this ends:
`python tests/benchmarks/gallery.py FOLDER --live`. Pictures of all views of all runs, and what axe
finds wrong with them: `python tests/benchmarks/gallery.py FOLDER --pictures OUT`.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

sys.path[:0] = [str(Path(__file__).parents[1] / "support"), str(Path(__file__).parents[2])]

import gradscope  # noqa: E402
import synthetic  # noqa: E402
import with_tries  # noqa: E402
from examples import nets  # noqa: E402
from gradscope.storage.writer import RunWriter  # noqa: E402

Batch = tuple[Tensor, Tensor]


def digits(steps: int, side: int | None = None, channels: int = 1) -> Iterator[Batch]:
    """Yield batches of noisy class prototypes: easy to learn, the same for every net."""
    torch.manual_seed(1)
    shape = (64,) if side is None else (channels, side, side)
    prototypes = torch.randn(10, *shape)
    for _ in range(steps):
        y = torch.randint(0, 10, (32 if side is None else 8,))
        yield prototypes[y] + 0.5 * torch.randn(len(y), *shape), y


def train(
    path: Path,
    model: nn.Module,
    batches: Iterator[Batch],
    lr: float = 0.05,
    *,
    kind: Callable[..., torch.optim.Optimizer] = torch.optim.SGD,
    each: Callable[[int, gradscope.Scope, torch.optim.Optimizer], None] | None = None,
    loss_of: Callable[[nn.Module, Batch], Tensor] | None = None,
    **watching: object,
) -> None:
    """Train and record into `path`."""
    if path.exists():
        return
    optimizer = kind(model.parameters(), lr=lr)
    scope = gradscope.watch(model, path, **watching)
    for step, batch in enumerate(batches):
        loss = (
            nn.functional.cross_entropy(model(batch[0]), batch[1])
            if loss_of is None
            else loss_of(model, batch)
        )
        loss.backward()
        optimizer.step()
        scope.log(train_loss=loss, lr=optimizer.param_groups[0]["lr"])
        if each is not None:
            each(step, scope, optimizer)
        optimizer.zero_grad()
    scope.close()


def pair(folder: Path) -> None:
    for name, make in (("plain-50", nets.plain), ("residual-50", nets.residual)):
        torch.manual_seed(0)
        train(folder / name, make(50, 32), digits(150), 0.02, cut="shortcuts", config={"depth": 50})


def resnet(folder: Path) -> None:
    from torchvision.models import resnet18

    def halve(step: int, scope: gradscope.Scope, optimizer: torch.optim.Optimizer) -> None:
        if step == 60:
            optimizer.param_groups[0]["lr"] *= 0.1
            scope.mark("lr to a tenth")

    torch.manual_seed(0)
    train(folder / "resnet18", resnet18(num_classes=10), digits(100, 32, 3), 0.05, each=halve)


def resnet50(folder: Path) -> None:
    from torchvision.models import resnet50 as make

    torch.manual_seed(0)
    train(folder / "resnet50", make(num_classes=10), digits(15, 32, 3), 0.01)


def language(path: Path, layers: int, steps: int) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=96, n_positions=32, n_embd=64, n_layer=layers, n_head=4)

    def text() -> Iterator[Batch]:
        for _ in range(steps):
            start = torch.randint(0, 90, (8, 1))
            ids = (start + torch.arange(32)) % 90
            yield ids, ids

    train(
        path,
        GPT2LMHeadModel(config),
        text(),
        1e-3,
        kind=torch.optim.AdamW,
        loss_of=lambda model, batch: model(batch[0], labels=batch[1]).loss,
    )


def gpt(folder: Path) -> None:
    language(folder / "gpt", 4, 150)


def gpt2(folder: Path) -> None:
    language(folder / "gpt2-12", 12, 40)


class UNet(nn.Module):
    """Three scales, skip connections that are concatenated."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()

        def double(inputs: int, outputs: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(inputs, outputs, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(outputs, outputs, 3, padding=1),
                nn.ReLU(),
            )

        self.down1, self.down2 = double(1, width), double(width, 2 * width)
        self.middle = double(2 * width, 4 * width)
        self.up2 = nn.ConvTranspose2d(4 * width, 2 * width, 2, 2)
        self.join2 = double(4 * width, 2 * width)
        self.up1 = nn.ConvTranspose2d(2 * width, width, 2, 2)
        self.join1 = double(2 * width, width)
        self.head = nn.Conv2d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.down1(x)
        two = self.down2(nn.functional.max_pool2d(one, 2))
        low = self.middle(nn.functional.max_pool2d(two, 2))
        two = self.join2(torch.cat([two, self.up2(low)], 1))
        one = self.join1(torch.cat([one, self.up1(two)], 1))
        return self.head(one)


def unet(folder: Path) -> None:
    torch.manual_seed(0)
    train(
        folder / "unet",
        UNet(),
        digits(60, 16),
        1e-3,
        kind=torch.optim.Adam,
        loss_of=lambda model, batch: (model(batch[0]) - batch[0].relu()).square().mean(),
    )


def nan(folder: Path) -> None:
    def warm(step: int, scope: gradscope.Scope, optimizer: torch.optim.Optimizer) -> None:
        optimizer.param_groups[0]["lr"] = 0.02 * 1.12**step

    torch.manual_seed(0)
    model = nets.residual(22, 32, nn.ReLU)
    train(folder / "nan-at-the-end", model, digits(90), 0.02, each=warm)


def dead(folder: Path) -> None:
    torch.manual_seed(0)
    model = nets.plain(10, 32, nn.ReLU)
    with torch.no_grad():
        model.blocks[4][0].bias.fill_(-20)
    train(folder / "dead-relu", model, digits(80), 0.05)


def sigmoid(folder: Path) -> None:
    torch.manual_seed(0)
    train(folder / "sigmoid-20", nets.plain(20, 32, nn.Sigmoid), digits(120), 0.1)


def sweep(folder: Path) -> None:
    for lr in np.geomspace(1e-4, 10, 12):
        torch.manual_seed(0)
        train(
            folder / f"lr-{lr:.2g}",
            nets.residual(12, 32, nn.ReLU),
            digits(80),
            float(lr),
            config={"lr": float(f"{lr:.3g}"), "net": "residual", "depth": 12},
        )


def sixty(folder: Path) -> None:
    for depth, lr in itertools.product((4, 6, 8, 12, 16, 20), np.geomspace(1e-3, 3, 10)):
        torch.manual_seed(0)
        train(
            folder / f"d{depth}-lr{lr:.2g}",
            nets.plain(depth, 16),
            digits(30),
            float(lr),
            config={"lr": float(f"{lr:.3g}"), "depth": depth},
        )


def five_hundred(folder: Path) -> None:
    for number in range(500):
        path = folder / f"run-{number:03}"
        if not path.exists():
            writer = RunWriter(path, {"model": "Net", "every": 1, "config": {"lr": number / 1000}})
            writer.update(layers=synthetic.layer_table(9))
            rows = synthetic.layer_rows(9, np.arange(30), decades=number / 50)
            writer.add_rows("layers", rows)
            writer.add_rows("steps", synthetic.step_rows(np.arange(30), number / 500))
            writer.close()


def tried(folder: Path) -> None:
    if not (folder / "plain").exists():
        with_tries.with_tries(folder / "plain")


def one_layer(folder: Path) -> None:
    torch.manual_seed(0)
    train(folder / "one-layer", nn.Linear(64, 10), digits(60), 0.1)


def deep(folder: Path) -> None:
    torch.manual_seed(0)
    train(folder / "residual-302", nets.residual(302, 16), digits(40), 0.01)


def empty(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)


def killed(folder: Path) -> None:
    if not (folder / "killed").exists():
        process = multiprocessing.get_context("spawn").Process(
            target=_forever, args=(folder / "killed",)
        )
        process.start()
        _wait_for_steps(folder / "killed")
        os.kill(process.pid, signal.SIGKILL)
        process.join()


def _wait_for_steps(path: Path, steps: int = 30) -> None:
    while True:
        with suppress(Exception):
            if len(gradscope.load(path).steps) >= steps:
                return
        time.sleep(0.2)


def _forever(path: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)

    def wait(*_: object) -> None:
        time.sleep(0.05)

    train(path, nets.residual(16, 32), digits(100_000), 0.05, each=wait)


GALLERY = (
    empty,
    pair,
    nan,
    dead,
    sigmoid,
    one_layer,
    tried,
    sweep,
    resnet,
    gpt,
    unet,
    killed,
    five_hundred,
    sixty,
    deep,
    gpt2,
    resnet50,
)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("folder", type=Path)
    options.add_argument("--live", action="store_true")
    options.add_argument("--pictures", type=Path, metavar="OUT")
    options.add_argument("--only", nargs="+", default=(), help="folders to take pictures of")
    options.add_argument("--width", type=int, nargs="+", choices=(1440, 390), default=())
    options.add_argument("--theme", choices=("light", "dark"), help="the one to take pictures in")
    asked = options.parse_args()
    torch.set_num_threads(1)
    if asked.pictures:
        from pictures import take

        themes = (asked.theme,) if asked.theme else ("light", "dark")
        take(asked.folder, asked.pictures, asked.only, themes, asked.width)
        return
    if asked.live:
        spawn = multiprocessing.get_context("spawn")
        named = {name: asked.folder / name / name for name in ("live", "paused")}
        processes = {
            name: spawn.Process(target=_forever, args=(path,)) for name, path in named.items()
        }
        for process in processes.values():
            process.start()
        _wait_for_steps(named["paused"])
        os.kill(processes["paused"].pid, signal.SIGSTOP)
        for process in processes.values():
            process.join()
    for make in GALLERY:
        began = time.monotonic()
        make(asked.folder / make.__name__.replace("_", "-"))
        print(f"{make.__name__}: {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
