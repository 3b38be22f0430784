"""Classifiers of pictures, written as in papers and their repositories."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import Batch, Batches, images
from ..loops import adam, adamw, by_loss, sgd, supervised
from ..trainings import Step, healthy


def cropped(batches: Batches, pad: int = 2) -> Batches:
    """Return batches whose pictures are padded and cropped at random places."""

    def at(number: int) -> Batch:
        x, y = batches(number)
        size = x.shape[-1]
        padded = F.pad(x, (pad,) * 4, mode="replicate")
        top, left = torch.randint(2 * pad + 1, (2,)).tolist()
        return padded[:, :, top : top + size, left : left + size], y

    return at


def head(width: int, classes: int = 10) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


def convolved(
    inputs: int,
    outputs: int,
    size: int = 3,
    stride: int = 1,
    groups: int = 1,
    act: object = nn.ReLU,
) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, *([act()] if act else []))  # type: ignore[operator]


class Basic(nn.Module):
    """The basic block of ResNets."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = convolved(inputs, outputs, 1, stride, act=None)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


def residual_net(blocks: int, widths: tuple[int, ...], channels: int = 3) -> nn.Sequential:
    layers: list[nn.Module] = [convolved(channels, widths[0])]
    inputs = widths[0]
    for place, width in enumerate(widths):
        for block in range(blocks):
            layers.append(Basic(inputs, width, 2 if place and not block else 1))
            inputs = width
    model = nn.Sequential(*layers, head(inputs))
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model


@healthy("ResNet-20 with crops, Nesterov and cosine SGD")
def resnet20() -> tuple[nn.Module, Step]:
    model = residual_net(3, (8, 16, 32))
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)
    return model, supervised(model, optimizer, cropped(images(64, 16)), schedule=schedule)


@healthy("ResNet-56 on little pictures Adam")
def resnet56() -> tuple[nn.Module, Step]:
    model = residual_net(9, (8, 16, 32), 1)
    return model, supervised(model, adam(model), images(32, 8, 1))


@healthy("wide residual net with dropout of .3 SGD")
def wide() -> tuple[nn.Module, Step]:
    class Wide(nn.Module):
        def __init__(self, inputs: int, outputs: int, stride: int) -> None:
            super().__init__()
            self.bn1, self.bn2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
            self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
            self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
            self.drop = nn.Dropout(0.3)
            self.equal = inputs == outputs
            if not self.equal:
                self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            out = F.relu(self.bn1(x))
            kept = x if self.equal else self.shortcut(out)
            out = self.drop(F.relu(self.bn2(self.conv1(out))))
            return kept + self.conv2(out)

    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, padding=1, bias=False)]
    for inputs, outputs, stride in [(16, 32, 1), (32, 48, 2), (48, 64, 2)]:
        layers += [Wide(inputs, outputs, stride), Wide(outputs, outputs, 1)]
    model = nn.Sequential(*layers, nn.BatchNorm2d(64), nn.ReLU(), head(64))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    return model, supervised(model, optimizer, images(32, 16))


@healthy("bottlenecks with squeezed channels, zeroed last scales, labels smoothed SGD")
def bottlenecks() -> tuple[nn.Module, Step]:
    class Squeeze(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Conv2d(width, width // 8, 1), nn.Conv2d(width // 8, width, 1)

        def forward(self, x: Tensor) -> Tensor:
            return x * self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True)))).sigmoid()

    class Bottleneck(nn.Module):
        def __init__(self, inputs: int, inner: int, stride: int) -> None:
            super().__init__()
            width = 4 * inner
            self.conv1 = convolved(inputs, inner, 1)
            self.conv2 = convolved(inner, inner, 3, stride)
            self.conv3 = convolved(inner, width, 1, act=None)
            self.squeeze = Squeeze(width)
            nn.init.zeros_(self.conv3[1].weight)
            self.down = None
            if stride != 1 or inputs != width:
                self.down = nn.Sequential(
                    nn.AvgPool2d(stride, stride) if stride > 1 else nn.Identity(),
                    convolved(inputs, width, 1, act=None),
                )

        def forward(self, x: Tensor) -> Tensor:
            out = self.squeeze(self.conv3(self.conv2(self.conv1(x))))
            return F.relu(out + (x if self.down is None else self.down(x)))

    layers: list[nn.Module] = [convolved(3, 16), convolved(16, 32)]
    inputs = 32
    for inner, stride in [(8, 1), (8, 1), (16, 2), (16, 1), (24, 2), (24, 1)]:
        layers.append(Bottleneck(inputs, inner, stride))
        inputs = 4 * inner
    model = nn.Sequential(*layers, head(inputs))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    warm = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=10)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 90)
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, cosine], [10])
    loss = nn.CrossEntropyLoss(label_smoothing=0.1)
    return model, supervised(model, optimizer, images(32, 16), loss, schedule=schedule)


