"""Published nets for pictures, of torchvision, at their real depth."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from ..data import images
from ..loops import adam, adamw, sgd, supervised
from ..trainings import Step, healthy

OPTIMIZERS = {"SGD": sgd, "Adam": adam, "AdamW": adamw}

NETS: list[tuple[str, str, float, int, dict[str, Any]]] = [
    # net, optimizer, learning rate, batch, arguments
    ("resnet18", "SGD", 0.01, 16, {}),
    ("resnet50", "SGD", 0.002, 8, {}),
    ("resnet34", "AdamW", 1e-3, 8, {}),
    ("densenet121", "SGD", 0.05, 8, {}),
    ("mobilenet_v2", "SGD", 0.02, 16, {"width_mult": 0.5}),
    ("mobilenet_v3_small", "Adam", 1e-3, 16, {}),
    ("efficientnet_b0", "AdamW", 1e-3, 8, {}),
    ("shufflenet_v2_x0_5", "SGD", 0.05, 16, {}),
    ("regnet_x_400mf", "SGD", 0.02, 8, {}),
    ("regnet_y_400mf", "AdamW", 1e-3, 8, {}),
    ("mnasnet0_5", "SGD", 0.05, 16, {}),
    ("squeezenet1_1", "Adam", 3e-4, 16, {}),
    ("googlenet", "SGD", 0.005, 16, {"aux_logits": False, "init_weights": False}),
]


def published(net: str, optimizer: str, lr: float, batch: int, arguments: dict) -> tuple:
    from torchvision import models

    model = getattr(models, net)(num_classes=10, **arguments)
    return model, supervised(model, OPTIMIZERS[optimizer](model, lr), images(batch, most=64))


for _row in NETS:
    healthy(f"{_row[0]} {_row[1]}", needs=["torchvision"])(partial(published, *_row))


def quarter(blocks: list[int], optimizer: str, lr: float, **arguments: Any) -> tuple:
    """Train a net of torchvision's bottlenecks, a quarter as wide as the published ones."""
    from torchvision.models.resnet import Bottleneck, ResNet

    class Narrow(ResNet):
        def _make_layer(self, block: Any, planes: int, *rest: Any, **more: Any) -> nn.Module:
            return super()._make_layer(block, planes // 4, *rest, **more)

    model = Narrow(Bottleneck, blocks, **arguments)
    model.fc = nn.Linear(512, 10)
    return model, supervised(model, OPTIMIZERS[optimizer](model, lr), images(16, most=64))


for _name, *_arguments in [
    ("resnet101 SGD", [3, 4, 23, 3], "SGD", 0.02),
    ("resnet152 Adam", [3, 8, 36, 3], "Adam", 1e-3),
    ("wide resnet50 SGD", [3, 4, 6, 3], "SGD", 0.02, 128),
]:
    _more = {"width_per_group": _arguments.pop()} if len(_arguments) > 3 else {}
    healthy(_name, needs=["torchvision"])(partial(quarter, *_arguments, **_more))


@healthy("resnext50 SGD", needs=["torchvision"])
def resnext50() -> tuple[nn.Module, Step]:
    return quarter([3, 4, 6, 3], "SGD", 0.02, groups=8, width_per_group=16)


@healthy("resnet50 zero-initialised AdamW", needs=["torchvision"])
def zero_initialised() -> tuple[nn.Module, Step]:
    return quarter([3, 4, 6, 3], "AdamW", 1e-3, zero_init_residual=True)


@healthy("vgg13 with BatchNorm SGD", needs=["torchvision"])
def vgg() -> tuple[nn.Module, Step]:
    from torchvision.models.vgg import VGG, make_layers

    plan: list[Any] = [16, 16, "M", 32, 32, "M", 64, 64, "M", 128, 128, "M", 128, 128, "M"]
    model = VGG(make_layers(plan, batch_norm=True), num_classes=10)
    model.avgpool, model.classifier = nn.Identity(), nn.Linear(128, 10)
    return model, supervised(model, sgd(model, 0.02), images(16))


@healthy("vision transformer AdamW", needs=["torchvision"])
def vit() -> tuple[nn.Module, Step]:
    from torchvision.models import VisionTransformer

    model = VisionTransformer(32, 8, 12, 4, 64, 256, num_classes=10)
    return model, supervised(model, adamw(model, 5e-4), images(16))


@healthy("swin transformer AdamW", needs=["torchvision"])
def swin() -> tuple[nn.Module, Step]:
    from torchvision.models import SwinTransformer

    model = SwinTransformer(
        [2, 2],
        24,
        [2, 2, 6, 2],
        [2, 2, 4, 8],
        [4, 4],
        stochastic_depth_prob=0.2,
        num_classes=10,
    )
    return model, supervised(model, adamw(model, 1e-3), images(8))


@healthy("convnext AdamW", needs=["torchvision"])
def convnext() -> tuple[nn.Module, Step]:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    plan = [(24, 48, 3), (48, 96, 3), (96, 192, 9), (192, None, 3)]
    model = ConvNeXt([CNBlockConfig(*row) for row in plan], 0.1, num_classes=10)
    return model, supervised(model, adamw(model, 1e-3), images(8))


@healthy("lraspp segmentation Adam", needs=["torchvision"])
def segmentation() -> tuple[nn.Module, Step]:
    from torchvision.models.segmentation import lraspp_mobilenet_v3_large

    model = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=2)
    optimizer, batches = adam(model, 1e-3), images(4, 64)

    def step(number: int) -> torch.Tensor:
        x, _ = batches(number)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x)["out"], (x[:, 0] > 0).long())
        loss.backward()
        optimizer.step()
        return loss.detach()

    return model, step
