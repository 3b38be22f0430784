"""Nets without a residual join, for all their sums."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from residual_zoo.harness import IMAGE, TEXT, conv, lin, mlp, net


@net(f=lin(), g=lin())
def plain(m, x):
    return m.g(torch.relu(m.f(x)))


@net(f=lin(), g=lin())
def gelu_by_hand(m, x):
    x = m.f(x)
    return m.g(0.5 * x * (1 + torch.tanh(0.8 * (x + 0.0447 * x**3))))


@net(f=lin(), g=lin(), w=nn.Parameter(torch.ones(8)), b=nn.Parameter(torch.zeros(8)))
def layer_norm_by_hand(m, x):
    x = m.f(x)
    x = x - x.mean(-1, keepdim=True)
    return m.g(x * (x.pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt() * m.w + m.b)


@net(q=lin(), k=lin(), o=lin(), x=TEXT)
def rotary_embedding(m, x):
    angle = torch.arange(5.0)[:, None] * torch.arange(1.0, 5.0).repeat(2)

    def rotate(v):
        return v * angle.cos() + torch.cat([-v[..., 4:], v[..., :4]], -1) * angle.sin()

    return m.o((rotate(m.q(x)) @ rotate(m.k(x)).transpose(1, 2)).softmax(-1) @ x)


@net(token=nn.Embedding(9, 8), place=nn.Embedding(5, 8), f=mlp(), x=(torch.ones(2, 5).long(),))
def position_embedding(m, x):
    return m.f(m.token(x) + m.place(torch.arange(5)))


@net(
    "identity (root) (root) (root) f.0",
    "identity (root) (root) (root) g.0",
    token=nn.Embedding(9, 8),
    place=nn.Embedding(5, 8),
    f=mlp(),
    g=mlp(),
    x=(torch.ones(1, 5).long(),),
)
def position_embedding_added_in_every_layer(m, x):
    place = m.place(torch.arange(5)[None])
    x = m.token(x) * 2
    x = x + m.f(x + place)
    return x + m.g(x + place)


@net(f=lin(), bias=nn.Parameter(torch.zeros(8)), mask=nn.Parameter(torch.zeros(5, 5)), x=TEXT)
def bias_and_attention_mask(m, x):
    x = m.f(x) + m.bias
    return (x @ x.transpose(1, 2) + m.mask).softmax(-1) @ x


@net(encoder=mlp(), mean=lin(), scale=lin(), decoder=mlp())
def variational_autoencoder(m, x):
    h = m.encoder(x)
    mean, scale = m.mean(h), m.scale(h)
    y = m.decoder(mean + torch.exp(0.5 * scale) * torch.randn_like(scale))
    return y, -0.5 * (1 + scale - mean**2 - scale.exp()).sum(1).mean()


@net(encoder=lin(8, 16), decoder=mlp())
def variational_autoencoder_by_chunks(m, x):
    mean, scale = m.encoder(x).chunk(2, 1)
    return m.decoder(mean + torch.exp(0.5 * scale) * torch.randn_like(scale))


@net(stem=lin(), encoder=mlp(), decoder=mlp())
def reconstruction_error_inside_the_model(m, x):
    x = m.stem(x)
    y = m.decoder(m.encoder(x))
    return (y - x).pow(2).mean() + 0.1 * y.abs().mean()


@net(f=mlp(), value=lin(8, 1), advantage=lin(8, 4))
def dueling_heads(m, x):
    x = m.f(x)
    a = m.advantage(x)
    return m.value(x) + a - a.mean(1, keepdim=True)


@net(stem=mlp(), w=lin(), a=lin(8, 2), b=lin(2, 8), head=mlp())
def low_rank_adaptation(m, x):
    x = m.stem(x)
    return m.head(m.w(x) + 2 * m.b(m.a(F.dropout(x, 0.1))))


@net(a=mlp(), b=mlp(), head=lin(), x=(torch.Size((4, 8)), torch.Size((4, 8))))
def two_towers(m, x, y):
    return m.head(m.a(x) + m.b(y))


@net(stem=lin(), a=mlp(), b=mlp(), c=mlp())
def ensemble_average(m, x):
    x = m.stem(x)
    return torch.stack([m.a(x), m.b(x), m.c(x)]).mean(0)


@net(stem=lin(), a=mlp(), b=mlp())
def sum_of_task_losses(m, x):
    x = m.stem(x)
    return m.a(x).pow(2).mean() + 0.5 * m.b(x).abs().mean()


@net(stem=lin(), head=lin())
def skip_around_an_activation(m, x):
    x = m.stem(x)
    return m.head(x + torch.relu(x))


@net(q=lin(), k=lin(), v=lin(), o=lin(), x=TEXT)
def attention(m, x):
    return m.o(F.scaled_dot_product_attention(m.q(x), m.k(x), m.v(x)))


@net(stem=lin(), trunk=lin(8, 4), up=lin(), head=lin(4, 8), x=TEXT)
def einsum_without_a_skip(m, x):
    x = m.stem(x)
    return torch.einsum("btd,bsd->bts", m.up(x), m.head(m.trunk(x)))


@net(
    l1=lin(),
    l2=lin(),
    l3=lin(),
    t0=mlp(),
    t1=lin(),
    t2=lin(),
    x=((torch.Size((4, 8)), torch.Size((4, 8)))),
)
def conditioned_mlp(m, x, t):
    t = m.t0(t)
    x = torch.relu(m.l1(x) + m.t1(t))
    x = torch.relu(m.l2(x) + m.t2(t))
    return m.l3(x)


@net(enc=lin(), w=mlp(), eps=nn.Parameter(torch.zeros(1)), x=(torch.Size((6, 8)), torch.rand(6, 6)))
def graph_isomorphism(m, x, adj):
    x = m.enc(x)
    return m.w((1 + m.eps) * x + adj @ x)


@net(c1=conv(), c2=conv(), g=lin(8, 4), b=lin(8, 4), x=(torch.Size(IMAGE), torch.Size((2, 8))))
def film(m, x, c):
    x = m.c1(x)
    x = m.g(c)[:, :, None, None] * x + m.b(c)[:, :, None, None]
    return m.c2(F.relu(x))


@net(a=lin(8, 16), b=lin(8, 16), c=lin(8, 8))
def gated_units(m, x):
    x = F.glu(m.a(x))
    u, v = m.b(x).chunk(2, 1)
    return m.c(u * F.silu(v))


@net(e=mlp(), d=mlp())
def autoencoder_loss(m, x):
    return ((m.d(m.e(x)) - x) ** 2).mean()


@net(f=mlp(), x=(torch.Size((4, 8)), torch.Size((4, 8)), torch.Size((4, 8))))
def triplet(m, a, p, n):
    a, p, n = m.f(a), m.f(p), m.f(n)
    return F.relu((a - p).pow(2).sum(1) - (a - n).pow(2).sum(1) + 1).mean()


class SCSE(nn.Module):
    def __init__(self):
        super().__init__()
        self.c = lin(4, 4)
        self.s = conv(4, 1, 1, 1)

    def forward(self, x):
        return x * torch.sigmoid(self.c(x.mean((2, 3))))[:, :, None, None] + x * torch.sigmoid(
            self.s(x)
        )


@net(stem=conv(), a=SCSE(), head=conv(), x=IMAGE)
def two_attentions_summed(m, x):
    return m.head(m.a(m.stem(x)))


@net(stem=lin(), f=mlp())
def attention_residual_learning(m, x):
    x = m.stem(x)
    return x * (1 + torch.sigmoid(m.f(x)))


@net(f=mlp(), head=lin(), x=(torch.Size((4, 8)), torch.Size((4, 8))))
def siamese_difference(m, a, b):
    return m.head((m.f(a) - m.f(b)).abs())


@net(
    w=lin(8, 1),
    e=nn.Embedding(9, 8),
    d=nn.Sequential(nn.Flatten(), lin(40, 8), nn.ReLU(), lin(8, 1)),
    x=(torch.Size((2, 8)), torch.ones(2, 5).long()),
)
def wide_and_deep(m, x, i):
    return torch.sigmoid(m.w(x) + m.d(m.e(i)))


@net(
    stem=conv(),
    lo=conv(4, 4, 2),
    b0=nn.Sequential(conv(), nn.ReLU()),
    b1=nn.Sequential(conv(), nn.ReLU()),
    up=conv(4, 4, 1, 1),
    x=IMAGE,
)
def two_resolutions_fused(m, x):
    x = F.relu(m.stem(x))
    a = m.b0(x)
    b = m.b1(F.relu(m.lo(x)))
    return F.relu(a + F.interpolate(m.up(b), scale_factor=2))


@net(
    f=mlp(),
    v=nn.Sequential(lin(), nn.ReLU(), lin(8, 1)),
    a=nn.Sequential(lin(), nn.ReLU(), lin(8, 4)),
)
def deep_dueling(m, x):
    x = torch.relu(m.f(x))
    v, a = m.v(x), m.a(x)
    return v + (a - a.mean(-1, keepdim=True))


@net(
    e=nn.Sequential(conv(4, 4, 2), nn.ReLU(), nn.Flatten()),
    mu=lin(64, 3),
    lv=lin(64, 3),
    d=lin(3, 64),
    u=nn.ConvTranspose2d(4, 4, 2, 2),
    x=IMAGE,
)
def convolutional_vae(m, x):
    h = m.e(x)
    mu, lv = m.mu(h), m.lv(h)
    s = torch.exp(lv / 2)
    zz = mu + s * torch.randn_like(s)
    r = m.u(F.relu(m.d(zz)).view(2, 4, 4, 4))
    kl = -0.5 * torch.mean(1 + lv - mu.pow(2) - lv.exp())
    return F.mse_loss(r, x) + kl


@net(u=mlp(), v=mlp(), x=({"u": torch.ones(4, 8), "v": torch.ones(4, 8)},))
def two_tower_dict(m, b):
    u, v = F.normalize(m.u(b["u"])), F.normalize(m.v(b["v"]))
    return {"score": u @ v.t()}


@net(stem=mlp(), a=lin(8, 3), b=lin(8, 3))
def averaged_heads(m, x):
    x = torch.relu(m.stem(x))
    return (m.a(x) + m.b(x)) / 2


@net(stem=mlp(), a=lin(8, 3), b=lin(8, 1), x=(torch.Size((4, 8)), torch.ones(4).long()))
def multi_task(m, x, y):
    h = torch.relu(m.stem(x))
    return F.cross_entropy(m.a(h), y) + 0.5 * m.b(h).pow(2).mean()


@net(a=lin(), b=lin(), c=lin(), d=lin(), o=lin())
def complex_product(m, x):
    a, b, c, d = m.a(x), m.b(x), m.c(x), m.d(x)
    return m.o(a * c - b * d)


@net(
    tok=nn.Embedding(9, 8),
    seg=nn.Embedding(2, 8),
    pos=nn.Parameter(torch.zeros(5, 8)),
    n=nn.LayerNorm(8),
    o=lin(8, 9),
    x=(torch.ones(2, 5).long(),),
)
def embeddings_only(m, x):
    return m.o(m.n(m.tok(x) + m.seg(x * 0) + m.pos))


@net(stem=mlp(), mu=mlp(), lv=mlp(), d=mlp())
def deep_headed_vae(m, x):
    h = torch.relu(m.stem(x))
    mu, lv = m.mu(h), m.lv(h)
    return m.d(mu + torch.randn_like(mu) * (lv / 2).exp()), mu, lv


@net(stem=lin(), f=lin(), n=nn.BatchNorm1d(8), head=lin())
def swish_and_mish_by_hand(m, x):
    x = m.n(m.stem(x))
    x = x * torch.sigmoid(x)
    x = m.f(x)
    x = x * torch.tanh(F.softplus(x))
    return m.head(x)


@net(stem=lin(), f=lin(), head=lin())
def softplus_elu_by_hand(m, x):
    x = m.stem(x)
    x = torch.clamp(x, min=0) + torch.clamp(torch.exp(x) - 1, max=0)
    return m.head(m.f(x))


@net(a=mlp(), b=mlp(), x=(torch.Size((4, 8)), torch.Size((4, 8))))
def margin_loss(m, a, b):
    a, b = m.a(a), m.b(b)
    return (1 - (a * b).sum(1) + (a - b).norm(dim=1)).clamp(min=0).mean()
