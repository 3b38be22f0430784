"""No path from the loss, losses that do not fit the output, nets that starve or collapse."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import digits, images, seeded
from ..loops import adam, adamw, by_loss, sgd, supervised
from ..trainings import Scalars, Step, broken
from .nets import CUT, Language, conv_net, of_characters, of_pictures


@broken(
    "code of a convolutional autoencoder taken from .data Adam",
    "detach",
    "disconnected",
    layer="encoder.0|encoder.2",
    remedy=CUT,
)
def code() -> tuple[nn.Module, Step]:
    model = nn.ModuleDict(
        {
            "encoder": nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 4, 3, 2, 1)),
            "decoder": nn.Sequential(
                nn.ConvTranspose2d(4, 8, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(8, 1, 4, 2, 1)
            ),
        }
    )
    batches = images(32, 12, 1)

    def loss_of(number: int) -> Tensor:
        x, _ = batches(number)
        return F.mse_loss(model["decoder"](model["encoder"](x).data), x)

    return model, by_loss(adam(model), loss_of)


@broken(
    "words chosen by argmax between two nets AdamW",
    "argmax",
    "disconnected",
    layer="writer.0|writer.2",
    remedy=CUT,
)
def words() -> tuple[nn.Module, Step]:
    model = nn.ModuleDict(
        {
            "writer": nn.Sequential(nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, 32)),
            "reader": nn.Sequential(nn.Embedding(32, 24), nn.Linear(24, 10)),
        }
    )
    batches = digits()

    def loss_of(number: int) -> Tensor:
        x, y = batches(number)
        return F.cross_entropy(model["reader"](model["writer"](x).argmax(1)), y)

    return model, by_loss(adamw(model), loss_of)


@broken(
    "encoder of a graph net with gradients switched off SGD",
    "no_grad",
    "disconnected",
    layer="first",
    remedy=CUT,
)
def switched_off() -> tuple[nn.Module, Step]:
    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(64, 32), nn.Linear(32, 32)
            self.head = nn.Linear(32, 10)

        def forward(self, x: Tensor) -> Tensor:
            near = (x @ x.T / 8).softmax(1)
            with torch.set_grad_enabled(False):
                x = F.relu(near @ self.first(x))
            return self.head(F.relu(near @ self.second(x)))

    model = Graph()
    return model, supervised(model, sgd(model), digits())


@broken(
    "filter of numpy between two convolutions Adam",
    "numpy",
    "disconnected",
    layer="0",
    remedy=CUT,
)
def filtered() -> tuple[nn.Module, Step]:
    class Sharpened(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            values = x.detach().numpy()
            return torch.from_numpy(2 * values - values.mean((2, 3), keepdims=True))

    model = conv_net()
    model.insert(2, Sharpened())
    return of_pictures(model, adam(model))


@broken(
    "second view's encoder that the loss leaves out Adam",
    "module the loss does not use",
    "disconnected",
    layer="second.0|second.2",
    remedy="loss|use|take out",
    information=True,
)
def unused() -> tuple[nn.Module, Step]:
    def tower() -> nn.Sequential:
        return nn.Sequential(nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU())

    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = tower(), tower(), nn.Linear(16, 10)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            first, second = self.first(x[:, :32]), self.second(x[:, 32:])
            return self.head(first), second

    model = Views()
    return model, supervised(
        model, adam(model), digits(), lambda out, y: F.cross_entropy(out[0], y)
    )


@broken(
    "softmax layer at the end of a conv net Adam",
    "softmax twice",
    "output",
    remedy="softmax",
)
def softmax() -> tuple[nn.Module, Step]:
    model = conv_net()
    model.append(nn.Softmax(dim=1))
    return of_pictures(model, adam(model))


@broken(
    "probabilities given to nll_loss SGD",
    "nll_loss of probabilities",
    "output",
    remedy="log_softmax|logarithm|cross_entropy",
)
def likelihood() -> tuple[nn.Module, Step]:
    model = nn.Sequential(nn.Linear(64, 40), nn.GELU(), nn.Linear(40, 10), nn.Softmax(dim=1))
    return model, supervised(model, sgd(model), digits(), F.nll_loss)


@broken(
    "softmax of a single unit before a binary loss Adam",
    "softmax of a single unit",
    "output|disconnected|collapsed",
    remedy="sigmoid|softmax",
    information=True,
    seen=8,
)
def single() -> tuple[nn.Module, Step]:
    model = nn.Sequential(nn.Linear(64, 40), nn.ReLU(), nn.Linear(40, 1), nn.Softmax(dim=1))
    return model, supervised(
        model, adam(model), digits(), lambda p, y: F.binary_cross_entropy(p[:, 0], (y > 4).float())
    )


@broken(
    "sigmoid in a net of many labels with logits as loss AdamW",
    "sigmoid twice",
    "output",
    remedy="sigmoid",
)
def labels() -> tuple[nn.Module, Step]:
    model = conv_net(nn.SiLU)
    model.append(nn.Sigmoid())
    return model, supervised(
        model,
        adamw(model),
        images(32, 12, 1),
        lambda p, y: F.binary_cross_entropy_with_logits(p, F.one_hot(y, 10).float()),
    )


@broken(
    "tanh output for prices in hundreds SGD",
    "output cannot reach its targets",
    "output",
    remedy="activation|linear|range|normalis",
    seen=30,
)
def prices() -> tuple[nn.Module, Step]:
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1), nn.Tanh())
    return model, supervised(
        model, sgd(model, 1e-4), digits(), lambda p, y: F.mse_loss(p[:, 0], 100.0 * (y + 1))
    )


@broken(
    "sigmoid output of weights too large by squares SGD",
    "saturated output",
    "saturated|output",
    remedy="smaller|cross|logits|normalis",
)
def stuck() -> tuple[nn.Module, Step]:
    model = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10), nn.Sigmoid())
    nn.init.normal_(model[2].weight, std=12.0)
    return model, supervised(
        model, sgd(model), digits(), lambda p, y: F.mse_loss(p, F.one_hot(y, 10).float())
    )


@broken(
    "convolutional GAN whose generator starves Adam",
    "generator starved",
    "starved|vanishing|discriminator|saturated|output|loss",
    layer="generator.0|generator.3",
    remedy="discriminator|balance|non-saturating|learning rate",
    seen=100,
    information=True,
)
def gan() -> tuple[nn.Module, Step]:
    generator = nn.Sequential(
        nn.Linear(12, 16 * 9), nn.ReLU(), nn.Unflatten(1, (16, 3, 3)),
        nn.ConvTranspose2d(16, 12, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(12, 1, 4, 2, 1),
    )  # fmt: skip
    discriminator = nn.Sequential(
        nn.Conv2d(1, 32, 4, 2, 1), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(32 * 36, 64),
        nn.LeakyReLU(0.2), nn.Linear(64, 1),
    )  # fmt: skip
    model = nn.ModuleDict({"generator": generator, "discriminator": discriminator})
    slow, quick = adam(generator, 1e-4), adam(discriminator, 5e-3)
    batches = images(32, 12, 1)

    def step(number: int) -> Scalars:
        for again in range(3):
            x, _ = batches(3 * number + again)
            made = generator(torch.randn(len(x), 12)).detach()
            quick.zero_grad()
            real, false = discriminator(x), discriminator(made)
            won = F.softplus(-real).mean() + F.softplus(false).mean()
            won.backward()
            quick.step()
        slow.zero_grad()
        lost = -F.softplus(discriminator(generator(torch.randn(32, 12)))).mean()
        lost.backward()
        slow.step()
        return {"generator_loss": lost.detach(), "discriminator_loss": won.detach()}

    return model, step


class Mixture(nn.Module):
    """Two of eight experts for each token."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.gate = nn.Linear(width, 8)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width)) for _ in range(8)
        )

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        weight, chosen = self.gate(flat).softmax(-1).topk(2)
        out = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            token, place = torch.where(chosen == number)
            if len(token):
                out = out.index_add(0, token, weight[token, place, None] * expert(flat[token]))
        return out.view_as(x)


