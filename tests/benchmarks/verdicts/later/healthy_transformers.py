"""Transformers written by hand or of torch.nn, for characters, numbers and pictures."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import CHARACTERS, seeded, text
from ..loops import adam, adamw, by_loss, next_character, supervised, warmed
from ..trainings import Step, healthy


def warm_cosine(
    optimizer: torch.optim.Optimizer, warm: int = 10, total: int = 100
) -> torch.optim.lr_scheduler.LambdaLR:
    """Return a linear warm-up, then half a cosine down to a tenth."""

    def share(number: int) -> float:
        if number < warm:
            return (number + 1) / warm
        return 0.55 + 0.45 * math.cos(math.pi * (number - warm) / max(1, total - warm))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, share)


def decayed(model: nn.Module, lr: float, decay: float = 0.1) -> torch.optim.AdamW:
    """Return AdamW as language models have it: no decay of norms and biases."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95))


def sines(length: int, width: int) -> Tensor:
    place = torch.arange(length)[:, None]
    speed = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    return torch.stack([(place * speed).sin(), (place * speed).cos()], -1).flatten(1)


class SelfAttention(nn.Module):
    """Attention of a sequence to itself, with a bias added to its logits."""

    def __init__(self, width: int, heads: int = 4, bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width, bias), nn.Linear(width, width, bias)

    def forward(self, x: Tensor, bias: Tensor | None = None, causal: bool = False) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=causal)
        return self.proj(out.transpose(1, 2).reshape(batch, length, width))


class Layer(nn.Module):
    """A pre-norm layer, its branches scaled by learnt numbers if asked."""

    def __init__(self, width: int, heads: int = 4, drop: float = 0.0, scale: float = 0.0) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = SelfAttention(width, heads)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(drop)
        )
        self.drop = nn.Dropout(drop)
        self.gamma = nn.Parameter(torch.full((2, width), scale)) if scale else None

    def forward(self, x: Tensor, bias: Tensor | None = None, causal: bool = False) -> Tensor:
        one, two = (1.0, 1.0) if self.gamma is None else self.gamma
        x = x + one * self.drop(self.attn(self.ln_1(x), bias, causal))
        return x + two * self.mlp(self.ln_2(x))


@healthy("little GPT with tied weights, GPT-2's start, warm-up and cosine AdamW")
def little_gpt() -> tuple[nn.Module, Step]:
    class Net(nn.Module):
        def __init__(self, layers: int = 4, width: int = 64) -> None:
            super().__init__()
            self.wte, self.wpe = nn.Embedding(CHARACTERS, width), nn.Embedding(64, width)
            self.drop = nn.Dropout(0.1)
            self.h = nn.ModuleList(Layer(width, drop=0.1) for _ in range(layers))
            self.ln_f = nn.LayerNorm(width)
            self.lm_head = nn.Linear(width, CHARACTERS, bias=False)
            self.lm_head.weight = self.wte.weight
            for name, p in self.named_parameters():
                if name.endswith(("proj.weight", "mlp.2.weight")):
                    nn.init.normal_(p, 0.0, 0.02 / (2 * layers) ** 0.5)
                elif p.ndim > 1:
                    nn.init.normal_(p, 0.0, 0.02)
                elif name.endswith("bias"):
                    nn.init.zeros_(p)

        def forward(self, x: Tensor) -> Tensor:
            h = self.drop(self.wte(x) + self.wpe(torch.arange(x.shape[1])))
            for layer in self.h:
                h = layer(h, causal=True)
            return self.lm_head(self.ln_f(h))

    model = Net()
    optimizer = decayed(model, 1e-3)
    schedule = warm_cosine(optimizer)
    return model, supervised(
        model, optimizer, text(8, 48), next_character, clip=1.0, schedule=schedule
    )


@healthy("two layers of nn.TransformerEncoder as it comes, rate by Noam's rule Adam")
def noam() -> tuple[nn.Module, Step]:
    class Net(nn.Module):
        def __init__(self, width: int = 64) -> None:
            super().__init__()
            self.width, self.embed = width, nn.Embedding(CHARACTERS, width)
            self.register_buffer("places", sines(64, width))
            layer = nn.TransformerEncoderLayer(width, 4, 128, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, 2)
            self.head = nn.Linear(width, CHARACTERS)

        def forward(self, x: Tensor) -> Tensor:
            length = x.shape[1]
            h = self.embed(x) * self.width**0.5 + self.places[:length]
            mask = nn.Transformer.generate_square_subsequent_mask(length)
            return self.head(self.encoder(h, mask=mask, is_causal=True))

    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.5, betas=(0.9, 0.98), eps=1e-9)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda n: 64**-0.5 * min((n + 1) ** -0.5, (n + 1) * 40**-1.5)
    )
    return model, supervised(model, optimizer, text(16, 32), next_character, schedule=schedule)


