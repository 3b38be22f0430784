"""Everything of torch that torch does not promise to keep: used here, and nowhere else.

`INTERFACES` says of each what it is for and what is lost without it. Where one is gone, the
functions here raise `Unavailable` (or do without, where nothing is lost but time): whoever calls
them leaves out that reading, the sentence is told once, and the training and all other readings go
on. `missing()` looks for all of them before a training begins.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from types import FrameType
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node


class Interface(NamedTuple):
    """A private interface: where it is, what it is for, and what is lost without it, if anything.

    `loses` completes the sentence `this torch has no ...: `.
    """

    name: str
    purpose: str
    loses: str


INTERFACES = (
    Interface(
        "torch._C._current_graph_task_id",
        "tells backwards apart, and a recomputation within one from a forward",
        "gradients and outputs of layers, shortcuts and gradients before clipping are not read",
    ),
    Interface(
        "torch._C._current_autograd_node",
        "tells re-entrant checkpointing, which computes anew within a backward, from what"
        " only fetches tensors again",
        "what checkpointing computes again may count twice",
    ),
    Interface(
        "torch._C._will_engine_execute_node",
        "tells a backward that trains from one that is taken for something else, as a penalty is",
        "gradients and outputs of layers, shortcuts and gradients before clipping are not read",
    ),
    Interface(
        "torch.autograd.Variable._execution_engine.queue_callback",
        "calls back when a backward ends, before anybody clips",
        "gradients before clipping are not read",
    ),
    Interface(
        "torch.autograd.graph._engine_run_backward",
        "tells what a backward was called on: a frame of it waits while our hooks run",
        "what losses make of the model's outputs is not looked at",
    ),
    Interface(
        "torch._C._autograd._get_sequence_nr",
        "with the next one, tells which module made which part of a graph",
        "shortcuts, activations called as functions, and gradients at the inputs of layers are not"
        " read",
    ),
    Interface(
        "Node._sequence_nr",
        "tells which module made which part of a graph",
        "shortcuts, activations called as functions, and gradients at the inputs of layers are not"
        " read",
    ),
    Interface(
        "Node._input_metadata",
        "tells the shapes of the values in a graph",
        "shortcuts are not found",
    ),
    Interface(
        "Node._saved_*",
        "holds what an operation was called with: the factor of a sum, the dimension of a stack,"
        " the input of an activation",
        "shortcuts and activations called as functions are not read",
    ),
    Interface(
        "Node._raw_saved_*",
        "tells what a node saved from what a hook, as of checkpointing, keeps elsewhere",
        "activations called as functions and the forward ratio of scaled branches are not read",
    ),
    Interface(
        "torch._C._autograd._saved_tensors_hooks_disable",
        "keeps a look at an operation from computing anew what checkpointing has dropped",
        "additions in place, to a view, are not read as joins",
    ),
    Interface(
        "torch.autograd.function.BackwardCFunction",
        "tells custom Functions from torch's own operations",
        "shortcuts are not found",
    ),
    Interface(
        "torch._C._functorch.peek_interpreter_stack",
        "tells calls within torch.func from those of the training",
        "calls of the model within torch.func are taken for those of the training",
    ),
    Interface(
        "Tensor._version",
        "tells a tensor that was changed in place from one that was not",
        "the forward ratio of branches that are sums is not read",
    ),
    Interface("torch._foreach_norm", "takes the norms of many tensors by one call", ""),
    Interface("torch._foreach_copy_", "copies many tensors by one call", ""),
    Interface("torch._foreach_sub_", "subtracts many tensors by one call", ""),
    Interface("Module._parameters", "holds a module's own parameters, those that are None too", ""),
    Interface("Module._modules", "holds a module's children, those that are None too", ""),
    Interface(
        "torch._C._len_torch_dispatch_stack",
        "with the next two, tells whether the user has a mode on that would see what we compute",
        "modes of the user, as of selective checkpointing, see what gradscope computes",
    ),
    Interface(
        "torch._C._len_torch_function_stack",
        "with that before and the next one, tells whether the user has a mode on",
        "modes of the user, as of selective checkpointing, see what gradscope computes",
    ),
    Interface(
        "torch._C._is_any_autocast_enabled",
        "with those before, tells whether the user has a mode on",
        "modes of the user, as of selective checkpointing, see what gradscope computes",
    ),
    Interface(
        "torch._C._get_tracing_state",
        "tells in less time than torch.jit.is_tracing that no trace is taken",
        "",
    ),
    Interface(
        "torch._C._get_dispatch_mode",
        "tells tracing and tensors without values from a training",
        "a model that is traced may be taken for one that trains",
    ),
    Interface(
        "torch.utils._python_dispatch._disable_current_modes",
        "puts dispatch modes aside while gradscope computes",
        "modes of the user, as of selective checkpointing, see what gradscope computes",
    ),
    Interface(
        "torch._C.DisableTorchFunction",
        "puts function modes, and with them a default device, aside while gradscope computes",
        "modes of the user, as of selective checkpointing, see what gradscope computes",
    ),
    Interface(
        "torch._C._DisableAutocast",
        "puts autocast aside while gradscope computes",
        "under autocast readings may be rounded as it rounds",
    ),
    Interface(
        "torch.jit._recursive.get_hook_stubs",
        "asks a module that is scripted for its hooks, of which ours cannot be scripted",
        "",  # torch.jit.script refuses a watched model: it says so itself
    ),
    Interface(
        "torch.distributed.distributed_c10d._get_default_store",
        "is where the processes of a training meet",
        "",  # watch() of a distributed model says so
    ),
    Interface(
        "Module._compiled_call_impl",
        "tells a module that was compiled in place before watch()",
        "",  # then a step without calls tells
    ),
    Interface(
        "OptimizedModule.dynamo_ctx",
        "with the next three, lets a compiled module be compiled once more, with taps in its graph",
        "",  # without, recorded steps run without torch.compile
    ),
    Interface(
        "torch._dynamo.eval_frame._TorchDynamoContext",
        "holds how a function was compiled",
        "",
    ),
    Interface(
        "torch._dynamo.eval_frame.innermost_backend",
        "tells the backend that a function was compiled by",
        "",
    ),
    Interface(
        "torch._dynamo.eval_frame.skip_code",
        "lets our hooks run as they are where compiled code calls them",
        "",
    ),
    Interface(
        "RemovableHandle.hooks_dict_ref",
        "lets our hooks have numbers of ours, to which compiled code is bound",
        "",  # without, recorded steps run without torch.compile
    ),
    Interface(
        "torch._C._cuda_getCurrentRawStream",
        "is the stream that our kernels are launched on",
        "",  # there is a slower way
    ),
    Interface("GradScaler._scale", "is the factor of the loss scaler, on its device", ""),
    Interface(
        "Optimizer.grad_scale",
        "is the factor that a scaler hands to a fused optimizer, which unscales by itself; with"
        " found_inf, which tells it to skip the step",
        "",  # a fused optimizer's clipped gradients would be scaled: test_scaler.py watches it
    ),
)

_BY_NAME = {interface.name: interface for interface in INTERFACES}


class Unavailable(Exception):
    """A private interface that this torch does not have, or not as it is known."""

    def __init__(self, name: str) -> None:
        super().__init__(sentence(_BY_NAME[name]))


def sentence(interface: Interface) -> str:
    """Return what to tell a user without `interface`; "" where nothing is lost."""
    if not interface.loses:
        return ""
    return f"this torch ({torch.__version__}) has no {interface.name}: {interface.loses}"


def missing() -> list[str]:
    """Return a sentence for each interface that is gone and whose loss shows."""
    said = []
    with torch.inference_mode(False), torch.enable_grad():
        node = torch.zeros(2, device="cpu", requires_grad=True).mul(torch.ones(2, device="cpu"))
        root: Any = node.grad_fn
    probes: dict[str, Callable[[], object]] = {
        "torch._C._current_graph_task_id": current_backward,
        "torch._C._current_autograd_node": lambda: torch._C._current_autograd_node,
        "torch._C._will_engine_execute_node": lambda: torch._C._will_engine_execute_node,
        "torch.autograd.Variable._execution_engine.queue_callback": lambda: (
            _engine().queue_callback
        ),
        "torch.autograd.graph._engine_run_backward": roots_of_backward,
        "torch._C._autograd._get_sequence_nr": lambda: torch._C._autograd._get_sequence_nr,
        "Node._sequence_nr": lambda: sequence_number(root),
        "Node._input_metadata": lambda: shape(root, 0),
        "Node._saved_*": lambda: saved(root, "other"),
        "Node._raw_saved_*": lambda: is_kept_elsewhere(root, "other"),
        "torch._C._autograd._saved_tensors_hooks_disable": lambda: (
            torch._C._autograd._saved_tensors_hooks_disable
        ),
        "torch.autograd.function.BackwardCFunction": lambda: is_custom(root),
        "torch._C._functorch.peek_interpreter_stack": lambda: (
            torch._C._functorch.peek_interpreter_stack
        ),
        "torch._C._len_torch_dispatch_stack": lambda: torch._C._len_torch_dispatch_stack,
        "torch._C._len_torch_function_stack": lambda: torch._C._len_torch_function_stack,
        "torch._C._is_any_autocast_enabled": lambda: torch._C._is_any_autocast_enabled,
        "torch._C._get_dispatch_mode": lambda: torch._C._get_dispatch_mode,
        "torch.utils._python_dispatch._disable_current_modes": _dispatch_modes_aside,
        "Tensor._version": lambda: root.next_functions[0][0].variable._version,
        "torch._C.DisableTorchFunction": lambda: torch._C.DisableTorchFunction,
        "torch._C._DisableAutocast": lambda: torch._C._DisableAutocast,
    }
    for name, probe in probes.items():
        try:
            probe()
        except (AttributeError, ImportError, Unavailable):
            said.append(sentence(_BY_NAME[name]))
    return said


# --- the backward under way ---------------------------------------------------------------------


def current_backward() -> int:
    """Return the number of the backward under way in this thread, -1 outside of any."""
    try:
        return torch._C._current_graph_task_id()
    except AttributeError:
        raise Unavailable("torch._C._current_graph_task_id") from None


def recomputing_node() -> Node | None:
    """Return the custom Function whose backward runs just now in this thread, if one does.

    Re-entrant checkpointing computes anew in one. What is not re-entrant does so wherever a saved
    tensor is asked for, which is in a node of torch's own but for custom Functions that it holds.
    """
    try:
        node = torch._C._current_autograd_node()
    except AttributeError:  # said by `missing`
        return None
    return node if node is not None and is_custom(node) else None


def will_accumulate(leaves: Sequence[Node]) -> bool:
    """Whether the backward under way adds to the `.grad` of a parameter, one of these nodes'."""
    try:
        return any(torch._C._will_engine_execute_node(leaf) for leaf in leaves)
    except AttributeError:
        raise Unavailable("torch._C._will_engine_execute_node") from None
    except RuntimeError:  # it is an autograd.grad: nothing is accumulated
        return False