@broken(
    "mixture in a transformer whose gate asks two of eight AdamW",
    "dead experts",
    "disconnected|experts|starved|unused|dead",
    layer="mixture.experts.4.0|mixture.experts.5.0|mixture.experts.6.0|mixture.experts.7.0",
    remedy="balanc|router|expert",
    seen=8,
    information=True,
)
def experts() -> tuple[nn.Module, Step]:
    class Model(Language):
        def __init__(self) -> None:
            super().__init__(1)
            self.mixture = Mixture()
            self.mixture.gate.bias.data[:2] = 12.0

        def forward(self, x: Tensor) -> Tensor:
            h = self.blocks[0](self.tokens(x))
            return self.head(self.norm(h + self.mixture(h)))

    model = Model()
    return of_characters(model, adamw(model))


@broken(
    "embeddings of words in two orders pulled together AdamW",
    "representation collapses",
    "collapsed|vanishing",
    remedy="negative|stop|predictor|variance|contrast|spread",
    seen=100,
)
def pulled() -> tuple[nn.Module, Step]:
    model = nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 96), nn.GELU())
    model.append(nn.Linear(96, 24))
    batches = digits()

    def loss_of(number: int) -> Tensor:
        x, _ = batches(number)
        other = x * (torch.rand(x.shape, generator=seeded(number)) > 0.3)
        return (model(x) - model(other)).square().sum(1).mean()

    return model, by_loss(adamw(model, 5e-3), loss_of)


@broken(
    "dropout of .95 in a transformer AdamW",
    "dropout too strong",
    "dropout",
    remedy="dropout",
    seen=8,
)
def dropout() -> tuple[nn.Module, Step]:
    model = Language(dropout=0.95)
    return of_characters(model, adamw(model))


@broken(
    "dropout of .97 between convolutions Adam",
    "dropout too strong",
    "dropout",
    remedy="dropout",
    seen=8,
)
def channels() -> tuple[nn.Module, Step]:
    model = conv_net()
    for place in (6, 4):
        model.insert(place, nn.Dropout(0.97))
    return of_pictures(model, adam(model))
