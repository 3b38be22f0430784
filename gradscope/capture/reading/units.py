"""Units that are never on, and samples that all look alike: read now and then, from few elements.

A look is taken at every eighth recorded step. Of each output some elements are copied or reduced
when the layer returns; the rest is computed for all layers together when the forward has ended.
Nothing waits for a device.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from gradscope import measure
from gradscope.capture.faults import Faults
from gradscope.capture.keys import Keys, layer_keys
from gradscope.capture.net.modules import ModuleInfo
from gradscope.capture.reading.readings import Readings

EVERY = 8
"""Recorded steps from one look to the next."""

WINDOW = 4
"""Looks over which maxima are folded; these and the ones of the window before them count."""

SAMPLES, PLACES, ELEMENTS = 16, 16, 256
"""Of an output at most so many samples; of each so many places of a unit, or so many elements."""

RECTIFIERS = frozenset(
    [
        "ReLU",
        "ReLU6",
        "LeakyReLU",
        "PReLU",
        "RReLU",
        "ELU",
        "CELU",
        "SELU",
        "GELU",
        "SiLU",
        "Mish",
        "Hardswish",
    ]
)
"""Activations that are off below 0 and on above."""

_WHAT = "dead units and the spread between samples"
_CHANNELS_FIRST = ("Conv", "BatchNorm", "InstanceNorm", "GroupNorm")


def is_look(number: int) -> bool:
    """Whether a look is taken at the recorded step `number`, counted in recorded steps."""
    return number % EVERY == 0


@dataclass
class _Site:
    """The largest outputs of the units of one call of a layer; `window` is the number of `now`."""

    now: Tensor
    window: int
    before: Tensor | None = None


class Units:
    """Takes looks at the outputs of layers.

    Attributes
    ----------
    is_on : bool
        Whether the forward under way is looked at.
    look : int
        Number of the latest look.
    """

    def __init__(self, faults: Faults) -> None:
        self.faults = faults
        self.is_on = False
        self.look = 0
        self._sites: dict[tuple[int, int, int], _Site] = {}
        self._channels_first: dict[int, bool] = {}  # of layers that are no activations
        self._last: tuple[torch.Size, bool] | None = None  # output of the latest of these
        self._calls: dict[int, int] = defaultdict(int)  # of each layer in the forward
        self._dead: list[tuple[Keys, _Site]] = []
        self._samples: list[tuple[Keys, Tensor]] = []

    def begin(self, number: int) -> None:
        """Begin a forward of the recorded step `number`, counted in recorded steps."""
        self.look = number // EVERY
        self.is_on = is_look(number) and not self.faults.is_off(_WHAT)
        if self.is_on:
            self._last = None
            self._calls.clear()
            self._dead.clear()
            self._samples.clear()

    def take(self, info: ModuleInfo, output: Tensor) -> None:
        """Look at an output of a layer."""
        try:
            x = output.detach() if measure.is_dense(output) else measure.dense(output)
            if x.numel() == 0 or not x.is_floating_point():
                return
            self._take_samples(info.number, x)
            if not info.is_activation:
                first = any(word in info.kind for word in _CHANNELS_FIRST)
                self._channels_first[info.number] = first
                self._last = x.shape, first
            elif info.kind in RECTIFIERS:
                known = self._last is not None and self._last[0] == x.shape
                first = self._last[1] if known and self._last else x.dim() > 3
                self._take_units(info.number, x, first)
        except Exception as error:
            self._fail(error)

    def take_function(self, layer: int, kind: str, x: Tensor) -> None:
        """Look at the input or output of a rectifier called as a function on what `layer` made."""
        try:
            if kind in RECTIFIERS:
                self._take_units(layer, x, self._channels_first.get(layer, x.dim() > 3))
        except Exception as error:
            self._fail(error)

    def read(self, readings: Readings) -> None:
        """Add what the forward's looks come to."""
        try:
            with torch.no_grad():
                self._read_units(readings)
                self._read_samples(readings)
        except Exception as error:
            self._fail(error)
        self.is_on = False
        self._dead.clear()
        self._samples.clear()

    def _fail(self, error: Exception) -> None:
        self.is_on = False
        self.faults.report(_WHAT, error)

    def _take_samples(self, layer: int, x: Tensor) -> None:
        if x.dim() < 2 or x.shape[0] < 2:
            return
        some = x[_some(x.shape, SAMPLES, ELEMENTS, None, self.look)]
        keys = layer_keys("sample_spread", layer, x.numel())
        copy = some.clone() if some.dtype is torch.float32 else some.float()
        self._samples.append((keys, copy.reshape(len(some), -1)))

    def _take_units(self, layer: int, x: Tensor, channels_first: bool) -> None:
        unit = 1 if channels_first and x.dim() > 2 else x.dim() - 1
        others = [dim for dim in range(x.dim()) if dim != unit]
        some = x[_some(x.shape, SAMPLES, PLACES, unit, self.look)]
        largest = some.amax(others) if others else some.clone()
        call = self._calls[layer]
        self._calls[layer] += 1
        place = layer, call, len(largest)
        window = self.look // WINDOW
        site = self._sites.get(place)
        if site is None or site.window < window - 1 or site.now.device != largest.device:
            site = self._sites[place] = _Site(largest, window)
        elif site.window < window:
            site.before, site.now, site.window = site.now, largest, window
        else:
            site.now = torch.maximum(site.now, largest)
        self._dead.append((layer_keys("dead_fraction", layer, x.numel()), site))

    def _read_units(self, readings: Readings) -> None:
        by_device: dict[torch.device, list[tuple[Keys, _Site]]] = defaultdict(list)
        for keys, site in self._dead:
            by_device[site.now.device].append((keys, site))
        for device, dead in by_device.items():
            now = torch.cat([site.now for _, site in dead])
            before = torch.cat([s.now if s.before is None else s.before for _, s in dead])
            off = (torch.maximum(now, before) <= 0).to(_dtype(device))
            parts = torch.split(off, [len(site.now) for _, site in dead])
            _add(readings, [keys for keys, _ in dead], torch.stack([part.mean() for part in parts]))

    def _read_samples(self, readings: Readings) -> None:
        alike: dict[tuple[torch.device, torch.Size], list[tuple[Keys, Tensor]]]
        alike = defaultdict(list)
        for keys, some in self._samples:
            alike[some.device, some.shape].append((keys, some))
        for (device, _), group in alike.items():
            together = torch.stack([some for _, some in group])
            # not var: it takes ten times as long on the CPU
            between = (together - together.mean(1, keepdim=True)).square_().mean((1, 2))
            total = (together - together.mean((1, 2), keepdim=True)).square_().mean((1, 2))
            spread = (between / total).sqrt().to(_dtype(device))
            _add(readings, [keys for keys, _ in group], spread)


