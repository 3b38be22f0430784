"""Residual joins of torchvision's models, counted by hand from their architectures."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from residual_zoo import record

models = pytest.importorskip(
    "torchvision.models", reason="torchvision is not installed; it is no dependency of gradscope"
)

EXPECTED = {
    # name: (image size, joins by form)
    "alexnet": (64, {}),
    "vgg11": (32, {}),
    "vgg11_bn": (32, {}),
    "squeezenet1_0": (64, {}),
    "googlenet": (64, {}),  # its concatenations are of convolutions, not of a block's input
    "inception_v3": (96, {"concat": 2}),  # two reductions carry the pooled input on
    "resnet18": (64, {"identity": 5, "projection": 3}),
    "resnet50": (64, {"identity": 12, "projection": 4}),
    "resnext50_32x4d": (64, {"identity": 12, "projection": 4}),
    "wide_resnet50_2": (64, {"identity": 12, "projection": 4}),
    "densenet121": (64, {"concat": 6 + 12 + 24 + 16}),  # one for every dense layer
    "mobilenet_v2": (64, {"identity": 10}),  # of 17 blocks, those that keep the size
    "mobilenet_v3_small": (64, {"identity": 6}),  # of 11
    "mnasnet0_5": (64, {"identity": 10}),  # of 16
    "efficientnet_b0": (64, {"identity": 9}),  # of 16
    "efficientnet_v2_s": (64, {"identity": 35}),  # of 40
    "regnet_x_400mf": (64, {"identity": 18, "projection": 4}),  # 22 blocks, 4 stages
    "regnet_y_400mf": (64, {"identity": 12, "projection": 4}),  # 16 blocks, 4 stages
    "shufflenet_v2_x0_5": (64, {"concat": 13}),  # half of the channels, in blocks of stride 1
    "convnext_tiny": (64, {"identity": 18}),
    "vit_b_16": (224, {"identity": 24}),  # two in each of 12 layers
    "swin_t": (64, {"identity": 24}),
    "swin_v2_t": (64, {"identity": 24}),
    "maxvit_t": (224, {"identity": 51, "projection": 4}),  # 11 blocks of five, 4 stages
}


def build(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    auxiliary = name in ("googlenet", "inception_v3")
    options = {"aux_logits": False, "init_weights": False} if auxiliary else {}
    return getattr(models, name)(weights=None, **options).train()


@pytest.mark.parametrize("name", EXPECTED)
def test_joins_of_torchvision_models(name: str) -> None:
    size, expected = EXPECTED[name]
    recording = record(build(name), torch.randn(2, 3, size, size))
    assert Counter(join.form for join in recording.joins) == expected


def test_names_of_resnet18() -> None:
    lines = record(build("resnet18"), torch.randn(2, 3, 64, 64)).lines
    assert lines == [
        "identity layer1.0 maxpool layer1.0 layer1.0.conv1",
        "identity layer1.1 layer1.0.relu layer1.1 layer1.1.conv1",
        "projection layer2.0 layer1.1.relu layer2.0 layer2.0.conv1",
        "identity layer2.1 layer2.0.relu layer2.1 layer2.1.conv1",
        "projection layer3.0 layer2.1.relu layer3.0 layer3.0.conv1",
        "identity layer3.1 layer3.0.relu layer3.1 layer3.1.conv1",
        "projection layer4.0 layer3.1.relu layer4.0 layer4.0.conv1",
        "identity layer4.1 layer4.0.relu layer4.1 layer4.1.conv1",
    ]


def test_names_of_vit() -> None:
    lines = record(build("vit_b_16"), torch.randn(1, 3, 224, 224)).lines
    layer = "encoder.layers.encoder_layer_{}"
    for number in range(1, 12):
        name, before = layer.format(number), layer.format(number - 1)
        assert lines[2 * number : 2 * number + 2] == [
            f"identity {name} {before} {name} {name}.ln_1",
            f"identity {name} {name} {name} {name}.ln_2",
        ]
