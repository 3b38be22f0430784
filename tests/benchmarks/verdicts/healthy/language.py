"""Transformers: models of the library of that name in small, and such as are written by hand."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import CHARACTERS, digits, images, seeded, text
from ..loops import adam, adamw, by_loss, next_character, supervised, warmed
from ..trainings import Step, healthy

SMALL = {"vocab_size": CHARACTERS, "hidden_size": 48, "num_attention_heads": 4}
DEEP = {"num_hidden_layers": 6, "intermediate_size": 128}
GROUPED = {**SMALL, **DEEP, "num_key_value_heads": 2}
GPT2 = {"vocab_size": CHARACTERS, "n_embd": 48, "n_layer": 8, "n_head": 4}
OPT = {**SMALL, "num_hidden_layers": 6, "ffn_dim": 128, "word_embed_proj_dim": 48}
CAUSAL: list[tuple[str, str, dict[str, Any]]] = [
    ("GPT2", "GPT2LMHeadModel", GPT2),
    ("Llama", "LlamaForCausalLM", GROUPED),
    ("OPT", "OPTForCausalLM", OPT),
    ("GPTNeoX", "GPTNeoXForCausalLM", {**SMALL, **DEEP}),
    ("Qwen3", "Qwen3ForCausalLM", {**GROUPED, "head_dim": 12}),
    ("Mixtral", "MixtralForCausalLM", {**GROUPED, "num_hidden_layers": 3, "num_local_experts": 4}),
    ("Gemma2", "Gemma2ForCausalLM", {**GROUPED, "head_dim": 12}),
]


def configured(model: str, **arguments: Any) -> nn.Module:
    """Return a model of transformers, without special tokens, by its class's name."""
    import transformers

    kind = getattr(transformers, model)
    tokens = {f"{name}_token_id": 0 for name in ("bos", "eos", "pad")}
    return kind(kind.config_class(**tokens, **arguments)).train()


def causal(model: str, arguments: dict[str, Any], lr: float = 1e-3) -> tuple[nn.Module, Step]:
    net = configured(model, **arguments)
    optimizer, batches = adamw(net, lr), text(8, 32)

    def loss_of(number: int) -> Tensor:
        x, y = batches(number)
        return next_character(net(input_ids=x).logits, y)

    return net, by_loss(optimizer, loss_of, clip=1.0)


for _name, *_arguments in CAUSAL:
    healthy(f"{_name} of characters AdamW", needs=["transformers"])(partial(causal, *_arguments))


def masked(model: str, **arguments: Any) -> tuple[nn.Module, Step]:
    net = configured(model, **SMALL, **arguments)
    batches = text(8, 32)

    def loss_of(number: int) -> Tensor:
        x, _ = batches(number)
        hidden = torch.rand(x.shape, generator=seeded(number)) < 0.15
        logits = net(input_ids=x.masked_fill(hidden, 1)).logits
        return F.cross_entropy(logits[hidden], x[hidden])

    return net, by_loss(adamw(net, 2e-3), loss_of)


for _name, _model, _more in [
    ("BERT with masks AdamW", "BertForMaskedLM", DEEP),
    ("ALBERT with masks AdamW", "AlbertForMaskedLM", {**DEEP, "embedding_size": 24}),
]:
    healthy(_name, needs=["transformers"])(partial(masked, _model, **_more))


@healthy("T5 that copies AdamW", needs=["transformers"])
def t5() -> tuple[nn.Module, Step]:
    net = configured(
        "T5ForConditionalGeneration",
        vocab_size=32,
        d_model=48,
        d_kv=12,
        d_ff=96,
        num_layers=3,
        num_heads=4,
        decoder_start_token_id=0,
    )

    def loss_of(number: int) -> Tensor:
        x = torch.randint(2, 32, (16, 8), generator=seeded(number))
        return net(input_ids=x, labels=x).loss

    return net, by_loss(adamw(net, 3e-3), loss_of)


@healthy("ViT of transformers Adam", needs=["transformers"])
def vit() -> tuple[nn.Module, Step]:
    net = configured(
        "ViTForImageClassification",
        image_size=16,
        patch_size=4,
        num_labels=10,
        **{key: SMALL[key] for key in ("hidden_size", "num_attention_heads")},
        **DEEP,
    )
    return net, supervised(
        net, adam(net, 5e-4), images(16, 16), lambda out, y: F.cross_entropy(out.logits, y)
    )


