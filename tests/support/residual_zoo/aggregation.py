"""Convolutional nets that concatenate what blocks with shortcuts have made."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from residual_zoo.harness import IMAGE, TEXT, conv, lin, mlp, net
from residual_zoo.images import BasicBlock
from residual_zoo.structure import Residual


class DualPath(nn.Module):
    """Chen et al. 2017: the first channels are added, the others concatenated."""

    def __init__(self, last, out, dense, stride=1, project=False):
        super().__init__()
        self.out = out
        self.conv1, self.bn1 = conv(last, 4, 1, 1), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = conv(4, 4, stride), nn.BatchNorm2d(4)
        self.conv3, self.bn3 = conv(4, out + dense, 1, 1), nn.BatchNorm2d(out + dense)
        self.shortcut = nn.Sequential()
        if project:
            self.shortcut = nn.Sequential(
                conv(last, out + dense, stride, 1), nn.BatchNorm2d(out + dense)
            )

    def forward(self, x):
        y = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        y, x, d = self.bn3(self.conv3(y)), self.shortcut(x), self.out
        return F.relu(torch.cat([x[:, :d] + y[:, :d], x[:, d:], y[:, d:]], 1))


@net(
    "projection a.0 stem a.0 a.0.conv1",
    "identity a.1 a.0 a.1 a.1.conv1",
    "concat a.1 a.0 a.1 a.1.conv1",
    "projection b.0 a.1 b.0 b.0.conv1",
    "identity b.1 b.0 b.1 b.1.conv1",
    "concat b.1 b.0 b.1 b.1.conv1",
    stem=conv(),
    a=nn.Sequential(DualPath(4, 6, 2, project=True), DualPath(10, 6, 2)),
    b=nn.Sequential(DualPath(12, 8, 2, 2, project=True), DualPath(12, 8, 2)),
    x=IMAGE,
)
def dual_path_network(m, x):
    return m.b(m.a(m.stem(x)))


class Root(nn.Module):
    def __init__(self, cin, cout, residual=False):
        super().__init__()
        self.conv, self.bn, self.residual = conv(cin, cout, 1, 1), nn.BatchNorm2d(cout), residual

    def forward(self, xs):
        y = self.bn(self.conv(torch.cat(xs, 1)))
        return F.relu(y + xs[-1]) if self.residual else F.relu(y)


class Tree(nn.Module):
    """Yu et al. 2018, simplified: a root concatenates what its left and its right half made."""

    def __init__(self, level, cin, cout, stride=1):
        super().__init__()
        self.root = Root(2 * cout, cout)
        if level == 1:
            self.left, self.right = BasicBlock(cin, cout, stride), BasicBlock(cout, cout)
        else:
            self.left = Tree(level - 1, cin, cout, stride)
            self.right = Tree(level - 1, cout, cout)

    def forward(self, x):
        left = self.left(x)
        return self.root([left, self.right(left)])


@net(
    "projection a.left stem a.left a.left.conv1",
    "identity a.right a.left.relu a.right a.right.conv1",
    "concat a a.left.relu a.root a.right.conv1",
    "projection b.left.left a.root b.left.left b.left.left.conv1",
    "identity b.left.right b.left.left.relu b.left.right b.left.right.conv1",
    "concat b.left b.left.left.relu b.left.root b.left.right.conv1",
    "identity b.right.left b.left.root b.right.left b.right.left.conv1",
    "identity b.right.right b.right.left.relu b.right.right b.right.right.conv1",
    "concat b.right b.right.left.relu b.right.root b.right.right.conv1",
    "concat b b.left.root b.root b.right.left.conv1",
    stem=conv(),
    a=Tree(1, 4, 8, 2),
    b=Tree(2, 8, 8, 2),
    x=IMAGE,
)
def simple_deep_layer_aggregation(m, x):
    return m.b(m.a(m.stem(x)))


class FullTree(nn.Module):
    """Yu et al. 2018: a root takes the outputs of all levels below it, and may add the last."""

    def __init__(self, level, cin, cout, stride=1):
        super().__init__()
        self.root = Root((level + 1) * cout, cout, residual=True)
        self.levels = nn.ModuleList(
            FullTree(i, cin if i == level - 1 else cout, cout, stride if i == level - 1 else 1)
            for i in reversed(range(1, level))
        )
        self.left = BasicBlock(cin if level == 1 else cout, cout, stride if level == 1 else 1)
        self.right = BasicBlock(cout, cout)

    def forward(self, x):
        xs = []
        for part in (*self.levels, self.left, self.right):
            x = part(x)
            xs.append(x)
        return self.root(xs)


@net(
    "projection t.levels.0.left stem t.levels.0.left t.levels.0.left.conv1",
    "identity t.levels.0.right t.levels.0.left.relu t.levels.0.right t.levels.0.right.conv1",
    "concat t.levels.0 t.levels.0.left.relu t.levels.0.root t.levels.0.right.conv1",
    "identity t.levels.0.root t.levels.0.right.relu t.levels.0.root t.levels.0.root.conv",
    "identity t.left t.levels.0.root t.left t.left.conv1",
    "identity t.right t.left.relu t.right t.right.conv1",
    "concat t t.left.relu t.root t.right.conv1",
    "identity t.root t.right.relu t.root t.root.conv",
    stem=conv(),
    t=FullTree(2, 4, 8, 2),
    x=IMAGE,
)
def deep_layer_aggregation(m, x):
    return m.t(m.stem(x))


class C2f(nn.Module):
    """YOLOv8: half of the channels goes on to a series of blocks, all are concatenated."""

    def __init__(self, add):
        super().__init__()
        self.cv1, self.cv2 = conv(4, 8, 1, 1), conv(16, 4, 1, 1)
        self.m = nn.ModuleList(Residual(nn.Sequential(conv(), nn.SiLU())) for _ in range(2))
        self.add = add

    def forward(self, x):
        y = list(self.cv1(x).chunk(2, 1))
        for block in self.m:
            y.append(block(y[-1]) if self.add else block.body(y[-1]))
        return self.cv2(torch.cat(y, 1))


@net(
    "identity b.m.0 b b.m.0 b.m.0.body.0",
    "identity b.m.1 b.m.0 b.m.1 b.m.1.body.0",
    "concat b b.m.0 b b.m.1.body.0",
    stem=conv(), b=C2f(True), x=IMAGE,
)  # fmt: skip
def concatenated_bottlenecks(m, x):
    return m.b(m.stem(x))


@net("concat b b.m.0.body.1 b b.m.1.body.0", stem=conv(), b=C2f(False), x=IMAGE)
def concatenated_bottlenecks_without_shortcuts(m, x):
    return m.b(m.stem(x))


@net(
    "identity a stem a a.body.0",
    "identity b a b b.body.0",
    "concat (root) a (root) b.body.0",
    stem=lin(), a=Residual(mlp()), b=Residual(mlp()), head=lin(24, 8), x=TEXT,
)  # fmt: skip
def jumping_knowledge(m, x):
    x = m.stem(x)
    a = m.a(x)
    b = m.b(a)
    return m.head(torch.cat([x, a, b], -1))


@net(stem=conv(), c=conv(16, 4), x=IMAGE)
def pooled_and_concatenated(m, x):
    xs = [m.stem(x)]
    for _ in range(3):
        xs.append(F.max_pool2d(xs[-1], 3, 1, 1))
    return m.c(torch.cat(xs, 1))


@net(
    "projection (root) stem (root) a.0",
    "identity b (root) b b.body.0",
    "concat (root) (root) (root) b.body.0",
    stem=conv(),
    pool=nn.MaxPool2d(2),
    project=nn.Sequential(conv(4, 8, 1, 1), nn.BatchNorm2d(8)),
    a=nn.Sequential(conv(4, 8, 2), nn.ReLU(), conv(8, 8)),
    b=Residual(nn.Sequential(conv(8, 8), nn.ReLU(), conv(8, 8)), nn.ReLU()),
    root=conv(20, 8, 1, 1),
    x=IMAGE,
)
def pooled_projection_and_bottom(m, x):
    """As in DLA's own code: the pooled input is projected for the sum, and goes to the root."""
    x = m.stem(x)
    bottom = m.pool(x)
    a = F.relu(m.project(bottom) + m.a(x))
    return m.root(torch.cat([a, m.b(a), bottom], 1))


