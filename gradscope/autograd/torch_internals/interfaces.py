"""What of torch is used that torch does not promise to keep, and what is lost without it."""

from __future__ import annotations

from typing import NamedTuple

import torch


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
        "gradients and outputs of layers, and shortcuts, are not read",
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
        "torch.autograd._engine_run_backward",
        "is what every backward is run by, also one that goes through no layer, as of a penalty on"
        " weights",
        "gradients of a backward that goes through no layer are not told from clipped ones",
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
        " the input of an activation, queries and keys",
        "shortcuts, activations called as functions and logits of attention are not read",
    ),
    Interface(
        "Node._raw_saved_*",
        "tells what a node saved from what a hook, as of checkpointing, keeps elsewhere",
        "activations called as functions, logits of attention and the forward ratio of scaled"
        " branches are not read",
    ),
    Interface(
        "SavedTensor.unpack_hook",
        "tells what a hook keeps that a node saved; before torch 2.10 it is"
        " torch._C._autograd._push_saved_tensors_default_hooks, followed, that does",
        "activations called as functions, logits of attention and the forward ratio of scaled"
        " branches are not read",
    ),
    Interface(
        "names of nodes",
        "tell operations: sums, products with weights, activations",
        "shortcuts and activations called as functions are not read in a graph that has nodes of"
        " other names",
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
        "FSDPModule._get_fsdp_state",
        "tells what fully_shard divides the sum of gradients by, where that was set",
        "",  # then they are taken to be means
    ),
    Interface(
        "_ToTorchTensor.dtensor_spec",
        "tells which part of a distributed tensor a local one is",
        "",  # without, readings of outputs under tensor parallel are NaN, which is told
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


TESTED = ("2.6", "2.14")
"""The lowest and the newest torch that the tests pass on."""


class Unavailable(Exception):
    """A private interface that this torch does not have, or not as it is known."""

    def __init__(self, name: str) -> None:
        super().__init__(sentence(_BY_NAME[name]))
        self.name = name


def sentence(*interfaces: Interface) -> str:
    """Return what to tell a user without these; "" where nothing is lost."""
    lost: dict[str, list[str]] = {}
    for interface in interfaces:
        if interface.loses:
            lost.setdefault(interface.loses, []).append(interface.name)
    if not lost:
        return ""
    told = "; ".join(f"no {', '.join(names)}: {loses}" for loses, names in lost.items())
    low, high = TESTED
    return f"this torch ({torch.__version__}) has {told}. gradscope knows torch {low} to {high}"
