"""What a layer does, told from its kind, and how steep an activation function can be.

A kind is the class name of a module (`LeakyReLU`), the name of a function (`leaky_relu`) or of the
autograd node that it left (`LeakyReluBackward0`): all three are the same kind here.
"""

from __future__ import annotations

import re

BOUNDS: dict[str, float] = {
    "celu": 1.0,
    "elu": 1.0,
    "gelu": 1.1289,
    "hardshrink": 1.0,
    "hardsigmoid": 1 / 6,
    "hardswish": 1.5,
    "hardtanh": 1.0,
    "leakyrelu": 1.0,
    "logsigmoid": 1.0,
    "mish": 1.0885,
    "prelu": 1.0,
    "relu": 1.0,
    "relu6": 1.0,
    "selu": 1.7581,
    "sigmoid": 0.25,
    "silu": 1.0998,
    "softplus": 1.0,
    "softshrink": 1.0,
    "softsign": 1.0,
    "tanh": 1.0,
    "tanhshrink": 1.0,
    "threshold": 1.0,
}
"""Kind of activation -> the largest |phi'| it can have with its default settings.

By calculus from the definitions in torch's documentation; of GELU, SiLU and Mish the maximum is
found numerically, SELU's is scale * alpha, from the left at 0.
"""

BOTH_SIDES = frozenset({"hardsigmoid", "hardtanh", "sigmoid", "softsign", "tanh"})
"""Kinds that flatten out on both sides: only these saturate, the others are off on one side."""

GATES = frozenset({"hardsigmoid", "sigmoid"})
"""Kinds that gates are made of."""

RECURRENT = frozenset({"gru", "grucell", "lstm", "lstmcell", "rnn", "rnncell"})
"""Kinds of layers through which the gradient goes from time step to time step."""

_ACTIVATION = re.compile(
    r"(activation|relu\d?|gelu|silu|swish|swiglu|mish|sigmoid|tanh|softplus|softsign|elu"
    r"|softmax|threshold|shrink|sine?|snake)$"
)
_NORMALISATION = re.compile(r"norm(\dd)?$")
_LINEAR = re.compile(r"linear$|^(lazy)?conv(transpose)?\dd$")


def canonical(kind: str) -> str:
    """Return the one spelling of `kind` that BOUNDS uses: `LeakyReluBackward0` -> `leakyrelu`."""
    return re.sub(r"backward\d*$", "", kind.lower()).replace("_", "")


def is_linear(kind: str) -> bool:
    """Whether a layer of this kind is known to compute W x + b, and no more."""
    return _LINEAR.search(canonical(kind)) is not None


def group(kind: str, weights: bool) -> str:
    """Return what a layer does to the gradient.

    Parameters
    ----------
    kind : str
    weights : bool
        Whether the layer has a weight matrix or kernel.

    Returns
    -------
    str
        `weight`, `activation`, `normalisation` or `other`.
    """
    name = canonical(kind)
    if _NORMALISATION.search(name):
        return "normalisation"
    if weights:
        return "weight"
    return "activation" if name in BOUNDS or _ACTIVATION.search(name) else "other"