@healthy("CLIP of pictures and words AdamW", needs=["transformers"])
def clip() -> tuple[nn.Module, Step]:
    from transformers import CLIPConfig, CLIPModel

    width = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3}
    config = CLIPConfig(
        text_config={**width, "num_attention_heads": 4, "vocab_size": 16, "eos_token_id": 15},
        vision_config={**width, "num_attention_heads": 4, "image_size": 16, "patch_size": 4},
        projection_dim=32,
    )
    net, batches = CLIPModel(config), images(10, 16)

    def loss_of(number: int) -> Tensor:
        x, y = batches(number)
        words = torch.stack([y, y + 1, torch.full_like(y, 15)], 1)
        return net(input_ids=words, pixel_values=x, return_loss=True).loss

    return net, by_loss(adamw(net, 1e-3), loss_of)


class Transformer(nn.Module):
    """A model of characters whose layers norm first, or afterwards."""

    def __init__(self, layers: int, norm_first: bool, width: int = 48) -> None:
        super().__init__()
        self.embedding = nn.Embedding(CHARACTERS, width)
        self.position = nn.Parameter(torch.randn(64, width) * 0.02)
        layer = nn.TransformerEncoderLayer(
            width, 4, 2 * width, 0.1, batch_first=True, norm_first=norm_first
        )
        self.body = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, CHARACTERS)

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return self.head(
            self.body(self.embedding(x) + self.position[: x.shape[1]], mask, is_causal=True)
        )


def transformer(layers: int, norm_first: bool, lr: float) -> tuple[nn.Module, Step]:
    model = Transformer(layers, norm_first)
    optimizer = adamw(model, lr)
    return model, supervised(
        model, optimizer, text(8, 32), next_character, clip=1.0, schedule=warmed(optimizer)
    )


healthy("pre-norm transformer of 12 layers AdamW")(partial(transformer, 12, True, 2e-3))
healthy("pre-norm transformer of 24 layers AdamW")(partial(transformer, 24, True, 1e-3))
healthy("post-norm transformer of 4 layers with warm-up AdamW")(
    partial(transformer, 4, False, 2e-3)
)
healthy("post-norm transformer of 12 layers with warm-up AdamW")(
    partial(transformer, 12, False, 1e-3)
)


@healthy("linear attention over pixels Adam")
def linear_attention() -> tuple[nn.Module, Step]:
    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.mix, self.out = nn.LayerNorm(32), nn.Linear(32, 96), nn.Linear(32, 32)

        def forward(self, x: Tensor) -> Tensor:
            query, key, value = self.mix(self.norm(x)).chunk(3, -1)
            query, key = F.elu(query) + 1, F.softmax(key, 1)
            return x + self.out(query @ (key.transpose(1, 2) @ value))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.start, self.position = nn.Linear(1, 32), nn.Embedding(64, 32)
            self.body = nn.Sequential(*(Linear() for _ in range(6)))
            self.head = nn.Linear(32, 10)

        def forward(self, x: Tensor) -> Tensor:
            x = self.start(x[..., None]) + self.position.weight
            return self.head(self.body(x).mean(1))

    model = Model()
    return model, supervised(model, adam(model, 3e-3), digits(32))


class Normed(nn.Module):
    """Attention whose queries and keys are normalised, before a learnt temperature."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.query_norm, self.key_norm = nn.RMSNorm(16), nn.RMSNorm(16)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.mix(x).unflatten(-1, (3, -1, 16)).permute(2, 0, 3, 1, 4)
        query, key, value = heads.unbind()
        query, key = self.query_norm(query), self.key_norm(key)
        seen = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.out(seen.transpose(1, 2).flatten(-2))


@healthy("transformer with normalised queries and keys AdamW")
def normed() -> tuple[nn.Module, Step]:
    class Model(nn.Module):
        def __init__(self, width: int = 64) -> None:
            super().__init__()
            self.embedding, self.position = nn.Embedding(CHARACTERS, width), nn.Embedding(32, width)
            self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(4))
            self.attentions = nn.ModuleList(Normed(width) for _ in range(4))
            self.head = nn.Linear(width, CHARACTERS)

        def forward(self, x: Tensor) -> Tensor:
            x = self.embedding(x) + self.position.weight[: x.shape[1]]
            for norm, attention in zip(self.norms, self.attentions, strict=True):
                x = x + attention(norm(x))
            return self.head(x)

    model = Model()
    return model, supervised(model, adamw(model, 1e-2), text(8, 32), next_character)
