"""Transformers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from residual_zoo.harness import IMAGE, TEXT, lin, mlp, net


def layer(norm_first: bool) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=norm_first)


@net(
    "identity layer stem layer layer.norm1",
    "identity layer layer layer layer.norm2",
    stem=lin(),
    layer=layer(True),
    x=TEXT,
)
def pre_norm_transformer(m, x):
    return m.layer(m.stem(x))


@net(
    "identity layer stem layer layer.self_attn",
    "identity layer layer.norm1 layer layer.linear1",
    stem=lin(),
    layer=layer(False),
    x=TEXT,
)
def post_norm_transformer(m, x):
    return m.layer(m.stem(x))


@net(
    "identity t.encoder.layers.0 source t.encoder.layers.0 t.encoder.layers.0.self_attn",
    "identity t.encoder.layers.0 t.encoder.layers.0.norm1 t.encoder.layers.0"
    " t.encoder.layers.0.linear1",
    "identity t.decoder.layers.0 target t.decoder.layers.0 t.decoder.layers.0.self_attn",
    "identity t.decoder.layers.0 t.decoder.layers.0.norm1 t.decoder.layers.0"
    " t.decoder.layers.0.multihead_attn",
    "identity t.decoder.layers.0 t.decoder.layers.0.norm2 t.decoder.layers.0"
    " t.decoder.layers.0.linear1",
    source=lin(),
    target=lin(),
    t=nn.Transformer(8, 2, 1, 1, 16, batch_first=True),
    x=(torch.Size((2, 5, 8)), torch.Size((2, 3, 8))),
)
def encoder_decoder(m, x, y):
    return m.t(m.source(x), m.target(y))


class Modulated(nn.Module):
    """A DiT block, Peebles & Xie 2023: scale, shift and gate from a condition."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(8, elementwise_affine=False)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(8, 48))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.mlp = mlp()

    def forward(self, x, c):
        a, b, g, d, e, h = self.modulation(c)[:, None].chunk(6, -1)
        y = self.norm(x) * (1 + a) + b
        x = x + g * self.attention(y, y, y)[0]
        return x + h * self.mlp(self.norm(x) * (1 + d) + e)


@net(
    "identity a stem a a.norm",
    "identity a a a a.norm",
    "identity b a b b.norm",
    "identity b b b b.norm",
    stem=lin(),
    time=mlp(),
    a=Modulated(),
    b=Modulated(),
    x=(torch.Size(TEXT), torch.Size((2, 8))),
)
def adaptive_layer_norm(m, x, c):
    x, c = m.stem(x), m.time(c)
    return m.b(m.a(x, c), c)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.ln1 = nn.LayerNorm(8)
        self.qkv = lin(8, 24)
        self.proj = lin()
        self.ln2 = nn.LayerNorm(8)
        self.ff = mlp()
        self.drop = nn.Dropout(0.1)

    def forward(self, x):
        q, k, v = self.qkv(self.ln1(x)).split(8, -1)
        q, k, v = (t.view(2, 5, 2, 4).transpose(1, 2) for t in (q, k, v))
        a = (
            (q @ k.transpose(-2, -1) * 0.5)
            .masked_fill(torch.ones(5, 5).triu(1).bool(), -1e9)
            .softmax(-1)
        )
        x = x + self.drop(self.proj((a @ v).transpose(1, 2).reshape(2, 5, 8)))
        return x + self.drop(self.ff(self.ln2(x)))


@net(
    "identity b stem b b.ln1",
    "identity b b b b.ln2",
    stem=nn.Embedding(9, 8),
    pos=nn.Parameter(torch.zeros(1, 5, 8)),
    b=Block(),
    f=nn.LayerNorm(8),
    x=(torch.ones(2, 5).long(),),
)
def mingpt(m, x):
    return m.f(m.b(m.stem(x))) @ m.stem.weight.t()


@net(
    "identity l (root) l l.self_attn",
    "identity l l.norm1 l l.linear1",
    tok=nn.Embedding(9, 8),
    pos=nn.Embedding(5, 8),
    typ=nn.Embedding(2, 8),
    l=layer(False),
    x=(torch.ones(2, 5).long(),),
)
def bert_like(m, x):
    return m.l(m.tok(x) + m.pos(torch.arange(5)) + m.typ(x * 0))


