"""Published nets of timm and of transformers that no other set has, with random weights."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import CHARACTERS, images, rows, seeded, text
from ..loops import adam, adamw, by_loss, next_character, sgd, supervised, warmed
from ..trainings import Step, healthy

OPTIMIZERS = {"SGD": sgd, "Adam": adam, "AdamW": adamw}


def of_timm(
    net: str, optimizer: str, lr: float, size: int, arguments: dict[str, Any]
) -> tuple[nn.Module, Step]:
    import timm

    model = timm.create_model(net, num_classes=10, **arguments)
    rate = OPTIMIZERS[optimizer](model, lr)
    return model, supervised(model, rate, images(8, size, most=64), schedule=warmed(rate, 10))


VIT = {"img_size": 32, "patch_size": 4, "embed_dim": 64, "depth": 6, "num_heads": 4}
SWIN = {"img_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 24,
        "depths": (2, 2, 2), "num_heads": (2, 4, 8)}  # fmt: skip

for _net in [
    ("resnet10t", "SGD", 0.02, 32, {}),
    ("efficientvit_b0", "AdamW", 1e-3, 32, {}),
    ("inception_next_atto", "AdamW", 1e-3, 32, {}),
    ("ese_vovnet19b_slim_dw", "SGD", 0.02, 32, {}),
    ("starnet_s1", "AdamW", 1e-3, 32, {}),
    ("mambaout_femto", "AdamW", 1e-3, 32, {"depths": (1, 1, 3, 1)}),
    ("swinv2_tiny_window8_256", "AdamW", 1e-3, 32, SWIN),
    ("vit_base_patch16_rope_reg1_gap_256", "AdamW", 1e-3, 32, VIT),
]:
    healthy(f"{_net[0]} of timm, in little, {_net[1]}", needs=["timm"])(partial(of_timm, *_net))


def configured(model: str, **arguments: Any) -> nn.Module:
    """Return a model of transformers by its class's name."""
    import transformers

    kind = getattr(transformers, model)
    return kind(kind.config_class(**arguments)).train()


TOKENS = {f"{name}_token_id": 0 for name in ("bos", "eos", "pad")}
SIZES = {**TOKENS, "vocab_size": CHARACTERS, "hidden_size": 64, "num_hidden_layers": 3}
USUAL = {**SIZES, "num_attention_heads": 4, "intermediate_size": 160}
GROUPED = {**USUAL, "num_key_value_heads": 2}


def causal(model: str, lr: float, arguments: dict[str, Any]) -> tuple[nn.Module, Step]:
    net = configured(f"{model}ForCausalLM", **arguments)
    optimizer, batches = adamw(net, lr, 0.1), text(8, 48)
    schedule = warmed(optimizer, 10)

    def loss_of(number: int) -> Tensor:
        x, y = batches(number)
        schedule.step()
        return next_character(net(input_ids=x).logits, y)

    return net, by_loss(optimizer, loss_of, clip=1.0)


for _name, _lr, _arguments in [
    ("Mistral", 1e-3, {**GROUPED, "sliding_window": 16, "head_dim": 16}),
    ("Mpt", 1e-3, {"d_model": 64, "n_heads": 4, "n_layers": 3, "vocab_size": CHARACTERS,
                   "max_seq_len": 64}),
    ("Mamba2", 1e-3, {**TOKENS, "vocab_size": CHARACTERS, "hidden_size": 32, "state_size": 16,
                      "num_heads": 8, "head_dim": 8, "n_groups": 1, "num_hidden_layers": 2,
                      "chunk_size": 16}),
]:  # fmt: skip
    healthy(f"{_name} of transformers with warm-up AdamW", needs=["transformers"])(
        partial(causal, _name, _lr, _arguments)
    )


@healthy("ModernBERT with masks of three tenths AdamW", needs=["transformers"])
def modern_bert() -> tuple[nn.Module, Step]:
    net = configured(
        "ModernBertForMaskedLM", **USUAL, global_attn_every_n_layers=3, local_attention=16,
        cls_token_id=0, sep_token_id=0, attn_implementation="sdpa",
    )  # fmt: skip
    batches = text(8, 48)

    def loss_of(number: int) -> Tensor:
        x, _ = batches(number)
        hidden = torch.rand(x.shape, generator=seeded(number)) < 0.3
        labels = x.masked_fill(~hidden, -100)
        return net(input_ids=x.masked_fill(hidden, 1), labels=labels).loss

    return net, by_loss(adamw(net, 1e-3), loss_of, clip=1.0)


@healthy("DistilBERT that finds underscores AdamW", needs=["transformers"])
def distil_bert() -> tuple[nn.Module, Step]:
    net = configured(
        "DistilBertForSequenceClassification", vocab_size=CHARACTERS, dim=64, n_layers=2,
        n_heads=4, hidden_dim=128, max_position_embeddings=64, num_labels=2,
    )  # fmt: skip
    optimizer, batches = adamw(net, 5e-4), text(32, 32)
    schedule = warmed(optimizer, 10)

    def loss_of(number: int) -> Tensor:
        x, _ = batches(number)
        many = (x == ord("_") - 31).sum(1) > 0  # has an underscore
        schedule.step()
        return net(input_ids=x, labels=many.long()).loss

    return net, by_loss(optimizer, loss_of, clip=1.0)


@healthy("Marian that counts backwards Adam", needs=["transformers"])
def marian() -> tuple[nn.Module, Step]:
    net = configured(
        "MarianMTModel", vocab_size=24, d_model=64, encoder_layers=2, decoder_layers=2,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=128,
        decoder_ffn_dim=128, max_position_embeddings=16, pad_token_id=0, eos_token_id=1,
        decoder_start_token_id=0, forced_eos_token_id=1,
    )  # fmt: skip
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3, betas=(0.9, 0.98), eps=1e-9)
    schedule = warmed(optimizer)

    def loss_of(number: int) -> Tensor:
        start = torch.randint(2, 16, (32, 1), generator=seeded(number))
        x = start + torch.arange(8)
        schedule.step()
        return net(input_ids=x, labels=x.flip(1)).loss

    return net, by_loss(optimizer, loss_of, clip=1.0)


@healthy("Wav2Vec2's layers that hear rows of digits AdamW", needs=["transformers"])
def wav2vec() -> tuple[nn.Module, Step]:
    net = configured(
        "Wav2Vec2ForSequenceClassification", hidden_size=48, num_hidden_layers=2,
        num_attention_heads=4, intermediate_size=96, conv_dim=(24, 24), conv_kernel=(4, 4),
        conv_stride=(2, 2), num_feat_extract_layers=2, num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=4, classifier_proj_size=32, num_labels=10, vocab_size=16,
        mask_time_prob=0.05, mask_time_length=2, layerdrop=0.0,
    )  # fmt: skip
    batches = rows(32)
    optimizer = adamw(net, 1e-3)
    schedule = warmed(optimizer, 10)

    def loss_of(number: int) -> Tensor:
        x, y = batches(number)
        schedule.step()
        return F.cross_entropy(net(input_values=x.flatten(1)).logits, y)

    return net, by_loss(optimizer, loss_of, clip=1.0)
