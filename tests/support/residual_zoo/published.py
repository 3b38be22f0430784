"""Blocks on series, sets and graphs as published code writes them, names and style included."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from residual_zoo.harness import TEXT, lin, mlp, net


class LayerScale(nn.Module):
    def __init__(self):
        super().__init__()
        self.gamma = nn.Parameter(1e-5 * torch.ones(8))

    def forward(self, x):
        return x * self.gamma


class DropPath(nn.Module):
    def forward(self, x):
        if not self.training:
            return x
        mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(0.9)
        return x * mask.div_(0.9)


class Attention(nn.Module):
    """As in timm: one projection for q, k and v."""

    def __init__(self, width=8, heads=2):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm, self.k_norm = nn.LayerNorm(width // heads), nn.LayerNorm(width // heads)
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        x = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        return self.proj(x.transpose(1, 2).reshape(b, n, c))


class TimmBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.attn, self.mlp = Attention(), mlp()
        self.ls1, self.ls2 = LayerScale(), LayerScale()
        self.drop_path1, self.drop_path2 = DropPath(), DropPath()

    def forward(self, x):
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x))))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


@net(
    "identity blocks.0 stem blocks.0 blocks.0.norm1",
    "identity blocks.0 blocks.0 blocks.0 blocks.0.norm2",
    "identity blocks.1 blocks.0 blocks.1 blocks.1.norm1",
    "identity blocks.1 blocks.1 blocks.1 blocks.1.norm2",
    stem=lin(),
    blocks=nn.Sequential(TimmBlock(), TimmBlock()),
    x=TEXT,
)
def timm_vision_transformer(m, x):
    return m.blocks(m.stem(x))


class FairseqLayer(nn.Module):
    """Post-norm, time first, with the addition in a method of its own."""

    def __init__(self, normalize_before):
        super().__init__()
        self.normalize_before = normalize_before
        self.self_attn = nn.MultiheadAttention(8, 2)
        self.self_attn_layer_norm, self.final_layer_norm = nn.LayerNorm(8), nn.LayerNorm(8)
        self.dropout_module = nn.Dropout(0.1)
        self.fc1, self.fc2 = nn.Linear(8, 16), nn.Linear(16, 8)

    def residual_connection(self, x, residual):
        return residual + x

    def forward(self, x):
        residual = x
        if self.normalize_before:
            x = self.self_attn_layer_norm(x)
        x, _ = self.self_attn(query=x, key=x, value=x, need_weights=False)
        x = self.residual_connection(self.dropout_module(x), residual)
        if not self.normalize_before:
            x = self.self_attn_layer_norm(x)
        residual = x
        if self.normalize_before:
            x = self.final_layer_norm(x)
        x = self.dropout_module(self.fc2(F.relu(self.fc1(x))))
        x = self.residual_connection(x, residual)
        return x if self.normalize_before else self.final_layer_norm(x)


@net(
    "identity post (root) post post.self_attn",
    "identity post post.self_attn_layer_norm post post.fc1",
    "identity pre post.final_layer_norm pre pre.self_attn_layer_norm",
    "identity pre pre pre pre.final_layer_norm",
    stem=lin(),
    post=FairseqLayer(False),
    pre=FairseqLayer(True),
    x=TEXT,
)
def fairseq_encoder(m, x):
    x = m.stem(x).transpose(0, 1)
    return m.pre(m.post(x)).transpose(0, 1)


class SpatialGating(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.proj = nn.LayerNorm(8), nn.Linear(5, 5)

    def forward(self, x):
        u, v = x.chunk(2, dim=-1)
        v = self.proj(self.norm(v).transpose(-1, -2)).transpose(-1, -2)
        return u * (v + 1.0)


class GMlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.proj_in, self.proj_out = nn.Linear(8, 16), nn.Linear(8, 8)
        self.gate = SpatialGating()

    def forward(self, x):
        shortcut = x
        x = F.gelu(self.proj_in(self.norm(x)))
        return self.proj_out(self.gate(x)) + shortcut


@net("identity block stem block block.norm", stem=lin(), block=GMlp(), x=TEXT)
def gated_mlp(m, x):
    return m.block(m.stem(x))


class PerceiverLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.context_norm = nn.LayerNorm(8), nn.LayerNorm(8)
        self.to_q, self.to_kv = nn.Linear(8, 8, bias=False), nn.Linear(8, 16, bias=False)
        self.to_out, self.ff = nn.Linear(8, 8), nn.Sequential(nn.LayerNorm(8), *mlp())

    def forward(self, latents, data):
        q = self.to_q(self.norm(latents))
        k, v = self.to_kv(self.context_norm(data)).chunk(2, dim=-1)
        attn = (torch.einsum("bid,bjd->bij", q, k) / math.sqrt(8)).softmax(dim=-1)
        x = self.to_out(torch.einsum("bij,bjd->bid", attn, v)) + latents
        return self.ff(x) + x


@net(
    "identity cross (root) cross cross.norm",
    "identity cross cross cross cross.ff.0",
    "identity own cross own own.norm",
    "identity own own own own.ff.0",
    latents=nn.Parameter(torch.randn(3, 8)),
    embed=lin(),
    cross=PerceiverLayer(),
    own=PerceiverLayer(),
    head=lin(),
    x=TEXT,
)
def perceiver(m, x):
    x = m.embed(x)
    z = m.latents.unsqueeze(0).repeat(x.shape[0], 1, 1)
    z = m.cross(z, x)
    z = m.own(z, z)
    return m.head(z.mean(dim=1))


class RelativeAttention(nn.Module):
    """Transformer-XL: content and position scores are added, a memory without gradient."""

    def __init__(self):
        super().__init__()
        self.qkv_net, self.r_net = nn.Linear(8, 24, bias=False), nn.Linear(8, 8, bias=False)
        self.o_net, self.layer_norm = nn.Linear(8, 8, bias=False), nn.LayerNorm(8)
        self.r_w_bias, self.r_r_bias = (nn.Parameter(torch.randn(8)) for _ in range(2))
        self.drop = nn.Dropout(0.1)

    def forward(self, w, r, mems):
        cat = torch.cat([mems, w], 1)
        q, k, v = torch.chunk(self.qkv_net(cat), 3, dim=-1)
        q = q[:, -w.size(1) :]
        ac = torch.einsum("bid,bjd->bij", q + self.r_w_bias, k)
        bd = torch.einsum("bid,jd->bij", q + self.r_r_bias, self.r_net(r))
        prob = F.softmax((ac + bd) / 8**0.5, dim=2)
        out = self.drop(self.o_net(torch.einsum("bij,bjd->bid", prob, v)))
        return self.layer_norm(w + out)


class PositionwiseFF(nn.Module):
    def __init__(self):
        super().__init__()
        self.CoreNet = mlp()
        self.layer_norm = nn.LayerNorm(8)

    def forward(self, inp):
        return self.layer_norm(inp + self.CoreNet(inp))


@net(
    "identity attn stem attn attn.qkv_net",
    "identity ff attn.layer_norm ff ff.CoreNet.0",
    stem=lin(),
    attn=RelativeAttention(),
    ff=PositionwiseFF(),
    x=(torch.Size(TEXT), torch.randn(8, 8), torch.randn(2, 3, 8)),
)
def transformer_xl(m, x, r, mems):
    return m.ff(m.attn(m.stem(x), r, mems))


@net(
    *["scaled (root) stem (root) f.0"] * 2,
    "scaled (root) (root) (root) g.0",  # both streams are added up for the head: one sum
    stem=lin(),
    f=mlp(),
    g=mlp(),
    head=lin(),
    mix=nn.Parameter(torch.rand(2, 3, 2)),
    out=nn.Parameter(torch.ones(2, 2)),
)
def hyper_connections(m, x):
    h = [m.stem(x)] * 2
    for layer, (read, *keep), add in zip((m.f, m.g), m.mix, m.out, strict=True):
        y = layer(read[0] * h[0] + read[1] * h[1])
        h = [row[0] * h[0] + row[1] * h[1] + b * y for row, b in zip(keep, add, strict=True)]
    return m.head(h[0] + h[1])


class NormFormerLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.ln1, self.ln1_post, self.ln2, self.ffn_ln = (nn.LayerNorm(8) for _ in range(4))
        self.attn, self.fc1, self.fc2 = Attention(), lin(), lin()
        self.lambda_resid = nn.Parameter(torch.ones(8))

    def forward(self, x):
        residual = x
        x = residual + self.ln1_post(self.attn(self.ln1(x)))
        residual = torch.mul(self.lambda_resid, x)
        return residual + self.fc2(self.ffn_ln(F.gelu(self.fc1(self.ln2(x)))))


@net(
    "identity layer stem layer layer.ln1",
    "scaled layer layer layer layer.ln2",
    stem=lin(),
    layer=NormFormerLayer(),
    x=TEXT,
)
def normformer(m, x):
    return m.layer(m.stem(x))


class Sandwich(nn.Module):
    """A norm before and one after each branch, as in Gemma 2 and CogView."""

    def __init__(self):
        super().__init__()
        names = ("input", "post_attention", "pre_feedforward", "post_feedforward")
        for name in names:
            setattr(self, f"{name}_layernorm", nn.RMSNorm(8))
        self.self_attn, self.mlp = Attention(), mlp()

    def forward(self, hidden_states):
        residual = hidden_states
        hidden_states = self.self_attn(self.input_layernorm(hidden_states))
        hidden_states = residual + self.post_attention_layernorm(hidden_states)
        residual = hidden_states
        hidden_states = self.mlp(self.pre_feedforward_layernorm(hidden_states))
        return residual + self.post_feedforward_layernorm(hidden_states)


@net(
    "identity layer stem layer layer.input_layernorm",
    "identity layer layer layer layer.pre_feedforward_layernorm",
    stem=lin(),
    layer=Sandwich(),
    x=TEXT,
)
def sandwich_norm(m, x):
    return m.layer(m.stem(x))


class ParallelLayer(nn.Module):
    """PaLM, GPT-J: attention and feed-forward side by side, their projections fused."""

    def __init__(self):
        super().__init__()
        self.norm, self.fused = nn.LayerNorm(8), nn.Linear(8, 24 + 32, bias=False)
        self.attn_out, self.ff_out = nn.Linear(8, 8, bias=False), nn.Linear(16, 8, bias=False)

    def forward(self, x):
        q, k, v, ff, gate = self.fused(self.norm(x)).split((8, 8, 8, 16, 16), dim=-1)
        attn = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return x + self.attn_out(attn) + self.ff_out(F.silu(gate) * ff)


@net(
    "identity layer stem layer layer.norm",
    stem=lin(),
    layer=ParallelLayer(),
    x=TEXT,
)
def parallel_attention_and_mlp(m, x):
    return m.layer(m.stem(x))


class CoAttention(nn.Module):
    """ViLBERT: two streams, each attends to the other."""

    def __init__(self):
        super().__init__()
        self.norm_a, self.norm_b = nn.LayerNorm(8), nn.LayerNorm(8)
        self.a_to_b = nn.MultiheadAttention(8, 2, batch_first=True)
        self.b_to_a = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, a, b):
        x, y = self.norm_a(a), self.norm_b(b)
        return a + self.b_to_a(x, y, y)[0], b + self.a_to_b(y, x, x)[0]


@net(
    "identity layer words layer layer.norm_a",
    "identity layer pixels layer layer.norm_b",
    words=lin(),
    pixels=lin(),
    layer=CoAttention(),
    x=(torch.Size(TEXT), torch.Size((2, 3, 8))),
)
def co_attention(m, a, b):
    return m.layer(m.words(a), m.pixels(b))


@net(
    "scaled (root) (root) (root) w1",
    "nested (root) (root) (root) w1",
    "scaled (root) (root) (root) w2",
    enc=lin(),
    w1=nn.Linear(8, 8, bias=False),
    w2=nn.Linear(8, 8, bias=False),
    head=lin(8, 3),
    x=(torch.Size((6, 8)), torch.rand(6, 6)),
)
def gcnii(m, x, adj):
    """Chen et al. 2020: initial residual, and a weight near the identity."""
    h = h0 = F.relu(m.enc(x))
    for number, layer in enumerate((m.w1, m.w2), start=1):
        theta = math.log(0.5 / number + 1)
        support = 0.9 * (adj @ h) + 0.1 * h0
        h = F.relu(theta * layer(support) + (1 - theta) * support)
    return m.head(h)


class SAGEConv(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin_l, self.lin_r = lin(), nn.Linear(8, 8, bias=False)

    def forward(self, x, adj):
        out = self.lin_l(adj @ x / adj.sum(1, keepdim=True))
        return out + self.lin_r(x)


@net(
    "identity (root) c1 (root) n2",
    c1=SAGEConv(),
    n2=nn.LayerNorm(8),
    c2=SAGEConv(),
    x=(torch.Size((6, 8)), torch.rand(6, 6)),
)
def deep_sage(m, x, adj):
    x = m.c1(x, adj)
    return x + m.c2(F.dropout(F.relu(m.n2(x)), 0.1, m.training), adj)


class NBeatsBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.theta = nn.Sequential(lin(), nn.ReLU(), lin(), nn.ReLU()), lin(8, 11)

    def forward(self, x):
        return self.theta(self.fc(x)).split((8, 3), dim=-1)


@net(
    "identity (root) stem (root) a.fc.0",
    "identity (root) (root) (root) b.fc.0",
    stem=lin(),
    a=NBeatsBlock(),
    b=NBeatsBlock(),
    head=lin(),
)
def n_beats_backcasts(m, x):
    x = m.stem(x)
    for block in (m.a, m.b):
        backcast, _ = block(x)
        x = x - backcast
    return m.head(x)


class TimeMix(nn.Module):
    """RWKV: this token mixed with the one before, a gated sum over the past."""

    def __init__(self):
        super().__init__()
        self.mix_k, self.mix_r = (nn.Parameter(torch.rand(8)) for _ in range(2))
        self.key, self.value, self.receptance = (nn.Linear(8, 8, bias=False) for _ in range(3))
        self.output = nn.Linear(8, 8, bias=False)

    def forward(self, x):
        last = F.pad(x, (0, 0, 1, -1))
        xk = x * self.mix_k + last * (1 - self.mix_k)
        xr = x * self.mix_r + last * (1 - self.mix_r)
        k = torch.exp(self.key(xk))
        wkv = torch.cumsum(k * self.value(xk), 1) / torch.cumsum(k, 1)
        return self.output(torch.sigmoid(self.receptance(xr)) * wkv)


class RwkvBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.ln1, self.ln2, self.att, self.ffn = nn.LayerNorm(8), nn.LayerNorm(8), TimeMix(), mlp()

    def forward(self, x):
        x = x + self.att(self.ln1(x))
        x = x + self.ffn(self.ln2(x))
        return x


@net(
    "identity block stem block block.ln1",
    "identity block block block block.ln2",
    stem=lin(),
    block=RwkvBlock(),
    x=TEXT,
)
def rwkv(m, x):
    return m.block(m.stem(x))


class SwinBlock(nn.Module):
    """Shifted windows: rolled, cut into windows, attended to, put together, rolled back."""

    def __init__(self):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(8), Attention()
        self.norm2, self.mlp = nn.LayerNorm(8), mlp()

    def forward(self, x):
        b, h, w, c = 2, 4, 4, 8
        shortcut = x
        x = torch.roll(self.norm1(x).view(b, h, w, c), shifts=(-1, -1), dims=(1, 2))
        x = x.view(b, 2, 2, 2, 2, c).permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, 4, c)
        x = self.attn(x).view(b, 2, 2, 2, 2, c).permute(0, 1, 3, 2, 4, 5).contiguous()
        x = torch.roll(x.view(b, h, w, c), shifts=(1, 1), dims=(1, 2)).view(b, h * w, c)
        x = shortcut + x
        return x + self.mlp(self.norm2(x))


@net(
    "identity block stem block block.norm1",
    "identity block block block block.norm2",
    stem=lin(),
    block=SwinBlock(),
    x=(2, 16, 8),
)
def shifted_windows(m, x):
    return m.block(m.stem(x))


class RNNWithSkips(nn.Module):
    """GNMT: recurrent layers with residuals from the third on."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.LSTM(8, 8, batch_first=True) for _ in range(4))
        self.dropout = nn.Dropout(0.2)

    def forward(self, x):
        for i, layer in enumerate(self.layers):
            residual = x
            x, _ = layer(self.dropout(x))
            if i >= 2:
                x = x + residual
        return x


