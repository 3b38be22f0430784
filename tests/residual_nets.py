"""Small nets with the residual joins that they have, and a collector of their module calls.

Each net is a forward function over a few modules. What is expected of it is one line a join:
``form name split join branch``, the columns of the shortcuts' table.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gradscope.graph import Call, Graph, sequence_number, walk
from gradscope.joins import Join, find_joins


def tensors(value: Any) -> list[Tensor]:
    """Return the tensors that require grad in nested arguments or results."""
    if isinstance(value, Tensor):
        return [value] if value.requires_grad else []
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [tensor for part in value for tensor in tensors(part)]
    return []


def ends(value: Any) -> tuple[Any, ...]:
    """Return (node, slot) of the tensors in `value`; a leaf stands for its accumulator."""
    return tuple(
        (torch.autograd.graph.get_gradient_edge(t).node, t.output_nr) for t in tensors(value)
    )


@dataclass
class Recording:
    """One forward pass: what came out, its graph, its calls, its joins."""

    output: Any
    graph: Graph
    calls: list[Call]

    @property
    def joins(self) -> list[Join]:
        return find_joins(self.graph, self.calls)

    @property
    def lines(self) -> list[str]:
        return [f"{j.form} {j.name} {j.split} {j.join} {j.branch}" for j in self.joins]


def record(model: nn.Module, *args: Any, run: Callable[..., Any] | None = None, **kwargs: Any):
    """Run a forward pass under hooks that note every module's calls, and walk its graph."""
    calls: list[Call] = []
    opened: list[tuple[int, Any, int]] = []

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        opened.append((len(calls), ends([args, kwargs]), sequence_number()))
        calls.append(None)  # type: ignore[arg-type]

    def after(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            place, inputs, start = opened.pop()
            own = list(module.parameters(recurse=False))
            frozen = any(not parameter.requires_grad for parameter in own)
            kind = type(module).__name__
            stop = sequence_number()
            calls[place] = Call(name, kind, bool(own), start, stop, inputs, ends(output), frozen)

        return hook

    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(module.register_forward_hook(after(name), with_kwargs=True))
    output = (run or model)(*args, **kwargs)
    for handle in handles:
        handle.remove()
    root = calls[0]
    graph = walk(root.outputs, {node for node, _ in root.inputs})
    return Recording(output, graph, calls)


class Net(nn.Module):
    """Modules and a forward function over them."""

    def __init__(self, function: Callable[..., Any], **modules: nn.Module | nn.Parameter):
        super().__init__()
        self.function = function
        for name, module in modules.items():
            setattr(self, name, copy.deepcopy(module))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self, *args, **kwargs)


@dataclass
class Case:
    """A net, what it is called on, and its joins."""

    name: str
    build: Callable[[], nn.Module]
    inputs: tuple[Any, ...]
    joins: list[str]


ZOO: list[Case] = []


def net(*joins: str, x: Any = (4, 8), **modules: Any) -> Callable[..., Any]:
    """Add a net to the zoo; `x` is the shape of its input, or the inputs themselves."""

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        def build() -> nn.Module:
            return Net(function, **modules)

        inputs = (torch.Size(x),) if isinstance(x[0], int) else x
        ZOO.append(Case(function.__name__, build, inputs, list(joins)))
        return function

    return add


def prepare(case: Case, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, list[Any]]:
    """Build the net of a case and its inputs, always the same."""
    torch.manual_seed(0)
    model = case.build().to(dtype)
    inputs = [
        torch.randn(x, dtype=dtype) if isinstance(x, torch.Size) else copy.deepcopy(x)
        for x in case.inputs
    ]
    return model, inputs


def lin(width: int = 8, out: int | None = None) -> nn.Linear:
    return nn.Linear(width, out or width)


def mlp(width: int = 8) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))


