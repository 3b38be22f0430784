"""torch.compile: what of a model is compiled, and what runs in its place while steps are recorded.

Compiled code has no module calls to report. So it is put aside for Python's (`Eager`), or compiled
once more, with taps in the graph, by a twin with a cache of its own: what was compiled without taps
stays as it is, and so does what it costs.
"""

from __future__ import annotations

import functools
import sys
import weakref
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import nn

from gradscope.autograd import torch_internals
from gradscope.autograd.torch_internals import CompiledCall, Twins


def compiled_modules(model: nn.Module) -> tuple[weakref.ref[nn.Module], ...]:
    """Return the modules of `model`, wrappers among them, that were handed to torch.compile."""
    return tuple(weakref.ref(m) for m in model.modules() if torch_internals.is_compiled(m))


def compiled_frames() -> int:
    """Return how much this process has compiled by now; of `fullgraph` graphs alone are counted."""
    utils = sys.modules.get("torch._dynamo.utils")
    if utils is None:
        return 0
    return int(utils.counters["frames"]["ok"] + utils.counters["stats"]["unique_graphs"])


def has_compiled(before: int) -> bool:
    """Whether this process has compiled functions since there were `before`; so it may, unknown."""
    try:
        return compiled_frames() > before
    except (AttributeError, LookupError, TypeError):
        return "torch._dynamo" in sys.modules


class Eager:
    """Switches compiled functions of this process to their Python originals, and back.

    Compiled code is kept meanwhile: switching compiles nothing again. Where the program has set a
    stance of its own in between, that one stays.
    """

    def __init__(self) -> None:
        self._ours: Any = None
        self._is_on = False  # where this torch does not tell which stance holds

    def switch_on(self) -> None:
        """Run Python originals from now on."""
        current = torch_internals.current_stance()
        if self._holds(current) or getattr(current, "stance", "") == "force_eager":
            return
        if self._ours is None:
            self._ours = torch.compiler.set_stance("force_eager")
        else:
            self._ours.prev = current or self._ours.prev
            self._ours.__enter__()
        self._is_on = True

    def switch_off(self) -> None:
        """Go back to what was the rule before."""
        if self._holds(torch_internals.current_stance()):
            self._ours.__exit__(None, None, None)
        self._is_on = False

    def _holds(self, current: Any) -> bool:
        if self._ours is None or current is None:
            return self._is_on
        return current is self._ours.stance


class SiteListener(Protocol):
    """What calls of compiled modules are reported to. None of its methods may raise."""

    def compiled_call_begins(self) -> bool:
        """Take note of a call; return whether the twin is to run."""

    def compiled_call_ended(self, output: object) -> None:
        """Take note that a call of the twin returned."""

    def compiled_call_failed(self, error: Exception) -> None:
        """Take note that the twin could not be compiled: what it stands for runs instead."""


class Sites:
    """The places where compiled modules are called, as far as these can be reached.

    Parameters
    ----------
    modules : weak references
        Those that were handed to torch.compile.
    listener : SiteListener
        Held weakly.

    Raises
    ------
    Unavailable
        Where this torch has other places for compiled modules.
    """

    def __init__(self, modules: tuple[weakref.ref[nn.Module], ...], listener: SiteListener) -> None:
        self._modules = modules
        self._twins = Twins()
        self._listener = weakref.ref(listener)
        for module in self._live():
            torch_internals.compiled_call(module)  # raises where it cannot be understood

    def check_twins(self) -> None:
        """Raise Unavailable where they cannot be compiled once more."""
        for module in self._live():
            torch_internals.check_twin(torch_internals.compiled_call(module))

    def put_in(self) -> None:
        """Have their calls reported."""
        for module in self._live():
            found = torch_internals.compiled_call(module)
            setattr(module, found.attribute, _reporting(found, self._twins, self._listener))

    def take_out(self) -> None:
        """Leave the modules as they were."""
        for module in self._live():
            for attribute in ("forward", "_compiled_call_impl"):
                original = getattr(vars(module).get(attribute), "gradscope_original", None)
                if original is not None:
                    setattr(module, attribute, original)

    def _live(self) -> list[nn.Module]:
        return [m for reference in self._modules if (m := reference()) is not None]


def _reporting(
    found: CompiledCall, twins: Twins, reference: weakref.ref[SiteListener]
) -> Callable[..., Any]:
    """Return a function that reports a call, and makes it."""
    original = found.function
    twin: Callable[..., Any] | None = None

    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal twin
        if torch.compiler.is_compiling():
            return original(*args, **kwargs)
        listener = reference()
        if listener is None or not listener.compiled_call_begins():
            return original(*args, **kwargs)
        try:
            twin = twin or twins.of(found)
            output = twin(*args, **kwargs)
        except Exception as error:
            if twin is not None and not torch_internals.is_of_compiler(error):
                raise
            listener.compiled_call_failed(error)
        else:
            listener.compiled_call_ended(output)
            return output
        return original(*args, **kwargs)  # out here: what it raises has no context of ours

    call.gradscope_original = original  # type: ignore[attr-defined]
    return call