@healthy("DenseNet-BC with a growth of twelve AdamW")
def dense_net() -> tuple[nn.Module, Step]:
    class Layer(nn.Module):
        def __init__(self, inputs: int) -> None:
            super().__init__()
            self.norm1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, 48, 1, bias=False)
            self.norm2 = nn.BatchNorm2d(48)
            self.conv2 = nn.Conv2d(48, 12, 3, padding=1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            new = self.conv1(F.relu(self.norm1(x)))
            return torch.cat([x, self.conv2(F.relu(self.norm2(new)))], 1)

    width = 24
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1, bias=False)]
    for block in range(3):
        for _ in range(4):
            layers.append(Layer(width))
            width += 12
        if block < 2:
            layers += [
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.Conv2d(width, width // 2, 1, bias=False),
            ]
            layers.append(nn.AvgPool2d(2))
            width //= 2
    model = nn.Sequential(*layers, nn.BatchNorm2d(width), nn.ReLU(), head(width))
    return model, supervised(model, adamw(model, 1e-3, 0.05), images(16, 12))


@healthy("long and tall kernels side by side with a second head RMSprop")
def factorised() -> tuple[nn.Module, Step]:
    class Mixed(nn.Module):
        def __init__(self, inputs: int) -> None:
            super().__init__()
            self.one = convolved(inputs, 16, 1)
            self.seven = nn.Sequential(convolved(inputs, 12, 1), *self._seven(12), *self._seven(12))
            self.pool = nn.Sequential(nn.AvgPool2d(3, 1, 1), convolved(inputs, 16, 1))
            self.three = nn.Sequential(convolved(inputs, 12, 1), convolved(12, 16))

        @staticmethod
        def _seven(width: int) -> list[nn.Module]:
            return [
                layer
                for size, pad in (((1, 7), (0, 3)), ((7, 1), (3, 0)))
                for layer in (nn.Conv2d(width, width, size, 1, pad, bias=False),
                              nn.BatchNorm2d(width, eps=1e-3), nn.ReLU(inplace=True))
            ]  # fmt: skip

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.one(x), self.seven(x), self.pool(x), self.three(x)], 1)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(convolved(3, 16), convolved(16, 32, 3, 2))
            self.first = nn.Sequential(Mixed(32), Mixed(60))
            self.second = nn.Sequential(nn.MaxPool2d(2), Mixed(60), Mixed(60))
            self.aux, self.drop, self.head = head(60), nn.Dropout(0.5), head(60)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            h = self.first(self.stem(x))
            return self.head(self.drop(self.second(h))), self.aux(h)

    def loss(told: tuple[Tensor, Tensor], y: Tensor) -> Tensor:
        return F.cross_entropy(told[0], y) + 0.4 * F.cross_entropy(told[1], y)

    model = Net()
    optimizer = torch.optim.RMSprop(model.parameters(), lr=2e-3, alpha=0.9, eps=1e-3, momentum=0.9)
    return model, supervised(model, optimizer, images(16, 16), loss)  # type: ignore[arg-type]


@healthy("inverted residuals with linear waists SGD")
def inverted() -> tuple[nn.Module, Step]:
    class Inverted(nn.Module):
        def __init__(self, inputs: int, outputs: int, stride: int, expand: int) -> None:
            super().__init__()
            inner = inputs * expand
            self.body = nn.Sequential(
                *([convolved(inputs, inner, 1, act=nn.ReLU6)] if expand > 1 else []),
                convolved(inner, inner, 3, stride, inner, nn.ReLU6),
                convolved(inner, outputs, 1, act=None),
            )
            self.joined = stride == 1 and inputs == outputs

        def forward(self, x: Tensor) -> Tensor:
            return x + self.body(x) if self.joined else self.body(x)

    plan = [(16, 8, 1, 1), (8, 12, 1, 6), (12, 12, 1, 6), (12, 16, 2, 6), (16, 16, 1, 6)]
    plan += [(16, 32, 2, 6), (32, 32, 1, 6)]
    model = nn.Sequential(convolved(3, 16, act=nn.ReLU6), *(Inverted(*row) for row in plan))
    model.extend([convolved(32, 96, 1, act=nn.ReLU6), head(96)])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=4e-5)
    return model, supervised(model, optimizer, images(32, 16))


