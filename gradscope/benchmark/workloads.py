"""What `gradscope bench` trains: four nets for the CPU and four for a GPU.

`deep` spends its time in Python, `resnet` and `resnet50` in convolutions, `gpt` and `gpt2` in
matrix products, `wide` in the memory traffic of its optimizer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from gradscope.benchmark.nets import Gpt, gpt2, mlp, resnet18, resnet50

FLOAT32, TF32, BFLOAT16 = "float32", "TF32", "bfloat16 autocast"


@dataclass(frozen=True)
class Workload:
    """A net, its optimizer and a batch of random data.

    Attributes
    ----------
    name, about : str
    model : builds the net
    optimizer : of the net's parameters
    batch : makes inputs and targets
    steps : int
        Of a block that is timed.
    precision : FLOAT32, TF32 or BFLOAT16
        As the net is trained where the device has it.
    """

    name: str
    about: str
    model: Callable[[], nn.Module]
    optimizer: Callable[[nn.Module], Optimizer]
    batch: Callable[[], tuple[Tensor, Tensor]]
    steps: int
    precision: str = FLOAT32

    def precision_on(self, device: torch.device) -> str:
        """Return the precision in which it is trained there: float32 where its own is missing."""
        return self.precision if _has(device, self.precision) else FLOAT32

    def said_of(self, device: torch.device) -> str:
        """Return a line on what is trained there."""
        own, here = self.precision, self.precision_on(device)
        why = "" if own == here else f", as there is no {own} here"
        return f"{self.name}: {self.about}, {here}{why}"


def _has(device: torch.device, precision: str) -> bool:
    if precision == TF32:
        return device.type == "cuda" and bool(torch.cuda.is_tf32_supported())
    if precision == BFLOAT16 and device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return precision == FLOAT32 or bool(torch.amp.is_autocast_available(device.type))


def classes(*shape: int, of: int) -> tuple[Tensor, Tensor]:
    """Return random inputs and classes."""
    return torch.randn(*shape), torch.randint(of, shape[:1])


def images(n: int, size: int, of: int) -> tuple[Tensor, Tensor]:
    """Return random images, channels last, and classes."""
    inputs, targets = classes(n, 3, size, size, of=of)
    return inputs.contiguous(memory_format=torch.channels_last), targets


def text(n: int, length: int, words: int) -> tuple[Tensor, Tensor]:
    """Return random words and the words that follow them."""
    drawn = torch.randint(words, (n, length + 1))
    return drawn[:, :-1], drawn[:, 1:].flatten()


ON_THE_CPU = (
    Workload(
        "deep",
        "MLP, 50 layers of 256, batch 128, Adam",
        lambda: mlp(50, 256, 256, 256, nn.ReLU),
        lambda model: Adam(model.parameters(), lr=1e-4),
        lambda: classes(128, 256, of=256),
        steps=30,
    ),
    Workload(
        "resnet",
        "ResNet-18 for CIFAR, batch 32, SGD with momentum",
        resnet18,
        lambda model: SGD(model.parameters(), lr=1e-3, momentum=0.9),
        lambda: classes(32, 3, 32, 32, of=10),
        steps=2,
    ),
    Workload(
        "gpt",
        "GPT, 6 layers of 256, 128 tokens, batch 8, AdamW",
        lambda: Gpt(layers=6, width=256, heads=8, words=1024, places=128),
        lambda model: AdamW(model.parameters(), lr=1e-4),
        lambda: text(8, 128, 1024),
        steps=2,
    ),
    Workload(
        "wide",
        "MLP, 4 layers of 4096, batch 32, Adam",
        lambda: mlp(4, 4096, 4096, 4096, nn.ReLU),
        lambda model: Adam(model.parameters(), lr=1e-5),
        lambda: classes(32, 4096, of=4096),
        steps=2,
    ),
)

ON_A_GPU = (
    Workload(
        "gpt2",
        "GPT-2 small, 124 M parameters, 1024 tokens, batch 8, fused AdamW",
        gpt2,
        lambda model: AdamW(model.parameters(), lr=1e-4, fused=True),
        lambda: text(8, 1024, 50304),
        steps=20,
        precision=BFLOAT16,
    ),
    Workload(
        "resnet50",
        "ResNet-50 for ImageNet, 224 x 224, channels last, batch 128, SGD with momentum",
        resnet50,
        lambda model: SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4),
        lambda: images(128, 224, 1000),
        steps=20,
        precision=BFLOAT16,
    ),
    Workload(
        "deep",
        "MLP, 50 layers of 256, batch 128, fused AdamW",
        lambda: mlp(50, 256, 64, 10, nn.Tanh),
        lambda model: AdamW(model.parameters(), lr=1e-4, fused=True),
        lambda: classes(128, 64, of=10),
        steps=60,
    ),
    Workload(
        "wide",
        "MLP, 6 layers of 4096, batch 512, fused AdamW",
        lambda: mlp(6, 4096, 4096, 10, nn.Tanh),
        lambda model: AdamW(model.parameters(), lr=1e-4, fused=True),
        lambda: classes(512, 4096, of=10),
        steps=60,
        precision=TF32,
    ),
)
