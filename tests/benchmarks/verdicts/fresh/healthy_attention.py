"""Blocks of characters: norms, shortcuts and memories of other makes."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import text
from ..loops import adam, adamw, next_character, supervised, warmed
from ..trainings import Step, healthy
from .healthy_nets import Attention, dense


class Characters(nn.Module):
    """A model of characters of blocks that are made by a function."""

    def __init__(self, block: object, layers: int, width: int = 48) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(96, width), nn.Embedding(32, width)
        for table in (self.tokens, self.places):
            nn.init.normal_(table.weight, std=0.5)
        self.blocks = nn.Sequential(*(block() for _ in range(layers)))  # type: ignore[operator]
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 96)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.tokens(x) + self.places.weight)))


@healthy("sixteen post-norm layers whose shortcuts are scaled up AdamW")
def scaled_up() -> tuple[nn.Module, Step]:
    gain, small = (2 * 16) ** 0.25, (8 * 16) ** -0.25

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.see, self.body = Attention(48), dense(48, 96, 48)
            self.norm1, self.norm2 = nn.LayerNorm(48), nn.LayerNorm(48)
            for layer in (self.see.value, self.see.out, self.body[0], self.body[2]):
                nn.init.xavier_normal_(layer.weight, small)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm1(gain * x + self.see(x, causal=True))
            return self.norm2(gain * x + self.body(x))

    model = Characters(Block, 16)
    optimizer = adamw(model, 2e-3)
    return model, supervised(
        model, optimizer, text(8, 32), next_character, schedule=warmed(optimizer, 10)
    )


@healthy("attention and layers side by side, norms on both ends AdamW")
def side_by_side() -> tuple[nn.Module, Step]:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.see, self.body = Attention(48), dense(48, 128, 48, act=nn.GELU)
            self.before, self.after = nn.RMSNorm(48), nn.RMSNorm(48)

        def forward(self, x: Tensor) -> Tensor:
            h = self.before(x)
            return x + self.after(self.see(h, causal=True) + self.body(h))

    model = Characters(Block, 6)
    return model, supervised(model, adamw(model, 2e-3), text(8, 32), next_character, clip=1.0)


@healthy("kept states that fade, several heads of decay Adam")
def fading() -> tuple[nn.Module, Step]:
    class Retain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix, self.gate, self.out = (nn.Linear(48, n, bias=False) for n in (144, 48, 48))
            self.norm, self.own = nn.LayerNorm(48), nn.GroupNorm(4, 48)
            gap = torch.arange(32)[:, None] - torch.arange(32)
            fade = (1 - 2.0 ** -torch.arange(2, 6))[:, None, None]
            self.register_buffer("fade", torch.where(gap >= 0, fade ** gap.clamp_min(0), 0.0))

        def forward(self, x: Tensor) -> Tensor:
            h = self.norm(x)
            q, k, v = self.mix(h).unflatten(-1, (3, 4, 12)).permute(2, 0, 3, 1, 4)
            seen = (q @ k.mT / math.sqrt(12) * self.fade) @ v
            seen = self.own(seen.transpose(1, 2).flatten(0, 1).flatten(1)).view_as(x)
            return x + self.out(F.silu(self.gate(h)) * seen)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.retain, self.norm = Retain(), nn.LayerNorm(48)
            self.body = dense(48, 96, 48, act=nn.GELU)

        def forward(self, x: Tensor) -> Tensor:
            x = self.retain(x)
            return x + self.body(self.norm(x))

    model = Characters(Block, 3)
    return model, supervised(model, adam(model, 2e-3), text(8, 32), next_character)
