"""What a user holds while a model is watched: recorder, drain and run, joined into a `Scope`."""

from __future__ import annotations

import os
import sys
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradscope._version import __version__
from gradscope.capture.net.catalogue import Catalogue
from gradscope.capture.net.distributed import Sharing
from gradscope.capture.recorder import Recorder, Settings
from gradscope.errors import GradscopeError, GradscopeWarning
from gradscope.session import alerts, process_end
from gradscope.session.checks import check_scalars, check_sending
from gradscope.session.drain import CLOSE_SECONDS, Drain
from gradscope.session.live import LiveCell, described
from gradscope.session.opening import Opened, open_run
from gradscope.session.sinks import DEFAULT_METRICS, Subscription

if TYPE_CHECKING:
    from gradscope.diagnosis.findings import Diagnosis
    from gradscope.runs.run import Run
    from gradscope.whatif.result import WhatIf

_UPDATES = {
    False: "update_norm was not recorded, as watch(updates=False) asked",
    "sampled": "update_norm is estimated from a sample of each parameter of more than 65,536"
    ' elements, as watch(updates="sampled") asked: its standard error is about 1 %, and more where'
    " few of the elements move",
}
"""What is noted of updates that are not told in full."""

_ASKED_LATE = (
    "grad_norm was not recorded: the function watch(gradient=...) is asked when an optimizer steps,"
    " and what it returns is clipped_grad_norm"
)

_MANY = 100
"""Runs in one folder from which on the one that closes keeps its summary."""


