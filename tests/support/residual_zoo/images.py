"""Convolutional nets."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from residual_zoo.harness import IMAGE, TEXT, conv, lin, net
from residual_zoo.structure import Residual


class BasicBlock(nn.Module):
    """He et al. 2015, with an in-place ReLU and, where sizes change, a projection."""

    def __init__(self, cin, cout, stride=1):
        super().__init__()
        self.conv1 = conv(cin, cout, stride)
        self.bn1 = nn.BatchNorm2d(cout)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = conv(cout, cout)
        self.bn2 = nn.BatchNorm2d(cout)
        self.down = None
        if stride > 1:
            self.down = nn.Sequential(conv(cin, cout, stride, 1), nn.BatchNorm2d(cout))

    def forward(self, x):
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += x if self.down is None else self.down(x)
        return self.relu(y)


@net(
    "identity a stem a a.conv1",
    "projection b a.relu b b.conv1",
    stem=conv(),
    a=BasicBlock(4, 4),
    b=BasicBlock(4, 8, 2),
    x=IMAGE,
)
def basic_blocks(m, x):
    return m.b(m.a(m.stem(x)))


class Bottleneck(nn.Module):
    def __init__(self, width, project=False):
        super().__init__()
        self.branch = nn.Sequential(
            conv(width, 2, 1, 1),
            nn.BatchNorm2d(2),
            nn.ReLU(inplace=True),
            conv(2, 2),
            nn.BatchNorm2d(2),
            nn.ReLU(inplace=True),
            conv(2, width, 1, 1),
            nn.BatchNorm2d(width),
        )
        self.shortcut = conv(width, width, 1, 1) if project else nn.Identity()

    def forward(self, x):
        return F.relu(self.branch(x) + self.shortcut(x), inplace=True)


@net(
    "projection a stem a a.branch.0",
    "identity b a b b.branch.0",
    stem=conv(),
    a=Bottleneck(4, True),
    b=Bottleneck(4),
    x=IMAGE,
)
def bottlenecks(m, x):
    return m.b(m.a(m.stem(x)))


@net("projection (root) stem (root) a", stem=conv(), a=conv(4, 8, 2), b=conv(8, 8), x=IMAGE)
def option_a_padding(m, x):
    x = m.stem(x)
    y = m.b(F.relu(m.a(x)))
    return y + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))


@net("projection (root) stem (root) a", stem=conv(), a=conv(4, 8, 2), b=conv(8, 8), x=IMAGE)
def option_a_zeros(m, x):
    x = m.stem(x)
    y = m.b(F.relu(m.a(x)))
    x = F.avg_pool2d(x, 2)
    return y + torch.cat([x, torch.zeros_like(x)], 1)


@net("projection (root) stem (root) a", stem=conv(), a=conv(4, 8, 2), b=conv(8, 8), x=IMAGE)
def option_a_in_place(m, x):
    x = m.stem(x)
    y = m.b(F.relu(m.a(x)))
    y[:, :4] += x[:, :, ::2, ::2]
    return y


@net(
    "identity (root) stem (root) bn1",
    "identity (root) (root) (root) bn2",
    stem=conv(),
    bn1=nn.BatchNorm2d(4),
    bn2=nn.BatchNorm2d(4),
    a=conv(),
    b=conv(),
    x=IMAGE,
)
def pre_activation(m, x):
    x = m.stem(x)
    x = x + m.a(F.relu(m.bn1(x)))
    return x + m.b(F.relu(m.bn2(x)))


@net(
    "identity (root) stem (root) f",
    "identity (root) (root) (root) g",
    stem=conv(),
    f=conv(),
    g=conv(),
    x=IMAGE,
)
def residual_of_a_functional_activation(m, x):
    x = m.stem(x)
    x = F.relu(x + m.f(F.relu(x)))
    return x + m.g(F.relu(x))


class SqueezeExcite(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 4), nn.Sigmoid())

    def forward(self, x):
        return x * self.fc(x.mean((2, 3)))[:, :, None, None]


@net(
    "identity (root) stem (root) f",
    stem=conv(),
    f=conv(),
    se=SqueezeExcite(),
    x=IMAGE,
)
def squeeze_excite_branch(m, x):
    x = m.stem(x)
    return x + m.se(m.f(x))


@net("identity (root) stem (root) f", stem=lin(), f=nn.Conv1d(5, 5, 3, padding=1), x=TEXT)
def conv1d(m, x):
    x = m.stem(x)
    return x + m.f(x)


@net("identity (root) stem (root) (root)", stem=lin(), w=nn.Parameter(torch.ones(8, 8)), x=TEXT)
def einsum_branch(m, x):
    x = m.stem(x)
    return x + torch.einsum("btd,de->bte", x, m.w)


class Fixup(nn.Module):
    """Zhang et al. 2019: biases and a scale instead of normalisation."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Parameter(torch.zeros(1)) for _ in range(4))
        self.scale = nn.Parameter(torch.ones(1))
        self.conv1, self.conv2 = conv(), conv()

    def forward(self, x):
        y = F.relu(self.conv1(x + self.a) + self.b)
        y = self.conv2(y + self.c) * self.scale + self.d
        return F.relu(y + x)


