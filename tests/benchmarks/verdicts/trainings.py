"""The trainings of the benchmark: what each is called, how it is built, what is wrong with it."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor, nn

LOOKS = (1, 8, 30, 100)
"""Steps after which a run is judged; the last is its length."""

Scalars = Mapping[str, float | Tensor]
Step = Callable[[int], float | Tensor | Scalars]
"""Does one step of the training, and returns its loss, or scalars to log.

`progress` among them is not logged, and has to fall in place of the loss.
"""

Build = Callable[[], tuple[nn.Module, Step]]


@dataclass(frozen=True)
class Fault:
    """What a good diagnosis says of a broken training.

    Attributes
    ----------
    kind : str
        Several trainings may have a fault of one kind.
    verdicts : frozenset of str
        Any of these is right.
    layers : tuple of str
        Of these one must be named, if there are any.
    remedy : tuple of str
        Of these one must be in a remedy.
    says : tuple of str
        Of these one must be in the finding's sentence, if there are any.
    seen : int
        Steps after which it can be seen.
    information : bool
        Whether it is enough to tell of it for information: it may be meant.
    """

    kind: str
    verdicts: frozenset[str]
    layers: tuple[str, ...] = ()
    remedy: tuple[str, ...] = ()
    says: tuple[str, ...] = ()
    seen: int = 1
    information: bool = False


@dataclass(frozen=True)
class Training:
    """One training: its name, the module it stands in, how it is built, and its fault if any."""

    name: str
    module: str
    build: Build
    fault: Fault | None = None
    needs: tuple[str, ...] = ()

    @property
    def group(self) -> str:
        """The file that it stands in."""
        return self.module.rpartition(".")[2]

    @property
    def half(self) -> str:
        """A, B: half of those on which rules were chosen; C, D, E: a set that was written later."""
        for package, name in _LATER.items():
            if f".{package}." in self.module:
                return name
        return "AB"[zlib.crc32(self.name.encode()) % 2]

    @property
    def missing(self) -> list[str]:
        """Packages that it needs and that are not installed."""
        return [name for name in self.needs if importlib.util.find_spec(name) is None]


ALL: dict[str, Training] = {}

_LATER = {"unseen": "C", "fresh": "D", "later": "E"}


def healthy(name: str, *, needs: Iterable[str] = ()) -> Callable[[Build], Build]:
    """Register a training that learns."""
    return _register(name, None, tuple(needs))


def broken(
    name: str,
    kind: str,
    verdicts: str,
    *,
    layer: str = "",
    remedy: str = "",
    says: str = "",
    seen: int = 1,
    information: bool = False,
    needs: Iterable[str] = (),
) -> Callable[[Build], Build]:
    """Register a training with a fault; several words in one argument are divided by `|`."""
    words = [tuple(filter(None, told.split("|"))) for told in (layer, remedy, says)]
    fault = Fault(kind, frozenset(verdicts.split("|")), *words, seen, information)
    return _register(name, fault, tuple(needs))


def _register(name: str, fault: Fault | None, needs: tuple[str, ...]) -> Callable[[Build], Build]:
    def take(build: Build) -> Build:
        if name in ALL:
            raise ValueError(f"there are two trainings called {name!r}")
        code = build.func if isinstance(build, partial) else build
        ALL[name] = Training(name, code.__module__, build, fault, needs)
        return build

    return take


def load(more: Iterable[Path] = ()) -> dict[str, Training]:
    """Import the trainings of this folder and those of folders `more`, and return all."""
    for package in ("healthy", "broken", *_LATER):
        here = Path(__file__).parent / package
        for module in pkgutil.iter_modules([str(here)]):
            importlib.import_module(f"{__package__}.{package}.{module.name}")
    for folder in more:
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
        for module in pkgutil.iter_modules([str(folder)]):
            importlib.import_module(module.name)
    return ALL
