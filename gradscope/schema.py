"""The data contract: every table that gradscope writes or returns, column by column.

A run is a folder::

    runs/NAME/run.json                  what was watched: layers, shortcuts, edges, settings, state
    runs/NAME/layers/part-*.parquet     LAYER_READINGS, every layer at every recorded step
    runs/NAME/shortcuts/part-*.parquet  SHORTCUT_READINGS, every shortcut at every recorded step
    runs/NAME/steps/part-*.parquet      STEPS, one row a recorded step

Whoever reads or writes a run imports its names and meanings from here and nowhere else. A reading
that could not be taken is NaN; zero, infinity and NaN that were measured are data and stay as they
are. `FORMAT_VERSION` rises when a reader of the previous version would misread a run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FORMAT_VERSION = 1

Combine = Literal["root sum square", "sum", "mean", "deviation", "root mean square", "largest"]
"""How readings of one thing at one step become one, over micro-batches and calls of a module:
`mean` and `deviation` are weighted by the number of elements that each was read from."""

Processes = Literal["samples", "mean of losses", "copies"]
"""How a reading of each of R processes is made ready to be combined as over micro-batches:
`samples`, as it is, each has read its own; `mean of losses`, divided by R, as each has the gradient
of its own mean loss; `copies`, divided by the root of the number that hold the same elements."""

Scale = Literal["", "loss_scale", "grad_scale"]
"""What a reading is divided by, as the gradient carried it when it was read: the factor of the loss
scaler; or that which a fused optimizer was handed, as it unscales by itself."""


@dataclass(frozen=True)
class Column:
    """One column of a table, and all that there is to know of it.

    Attributes
    ----------
    name, dtype, unit : str
        `dtype` is NumPy's.
    meaning : str
        In one sentence.
    combine : Combine
        Of metrics: how several readings at one step become one.
    processes : Processes
        Of metrics: what is done to the reading of one process before.
    scale : Scale
        Of metrics: what it is divided by.
    mean : str
        Of deviations: the column of the mean that they are from.
    label : str
        Short words for an axis; the name without underscores where there are none.
    """

    name: str
    dtype: str
    unit: str
    meaning: str
    combine: Combine = "root sum square"
    processes: Processes = "samples"
    scale: Scale = ""
    mean: str = ""
    label: str = ""

    @property
    def words(self) -> str:
        """What an axis or a button calls it."""
        return self.label or self.name.replace("_", " ")


Table = tuple[Column, ...]


def names(table: Table) -> list[str]:
    """Return the column names of `table`, in order."""
    return [column.name for column in table]


def by_name(*tables: Table) -> dict[str, Column]:
    """Return the columns of `tables` by their names."""
    return {column.name: column for table in tables for column in table}


# --- what was watched: kept in run.json, returned as Run.layers, .shortcuts, .edges -----------

LAYERS: Table = (
    Column("layer", "int32", "", "index of the layer, 0.. in the order of first execution"),
    Column("name", "str", "", "module path, `(root)` for parameters of the model itself"),
    Column("kind", "str", "", "class name of the module"),
    Column(
        "depth",
        "int32",
        "weight layers",
        "how many layers with a weight matrix or kernel ran up to and including this one",
    ),
    Column("parameters", "int64", "elements", "trainable and frozen elements owned by the module"),
    Column(
        "training",
        "str",
        "",
        "what the recorded steps have shown of its parameters, one or more words with commas:"
        " `trained`; `frozen` (requires_grad is False); `no optimizer` (no torch.optim.Optimizer"
        " holds them); `no gradient` (none has come in any recorded step). Where parameters differ,"
        " their names stand behind: `trained (weight), frozen (bias)`. Empty without parameters and"
        " where nothing is known. What an optimizer holds that is no torch.optim.Optimizer is not",
    ),
)

TRAINING = LAYERS[-1].name
"""Column of LAYERS that runs of gradscope 0.1 lack: empty there. Frame and CSV are without it."""

FUNCTION = "function"
"""Key of a layer in run.json, beside LAYERS: class name of the activation that a function called on
its output computes, `ReLU` for F.relu; missing where there is none. See `Run.functions`."""

SPLIT_FORMS = ("identity", "projection", "scaled", "gated", "nested")
"""Kinds of residual join whose gradient is split, so that the whole of it is known at the block."""

FORMS = (*SPLIT_FORMS, "concat", "partial")
"""All kinds of residual join. `concat` and `partial` are listed, but not split."""

SHORTCUTS: Table = (
    Column("shortcut", "int32", "", "index of the residual join, 0.. from input to output"),
    Column("name", "str", "", "the innermost module that holds the block"),
    Column("form", "str", "", "one of " + ", ".join(FORMS)),
    Column("split", "str", "", "module whose value goes both ways"),
    Column("join", "str", "", "module in which the two paths meet"),
    Column("branch", "str", "", "first module of the branch"),
    Column(
        "position",
        "float64",
        "",
        "place in depth, 0 at the input to 1 at the output: share of layers run before the join",
    ),
)

EDGES: Table = (
    Column("source", "int32", "", "layer that the data come from"),
    Column(
        "target",
        "int32",
        "",
        "layer that they go to, with no recorded layer between; -1 for what the model returns, or"
        " leaves for a loss to take",
    ),
)
"""Between which layers data flow, told by the autograd graphs of all forwards that were recorded.

