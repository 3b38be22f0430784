"""What gradscope must read, by plain autograd: no hook of ours, no graph walk."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor, nn

Loss = Callable[[nn.Module], Tensor]


class Reference:
    """One forward and backward of a copy of `model`, everything kept.

    The net must not change the outputs of its modules in place.
    """

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        self.model = copy.deepcopy(model)
        self.outputs: dict[str, list[Tensor]] = defaultdict(list)
        self.inputs: dict[str, list[Tensor]] = defaultdict(list)
        handles = []
        for name, module in self.model.named_modules():
            handles.append(module.register_forward_hook(self._keep(name)))
        value = loss(self.model)
        for handle in handles:
            handle.remove()
        outputs = [o for found in self.outputs.values() for o in found if o.requires_grad]
        gradients = torch.autograd.grad(value, outputs, retain_graph=True, allow_unused=True)
        self.gradients = {id(o): g for o, g in zip(outputs, gradients, strict=True)}
        value.backward()

    def _keep(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            if isinstance(output, Tensor):
                self.outputs[name].append(output)
                self.inputs[name].append(args[0])

        return hook

    def signal(self, name: str) -> float:
        gradients = (self.gradients.get(id(o)) for o in self.outputs[name])
        return root_sum_square(g for g in gradients if g is not None)

    def input_signal(self, name: str) -> float:
        """The gradient at the input through this module alone: one vector-Jacobian product."""
        module = self.model.get_submodule(name)
        parts = []
        for x, y in zip(self.inputs[name], self.outputs[name], strict=True):
            leaf = x.detach().requires_grad_()
            (part,) = torch.autograd.grad(module(leaf), leaf, self.gradients[id(y)])
            parts.append(part)
        return root_sum_square(parts)

    def gradient(self, name: str) -> float:
        module = self.model.get_submodule(name)
        return root_sum_square(
            p.grad for p in module._parameters.values() if p is not None and p.grad is not None
        )


def root_sum_square(tensors) -> float:
    return sum(t.double().square().sum().item() for t in tensors) ** 0.5
