"""The data contract: every table that gradscope writes or returns, column by column.

A run is a folder::

    runs/NAME/run.json                  what was watched: layers, shortcuts, settings, state
    runs/NAME/layers/part-*.parquet     LAYER_READINGS, every layer at every recorded step
    runs/NAME/shortcuts/part-*.parquet  SHORTCUT_READINGS, every shortcut at every recorded step
    runs/NAME/steps/part-*.parquet      STEPS, one row a recorded step

Whoever reads or writes a run imports its names and meanings from here and nowhere else. A reading
that could not be taken is NaN; zero, infinity and NaN that were measured are data and stay as they
are. `FORMAT_VERSION` rises when a reader of the previous version would misread a run.
"""

from __future__ import annotations

from dataclasses import dataclass

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Column:
    """One column of a table: its name, NumPy dtype, unit, and meaning in one sentence."""

    name: str
    dtype: str
    unit: str
    meaning: str


Table = tuple[Column, ...]


def names(table: Table) -> list[str]:
    """Return the column names of `table`, in order."""
    return [column.name for column in table]


# --- what was watched: kept in run.json, returned as Run.layers and Run.shortcuts -------------

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
)

FUNCTION = "function"
"""Key of a layer in run.json, beside LAYERS: class name of the activation that a function called on
its output computes, `ReLU` for F.relu; missing where there is none. See `Run.functions`."""

FORMS = ("identity", "projection", "scaled", "gated", "nested", "concat", "partial")
"""Kinds of residual join. `concat` and `partial` are listed but their gradient is not split."""

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

# --- what was read: one row a step, a (step, layer) or a (step, shortcut) ----------------------

STEPS: Table = (
    Column("step", "int64", "", "optimizer steps taken before this one, from 0"),
    Column("time", "float64", "s", "seconds from watch() to the end of the step"),
    Column("skipped", "bool", "", "the loss scaler found inf or NaN and skipped the update"),
    Column(
        "grad_norm",
        "float64",
        "loss/weight",
        "L2 norm over all parameters' gradients as accumulated, before clipping, unscaled;"
        " tied weights count once",
    ),
    Column("clipped_grad_norm", "float64", "loss/weight", "the same as the optimizer got it"),
    Column("loss_scale", "float64", "", "factor of the loss scaler, 1 without one"),
)

LAYER_METRICS: Table = (
    Column(
        "grad_norm",
        "float32",
        "loss/weight",
        "L2 norm of the layer's own parameter gradients as accumulated: before clipping, unscaled",
    ),
    Column("clipped_grad_norm", "float32", "loss/weight", "the same as the optimizer got it"),
    Column("weight_norm", "float32", "weight", "L2 norm of the layer's parameters before the step"),
    Column(
        "update_norm",
        "float32",
        "weight",
        "L2 norm of the true change of the parameters, after minus before the optimizer's step",
    ),
    Column("signal_norm", "float32", "loss/activation", "L2 norm of dL/d(output) of the layer"),
    Column(
        "input_signal_norm",
        "float32",
        "loss/activation",
        "L2 norm of dL/d(input) through this layer alone",
    ),
    Column("activation_norm", "float32", "activation", "L2 norm of the layer's output"),
    Column("activation_mean", "float32", "activation", "mean of the layer's output"),
    Column(
        "activation_std",
        "float32",
        "activation",
        "standard deviation of the layer's output over all its elements (population)",
    ),
    Column(
        "derivative_mean",
        "float32",
        "",
        "mean |phi'(z)| of an activation: the layer itself, or functions such as F.relu that were"
        " called on its output",
    ),
    Column("zero_fraction", "float32", "", "share of that activation's outputs that are exactly 0"),
    Column(
        "saturated_fraction",
        "float32",
        "",
        "share of that activation's elements with |phi'| below a tenth of its maximum",
    ),
    Column(
        "cut_signal_norm",
        "float32",
        "loss/activation",
        "signal_norm with the gradient through the cut edges set to zero, forward unchanged",
    ),
)
"""Readings of a layer. float32 on disk, float64 where the model computes in float64."""

LAYER_READINGS: Table = (
    Column("step", "int64", "", "see STEPS"),
    Column("layer", "int32", "", "see LAYERS"),
    *LAYER_METRICS,
)

SHORTCUT_METRICS: Table = (
    Column(
        "total_norm", "float32", "loss/activation", "L2 norm of the gradient at the block's input"
    ),
    Column("shortcut_norm", "float32", "loss/activation", "L2 norm of its part via the shortcut"),
    Column("branch_norm", "float32", "loss/activation", "L2 norm of its part via the branch"),
    Column(
        "other_norm",
        "float32",
        "loss/activation",
        "L2 norm of the rest: over edges that belong to neither, such as a gate's, and what a loss"
        " takes directly of a block's input that the model returns, too; 0 without any",
    ),
    Column("cosine", "float32", "", "cosine between the shortcut's and the branch's part"),
    Column(
        "energy_share",
        "float32",
        "",
        "shortcut_norm^2 / (shortcut_norm^2 + branch_norm^2); norms of parts do not add up",
    ),
    Column(
        "branch_ratio",
        "float32",
        "",
        "forward ||F(x)|| / ||S(x)||, branch over shortcut; NaN where the sum itself scales a term"
        " (lerp, addcmul, alpha), no module takes or returns one, or checkpointing has dropped it,"
        " and at the first recorded step of a branch that is itself a sum",
    ),
)

SHORTCUT_READINGS: Table = (
    Column("step", "int64", "", "see STEPS"),
    Column("shortcut", "int32", "", "see SHORTCUTS"),
    *SHORTCUT_METRICS,
)

FRAME: Table = (
    LAYER_READINGS[0],
    LAYER_READINGS[1],
    *LAYERS[1:],
    *LAYER_METRICS,
    Column("update_ratio", "float64", "", "update_norm / weight_norm: the layer's update speed"),
    Column(
        "relative_signal",
        "float64",
        "",
        "signal_norm over the output layer's: unchanged by any scaling of the loss",
    ),
)
"""`Run.frame()` and the CSV: the layer readings, the layers' names, and two derived columns."""

PARTS: dict[str, Table] = {
    "layers": LAYER_READINGS,
    "shortcuts": SHORTCUT_READINGS,
    "steps": STEPS,
}
"""Folder of a run -> the table whose part files it holds."""

VERDICTS = (
    "vanishing",
    "exploding",
    "dead",
    "disconnected",
    "collapsed",
    "saturated",
    "shattered",
    "shortcut-dominated",
    "reparameterised",
    "update-speed",
    "healthy",
)

RECORDED_VERDICTS = tuple(verdict for verdict in VERDICTS if verdict != "shattered")
"""Verdicts that readings can give; the other needs a probe, `gradscope.shattering`."""