class Scope:
    """A model under watch; made by `watch`. Use `log`, `run` and `close`, or a `with` block."""

    def __init__(
        self,
        model: nn.Module,
        path: Path,
        settings: Settings,
        config: dict[str, Any],
        *,
        sharing: Sharing,
        resume: bool,
        every_rank: bool,
        flush_every: int,
        flush_seconds: float,
    ) -> None:
        self._model_id = id(model)
        self._model = weakref.ref(model)
        self._closed = False
        self._every = settings.every
        self._notes: list[str] = []
        self._cell: LiveCell | None = None
        meta = {
            "model": type(model).__name__,
            "every": settings.every,
            "cut": settings.cut,
            **({} if settings.updates is True else {"updates": settings.updates}),
            **({"config": config} if config else {}),
            "gradscope": __version__,
            "torch": torch.__version__,
        }
        with ExitStack() as undo:  # what `watch` raises leaves nothing behind
            opened = open_run(model, path, meta, sharing, resume, every_rank, undo)
            self.path = opened.path
            self._writes = opened.writer is not None
            catalogue = Catalogue(opened.layers, opened.shortcuts, opened.edges)
            catalogue.sharing = sharing
            self._drain = Drain(
                catalogue,
                opened.writer,
                opened.ranks,
                self._tell,
                flush_every,
                flush_seconds,
                opened.notes,
                opened.marks,
            )
            undo.callback(self._drain.close, process_end.HURRY_SECONDS)
            self._recorder = Recorder(
                model,
                settings,
                catalogue=catalogue,
                emit=self._drain.hand_over,
                tell=self._tell,
                first=opened.next_step,
                elapsed=opened.elapsed,
            )
            undo.callback(self._recorder.detach)
            self._say_what_was_asked(settings, opened)
            undo.callback(process_end.leave, id(model), self)
            process_end.enter(id(model), process_end.Open(self, self._recorder, self._drain))
            weakref.finalize(model, process_end.close_scope, id(model)).atexit = False
            undo.pop_all()

    def _say_what_was_asked(self, settings: Settings, opened: Opened) -> None:
        asked = [_UPDATES.get(settings.updates, ""), callable(settings.gradient) and _ASKED_LATE]
        for sentence in asked:
            if sentence and sentence not in opened.notes:  # of a run that is resumed
                self._note(sentence)
        if opened.problem:
            self._tell(opened.problem)

    @property
    def run(self) -> Run:
        """The run with every step made by now; waits until that is on disk."""
        from gradscope.diagnosis.headline import put_into_notebooks
        from gradscope.runs.loading import load  # pandas is not needed to record

        put_into_notebooks()
        self.flush()
        return load(self.path)

    def log(self, **scalars: float | Tensor) -> None:
        """Attach scalars, such as losses, to the current step: the one that was made last.

        Parameters
        ----------
        **scalars : number or Tensor of one element
            A tensor on an accelerator is copied there, without waiting. Between recorded steps the
            latest value of each name is kept for the next recorded one; what is left when the scope
            closes has a row of its own, that of the last step, in which all else is NaN.

        Raises
        ------
        GradscopeError
            If a name is a column of `run.steps` already or no valid Unicode, or a value is no
            single number.
        """
        if self._closed:
            raise GradscopeError(f"{self.path}: the scope is closed; log before close()")
        check_scalars(scalars)
        self._recorder.log(scalars)

    def mark(self, text: str) -> None:
        """Note what was done at the current step, such as "unfroze the backbone".

        Figures and the dashboard show it in their place on the time line; see `Run.marks`.

        Parameters
        ----------
        text : str
            Kept up to its 200th character.

        Raises
        ------
        GradscopeError
            If the scope is closed.
        """
        if self._closed:
            raise GradscopeError(f"{self.path}: the scope is closed; mark before close()")
        said = str(text)[:200].encode("utf-8", "replace").decode("utf-8")
        self._drain.mark(self._recorder.step, said)

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
            See `gradscope.session.sinks.Sink`. It stays yours: close the scope first, then it.
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
        every = check_sending(every, self._every)
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
            `collapsed`, `saturated`, `scaled-clipping`, `shortcut-dominated`, `reparameterised`,
            `update-speed` or `healthy`.
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

    def what_if(
        self,
        loss_fn: Callable[[Any, Any], Any],
        batches: Any,
        *,
        changes: Sequence[Any] | None = None,
        steps: int = 50,
        seconds: float | None = None,
    ) -> WhatIf:
        """Try on copies what would help this training, into `<run>/what-if`; it goes on untouched.

        What `diagnose` finds of this run decides, too, which changes are tried.

        Parameters
        ----------
        loss_fn, batches, changes, steps, seconds
            As for `gradscope.what_if`.

        Raises
        ------
        GradscopeError
            As by `gradscope.what_if`; also before the optimizer's first step, unless it was given
            to `watch`, and where the model has several.
        """
        from gradscope.whatif.explore import explore  # pandas is not needed to record
        from gradscope.whatif.subject import subject_of

        model, optimizers = self._model(), self._recorder.optimizers
        if self._closed or model is None or len(optimizers) != 1:
            why = "is closed" if self._closed else f"knows {len(optimizers)} optimizers"
            raise GradscopeError(
                f"what_if(): this scope {why}; call"
                " gradscope.what_if(model, loss_fn, batches, optimizer)"
            )
        subject = subject_of(model, loss_fn, batches, optimizers[0], steps)
        self.flush()
        return explore(subject, _record, self.path, changes, seconds)

    def flush(self) -> None:
        """Write every step made by now to disk; what is logged afterwards is the next step's."""
        self._recorder.end_step()
        self._drain.flush()

    def close(self) -> None:
        """Stop recording, take out every hook, and write the rest; a second call does nothing.

        With several processes it waits for the others to close, too, 30 s at most.
        """
        self.end(CLOSE_SECONDS)

    def end(self, seconds: float) -> None:
        """Close, and wait for other processes no longer than `seconds`: on an exception's way out.

        Parameters
        ----------
        seconds : float
        """
        if self._closed:
            return
        self._closed = True
        self._recorder.close()
        if self._drain.is_alive:
            self._explain_if_empty()
        self._drain.close(seconds)
        process_end.leave(self._model_id, self)
        if self._writes and seconds >= CLOSE_SECONDS:
            _keep_summary(self.path)
        if self._cell is not None:
            self._cell.refresh()

    def __enter__(self) -> Scope:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end(CLOSE_SECONDS if kind is None else process_end.HURRY_SECONDS)

    def __repr__(self) -> str:
        state = "closed" if self._closed else "recording"
        return f"<gradscope.Scope {state} to {self.path}>"

    def _repr_html_(self) -> str:
        return self._described({})

    def _ipython_display_(self) -> None:
        """Show a cell that follows the recording; a notebook calls this."""
        self._cell = LiveCell(self._described)
        if not self._closed:
            self._drain.subscribe(Subscription(self._cell, "grad_norm", self._every))

    def _described(self, last: Mapping[str, float]) -> str:
        rows = self._recorder.rows
        return described(self.path, rows, self._notes, last, is_closed=self._closed)

    def _explain_if_empty(self) -> None:
        recorder = self._recorder
        if recorder.rows:
            return
        if not recorder.saw_forward:
            why = (
                "no forward with gradients was seen: was the model called, with gradients on,"
                " through the object given to watch(), and is it the model that is compiled, if"
                " anything, not the step around it?"
            )
        elif not recorder.saw_backward:
            why = "no backward reached the model: was loss.backward() called on its output?"
        else:
            why = (
                "no optimizer that has a parameter of the model made a step: was optimizer.step()"
                " called, does the optimizer hold the parameters of this model, and is its step"
                " left out of torch.compile, in which nothing tells of it?"
            )
        self._tell(f"no step was recorded: {why}")

    def _tell(self, sentence: str) -> None:
        """Say what cannot be recorded: as a warning, and in the run; each sentence once."""
        if self._note(sentence):
            try:
                warnings.warn(f"gradscope: {sentence}", GradscopeWarning, stacklevel=2)
            except Exception as error:  # warnings are errors here, or cannot be shown
                with suppress(Exception):
                    print(error, file=sys.stderr)

    def _note(self, sentence: str) -> bool:
        """Keep `sentence` in the run; return whether it was not there yet."""
        if sentence in self._notes:
            return False
        self._notes.append(sentence)
        self._drain.note(sentence)
        return True


def _keep_summary(path: Path) -> None:
    """Say of a run among many how it went, for those who list them."""
    with suppress(Exception):  # a reader does it then
        with os.scandir(path.parent) as runs:
            if not any(place >= _MANY for place, _ in enumerate(runs)):
                return
        from gradscope.diagnosis.kept import keep_closed  # pandas is not needed to record

        keep_closed(path)


def _record(model: nn.Module, path: Path, optimizer: Optimizer) -> Scope:
    """Watch a copy of a model that is watched."""
    settings = Settings(optimizers=[optimizer])
    return Scope(
        model,
        path,
        settings,
        {},
        sharing=Sharing(),
        resume=False,
        every_rank=False,
        flush_every=500,
        flush_seconds=1.0,
    )
