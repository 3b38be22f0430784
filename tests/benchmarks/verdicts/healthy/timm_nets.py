"""Published nets for pictures, of timm: run where it is installed."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from ..data import images
from ..loops import adam, adamw, sgd, supervised
from ..trainings import Step, healthy

OPTIMIZERS = {"SGD": sgd, "Adam": adam, "AdamW": adamw}
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 48}

NETS: list[tuple[str, str, float, dict[str, Any]]] = [
    # net, optimizer, learning rate, arguments
    ("deit_tiny_patch16_224", "AdamW", 1e-3, SMALL),
    ("beit_base_patch16_224", "AdamW", 1e-3, {**SMALL, "depth": 8, "num_heads": 4}),
    ("cait_xxs24_224", "AdamW", 3e-3, {**SMALL, "depth": 8}),
    ("xcit_nano_12_p8_224", "Adam", 1e-3, {"img_size": 32}),
    ("ghostnet_050", "SGD", 0.02, {}),
    ("lcnet_050", "AdamW", 2e-3, {}),
    ("mobilevit_xxs", "AdamW", 1e-3, {}),
    ("edgenext_xx_small", "AdamW", 1e-3, {}),
    ("dla46_c", "SGD", 0.02, {}),
    ("tinynet_e", "Adam", 1e-3, {}),
    ("seresnet18", "SGD", 0.01, {}),
    ("skresnet18", "AdamW", 5e-4, {}),
    ("rexnet_100", "AdamW", 1e-3, {}),
    ("nf_regnet_b0", "SGD", 0.02, {}),
]


def published(net: str, optimizer: str, lr: float, arguments: dict) -> tuple[nn.Module, Step]:
    import timm

    model = timm.create_model(net, num_classes=10, **arguments)
    return model, supervised(model, OPTIMIZERS[optimizer](model, lr), images(8, most=64))


for _row in NETS:
    healthy(f"{_row[0]} {_row[1]}", needs=["timm"])(partial(published, *_row))