It is the gradient that flows: there is no edge through `detach()`, nor to or from frozen layers
that no gradient passes. Edges may go in circles: a layer that is called several times in a forward
(a shared module, a recurrent cell) is one layer, and one that owns parameters and holds other
layers stands wherever its own parameters enter. Of more than 32 layers that lead directly to one,
as in a stream of residual sums, those farther back are left out that lead there by way of others,
too. Called by parts, a part returns to the loss what no other part takes. No edges: a run of an
older gradscope, a model that ran compiled throughout, or a note says why.
"""

HEADS: Table = (
    Column(
        "loss",
        "str",
        "",
        "function of torch.nn.functional: cross_entropy, nll_loss (after no log-softmax),"
        " binary_cross_entropy, binary_cross_entropy_with_logits, mse_loss, huber_loss or"
        " smooth_l1_loss; difference, where a column is compared with a row; cosine_similarity of"
        " outputs",
    ),
    Column(
        "after",
        "str",
        "",
        "function that made its input: softmax, log_softmax, sigmoid, tanh, relu, elu, gelu,"
        " silu, hardtanh or softplus; broadcast, where (n, 1) was spread to (n, n); outputs,"
        " where what is compared are two outputs, gradient goes into both, and no other term is"
        " seen; empty for others, such as a layer",
    ),
)
"""Losses at the end of the graph, as the first eight backwards have shown them: a cross_entropy
after softmax or sigmoid takes a softmax of probabilities, one after log_softmax is right, if twice
the work. Losses of other making, and in compiled code, are not seen."""

FACTS = {
    "backwards_without_step": "backward passes that had reached the model by the end of the run, or"
    " when that was last counted, where no step was seen; 0 if there were many before the first",
    "batchnorm_values": "over how many values a channel each BatchNorm took mean and variance at a"
    " call, at most, by its name; not known of one over several processes",
    "between": "names of modules of one's own without parameters that ran before a layer, since the"
    " layer before it, by the layer's name",
    "cut_states": "calls within one forward of each recurrent cell, by its name, that was handed"
    " its own state at each of them and never the state's graph, as by `detach()`",
    "dropout": "share that each dropout leaves out, by its name, or by that of the module in which"
    " one was called as a function",
    "eps": "largest `eps` among the groups of the model's optimizers, by an optimizer's class",
    "kept_gradients": "names of layers whose optimizer got the gradients of its last step again,"
    " seven steps in a row: no `zero_grad` came between; told of gradients on the CPU",
    "outside": "shapes of parameters that the model computes with, which neither it lists nor any"
    " optimizer holds",
    "outside_in": "names of the lists, tuples and dicts, attributes of modules, that hold such"
    " parameters or layers with them",
    "steps_without_gradient": "steps of the model's optimizers to which no gradient had come; none"
    " of them is recorded",
    "weight_decay": "largest `weight_decay` among the groups of the model's optimizers",
    "units_alike": "names of layers all of whose units had the same weights, not 0, at `watch()`",
    "steps_of_others": "steps of optimizers that hold nothing of the model, after a backward pass"
    " through it, where none that does has ever stepped",
}
"""What `Run.facts` may hold."""

# --- what was read: one row a step, a (step, layer) or a (step, shortcut) ----------------------

STEPS: Table = (
    Column("step", "int64", "", "optimizer steps taken before this one, from 0"),
    Column("time", "float64", "s", "seconds from watch() to the end of the step"),
    Column("skipped", "bool", "", "the loss scaler found inf or NaN and skipped the update"),
    Column(
        "grad_norm",
        "float64",
        "loss/weight",
        "L2 norm over all parameters' gradients as accumulated, before clipping, unscaled, but for"
        " those whose optimizer did not make the step; tied weights count once",
    ),
    Column(
        "clipped_grad_norm",
        "float64",
        "loss/weight",
        "the same as the optimizer got it, of the parameters that it holds",
    ),
    Column("loss_scale", "float64", "", "factor of the loss scaler, 1 without one"),
    Column(
        "learning_rate",
        "float64",
        "",
        "largest `lr` among the groups of parameters of the model that optimizers stepped with, as"
        " they got it: 0 only where it is 0 for all; NaN where no torch.optim.Optimizer has told"
        " of the step. `log(learning_rate=...)` takes its place",
    ),
)

LAYER_METRICS: Table = (
    Column(
        "grad_norm",
        "float32",
        "loss/weight",
        "L2 norm of the gradient of the loss with respect to the layer's own parameters that are"
        " not frozen, as accumulated: before clipping, unscaled; without those whose optimizer did"
        " not make the step, NaN where that leaves none. Tied weights count at the layer that comes"
        " first in the model, in all four norms of parameters",
        processes="copies",
        scale="loss_scale",
        label="weight gradient",
    ),
    Column(
        "clipped_grad_norm",
        "float32",
        "loss/weight",
        "the same as the optimizer got it, of the parameters that it holds",
        processes="copies",
        scale="grad_scale",
        label="clipped weight gradient",
    ),
    Column(
        "weight_norm",
        "float32",
        "weight",
        "L2 norm, before the step, of those parameters of the layer that are trained: of the bias"
        " alone where the weight is frozen, or neither its optimizer nor anything else changes it",
        processes="copies",
    ),
    Column(
        "update_norm",
        "float32",
        "weight",
        "L2 norm of the true change of these parameters, after minus before the optimizer's step",
        processes="copies",
    ),
    Column(
        "signal_norm",
        "float32",
        "loss/activation",
        "L2 norm of the gradient of the loss with respect to the layer's output: what"
        " backpropagation hands to the layer",
        processes="mean of losses",
        scale="loss_scale",
        label="gradient signal",
    ),
    Column(
        "input_signal_norm",
        "float32",
        "loss/activation",
        "L2 norm of dL/d(input) through this layer alone",
        processes="mean of losses",
        scale="loss_scale",
    ),
    Column("activation_norm", "float32", "activation", "L2 norm of the layer's output"),
    Column(
        "output_elements",
        "float32",
        "elements",
        "elements of the layer's outputs at the step, over all calls, micro-batches and processes:"
        " those of one expert over those of all experts are its share of the tokens. 0 where the"
        " layer was called at an earlier step, and others at this one; NaN before",
        combine="sum",
        label="output elements",
    ),
    Column(
        "activation_mean", "float32", "activation", "mean of the layer's output", combine="mean"
    ),
    Column(
        "activation_std",
        "float32",
        "activation",
        "standard deviation of the layer's output over all its elements (population): near 0, all"
        " inputs look alike to it",
        combine="deviation",
        mean="activation_mean",
        label="activation spread",
    ),
    Column(
        "derivative_mean",
        "float32",
        "",
        "mean |phi'(z)| of an activation: the layer itself, or functions such as F.relu that were"
        " called on its output. Of ReLU, tanh and sigmoid over all elements, of others over a"
        " sample of at most 16,384 of each call, evenly spread; over all where a model runs"
        " compiled",
        combine="mean",
        label="mean slope",
    ),
    Column(
        "zero_fraction",
        "float32",
        "share",
        "share of an activation's outputs that are exactly 0, among the elements that"
        " derivative_mean is of",
        combine="mean",
        label="zeros",
    ),
    Column(
        "saturated_fraction",
        "float32",
        "share",
        "share of an activation's elements with |phi'| below a tenth of its maximum: on the flat"
        " part of its curve, where hardly any gradient passes; among those that derivative_mean is"
        " of",
        combine="mean",
        label="saturation",
    ),
    Column(
        "dead_fraction",
        "float32",
        "share",
        "share of the units (channels of a convolution, features otherwise) of a rectifier, ReLU to"
        " GELU and SiLU, that were never above 0 at any look of a window. A look is taken at every"
        " 8th recorded step, at 16 samples and 16 places of each, others every time; a window has"
        " the latest 4 to 8 looks, fewer at first. NaN between looks, for other activations, and"
        " where a model runs compiled; the mean over processes",
        combine="mean",
        label="dead units",
    ),
    Column(
        "sample_spread",
        "float32",
        "share",
        "root of the share of the variance of the layer's output that lies between samples, at the"
        " same element, in all of it: near 0, all samples look alike, 1 where elements do not"
        " differ but by the sample. Of 16 samples along the first dimension, and 256 elements of"
        " each, at the looks of dead_fraction; the mean over processes; NaN of one sample and where"
        " nothing varies",
        combine="mean",
        label="spread between samples",
    ),
    Column(
        "attention_logit_max",
        "float32",
        "",
        "largest logit of attention, of what softmax gets, before masks and biases are added and"
        " without what they mask: far above 50 all weight goes to one key, and hardly any gradient"
        " passes. Of the layer that makes the queries, or of nn.MultiheadAttention; at the looks of"
        " dead_fraction, of 4 million logits of each call at most, in which each query meets all"
        " keys: of others, the largest may be missed. NaN of attention that is neither"
        " scaled_dot_product_attention nor a softmax of a batched product of queries and keys,"
        " where checkpointing or offloading keeps these elsewhere, and where a model runs compiled",
        combine="largest",
        label="largest attention logit",
    ),
    Column(
        "time_decades",
        "float32",
        "decades",
        "log10 of the gradient at the first time step over that at the last: below 0 it vanishes on"
        " its way back through time, -inf where none arrives. Of nn.RNN, LSTM and GRU at their"
        " input sequence: read there, or where that needs no gradient, is packed, or is gone"
        " through in both directions, each from its own first step, had by running the layer again"
        " on 8 samples, the longest of a packed batch, at every 32nd recorded step. Of what is"
        " called time step after time step (cells, shared layers, a model that is handed the state"
        " that it has returned) at the outputs of its first and last call. NaN of fewer than 4"
        " steps, of other layers, and where a model runs compiled; of what would have to be run"
        " again, NaN of several layers in both directions or with dropout between them, and where"
        " an optimizer steps within the backward",
        combine="mean",
        label="gradient through time",
    ),
    Column(
        "cut_signal_norm",
        "float32",
        "loss/activation",
        "signal_norm with the gradient through the cut edges set to zero, forward unchanged",
        processes="mean of losses",
        scale="loss_scale",
    ),
    Column(
        "moved_fraction",
        "float32",
        "share",
        "of the entries of the layer's parameters that have a gradient, the share that the"
        " optimizer's step changed: the steps of the others are lost in rounding, as those below"
        " 0.4% of a weight in bfloat16. Of parameters in bfloat16 and float16, of a fixed sample of"
        " those of more than 65,536 elements, at the looks of dead_fraction; NaN of others, where"
        " updates are sampled, and of optimizers that are not torch's own, as they may keep what is"
        " lost",
        combine="mean",
        label="weights that move",
    ),
)
"""Readings of a layer. float32 on disk, float64 where the model computes in float64."""

TIME_NORMS: Table = tuple(
    Column(
        f"{end}_signal_norm",
        "float32",
        "loss/activation",
        f"L2 norm of the gradient at the {end} time step",
        processes="mean of losses",
        scale="loss_scale",
    )
    for end in ("first", "last")
)
"""Readings of a layer of which only the ratio is kept, `time_decades`."""

LAYER_READINGS: Table = (
    Column("step", "int64", "", "see STEPS"),
    Column("layer", "int32", "", "see LAYERS"),
    *LAYER_METRICS,
)

SHORTCUT_METRICS: Table = (
    Column(
        "total_norm",
        "float32",
        "loss/activation",
        "L2 norm of the gradient at the block's input",
        processes="mean of losses",
        scale="loss_scale",
    ),
    Column(
        "shortcut_norm",
        "float32",
        "loss/activation",
        "L2 norm of its part via the shortcut",
        processes="mean of losses",
        scale="loss_scale",
    ),
    Column(
        "branch_norm",
        "float32",
        "loss/activation",
        "L2 norm of its part via the branch",
        processes="mean of losses",
        scale="loss_scale",
    ),
    Column(
        "other_norm",
        "float32",
        "loss/activation",
        "L2 norm of the rest: over edges that belong to neither, such as a gate's, and what a loss"
        " takes directly of a block's input that the model returns, too; 0 without any",
        processes="mean of losses",
        scale="loss_scale",
    ),
    Column(
        "cosine",
        "float32",
        "",
        "cosine between the shortcut's and the branch's part; of several calls and micro-batches"
        " the mean, however large each is",
        combine="mean",
    ),
    Column(
        "energy_share",
        "float32",
        "",
        "shortcut_norm^2 / (shortcut_norm^2 + branch_norm^2), of the combined norms; norms of"
        " parts do not add up",
        combine="mean",
    ),
    Column(
        "branch_ratio",
        "float32",
        "",
        "forward ||F(x)|| / ||S(x)||, branch over shortcut; NaN where the sum itself scales a term"
        " (lerp, addcmul, alpha), no module takes or returns one, or checkpointing has dropped it,"
        " at the first recorded step of a branch that is itself a sum, and where other modules were"
        " called than at the last recorded step",
        combine="root mean square",
    ),
)

FORWARD_NORMS: Table = (
    Column("branch_forward_norm", "float32", "activation", "||F(x)|| as read in the forward"),
    Column("shortcut_forward_norm", "float32", "activation", "||S(x)|| as read in the forward"),
)
"""Readings of a shortcut of which only the ratio is kept, `branch_ratio`."""

SHORTCUT_READINGS: Table = (
    Column("step", "int64", "", "see STEPS"),
    Column("shortcut", "int32", "", "see SHORTCUTS"),
    *SHORTCUT_METRICS,
)

DERIVED_METRICS: Table = (
    Column(
        "update_ratio",
        "float64",
        "",
        "how far one step moved the layer's weights, as a share of their size: update_norm /"
        " weight_norm; inf where they were all 0",
        label="update speed",
    ),
    Column(
        "relative_signal",
        "float64",
        "",
        "signal_norm over the output layer's, the last one with a signal at the step: unchanged by"
        " any scaling of the loss; NaN where that is 0 or not finite",
    ),
)
"""What follows from a layer's readings, in `Run.frame()` and wherever metrics are shown."""

FRAME: Table = (
    LAYER_READINGS[0],
    LAYER_READINGS[1],
    *LAYERS[1:-1],
    *LAYER_METRICS,
    *DERIVED_METRICS,
)
"""`Run.frame()` and the CSV: the layer readings, the layers' names, and two derived columns."""

TABLES: dict[str, Table] = {
    "layers": LAYER_READINGS,
    "shortcuts": SHORTCUT_READINGS,
    "steps": STEPS,
}
"""Folder of a run -> the table whose part files it holds."""

VERDICTS = (
    "vanishing",
    "exploding",
    "vanishing-through-time",
    "exploding-through-time",
    "dead",
    "disconnected",
    "not-updated",
    "accumulated",
    "collapsed",
    "saturated",
    "attention-logits",
    "scaled-clipping",
    "output",
    "experts",
    "tiny-batch",
    "batchnorm-eval",
    "dropout",
    "unstable",
    "shattered",
    "shortcut-dominated",
    "reparameterised",
    "update-speed",
    "no-progress",
    "healthy",
)

RECORDED_VERDICTS = tuple(verdict for verdict in VERDICTS if verdict != "shattered")
"""Verdicts that readings can give; the other needs a probe, `gradscope.shattering`."""
