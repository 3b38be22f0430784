"""What older releases of torch cannot do, or do wrongly by themselves: tests of it are skipped."""

from __future__ import annotations

import pytest
import torch

RELEASE = tuple(int(part) for part in torch.__version__.split(".")[:2])

SHARDS = "fully_shard on the CPU crashes in torch 2.6, and doubles gradients in 2.7 and 2.8"
shards_on_the_cpu = pytest.mark.skipif(RELEASE < (2, 9), reason=SHARDS)
compiles_twice = pytest.mark.skipif(
    RELEASE < (2, 14),
    reason="before torch 2.14 nothing is compiled twice: recorded steps run without torch.compile",
)
exports_with_hooks = pytest.mark.skipif(
    RELEASE < (2, 7), reason="torch.export of torch 2.6 refuses every model with hooks, whose ever"
)