def roots_of_backward() -> list[Node]:
    """Return the nodes that the outermost backward under way was called on; none if not known.

    On an accelerator hooks run in threads of its own, while the one that called it waits. Where
    several threads go backward at once, it is not known which is meant.
    """
    try:
        code = torch.autograd.graph._engine_run_backward.__code__
    except AttributeError:
        raise Unavailable("torch.autograd.graph._engine_run_backward") from None
    found = []
    for frame in list(sys._current_frames().values()):
        outermost = None
        at: FrameType | None = frame
        while at is not None:
            if at.f_code is code:
                outermost = at
            at = at.f_back
        if outermost is not None:
            found.append(outermost)
    if len(found) != 1:
        return []
    outputs = found[0].f_locals.get("t_outputs", ())
    nodes = [
        getattr(output, "grad_fn", None) or getattr(output, "node", None) for output in outputs
    ]
    return [node for node in nodes if isinstance(node, Node)]


def at_end_of_backward(callback: Callable[[], None]) -> None:
    """Call `callback` when the backward under way ends; those that were asked before come first."""
    try:
        queue = _engine().queue_callback
    except AttributeError:
        raise Unavailable("torch.autograd.Variable._execution_engine.queue_callback") from None
    queue(callback)


def _engine() -> Any:
    return torch.autograd.Variable._execution_engine


