"""Small tensors wait to be read together: one call for many costs less than to read each.

A tensor that waits may be overwritten before its turn: in place, which its version tells, or by
code that autograd does not see. So at first each is read at once and once more late, and may wait
only where both agreed: that is found out for each place of each structure. Code that autograd does
not see and that begins to overwrite later is not noticed. How much may be held on to meanwhile is
bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import numpy as np
import torch
from numpy.typing import NDArray

from gradscope.autograd.torch_internals import version
from gradscope.capture.keys import Keys
from gradscope.measure.entries import Form, Wanted
from gradscope.measure.gpu_kernel import by_torch
from gradscope.measure.kernels import Kernel
from gradscope.measure.sums import Derivation, Rows, Tensors, norm_of

_TENSORS = 512
"""That wait at most; how many elements says the kernel."""

_FORMS = 512  # that are remembered

Meaning = tuple[Derivation, int, tuple[Any, ...]]
"""What makes readings of a row, of how many elements, and the keys (rows.py) of these."""

Place = Hashable
"""What tells a tensor of a structure from all others; None for one that must not wait."""

Item = tuple[int, Derivation, int, tuple[Any, ...]]
"""The number of a row, and its meaning."""


@lru_cache(2**14)
def norm_item(number: int, keys: Keys) -> Item:
    """Return the item of a row whose norm is what `keys` say: the same object for the same."""
    return number, norm_of, 1, (keys,)


class Known:
    """How a tensor is read whose place has been read before, and what its row is of.

    `tag` tells whether it is still the same that is to be read at its place, `waits` whether it may
    wait: what is too large for that, or was seen to be overwritten, is read at once.
    """

    __slots__ = (
        "__weakref__",
        "_items",
        "_number",
        "dtype",
        "elements",
        "meanings",
        "place",
        "tag",
        "waits",
        "wanted",
    )

    def __init__(
        self,
        place: Place,
        tag: object,
        wanted: Wanted,
        meanings: tuple[Meaning, ...],
        waits: bool,
    ) -> None:
        self.place = place
        self.tag = tag
        self.wanted = wanted
        self.dtype = wanted.dtype
        self.elements = wanted.elements
        self.meanings = meanings
        self.waits = waits
        self._number = -1
        self._items: list[Item] = []

    def says(self, tag: object, wanted: Wanted, meanings: tuple[Meaning, ...]) -> bool:
        """Whether it is the same as what these say."""
        return self.tag is tag and self.wanted == wanted and self.meanings == meanings

    def items(self, number: int) -> list[Item]:
        """Return those of row `number`: the same objects for the same row, which compare fast."""
        if number != self._number:
            self._number = number
            self._items = [(number, *meaning) for meaning in self.meanings]
        return self._items


class Trust:
    """How the tensors of one structure are read, and which may wait: those proven to read the same.

    Attributes
    ----------
    known : dict of place to Known
        Those that are proven, and those that never wait.
    lost : called where one that was proven was overwritten before its turn; its reading is NaN
    """

    def __init__(self) -> None:
        self.known: dict[Place, Known] = {}
        self.lost: Callable[[], None] = lambda: None
        self._refuted: set[Place] = set()
        # a trial that is thrown away with its step leaves this by itself
        self._on_trial: WeakValueDictionary[Place, Known] = WeakValueDictionary()
        self._forms: dict[tuple[Known, ...], tuple[Form, list[Item]]] = {}

    def judge(self, trial: Trial, sums: NDArray[np.floating]) -> None:
        """Compare the sums that were read at once with those that were read late."""
        at_once, late = sums[trial.at_once], sums[trial.late]
        bound = 1e-6 * np.abs(at_once) + 1e-6 * np.sqrt(np.abs(at_once[0]))
        with np.errstate(invalid="ignore"):
            same = (np.abs(at_once - late) <= bound) | (at_once == late)
        place = trial.known.place
        self._on_trial.pop(place, None)
        if not (same | (np.isnan(at_once) & np.isnan(late))).all():
            self.refute(place)
        elif place not in self._refuted:
            self.known[place] = trial.known

    def refute(self, place: Place) -> None:
        """Let no tensor at `place` wait any more."""
        self._refuted.add(place)
        self.known.pop(place, None)

    def may_wait(self, place: Place) -> bool:
        """Whether tensors at `place` may wait, as far as is known."""
        return place not in self._refuted

    def may_try(self, known: Known) -> bool:
        """Whether `known` is to be tried: it is not known yet if it may wait."""
        if not self.may_wait(known.place) or known.place in self._on_trial:
            return False
        self._on_trial[known.place] = known
        return True

    def form(self, known: tuple[Known, ...]) -> tuple[Form, list[Item]]:
        """Return how tensors are read together, and the items of their rows."""
        found = self._forms.get(known)
        if found is None:
            if len(self._forms) == _FORMS:
                self._forms.clear()
            found = self._forms[known] = make_form(known)
        return found


def make_form(known: Sequence[Known]) -> tuple[Form, list[Item]]:
    """As `Trust.form`, for tensors that are not read again."""
    items = [(i, *meaning) for i, one in enumerate(known) for meaning in one.meanings]
    return Form([one.wanted for one in known]), items


class Trial(NamedTuple):
    """Two rows, by their numbers, that hold the same if the tensor may wait."""

    trust: Trust
    known: Known
    at_once: int
    late: int


@dataclass(eq=False)
class Sheet:
    """Rows of sums, once they are there, what they are of and what they try."""

    rows: Rows | None = None
    items: list[Item] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)


class Waiting:
    """Those of one stream.

    Parameters
    ----------
    kernel : Kernel
    device : torch.device
    stream : torch.cuda.Stream or None
        None for tensors on the CPU.
    trust : Trust or None
    made : called with each sheet that has been read
    """

    def __init__(
        self,
        kernel: Kernel,
        device: torch.device,
        stream: torch.cuda.Stream | None,
        trust: Trust | None,
        made: Callable[[Sheet], None],
    ) -> None:
        self._kernel = kernel
        self._device = device
        self._stream = stream
        self.trust = trust
        self._made = made
        self._rows = Rows(device, 0)
        self._sheet = Sheet()
        self._known: list[Known] = []
        self._tensors: list[Tensors] = []
        self._versions: list[object] = []
        self._tried: list[tuple[Trial, Sheet, Rows, Tensors, object]] = []
        self._elements = self._count = 0
        self._most = kernel.most

    def add(self, known: Known, tensors: Tensors) -> tuple[Sheet, int]:
        """Let `tensors` be read with others; return where their sums will be."""
        here = self._sheet, len(self._known)
        x = tensors[0]
        self._versions.append(version(x) if x is tensors[2] else _versions(tensors))
        self._known.append(known)
        self._tensors.append(tensors)
        self.count(known.elements)
        return here

    def try_late(self, trial: Trial, sheet: Sheet, rows: Rows, tensors: Tensors) -> None:
        """Let `tensors` be read with others, to compare with how they were read at once."""
        self._tried.append((trial, sheet, rows, tensors, _versions(tensors)))
        self.count(trial.known.elements)

    def count(self, elements: int) -> None:
        """Take note of a tensor that waits.

        All count, also those that would wait if they might, so that what waits is read at the same
        moments at every step of a structure: none waits longer than when it was tried.
        """
        self._elements += elements
        self._count += 1
        if self._elements > self._most or self._count > _TENSORS:
            self.read()

    def count_as_if(self, elements: int) -> None:
        """Take note of a tensor that was read at once, and would wait if it might."""
        if elements <= self._kernel.small:
            self.count(elements)

    def read(self) -> None:
        """Read all that wait."""
        self._elements = self._count = 0
        stream = self._stream
        if not self._known and not self._tried:
            return
        if stream is not None and torch.cuda.current_stream(stream.device) != stream:
            with torch.cuda.stream(stream):
                return self.read()
        if self._known:
            self._read_known()
        if self._tried:
            self._read_tried()

    def _read_known(self) -> None:
        known, tensors, versions, sheet = self._known, self._tensors, self._versions, self._sheet
        self._known, self._tensors, self._versions, self._sheet = [], [], [], Sheet()
        form, items = (self.trust.form if self.trust else make_form)(tuple(known))
        if not self._rows.has(len(known)):
            self._rows = Rows(self._device, max(len(known), _TENSORS))
        rows = sheet.rows = self._rows.part(len(known))
        sheet.items = items + sheet.items
        now: list[object]
        if form.single:
            now = [version(x) for x, _, _ in tensors]
        else:
            now = [_versions(some) for some in tensors]
        for i in self._kernel.read_all(form, tensors, rows.take_all()):
            self._read_by_torch(known[i], tensors[i], rows, i)
        if now != versions:
            for i, one in enumerate(known):
                if now[i] != versions[i]:
                    self._spoil(one, rows, i)
        self._made(sheet)

    def _read_tried(self) -> None:
        tried, self._tried = self._tried, []
        for trial, sheet, rows, tensors, before in tried:
            known, now = trial.known, _versions(tensors)
            if now != before or not all(x.data_ptr() for x in tensors):
                trial.trust.refute(known.place)
                continue
            if not self._kernel.read(known.wanted, tensors, rows.address(trial.late)):
                self._read_by_torch(known, tensors, rows, trial.late)
            if self._device.type == "cpu":
                trial.trust.judge(trial, rows.values().numpy())
            else:
                sheet.trials.append(trial)

    def _read_by_torch(self, known: Known, tensors: Tensors, rows: Rows, number: int) -> None:
        if all(tensor.data_ptr() for tensor in tensors):
            rows.put(number, by_torch(known.wanted, tensors))
        else:
            self._spoil(known, rows, number)

    def _spoil(self, known: Known, rows: Rows, number: int) -> None:
        """Make NaN the row of what was overwritten."""
        rows.spoil(number)
        if self.trust is not None:
            if known.place in self.trust.known:
                self.trust.lost()
            self.trust.refute(known.place)

    def join(self) -> None:
        """Make the current stream wait for all that was read on this one."""
        if self._stream is not None:
            current = torch.cuda.current_stream(self._stream.device)
            if current != self._stream:
                current.wait_stream(self._stream)


def _versions(tensors: Tensors) -> object:
    x, y, z = tensors
    return version(x) if x is z else (version(x), version(y), version(z))
