"""Does what_if find the known cure? Nets with one fault each, and healthy ones.

    python tests/benchmarks/what_if.py [NAME ...]

Prints a line a net: whether the first line of what_if's table is the cure, or for a healthy net,
whether it says that nothing helps. The faults `KNOWN` are among those that practitioners report
most; those of `TUNED_ON` showed what was missing. `LATER` were made, each with its cure, once the
code stood: five of six were right when first asked, the LSTM's gates were mended afterwards. Some
minutes in all; `-v` prints the tables.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
import digits
import gradscope
import nets

Batch = tuple[Tensor, Tensor]
DRAWN = ("He weights", "Xavier weights", "orthogonal weights", "LSUV weights")
OTHER_ACTIVATION = (
    "ReLU activations, He weights",
    "GELU activations, He weights",
    "tanh for sigmoid",
)
FASTER = ("learning rate x 10", "learning rate for an update speed of 0.01")
SLOWER = ("learning rate x 1/10", "learning rate x 1/3")


class Case(NamedTuple):
    """A net, and by which changes it is cured: none, if it is healthy."""

    make: Callable[[], tuple[nn.Module, torch.optim.Optimizer, list[Batch]]]
    cures: tuple[str, ...] = ()


def of_digits(count: int = 50, size: int = 64, image: bool = False) -> list[Batch]:
    """Batches of handwritten digits."""
    data = digits.load()
    rows = torch.Generator().manual_seed(0)

    def draw() -> Iterator[Batch]:
        for _ in range(count):
            chosen = torch.randint(len(data.train_x), (size,), generator=rows)
            x = data.train_x[chosen]
            yield (x.reshape(-1, 1, 8, 8) if image else x), data.train_y[chosen]

    return list(draw())


def sgd(model: nn.Module, lr: float = 0.01) -> torch.optim.Optimizer:
    """SGD with momentum."""
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)


def mlp(depth: int, width: int = 64, act: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """`depth` layers in one Sequential."""
    sizes = [64, *[width] * (depth - 1)]
    hidden = [part for a, b in itertools.pairwise(sizes) for part in (nn.Linear(a, b), act())]
    return nn.Sequential(*hidden, nn.Linear(width, 10))


# --- faults that practitioners report ------------------------------------------------------------


def only_the_head_in_the_optimizer():
    model = nn.Sequential(
        nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3), nn.Tanh(), nn.Linear(3, 64), nn.ReLU(),
        nn.Linear(64, 10),
    )  # fmt: skip
    return model, torch.optim.SGD(model[-1].parameters(), lr=0.05, momentum=0.9), of_digits()


def constant_weights():
    model = mlp(4)
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.02)
    return model, sgd(model, 0.05), of_digits()


def softmax_before_the_loss():
    model = nn.Sequential(mlp(3), nn.Softmax(1))
    return model, sgd(model, 0.05), of_digits()


def dropout_of_95_percent():
    model = nn.Sequential(
        nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.95),
        nn.Linear(128, 128), nn.ReLU(), nn.Dropout(0.95), nn.Linear(128, 10),
    )  # fmt: skip
    return model, sgd(model, 0.05), of_digits()


def tanh_at_a_rate_of_5():
    model = mlp(4, act=nn.Tanh)
    return model, sgd(model, 5.0), of_digits()


class Reader(nn.Module):
    """A recurrent net that is asked at the end what it saw at the start."""

    def __init__(self, cell: type[nn.Module]) -> None:
        super().__init__()
        self.rnn = cell(4, 64, batch_first=True)
        self.head = nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


def remembered(length: int, count: int = 50, size: int = 64) -> list[Batch]:
    """Sequences whose class is shown at the first step, and noise after it."""
    g = torch.Generator().manual_seed(0)
    found = []
    for _ in range(count):
        y = torch.randint(4, (size,), generator=g)
        x = 0.1 * torch.randn(size, length, 4, generator=g)
        x[torch.arange(size), 0, y] += 2
        found.append((x, y))
    return found


def rnn_through_100_steps():
    model = Reader(nn.RNN)
    return model, torch.optim.Adam(model.parameters(), 1e-3), remembered(100)


# --- faults that showed what was missing ---------------------------------------------------------


def sigmoid_8():
    model = mlp(8, act=nn.Sigmoid)
    return model, sgd(model, 0.1), of_digits()


def residual_24_he():
    model = nets.residual(50, activation=nn.ReLU)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    return model, sgd(model, 0.01), of_digits()


def weights_of_deviation_one():
    model = mlp(8)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight)
    return model, sgd(model, 0.01), of_digits()


def rate_of_1e_4():
    model = mlp(3)
    return model, sgd(model, 1e-4), of_digits()


def batchnorm_in_eval():
    layers = [
        part for _ in range(18) for part in (nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU())
    ]
    model = nn.Sequential(*layers, nn.Linear(64, 10)).eval()
    return model, sgd(model, 0.05), of_digits()


def plain_convolutions_20():
    body = [part for _ in range(18) for part in (nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())]
    head = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10)]
    model = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), *body, *head)
    return model, sgd(model, 0.02), of_digits(image=True)


# --- made once the code stood --------------------------------------------------------------------


class Listed(nn.Module):
    """Hidden layers where torch does not find them."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = [nn.Linear(64, 64), nn.Linear(64, 3), nn.Linear(3, 64)]
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.hidden:
            x = torch.tanh(layer(x))
        return self.head(x)


