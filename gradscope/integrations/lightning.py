"""Watch what Lightning's Trainer trains: `Trainer(callbacks=[GradscopeCallback()])`."""

from __future__ import annotations

import os
import re
from typing import Any

import torch
from torch import Tensor

from gradscope.errors import GradscopeError
from gradscope.session.scope import Scope
from gradscope.session.watch import watch

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ModuleNotFoundError as missing:
    try:
        from pytorch_lightning import (  # type: ignore[assignment, unused-ignore]
            Callback,
            LightningModule,
            Trainer,
        )
    except ModuleNotFoundError:
        raise GradscopeError(
            f"gradscope.integrations.lightning needs {missing.name}, which is not installed;"
            " run: pip install lightning"
        ) from missing

_JUDGED = re.compile("loss|acc|err", re.IGNORECASE)


class GradscopeCallback(Callback):  # type: ignore[misc, unused-ignore]
    """Records the training of `Trainer.fit` as `gradscope.watch` does in a loop of one's own.

    >>> trainer = Trainer(callbacks=[GradscopeCallback("runs/resnet56", every=10)])
    >>> trainer.fit(model, loader)

    It watches the LightningModule from the start of the training, after the sanity check, to its
    end, also by an exception. `train_loss` is logged for each step, the mean over its
    micro-batches, and of what validation logs all that is a loss, an accuracy or an error.

    Parameters
    ----------
    run : path, optional
        Folder to write, as for `gradscope.watch`.
    **settings
        Further arguments of `gradscope.watch`, such as `every`.

    Attributes
    ----------
    scope : Scope or None
        Of the training under way or the last one: `callback.scope.run`.
    """

    def __init__(self, run: str | os.PathLike[str] | None = None, **settings: Any) -> None:
        self.scope: Scope | None = None
        self._run = run
        self._settings = settings
        self._losses: list[Tensor] = []
        self._steps = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to watch: optimizers and wrappers are in place, the sanity check is over."""
        self.scope = watch(pl_module, self._run, **self._settings)
        self._losses, self._steps = [], trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any
    ) -> None:
        """Log the loss of the step, once it is complete."""
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if isinstance(loss, Tensor) and loss.numel() == 1:
            shared = trainer.accumulate_grad_batches if pl_module.automatic_optimization else 1
            self._losses.append(loss.detach() * shared)  # Lightning has divided it
        if self.scope is not None and self._losses and trainer.global_step != self._steps:
            self.scope.log(train_loss=torch.stack(self._losses).mean())
            self._losses, self._steps = [], trainer.global_step

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log what validation has measured."""
        if self.scope is not None and not trainer.sanity_checking and trainer.state.fn == "fit":
            measured = trainer.callback_metrics.items()
            self.scope.log(**{n: v for n, v in measured if _JUDGED.search(n) and "train" not in n})

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the rest."""
        self._close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Write the rest."""
        self._close()

    def _close(self) -> None:
        if self.scope is not None:
            self.scope.close()
