"""What a trainer's callback is held against: a residual net, and the same training in a loop."""

from __future__ import annotations

import torch
from torch import nn

import gradscope

READINGS = [
    "grad_norm",
    "clipped_grad_norm",
    "weight_norm",
    "update_norm",
    "signal_norm",
    "input_signal_norm",
    "activation_norm",
    "activation_mean",
    "derivative_mean",
]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.act, self.fc, self.head = (
            nn.Linear(5, 8),
            nn.Tanh(),
            nn.Linear(8, 8),
            nn.Linear(8, 2),
        )

    def forward(self, x):
        x = self.act(self.stem(x))
        return self.head(x + self.fc(x))


def train(model, optimizer, batches, loss_of, folder, *, accumulate=1, clip=None, autocast=False):
    """Return the run of `model` trained on `batches`; `loss_of` takes the model and a batch."""
    with gradscope.watch(model, folder) as scope:
        losses = []
        for batch in batches:
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                loss = loss_of(model, batch)
            (loss / accumulate).backward()
            losses.append(loss.detach())
            if len(losses) == accumulate:
                if clip:
                    nn.utils.clip_grad_norm_(model.parameters(), clip)
                optimizer.step()
                optimizer.zero_grad()
                scope.log(train_loss=torch.stack(losses).mean())
                losses = []
    return scope.run
