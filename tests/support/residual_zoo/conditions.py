"""Conditions that are injected into a stream: no shortcuts, for all that they skip every layer.

Beside them stand nets that differ in little, where a stream is joined with a branch of its own.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from residual_zoo.harness import IMAGE, TEXT, conv, lin, mlp, net
from residual_zoo.structure import Residual

PAIR = (torch.Size((4, 8)), torch.Size((4, 8)))


def layers(count: int, width: int = 8) -> nn.ModuleList:
    return nn.ModuleList(nn.Sequential(lin(width), nn.ReLU()) for _ in range(count))


@net(stem=lin(), cond=lin(), layers=layers(4), x=PAIR)
def condition_added_before_every_layer(m, x, z):
    x, c = m.stem(x), m.cond(z)
    for f in m.layers:
        x = f(x + c)
    return x


@net(cond=lin(), layers=layers(4), x=PAIR)
def condition_added_before_every_layer_to_the_bare_input(m, x, z):
    c = m.cond(z)
    for f in m.layers:
        x = f(x + c)
    return x


@net(cond=lin(), layers=layers(3), x=PAIR)
def condition_written_before_the_bare_input(m, x, z):
    c = m.cond(z)
    for f in m.layers:
        x = f(c + x)
    return x


@net(cond=lin(8, 16), layers=layers(3), x=PAIR)
def scale_and_shift_of_the_bare_input(m, x, z):
    c = m.cond(z)
    for f in m.layers:
        x = f(x * c[:, :8] + c[:, 8:])
    return x


@net(stem=lin(), cond=lin(), layers=layers(2), x=PAIR)
def condition_added_twice(m, x, z):
    x, c = m.stem(x), m.cond(z)
    for f in m.layers:
        x = f(x + c)
    return x


@net(stem=lin(), cond=lin(), layers=layers(4), x=PAIR)
def condition_written_first(m, x, z):
    x, c = m.stem(x), m.cond(z)
    for f in m.layers:
        x = f(c + x)
    return x


@net(stem=lin(), cond=lin(), layers=layers(3), x=PAIR)
def condition_added_behind_every_layer(m, x, z):
    x, c = m.stem(x), m.cond(z)
    for f in m.layers:
        x = f(x) + c
    return x


@net(stem=lin(), cond=lin(), layers=layers(3), x=PAIR)
def condition_added_in_place(m, x, z):
    x, c = m.stem(x), m.cond(z)
    for f in m.layers:
        x = f[0](x)
        x += c
        x = torch.tanh(x)
    return x


@net(stem=lin(), cond=lin(), layers=layers(3), x=(torch.Size(TEXT), torch.Size(TEXT)))
def condition_added_in_place_to_a_view(m, x, z):
    x, c = m.stem(x), m.cond(z)
    for f in m.layers:
        x = f[0](x)
        x += c
        x = x.relu_()
    return x


@net(stem=lin(), cond=mlp(), layers=layers(3), x=PAIR)
def condition_scaled(m, x, z):
    x, c = m.stem(x), m.cond(z)
    for f in m.layers:
        x = f(x + 0.1 * c)
    return x


@net(
    "identity (root) stem (root) layers.0.0",
    "identity (root) (root) (root) layers.1.0",
    stem=lin(), cond=lin(8, 16), layers=layers(2), x=PAIR,
)  # fmt: skip
def stream_with_scale_and_shift_in_every_branch(m, x, z):
    x = m.stem(x)
    scale, shift = m.cond(z).chunk(2, -1)
    for f in m.layers:
        x = f(torch.addcmul(shift, x, scale)) + x
    return x


@net(stem=lin(), cond=lin(8, 16), layers=layers(4), x=PAIR)
def scale_and_shift_for_all_layers(m, x, z):
    x = m.stem(x)
    scale, shift = m.cond(z).chunk(2, -1)
    for f in m.layers:
        x = f(x * (1 + scale) + shift)
    return x


@net(stem=lin(), scale=lin(), shift=lin(), layers=layers(4), x=PAIR)
def scale_and_shift_of_two_projections(m, x, z):
    x, scale, shift = m.stem(x), m.scale(z), m.shift(z)
    for f in m.layers:
        x = F.relu(shift + scale * f[0](x))
    return x


@net(stem=lin(), scale=lin(), shift=lin(), layers=layers(4), x=PAIR)
def scale_and_shift_by_addcmul(m, x, z):
    x, scale, shift = m.stem(x), m.scale(z), m.shift(z)
    for f in m.layers:
        x = f(torch.addcmul(shift, x, scale))
    return x


class FiLMLayer(nn.Module):
    """Perez et al. 2018: a scale and a shift, projected from the condition by each layer."""

    def __init__(self):
        super().__init__()
        self.film, self.conv, self.norm = lin(8, 8), conv(), nn.BatchNorm2d(4, affine=False)

    def forward(self, x, c):
        gamma, beta = self.film(c)[:, :, None, None].chunk(2, 1)
        return F.relu(gamma * self.norm(self.conv(x)) + beta)


@net(
    stem=conv(),
    cond=mlp(),
    layers=nn.ModuleList(FiLMLayer() for _ in range(3)),
    x=(torch.Size(IMAGE), torch.Size((2, 8))),
)
def film_generator(m, x, z):
    x, c = m.stem(x), m.cond(z)
    for f in m.layers:
        x = f(x, c)
    return x


class Conditioned(nn.Module):
    """Layers that project a condition of the full shape and add it, called on stream and it."""

    def __init__(self, count=3):
        super().__init__()
        self.layers, self.projections = layers(count), layers(count)

    def forward(self, x, c):
        for f, p in zip(self.layers, self.projections, strict=True):
            x = F.relu(f[0](x) + p[0](c))
        return x


@net(stem=lin(), cond=mlp(), body=Conditioned(), x=PAIR)
def condition_projected_for_every_layer(m, x, z):
    return m.body(m.stem(x), m.cond(z))


@net(stem=lin(), cond=mlp(), layers=layers(3, 16), head=lin(16, 8), x=PAIR)
def condition_concatenated_before_every_layer(m, x, z):
    x, c = m.stem(x), m.cond(z)
    for f in m.layers:
        x = f(torch.cat([x, c], -1))[:, :8]
    return x


@net(stem=lin(), cond=mlp(), layers=nn.ModuleList(lin(16, 8) for _ in range(3)), x=PAIR)
def condition_concatenated_to_a_relu_stream(m, x, z):
    x, c = m.stem(x), m.cond(z)
    for f in m.layers:
        x = F.relu(f(torch.cat([x, c], -1)))
    return x


@net(  # the stream's own context is a branch where it is added first
    "identity (root) stem (root) cond",
    stem=lin(), cond=lin(), layers=layers(4), x=TEXT,
)  # fmt: skip
def condition_pooled_from_the_stream(m, x):
    x = m.stem(x)
    c = m.cond(x.mean(1, keepdim=True)).expand_as(x)
    for f in m.layers:
        x = f(x + c)
    return x


@net(stem=lin(), layers=layers(3), x=(torch.Size(TEXT), torch.randn(2, 5, 8)))
def constant_before_every_layer(m, x, mask):
    x = m.stem(x)
    for f in m.layers:
        x = f(x + mask)
    return x


@net(stem=lin(), cond=lin(), layers=layers(3), x=PAIR)
def condition_mixed_with_every_input(m, x, z):
    x, c = m.stem(x), m.cond(z)
    for f in m.layers:
        x = f(torch.lerp(x, c, 0.3))
    return x


@net(
    "identity layers.0 (root) layers.0 layers.0.body.0",
    "identity layers.1 (root) layers.1 layers.1.body.0",
    stem=lin(),
    cond=lin(),
    layers=nn.ModuleList(Residual(mlp(), nn.ReLU()) for _ in range(2)),
    x=PAIR,
)
def condition_added_before_residual_blocks(m, x, z):
    x, c = m.stem(x), m.cond(z)
    for f in m.layers:
        x = f(x + c)
    return x


@net(
    *["identity (root) stem (root) layers.0.0"],
    *[f"identity (root) norms.{i} (root) layers.{i + 1}.0" for i in (0, 1)],
    stem=lin(),
    cond=lin(),
    layers=layers(3),
    norms=nn.ModuleList(nn.LayerNorm(8) for _ in range(3)),
    x=PAIR,
)
def normalised_stream_with_all_written_last(m, x, z):
    x, c = m.stem(x), m.cond(z)
    for f, norm in zip(m.layers, m.norms, strict=True):
        x = norm(f(c + x) + x)
    return x


@net(
    *["identity (root) stem (root) layers.0.0"],
    *[f"identity (root) (root) (root) layers.{i}.0" for i in (1, 2)],
    stem=lin(), cond=lin(), layers=layers(3), x=PAIR,
)  # fmt: skip
def stream_with_a_condition_in_every_branch(m, x, z):
    x, c = m.stem(x), m.cond(z)
    for f in m.layers:
        x = x + f(x + c)
    return x


@net(
    *["identity (root) stem (root) layers.0.0"],
    *[f"identity (root) (root) (root) layers.{i}.0" for i in (1, 2)],
    stem=lin(), cond=lin(), layers=layers(3), x=PAIR,
)  # fmt: skip
def stream_with_a_condition_written_first(m, x, z):
    x, c = m.stem(x), m.cond(z)
    for f in m.layers:
        x = f(c + x) + x
    return x


@net(
    *["identity (root) (root) (root) layers.0.0"],
    *[f"identity (root) (root) (root) layers.{i}.0" for i in (1, 2)],
    stem=lin(), cond=lin(), layers=layers(3), x=PAIR,
)  # fmt: skip
def stream_that_takes_the_condition_up(m, x, z):
    x, c = m.stem(x), m.cond(z)
    for f in m.layers:
        x = x + c
        x = x + f(x)
    return x


@net("identity (root) stem (root) f.0", stem=lin(), cond=lin(), f=mlp(), head=lin(), x=PAIR)
def one_branch_with_a_condition(m, x, z):
    x, c = m.stem(x), m.cond(z)
    return m.head(x + m.f(x + c))


@net("identity (root) stem (root) layers.0.0", stem=lin(), layers=layers(3))
def input_of_a_chain_added_behind_it(m, x):
    x = m.stem(x)
    y = x
    for f in m.layers:
        y = f(y)
    return x + y


class TimedBlock(nn.Module):
    """A block of a diffusion U-Net, with a time embedding of the full shape, normalised without."""

    def __init__(self, cin=4, cout=4):
        super().__init__()
        self.norm1, self.norm2 = (nn.GroupNorm(2, c, affine=False) for c in (cin, cout))
        self.conv1, self.conv2 = conv(cin, cout), conv(cout, cout)
        self.time, self.skip = lin(8, cout), conv(cin, cout, 1, 1) if cin != cout else nn.Identity()

    def forward(self, x, t):
        t = self.time(t)[:, :, None, None].expand(-1, -1, *x.shape[2:])
        y = self.conv1(F.silu(self.norm1(x))) + t
        return self.skip(x) + self.conv2(F.silu(self.norm2(y)))


@net(
    "identity a stem a a.norm1",
    "projection b a b b.norm1",
    "identity c b c c.norm1",
    stem=conv(),
    time=mlp(),
    a=TimedBlock(),
    b=TimedBlock(4, 8),
    c=TimedBlock(8, 8),
    x=(torch.Size(IMAGE), torch.Size((2, 8))),
)
def time_embedding_inside_of_blocks(m, x, t):
    t = m.time(t)
    return m.c(m.b(m.a(m.stem(x), t), t), t)
