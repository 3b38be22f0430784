"""Loss scalers (torch.amp.GradScaler): which factor the gradient carries, which steps are skipped.

A scaler that finds inf or NaN does not call the optimizer, so no optimizer hook tells of that step.
While any model is watched, `step` of the scaler classes reports to us; afterwards it is as it was.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch.optim.optimizer import Optimizer

from gradscope.autograd.torch_internals import apart_from_modes


class ScalerListener(Protocol):
    """What scalers report to. None of its methods may raise."""

    def before_scaled_step(self, scaler: Any, optimizer: Optimizer) -> None:
        """Take note that `scaler` is about to make `optimizer` step, or to skip the step."""

    def after_scaled_step(self, scaler: Any, optimizer: Optimizer) -> None:
        """Take note that it has done so."""


class _PatchedStep:
    """The `step` of one scaler class, wrapped for as long as somebody listens."""

    def __init__(self, kind: type) -> None:
        self.kind = kind
        self.listeners: weakref.WeakSet[Any] = weakref.WeakSet()
        self._own = kind.__dict__.get("step")
        self._original: Callable[..., Any] = kind.step  # type: ignore[attr-defined]

    def put_in(self) -> None:
        listeners, original = self.listeners, self._original

        @functools.wraps(original)
        def step(scaler: Any, optimizer: Optimizer, *args: Any, **kwargs: Any) -> Any:
            told = list(listeners) if scaler.is_enabled() else []
            for listener in told:
                apart_from_modes(listener.before_scaled_step, scaler, optimizer)
            result = original(scaler, optimizer, *args, **kwargs)
            for listener in told:
                apart_from_modes(listener.after_scaled_step, scaler, optimizer)
            return result

        self.kind.step = step  # type: ignore[attr-defined]

    def take_out(self) -> None:
        if self._own is not None:
            self.kind.step = self._own  # type: ignore[attr-defined]
        else:
            del self.kind.step  # type: ignore[attr-defined]


_patched: dict[type, _PatchedStep] = {}


class ScalerHook:
    """Makes scalers report to `listener` until `remove`.

    Parameters
    ----------
    listener : ScalerListener
        Held weakly.
    scaler : optional
        A scaler whose class is not torch's.
    """

    def __init__(self, listener: ScalerListener, scaler: Any = None) -> None:
        self._listener = weakref.ref(listener)
        self._kinds: list[type] = [torch.amp.GradScaler]
        if scaler is not None and type(scaler).step is not torch.amp.GradScaler.step:
            self._kinds.append(type(scaler))
        for kind in self._kinds:
            if kind not in _patched:
                _patched[kind] = _PatchedStep(kind)
                _patched[kind].put_in()
            _patched[kind].listeners.add(listener)

    def remove(self) -> None:
        """Stop; the last one to do so leaves the classes as they were."""
        for kind in self._kinds:
            patch = _patched.get(kind)
            if patch is None:
                continue
            patch.listeners.discard(self._listener())
            if not patch.listeners:
                patch.take_out()
                del _patched[kind]
