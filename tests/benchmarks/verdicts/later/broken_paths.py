"""No path from the loss to some weights; outputs that do not fit the loss or the targets."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import Batch, digits, images, seeded
from ..loops import adam, adamw, by_loss, supervised
from ..trainings import broken
from .broken_nets import (
    CUT,
    Built,
    DeepSet,
    DenseNet,
    ResNet,
    Sorter,
    Tagger,
    ViT,
    brackets,
    clips,
    nesterov,
    numbers,
    sets,
    signals,
    video_net,
)


@broken(
    "memory of a sorter's encoder kept with detach() Adam",
    "detach",
    "disconnected",
    layer="net.encoder.layers.0.linear1|net.encoder.layers.0.linear2|net.encoder.layers.1.linear1"
    "|net.encoder.layers.1.linear2|source|net.encoder.layers.0.self_attn|net.encoder.layers.0.norm1"
    "|net.encoder.layers.0.self_attn.out_proj",
    remedy=CUT,
)
def memory() -> Built:
    class Remembered(Sorter):
        def encoded(self, x: Tensor) -> Tensor:
            self.memory = super().encoded(x).detach()
            return self.memory

    model = Remembered()
    return model, supervised(model, adam(model, 3e-3), numbers)


@broken(
    "members of a set averaged by way of .data Nesterov",
    ".data",
    "disconnected",
    layer="inner.0|inner.2",
    remedy=CUT,
)
def members() -> Built:
    class Averaged(DeepSet):
        def pooled(self, told: Tensor) -> Tensor:
            mean = told.data[:, 0]
            for member in range(1, told.shape[1]):
                mean = mean + told.data[:, member]
            return mean / told.shape[1]

    model = Averaged()
    return model, supervised(model, nesterov(model, 0.05), sets, F.mse_loss)


@broken(
    "features of a residual net under a decorator of no_grad AdamW",
    "no_grad",
    "disconnected",
    layer="conv1|bn1|layer1.0.conv1|layer1.0.conv2|layer1.0.conv3",
    remedy=CUT,
)
def decorated() -> Built:
    class Probed(ResNet):
        @torch.no_grad()
        def features(self, x: Tensor) -> Tensor:
            return super().features(x)

    model = Probed()
    return model, supervised(model, adamw(model, 5e-3), images(32, 16, 1))


@broken(
    "spectrum of filtered signals taken by numpy RMSprop",
    "numpy",
    "disconnected",
    layer="filters",
    remedy=CUT,
)
def spectrum() -> Built:
    class Spectral(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.filters = nn.Conv1d(1, 12, 9, padding=4)
            self.head = nn.Sequential(nn.Linear(12 * 49, 32), nn.GELU(), nn.Linear(32, 4))

        def forward(self, x: Tensor) -> Tensor:
            wave = torch.tanh(self.filters(x)).detach().cpu().numpy()
            power = np.log1p(np.abs(np.fft.rfft(wave)))
            return self.head(torch.as_tensor(power, dtype=x.dtype).flatten(1))

    model = Spectral()
    return model, supervised(model, torch.optim.RMSprop(model.parameters(), lr=1e-3), signals)


@broken(
    "place to look at chosen by argmax of a score NAdam",
    "argmax",
    "disconnected",
    layer="score|score.0|score.2",
    remedy=CUT,
)
def glimpse() -> Built:
    class Glimpse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(1, 32, 5, 3)
            self.score = nn.Sequential(nn.Linear(32, 16), nn.Tanh(), nn.Linear(16, 1))
            self.head = nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 10))

        def forward(self, x: Tensor) -> Tensor:
            h = F.relu(self.patches(x)).flatten(2).transpose(1, 2)
            best = self.score(h)[..., 0].argmax(1)
            return self.head(h[torch.arange(len(h)), best])

    model = Glimpse()
    return model, supervised(
        model, torch.optim.NAdam(model.parameters(), lr=3e-3), images(32, 16, 1)
    )


@broken(
    "auxiliary classifier halfway through a DenseNet that nothing reads Nesterov",
    "module the loss does not use",
    "disconnected|unused",
    layer="aux|aux.0|aux.2",
    remedy="loss|use|take out|remove",
    information=True,
)
def auxiliary() -> Built:
    class Helped(DenseNet):
        def __init__(self) -> None:
            super().__init__()
            self.aux = nn.Sequential(nn.Linear(28, 24), nn.ReLU(), nn.Linear(24, 10))

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            for place, stage in enumerate(self.stages):
                x = torch.cat([x, stage(x)], 1)
                if place == 1:
                    self.halfway = self.aux(x.mean((2, 3)))
            return self.classifier(F.relu(self.norm(x)).mean((2, 3)))

    model = Helped()
    return model, supervised(model, nesterov(model, 0.05), images(32, 16, 1))


@broken(
    "vision transformer that ends in probabilities, by label-smoothed cross-entropy NAdam",
    "softmax twice",
    "output|double-softmax|double-activation|head",
    remedy="softmax|logits",
)
def probabilities() -> Built:
    class Likely(ViT):
        def forward(self, x: Tensor) -> Tensor:
            return F.softmax(super().forward(x), dim=-1)

    model = Likely()
    optimizer = torch.optim.NAdam(model.parameters(), lr=1e-3)
    loss = nn.CrossEntropyLoss(label_smoothing=0.05)
    return model, supervised(model, optimizer, images(32, 16, 1), loss)


@broken(
    "tags of brackets squashed before BCEWithLogitsLoss RMSprop",
    "sigmoid twice",
    "output|double-softmax|double-activation|head",
    remedy="sigmoid|logits|bceloss",
)
def tags() -> Built:
    class Squashed(Tagger):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).sigmoid()

    model = Squashed()
    optimizer = torch.optim.RMSprop(model.parameters(), lr=5e-3)
    return model, supervised(model, optimizer, brackets, nn.BCEWithLogitsLoss())


@broken(
    "sigmoid of the classes of clips before cross-entropy Nesterov",
    "sigmoid before cross-entropy",
    "output|double-softmax|double-activation|head|bounded-output",
    remedy="sigmoid|logits",
)
def classes() -> Built:
    model = video_net()
    model.append(nn.Sigmoid())
    return model, supervised(model, nesterov(model, 0.02), clips, nn.CrossEntropyLoss())


def weather(number: int) -> Batch:
    """Return temperatures of two days by the hour, (32, 48, 1), and the next one, (32,)."""
    source = seeded(number)
    mean = 12 + 8 * torch.rand(32, 1, generator=source)
    start = 24 * torch.rand(32, 1, generator=source)
    hours = start + torch.arange(49)
    heat = mean + 5 * torch.sin(hours * 6.2832 / 24)
    heat = heat + 0.3 * torch.randn(heat.shape, generator=source)
    return ((heat[:, :-1] - 16) / 6)[..., None], heat[:, -1]


@broken(
    "forecast of temperatures by a GRU whose output is tanh Adam",
    "output cannot reach its targets",
    "output|bounded-output|head|output-range|saturated|unreachable",
    remedy="target|range|linear|activation|normalis|remove",
    seen=30,
)
def forecast() -> Built:
    class Forecast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru = nn.GRU(1, 24, batch_first=True)
            self.head = nn.Sequential(nn.Linear(24, 1), nn.Tanh())

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.gru(x)[0][:, -1])[:, 0]

    model = Forecast()
    return model, supervised(model, adam(model, 2e-2), weather, F.l1_loss)


@broken(
    "standardised digits written by a sigmoid in an autoencoder AdamW",
    "output cannot reach its targets",
    "output|bounded-output|head|output-range|saturated|unreachable",
    remedy="target|range|linear|activation|normalis|remove|cross",
    seen=100,
)
def standardised() -> Built:
    model = nn.Sequential(
        nn.Linear(64, 96), nn.SiLU(), nn.Linear(96, 24), nn.Linear(24, 96), nn.SiLU(),
        nn.Linear(96, 64), nn.Sigmoid(),
    )  # fmt: skip
    batches = digits()

    def loss_of(number: int) -> Tensor:
        x, _ = batches(number)
        return F.mse_loss(model(x), x)

    return model, by_loss(adamw(model, 3e-3), loss_of)
