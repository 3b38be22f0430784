"""Published nets of torchvision and timm that the other sets do not have."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import images
from ..loops import adam, adamw, by_loss, sgd, supervised, warmed
from ..trainings import Step, healthy

OPTIMIZERS = {"SGD": sgd, "Adam": adam, "AdamW": adamw}


def of_torchvision(
    net: str, optimizer: str, lr: float, batch: int, size: int, arguments: dict[str, Any]
) -> tuple[nn.Module, Step]:
    from torchvision import models

    model = getattr(models, net)(num_classes=10, **arguments)
    return model, supervised(model, OPTIMIZERS[optimizer](model, lr), images(batch, size, most=64))


for _row in [
    ("mobilenet_v3_large", "SGD", 0.01, 16, 32, {}),
    ("shufflenet_v2_x1_0", "AdamW", 2e-3, 16, 32, {}),
    ("squeezenet1_0", "SGD", 3e-3, 16, 48, {}),
    ("regnet_x_800mf", "AdamW", 1e-3, 8, 32, {}),
]:
    healthy(f"{_row[0]} of torchvision {_row[1]}", needs=["torchvision"])(
        partial(of_torchvision, *_row)
    )


@healthy("AlexNet's layers, an eighth as wide Adam")
def alexnet() -> tuple[nn.Module, Step]:
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 5, 2, 2), nn.ReLU(), nn.MaxPool2d(3, 2)]
    layers += [nn.Conv2d(16, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)]
    for inputs, outputs in [(32, 48), (48, 32), (32, 32)]:
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
    layers += [nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Dropout(0.5), nn.Linear(288, 256)]
    layers += [nn.ReLU(), nn.Dropout(0.5), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)]
    model = nn.Sequential(*layers)
    return model, supervised(model, adam(model), images(32, 32))


@healthy("videos by convolutions over space, then over time SGD", needs=["torchvision"])
def videos() -> tuple[nn.Module, Step]:
    from torchvision.models.video.resnet import BasicBlock, Conv2Plus1D, R2Plus1dStem

    blocks = (BasicBlock(64, 64, Conv2Plus1D) for _ in range(2))
    model = nn.Sequential(R2Plus1dStem(), *blocks, nn.AdaptiveAvgPool3d(1), nn.Flatten())
    model.append(nn.Linear(64, 10))
    pictures = images(8, 16, most=128)

    def moving(number: int) -> tuple[Tensor, Tensor]:
        x, y = pictures(number)
        return torch.stack([x.roll(shift, -1) for shift in range(4)], 2), y

    return model, supervised(model, sgd(model, 0.01), moving)


@healthy("DeepLab on a small backbone SGD", needs=["torchvision"])
def deeplab() -> tuple[nn.Module, Step]:
    from torchvision.models.segmentation.deeplabv3 import DeepLabHead

    from .healthy_nets import conv

    model = nn.Sequential(conv(3, 16, 2), conv(16, 32, 2), conv(32, 32), DeepLabHead(32, 2))
    batches = images(8, 32)

    def loss_of(number: int) -> Tensor:
        x, _ = batches(number)
        out = F.interpolate(model(x), size=x.shape[-2:], mode="bilinear")
        return F.cross_entropy(out, (x[:, 0] > 0).long())

    return model, by_loss(sgd(model, 0.02), loss_of)


def of_timm(net: str, optimizer: str, lr: float, arguments: dict) -> tuple[nn.Module, Step]:
    import timm

    model = timm.create_model(net, num_classes=10, **arguments)
    rate = OPTIMIZERS[optimizer](model, lr)
    return model, supervised(model, rate, images(8, most=64), schedule=warmed(rate, 10))


for _net in [
    ("repvgg_a0", "SGD", 0.01, {}),
    ("pvt_v2_b0", "AdamW", 1e-3, {}),
    ("poolformer_s12", "AdamW", 1e-3, {}),
    ("eva02_tiny_patch14_224", "AdamW", 1e-3,
     {"img_size": 32, "patch_size": 8, "embed_dim": 48, "num_heads": 4, "depth": 6}),
    ("convnextv2_atto", "AdamW", 1e-3, {}),
]:  # fmt: skip
    healthy(f"{_net[0]} of timm {_net[1]}", needs=["timm"])(partial(of_timm, *_net))


def mixing(block: str, optimizer: str, lr: float, arguments: dict) -> tuple[nn.Module, Step]:
    from timm.models import mlp_mixer

    parts = {
        key: getattr(mlp_mixer, value) if isinstance(value, str) else value
        for key, value in arguments.items()
    }
    model = mlp_mixer.MlpMixer(
        10, 32, patch_size=8, num_blocks=8, embed_dim=64, block_layer=getattr(mlp_mixer, block),
        **parts,
    )  # fmt: skip
    return model, supervised(model, OPTIMIZERS[optimizer](model, lr), images(16, most=128))


for _net in [
    ("MixerBlock", "AdamW", 2e-3, {}),
    ("ResBlock", "AdamW", 2e-3, {"norm_layer": "Affine", "mlp_ratio": 4}),
    ("SpatialGatingBlock", "Adam", 2e-3, {"mlp_layer": "GatedMlp", "mlp_ratio": 4}),
]:
    healthy(f"places mixed by {_net[0]} of timm {_net[1]}", needs=["timm"])(partial(mixing, *_net))
