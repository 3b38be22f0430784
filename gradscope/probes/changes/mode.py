"""The whole model in training mode."""

from __future__ import annotations

from dataclasses import dataclass

from gradscope.probes.changes.change import ALWAYS, MISTAKE, Change, Copy, DoesNotFit


@dataclass(frozen=True)
class TrainingMode(Change):
    """BatchNorm and the like see the batch, and not what they learnt of earlier ones."""

    def apply(self, copy: Copy) -> None:
        """Put it in training mode."""
        if all(module.training for module in copy.model.modules()):
            raise DoesNotFit(f"{self.name}: the model is in training mode")
        copy.model.train()


TRAINING_MODE = TrainingMode("training mode, model.train()", ALWAYS, MISTAKE)