def conv(cin: int = 4, cout: int = 4, stride: int = 1, kernel: int = 3) -> nn.Conv2d:
    return nn.Conv2d(cin, cout, kernel, stride, kernel // 2, bias=False)


IMAGE = (2, 4, 8, 8)
TEXT = (2, 5, 8)


# --- additions, however written -----------------------------------------------------------------


@net("identity (root) stem (root) f", stem=lin(), f=lin())
def functional_add(m, x):
    x = m.stem(x)
    return x + m.f(x)


@net("identity (root) (root) (root) f", stem=lin(), f=lin())
def add_in_place(m, x):
    x = m.stem(x) * 1
    x += m.f(x)
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


# --- gates --------------------------------------------------------------------------------------


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


@net(*["gated cell cell cell cell"] * 2, cell=nn.GRUCell(8, 8), x=(4, 3, 8))
def gru_cell(m, x):
    h = x.new_zeros(len(x), 8)
    for t in range(3):
        h = m.cell(x[:, t], h)
    return h


# --- must not be flagged ------------------------------------------------------------------------


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


@net(rnn=nn.LSTM(8, 8, batch_first=True), head=lin(), x=TEXT)
def fused_lstm(m, x):
    return m.head(m.rnn(x)[0])


@net(cell=nn.RNNCell(8, 8), embed=nn.Embedding(9, 8), x=(torch.ones(2, 4).long(),))
def recurrent_cell_on_embeddings(m, x):
    x = m.embed(x)
    h = x.new_zeros(2, 8)
    for t in range(4):
        h = m.cell(x[:, t], h)
    return h


@net(cell=nn.LSTMCell(8, 8), x=(4, 1, 8))
def one_step_of_an_lstm_cell(m, x):
    return m.cell(x[:, 0])[0]


@net(*["gated (root) cell cell cell"] * 2, cell=nn.LSTMCell(8, 8), x=(4, 3, 8))
def lstm_cell(m, x):
    state = None
    for t in range(3):
        state = m.cell(x[:, t], state)
    return state[0]


@net(q=lin(), k=lin(), v=lin(), o=lin(), x=TEXT)
def attention(m, x):
    return m.o(F.scaled_dot_product_attention(m.q(x), m.k(x), m.v(x)))


@net(stem=lin(), trunk=lin(8, 4), up=lin(), head=lin(4, 8), x=TEXT)
def einsum_without_a_skip(m, x):
    x = m.stem(x)
    return torch.einsum("btd,bsd->bts", m.up(x), m.head(m.trunk(x)))


# --- convolutional nets -------------------------------------------------------------------------


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


# --- transformers -------------------------------------------------------------------------------


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


# --- structure that varies ----------------------------------------------------------------------


@net("identity (root) stem (root) f", stem=lin(), f=lin())
def stochastic_depth_by_a_mask(m, x):
    x = m.stem(x)
    mask = torch.bernoulli(torch.full((len(x), 1), 0.8))
    return x + m.f(x) * mask / 0.8


@net("identity (root) stem (root) f", stem=lin(), f=lin(), g=lin())
def stochastic_depth_by_skipping(m, x):
    x = m.stem(x)
    for block, keep in ((m.f, True), (m.g, False)):
        if keep:
            x = x + block(x)
    return x


@net(
    "identity (root) stem (root) f",
    *["identity (root) (root) (root) f"] * 2,
    stem=lin(),
    f=lin(),
)
def shared_block_in_a_loop(m, x):
    x = m.stem(x)
    for _ in range(3):
        x = x + m.f(x)
    return x


class Residual(nn.Module):
    def __init__(self, body, activation=None):
        super().__init__()
        self.body = body
        self.activation = activation or nn.Identity()

    def forward(self, x):
        return self.activation(x + self.body(x))


@net(
    "identity block.body stem block.body block.body.body",
    "nested block stem block block.body.body",
    stem=lin(),
    block=Residual(Residual(lin(), nn.ReLU())),
)
def nested_residual(m, x):
    return m.block(m.stem(x))


@net(
    "identity a.body.0 stem a.body.0 a.body.0.body",
    "identity a stem a a.body.0.body",
    stem=lin(),
    a=Residual(nn.Sequential(Residual(lin()), lin())),
)
def long_skip_around_blocks(m, x):
    return m.a(m.stem(x))


@net(
    "partial (root) stem (root) f.0", "partial (root) (root) (root) f.0",
    "partial (root) (root) (root) g.0", "partial (root) (root) (root) f.0",
    stem=lin(8, 16), f=mlp(), g=mlp(),
)  # fmt: skip
def reversible_coupling(m, x):
    a, b = m.stem(x).chunk(2, 1)
    for _ in range(2):
        a = a + m.f(b)
        b = b + m.g(a)
    return torch.stack([a, b])


def frozen(module: nn.Module) -> nn.Module:
    return module.requires_grad_(False)


@net("identity (root) stem (root) f.0", stem=lin(), f=frozen(mlp()))
def frozen_branch(m, x):
    x = m.stem(x)
    return x + m.f(x)


@net("identity (root) stem (root) f.0", stem=conv(), f=frozen(nn.Sequential(conv())), x=IMAGE)
def frozen_convolution(m, x):
    x = m.stem(x)
    return x + m.f(x)


@net("identity (root) stem (root) f.0", stem=lin(), f=mlp())
def checkpointed_branch(m, x):
    x = m.stem(x)
    return x + checkpoint(m.f, x, use_reentrant=False)


@net("identity (root) stem (root) f.0", stem=lin(), f=mlp())
def checkpointed_branch_reentrant(m, x):
    x = m.stem(x)
    return x + checkpoint(m.f, x, use_reentrant=True)


@net("identity block stem block block.body.0", stem=lin(), block=Residual(mlp()))
def checkpointed_block(m, x):
    return checkpoint(m.block, m.stem(x), use_reentrant=False)


@net("identity (root) stem (root) f", stem=lin(), f=lin(), x=({"x": torch.ones(4, 8)},))
def dict_in_and_out(m, batch):
    x = m.stem(batch["x"])
    return {"y": x + m.f(x), "extra": None}


@net("identity (root) stem (root) f.0", stem=lin(), f=nn.Sequential(lin(), nn.Dropout(0.2)))
def dropout_on_the_branch(m, x):
    x = m.stem(x)
    return x + m.f(x)


class AddFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, b):
        return a + b

    @staticmethod
    def backward(ctx, grad):
        return grad, grad


class ProductFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return a * b

    @staticmethod
    def backward(ctx, grad):
        a, b = ctx.saved_tensors
        return grad * b, grad * a


@net("identity (root) stem (root) f", stem=lin(), f=lin())
def custom_addition(m, x):
    x = m.stem(x)
    return AddFunction.apply(x, m.f(x))


@net(stem=lin(), f=lin())
def custom_product(m, x):
    x = m.stem(x)
    return ProductFunction.apply(x, torch.sigmoid(m.f(x)))


@net(stem=lin(), gate=lin(), x=TEXT)
def product_and_copy_in_place(m, x):
    x = m.stem(x)
    y = m.gate(x)
    y *= x
    z = m.stem(y)
    z[:, 1] = y[:, 1]
    return z
