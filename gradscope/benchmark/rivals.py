"""What `gradscope bench` compares: gradscope, nothing at all, and what one would use instead."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gradscope.errors import GradscopeError
from gradscope.session.watch import watch


class Bare:
    """Watches nothing; the others override what they need.

    Parameters
    ----------
    model : nn.Module
        About to be trained.
    folder : Path
        An empty one, to write to.

    Attributes
    ----------
    every : int
        Of so many steps one is watched: a fair block has a multiple of them.
    """

    every = 1

    def __init__(self, model: nn.Module, folder: Path) -> None:
        self.model = model

    def before_step(self) -> None:
        """Do what is done between backward and the optimizer's step."""

    def after_step(self) -> None:
        """Do what is done after the optimizer's step."""

    def end_of_block(self) -> None:
        """Finish what was begun, so that the block that caused it is charged with it."""

    def close(self) -> None:
        """Leave the model as it was."""


class Gradscope(Bare):
    """Everything that gradscope records by default, written to disk."""

    def __init__(self, model: nn.Module, folder: Path, every: int = 1) -> None:
        self.every = every
        self._scope = watch(model, folder / "run", every=every, flush_seconds=10)

    def end_of_block(self) -> None:
        """Write to disk within the block: in real life, a thread does it every second."""
        self._scope.flush()

    def close(self) -> None:
        """Close the scope."""
        self._scope.close()


class Naive(Bare):
    """The loop that one writes first: a norm and an `.item()` for each thing that is read.

    Attributes
    ----------
    norms : dict
        (what, name of parameter or module) -> norm at the last step.
    """

    def __init__(self, model: nn.Module, folder: Path) -> None:
        super().__init__(model, folder)
        self.norms: dict[tuple[str, str], float] = {}
        self._before: dict[str, Tensor] = {}
        self._handles = [
            module.register_forward_hook(partial(self._activation, name))
            for name, module in model.named_modules()
            if not any(module.children())
        ]

    def _activation(self, name: str, module: nn.Module, args: Any, output: Tensor) -> None:
        self.norms["activation", name] = output.norm().item()
        if output.requires_grad:
            output.register_hook(partial(self._signal, name))  # type: ignore[no-untyped-call]

    def _signal(self, name: str, gradient: Tensor) -> None:
        self.norms["signal", name] = gradient.norm().item()

    @torch.no_grad()
    def before_step(self) -> None:
        """Read gradients and weights, and keep the weights."""
        for name, parameter in self.model.named_parameters():
            if parameter.grad is not None:
                self.norms["gradient", name] = parameter.grad.norm().item()
            self.norms["weight", name] = parameter.norm().item()
            self._before[name] = parameter.clone()

    @torch.no_grad()
    def after_step(self) -> None:
        """Read the updates."""
        for name, parameter in self.model.named_parameters():
            self.norms["update", name] = (parameter - self._before.pop(name)).norm().item()

    def close(self) -> None:
        """Take the hooks out."""
        for handle in self._handles:
            handle.remove()


class WandbWatch(Bare):
    """`wandb.watch(model, log="all")`, offline: histograms of gradients and weights."""

    def __init__(self, model: nn.Module, folder: Path) -> None:
        import wandb

        os.environ.setdefault("WANDB_SILENT", "true")
        super().__init__(model, folder)
        self._run = wandb.init(mode="offline", dir=folder, reinit="finish_previous")
        self._run.watch(model, log="all", log_freq=1)

    def after_step(self) -> None:
        """Commit what its hooks have gathered."""
        self._run.log({})

    def close(self) -> None:
        """Unwatch, and end the run."""
        self._run.unwatch(self.model)
        self._run.finish()


class TensorBoardHistograms(Bare):
    """`add_histogram` of each weight and its gradient."""

    def __init__(self, model: nn.Module, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        super().__init__(model, folder)
        self._writer: Any = SummaryWriter(folder)  # type: ignore[no-untyped-call, unused-ignore]
        self._step = 0

    def after_step(self) -> None:
        """Write the histograms."""
        for name, parameter in self.model.named_parameters():
            self._writer.add_histogram(f"weight/{name}", parameter, self._step)
            if parameter.grad is not None:
                self._writer.add_histogram(f"gradient/{name}", parameter.grad, self._step)
        self._step += 1

    def end_of_block(self) -> None:
        """Write what its thread still holds."""
        self._writer.flush()

    def close(self) -> None:
        """End its thread."""
        self._writer.close()


class LightningGradNorm(Bare):
    """Lightning's `grad_norm`, each norm fetched as a logger does: gradients alone."""

    def before_step(self) -> None:
        """Read the norms."""
        from lightning.pytorch.utilities import grad_norm

        for norm in grad_norm(self.model, 2).values():
            float(norm)


Watcher = Callable[[nn.Module, Path], Bare]

_ALTERNATIVES: dict[str, tuple[str, str, Watcher]] = {
    "naive": ("naive `.item()` loop, five norms", "torch", Naive),
    "wandb": ("wandb.watch(log='all')", "wandb", WandbWatch),
    "tensorboard": ("TensorBoard histograms", "tensorboard", TensorBoardHistograms),
    "lightning": ("Lightning grad_norm, gradients alone", "lightning", LightningGradNorm),
}


def gradscopes(every: Sequence[int]) -> dict[str, Watcher]:
    """Return gradscope, recording every so many steps."""
    return {f"gradscope, every={count}": partial(Gradscope, every=count) for count in every}


def alternatives(names: Sequence[str] = ()) -> dict[str, Watcher]:
    """Return what one would use instead: what was named, by default all that is installed.

    Raises
    ------
    GradscopeError
        If one that was named is not known or not installed.
    """
    found = {name: find_spec(package) for name, (_, package, _) in _ALTERNATIVES.items()}
    for name in names:
        if name not in found:
            raise GradscopeError(f"there is no {name!r} to compare with: {', '.join(found)}")
        if found[name] is None:
            raise GradscopeError(f"to compare with {name}, install it")
    chosen = names or [name for name, spec in found.items() if spec is not None]
    return {label: watcher for label, _, watcher in (_ALTERNATIVES[name] for name in chosen)}
