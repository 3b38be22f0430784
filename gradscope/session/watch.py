"""`watch(model)`: what it is given is checked, and a `Scope` begins."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from gradscope.capture.compiled.eager import compiled_modules
from gradscope.capture.net import layers
from gradscope.capture.net.distributed import sharing
from gradscope.capture.recorder import Settings
from gradscope.capture.training.getter import GradientGetter
from gradscope.errors import GradscopeError
from gradscope.session import process_end
from gradscope.session.checks import (
    check_config,
    check_cut,
    check_gradient,
    check_model,
    check_optimizers,
    check_settings,
    check_updates,
)
from gradscope.session.drain import CLOSE_SECONDS
from gradscope.session.opening import folder, give_back, refuse
from gradscope.session.scope import Scope


def watch(
    model: nn.Module,
    run: str | os.PathLike[str] | None = None,
    *,
    resume: bool = False,
    every: int = 1,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    scaler: Any = None,
    gradient: GradientGetter = None,
    cut: str | None = None,
    cut_every: int | None = None,
    config: Mapping[str, Any] | None = None,
    updates: bool | str = True,
    keep_snapshot: bool | None = None,
    ranks: int | str = 0,
    flush_every: int = 500,
    flush_seconds: float = 1.0,
) -> Scope:
    """Record how gradients reach the layers of `model` while it trains; the loop is unchanged.

    >>> scope = gradscope.watch(model)
    >>> for x, y in loader:
    ...     loss_fn(model(x), y).backward(); optimizer.step(); optimizer.zero_grad()
    >>> scope.close()
    >>> scope.run.frame()

    A step is one step of the optimizer; it closes at the first forward with gradients, or backward,
    after that, so that several optimizers of one model share a step. With gradient accumulation
    `grad_norm` is the norm of what the optimizer gets; signals of the micro-batches, or of several
    calls of one module, are combined by the root of the sum of their squares.

    Parameters
    ----------
    model : nn.Module
        Plain or residual, on any device. Wrappers (DistributedDataParallel, torch.compile) are
        seen through.
    run : path, optional
        Folder to write, which must not exist yet; `runs/<time>-<class of model>` by default.
    resume : bool
        Go on with `run`, after a crash or a close: steps count on from the last one on disk, `time`
        goes on without the break, layers and shortcuts keep their numbers. The model must have the
        layers of the run. A run that does not exist is begun, so that a job which may be restarted
        can always say `resume=True`.
    every : int
        Steps 0, `every`, 2 `every` ... are recorded; between them nothing is read.
    optimizer : Optimizer or sequence of them, optional
        Whose steps count. By default those of every optimizer that has a parameter of the model.
    scaler : optional
        A loss scaler of a class of its own; torch's GradScaler is found without being named.
    gradient : str or function, optional
        Where the program keeps the gradients of parameters, if not in `.grad`. The name of an
        attribute, such as Megatron's "main_grad", is read as `.grad` would be: when a backward ends
        (`grad_norm`) and when the optimizer steps (`clipped_grad_norm`). A function of a parameter,
        such as DeepSpeed's `safe_get_full_grad`, is asked only when an optimizer steps, in every
        process and of each parameter in the same order; it returns a tensor, or None. Then
        `grad_norm` is NaN. An optimizer that has none of the model's parameters but others in their
        place may be the one that steps.
    cut : {"shortcuts", "branches"}, optional
        Also record `cut_signal_norm`: the signal that would reach each layer if no gradient could
        pass the shortcuts (or the branches). The forward pass stays as it is, so a net with its
        shortcuts cut is not the plain net. Costs a second backward on the steps where it is taken,
        and holds the gradient of every layer's output meanwhile.
    cut_every : int, optional
        Steps 0, `cut_every`, ... of the recorded ones are cut, too; 10 x `every` by default.
    config : dict, optional
        What tells this run from others, such as `{"lr": 0.1, "depth": 50}`: numbers and words,
        kept in `run.json` and shown beside the run; of other values the text. See `Run.config`.
    updates : bool or "sampled", optional
        By what a step's update is told. True: by a copy of the weights, as large as the trainable
        parameters; exact, but for half types on an accelerator without Triton, where an element
        that more than doubles or halves is off by 2^-9 of its change at most. "sampled": by a copy
        of a fixed sample, up to 16,384 elements of each parameter of more than 65,536 (8 MB of a
        net of 7 billion in bfloat16); `update_norm` is then an estimate with a standard error of
        0.6 % a parameter (1.1 % at most) where the elements of an update are alike, and of
        sqrt(3 / share / 16384) / 2 where only a share of them moves, as of an embedding's rows.
        False: not at all, `update_norm` is NaN. `weight_norm` is exact in each case.
    keep_snapshot : bool, optional
        Keep the memory of that copy from one recorded step to the next. By default on the CPU
        only, where to ask for it anew is slow; elsewhere it is held during the step.
    ranks : {0, "all"}
        Under torch.distributed, where every process calls `watch`, with its own stage if the model
        is a pipeline: 0, the default, makes rank 0 write one run with the layers and the norms of
        all processes; "all" makes each write its own, local readings to `<run>/rank<n>`.
    flush_every, flush_seconds : int, float
        Rows are written to disk when so many have been recorded, or so many seconds (at most 10)
        after the last time, whichever comes first: what a crash can lose.

    Returns
    -------
    Scope
        With `log`, `send_to`, `on`, `run`, `close`; also a context manager.

    Raises
    ------
    GradscopeError
        If `model` is no nn.Module, has no trainable parameter or is watched already, `every` is
        below 1, the run folder exists or cannot be written, or `optimizer` has no parameter of
        the model; with `resume`, if `run` is not named, another process writes it, or it has
        other layers than the model.

    Notes
    -----
    A run that is not closed is closed when the program exits. SIGTERM writes what was recorded up
    to then and ends the process as ever; where the program has a handler for it, that one alone
    decides: call `flush` there. Forked and spawned workers record nothing.

    What is recorded is described column by column in `gradscope.schema`. Activation functions that
    are called without a module, such as F.relu, are found on the graph and read at the layer whose
    output they are given; not within checkpoints, nor where a sum is what they are given.

    Training is not changed: same weights to the bit, same random numbers. Only a compiled model
    runs without torch.compile on recorded steps, with the rounding of eager mode, and the masks of
    dropout that this draws, which are not the default backend's: choose `every` with that in mind.
    On an accelerator that is so for the first recorded step alone, and where something is compiled
    anew, so that its structure shows. From then on recorded steps run a second compiled graph,
    which takes the readings as well and is compiled once; the steps between run what they ran
    without us. Compilers promise no equal rounding of two graphs. Such a graph shows what modules
    take and return: what no module does, as the gradient at a shortcut that begins at the result of
    a function, is NaN, and told of. Where the compiled call cannot be reached from the object given
    here, recorded steps run without torch.compile.

    Memory: while an optimizer steps on a recorded step, a copy of the weights that it updates (see
    `updates`); besides, a few numbers for each layer. Where there is no memory for what would be
    read, it is NaN in that step, which is told once, and the training goes on.

    On the CPU float32 tensors are summed by a small C kernel, which is compiled on first use where
    there is a C compiler, and kept in the user's cache; GRADSCOPE_KERNEL=0 in the environment
    leaves everything to torch.
    """
    if not isinstance(model, nn.Module):
        hint = "; did you mean to pass an instance?" if isinstance(model, type) else ""
        raise GradscopeError(
            f"watch() needs a torch.nn.Module, got {type(model).__name__} {model!r:.80}{hint}"
        )
    inner = layers.unwrap(model)
    optimizers = [optimizer] if isinstance(optimizer, Optimizer) else optimizer
    try:
        settled = check_config(config)
        check_settings(every, flush_every, flush_seconds, ranks)
        check_updates(updates)
        check_gradient(gradient)
        cut_every = check_cut(model, cut, cut_every, every)
        check_model(inner)
        check_optimizers(inner, optimizers)
        path = folder(inner, run, resume)
    except GradscopeError as error:
        refuse(inner, str(error))  # the other processes need not wait for this one
        raise
    try:
        settings = Settings(
            every=every,
            optimizers=optimizers,
            scaler=scaler,
            compiled=compiled_modules(model),
            updates=updates,
            gradient=gradient,
            keep_snapshot=keep_snapshot,
            cut=cut,
            cut_every=cut_every,
        )
        return Scope(
            inner,
            path,
            settings,
            settled,
            resume=resume,
            sharing=sharing(model),
            every_rank=ranks == "all",
            flush_every=flush_every,
            flush_seconds=flush_seconds,
        )
    except BaseException:
        give_back(path, run)
        raise


def unwatch(model: nn.Module) -> None:
    """Stop watching a model, and write the rest: as `close()` of its scope, without the scope.

    >>> gradscope.watch(model)  # in a cell of a notebook that was interrupted, say
    >>> gradscope.unwatch(model)

    Parameters
    ----------
    model : nn.Module
        Wrappers are seen through, as by `watch`. Nothing happens if it is not watched.

    Raises
    ------
    GradscopeError
        If it is no nn.Module.
    """
    if not isinstance(model, nn.Module):
        raise GradscopeError(f"unwatch() needs a torch.nn.Module, got {type(model).__name__}")
    process_end.close_scope(id(layers.unwrap(model)), CLOSE_SECONDS)