@net(
    "identity rnn rnn.layers.1 rnn rnn.dropout",
    "identity rnn rnn rnn rnn.dropout",
    stem=lin(),
    rnn=RNNWithSkips(),
    x=TEXT,
)
def residual_lstm_stack(m, x):
    return m.rnn(m.stem(x))


class EquilibriumCell(nn.Module):
    """Bai et al. 2019, the solver unrolled: z <- tanh(W z + x), from z = 0."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm = lin(), nn.LayerNorm(8)

    def forward(self, z, x):
        return self.norm(torch.tanh(self.linear(z) + x))


@net(
    "identity (root) stem cell cell",
    stem=lin(),
    cell=EquilibriumCell(),
    head=lin(),
)
def deep_equilibrium_unrolled(m, x):
    x = m.stem(x)
    z = torch.zeros_like(x)
    for _ in range(2):
        z = m.cell(z, x)
    return m.head(z)


class GraphGPS(nn.Module):
    """Rampasek et al. 2022: a graph convolution (GIN) and attention side by side."""

    def __init__(self):
        super().__init__()
        self.conv, self.attn, self.mlp = mlp(), lin(), mlp()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(8) for _ in range(3))

    def forward(self, x, adj):
        local = self.norm1(self.conv((1 + 0.1) * x + adj @ x) + x)
        far = self.norm2(F.scaled_dot_product_attention(q := self.attn(x), q, q) + x)
        out = local + far
        return self.norm3(out + self.mlp(out))


@net(
    "identity gps stem gps gps.conv.0",
    "identity gps stem gps gps.attn",
    "identity gps gps gps gps.mlp.0",
    stem=lin(),
    gps=GraphGPS(),
    x=(torch.Size((1, 6, 8)), torch.rand(6, 6)),
)
def graph_with_attention(m, x, adj):
    return m.gps(m.stem(x), adj)