def in_transform() -> bool:
    """Whether torch.func (grad, vmap, ...) is at work: its tensors are not those of a training."""
    try:
        return torch._C._functorch.peek_interpreter_stack() is not None
    except AttributeError:  # said by `missing`
        return False


# --- modes that the user has on -------------------------------------------------------------------

Result = TypeVar("Result")


def is_plain() -> bool:
    """Whether nothing sees or changes what is computed: no mode, trace or transform is on.

    So it is nearly always, and this is told in less time than which of them is on. False where
    this torch cannot tell.
    """
    try:
        return not (
            torch._C._len_torch_dispatch_stack()
            or torch._C._len_torch_function_stack()
            or torch._C._is_any_autocast_enabled()
            or torch._C._get_tracing_state()
            or torch._C._functorch.peek_interpreter_stack()
        )
    except AttributeError:  # said by `missing`
        return False


_WITHOUT_AUTOCAST: Any = getattr(torch._C, "_DisableAutocast", None)


def apart_from_modes(function: Callable[..., Result], *args: Any) -> Result:
    """Call `function` so that no mode of the user sees, or changes, what it computes.

    Dispatch modes (selective checkpointing, counters), function modes (a default device among
    them) and autocast are put aside; where none is on, this costs next to nothing.
    """
    try:
        dispatch = torch._C._len_torch_dispatch_stack() > 0
        function_modes = torch._C._len_torch_function_stack() > 0
        autocast = torch._C._is_any_autocast_enabled()
    except AttributeError:  # said by `missing`
        return function(*args)
    if not (dispatch or function_modes or autocast):
        return function(*args)
    if not (dispatch or function_modes) and (without := _WITHOUT_AUTOCAST) is not None:
        with without():
            return function(*args)
    with ExitStack() as aside:
        if dispatch:
            with suppress(AttributeError, ImportError):
                aside.enter_context(_dispatch_modes_aside()())
        for is_on, name in (
            (function_modes, "DisableTorchFunction"),
            (autocast, "_DisableAutocast"),
        ):
            if is_on and (context := getattr(torch._C, name, None)) is not None:
                aside.enter_context(context())
        return function(*args)