@healthy("grouped convolutions in stages, a mean of weights for the test AdamW")
def stages() -> tuple[nn.Module, Step]:
    class Stage(nn.Module):
        def __init__(self, inputs: int, outputs: int, stride: int) -> None:
            super().__init__()
            self.body = nn.Sequential(
                convolved(inputs, outputs, 1, act=nn.SiLU),
                convolved(outputs, outputs, 3, stride, outputs // 8, nn.SiLU),
                convolved(outputs, outputs, 1, act=None),
            )
            self.kept: nn.Module = nn.Identity()
            if inputs != outputs or stride != 1:
                self.kept = convolved(inputs, outputs, 1, stride, act=None)

        def forward(self, x: Tensor) -> Tensor:
            return F.silu(self.body(x) + self.kept(x))

    rows = [(16, 24, 2), (24, 24, 1), (24, 56, 2), (56, 56, 1), (56, 56, 1), (56, 56, 1)]
    net = nn.Sequential(convolved(3, 16, act=nn.SiLU), *(Stage(*row) for row in rows), head(56))
    mean = copy.deepcopy(net).requires_grad_(False)
    model, optimizer = nn.ModuleDict({"net": net, "mean": mean}), adamw(net, 2e-3, 0.05)
    train = supervised(net, optimizer, cropped(images(32, 16)))

    def step(number: int) -> object:
        loss = train(number)
        with torch.no_grad():
            for old, new in zip(mean.parameters(), net.parameters(), strict=True):
                old.lerp_(new, 0.02)
            for old, new in zip(mean.buffers(), net.buffers(), strict=True):
                old.copy_(new)
        return loss

    return model, step  # type: ignore[return-value]


def visual_geometry(plan: list[int | str], norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    inputs = 3
    for width in plan:
        if width == "M":
            layers.append(nn.MaxPool2d(2))
            continue
        assert isinstance(width, int)
        layers.append(nn.Conv2d(inputs, width, 3, padding=1))
        layers += [nn.BatchNorm2d(width)] if norm else []
        layers.append(nn.ReLU(inplace=True))
        inputs = width
    layers += [nn.Flatten(), nn.Linear(4 * inputs, 128), nn.ReLU(True), nn.Dropout(0.5)]
    layers += [nn.Linear(128, 128), nn.ReLU(True), nn.Dropout(0.5), nn.Linear(128, 10)]
    model = nn.Sequential(*layers)
    for module in model:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.01)
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
    return model


@healthy("VGG-11 without norms, half of the units dropped Adam")
def plain_vgg() -> tuple[nn.Module, Step]:
    model = visual_geometry([16, "M", 24, "M", 32, 32, "M", 48, 48], False)
    return model, supervised(model, adam(model), images(32, 16))


@healthy("VGG-16 with BatchNorm, one layer after its convolutions SGD")
def normed_vgg() -> tuple[nn.Module, Step]:
    plan: list[int | str] = [12, 12, "M", 16, 16, "M", 24, 24, 24, "M", 32, 32, 32]
    model = visual_geometry([*plan, 32, 32, 32], True)[:-7]
    model.append(nn.Linear(128, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    return model, supervised(model, optimizer, images(32, 16))


@healthy("four pictures a step, group norms and standardised weights SGD")
def standardised() -> tuple[nn.Module, Step]:
    class Standardised(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            w = self.weight
            w = w - w.mean((1, 2, 3), keepdim=True)
            w = w / (w.flatten(1).std(1).view(-1, 1, 1, 1) + 1e-5)
            return F.conv2d(x, w, self.bias, self.stride, self.padding)

    class Block(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.conv1, self.conv2 = (Standardised(width, width, 3, padding=1) for _ in range(2))
            self.norm1, self.norm2 = (nn.GroupNorm(8, width) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            h = F.relu(self.norm1(self.conv1(x)))
            return F.relu(x + self.norm2(self.conv2(h)))

    model = nn.Sequential(
        Standardised(3, 16, 3, padding=1), nn.GroupNorm(8, 16), nn.ReLU(), Block(16), Block(16),
        Standardised(16, 32, 3, 2, 1), nn.GroupNorm(8, 32), nn.ReLU(), Block(32), Block(32),
        head(32),
    )  # fmt: skip
    return model, supervised(model, sgd(model, 0.01), images(4, 16, most=64))


@healthy("patches mixed by depth and by place with GELU and BatchNorm AdamW")
def conv_mixer() -> tuple[nn.Module, Step]:
    class Mixer(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.depth = convolved(width, width, 5, groups=width, act=nn.GELU)
            self.point = convolved(width, width, 1, act=nn.GELU)

        def forward(self, x: Tensor) -> Tensor:
            return self.point(x + self.depth(x))

    model = nn.Sequential(nn.Conv2d(3, 64, 2, 2), nn.GELU(), nn.BatchNorm2d(64))
    model.extend([*(Mixer(64) for _ in range(8)), head(64)])
    optimizer, batches = adamw(model, 5e-3, 0.01), images(32, 16)

    def loss_of(number: int) -> Tensor:  # mixup
        x, y = batches(number)
        share = torch.distributions.Beta(0.2, 0.2).sample()
        order = torch.randperm(len(x))
        told = model(share * x + (1 - share) * x[order])
        return share * F.cross_entropy(told, y) + (1 - share) * F.cross_entropy(told, y[order])

    return model, by_loss(optimizer, loss_of, clip=1.0)
