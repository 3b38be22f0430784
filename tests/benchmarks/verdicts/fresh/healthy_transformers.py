"""Models of the library transformers, in small, of families that the other sets do not have."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import CHARACTERS, images, rows, seeded, text
from ..loops import adam, adamw, by_loss, next_character, warmed
from ..trainings import Step, healthy

SMALL = {"vocab_size": CHARACTERS, "hidden_size": 48, "num_attention_heads": 4}
USUAL = {**SMALL, "num_hidden_layers": 4, "intermediate_size": 128}
GROUPED = {**USUAL, "num_key_value_heads": 2}


def configured(model: str, **arguments: Any) -> nn.Module:
    """Return a model of transformers by its class's name."""
    import transformers

    kind = getattr(transformers, model)
    tokens = {f"{name}_token_id": 0 for name in ("bos", "eos", "pad")}
    return kind(kind.config_class(**{**tokens, **arguments})).train()


def causal(model: str, lr: float, arguments: dict[str, Any]) -> tuple[nn.Module, Step]:
    net = configured(model, **arguments)
    optimizer, batches = adamw(net, lr, 0.1), text(8, 32)

    def loss_of(number: int) -> Tensor:
        x, y = batches(number)
        return next_character(net(input_ids=x).logits, y)

    return net, by_loss(optimizer, loss_of, clip=1.0)


for _name, _lr, _arguments in [
    ("Bloom", 1e-3, {"vocab_size": CHARACTERS, "hidden_size": 48, "n_layer": 5, "n_head": 4}),
    ("Mamba", 2e-3, {"vocab_size": CHARACTERS, "hidden_size": 32, "num_hidden_layers": 3,
                     "state_size": 8}),
    ("Falcon", 1e-3, {**SMALL, "num_hidden_layers": 5}),
    ("Phi", 1e-3, USUAL),
    ("Olmo2", 2e-3, GROUPED),
    ("Cohere", 1e-3, {**GROUPED, "logit_scale": 0.5}),
    ("Qwen2Moe", 1e-3, {**GROUPED, "num_experts": 4, "num_experts_per_tok": 2,
                        "moe_intermediate_size": 48, "shared_expert_intermediate_size": 48}),
    ("GPTJ", 1e-3, {"vocab_size": CHARACTERS, "n_embd": 48, "n_layer": 5, "n_head": 4,
                    "rotary_dim": 8}),
    ("Rwkv", 2e-3, {"vocab_size": CHARACTERS, "hidden_size": 48, "num_hidden_layers": 3,
                    "attention_hidden_size": 48, "context_length": 32}),
]:  # fmt: skip
    healthy(f"{_name} of transformers AdamW", needs=["transformers"])(
        partial(causal, f"{_name}ForCausalLM", _lr, _arguments)
    )


@healthy("DeBERTa with masks AdamW", needs=["transformers"])
def deberta() -> tuple[nn.Module, Step]:
    net = configured(
        "DebertaV2ForMaskedLM", **USUAL, relative_attention=True, position_buckets=16,
        pos_att_type=["p2c", "c2p"],
    )  # fmt: skip
    batches = text(8, 32)

    def loss_of(number: int) -> Tensor:
        x, _ = batches(number)
        hidden = torch.rand(x.shape, generator=seeded(number)) < 0.15
        logits = net(input_ids=x.masked_fill(hidden, 1)).logits
        return F.cross_entropy(logits[hidden], x[hidden])

    return net, by_loss(adamw(net, 2e-3), loss_of, clip=1.0)


@healthy("ELECTRA that finds replaced characters AdamW", needs=["transformers"])
def electra() -> tuple[nn.Module, Step]:
    net = configured("ElectraForPreTraining", **USUAL, embedding_size=32)
    batches = text(16, 32)

    def loss_of(number: int) -> Tensor:
        x, _ = batches(number)
        other = torch.randint(1, CHARACTERS, x.shape, generator=seeded(number))
        replaced = torch.rand(x.shape, generator=seeded(number + 500)) < 0.3
        return net(input_ids=torch.where(replaced, other, x), labels=replaced.long()).loss

    return net, by_loss(adamw(net, 2e-3), loss_of)


@healthy("BART that puts words back AdamW", needs=["transformers"])
def bart() -> tuple[nn.Module, Step]:
    net = configured(
        "BartForConditionalGeneration", vocab_size=32, d_model=48, encoder_layers=2,
        decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=96, decoder_ffn_dim=96, max_position_embeddings=32, pad_token_id=1,
        bos_token_id=0, eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=2,
    )  # fmt: skip
    optimizer = adamw(net, 3e-3)
    schedule = warmed(optimizer)

    def loss_of(number: int) -> Tensor:
        start = torch.randint(4, 16, (32, 1), generator=seeded(number))
        x = start + torch.arange(10)
        hidden = torch.rand(x.shape, generator=seeded(number + 500)) < 0.2
        schedule.step()
        return net(input_ids=x.masked_fill(hidden, 3), labels=x).loss

    return net, by_loss(optimizer, loss_of, clip=1.0)


@healthy("SegFormer AdamW", needs=["transformers"])
def segformer() -> tuple[nn.Module, Step]:
    net = configured(
        "SegformerForSemanticSegmentation", hidden_sizes=[16, 24, 32, 48], depths=[1, 1, 1, 1],
        num_attention_heads=[1, 2, 2, 4], decoder_hidden_size=32, num_labels=2,
        semantic_loss_ignore_index=255,
    )  # fmt: skip
    batches = images(8, 32)

    def loss_of(number: int) -> Tensor:
        x, _ = batches(number)
        return net(pixel_values=x, labels=(x[:, 0] > 0).long()).loss

    return net, by_loss(adamw(net, 2e-3), loss_of)


@healthy("PatchTST that forecasts Adam", needs=["transformers"])
def patch_tst() -> tuple[nn.Module, Step]:
    net = configured(
        "PatchTSTForPrediction", num_input_channels=2, context_length=32, prediction_length=8,
        patch_length=4, patch_stride=4, d_model=32, num_attention_heads=4, num_hidden_layers=2,
        ffn_dim=64, scaling="std",
    )  # fmt: skip

    def loss_of(number: int) -> Tensor:
        source = seeded(number)
        phase = 6.3 * torch.rand(32, 1, 2, generator=source)
        wave = torch.sin(phase + torch.arange(40.0)[:, None] * torch.tensor([0.3, 0.5]))
        wave = wave + 0.1 * torch.randn(wave.shape, generator=source)
        return net(past_values=wave[:, :32], future_values=wave[:, 32:]).loss

    return net, by_loss(adam(net, 1e-3), loss_of)


@healthy("Whisper that reads digits aloud AdamW", needs=["transformers"])
def whisper() -> tuple[nn.Module, Step]:
    net = configured(
        "WhisperForConditionalGeneration", vocab_size=16, num_mel_bins=8, d_model=48,
        encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=96, decoder_ffn_dim=96, max_source_positions=16, max_target_positions=8,
        pad_token_id=11, decoder_start_token_id=12, begin_suppress_tokens=None,
    )  # fmt: skip
    batches = rows(32, 4)

    def loss_of(number: int) -> Tensor:
        x, y = batches(number)
        labels = torch.stack([y, torch.full_like(y, 10)], 1)
        return net(input_features=x.transpose(1, 2), labels=labels).loss

    return net, by_loss(adamw(net, 2e-3), loss_of, clip=1.0)