def _dispatch_modes_aside() -> Callable[[], AbstractContextManager[object]]:
    from torch.utils._python_dispatch import _disable_current_modes

    return _disable_current_modes


_is_jit_tracing: Callable[[], bool] = torch.jit.is_tracing  # type: ignore[attr-defined]


def is_tracing() -> bool:
    """Whether calls are being traced or exported, or have no values: nothing trains."""
    if _is_jit_tracing():
        return True
    try:
        if not torch._C._len_torch_dispatch_stack():
            return False
        kinds = torch._C._TorchDispatchModeKey
        modes = (kinds.FAKE, kinds.PROXY, kinds.FUNCTIONAL)
        return any(torch._C._get_dispatch_mode(kind) is not None for kind in modes)
    except AttributeError:
        return False


# --- nodes of a graph ---------------------------------------------------------------------------


def next_sequence_number() -> int:
    """Return the number that autograd will give to the next node of this thread, -1 if unknown."""
    try:
        return torch._C._autograd._get_sequence_nr()
    except AttributeError:  # said by `missing`
        return -1


def sequence_number(node: Node) -> int:
    """Return the number of a node: its place in the order of execution."""
    number: int = _of_node(node, "_sequence_nr", "Node._sequence_nr")()
    return number


def shape(node: Node, slot: int) -> tuple[int, ...]:
    """Return the shape of an output of the operation that left `node`."""
    return tuple(_metadata(node, slot).shape)


def backward_of_ones(node: Node) -> tuple[Tensor | None, ...]:
    """Return what `node` makes of a gradient of ones; nothing where that takes a computation anew.

    Checkpointing would compute what it has dropped: it is not let do so.
    """
    described = _metadata(node, 0)
    ones = torch.ones(described.shape, dtype=described.dtype, device=described.device)
    function: Any = node
    own = torch._C._autograd
    try:
        disable = own._saved_tensors_hooks_disable
        said = own._saved_tensors_hooks_get_disabled_error_message()
    except AttributeError:  # said by `missing`
        return ()
    disable("gradscope looks at an operation", False)
    try:
        with torch.no_grad():
            return tuple(function(ones))
    except RuntimeError:
        return ()
    finally:
        if said is None:
            own._saved_tensors_hooks_enable()
        else:
            disable(said, False)


