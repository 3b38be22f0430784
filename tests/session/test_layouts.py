"""Parallel layouts on four processes, against plain autograd on the whole batch in one.

A row of the table in docs/on-a-cluster.md is a row of TABLE here.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from layouts_training import LR, Net, batches, loss_of

SCRIPT = Path(__file__).parents[1] / "support" / "layouts_training.py"

PARAMETERS = ["grad_norm", "clipped_grad_norm", "weight_norm", "update_norm"]
SIGNALS = ["signal_norm", "input_signal_norm"]
ACTIVATIONS = ["activation_norm", "activation_mean", "activation_std", "output_elements"]
SHORTCUTS = ["total_norm", "shortcut_norm", "branch_norm"]


def norm(tensors: list[Tensor]) -> float:
    return float(sum(t.square().sum() for t in tensors)) ** 0.5


def truth_of_step(model: nn.Module, x: Tensor, y: Tensor) -> pd.DataFrame:
    """Return what one step should show of each layer; makes the step."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def look(name, inputs, output):
        into = inputs[0].detach().requires_grad_() if inputs[0].is_floating_point() else None
        seen[name] = into, output
        output.retain_grad()

    layers = {n: m for n, m in model.named_modules() if not list(m.children())}
    handles = [
        m.register_forward_hook(lambda m, a, out, n=n: look(n, a, out)) for n, m in layers.items()
    ]
    model.zero_grad()
    loss_of(model(x), y).backward()
    for handle in handles:
        handle.remove()
    rows = {}
    for name, (into, out) in seen.items():
        module, grads = layers[name], [p.grad for p in layers[name].parameters()]
        through = float("nan")
        if into is not None:
            (back,) = torch.autograd.grad(module(into), into, out.grad)
            through = norm([back])
        rows[name] = {
            "grad_norm": norm(grads) if grads else float("nan"),
            "clipped_grad_norm": norm(grads) if grads else float("nan"),
            "weight_norm": norm(list(module.parameters())) if grads else float("nan"),
            "update_norm": LR * norm(grads) if grads else float("nan"),
            "signal_norm": norm([out.grad]),
            "input_signal_norm": through,
            "activation_norm": norm([out]),
            "activation_mean": float(out.mean()),
            "activation_std": float(out.std(correction=0)),
            "output_elements": out.numel(),
        }
    with torch.no_grad():
        for p in model.parameters():
            p -= LR * p.grad
    return pd.DataFrame.from_dict(rows, orient="index")


def truth(model: nn.Module) -> list[pd.DataFrame]:
    return [truth_of_step(model, x, y) for x, y in batches()]


@pytest.fixture(scope="module")
def whole() -> list[pd.DataFrame]:
    return truth(Net())
