"""The probe that cuts shortcuts or branches, against nets with an explicit detach()."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import gradscope
from detachable import net


@pytest.mark.parametrize("what", ["shortcuts", "branches"])
def test_the_probe_equals_the_net_with_an_explicit_detach(what, batch):
    model = net()
    twin = copy.deepcopy(model)
    for block in twin[1:-1]:
        block.detached = what
    frame = gradscope.cut(model, F.cross_entropy, batch, what)
    whole = gradscope.cut(model, F.cross_entropy, batch)
    outputs = {}
    for name, module in twin.named_modules():
        module.register_forward_hook(lambda m, a, o, name=name: outputs.update({name: o}))
    loss = F.cross_entropy(twin(batch[0]), batch[1])
    for row in frame.itertuples():
        (g,) = torch.autograd.grad(loss, outputs[row.name], retain_graph=True, allow_unused=True)
        expected = 0.0 if g is None else g.norm().item()
        assert row.cut_signal_norm == pytest.approx(expected, rel=1e-12)
    np.testing.assert_array_equal(frame.signal_norm, whole.signal_norm)


def test_a_probe_leaves_gradients_buffers_mode_and_random_state_alone(batch):
    model = net(norm=True, dropout=0.5)
    F.cross_entropy(model(batch[0]), batch[1]).backward()
    before = copy.deepcopy(model.state_dict())
    gradients = [p.grad.clone() for p in model.parameters()]
    state = torch.random.get_rng_state()
    gradscope.cut(model, F.cross_entropy, batch)
    gradscope.path_lengths(model, F.cross_entropy, batch)
    assert torch.equal(state, torch.random.get_rng_state())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    for p, gradient in zip(model.parameters(), gradients, strict=True):
        assert torch.equal(p.grad, gradient)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