def _metadata(node: Node, slot: int) -> Any:
    return _of_node(node, "_input_metadata", "Node._input_metadata")[slot]


def is_custom(node: Node) -> bool:
    """Whether `node` is of a user's autograd.Function."""
    try:
        return isinstance(node, torch.autograd.function.BackwardCFunction)
    except AttributeError:
        raise Unavailable("torch.autograd.function.BackwardCFunction") from None


def saved(node: Node, name: str) -> Any:
    """Return what `node` has saved as `name`, such as `alpha` or `self`.

    Raises
    ------
    Unavailable
        If it never has anything of this name.
    RuntimeError
        If it is a tensor that was changed in place since, or freed.
    """
    return _of_node(node, f"_saved_{name}", "Node._saved_*")


def is_kept_elsewhere(node: Node, name: str) -> bool:
    """Whether hooks keep the saved tensor `name`: checkpointing would compute it anew."""
    raw = _of_node(node, f"_raw_saved_{name}", "Node._raw_saved_*")
    return getattr(raw, "unpack_hook", None) is not None


def saves_nothing(node: Node) -> bool:
    """Whether the custom Function of `node` has saved no tensor: then it is linear."""
    return not _of_node(node, "_raw_saved_tensors", "Node._raw_saved_*")


def saved_tensor(node: Node, name: str) -> Tensor | None:
    """Return the tensor that `node` has saved as `name`; None where it is not to be had at once.

    So it is where the node does not need it, where it was changed in place since, and where hooks
    keep it elsewhere.
    """
    if is_kept_elsewhere(node, name):
        return None
    try:
        found = saved(node, name)
    except RuntimeError:
        return None
    return found if isinstance(found, Tensor) else None


def has_saved(node: Node, name: str) -> bool:
    """Whether nodes of this kind save something as `name`."""
    try:
        _of_node(node, f"_raw_saved_{name}", "Node._raw_saved_*")
    except Unavailable:
        return False
    return True


def _of_node(node: Node, attribute: str, interface: str) -> Any:
    try:
        return getattr(node, attribute)
    except AttributeError:
        raise Unavailable(interface) from None


# --- tensors and modules: nothing is lost without these but time ---------------------------------

_unknown = iter(range(-1, -(2**62), -1))


def version(x: Tensor) -> int:
    """Return a number that differs once `x` is changed in place; never the same where unknown."""
    try:
        return x._version
    except (AttributeError, RuntimeError):  # an inference tensor has none
        return next(_unknown)


def norms(tensors: Sequence[Tensor], dtype: torch.dtype | None = None) -> list[Tensor]:
    """Return the L2 norm of each tensor, by one call where there is one."""
    try:
        return list(torch._foreach_norm(list(tensors), 2, dtype=dtype))
    except AttributeError:
        return [torch.linalg.vector_norm(x, dtype=dtype) for x in tensors]


