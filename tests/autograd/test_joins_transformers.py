"""Residual joins of Hugging Face models, tiny and from a configuration; nothing is downloaded.

The counts are read off the architectures: two joins a layer (attention and feed-forward) in
encoders and decoder-only models, three a decoder layer with cross-attention, one a layer where
attention and feed-forward run in parallel.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from residual_zoo import record

hf = pytest.importorskip(
    "transformers", reason="transformers is not installed; it is no dependency of gradscope"
)

LAYERS = 2
TEXT = {
    "hidden_size": 16,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 99,
    "max_position_embeddings": 64,
}
GROUPED = {**TEXT, "num_key_value_heads": 1, "pad_token_id": 0}
GPT = {"n_embd": 16, "n_layer": LAYERS, "n_head": 2, "vocab_size": 99, "n_positions": 64}
IMAGE = {
    "hidden_size": 16,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 32,
    "patch_size": 8,
}
BART = {
    "d_model": 16,
    "encoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "vocab_size": 99,
}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": LAYERS, "num_heads": 2, "vocab_size": 99}
SPEECH = {
    **{key: TEXT[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads")},
    "intermediate_size": 32,
    "conv_dim": [8, 8],
    "conv_stride": [5, 2],
    "conv_kernel": [10, 3],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "layerdrop": 0.0,
}
STAGES = {"hidden_sizes": [8, 16], "depths": [2, 2]}
SWIN = {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2]}

IDS = torch.arange(3, 17).view(2, 7)
PIXELS = torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32).sin()

text = {"input_ids": IDS}
both = {"input_ids": IDS, "decoder_input_ids": IDS}
image = {"pixel_values": PIXELS}
sound = {"input_values": torch.linspace(-1, 1, 800).view(2, 400).sin()}

EXPECTED: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, int]]] = {
    # model: (configuration, its options, inputs, joins by form)
    "GPT2LMHeadModel": ("GPT2Config", GPT, text, {"identity": 2 * LAYERS}),
    "GPTNeoModel": (
        "GPTNeoConfig",
        {
            "hidden_size": 16,
            "num_layers": LAYERS,
            "num_heads": 2,
            "attention_types": [[["global"], LAYERS]],
            "vocab_size": 99,
            "max_position_embeddings": 64,
        },
        text,
        {"identity": 2 * LAYERS},
    ),
    "GPTJModel": ("GPTJConfig", {**GPT, "rotary_dim": 4}, text, {"identity": LAYERS}),
    "GPTNeoXModel": ("GPTNeoXConfig", TEXT, text, {"identity": LAYERS}),
    "PhiModel": ("PhiConfig", TEXT, text, {"identity": LAYERS}),
    "LlamaForCausalLM": ("LlamaConfig", GROUPED, text, {"identity": 2 * LAYERS}),
    "MistralModel": ("MistralConfig", GROUPED, text, {"identity": 2 * LAYERS}),
    "MixtralModel": (
        "MixtralConfig",
        {**GROUPED, "num_local_experts": 2},
        text,
        {"identity": 2 * LAYERS},
    ),
    "Qwen2Model": ("Qwen2Config", GROUPED, text, {"identity": 2 * LAYERS}),
    "GemmaModel": ("GemmaConfig", {**GROUPED, "head_dim": 8}, text, {"identity": 2 * LAYERS}),
    "OPTModel": (
        "OPTConfig",
        {
            "hidden_size": 16,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 2,
            "ffn_dim": 32,
            "vocab_size": 99,
            "max_position_embeddings": 64,
            "word_embed_proj_dim": 16,
        },
        text,
        {"identity": 2 * LAYERS},
    ),
    "BloomModel": (
        "BloomConfig",
        {"hidden_size": 16, "n_layer": LAYERS, "n_head": 2, "vocab_size": 99},
        text,
        {"identity": 2 * LAYERS},
    ),
    "MambaModel": (
        "MambaConfig",
        {"hidden_size": 16, "num_hidden_layers": LAYERS, "vocab_size": 99, "state_size": 4},
        text,
        {"identity": LAYERS},
    ),
    "RwkvModel": (
        "RwkvConfig",
        {
            "hidden_size": 16,
            "num_hidden_layers": LAYERS,
            "attention_hidden_size": 16,
            "vocab_size": 99,
            "context_length": 16,
        },
        text,
        {"identity": 2 * LAYERS},
    ),
    "BertForMaskedLM": ("BertConfig", TEXT, text, {"identity": 2 * LAYERS}),
    "DistilBertModel": (
        "DistilBertConfig",
        {"dim": 16, "n_layers": LAYERS, "n_heads": 2, "hidden_dim": 32, "vocab_size": 99},
        text,
        {"identity": 2 * LAYERS},
    ),
    "ElectraModel": ("ElectraConfig", {**TEXT, "embedding_size": 8}, text, {"identity": 4}),
    "AlbertModel": ("AlbertConfig", {**TEXT, "embedding_size": 8}, text, {"identity": 4}),
    "DebertaV2Model": (
        "DebertaV2Config",
        {**TEXT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
        text,
        {"identity": 2 * LAYERS},
    ),
    "XLNetModel": (
        "XLNetConfig",
        {"d_model": 16, "n_layer": LAYERS, "n_head": 2, "d_inner": 32, "vocab_size": 99},
        text,
        {"identity": 2 * LAYERS},
    ),
    "FNetModel": (  # mixes tokens without weights: only the feed-forward is a branch
        "FNetConfig",
        {
            "hidden_size": 16,
            "num_hidden_layers": LAYERS,
            "intermediate_size": 32,
            "vocab_size": 99,
        },
        text,
        {"identity": LAYERS},
    ),
    "T5Model": ("T5Config", T5, both, {"identity": 5 * LAYERS}),
    "BartModel": ("BartConfig", BART, both, {"identity": 5 * LAYERS}),
    "WhisperModel": (
        "WhisperConfig",
        {
            **BART,
            "num_mel_bins": 8,
            "max_source_positions": 10,
            "max_target_positions": 16,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 1,
        },
        {"input_features": torch.ones(2, 8, 20), "decoder_input_ids": IDS},
        {"identity": 5 * LAYERS},
    ),
    "ViTModel": ("ViTConfig", IMAGE, image, {"identity": 2 * LAYERS}),
    "DeiTModel": ("DeiTConfig", IMAGE, image, {"identity": 2 * LAYERS}),
    "BeitModel": ("BeitConfig", IMAGE, image, {"identity": 2 * LAYERS}),
    "SwinModel": ("SwinConfig", {**SWIN, "window_size": 4}, image, {"identity": 8}),
    "Swinv2Model": ("Swinv2Config", {**SWIN, "window_size": 4}, image, {"identity": 8}),
    "ConvNextModel": ("ConvNextConfig", {**STAGES, "num_stages": 2}, image, {"identity": 4}),
    "PoolFormerModel": (
        "PoolFormerConfig",
        {
            "hidden_sizes": [8, 16],
            "depths": [1, 1],
            "num_encoder_blocks": 2,
            "patch_sizes": [7, 3],
            "strides": [4, 2],
            "padding": [2, 1],
        },
        image,
        {"identity": 4},
    ),
    "ResNetModel": (
        "ResNetConfig",
        {**STAGES, "embedding_size": 8, "layer_type": "basic"},
        image,
        {"identity": 3, "projection": 1},
    ),
    "PerceiverModel": (  # a cross-attention and two self-attentions, each with a feed-forward
        "PerceiverConfig",
        {
            "num_latents": 4,
            "d_latents": 16,
            "d_model": 16,
            "num_blocks": 1,
            "num_self_attends_per_block": 2,
            "num_self_attention_heads": 2,
            "num_cross_attention_heads": 2,
        },
        {"inputs": torch.ones(2, 6, 16)},
        {"identity": 6},
    ),
    # + 1: the positional convolution is added to its own input
    "Wav2Vec2Model": ("Wav2Vec2Config", SPEECH, sound, {"identity": 2 * LAYERS + 1}),
    "HubertModel": ("HubertConfig", SPEECH, sound, {"identity": 2 * LAYERS + 1}),
}


def count(model: nn.Module, inputs: dict[str, Any]) -> dict[str, int]:
    forms = [join.form for join in record(model.train(), **inputs).joins]
    return {form: forms.count(form) for form in forms}


@pytest.mark.parametrize("name", EXPECTED)
def test_joins_of_transformers_models(name: str) -> None:
    configuration, options, inputs, expected = EXPECTED[name]
    torch.manual_seed(0)
    model = getattr(hf, name)(getattr(hf, configuration)(**options))
    assert count(model, inputs) == expected


def test_joins_of_clip_are_those_of_both_towers() -> None:
    config = hf.CLIPConfig(
        text_config={**TEXT, "projection_dim": 8},
        vision_config={**IMAGE, "projection_dim": 8},
        projection_dim=8,
    )
    assert count(hf.CLIPModel(config), {**text, **image}) == {"identity": 4 * LAYERS}


@pytest.mark.parametrize("batch", [1, 2])
def test_relative_position_bias_is_no_join_for_any_batch(batch: int) -> None:
    model = hf.T5Model(hf.T5Config(**T5))
    inputs = {key: value[:batch] for key, value in both.items()}
    assert count(model, inputs) == {"identity": 5 * LAYERS}


def test_names_of_gpt2() -> None:
    lines = record(hf.GPT2LMHeadModel(hf.GPT2Config(**GPT)).train(), input_ids=IDS).lines
    name = "transformer.h.{}".format
    assert lines == [
        f"identity {name(0)} transformer.drop {name(0)} {name(0)}.ln_1",
        f"identity {name(0)} {name(0)} {name(0)} {name(0)}.ln_2",
        f"identity {name(1)} {name(0)} {name(1)} {name(1)}.ln_1",
        f"identity {name(1)} {name(1)} {name(1)} {name(1)}.ln_2",
    ]