@net(
    "identity a stem a a.conv1", "identity b a b b.conv1",
    stem=conv(), a=Fixup(), b=Fixup(), x=IMAGE,
)  # fmt: skip
def fixup(m, x):
    return m.b(m.a(m.stem(x)))


@net(
    "identity a stem a a.body.0",
    "identity b p b b.body.0",
    stem=conv(),
    a=Residual(nn.Sequential(conv(), nn.GELU(), nn.BatchNorm2d(4))),
    p=conv(4, 4, 1, 1),
    b=Residual(nn.Sequential(conv(), nn.GELU(), nn.BatchNorm2d(4))),
    x=IMAGE,
)
def convmixer(m, x):
    return m.b(m.p(m.a(m.stem(x))))


@net(
    "identity (root) stem (root) f1",
    "identity (root) (root) (root) f2",
    stem=nn.Conv1d(5, 5, 1),
    f1=nn.Conv1d(5, 5, 3, padding=1),
    g1=nn.Conv1d(5, 5, 3, padding=1),
    r1=nn.Conv1d(5, 5, 1),
    f2=nn.Conv1d(5, 5, 3, padding=1),
    g2=nn.Conv1d(5, 5, 3, padding=1),
    r2=nn.Conv1d(5, 5, 1),
    head=nn.Conv1d(5, 5, 1),
    x=TEXT,
)
def wavenet(m, x):
    x = m.stem(x)
    for f, g, r in ((m.f1, m.g1, m.r1), (m.f2, m.g2, m.r2)):
        x = x + r(torch.tanh(f(x)) * torch.sigmoid(g(x)))
    return m.head(x)


@net(
    "projection (root) stem (root) c1",
    stem=conv(),
    c1=conv(4, 8, 2),
    b1=nn.BatchNorm2d(8),
    c2=conv(8, 8),
    b2=nn.BatchNorm2d(8),
    s=conv(4, 8, 1, 1),
    sb=nn.BatchNorm2d(8),
    x=IMAGE,
)
def resnet_d(m, x):
    x = m.stem(x)
    y = m.b2(m.c2(F.relu(m.b1(m.c1(x)))))
    y += m.sb(m.s(F.avg_pool2d(x, 2, 2)))
    return F.relu_(y)


@net(
    "identity (root) stem (root) c1",
    stem=conv(),
    c1=conv(),
    fc1=nn.Conv2d(4, 2, 1),
    fc2=nn.Conv2d(2, 4, 1),
    x=IMAGE,
)
def se_resnet(m, x):
    x = m.stem(x)
    y = m.c1(x)
    w = torch.sigmoid(m.fc2(F.relu(m.fc1(F.adaptive_avg_pool2d(y, 1)))))
    y = y * w
    y += x
    return F.relu(y, inplace=True)


@net("identity (root) stem (root) c", stem=conv(), c=conv(), b=nn.BatchNorm2d(4), x=IMAGE)
def add_underscore(m, x):
    x = m.stem(x)
    return m.b(m.c(x)).add_(x).relu_()


