"""Every layer trained: none frozen, none that the optimizer does not hold, none out of sight."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from gradscope.probes.changes.change import ALWAYS, MISTAKE, Change, Copy, DoesNotFit


@dataclass(frozen=True)
class Trainable(Change):
    """Frozen parameters get gradients, and the optimizer all of the model's.

    Modules that a module keeps in a Python list, where torch does not find them, are put into a
    ModuleList.
    """

    def apply(self, copy: Copy) -> None:
        """Unfreeze, and hand over."""
        found = _register(copy.model)
        held = {id(p) for group in copy.optimizer.param_groups for p in group["params"]}
        for parameter in copy.model.parameters():
            if parameter.is_floating_point() and not parameter.requires_grad:
                parameter.requires_grad_()
                found = True
            found |= id(parameter) not in held
        if not found:
            raise DoesNotFit(f"{self.name}: every layer is trained already")
        new = [p for p in copy.model.parameters() if p.requires_grad and id(p) not in held]
        copy.optimizer.param_groups[0]["params"].extend(new)


def _register(model: nn.Module) -> bool:
    found = False
    for module in list(model.modules()):
        for name, value in list(vars(module).items()):
            if isinstance(value, list) and value and all(isinstance(m, nn.Module) for m in value):
                delattr(module, name)
                setattr(module, name, nn.ModuleList(value))
                found = True
    return found


TRAINABLE = Trainable("every layer trained", ALWAYS, MISTAKE)