class Rms(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(8))

    def forward(self, x):
        return self.w * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class Llama(nn.Module):
    def __init__(self):
        super().__init__()
        self.n1 = Rms()
        self.q = lin()
        self.k = lin(8, 4)
        self.v = lin(8, 4)
        self.o = lin()
        self.n2 = Rms()
        self.g = lin(8, 16)
        self.u = lin(8, 16)
        self.d = lin(16, 8)

    def forward(self, x):
        h = self.n1(x)
        q = self.q(h).view(2, 5, 2, 4).transpose(1, 2)
        k = self.k(h)[:, None].expand(2, 2, 5, 4)
        v = self.v(h)[:, None].expand(2, 2, 5, 4)
        ang = torch.arange(5.0)[:, None] * torch.tensor([1.0, 0.1, 1.0, 0.1])

        def rot(t):
            return t * ang.cos() + torch.cat((-t[..., 2:], t[..., :2]), -1) * ang.sin()

        y = (
            F.scaled_dot_product_attention(rot(q), rot(k), v, is_causal=True)
            .transpose(1, 2)
            .reshape(2, 5, 8)
        )
        x = x + self.o(y)
        h = self.n2(x)
        return x + self.d(F.silu(self.g(h)) * self.u(h))


@net(
    "identity b emb b b.n1",
    "identity b b b b.n2",
    emb=nn.Embedding(9, 8),
    b=Llama(),
    x=(torch.ones(2, 5).long(),),
)
def llama_block(m, x):
    return m.b(m.emb(x))


class VB(nn.Module):
    def __init__(self):
        super().__init__()
        self.n1 = nn.LayerNorm(8)
        self.attn = nn.MultiheadAttention(8, 2, dropout=0.1, batch_first=True)
        self.n2 = nn.LayerNorm(8)
        self.mlp = nn.Sequential(lin(8, 16), nn.GELU(), nn.Dropout(0.1), lin(16, 8))

    def forward(self, x):
        h = self.n1(x)
        x = x + self.attn(h, h, h, need_weights=False)[0]
        return x + self.mlp(self.n2(x))


@net(
    "identity b.0 drop b.0 b.0.n1",
    "identity b.0 b.0 b.0 b.0.n2",
    "identity b.1 b.0 b.1 b.1.n1",
    "identity b.1 b.1 b.1 b.1.n2",
    patch=nn.Conv2d(4, 8, 4, 4),
    cls=nn.Parameter(torch.zeros(1, 1, 8)),
    pos=nn.Parameter(torch.zeros(1, 5, 8)),
    drop=nn.Dropout(0.1),
    b=nn.Sequential(VB(), VB()),
    norm=nn.LayerNorm(8),
    head=lin(8, 3),
    x=IMAGE,
)
def vision_transformer(m, x):
    x = m.patch(x).flatten(2).transpose(1, 2)
    x = torch.cat([m.cls.expand(2, -1, -1), x], 1) + m.pos
    return m.head(m.norm(m.b(m.drop(x)))[:, 0])


class DiT(nn.Module):
    def __init__(self):
        super().__init__()
        self.n1 = nn.LayerNorm(8, elementwise_affine=False)
        self.qkv = lin(8, 24)
        self.o = lin()
        self.n2 = nn.LayerNorm(8, elementwise_affine=False)
        self.ff = mlp()
        self.ada = lin(8, 48)

    def forward(self, x, c):
        s1, b1, g1, s2, b2, g2 = self.ada(F.silu(c)).unsqueeze(1).chunk(6, dim=2)
        h = self.n1(x) * (1 + s1) + b1
        q, k, v = self.qkv(h).chunk(3, -1)
        x = x + g1 * self.o(F.scaled_dot_product_attention(q, k, v))
        return x + g2 * self.ff(self.n2(x) * (1 + s2) + b2)


@net(
    "identity b0 (root) b0 b0.n1",
    "identity b0 b0 b0 b0.n2",
    "identity b1 b0 b1 b1.n1",
    "identity b1 b1 b1 b1.n2",
    stem=lin(),
    pos=nn.Parameter(torch.zeros(1, 5, 8)),
    emb=nn.Embedding(4, 8),
    t=mlp(),
    b0=DiT(),
    b1=DiT(),
    x=(torch.Size(TEXT), torch.Size((2, 8)), torch.ones(2).long()),
)
def dit(m, x, t, y):
    c = m.t(t) + m.emb(y)
    x = m.stem(x) + m.pos
    return m.b1(m.b0(x, c), c)


class DecoderLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.sa = nn.MultiheadAttention(8, 2, batch_first=True)
        self.ca = nn.MultiheadAttention(8, 2, batch_first=True)
        self.ff = mlp()
        self.n = nn.ModuleList(nn.LayerNorm(8) for _ in range(3))

    def forward(self, x, mem):
        h = self.n[0](x)
        x = x + self.sa(h, h, h)[0]
        x = x + self.ca(self.n[1](x), mem, mem)[0]
        return x + self.ff(self.n[2](x))


@net(
    "identity d tgt d d.n.0",
    "identity d d d d.n.1",
    "identity d d d d.n.2",
    src=mlp(),
    tgt=lin(),
    d=DecoderLayer(),
    x=(torch.Size(TEXT), torch.Size(TEXT)),
)
def decoder_layer(m, s, t):
    return m.d(m.tgt(t), m.src(s))
