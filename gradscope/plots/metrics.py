"""The quantities that the figures can show, and how each is drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gradscope import schema
from gradscope.errors import GradscopeError

_COLUMNS = schema.by_name(schema.LAYER_METRICS, schema.DERIVED_METRICS)


@dataclass(frozen=True)
class Metric:
    """A quantity of a layer at a step: how it is drawn; `gradscope.schema` says what it is.

    Parameters
    ----------
    name : str
        A column of `schema.LAYER_METRICS` or `schema.DERIVED_METRICS`.
    question : str
        Title of a figure of all layers.
    relative : bool
        Drawn as a multiple of the last hidden layer's, which no scaling of the loss changes.
    layers : {"weights", "activations"}
        Where it is worth looking at.
    log : bool
        On a logarithmic scale.
    """

    name: str
    question: str = ""
    relative: bool = False
    layers: Literal["weights", "activations"] = "weights"
    log: bool = True

    @property
    def label(self) -> str:
        """What a button calls it."""
        return _COLUMNS[self.name].words

    @property
    def unit(self) -> str:
        """Its unit, empty for a ratio."""
        return _COLUMNS[self.name].unit

    @property
    def sentence(self) -> str:
        """What it is, for a caption; columns that it follows from are told without underscores."""
        meaning = _COLUMNS[self.name].meaning.replace("_", " ")
        return f"{meaning[0].upper()}{meaning[1:]}."

    @property
    def definition(self) -> str:
        """What it is, and its unit, for a hover."""
        return f"{self.sentence} Unit: {self.unit or 'none, a ratio'}."

    @property
    def axis_title(self) -> str:
        """Words for the axis."""
        unit = "÷ last hidden layer" if self.relative else f"({self.unit})" if self.unit else ""
        return f"{self.label} {unit}".strip()


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("signal_norm", "How much gradient reaches each layer?", relative=True),
        Metric("grad_norm", "How large is the gradient of each layer's weights?", relative=True),
        Metric("update_ratio", "How far does one step move each layer's weights?"),
        Metric("weight_norm", "How large are each layer's weights?"),
        Metric("activation_std", "How far do each layer's outputs spread?"),
        Metric(
            "zero_fraction",
            "Which share of an activation's outputs is exactly 0?",
            layers="activations",
            log=False,
        ),
        Metric(
            "saturated_fraction",
            "Which share of an activation's units is saturated?",
            layers="activations",
            log=False,
        ),
    )
}
"""Name -> metric; the first is the one shown first."""


def metric_named(name: str) -> Metric:
    """Return the metric called `name`.

    Raises
    ------
    GradscopeError
        If there is none.
    """
    if name not in METRICS:
        known = ", ".join(METRICS)
        raise GradscopeError(f"no metric is called {name!r}; choose one of {known}")
    return METRICS[name]