def layers_in_a_list():
    model = Listed()
    return model, sgd(model, 0.05), of_digits()


def lstm_through_100_steps():
    model = Reader(nn.LSTM)
    return model, torch.optim.Adam(model.parameters(), 3e-3), remembered(100)


def biases_of_minus_5():
    model = mlp(5)
    for module in model[:-1]:
        if isinstance(module, nn.Linear):
            nn.init.constant_(module.bias, -5)
    return model, sgd(model, 0.05), of_digits()


def plain_tanh_40():
    model = nets.plain(40, 48)
    return model, sgd(model, 0.02), of_digits()


def adam_at_a_tenth():
    model = mlp(5)
    return model, torch.optim.Adam(model.parameters(), 0.1), of_digits()


class Squashed(nn.Module):
    """A sigmoid behind the last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(3, act=nn.Tanh)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.body(x))


def sigmoid_before_the_loss():
    model = Squashed()
    return model, sgd(model, 0.05), of_digits()


# --- healthy nets --------------------------------------------------------------------------------


def residual_50():
    model = nets.residual(50)
    return model, sgd(model), of_digits()


def small_mlp_adam():
    model = mlp(3)
    return model, torch.optim.Adam(model.parameters(), 3e-3), of_digits()


def small_resnet():
    model = nets.conv_net()
    return model, sgd(model, 0.05), of_digits(image=True)


def plain_convolutions():
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10),
    )  # fmt: skip
    return model, sgd(model, 0.05), of_digits(image=True)


def highway_20():
    model = nets.highway(20)
    return model, sgd(model, 0.5), of_digits()


class Characters(nn.Module):
    """A transformer of two blocks over the characters of a text."""

    def __init__(self, letters: int, width: int = 64) -> None:
        super().__init__()
        self.letters = nn.Embedding(letters, width)
        self.places = nn.Parameter(0.02 * torch.randn(32, width))
        layer = nn.TransformerEncoderLayer(width, 4, 128, 0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, letters)

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        h = self.letters(x) + self.places
        return self.head(self.blocks(h, mask, is_causal=True)).transpose(1, 2)


def small_transformer():
    text = (Path(nn.__file__).parent / "modules" / "linear.py").read_text()
    letters = sorted(set(text))
    codes = torch.tensor([letters.index(letter) for letter in text])
    g = torch.Generator().manual_seed(0)
    data = []
    for _ in range(50):
        starts = torch.randint(len(codes) - 33, (32, 1), generator=g)
        piece = codes[starts + torch.arange(33)]
        data.append((piece[:, :-1], piece[:, 1:]))
    model = Characters(len(letters))
    return model, torch.optim.AdamW(model.parameters(), 3e-3), data


KNOWN = {
    "only the head in the optimizer": Case(
        only_the_head_in_the_optimizer, ("every layer trained",)
    ),
    "constant weights": Case(constant_weights, ("He weights, as all units were alike", *DRAWN)),
    "softmax before the loss": Case(
        softmax_before_the_loss, ("no softmax before the loss, which takes its own",)
    ),
    "dropout of 95 %": Case(dropout_of_95_percent, ("dropout lowered to 0.1",)),
    "tanh at a rate of 5": Case(tanh_at_a_rate_of_5, SLOWER),
    "RNN through 100 steps": Case(rnn_through_100_steps, ("orthogonal recurrent weights",)),
}
TUNED_ON = {
    "sigmoid-8": Case(sigmoid_8, OTHER_ACTIVATION),
    "residual-50, He, no norm": Case(
        residual_24_he,
        (
            "branches times 1/sqrt(number of blocks)",
            "branches times a learned scale that starts at 0",
            "last layer of each branch started at zero",
        ),
    ),
    "weights of deviation 1": Case(weights_of_deviation_one, DRAWN),
    "a rate of 1e-4": Case(rate_of_1e_4, FASTER),
    "BatchNorm in eval": Case(batchnorm_in_eval, ("training mode, model.train()",)),
    "plain convolutions, 20": Case(plain_convolutions_20, DRAWN),
}
LATER = {
    "layers in a Python list": Case(layers_in_a_list, ("every layer trained",)),
    "LSTM through 100 steps": Case(lstm_through_100_steps, ("orthogonal recurrent weights",)),
    "biases of -5": Case(biases_of_minus_5, DRAWN),
    "plain tanh, 40": Case(plain_tanh_40, ("shortcuts around pairs of layers",)),
    "Adam at 0.1": Case(adam_at_a_tenth, SLOWER),
    "sigmoid before the loss": Case(
        sigmoid_before_the_loss, ("no softmax before the loss, which takes its own",)
    ),
}
HEALTHY = {
    "residual-50": Case(residual_50),
    "MLP, Adam": Case(small_mlp_adam),
    "ResNet with BatchNorm": Case(small_resnet),
    "convolutions": Case(plain_convolutions),
    "highway-20": Case(highway_20),
    "transformer": Case(small_transformer),
}


def ask(name: str, case: Case, folder: Path) -> bool:
    """Ask what would help a net, print a line, and return whether the answer is right."""
    torch.manual_seed(0)
    model, optimizer, data = case.make()
    began = time.monotonic()
    what = gradscope.what_if(model, nn.CrossEntropyLoss(), data, optimizer, run=folder / name)
    best = what.best
    right = (best is None) if not case.cures else (best is not None and best.change in case.cures)
    base = what.unchanged
    told = "nothing helps" if best is None else best.change
    second = [row.change for row in what.tried if row.helps][1:3]
    print(
        f"{'right' if right else 'WRONG'} | {name} | {base.verdict.partition(':')[0]} | {told} |"
        f" {base.first_loss:.3g} -> {base.loss:.3g} | {best.loss if best else float('nan'):.3g} |"
        f" {'; '.join(second)} | {len(what.tried)} tried, {time.monotonic() - began:.0f} s",
        flush=True,
    )
    if "-v" in sys.argv:
        print(what, flush=True)
    return right


def main() -> None:
    """Ask of the nets that are named, or of all."""
    cases = {**KNOWN, **TUNED_ON, **LATER, **HEALTHY}
    chosen = [name for name in sys.argv[1:] if name in cases] or list(cases)
    print("answer | net | verdict | first line | loss unchanged | loss with it | next | tried")
    with tempfile.TemporaryDirectory() as folder:
        right = {name: ask(name, cases[name], Path(folder)) for name in chosen}
    for kind, group in (
        ("reported and later ones", {**KNOWN, **LATER}),
        ("those tuned on", TUNED_ON),
        ("healthy nets", HEALTHY),
    ):
        asked = [right[name] for name in group if name in right]
        print(f"{kind}: {sum(asked)} of {len(asked)} right")


if __name__ == "__main__":
    main()
