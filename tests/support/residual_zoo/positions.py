"""Positions that are added to a stream, or to queries and keys, in every layer."""

from __future__ import annotations

import torch
from torch import nn

from residual_zoo.conditions import layers
from residual_zoo.harness import TEXT, lin, mlp, net


@net(stem=lin(), table=nn.Parameter(torch.randn(5, 8)), layers=layers(3), x=TEXT)
def position_table_before_every_layer(m, x):
    x = m.stem(x)
    place = m.table.unsqueeze(0).expand_as(x)
    for f in m.layers:
        x = f(x + place)
    return x


@net(stem=lin(), place=nn.Embedding(5, 8), layers=layers(3), x=TEXT)
def looked_up_position_before_every_layer(m, x):
    x = m.stem(x)
    place = m.place(torch.arange(5).expand(2, 5))
    for f in m.layers:
        x = f(x + place)
    return x


class DetrEncoderLayer(nn.Module):
    """Carion et al. 2020: the positions are added to queries and keys of each layer."""

    def __init__(self):
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True)
        self.ff, self.norm1, self.norm2 = mlp(), nn.LayerNorm(8), nn.LayerNorm(8)

    def forward(self, src, pos):
        q = k = src + pos
        src = self.norm1(src + self.attn(q, k, value=src)[0])
        return self.norm2(src + self.ff(src))


class DetrDecoderLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.own, self.cross = (nn.MultiheadAttention(8, 2, batch_first=True) for _ in range(2))
        self.ff = mlp()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(8) for _ in range(3))

    def forward(self, tgt, memory, pos, query_pos):
        q = k = tgt + query_pos
        tgt = self.norm1(tgt + self.own(q, k, value=tgt)[0])
        tgt = self.norm2(tgt + self.cross(tgt + query_pos, memory + pos, memory)[0])
        return self.norm3(tgt + self.ff(tgt))


@net(
    "identity encoder.0 stem encoder.0 encoder.0.attn",
    "identity encoder.0 encoder.0.norm1 encoder.0 encoder.0.ff.0",
    "identity encoder.1 encoder.0.norm2 encoder.1 encoder.1.attn",
    "identity encoder.1 encoder.1.norm1 encoder.1 encoder.1.ff.0",
    # the first self-attention of the decoder is added to zeros
    "identity decoder.0 decoder.0.norm1 decoder.0 decoder.0.cross",
    "identity decoder.0 decoder.0.norm2 decoder.0 decoder.0.ff.0",
    "identity decoder.1 decoder.0.norm3 decoder.1 decoder.1.own",
    "identity decoder.1 decoder.1.norm1 decoder.1 decoder.1.cross",
    "identity decoder.1 decoder.1.norm2 decoder.1 decoder.1.ff.0",
    stem=lin(),
    place=mlp(),
    queries=nn.Embedding(3, 8),
    encoder=nn.ModuleList(DetrEncoderLayer() for _ in range(2)),
    decoder=nn.ModuleList(DetrDecoderLayer() for _ in range(2)),
    x=(torch.Size(TEXT), torch.Size(TEXT)),
)
def detection_transformer(m, x, sines):
    memory, pos = m.stem(x), m.place(sines)
    for layer in m.encoder:
        memory = layer(memory, pos)
    query_pos = m.queries.weight.unsqueeze(0).repeat(len(x), 1, 1)
    tgt = torch.zeros_like(query_pos)
    for layer in m.decoder:
        tgt = layer(tgt, memory, pos, query_pos)
    return tgt


class ConditionalDecoderLayer(nn.Module):
    """Meng et al. 2021: what is asked with is a projection of the stream plus one of positions."""

    def __init__(self):
        super().__init__()
        for name in ("q", "k", "v", "o", "q_pos", "k_pos"):
            setattr(self, name, lin())
        self.norm1, self.norm2, self.ff = nn.LayerNorm(8), nn.LayerNorm(8), mlp()

    def forward(self, x, pos):
        q, k = self.q(x) + self.q_pos(pos), self.k(x) + self.k_pos(pos)
        attn = (q @ k.transpose(1, 2)).softmax(-1)
        x = self.norm1(x + self.o(attn @ self.v(x)))
        return self.norm2(x + self.ff(x))


@net(
    "identity a (root) a a.q",
    "identity a a.norm1 a a.ff.0",
    "identity b a.norm2 b b.q",
    "identity b b.norm1 b b.ff.0",
    queries=nn.Embedding(3, 8),
    a=ConditionalDecoderLayer(),
    b=ConditionalDecoderLayer(),
    x=(2, 8),
)
def queries_that_are_stream_and_position(m, x):
    x = queries = m.queries.weight.unsqueeze(0).repeat(len(x), 1, 1)
    return m.b(m.a(x, queries), queries)


class UniversalLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True)
        self.ff, self.norm1, self.norm2 = mlp(), nn.LayerNorm(8), nn.LayerNorm(8)

    def forward(self, x):
        y = self.norm1(x)
        x = x + self.attn(y, y, y)[0]
        return x + self.ff(self.norm2(x))


@net(
    *["identity layer (root) layer layer.norm1", "identity layer layer layer layer.norm2"] * 3,
    stem=lin(),
    place=mlp(),
    layer=UniversalLayer(),
    x=(torch.Size(TEXT), torch.Size(TEXT)),
)
def universal_transformer(m, x, sines):
    """Dehghani et al. 2018: positions are added to the stream before every round."""
    x, place = m.stem(x), m.place(sines)
    for _ in range(3):
        x = m.layer(x + place)
    return x