class Temporal(nn.Module):
    def __init__(self, i, o):
        super().__init__()
        self.c1 = nn.Conv1d(i, o, 3, padding=2)
        self.c2 = nn.Conv1d(o, o, 3, padding=2)
        self.down = nn.Conv1d(i, o, 1) if i != o else None
        self.drop = nn.Dropout(0.1)

    def forward(self, x):
        y = self.drop(F.relu(self.c1(x)[:, :, :-2]))
        y = self.drop(F.relu(self.c2(y)[:, :, :-2]))
        return F.relu(y + (x if self.down is None else self.down(x)))


@net(
    "projection a stem a a.c1",
    "identity b a b b.c1",
    stem=nn.Conv1d(5, 5, 1),
    a=Temporal(5, 6),
    b=Temporal(6, 6),
    x=TEXT,
)
def temporal_convolution(m, x):
    return m.b(m.a(m.stem(x)))


@net(
    "identity (root) stem (root) f", stem=conv(), f=nn.Conv2d(4, 4, 3, padding=1, groups=4), x=IMAGE
)
def depthwise_positional_encoding(m, x):
    x = m.stem(x)
    return x + m.f(x)


class Lambda(nn.Module):
    def __init__(self, f):
        super().__init__()
        self.f = f

    def forward(self, x):
        return self.f(x)


class CifarBlock(nn.Module):
    def __init__(self, i, o, s):
        super().__init__()
        self.conv1 = conv(i, o, s)
        self.bn1 = nn.BatchNorm2d(o)
        self.conv2 = conv(o, o)
        self.bn2 = nn.BatchNorm2d(o)
        self.shortcut = (
            nn.Sequential()
            if s == 1
            else Lambda(
                lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, o // 4, o // 4), "constant", 0)
            )
        )

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += self.shortcut(x)
        return F.relu(y)


@net(
    "identity a (root) a a.conv1",
    "projection b a b b.conv1",
    stem=conv(),
    bn=nn.BatchNorm2d(4),
    a=CifarBlock(4, 4, 1),
    b=CifarBlock(4, 8, 2),
    x=IMAGE,
)
def cifar_resnet(m, x):
    return m.b(m.a(F.relu(m.bn(m.stem(x))))).mean((2, 3))


@net("identity (root) stem (root) c", stem=conv(), c=conv(), b=nn.BatchNorm2d(4), x=IMAGE)
def row_drop(m, x):
    x = m.stem(x)
    y = m.b(m.c(x))
    n = torch.empty(2, 1, 1, 1).bernoulli_(0.8).div_(0.8)
    y = y * n
    y = y + x
    return y


class SEB(nn.Module):
    def __init__(self):
        super().__init__()
        self.c1 = conv(4, 8, 2)
        self.b1 = nn.BatchNorm2d(8)
        self.c2 = conv(8, 8)
        self.b2 = nn.BatchNorm2d(8)
        self.fc1 = nn.Conv2d(8, 2, 1)
        self.fc2 = nn.Conv2d(2, 8, 1)
        self.down = nn.Sequential(nn.AvgPool2d(2), conv(4, 8, 1, 1), nn.BatchNorm2d(8))

    def forward(self, x):
        i = x
        x = F.relu(self.b1(self.c1(x)))
        x = self.b2(self.c2(x))
        s = x.mean((2, 3), keepdim=True)
        x = x * torch.sigmoid(self.fc2(F.relu(self.fc1(s))))
        return F.relu(x + self.down(i))


@net("projection b stem b b.c1", stem=conv(), b=SEB(), x=IMAGE)
def se_downsample(m, x):
    return m.b(m.stem(x))


class PreActivated(nn.Module):
    def __init__(self, i, o, s=1):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(i)
        self.conv1 = conv(i, o, s)
        self.bn2 = nn.BatchNorm2d(o)
        self.conv2 = conv(o, o)
        self.short = conv(i, o, s, 1) if s > 1 else None

    def forward(self, x):
        y = F.relu(self.bn1(x))
        s = self.short(y) if self.short is not None else x
        return self.conv2(F.relu(self.bn2(self.conv1(y)))) + s


@net(
    "identity a stem a a.bn1",
    "projection b b b b.conv1",
    stem=conv(),
    a=PreActivated(4, 4),
    b=PreActivated(4, 8, 2),
    x=IMAGE,
)
def preact_resnet(m, x):
    return m.b(m.a(m.stem(x)))
