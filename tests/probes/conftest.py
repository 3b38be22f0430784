"""A batch for the nets of detachable.py."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def batch():
    torch.manual_seed(1)
    return torch.randn(10, 5, dtype=torch.float64), torch.randint(0, 3, (10,))