@lru_cache(1024)
def _some(
    shape: torch.Size, samples: int, places: int, unit: int | None, look: int
) -> tuple[slice, ...]:
    """Return the index of some samples, and of some places of each; others at every look."""
    limits = {} if unit == 0 else {0: samples}
    dims = [dim for dim in range(1, len(shape)) if dim != unit]
    smallest_first = sorted(dims, key=shape.__getitem__)
    for left, dim in zip(range(len(dims), 0, -1), smallest_first, strict=True):
        limits[dim] = max(1, round(places ** (1 / left)))
        places = max(1, places // min(limits[dim], shape[dim]))
    return tuple(spread(size, limits.get(dim, size), look) for dim, size in enumerate(shape))


def spread(size: int, most: int, look: int) -> slice:
    """Return `most` of `size` places at most, evenly spread; others at every look."""
    stride = -(-size // most)
    return slice((stride // 2 + 31 * look) % stride, None, stride)


def _add(readings: Readings, keys: list[Keys], values: Tensor) -> None:
    """Add readings: numbers on the CPU, 0-d tensors elsewhere."""
    each = values.tolist() if values.is_cpu else values.unbind()
    readings.add_all(each, keys)


def _dtype(device: torch.device) -> torch.dtype:
    """Return the dtype in which readings are put together, so that none is converted alone."""
    return torch.float32 if device.type == "mps" else torch.float64
