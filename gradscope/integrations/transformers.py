"""Watch what Hugging Face's Trainer trains: `Trainer(..., callbacks=[GradscopeCallback()])`."""

from __future__ import annotations

import os
import re
from types import TracebackType
from typing import Any

import torch
from torch import nn

from gradscope.errors import GradscopeError
from gradscope.session.scope import Scope
from gradscope.session.watch import watch

try:
    from transformers import TrainerCallback
except ModuleNotFoundError as missing:
    raise GradscopeError(
        f"gradscope.integrations.transformers needs {missing.name}, which is not installed;"
        " run: pip install 'transformers[torch]'"
    ) from missing

_JUDGED = re.compile("^loss$|^eval_.*(loss|acc|err)", re.IGNORECASE)


class GradscopeCallback(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Records `Trainer.train` as `gradscope.watch` does in a loop of one's own.

    >>> Trainer(model, args, train_dataset=data, callbacks=[GradscopeCallback("runs/gpt")]).train()

    Of what the trainer logs, the loss (as `train_loss`), and the losses, accuracies and errors of
    evaluations are recorded, at the steps where it logs them: see `logging_steps`.

    The trainer tells its callbacks when it is done, but not when it fails. After an exception the
    scope is closed by the next training, by `close()`, or at the end of the process; a `with` block
    around the training closes it at once:

    >>> with GradscopeCallback("runs/gpt") as callback:
    ...     Trainer(model, args, train_dataset=data, callbacks=[callback]).train()

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
        self._training = False

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: nn.Module | None = None, **_: Any
    ) -> None:
        """Begin to watch: the model is on its device, the optimizer is there."""
        assert model is not None
        self.close()
        # the Trainer does not show the compiled wrapper that it calls: one like it tells the same
        shown: Any = torch.compile(model) if args.torch_compile else model
        self.scope = watch(shown, self._run, **self._settings)
        self._training = True

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """Log losses to the step that was made last."""
        if self.scope is not None and self._training:
            measured = {n: v for n, v in (logs or {}).items() if _JUDGED.search(n)}
            self.scope.log(**{"train_loss" if n == "loss" else n: v for n, v in measured.items()})

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write the rest."""
        self.close()

    def close(self) -> None:
        """Stop recording; a second call does nothing."""
        self._training = False
        if self.scope is not None:
            self.scope.close()

    def __enter__(self) -> GradscopeCallback:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
