"""`what_if(model, ...)`: what a change would do to a net, tried on copies that are watched."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import Optimizer

from gradscope.capture.net import layers
from gradscope.errors import GradscopeError
from gradscope.session.opening import folder, give_back
from gradscope.session.watch import watch

if TYPE_CHECKING:
    from gradscope.whatif.result import WhatIf


def what_if(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Any],
    batches: Any,
    optimizer: Optimizer,
    *,
    changes: Sequence[Any] | None = None,
    steps: int = 50,
    seconds: float | None = None,
    run: str | os.PathLike[str] | None = None,
) -> WhatIf:
    """Try on copies what would make a net learn: which change helps, and by how much.

    >>> what = gradscope.what_if(model, nn.CrossEntropyLoss(), loader, optimizer)
    >>> print(what)

    A copy is trained as it is, and watched; what `diagnose` finds of it decides which changes are
    tried, each on a copy of its own. The first of three trainings of a change is watched into
    `<run>/what-if/<change>`; the dashboard shows them beside the run, and `diagnose(run)` lists
    what was tried, with its numbers, before what was not.

    Parameters
    ----------
    model : nn.Module
        As it is now: at initialisation, or in the midst of a training, watched or not.
    loss_fn : callable
        `loss_fn(model(x), y)` -> loss, a 0-d Tensor.
    batches : list, DataLoader or iterator of (x, y), or of dicts
        `steps` of them are drawn, once, and kept in memory; fewer are used again and again. x is a
        tensor, a tuple of arguments or a dict of keyword arguments of the model; of a batch that is
        a dict itself, `loss_fn(model(**batch), batch)` is the loss.
    optimizer : Optimizer
        Copied with its state. Learning rates stay what they are now: schedulers do not come along.
    changes : sequence, optional
        Those to try: names as in `gradscope.probes.changes.catalogue.CHANGES` (`"shortcuts"`,
        `"he"`, `"lr/10"` ...), functions of your own from model to model, or lists of both, which
        are made together. By default those that fit what was found, the learning rate, warm-up,
        clipping and AdamW where nothing was, and everything where the loss does not move either.
    steps : int
        Of each training.
    seconds : float, optional
        After which no other change is begun.
    run : path, optional
        Folder to write, which must not exist yet; `runs/<time>-<class of model>` by default. It is
        the run of the unchanged copy.

    Returns
    -------
    WhatIf
        A table, the best change first.

    Raises
    ------
    GradscopeError
        If the model cannot be copied or is distributed, the loss does not depend on it, no batch
        comes, there is no memory for a copy, or a change that was named fits nowhere.

    Notes
    -----
    Nothing of yours changes: model, optimizer, gradients, random numbers, the generators of a
    DataLoader. Only an iterator has given the batches that were drawn. Memory: one copy at a time,
    with gradients, optimizer state and activations, beside the batches.

    The three trainings of a change differ by their seed: the order of the batches, dropout and
    other random numbers, and weights that the change draws. A change helps where the loss after the
    last step is lower than the unchanged copy's by more than the spread (largest less smallest) of
    the three, and the verdict becomes healthy or the loss falls at least half as far again. One
    whose first training is no better is not trained again. Of changes that do about as much the
    smallest stands first: settings, weights at the start, other parts, another structure; before
    all of them a mistake that was mended, such as frozen layers or a softmax too many.

    Hooks of your own on the model are copied with it. Mixed precision: call it within `autocast`.
    """
    from gradscope.whatif.explore import explore  # pandas is not needed to record
    from gradscope.whatif.subject import subject_of

    if not isinstance(model, nn.Module):
        raise GradscopeError(f"what_if() needs a torch.nn.Module, got {type(model).__name__}")
    subject = subject_of(model, loss_fn, batches, optimizer, steps)
    path = folder(layers.unwrap(model), run, False).absolute()
    try:
        return explore(subject, _record, path, changes, seconds)
    except BaseException:
        give_back(path, run)
        raise


def _record(model: nn.Module, path: Path, optimizer: Optimizer) -> Any:
    return watch(model, path, optimizer=optimizer)
