"""The thread that takes closed rows from the device to disk, so that training never waits.

All flushing happens on this thread. Others only ask for it, so that neither an interrupt nor a
signal, which may strike the main thread anywhere, finds a flush half done.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from gradscope import schema
from gradscope.capture.keys import OfLayer, OfShortcut
from gradscope.capture.net.catalogue import Catalogue
from gradscope.capture.net.distributed import several
from gradscope.capture.reading.rows import Row
from gradscope.session.alerts import Alerts
from gradscope.session.columns import Columns, Decoded, Decoder, by_layout, columns, in_order
from gradscope.session.meeting import SILENCE_SECONDS
from gradscope.session.ranks import Ranks
from gradscope.session.shares import ALONE, Shares
from gradscope.session.sinks import Subscription
from gradscope.session.tape import HostRow, Tape
from gradscope.storage.writer import RunWriter
from gradscope.wording import layers_named

if TYPE_CHECKING:
    from gradscope.diagnosis.findings import Diagnosis

CLOSE_SECONDS = 30
"""For which a close waits for the other processes to close, too."""


class Drain:
    """Fetches rows, decodes them, writes them: every `seconds`, or when `rows` are waiting.

    Parameters
    ----------
    catalogue : Catalogue
        Of the layers and shortcuts that rows speak of.
    writer : RunWriter, optional
        Used by the drain alone; None where another process writes.
    ranks : Ranks, optional
        The processes that train together with this one.
    tell : called with a sentence about rows that are lost
    rows : int
    seconds : float
    notes, marks : those that the run holds already
    """

    def __init__(
        self,
        catalogue: Catalogue,
        writer: RunWriter | None,
        ranks: Ranks | None,
        tell: Callable[[str], None],
        rows: int,
        seconds: float,
        notes: Iterable[str] = (),
        marks: Iterable[dict[str, Any]] = (),
    ) -> None:
        self._catalogue = catalogue
        self._decoder = Decoder(catalogue, ALONE if ranks is None else ranks.shares)
        self._is_cut_off = False  # from the processes whose readings belong to those of this one
        self._may_meet = not several()  # others that this process has not waited for
        self._listed = catalogue if ranks is None else ranks.joint  # what the run's rows speak of
        self._writer = writer
        self._ranks = ranks
        self._tell = tell
        self._rows = rows
        self._seconds = seconds
        self._notes = list(notes)
        self._marks = list(marks)
        self._written = (0, 0, 0)
        self._subscriptions: list[Subscription] = []
        self._alerts: Alerts | None = None
        self._tape = Tape()
        # a signal handler may put, even where it interrupts a put: no other queue or lock allows it
        self._requests: queue.SimpleQueue[threading.Event] = queue.SimpleQueue()
        self._closing = False
        self._deadline = math.inf
        self._writing = threading.RLock()  # a sink, called while writing, may fork
        self._thread = threading.Thread(target=self._loop, name="gradscope-drain", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether rows still go to disk: not after `close`, nor in a forked worker."""
        return self._thread.is_alive()

    def note(self, sentence: str) -> None:
        """Keep `sentence` in the run."""
        self._notes.append(sentence)

    def mark(self, step: int, text: str) -> None:
        """Keep in the run what was done at `step`."""
        self._marks.append({"step": step, "text": text})

    def subscribe(self, subscription: Subscription) -> None:
        """Send rows on to a sink, too, from the next flush on."""
        self._subscriptions.append(subscription)

    def alert(self, verdict: str, callback: Callable[[Diagnosis], object]) -> None:
        """Call back once `verdict` appears in the run, if this process writes it."""
        if self._writer is None:
            return
        if self._alerts is None:
            self._alerts = Alerts(self._writer.path, self._tell)
        self._alerts.add(verdict, callback)

    def hand_over(self, row: Row) -> None:
        """Take a closed row; called by the training thread."""
        self._tape.put(row)
        if len(self._tape) == self._rows:
            self.request_flush()

    def request_flush(self) -> threading.Event:
        """Ask for what was handed over to be written; the event is set when it is. Never waits."""
        done = threading.Event()
        if self.is_alive:
            self._requests.put(done)
        else:
            done.set()
        return done

    def flush(self) -> None:
        """Write what was handed over; waits for the device, the disk and other processes."""
        if threading.current_thread() is self._thread:  # a sink: what it was sent is on disk
            return
        done = self.request_flush()
        while not done.wait(1) and self.is_alive:
            pass

    def pause(self, seconds: float) -> bool:
        """Wait until nothing is being written; nothing is until `go_on`. False if it takes long."""
        return self._writing.acquire(timeout=seconds)

    def go_on(self) -> None:
        """Write again."""
        self._writing.release()

    def close(self, seconds: float = CLOSE_SECONDS) -> None:
        """Write the rest and end the thread; with several processes, when all of them close.

        Parameters
        ----------
        seconds : float
            To wait for other processes.
        """
        if not self.is_alive:
            return
        self._deadline = time.monotonic() + seconds
        self._closing = True
        self._tape.close()
        self._requests.put(threading.Event())
        if self._thread is not threading.current_thread():  # which may collect the last model
            self._thread.join()

    def _loop(self) -> None:
        closing = False
        while not closing:
            asked = self._wait()
            closing = self._closing
            if asked or closing or len(self._tape) or self._ranks is not None:
                self._flush(closing)
            for done in asked:
                done.set()
        while self._ranks is not None and not self._ranks.done and self._patience() > 0:
            self._flush(closing)
        self._give_up()
        if self._writer is not None:
            with self._writing:
                self._describe()
                if self._alerts is not None:
                    self._alerts.look(last=True)
                    self._describe()
                self._writer.close()

    def _wait(self) -> list[threading.Event]:
        """Return the requests there are; waits for one, `seconds` at most."""
        asked = []
        with suppress(queue.Empty):
            asked.append(self._requests.get(timeout=self._seconds))
            while True:
                asked.append(self._requests.get_nowait())
        return asked

    def _flush(self, closing: bool) -> None:
        try:
            waiting = self._tape.fetch()
            if self._may_meet and several():
                self._be_alone()
            if self._ranks is None:
                waiting = by_layout(waiting)
            rows = [] if self._is_cut_off else self._decoded(waiting)
            if self._ranks is not None:
                rows = self._exchange(rows, closing)
            if self._writer is not None:
                with self._writing:
                    self._write(self._writer, rows, closing)
        except Exception as error:  # the thread must live: `hand_over` waits for it
            self._tell(f"lost the steps of one flush: {type(error).__name__}: {error}")

    def _be_alone(self) -> None:
        """Say of readings of outputs that they are not those of all processes: they are NaN."""
        self._may_meet = False
        size = dist.get_world_size()
        self._decoder = Decoder(self._catalogue, Shares(unknown=(OfLayer, OfShortcut), others=size))
        self._tell(
            f"the process group was made after watch(): process {dist.get_rank()} of {size} writes"
            " what it reads itself. Of its share of the batch alone there would be signals,"
            " activations and shortcuts, which are NaN; norms of parameters are those that it"
            " holds whole. Call watch() after init_process_group(), on every process, to have"
            " those of all"
        )

    def _write(self, writer: RunWriter, rows: Iterable[Decoded], closing: bool) -> None:
        written = [columns(decoded) for decoded in rows]
        if self._ranks is None and written:  # what processes have put together is in order
            written = [in_order(written)]
        for tables in written:
            for table in schema.TABLES:
                writer.add_rows(table, tables[table])
        self._describe()
        writer.flush()
        self._send(written)
        if self._alerts is not None and not closing:
            self._alerts.look()

    def _exchange(self, rows: Iterable[Decoded], closing: bool) -> list[Decoded]:
        assert self._ranks is not None
        try:
            patience = max(self._patience(), 0.1)
            merged = self._ranks.exchange(rows, closing, patience, self._catalogue, self._notes)
        except Exception as error:
            above = self._ranks.above
            self._ranks, self._is_cut_off = None, True  # what this process reads is not that of all
            reason = (
                f"process {above} takes no readings any more, those of this one are lost"
                if self._writer is None
                else "the readings of the processes cannot be put together, they are lost"
            )
            said = (str(error).splitlines() or [""])[0][:200]
            self._tell(f"{reason} from here on ({type(error).__name__}: {said})")
            return []
        self._tell_of_others()
        return merged

    def _patience(self) -> float:
        """Return how many seconds to wait for another process."""
        return min(SILENCE_SECONDS, self._deadline - time.monotonic())

    def _give_up(self) -> None:
        """Write what some process has not sent its part of, and end the connections."""
        if self._ranks is None:
            return
        rows = []
        with suppress(Exception):  # the process above is gone
            rows = self._ranks.give_up(1)
        self._tell_of_others()
        if rows and self._writer is not None:
            with self._writing:
                self._write(self._writer, rows, closing=True)

    def _tell_of_others(self) -> None:
        """Say which processes have fallen silent, and what is not known for that."""
        assert self._ranks is not None
        for rank in self._ranks.gone:
            self._tell(
                f"process {rank} has sent no readings for some seconds: it is not waited for"
            )
        if self._ranks.foreign:
            self._tell(
                f"from step {self._ranks.foreign[0]} on process 0 made no steps, after fewer inputs"
                ' maybe: those of others are left out. watch(ranks="all") has the readings of each'
            )
        if self._writer is not None:
            for note in sorted(self._ranks.joint.notes.keys() - set(self._notes)):
                self._tell(f"on another process: {note}")
        combiner = self._ranks.combiner
        if combiner.apart:
            self._tell(
                f"from step {combiner.apart[0]} on processes make steps of their own under one"
                " number, after uneven inputs maybe, or train weights of their own: what they"
                ' read then cannot be put together and is NaN. watch(ranks="all") has the'
                " readings of each"
            )
        for metric, owners in combiner.unlike.items():
            self._tell_unlike(metric, owners)
        if combiner.partial:
            self._tell(
                f"from step {combiner.partial[0]} on not every process has its readings of"
                " each step: of these steps there are only those of parameters that all processes"
                " hold alike"
            )

    def _tell_unlike(self, metric: str, numbers: Iterable[int]) -> None:
        """Say that processes hold something of their own, which is taken for copies."""
        remedy = (
            "gradients that the program itself reduces after the backward are clipped_grad_norm"
            if metric == "grad_norm"
            else 'watch(ranks="all") has the readings of each'
        )
        self._tell(
            f"{metric} of {layers_named([self._listed.layers[n]['name'] for n in numbers])} differs"
            f" between processes that should hold it alike, and is NaN where it does: {remedy}"
        )

    def _decoded(self, rows: list[HostRow]) -> list[Decoded]:
        """Put readings of rows together, all at once, or else of each row that can be."""
        try:
            return self._decoded_together(rows)
        except Exception:
            decoded: list[Decoded] = []
            lost: dict[int, Exception] = {}
            for row in rows:
                try:
                    decoded += self._decoded_together([row])
                except Exception as error:
                    lost[row.step] = error
            if lost:
                first = lost[min(lost)]
                steps = f"{min(lost)}-{max(lost)}"
                self._tell(f"lost steps {steps}: {type(first).__name__}: {first}")
            return decoded

    def _decoded_together(self, rows: list[HostRow]) -> list[Decoded]:
        decoded = list(self._decoder.decoded(rows))
        if self._decoder.summands:
            self._tell(
                f"{layers_named(list(self._decoder.summands))}: each process has a summand of"
                " their gradient, which the optimizer adds up itself: grad_norm and"
                " clipped_grad_norm are NaN there and over all parameters. fully_shard over"
                " one more dimension of the mesh adds them up before"
            )
        return decoded

    def _send(self, written: list[dict[str, Columns]]) -> None:
        """Send rows on; a sink that fails is told of, and dropped."""
        for subscription in list(self._subscriptions):
            try:
                for tables in written:
                    subscription.send(tables, self._listed.layers, self._listed.shortcuts)
            except Exception as error:
                self._subscriptions.remove(subscription)
                self._tell(
                    f"nothing is sent to {subscription.name} any more:"
                    f" {type(error).__name__}: {error}"
                )

    def _describe(self) -> None:
        """Bring run.json up to date, before the rows that speak of new layers are on disk."""
        assert self._writer is not None
        layers, shortcuts = self._listed.layers, self._listed.shortcuts
        now = (self._listed.changes, len(self._notes), len(self._marks))
        if now != self._written:
            self._writer.update(
                layers=layers,
                shortcuts=shortcuts,
                edges=self._listed.edge_rows(),
                notes=list(self._notes),
                marks=list(self._marks),
            )
            if heads := list(self._listed.heads):  # none yet: those of a run that is resumed
                self._writer.update(heads=[head._asdict() for head in heads])
            if facts := dict(self._catalogue.facts):
                self._writer.update(facts=facts)
            self._written = now