@healthy("grouped queries, rotary places, SwiGLU, two batches a step in bfloat16 AdamW")
def grouped() -> tuple[nn.Module, Step]:
    class Grouped(nn.Module):
        def __init__(self, width: int = 64, heads: int = 4, shared: int = 2) -> None:
            super().__init__()
            self.heads, self.shared, size = heads, shared, width // heads
            self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
            self.wq, self.wo = (nn.Linear(width, width, bias=False) for _ in range(2))
            self.wk, self.wv = (nn.Linear(width, shared * size, bias=False) for _ in range(2))
            self.w1, self.w3 = (nn.Linear(width, 172, bias=False) for _ in range(2))
            self.w2 = nn.Linear(172, width, bias=False)

        def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
            h = self.norm1(x)
            q, k, v = (
                layer(h).unflatten(-1, (many, -1)).transpose(1, 2)
                for layer, many in ((self.wq, self.heads), (self.wk, self.shared),
                                    (self.wv, self.shared))
            )  # fmt: skip
            q, k = (
                y * cos
                + torch.cat([-y[..., y.shape[-1] // 2 :], y[..., : y.shape[-1] // 2]], -1) * sin
                for y in (q, k)
            )
            k, v = (y.repeat_interleave(self.heads // self.shared, 1) for y in (k, v))
            out = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, is_causal=True)
            x = x + self.wo(out.transpose(1, 2).flatten(2))
            h = self.norm2(x)
            return x + self.w2(F.silu(self.w1(h)) * self.w3(h))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.norm = nn.Embedding(CHARACTERS, 64), nn.RMSNorm(64)
            self.layers = nn.ModuleList(Grouped() for _ in range(3))
            self.output = nn.Linear(64, CHARACTERS, bias=False)
            angle = torch.arange(64)[:, None] * 10000 ** (-torch.arange(0, 16, 2) / 16)
            self.register_buffer("angle", torch.cat([angle, angle], -1))
            for p in self.parameters():
                if p.ndim > 1:
                    nn.init.normal_(p, 0.0, 0.02)

        def forward(self, x: Tensor) -> Tensor:
            h, angle = self.embed(x), self.angle[: x.shape[1]]
            for layer in self.layers:
                h = layer(h, angle.cos(), angle.sin())
            return self.output(self.norm(h))

    model = Net()
    optimizer, batches = decayed(model, 3e-3), text(8, 32)
    schedule = warm_cosine(optimizer)

    def step(number: int) -> Tensor:
        total = torch.zeros(())
        for part in range(2):
            x, y = batches(2 * number + part)
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(x)
            loss = next_character(logits.float(), y) / 2
            loss.backward()
            total += loss.detach()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        return total

    return model, step


@healthy("numbers sorted by nn.Transformer Adam")
def sorting() -> tuple[nn.Module, Step]:
    class Net(nn.Module):
        def __init__(self, width: int = 64) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(18, width), nn.Linear(width, 18)
            self.register_buffer("places", sines(16, width))
            self.body = nn.Transformer(width, 4, 2, 2, 128, dropout=0.0, batch_first=True)

        def forward(self, x: Tensor, told: Tensor) -> Tensor:
            source, target = (self.embed(z) + self.places[: z.shape[1]] for z in (x, told))
            mask = nn.Transformer.generate_square_subsequent_mask(told.shape[1])
            return self.head(self.body(source, target, tgt_mask=mask, tgt_is_causal=True))

    model = Net()
    optimizer = adam(model, 1e-3)
    schedule = warmed(optimizer)

    def loss_of(number: int) -> Tensor:
        x = torch.randint(16, (64, 6), generator=seeded(number))
        y = x.sort(1).values
        told = torch.cat([torch.full((64, 1), 16), y[:, :-1]], 1)
        schedule.step()
        return F.cross_entropy(model(x, told).flatten(0, 1), y.flatten())

    return model, by_loss(optimizer, loss_of, clip=1.0)


@healthy("logits that fall with distance, squared ReLU, no embedding of places AdamW")
def alibi() -> tuple[nn.Module, Step]:
    class Squared(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu(x).square()

    class Net(nn.Module):
        def __init__(self, width: int = 64, heads: int = 4) -> None:
            super().__init__()
            self.embed, self.norm = nn.Embedding(CHARACTERS, width), nn.LayerNorm(width)
            self.layers = nn.ModuleList(Layer(width, heads) for _ in range(4))
            for layer in self.layers:
                layer.mlp[1] = Squared()
            self.head = nn.Linear(width, CHARACTERS)
            far = (torch.arange(48)[:, None] - torch.arange(48)).float()
            slopes = 2.0 ** (-2 * torch.arange(1, heads + 1))
            bias = -slopes.view(-1, 1, 1) * far
            self.register_buffer("bias", bias.masked_fill(far < 0, float("-inf")))

        def forward(self, x: Tensor) -> Tensor:
            h, length = self.embed(x), x.shape[1]
            for layer in self.layers:
                h = layer(h, self.bias[:, :length, :length])
            return self.head(self.norm(h))

    model = Net()
    return model, supervised(model, decayed(model, 2e-3), text(8, 48), next_character, clip=1.0)


@healthy("thirty-two layers with scales of 1e-4, recomputed in the backward AdamW")
def deep_scaled() -> tuple[nn.Module, Step]:
    from torch.utils.checkpoint import checkpoint

    class Net(nn.Module):
        def __init__(self, width: int = 32) -> None:
            super().__init__()
            self.embed = nn.Embedding(CHARACTERS, width)
            self.places = nn.Parameter(0.02 * torch.randn(32, width))
            self.layers = nn.ModuleList(Layer(width, 2, scale=1e-4) for _ in range(32))
            self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CHARACTERS)

        def forward(self, x: Tensor) -> Tensor:
            h = self.embed(x) + self.places
            for layer in self.layers:
                h = checkpoint(layer, h, None, True, use_reentrant=False)
            return self.head(self.norm(h))

    model = Net()
    return model, supervised(model, adamw(model, 2e-3), text(4, 32), next_character, clip=1.0)
