"""Nets over tokens: attention, mixing, conditions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from residual_zoo.harness import TEXT, lin, mlp, net


class Mixer(nn.Module):
    def __init__(self):
        super().__init__()
        self.n1 = nn.LayerNorm(8)
        self.tok = mlp(5)
        self.n2 = nn.LayerNorm(8)
        self.ch = mlp(8)

    def forward(self, x):
        x = x + self.tok(self.n1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.ch(self.n2(x))


@net("identity b stem b b.n1", "identity b b b b.n2", stem=lin(), b=Mixer(), head=lin(), x=TEXT)
def mlp_mixer(m, x):
    return m.head(m.b(m.stem(x)).mean(1))


@net(
    "identity (root) stem (root) f.0",
    "identity (root) (root) (root) g.0",
    stem=lin(),
    f=mlp(),
    n1=nn.LayerNorm(8),
    g=mlp(),
    n2=nn.LayerNorm(8),
    x=TEXT,
)
def res_post_norm(m, x):
    x = m.stem(x)
    x = x + m.n1(m.f(x))
    return x + m.n2(m.g(x))


@net(
    "scaled (root) stem (root) f.0",
    "scaled (root) n1 (root) g.0",
    stem=lin(),
    f=mlp(),
    n1=nn.LayerNorm(8),
    g=mlp(),
    n2=nn.LayerNorm(8),
    x=TEXT,
)
def deep_norm(m, x):
    x = m.stem(x)
    x = m.n1(2.0 * x + m.f(x))
    return m.n2(x * 2.0 + m.g(x))


@net("identity (root) stem (root) q", stem=lin(), q=lin(), k=lin(), v=lin(), x=TEXT)
def alibi_attention(m, x):
    x = m.stem(x)
    w = m.q(x) @ m.k(x).transpose(1, 2) / 8**0.5 + torch.arange(5.0) * -0.5
    return x + w.softmax(-1) @ m.v(x)


@net("identity (root) stem (root) q", stem=lin(), q=lin(), k=lin(), v=lin(), o=lin(), x=TEXT)
def linear_attention(m, x):
    x = m.stem(x)
    q, k, v = F.elu(m.q(x)) + 1, F.elu(m.k(x)) + 1, m.v(x)
    kv = torch.einsum("bnd,bne->bde", k, v)
    zed = 1 / torch.einsum("bnd,bd->bn", q, k.sum(1))
    return x + m.o(torch.einsum("bnd,bde,bn->bne", q, kv, zed))


@net(
    "identity (root) (root) (root) f.0",
    stem=lin(),
    cls=nn.Parameter(torch.zeros(1, 1, 8)),
    g=nn.Parameter(torch.ones(8)),
    f=mlp(),
    n=nn.LayerNorm(8),
    x=TEXT,
)
def cls_token_and_layer_scale(m, x):
    x = torch.cat([m.cls.expand(2, -1, -1), m.stem(x)], 1)
    return (x + m.g * m.f(x))[:, 0]


@net(
    "identity (root) stem (root) n1",
    "identity (root) (root) (root) n2",
    stem=lin(),
    n1=nn.LayerNorm(8),
    f=mlp(),
    n2=nn.LayerNorm(8),
    g=mlp(),
    x=TEXT,
)
def half_step(m, x):
    x = m.stem(x)
    x = x + 0.5 * m.f(m.n1(x))
    return x + 0.5 * m.g(m.n2(x))


@net(
    "identity (root) (root) (root) n",
    "identity (root) (root) (root) f.0",
    q=nn.Parameter(torch.randn(3, 8)),
    n=nn.LayerNorm(8),
    a=nn.MultiheadAttention(8, 2, batch_first=True),
    f=mlp(),
    enc=lin(),
    x=TEXT,
)
def learned_queries(m, x):
    x = m.enc(x)
    q = m.q.expand(2, -1, -1)
    q = q + m.a(m.n(q), x, x)[0]
    return q + m.f(q)


@net("identity (root) (root) (root) f", stem=lin(), f=lin(), x=TEXT)
def add_to_a_cloned_view(m, x):
    x = m.stem(x).clone()
    y = m.f(torch.relu(x))
    x = x.add_(y)
    return x


@net("identity (root) stem (root) f.0", stem=lin(), f=mlp(), x=TEXT)
def reshaped_residual(m, x):
    x = m.stem(x)
    return x + m.f(x.reshape(-1, 8)).reshape(2, 5, 8)


@net("identity (root) stem (root) f.0", stem=lin(), f=mlp(), x=TEXT)
def mixture_of_depths(m, x):
    x = m.stem(x)
    i = torch.tensor([1, 3])
    return x.index_add(1, i, m.f(x[:, i]))


@net(
    "identity (root) stem (root) n1",
    "identity (root) (root) (root) n2",
    stem=lin(),
    n1=nn.LayerNorm(8),
    f=lin(),
    g1=nn.Parameter(1e-5 * torch.ones(8)),
    n2=nn.LayerNorm(8),
    g=mlp(),
    g2=nn.Parameter(1e-5 * torch.ones(8)),
    x=TEXT,
)
def layer_scale_and_drop_path(m, x):
    x = m.stem(x)

    def keep(t):
        return t * torch.empty(2, 1, 1).bernoulli_(0.9) / 0.9

    x = x + keep(m.g1 * m.f(m.n1(x)))
    return x + keep(m.g2 * m.g(m.n2(x)))


@net(
    "identity (root) e2 (root) sa.0",
    "identity (root) (root) (root) q",
    "identity (root) (root) (root) ff.0",
    e1=lin(),
    e2=lin(),
    sa=mlp(),
    q=lin(),
    k=lin(),
    v=lin(),
    ff=mlp(),
    x=(torch.Size(TEXT), torch.Size(TEXT)),
)
def functional_decoder(m, x, mem):
    mem = m.e1(mem)
    y = m.e2(x)
    y = y + m.sa(y)
    a = (m.q(y) @ m.k(mem).transpose(1, 2)).softmax(-1) @ m.v(mem)
    y = y + a
    return y + m.ff(y)


@net(
    "identity (root) stem (root) q",
    "identity (root) (root) (root) q2",
    stem=lin(),
    rel=nn.Embedding(9, 1),
    q=lin(),
    q2=lin(),
    x=TEXT,
)
def shared_relative_bias(m, x):
    x = m.stem(x)
    i = torch.arange(5)[None] - torch.arange(5)[:, None] + 4
    b = m.rel(i)[..., 0][None]
    for q in (m.q, m.q2):
        h = q(x)
        x = x + (h @ h.transpose(1, 2) + b).softmax(-1) @ h
    return x


@net(
    "identity (root) (root) (root) f.0",
    "identity (root) (root) (root) g.0",
    stem=lin(),
    emb=nn.Embedding(3, 8),
    f=mlp(),
    g=mlp(),
    x=(torch.Size((4, 8)), torch.ones(4).long()),
)
def class_conditioned(m, x, y):
    c = m.emb(y)
    x = torch.relu(m.stem(x))
    x = x + m.f(x + c)
    return x + m.g(x + c)


@net(
    "identity (root) stem (root) f.0",
    "identity (root) (root) (root) g.0",
    stem=lin(),
    f=mlp(),
    g=mlp(),
    x=TEXT,
)
def subtract_blocks(m, x):
    x = m.stem(x)
    x = x - m.f(x)
    x = x - 0.5 * m.g(x)
    return x


@net(
    "identity (root) (root) (root) n",
    stem=lin(),
    pos=nn.Parameter(torch.zeros(1, 5, 8)),
    n=nn.LayerNorm(8),
    f=mlp(),
    x=TEXT,
)
def position_then_block(m, x):
    x = m.stem(x) + m.pos
    return x + m.f(m.n(x))


@net("identity (root) stem (root) f.0", stem=lin(), f=mlp(), d=mlp())
def residual_with_auxiliary_loss(m, x):
    x = m.stem(x)
    y = x + m.f(x)
    return y, (m.d(y) - x).square().mean()
