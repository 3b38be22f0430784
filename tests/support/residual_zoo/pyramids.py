"""Convolutional nets that join over several resolutions or depths."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from residual_zoo.harness import IMAGE, conv, lin, mlp, net
from residual_zoo.structure import Residual


@net(
    "concat (root) stem (root) a",
    "concat (root) (root) (root) b",
    stem=conv(),
    a=conv(4, 4),
    b=conv(8, 4),
    head=conv(12, 4),
    x=IMAGE,
)
def densenet(m, x):
    features = [m.stem(x)]
    features.append(F.relu(m.a(features[0])))
    features.append(F.relu(m.b(torch.cat(features, 1))))
    return m.head(torch.cat(features, 1))


@net(
    "concat (root) e1 (root) e2",
    e1=conv(),
    e2=conv(4, 8, 2),
    up=nn.ConvTranspose2d(8, 4, 2, 2),
    head=conv(8, 4),
    x=IMAGE,
)
def u_net(m, x):
    skip = m.e1(x)
    y = m.up(F.relu(m.e2(skip)))
    return m.head(torch.cat([skip, y], 1))


@net(
    "identity (root) e1 (root) e2",
    e1=conv(),
    e2=conv(4, 8, 2),
    up=nn.ConvTranspose2d(8, 4, 2, 2),
    head=conv(4, 4),
    x=IMAGE,
)
def additive_u_net(m, x):
    skip = m.e1(x)
    return m.head(skip + m.up(F.relu(m.e2(skip))))


class RDB(nn.Module):
    def __init__(self):
        super().__init__()
        self.c1 = conv(4, 2)
        self.c2 = conv(6, 2)
        self.c3 = conv(8, 4)

    def forward(self, x):
        a = F.leaky_relu(self.c1(x))
        b = F.leaky_relu(self.c2(torch.cat([x, a], 1)))
        return self.c3(torch.cat([x, a, b], 1)) * 0.2 + x


class RRDB(nn.Module):
    def __init__(self):
        super().__init__()
        self.r1 = RDB()
        self.r2 = RDB()

    def forward(self, x):
        return self.r2(self.r1(x)) * 0.2 + x


@net(
    "concat r.r1 stem r.r1 r.r1.c1",
    "concat r.r1 r.r1 r.r1 r.r1.c2",
    "identity r.r1 stem r.r1 r.r1.c1",
    "concat r.r2 r.r1 r.r2 r.r2.c1",
    "concat r.r2 r.r2 r.r2 r.r2.c2",
    "identity r.r2 r.r1 r.r2 r.r2.c1",
    "nested r stem r r.r1.c1",
    stem=conv(),
    r=RRDB(),
    x=IMAGE,
)
def esrgan(m, x):
    return m.r(m.stem(x))


class TimeBlock(nn.Module):
    def __init__(self, i, o):
        super().__init__()
        self.n1 = nn.GroupNorm(2, i)
        self.c1 = conv(i, o)
        self.t = lin(8, o)
        self.n2 = nn.GroupNorm(2, o)
        self.c2 = conv(o, o)
        self.skip = conv(i, o, 1, 1) if i != o else nn.Identity()

    def forward(self, x, t):
        h = self.c1(F.silu(self.n1(x)))
        h = h + self.t(F.silu(t))[:, :, None, None]
        h = self.c2(F.silu(self.n2(h)))
        return self.skip(x) + h


@net(
    "projection a stem a a.n1",
    "identity b a b b.n1",
    stem=conv(),
    time=mlp(),
    a=TimeBlock(4, 8),
    b=TimeBlock(8, 8),
    x=(torch.Size(IMAGE), torch.Size((2, 8))),
)
def diffusion_unet_blocks(m, x, t):
    t = m.time(t)
    return m.b(m.a(m.stem(x), t), t)


@net(
    "identity r1 d1 r1 r1.body",
    "identity (root) stem (root) d1",
    stem=conv(),
    d1=conv(4, 4, 2),
    r1=Residual(conv()),
    u=nn.ConvTranspose2d(4, 4, 2, 2),
    x=IMAGE,
)
def hourglass(m, x):
    s = m.stem(x)
    y = m.r1(m.d1(s))
    return s + m.u(y)


@net(
    "projection (root) (root) (root) c5",
    c4=conv(4, 4),
    c5=conv(4, 8, 2),
    l4=conv(4, 4, 1, 1),
    l5=conv(8, 4, 1, 1),
    o=conv(),
    x=IMAGE,
)
def feature_pyramid(m, x):
    a = F.relu(m.c4(x))
    b = F.relu(m.c5(a))
    p5 = m.l5(b)
    p4 = m.l4(a) + F.interpolate(p5, scale_factor=2)
    return m.o(p4), p5


@net(
    "partial (root) c1 (root) k1",
    "concat (root) (root) (root) k2",
    "identity (root) stem (root) c1",
    stem=conv(),
    c1=conv(4, 4, 1, 1),
    k1=conv(2, 2),
    k2=conv(2, 2),
    c3=conv(4, 4, 1, 1),
    x=IMAGE,
)
def res2net(m, x):
    x = m.stem(x)
    a, b = m.c1(x).chunk(2, 1)
    a = F.relu(m.k1(a))
    b = F.relu(m.k2(b + a))
    return F.relu(x + m.c3(torch.cat([a, b], 1)))


@net(
    "identity (root) stem (root) b1",
    stem=conv(),
    b1=conv(4, 2, 1, 1),
    b2=nn.Sequential(conv(4, 2, 1, 1), nn.ReLU(), conv(2, 2)),
    up=conv(4, 4, 1, 1),
    x=IMAGE,
)
def inception_resnet(m, x):
    x = m.stem(x)
    y = m.up(torch.cat([F.relu(m.b1(x)), F.relu(m.b2(x))], 1))
    return F.relu(x + 0.17 * y)


class Level(nn.Module):
    def __init__(self, c, inner=None):
        super().__init__()
        self.down = conv(c, c, 2)
        self.inner = inner
        self.up = nn.ConvTranspose2d(2 * c if inner else c, c, 2, 2)

    def forward(self, x):
        y = F.leaky_relu(self.down(x))
        y = self.inner(y) if self.inner else y
        return torch.cat([x, self.up(F.relu(y))], 1)


@net(
    "concat net.inner net net.inner net.inner.down",
    "concat net stem net net.down",
    stem=conv(),
    net=Level(4, Level(4)),
    head=conv(8, 4),
    x=IMAGE,
)
def pix2pix_generator(m, x):
    return m.head(m.net(m.stem(x)))


class AttentionGate(nn.Module):
    def __init__(self):
        super().__init__()
        self.wg = conv(4, 2, 1, 1)
        self.wx = conv(4, 2, 1, 1)
        self.psi = conv(2, 1, 1, 1)

    def forward(self, g, x):
        return x * torch.sigmoid(self.psi(F.relu(self.wg(g) + self.wx(x))))


@net(
    "concat (root) e (root) d",
    e=conv(),
    d=conv(4, 4, 2),
    u=nn.ConvTranspose2d(4, 4, 2, 2),
    gate=AttentionGate(),
    head=conv(8, 4),
    x=IMAGE,
)
def attention_u_net(m, x):
    s = m.e(x)
    y = m.u(F.relu(m.d(s)))
    return m.head(torch.cat([m.gate(y, s), y], 1))


class UBlock(nn.Module):
    def __init__(self, i, o):
        super().__init__()
        self.c1 = conv(i, o)
        self.c2 = conv(o, o)
        self.p = conv(i, o, 1, 1) if i != o else nn.Identity()

    def forward(self, x):
        return F.relu(self.c2(F.relu(self.c1(x))) + self.p(x))


@net(
    "identity d d0 d d.c1",
    "identity mid pool mid mid.c1",
    "concat (root) d (root) pool",
    "projection up (root) up up.c1",
    d0=conv(),
    d=UBlock(4, 4),
    pool=conv(4, 4, 2),
    mid=UBlock(4, 4),
    up=UBlock(8, 4),
    x=IMAGE,
)
def residual_u_net(m, x):
    s = m.d(m.d0(x))
    y = m.mid(m.pool(s))
    return m.up(torch.cat([s, F.interpolate(y, scale_factor=2)], 1))


class DenseLayer(nn.Module):
    def __init__(self, i):
        super().__init__()
        self.b = nn.BatchNorm2d(i)
        self.c = conv(i, 2)

    def forward(self, x):
        return torch.cat([x, self.c(F.relu(self.b(x)))], 1)


@net(
    "concat l1 stem l1 l1.b",
    "concat l2 l1 l2 l2.b",
    stem=conv(),
    l1=DenseLayer(4),
    l2=DenseLayer(6),
    x=IMAGE,
)
def incremental_densenet(m, x):
    return m.l2(m.l1(m.stem(x)))


class NonLocal(nn.Module):
    def __init__(self):
        super().__init__()
        self.q = conv(4, 2, 1, 1)
        self.k = conv(4, 2, 1, 1)
        self.v = conv(4, 2, 1, 1)
        self.o = conv(2, 4, 1, 1)

    def forward(self, x):
        q, k, v = (f(x).flatten(2) for f in (self.q, self.k, self.v))
        y = (
            (torch.softmax(q.transpose(1, 2) @ k, -1) @ v.transpose(1, 2))
            .transpose(1, 2)
            .reshape(x.size(0), 2, 8, 8)
        )
        return self.o(y) + x


@net("identity nl stem nl nl.q", stem=conv(), nl=NonLocal(), x=IMAGE)
def non_local(m, x):
    return m.nl(m.stem(x))


@net(
    "projection (root) stem (root) c1",
    stem=conv(),
    n=nn.BatchNorm2d(4),
    c1=conv(),
    c2=conv(),
    s=conv(4, 4, 1, 1),
    x=IMAGE,
)
def generator_block(m, x):
    x = m.stem(x)
    y = m.c2(F.relu(m.c1(F.interpolate(F.relu(x), scale_factor=2))))
    return y + m.s(F.interpolate(x, scale_factor=2))


class ResStack(nn.Module):
    def __init__(self):
        super().__init__()
        self.c1 = conv(4, 4)
        self.c2 = conv(4, 4, 1, 1)

    def forward(self, x):
        return x + self.c2(F.relu(self.c1(F.relu(x))))


@net(
    "identity r e r r.c1",
    e=conv(),
    r=ResStack(),
    code=nn.Parameter(torch.randn(6, 4)),
    d=conv(),
    x=IMAGE,
)
def vq_vae(m, x):
    h = m.r(m.e(x)).permute(0, 2, 3, 1).reshape(-1, 4)
    i = torch.cdist(h, m.code).argmin(1)
    q = m.code[i]
    loss = (q - h.detach()).pow(2).mean() + 0.25 * (q.detach() - h).pow(2).mean()
    q = h + (q - h).detach()
    return m.d(q.reshape(2, 8, 8, 4).permute(0, 3, 1, 2)), loss


@net("gated (root) stem (root) h", stem=conv(), h=conv(), t=conv(), x=IMAGE)
def convolutional_highway(m, x):
    x = m.stem(x)
    h = F.relu(m.h(x))
    t = torch.sigmoid(m.t(x))
    return h * t + x * (1 - t)


@net(
    "concat (root) e2 (root) p2",
    "concat (root) e1 (root) p1",
    e1=conv(),
    p1=conv(4, 4, 2),
    e2=conv(),
    p2=conv(4, 4, 2),
    u2=nn.ConvTranspose2d(4, 4, 2, 2),
    d2=conv(8, 4),
    u1=nn.ConvTranspose2d(4, 4, 2, 2),
    d1=conv(8, 4),
    x=IMAGE,
)
def two_level_u_net(m, x):
    s1 = m.e1(x)
    s2 = m.e2(m.p1(F.relu(s1)))
    y = F.relu(m.p2(s2))
    y = F.relu(m.d2(torch.cat([m.u2(y), s2], 1)))
    return m.d1(torch.cat([m.u1(y), s1], 1))


@net("projection (root) (root) (root) c1", stem=conv(), c1=conv(4, 6, 2), c2=conv(6, 6), x=IMAGE)
def option_a_slice_cat(m, x):
    x = F.relu(m.stem(x))
    y = m.c2(F.relu(m.c1(x)))
    s = x[..., ::2, ::2]
    s = torch.cat([s, torch.zeros(2, 2, 4, 4, dtype=s.dtype)], 1)
    return F.relu(y + s)