def copy_all(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copy each of `sources` to its target."""
    try:
        torch._foreach_copy_(list(targets), list(sources))
    except AttributeError:
        for target, source in zip(targets, sources, strict=True):
            target.copy_(source)


def subtract_all(targets: Sequence[Tensor], others: Sequence[Tensor]) -> None:
    """Subtract each of `others` from its target, in place."""
    try:
        torch._foreach_sub_(list(targets), list(others))
    except AttributeError:
        for target, other in zip(targets, others, strict=True):
            target.sub_(other)


def is_capturing() -> bool:
    """Whether a CUDA graph is being captured: what is launched now runs later, and often."""
    started = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return bool(started) and torch.cuda.is_current_stream_capturing()


def _raw_stream(index: int) -> int:
    return int(torch.cuda.current_stream(index).cuda_stream)


raw_stream: Callable[[int], int] = getattr(torch._C, "_cuda_getCurrentRawStream", _raw_stream)
"""Return the handle of the stream that is current on a CUDA device."""


def default_store() -> Any:
    """Return the store of the default process group, by which processes find each other."""
    try:
        return torch.distributed.distributed_c10d._get_default_store()
    except AttributeError:
        raise Unavailable("torch.distributed.distributed_c10d._get_default_store") from None


def is_compiled(module: nn.Module) -> bool:
    """Whether `module` itself has been handed to torch.compile."""
    return (
        type(module).__name__ == "OptimizedModule"
        or getattr(module, "_compiled_call_impl", None) is not None
        or getattr(module, "_compiler_ctx", None) is not None  # a LightningModule
    )


_WRAPPED = {
    "DistributedDataParallel": "module",
    "OptimizedModule": "_orig_mod",
    "FullyShardedDataParallel": "_fsdp_wrapped_module",
    "CheckpointWrapper": "_checkpoint_wrapped_module",
}
"""Class that wraps a module -> the attribute under which it does."""

WRAPPER_NAMES = frozenset(_WRAPPED.values()) - {"module"}  # a name that users give, too
"""Parts of a module's path that are a wrapper's, not the user's."""


def wrapped(module: nn.Module) -> nn.Module | None:
    """Return the module that DistributedDataParallel, torch.compile and the like wrap, if any."""
    name = _WRAPPED.get(type(module).__name__)
    inner = None if name is None else getattr(module, name, None)
    return inner if isinstance(inner, nn.Module) else None


def handed_by_scaler(optimizer: Any) -> dict[str, Tensor | None]:
    """Return what a scaler hands to an optimizer that unscales and skips by itself, if it did."""
    return {name: getattr(optimizer, name, None) for name in ("grad_scale", "found_inf")}


def scale_of(scaler: Any) -> Tensor | float | None:
    """Return the factor of `scaler`, on its device where it is there; None before the first use."""
    scale: Tensor | float | None = getattr(scaler, "_scale", None)
    if scale is None and hasattr(scaler, "get_scale"):
        return float(scaler.get_scale())
    return scale


def is_scripted(module: nn.Module) -> bool:
    """Whether `module` was compiled by torch.jit: hooks see nothing in it."""
    return isinstance(module, torch.jit.ScriptModule)


def script_without(ours: Callable[[object], bool]) -> Callable[[], None]:
    """Let torch.jit.script overlook hooks that are `ours`; call what is returned to end that."""
    try:
        recursive: Any = torch.jit._recursive
        ask = recursive.get_hook_stubs
    except AttributeError:
        return lambda: None

    def ask_for_others(module: nn.Module) -> Any:
        both: tuple[Any, ...] = (module._forward_hooks, module._forward_pre_hooks)
        held = [(hooks, dict(hooks)) for hooks in both]
        try:
            for hooks, every_one in held:
                for key in [key for key, hook in every_one.items() if ours(hook)]:
                    del hooks[key]
            return ask(module)
        finally:
            for hooks, every_one in held:
                hooks.clear()
                hooks.update(every_one)

    def undo() -> None:
        if recursive.get_hook_stubs is ask_for_others:
            recursive.get_hook_stubs = ask

    recursive.get_hook_stubs = ask_for_others
    return undo


def children_of(module: nn.Module) -> Iterable[nn.Module | None]:
    """Return the module's own children; those that are None may be among them."""
    try:
        return module._modules.values()
    except AttributeError:
        return module.children()


def has_child(module: nn.Module, name: str) -> bool:
    """Whether `module` has a child of this name."""
    try:
        return name in module._modules
    except AttributeError:
        return name in dict(module.named_children())


def parameters_of(module: nn.Module) -> dict[str, nn.Parameter | None]:
    """Return the module's own parameters by name; those that are None may be among them."""
    try:
        return module._parameters
    except AttributeError:
        return dict(module.named_parameters(recurse=False))


# --- torch.compile --------------------------------------------------------------------------------


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
        _ = context.callback, context.fullgraph, context._dynamic, context._isolate_recompiles_id
        _ = torch._dynamo.eval_frame.innermost_backend
    except (AttributeError, KeyError, TypeError, ValueError):
        raise Unavailable(_TWIN) from None
    return CompiledCall(attribute, function, target, context)


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
