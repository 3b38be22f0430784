"""`watch(model)`: the recorder and the store, joined into the `Scope` that a user holds."""

from __future__ import annotations

import os
import sys
import warnings
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradscope import schema
from gradscope._version import __version__
from gradscope.capture import layers
from gradscope.capture.catalogue import Catalogue
from gradscope.capture.compiled import is_compiled
from gradscope.capture.recorder import Recorder
from gradscope.errors import GradscopeError, GradscopeWarning
from gradscope.session import alerts, process_end
from gradscope.session.checks import check_cut, check_model, check_optimizers, check_settings
from gradscope.session.drain import Drain
from gradscope.session.opening import folder, open_run
from gradscope.session.sinks import DEFAULT_METRICS, Subscription

if TYPE_CHECKING:
    from gradscope.diagnosis.findings import Diagnosis
    from gradscope.runs.run import Run
    from gradscope_dashboard import Server


def watch(
    model: nn.Module,
    run: str | os.PathLike[str] | None = None,
    *,
    resume: bool = False,
    every: int = 1,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    scaler: Any = None,
    cut: str | None = None,
    cut_every: int | None = None,
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
    cut : {"shortcuts", "branches"}, optional
        Also record `cut_signal_norm`: the signal that would reach each layer if no gradient could
        pass the shortcuts (or the branches). The forward pass stays as it is, so a net with its
        shortcuts cut is not the plain net. Costs a second backward on the steps where it is taken,
        and holds the gradient of every layer's output meanwhile.
    cut_every : int, optional
        Steps 0, `cut_every`, ... of the recorded ones are cut, too; 10 x `every` by default.
    keep_snapshot : bool, optional
        Keep the memory for the copy of the weights that a step's update is told by (as much as the
        trainable parameters, half types in float32) from one recorded step to the next. By default
        on the CPU only, where to ask for it anew is slow; elsewhere it is held during the step.
    ranks : {0, "all"}
        Under torch.distributed, where every process calls `watch`: 0, the default, makes rank 0
        write one run with the norms over all processes; "all" makes each write its own, local
        readings to `<run>/rank<n>`.
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
    runs without torch.compile on recorded steps, with the rounding of eager mode: choose `every`
    with that in mind. Memory: while an optimizer steps on a recorded step, a copy of the weights
    that it updates; besides, a few numbers for each layer.

    On the CPU float32 tensors are summed by a small C kernel, which is compiled on first use where
    there is a C compiler, and kept in the user's cache; GRADSCOPE_KERNEL=0 in the environment
    leaves everything to torch.
    """
    if not isinstance(model, nn.Module):
        hint = "; did you mean to pass an instance?" if isinstance(model, type) else ""
        raise GradscopeError(
            f"watch() needs a torch.nn.Module, got {type(model).__name__} {model!r:.80}{hint}"
        )
    check_settings(every, flush_every, flush_seconds)
    cut_every = check_cut(model, cut, cut_every, every)
    inner = layers.unwrap(model)
    if ranks not in (0, "all"):
        raise GradscopeError(f'watch(ranks={ranks!r}): needs 0 or "all"')
    optimizers = [optimizer] if isinstance(optimizer, Optimizer) else optimizer
    check_model(inner)
    check_optimizers(inner, optimizers)
    return Scope(
        inner,
        folder(inner, run, resume),
        resume,
        ranks == "all",
        flush_every,
        flush_seconds,
        every=every,
        optimizers=optimizers,
        scaler=scaler,
        compiled=is_compiled(model),
        keep_snapshot=keep_snapshot,
        cut=cut,
        cut_every=cut_every,
    )


class Scope:
    """A model under watch; made by `watch`. Use `log`, `run` and `close`, or a `with` block."""

    def __init__(
        self,
        model: nn.Module,
        path: Path,
        resume: bool,
        every_rank: bool,
        flush_every: int,
        flush_seconds: float,
        **settings: Any,
    ) -> None:
        self._model_id = id(model)
        self._closed = False
        self._every = settings["every"]
        self._notes: list[str] = []
        meta = {
            "model": type(model).__name__,
            "every": settings["every"],
            "cut": settings["cut"],
            "gradscope": __version__,
            "torch": torch.__version__,
        }
        opened = open_run(model, path, meta, resume, every_rank)
        self.path = opened.path
        catalogue = Catalogue(opened.layers, opened.shortcuts)
        self._drain = Drain(
            catalogue,
            opened.writer,
            opened.ranks,
            self._tell,
            flush_every,
            flush_seconds,
            opened.notes,
        )
        self._recorder = Recorder(
            model,
            catalogue=catalogue,
            emit=self._drain.hand_over,
            tell=self._tell,
            first=opened.next_step,
            elapsed=opened.elapsed,
            **settings,
        )
        process_end.enter(id(model), process_end.Open(self, self._recorder, self._drain))
        weakref.finalize(model, process_end.close_scope, id(model)).atexit = False

    @property
    def run(self) -> Run:
        """The run with every step made by now; waits until that is on disk."""
        from gradscope.runs.loading import load  # pandas is not needed to record

        self.flush()
        return load(self.path)

    def log(self, **scalars: float | Tensor) -> None:
        """Attach scalars, such as losses, to the current step: the one that was made last.

        Parameters
        ----------
        **scalars : number or Tensor of one element
            A tensor on an accelerator is copied there, without waiting. Between recorded steps the
            latest value of each name is kept for the next recorded one.

        Raises
        ------
        GradscopeError
            If a name is a column of `run.steps` already or no valid Unicode, or a value is no
            single number.
        """
        if self._closed:
            raise GradscopeError(f"{self.path}: the scope is closed; log before close()")
        for name, value in scalars.items():
            if name in schema.names(schema.STEPS):
                raise GradscopeError(
                    f"log({name}=...): gradscope records a column of this name; choose another"
                )
            if name != name.encode("utf-8", "replace").decode("utf-8"):
                raise GradscopeError(
                    f"log({name!r}=...): no file can hold this name, it is no valid Unicode"
                )
            if isinstance(value, Tensor) and value.numel() == 1:
                continue
            if not hasattr(value, "__float__") or isinstance(value, Tensor):
                shape = f" of shape {tuple(value.shape)}" if isinstance(value, Tensor) else ""
                raise GradscopeError(
                    f"log({name}=...): needs one number, got {type(value).__name__}{shape};"
                    " log its mean, say"
                )
        self._recorder.log(scalars)

    def send_to(
        self,
        sink: Any,
        metrics: str | Sequence[str] = DEFAULT_METRICS,
        every: int | None = None,
    ) -> None:
        """Send what is recorded from now on to a tracker, too, without slowing the training down.

        >>> scope.send_to(SummaryWriter("logs"))
        >>> scope.send_to(wandb.init(project="nets"), metrics=["grad_norm", "cosine"], every=10)
        >>> scope.send_to(lambda step, values: print(step, values["steps/grad_norm"]))

        Readings arrive once they are on disk, `flush_seconds` late at most, under the names
        `grad_norm/<layer>`, `cosine/<block>` and `steps/grad_norm`; NaN is not sent. With several
        processes rank 0 sends. A sink that raises is told of once and not called again; one that
        is slower than the training holds up what is written, so give it fewer steps or metrics.

        Parameters
        ----------
        sink : SummaryWriter, run of wandb or MLflow, or a function of (step, values)
            See `gradscope.sinks.Sink`. It stays yours: close the scope first, then the sink.
        metrics : str or sequence of them
            Columns of `layer_readings`, `shortcut_readings` and `steps`, besides `update_ratio`
            and `relative_signal`.
        every : int, optional
            Of the recorded steps only 0, `every`, ... are sent.

        Raises
        ------
        GradscopeError
            If the scope is closed, nothing can be sent to `sink`, there is no such metric, or
            `every` is no multiple of the steps that are recorded.
        """
        if self._closed:
            raise GradscopeError(f"{self.path}: the scope is closed; call send_to before close()")
        every = self._every if every is None else every
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise GradscopeError(
                f"send_to(every={every!r}): needs a whole number of steps, 1 or more"
            )
        if every % self._every:
            raise GradscopeError(
                f"send_to(every={every}): only recorded steps can be sent, so it must be a"
                f" multiple of {self._every}, the `every` of watch()"
            )
        self._drain.subscribe(Subscription(sink, metrics, every))

    def on(self, verdict: str, callback: Callable[[Diagnosis], object]) -> None:
        """Call `callback` once, when `verdict` appears in the run that is being recorded.

        >>> stop = threading.Event()
        >>> scope.on("exploding", lambda diagnosis: stop.set())
        >>> scope.on("vanishing", print)

        Parameters
        ----------
        verdict : str
            A verdict of `gradscope.diagnose`: `vanishing`, `exploding`, `dead`, `disconnected`,
            `collapsed`, `saturated`, `shortcut-dominated`, `reparameterised`, `update-speed` or
            `healthy`.
        callback : function of a Diagnosis
            Called on gradscope's own thread, so an exception in it stops no training: it is told
            of, once.

        Raises
        ------
        GradscopeError
            If the scope is closed, a recording cannot have such a verdict, or `callback` is no
            function.

        Notes
        -----
        The run is diagnosed as it comes to disk, from 20 recorded steps on, as often as takes 2 %
        of the time, and a last time by `close`, however few the steps are: a callback may come a
        little late, but never for what passed with the first step. With several processes the one
        that writes the run calls back.
        """
        if self._closed:
            raise GradscopeError(f"{self.path}: the scope is closed; call on() before close()")
        alerts.check(verdict, callback)
        self._drain.alert(verdict, callback)

    def dashboard(self) -> Server:
        """Serve the dashboard for this run while it is recorded; see `Run.dashboard`."""
        return self.run.dashboard()

    def flush(self) -> None:
        """Write every step made by now to disk; what is logged afterwards is the next step's."""
        self._recorder.end_step()
        self._drain.flush()

    def close(self) -> None:
        """Stop recording, take out every hook, and write the rest; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        self._recorder.close()
        if self._drain.is_alive:
            self._explain_if_empty()
        self._drain.close()
        process_end.leave(self._model_id, self)

    def __enter__(self) -> Scope:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else "recording"
        return f"<gradscope.Scope {state} to {self.path}>"

    def _explain_if_empty(self) -> None:
        recorder = self._recorder
        if recorder.rows:
            return
        if not recorder.saw_forward:
            why = (
                "no forward with gradients was seen: was the model called, with gradients on,"
                " through the object given to watch(), and compiled after it, not before?"
            )
        elif not recorder.saw_backward:
            why = "no backward reached the model: was loss.backward() called on its output?"
        else:
            why = (
                "no optimizer that has a parameter of the model made a step: was optimizer.step()"
                " called, and does the optimizer hold the parameters of this model?"
            )
        self._tell(f"no step was recorded: {why}")

    def _tell(self, sentence: str) -> None:
        """Say what cannot be recorded: as a warning, and in the run; each sentence once."""
        if sentence not in self._notes:
            self._notes.append(sentence)
            self._drain.note(sentence)
            try:
                warnings.warn(f"gradscope: {sentence}", GradscopeWarning, stacklevel=2)
            except Exception as error:  # warnings are errors here, or cannot be shown
                with suppress(Exception):
                    print(error, file=sys.stderr)
