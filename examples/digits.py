"""scikit-learn's handwritten digits: 1797 real 8x8 images in 10 classes, no download."""

from __future__ import annotations

from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from torch import Tensor


class Digits(NamedTuple):
    """Images of 64 standardised pixels, float32 (N, 64), and their classes, int64 (N,)."""

    train_x: Tensor
    train_y: Tensor
    val_x: Tensor
    val_y: Tensor


def load(train: int = 1400) -> Digits:
    """Return the digits, shuffled the same way each time, the first `train` of them to train on."""
    data = load_digits()
    order = torch.randperm(len(data.data), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(data.data, dtype=torch.float32)[order]
    y = torch.tensor(data.target)[order]
    x = (x - x[:train].mean()) / x[:train].std()
    return Digits(x[:train], y[:train], x[train:], y[train:])
