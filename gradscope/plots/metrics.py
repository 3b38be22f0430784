"""The quantities that the figures can show, each with its words for a student."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gradscope.errors import GradscopeError


@dataclass(frozen=True)
class Metric:
    """A quantity of a layer at a step.

    Parameters
    ----------
    name : str
        What the program calls it: a column, or `update_ratio`.
    label, unit, meaning : str
    relative : bool
        Drawn as a multiple of the output layer's, which no scaling of the loss changes.
    layers : {"weights", "activations"}
        Where it is worth looking at.
    log : bool
    """

    name: str
    label: str
    unit: str
    meaning: str
    relative: bool = False
    layers: Literal["weights", "activations"] = "weights"
    log: bool = True

    @property
    def definition(self) -> str:
        """What it is, and its unit, for a hover."""
        return f"{self.meaning} Unit: {self.unit or 'none, a ratio'}."

    @property
    def axis_title(self) -> str:
        """Words for the axis."""
        unit = "÷ output layer" if self.relative else f"({self.unit})" if self.unit else ""
        return f"{self.label} {unit}".strip()


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            "signal_norm",
            "gradient signal",
            "loss/activation",
            "Size (L2 norm) of the gradient of the loss with respect to the layer's output:"
            " what backpropagation hands to the layer.",
            relative=True,
        ),
        Metric(
            "grad_norm",
            "weight gradient",
            "loss/weight",
            "Size (L2 norm) of the gradient of the loss with respect to the layer's weights.",
            relative=True,
        ),
        Metric(
            "update_ratio",
            "update speed",
            "",
            "How far one step moved the layer's weights, as a share of their size:"
            " |change| ÷ |weights|.",
        ),
        Metric("weight_norm", "weight norm", "weight", "Size (L2 norm) of the layer's weights."),
        Metric(
            "activation_std",
            "activation spread",
            "activation",
            "Standard deviation of the layer's output: near 0, all inputs look alike to it.",
        ),
        Metric(
            "zero_fraction",
            "zeros",
            "share",
            "Share of an activation's outputs that are exactly 0.",
            layers="activations",
            log=False,
        ),
        Metric(
            "saturated_fraction",
            "saturation",
            "share",
            "Share of an activation's units on the flat part of its curve,"
            " where hardly any gradient passes.",
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
