"""Hooks on modules and optimizers: put in, taken out, harmless when copied or pickled."""

from __future__ import annotations

import contextlib
import functools
import itertools
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils.hooks import RemovableHandle

from gradscope.autograd.torch_internals import (
    apart_from_modes,
    ends_recomputation,
    in_transform,
    is_plain,
    is_scripted,
    is_tracing,
    rename_hook,
    skip_frames_of,
)
from gradscope.capture.faults import Faults
from gradscope.capture.net.hiding import Hook
from gradscope.capture.net.taps import Spots, at_input, at_output

_LEFT_OUT: dict[str, Any] = {}
"""For arguments by name, which a hook does not get that another thread takes out just then."""


class ModuleListener(Protocol):
    """What the hooks of modules report to."""

    def note_transformed(self, number: int, module: nn.Module) -> None:
        """Take note that module `number` is called within torch.func, and is not read."""

    def enter(
        self, number: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Take note that module `number` is called."""

    def leave(self, number: int, module: nn.Module, args: tuple[Any, ...], output: object) -> None:
        """Take note that module `number` returned, or raised; then `output` is None."""

    def module_failed(self, number: int, error: Exception) -> None:
        """Take note that one of these raised `error`, which goes no further."""


class OptimizerListener(Protocol):
    """What the hooks of optimizers report to."""

    faults: Faults

    def before_step(self, optimizer: Optimizer, has_closure: bool) -> None:
        """Take note that the step of an optimizer, any in this process, begins."""

    def after_step(self, optimizer: Optimizer) -> None:
        """Take note that the step of an optimizer, any in this process, ended."""


def _call(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


class _Hook(Hook):
    """A module hook that does not keep its listener alive, and never raises.

    It is in no pickle (hiding.py) but those of classes that pickle themselves in a way of their
    own; from these it comes back as a function of the standard library that does nothing.
    """

    def __init__(self, listener: weakref.ref[ModuleListener], number: int) -> None:
        self._listener = listener
        self._number = number

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (contextlib.nullcontext(), "__exit__")

    def _guard(self, tap: Callable[..., Any], *args: Any) -> Any:
        """Return what `tap` makes of a call; None where it fails, or nothing is computed."""
        listener = self._listener()
        if listener is None or is_tracing():
            return None
        try:
            return tap(*args)
        except Exception as error:
            if ends_recomputation(error):  # what the tap saves was the last that was missing
                raise
            listener.module_failed(self._number, error)
            return None


class _EnterHook(_Hook):
    def __init__(
        self, listener: weakref.ref[ModuleListener], number: int, leave: _LeaveHook
    ) -> None:
        super().__init__(listener, number)
        self._leave = leave  # the other hook of the same module

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] = _LEFT_OUT
    ) -> Any:
        if torch.compiler.is_compiling():  # first of all, so that the compiler traces nothing else
            return
        listener = self._listener()
        if listener is None:
            return
        try:
            last: Any = next(reversed(module._forward_hooks.values()), None)
            if last is not self._leave:  # one that was put in since may change what is returned
                _put_last(module, self._leave)
            if is_plain():
                listener.enter(self._number, module, args, kwargs)
            elif is_tracing():
                return
            elif in_transform():
                listener.note_transformed(self._number, module)
            else:
                apart_from_modes(listener.enter, self._number, module, args, kwargs)
        except Exception as error:
            listener.module_failed(self._number, error)


def _put_last(module: nn.Module, hook: _LeaveHook) -> None:
    hooks: Any = module._forward_hooks
    for number, other in list(hooks.items()):
        if other is hook:
            hooks.move_to_end(number)


class _LeaveHook(_Hook):
    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: object) -> Any:
        if torch.compiler.is_compiling():  # first of all, so that the compiler traces nothing else
            return
        listener = self._listener()
        if listener is None:
            return
        try:
            if is_plain():
                listener.leave(self._number, module, args, output)
            elif not is_tracing() and not in_transform():
                apart_from_modes(listener.leave, self._number, module, args, output)
        except Exception as error:
            listener.module_failed(self._number, error)


class _TappingEnterHook(_EnterHook):
    """One for compiled models: it taps what it is told to, in graphs and between them.

    It runs as it is where compiled code calls it, rather than holds it.
    """

    spots: Spots = ()

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] = _LEFT_OUT
    ) -> Any:
        if torch.compiler.is_compiling():
            return at_input(self.spots, args, kwargs)
        return _aside()(self._report, module, args, kwargs)

    def _report(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        super().__call__(module, args, kwargs)
        return self._guard(at_input, self.spots, args, kwargs) if self.spots else None


class _TappingLeaveHook(_LeaveHook):
    """As _TappingEnterHook."""

    spots: Spots = ()

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: object) -> Any:
        if torch.compiler.is_compiling():
            return at_output(self.spots, module, args, output)
        return _aside()(self._report, module, args, output)

    def _report(self, module: nn.Module, args: tuple[Any, ...], output: object) -> Any:
        super().__call__(module, args, output)
        return self._guard(at_output, self.spots, module, args, output) if self.spots else None


@functools.cache
def _aside() -> Callable[..., Any]:
    """Return what calls a function so that nothing of it is compiled."""
    for kind in (_TappingEnterHook, _TappingLeaveHook):
        skip_frames_of(kind.__call__)
    disable: Any = torch.compiler.disable
    aside: Callable[..., Any] = disable(_call)
    return aside


_names = itertools.count(-1, -1)  # torch's own are not negative


class ModuleHooks:
    """The hooks on the modules of a model, which may be put in and taken out again and again.

    Attributes
    ----------
    given_up : set of int
        Modules that get none any more.
    """

    def __init__(self, listener: ModuleListener) -> None:
        self._listener = weakref.ref(listener)
        self._handles: dict[int, list[RemovableHandle]] = {}
        self._tapping: dict[int, tuple[_TappingEnterHook, _TappingLeaveHook]] = {}
        self._spots: Mapping[int, tuple[Spots, Spots]] = {}
        self.given_up: set[int] = set()
        self._are_in = False
        self._name = next(_names)
        self._may_tap = False

    def may_tap(self) -> None:
        """Put in hooks from now on that can tap, which cost more than those that only report."""
        _aside()
        self._may_tap = True

    def put_in(self, modules: Iterable[tuple[int, nn.Module]]) -> None:
        """Make `modules`, each with its number, report their calls, if they do not all do so."""
        if self._are_in:
            return
        self._are_in = True
        for number, module in modules:
            known = number in self._handles or number in self.given_up
            if not known and not is_scripted(module):
                handles = self._handles[number] = []
                enter, leave = self._make(number)
                handles.append(
                    module.register_forward_pre_hook(enter, with_kwargs=True, prepend=True)
                )
                handles.append(module.register_forward_hook(leave, always_call=True))
                if self._may_tap:
                    for handle in handles:
                        rename_hook(handle, self._name)

    def _make(self, number: int) -> tuple[_EnterHook, _LeaveHook]:
        if not self._may_tap:
            plain = _LeaveHook(self._listener, number)
            return _EnterHook(self._listener, number, plain), plain
        leave = _TappingLeaveHook(self._listener, number)
        enter = _TappingEnterHook(self._listener, number, leave)
        enter.spots, leave.spots = self._spots.get(number, ((), ()))
        self._tapping[number] = enter, leave
        return enter, leave

    def tap(self, spots: Mapping[int, tuple[Spots, Spots]]) -> None:
        """Tap, from now on, what these modules are called with and return, and no others."""
        self._spots = spots
        for number, (enter, leave) in self._tapping.items():
            enter.spots, leave.spots = spots.get(number, ((), ()))

    def take_out(self, keep: Iterable[int] = ()) -> None:
        """Take out the hooks of all modules but those numbered in `keep`."""
        self._are_in = False
        for number in self._handles.keys() - set(keep):
            self._remove(number)

    def give_up(self, number: int) -> None:
        """Take out the hooks of module `number` for good."""
        self.given_up.add(number)
        self._remove(number)

    def _remove(self, number: int) -> None:
        self._tapping.pop(number, None)
        for handle in self._handles.pop(number, ()):
            handle.remove()


def hook_optimizers(listener: OptimizerListener) -> list[RemovableHandle]:
    """Make every optimizer of this process report its steps, until the handles are removed."""
    reference = weakref.ref(listener)

    def before(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not torch.compiler.is_compiling() and (found := reference()) is not None:
            try:
                has_closure = any(map(callable, (*args[1:], *kwargs.values())))
                apart_from_modes(found.before_step, optimizer, has_closure)
            except Exception as error:
                found.faults.report("the beginning of steps", error)

    def after(optimizer: Optimizer, args: object, kwargs: object) -> None:
        if not torch.compiler.is_compiling() and (found := reference()) is not None:
            try:
                apart_from_modes(found.after_step, optimizer)
            except Exception as error:
                found.faults.report("the end of steps", error)

    return [register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)]
