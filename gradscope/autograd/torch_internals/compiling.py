"""torch.compile: what was compiled, how, and the same compiled once more."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from gradscope.autograd.torch_internals.interfaces import Unavailable


class CompiledCall(NamedTuple):
    """How a compiled module is called: the attribute that holds the compiled `function`.

    `target` is what was compiled, and `context` how.
    """

    attribute: str
    function: Callable[..., Any]
    target: Any
    context: Any


_TWIN = "torch._dynamo.eval_frame._TorchDynamoContext"


def compiled_call(module: nn.Module) -> CompiledCall:
    """Return how `module`, which was handed to torch.compile, is called.

    Raises
    ------
    Unavailable
        Where that is not as it is known.
    """
    held: Any = module
    if getattr(module, "_compiler_ctx", None) is not None:  # a LightningModule: its methods are
        raise Unavailable(_TWIN)
    try:
        if type(module).__name__ == "OptimizedModule":
            context, target, attribute = held.dynamo_ctx, held._orig_mod, "forward"
            function = vars(module)["forward"]
        else:
            attribute, target = "_compiled_call_impl", held._call_impl
            function = held._compiled_call_impl
            context = _context(getattr(function, "gradscope_original", function))
    except (AttributeError, KeyError, TypeError, ValueError):
        raise Unavailable(_TWIN) from None
    return CompiledCall(attribute, function, target, context)


def check_twin(call: CompiledCall) -> None:
    """Raise Unavailable where a compiled function cannot be compiled once more, as by old torch."""
    context = call.context
    try:
        _ = context.callback, context.fullgraph, context._dynamic, context._isolate_recompiles_id
        _ = torch._dynamo.eval_frame.innermost_backend
    except AttributeError:
        raise Unavailable(_TWIN) from None


def _context(function: Any) -> Any:
    """Return how a compiled function was compiled."""
    kind = torch._dynamo.eval_frame._TorchDynamoContext
    cells = [cell.cell_contents for cell in function.__closure__]
    (context,) = [found for found in cells if isinstance(found, kind)]
    return context


class _Backend:
    """A compiler's backend by another name: what it compiles is kept apart from what that did."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._backend(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name == "_backend" or name.startswith("_torchdynamo"):
            raise AttributeError(name)
        return getattr(self._backend, name)


class Twins:
    """Compiles functions once more, as they were, and keeps what comes of it apart.

    Twins of one backend share a cache, as the blocks of a net do that are compiled one by one.
    """

    def __init__(self) -> None:
        self._backends: list[tuple[Any, _Backend]] = []
        self._cache: int | None = None

    def of(self, call: CompiledCall) -> Callable[..., Any]:
        """Return the twin of a compiled function."""
        context = call.context
        compile: Any = torch.compile
        twin = compile(
            call.target,
            backend=self._backend(torch._dynamo.eval_frame.innermost_backend(context.callback)),
            fullgraph=context.fullgraph,
            dynamic=context._dynamic,
            isolate_recompiles=True,
        )
        function: Callable[..., Any] = twin.forward if isinstance(twin, nn.Module) else twin
        settings = _context(function)
        if self._cache is None:
            self._cache = settings._isolate_recompiles_id
        settings._isolate_recompiles_id = self._cache
        return function

    def _backend(self, backend: Any) -> _Backend:
        for known, twin in self._backends:
            if known is backend or known == backend:
                return twin
        self._backends.append((backend, _Backend(backend)))
        return self._backends[-1][1]


def skip_frames_of(function: Any) -> None:
    """Let torch.compile run `function` as it is where it is called, rather than part of a graph."""
    try:
        torch._dynamo.eval_frame.skip_code(function.__code__)
    except AttributeError:
        raise Unavailable("torch._dynamo.eval_frame.skip_code") from None


def current_stance() -> Any:
    """Return what was set last by `set_stance`; None where that is not known."""
    return getattr(sys.modules.get("torch._dynamo.eval_frame"), "_stance", None)


def is_of_compiler(error: Exception) -> bool:
    """Whether `error` says that torch.compile could not compile something."""
    kinds = getattr(torch._dynamo.exc, "TorchDynamoException", ())
    return isinstance(error, kinds)


def rename_hook(handle: Any, name: int) -> None:
    """Give the hook of a module a number of ours.

    Compiled code is bound to the numbers of the hooks that it was compiled with. Those that torch
    gives differ from module to module, and each time that a hook is put in.
    """
    try:
        hooks = handle.hooks_dict_ref()
        is_first = next(iter(hooks)) == handle.id
        marks = [marks for ref in handle.extra_dict_ref if (marks := ref()) is not None]
        for marked in (hooks, *marks):
            if handle.id in marked:
                marked[name] = marked.pop(handle.id)
        if is_first:
            hooks.move_to_end(name, last=False)
        handle.id = name
    except AttributeError:  # compiled anew at each recorded step, until taps are given up
        return