@net(
    "identity (root) (root) (root) place",
    stem=lin(), place=nn.Conv1d(8, 8, 3, padding=1), head=lin(), x=TEXT,
)  # fmt: skip
def class_token_put_back(m, x):
    """CoaT: positions by convolution, for all tokens but the first, which is put back in front."""
    x = m.stem(x)
    first, others = x[:, :1], x[:, 1:]
    others = others + m.place(others.transpose(1, 2)).transpose(1, 2)
    return m.head(torch.cat([first, others], 1))


@net(
    *["nested (root) (root) (root) q"] * 3,  # it attends to itself, too
    token=nn.Parameter(torch.randn(1, 1, 8)),
    stem=lin(), q=lin(), kv=lin(), x=TEXT,
)  # fmt: skip
def class_attention(m, x):
    """CaiT: the class token attends to all; the patches are concatenated to it in every layer."""
    x, cls = m.stem(x), m.token.expand(len(x), -1, -1)
    for _ in range(3):
        u = torch.cat([cls, x], 1)
        cls = cls + (m.q(cls) @ m.kv(u).transpose(1, 2)).softmax(-1) @ u
    return cls


SENDERS, RECEIVERS = torch.tensor([0, 1, 2, 3, 0, 1]), torch.tensor([1, 2, 3, 0, 2, 3])


@net(
    "concat (root) stem (root) edge", "identity (root) stem (root) edge",
    stem=lin(), edge=lin(17, 8), node=lin(16, 8), head=lin(),
)  # fmt: skip
def messages_with_raw_distances(m, x):
    """Satorras et al. 2021: what has no gradient stands beside both ends of an edge."""
    h = m.stem(x)
    ends = [h[SENDERS], h[RECEIVERS], h.new_ones(6, 1)]
    sent = torch.zeros_like(h).index_add(0, RECEIVERS, m.edge(torch.cat(ends, 1)))
    return m.head(h + m.node(torch.cat([h, sent], 1)))
