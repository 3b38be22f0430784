"""Structures that vary, repeat, nest, or hide."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

from residual_zoo.harness import IMAGE, TEXT, ZOO, Case, conv, lin, mlp, net


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


@net("partial (root) stem (root) t.0", stem=lin(8, 8), s=mlp(4), t=mlp(4))
def affine_coupling(m, x):
    a, b = m.stem(x).chunk(2, 1)
    b = b * torch.exp(m.s(a)) + m.t(a)
    return torch.cat([a, b], 1)


@net("partial (root) stem (root) t.0", stem=lin(8, 8), s=mlp(4), t=mlp(4))
def affine_coupling_by_index(m, x):
    """As in nflows: no value goes both ways."""
    x = m.stem(x)
    a, b = x[:, torch.arange(4), ...], x.index_select(1, torch.arange(4, 8))
    b = b * torch.exp(m.s(a)) + m.t(a)
    return torch.cat([a, b], 1)


@net("identity (root) stem (root) f", stem=lin(), f=nn.utils.parametrizations.weight_norm(lin()))
def weight_norm_branch(m, x):
    x = m.stem(x)
    return x + m.f(x)


def pruned():
    return prune.random_unstructured(lin(), "weight", 0.5)


class Pruned(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = lin()
        self.f = pruned()

    def forward(self, x):
        x = self.stem(x)
        return x + self.f(x)


ZOO.append(Case("pruned_branch", Pruned, (torch.Size((4, 8)),), ["identity (root) stem (root) f"]))


@net("identity (root) stem (root) f", stem=lin(), f=lin())
def branch_behind_where(m, x):
    x = m.stem(x)
    return x + torch.where(torch.rand(4, 1) < 0.8, m.f(x), torch.zeros(()))


@net("partial (root) stem (root) f.0", stem=lin(), f=mlp(4))
def additive_coupling(m, x):
    a, b = m.stem(x).chunk(2, -1)
    return torch.cat([a, b + m.f(a)], -1)


@net(
    "partial (root) stem (root) f.0",
    "partial (root) (root) (root) f.0",
    stem=lin(),
    f=mlp(4),
    g=mlp(4),
)
def reversible_block(m, x):
    x1, x2 = torch.split(m.stem(x), 4, 1)
    y1 = x1 + m.f(x2)
    y2 = x2 + m.g(y1)
    return torch.cat((y1, y2), 1)


class LoRA(nn.Module):
    def __init__(self):
        super().__init__()
        self.base = lin().requires_grad_(False)
        self.a = nn.Parameter(torch.randn(2, 8))
        self.b = nn.Parameter(torch.zeros(8, 2))

    def forward(self, x):
        return self.base(x) + (x @ self.a.t() @ self.b.t()) * 2.0


@net("identity (root) stem (root) l.base", stem=lin(), l=LoRA())
def residual_lora(m, x):
    x = m.stem(x)
    return x + torch.relu(m.l(x))


class Drop(nn.Module):
    def __init__(self, b, keep):
        super().__init__()
        self.b = b
        self.keep = keep

    def forward(self, x):
        return x + self.b(x) if self.keep else x


@net(
    "identity s.0 stem s.0 s.0.b.0",
    "identity s.2 s.0 s.2 s.2.b.0",
    stem=lin(),
    s=nn.Sequential(Drop(mlp(), True), Drop(mlp(), False), Drop(mlp(), True)),
)
def dropped_block(m, x):
    return m.s(m.stem(x))


class Rev(nn.Module):
    def __init__(self):
        super().__init__()
        self.f = mlp(4)
        self.g = mlp(4)

    def forward(self, x):
        a, b = torch.chunk(x, 2, dim=1)
        a = a + self.f(b)
        b = b + self.g(a)
        return torch.cat([a, b], dim=1)


@net(
    "partial r1 stem r1 r1.f.0",
    "partial r1 r1 r1 r1.f.0",
    "partial r2 r1 r2 r2.f.0",
    "partial r2 r2 r2 r2.f.0",
    stem=lin(),
    r1=Rev(),
    r2=Rev(),
)
def reversible_network(m, x):
    return m.r2(m.r1(m.stem(x)))


class Adapter(nn.Module):
    def __init__(self):
        super().__init__()
        self.d = lin(8, 2)
        self.u = lin(2, 8)

    def forward(self, x):
        return x + self.u(F.gelu(self.d(x)))


class AB(nn.Module):
    def __init__(self):
        super().__init__()
        self.f = mlp().requires_grad_(False)
        self.ad = Adapter()
        self.n = nn.LayerNorm(8)

    def forward(self, x):
        return self.n(x + self.ad(self.f(x)))


@net("identity b.ad b.f.2 b.ad b.ad.d", "identity b stem b b.f.0", stem=lin(), b=AB())
def adapters(m, x):
    return m.b(m.stem(x))


@net(
    "identity (root) stem (root) f.0",
    "identity (root) (root) (root) f.0",
    "identity (root) (root) (root) g.0",
    stem=lin(),
    f=mlp(),
    g=mlp(),
)
def unrolled_and_shared(m, x):
    x = m.stem(x)
    for f in (m.f, m.f, m.g):
        x = x + f(x)
    return x


@net("identity (root) (root) (root) f.0", "nested (root) stem (root) f.0", stem=lin(), f=mlp())
def nested_functional(m, x):
    x = m.stem(x)
    h = torch.tanh(x)
    h = torch.relu(h + m.f(h))
    return x + h


@net(
    "identity (root) stem (root) f.0",
    stem=lin(),
    f=nn.Sequential(lin(), nn.ReLU(), lin()).requires_grad_(False),
    head=lin(),
)
def frozen_residual(m, x):
    x = m.stem(x)
    return m.head(torch.relu(x + m.f(x)))


class DropoutBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.f = mlp()
        self.drop = nn.Dropout(0.1)

    def forward(self, x):
        return x + self.drop(self.f(x))


@net(
    "identity blocks.0 stem blocks.0 blocks.0.f.0",
    "identity blocks.1 blocks.0 blocks.1 blocks.1.f.0",
    stem=lin(),
    blocks=nn.Sequential(DropoutBlock(), DropoutBlock()),
)
def dropout_blocks(m, x):
    return m.blocks(m.stem(x))
