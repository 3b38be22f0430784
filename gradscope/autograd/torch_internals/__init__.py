"""Everything of torch that torch does not promise to keep: used in here, and nowhere else.

`INTERFACES` says of each what it is for and what is lost without it. Where one is gone, the
functions in here raise `Unavailable` (or do without, where nothing is lost but time): whoever calls
them leaves out that reading, the sentence is told once, and the training and all other readings go
on. `self_check` looks for all of them before a training begins.
"""

from gradscope.autograd.torch_internals.backward_calls import FollowedBackwards
from gradscope.autograd.torch_internals.backwards import (
    at_end_of_backward,
    current_backward,
    ends_recomputation,
    recomputing_node,
    roots_of_backward,
    roots_of_innermost_backward,
    will_accumulate,
)
from gradscope.autograd.torch_internals.compiling import (
    CompiledCall,
    Twins,
    check_twin,
    compiled_call,
    current_stance,
    is_of_compiler,
    rename_hook,
    skip_frames_of,
)
from gradscope.autograd.torch_internals.interfaces import (
    INTERFACES,
    TESTED,
    Interface,
    Unavailable,
    sentence,
)
from gradscope.autograd.torch_internals.modes import (
    apart_from_modes,
    in_transform,
    is_plain,
    is_tracing,
    transform_has_graph,
)
from gradscope.autograd.torch_internals.modules import (
    WRAPPER_NAMES,
    children_of,
    default_store,
    divide_factor,
    has_child,
    is_compiled,
    is_scripted,
    parameters_of,
    script_without,
    wrapped,
)
from gradscope.autograd.torch_internals.node_names import check_names
from gradscope.autograd.torch_internals.nodes import (
    backward_of_ones,
    distributed_as,
    has_saved,
    is_custom,
    is_derived,
    kind_name,
    next_sequence_number,
    saved,
    saves_nothing,
    sequence_number,
    shape,
)
from gradscope.autograd.torch_internals.saved_hooks import (
    FollowedHooks,
    is_kept_elsewhere,
    saved_tensor,
)
from gradscope.autograd.torch_internals.self_check import SelfCheck, self_check
from gradscope.autograd.torch_internals.tensors import (
    copy_all,
    handed_by_scaler,
    is_capturing,
    norms,
    raw_stream,
    scale_of,
    subtract_all,
    version,
)

__all__ = [
    "INTERFACES",
    "TESTED",
    "WRAPPER_NAMES",
    "CompiledCall",
    "FollowedBackwards",
    "FollowedHooks",
    "Interface",
    "SelfCheck",
    "Twins",
    "Unavailable",
    "apart_from_modes",
    "at_end_of_backward",
    "backward_of_ones",
    "check_names",
    "check_twin",
    "children_of",
    "compiled_call",
    "copy_all",
    "current_backward",
    "current_stance",
    "default_store",
    "distributed_as",
    "divide_factor",
    "ends_recomputation",
    "handed_by_scaler",
    "has_child",
    "has_saved",
    "in_transform",
    "is_capturing",
    "is_compiled",
    "is_custom",
    "is_derived",
    "is_kept_elsewhere",
    "is_of_compiler",
    "is_plain",
    "is_scripted",
    "is_tracing",
    "kind_name",
    "next_sequence_number",
    "norms",
    "parameters_of",
    "raw_stream",
    "recomputing_node",
    "rename_hook",
    "roots_of_backward",
    "roots_of_innermost_backward",
    "saved",
    "saved_tensor",
    "saves_nothing",
    "scale_of",
    "script_without",
    "self_check",
    "sentence",
    "sequence_number",
    "shape",
    "skip_frames_of",
    "subtract_all",
    "transform_has_graph",
    "version",
    "will_accumulate",
    "wrapped",
]
