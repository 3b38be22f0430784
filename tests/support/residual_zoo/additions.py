"""Residual additions and gates, however they are written."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from residual_zoo.harness import IMAGE, TEXT, conv, lin, mlp, net
from residual_zoo.structure import Residual


@net("identity (root) stem (root) f", stem=lin(), f=lin())
def functional_add(m, x):
    x = m.stem(x)
    return x + m.f(x)


@net("identity (root) (root) (root) f", stem=lin(), f=lin())
def add_in_place(m, x):
    x = m.stem(x) * 1
    x += m.f(torch.relu(x))
    return x


@net("identity (root) stem (root) f", x=TEXT, stem=lin(), f=lin())
def add_in_place_to_a_view(m, x):
    x = m.stem(x)
    y = m.f(x)
    y += x
    return y


@net("identity (root) stem (root) f", stem=lin(), f=lin())
def alpha_on_the_branch(m, x):
    x = m.stem(x)
    return torch.add(x, m.f(x), alpha=0.5)


@net("scaled (root) stem (root) f", stem=lin(), f=lin())
def alpha_on_the_shortcut(m, x):
    x = m.stem(x)
    return torch.add(m.f(x), x, alpha=0.5)


@net("identity (root) stem (root) f", stem=lin(), f=lin())
def subtraction(m, x):
    x = m.stem(x)
    return x - m.f(x)


@net("scaled (root) stem (root) f", stem=lin(), f=lin())
def lerp(m, x):
    x = m.stem(x)
    return torch.lerp(x, m.f(x), 0.3)


@net("scaled (root) stem (root) f", stem=lin(), f=lin())
def lerp_by_hand(m, x):
    x = m.stem(x)
    return x + 0.3 * (m.f(x) - x)


@net("identity (root) stem (root) f", stem=lin(), f=lin(), gamma=nn.Parameter(torch.ones(8)))
def addcmul_layer_scale(m, x):
    x = m.stem(x)
    return torch.addcmul(x, m.gamma, m.f(x))


@net("identity (root) stem (root) f", stem=lin(), f=lin())
def stack_and_sum(m, x):
    x = m.stem(x)
    return torch.stack([x, m.f(x)]).sum(0)


@net("identity (root) stem (root) f.0", stem=lin(), f=mlp(), w=nn.Parameter(torch.ones(8, 8)))
def addmm(m, x):
    x = m.stem(x)
    return torch.addmm(x, m.f(x), m.w)


@net("scaled (root) stem (root) f", stem=lin(), f=lin())
def scaled_shortcut(m, x):
    x = m.stem(x)
    return 0.5 * x + m.f(x)


@net("scaled (root) stem (root) f", stem=lin(), f=lin(), a=nn.Parameter(torch.ones(())))
def learned_scale_on_the_shortcut(m, x):
    x = m.stem(x)
    return m.a * x + m.f(x)


@net("identity (root) stem (root) f", stem=lin(), f=lin(), a=nn.Parameter(torch.zeros(())))
def rezero(m, x):
    x = m.stem(x)
    return x + m.a * m.f(x)


@net("identity (root) stem (root) f", stem=lin(), f=lin(), g=lin())
def parallel_branches(m, x):
    x = m.stem(x)
    return x + m.f(x) + m.g(x)


@net("identity (root) stem (root) f", stem=lin(), f=lin(), g=lin())
def parallel_branches_before_the_shortcut(m, x):
    x = m.stem(x)
    return m.f(x).tanh() + m.g(x).tanh() + x


@net("gated (root) stem (root) h", stem=lin(), h=lin(), t=lin())
def highway(m, x):
    x = m.stem(x)
    t = torch.sigmoid(m.t(x))
    return t * torch.tanh(m.h(x)) + (1 - t) * x


@net("gated (root) stem (root) h", stem=lin(), h=lin(), t=lin())
def highway_coupled(m, x):
    x = m.stem(x)
    t = torch.sigmoid(m.t(x))
    return x + t * (torch.tanh(m.h(x)) - x)


@net("gated (root) stem (root) h", stem=lin(), h=lin(), t=lin(), c=lin())
def highway_with_its_own_carry_gate(m, x):
    x = m.stem(x)
    return torch.sigmoid(m.t(x)) * m.h(x) + torch.sigmoid(m.c(x)) * x


@net("gated (root) stem (root) h", stem=lin(), h=lin(), t=lin())
def highway_by_lerp(m, x):
    x = m.stem(x)
    return torch.lerp(x, m.h(x), torch.sigmoid(m.t(x)))


@net(
    "identity (root) enc (root) w",
    "identity (root) (root) (root) w2",
    enc=lin(),
    w=lin(),
    w2=lin(),
    x=(torch.Size((6, 8)), torch.rand(6, 6)),
)
def graph_convolution(m, x, adj):
    x = m.enc(x)
    x = x + torch.relu(adj @ m.w(x))
    return x + torch.relu(adj @ m.w2(x))


@net(
    *(["identity (root) stem (root) f.0"] + ["identity (root) (root) (root) f.0"] * 2),
    stem=lin(),
    f=mlp(),
)
def euler(m, x):
    x = m.stem(x)
    for _ in range(3):
        x = x + 0.1 * torch.tanh(m.f(x))
    return x


@net("identity (root) stem (root) e0.0", stem=lin(), gate=lin(8, 2), e0=mlp(), e1=mlp(), x=(4, 8))
def mixture_of_experts(m, x):
    x = m.stem(x)
    w = m.gate(x).softmax(-1)
    return x + w[:, :1] * m.e0(x) + w[:, 1:] * m.e1(x)


@net("identity (root) stem (root) a.0", stem=lin(), a=mlp(), b=mlp(), c=mlp())
def aggregated(m, x):
    x = m.stem(x)
    return F.relu(x + sum(f(x) for f in (m.a, m.b, m.c)))


@net("identity (root) (root) (root) f", f=lin(), x=(torch.ones(4, 8).requires_grad_(),))
def residual_on_the_input(m, x):
    return x + m.f(x)


@net("identity (root) stem (root) f", stem=lin(), f=lin())
def rescaled_sum(m, x):
    x = m.stem(x)
    return (x + m.f(x)) / 2**0.5


@net("scaled (root) stem (root) a", stem=lin(), a=lin(), b=mlp(), w=nn.Parameter(torch.zeros(3)))
def mixed_operation(m, x):
    x = m.stem(x)
    w = m.w.softmax(0)
    return w[0] * x + w[1] * torch.relu(m.a(x)) + w[2] * m.b(x)


@net("identity (root) stem (root) f", stem=lin(), f=lin())
def autocast(m, x):
    with torch.autocast("cpu", torch.bfloat16):
        x = m.stem(x)
        return x + torch.relu(m.f(x))


class AddModule(nn.Module):
    def forward(self, a, b):
        return a + b


class WithAdd(nn.Module):
    def __init__(self):
        super().__init__()
        self.f = mlp()
        self.skip = nn.Identity()
        self.add = AddModule()

    def forward(self, x):
        return self.add(self.skip(x), self.f(x))


@net("identity b stem b.add b.f.0", stem=lin(), b=WithAdd())
def addition_in_a_module(m, x):
    return m.b(m.stem(x))


@net("identity (root) stem (root) f", stem=lin(), f=lin())
def clone_then_add(m, x):
    x = m.stem(x)
    y = x.clone()
    y += m.f(x)
    return y


@net("identity (root) stem (root) f", stem=lin(), f=lin())
def stack_over_the_last_dimension(m, x):
    x = m.stem(x)
    return torch.sum(torch.stack((x, m.f(x)), dim=-1), dim=-1)


@net("identity (root) stem (root) f", stem=lin(), f=lin(), g=lin())
def sum_of_a_list(m, x):
    x = m.stem(x)
    return sum([x, m.f(x), m.g(x)])


@net("identity (root) stem (root) f", stem=lin(), f=lin())
def subtract_in_place(m, x):
    x = m.stem(x)
    y = m.f(x)
    return x.sub(y)


@net("gated (root) stem (root) ht", stem=conv(), ht=conv(4, 8), x=IMAGE)
def highway_of_one_convolution(m, x):
    x = m.stem(x)
    h, t = m.ht(x).chunk(2, 1)
    t = torch.sigmoid(t - 1)
    return t * F.relu(h) + (1 - t) * x


@net("identity (root) stem (root) g.0", stem=lin(), g=mlp())
def residual_gate_on_itself(m, x):
    x = m.stem(x)
    return x + x * torch.sigmoid(m.g(x))


class GRN(nn.Module):
    def __init__(self, i, o):
        super().__init__()
        self.a = lin(i, o)
        self.b = lin(o, 2 * o)
        self.skip = lin(i, o) if i != o else None
        self.n = nn.LayerNorm(o)

    def forward(self, x):
        return self.n((x if self.skip is None else self.skip(x)) + F.glu(self.b(F.elu(self.a(x)))))


@net("identity a stem a a.a", "projection b a.n b b.a", stem=lin(), a=GRN(8, 8), b=GRN(8, 6))
def gated_residual_network(m, x):
    return m.b(m.a(m.stem(x)))


@net("identity (root) stem (root) a", stem=lin(), a=lin(), b=lin())
def hand_written_block(m, x):
    x = m.stem(x)
    h = x - x.mean(-1, keepdim=True)
    h = h / (h.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
    h = m.a(h)
    h = 0.5 * h * (1 + torch.tanh(0.8 * (h + 0.044 * h**3)))
    return x + m.b(h)


@net(
    "identity a stem a a.body.0",
    "identity b a b b.body.0",
    stem=lin(),
    a=Residual(mlp()),
    b=Residual(mlp()),
    h1=lin(8, 3),
    h2=lin(8, 3),
)
def early_exits(m, x):
    a = m.a(m.stem(x))
    b = m.b(a)
    return [m.h1(a), m.h2(b)]


class TanhBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.l1 = lin()
        self.l2 = lin()

    def forward(self, x):
        return torch.tanh(x + self.l2(torch.tanh(self.l1(x))))


@net(
    "identity body.0 stem body.0 body.0.l1",
    "identity body.1 body.0 body.1 body.1.l1",
    stem=lin(),
    body=nn.Sequential(TanhBlock(), TanhBlock()),
    head=lin(8, 3),
)
def residual_tanh(m, x):
    return m.head(m.body(m.stem(x)))


@net(
    "gated (root) stem (root) h.0",
    "gated (root) (root) (root) h.1",
    stem=lin(),
    h=nn.ModuleList([lin(), lin()]),
    t=nn.ModuleList([lin(), lin()]),
)
def highway_loop(m, x):
    x = m.stem(x)
    for h, t in zip(m.h, m.t, strict=True):
        g = torch.sigmoid(t(x))
        x = g * F.relu(h(x)) + (1.0 - g) * x
    return x


@net("identity (root) (root) (root) f", stem=lin(), f=lin())
def siren(m, x):
    x = torch.sin(30 * m.stem(x))
    return 0.5 * (x + torch.sin(30 * m.f(x)))


@net(
    "identity (root) stem (root) f",
    stem=lin(),
    f=lin(16, 8),
    x=(torch.Size((4, 8)), torch.Size((4, 8))),
)
def concatenated_context(m, x, c):
    x = m.stem(x)
    return x + torch.relu(m.f(torch.cat([x, c], 1)))


@net("scaled (root) stem (root) f.0", stem=lin(), f=mlp())
def lerp_from_the_branch(m, x):
    x = m.stem(x)
    y = m.f(x)
    return y.lerp(x, 0.9)


@net("identity (root) stem (root) f.0", stem=lin(), f=mlp())
def addcmul_value(m, x):
    x = m.stem(x)
    return torch.addcmul(x, torch.full((8,), 0.1), m.f(x), value=2.0)
