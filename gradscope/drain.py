"""The thread that takes closed rows from the device to disk, so that the training thread never waits."""

from __future__ import annotations

import threading
from collections.abc import Callable

from gradscope import schema
from gradscope.catalogue import Catalogue
from gradscope.decode import Decoder
from gradscope.ranks import Ranks
from gradscope.store import RunWriter
from gradscope.tape import HostRow, Row, Tape


class Drain:
    """Fetches rows, decodes them, writes them: every `seconds`, or when `rows` are waiting.

    Parameters
    ----------
    catalogue : Catalogue
        Of the layers and shortcuts that rows speak of.
    writer : RunWriter, optional
        Used by the drain alone, one thread at a time; None where another process writes.
    ranks : Ranks, optional
        The processes that train together with this one.
    tell : called with a sentence about rows that are lost
    rows : int
    seconds : float
    """

    def __init__(
        self,
        catalogue: Catalogue,
        writer: RunWriter | None,
        ranks: Ranks | None,
        tell: Callable[[str], None],
        rows: int,
        seconds: float,
    ) -> None:
        self._catalogue = catalogue
        self._decoder = Decoder(catalogue)
        self._writer = writer
        self._ranks = ranks
        self._tell = tell
        self._rows = rows
        self._seconds = seconds
        self._notes: list[str] = []
        self._written = (0, 0, 0)
        self._tape = Tape()
        self._turn = threading.Lock()
        self._wake = threading.Event()
        self._stop = False
        self._thread = threading.Thread(target=self._loop, name="gradscope-drain", daemon=True)
        self._thread.start()

    def note(self, sentence: str) -> None:
        """Keep `sentence` in the run."""
        self._notes.append(sentence)

    def append(self, row: Row) -> None:
        """Hand over a closed row; called by the training thread."""
        self._tape.append(row)
        if len(self._tape) >= self._rows:
            self._wake.set()

    def flush(self, closing: bool = False) -> None:
        """Write what has been handed over; waits for the device, the disk and other processes."""
        with self._turn:
            rows = self._tape.fetch()
            if self._ranks is not None:
                rows = self._exchange(rows, closing)
            if self._writer is not None:
                if rows:
                    self._decode(rows)
                self._describe()
                self._writer.flush()

    def close(self) -> None:
        """Write the rest and end the thread; with several processes, when all of them close."""
        self._stop = True
        self._wake.set()
        self._tape.close()
        if self._thread.is_alive():
            self._thread.join()
        self.flush(closing=True)
        while self._ranks is not None and not self._ranks.done:
            self.flush(closing=True)
        if self._writer is not None:
            self._writer.close()

    def _exchange(self, rows: list[HostRow], closing: bool) -> list[HostRow]:
        assert self._ranks is not None
        try:
            return self._ranks.exchange(rows, closing)
        except Exception as error:
            self._ranks = None
            self._tell(
                "another process of the group is gone, and with it the readings of the steps that"
                f" were not written yet ({type(error).__name__}: {error}); close the scope before"
                " torch.distributed.destroy_process_group()"
            )
            return []

    def _decode(self, rows: list[HostRow]) -> None:
        assert self._writer is not None
        try:
            for columns in self._decoder.columns(rows):
                for table in schema.PARTS:
                    self._writer.append(table, columns[table])
        except Exception as error:
            steps = f"{rows[0].step}-{rows[-1].step}"
            self._tell(f"lost steps {steps}: {type(error).__name__}: {error}")

    def _describe(self) -> None:
        """Bring run.json up to date, before the rows that speak of new layers are on disk."""
        assert self._writer is not None
        layers, shortcuts = self._catalogue.layers, self._catalogue.shortcuts
        now = (len(layers), len(shortcuts), len(self._notes))
        if now != self._written:
            self._writer.update(layers=layers, shortcuts=shortcuts, notes=list(self._notes))
            self._written = now

    def _loop(self) -> None:
        while not self._stop:
            self._wake.wait(self._seconds)
            self._wake.clear()
            if len(self._tape) or self._ranks is not None:
                self.flush()
