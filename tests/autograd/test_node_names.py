"""A canary: what this torch calls the nodes that we tell operations by, and what they save.

Nobody promises these names. Where a release changes one, the test of that operation says which;
`autograd/data_flow.py`, `sums.py`, `residual.py` and `capture/reading/functions.py` then
have to learn it.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import gradscope
from gradscope.autograd import data_flow, residual
from gradscope.autograd.torch_internals import node_names
from gradscope.capture.reading import functions

MADE = node_names.examples()

ELSEWHERE = data_flow.node_kinds(
    "Linear MkldnnLinear Bilinear ConvolutionOverrideable MkldnnConvolution"
    " CudnnConvolution SlowConv2D Trilinear ConvDepthwise2D ConvDepthwise3D"
    " SlowConvDilated2D SlowConvDilated3D ThnnConv2D ScaledMm GroupedMm"
    " ScaledGroupedMm MkldnnRnnLayer CudnnRnn MiopenRnn CudnnBatchNorm MiopenBatchNorm"
    " BatchNormImpl FusedRmsNorm RmsNorm FusedDropout CopyBackwards"
    " MkldnnAdaptiveAvgPool2D AvgPool1D ScaledDotProductFlashAttention"
    " ScaledDotProductEfficientAttention ScaledDotProductCudnnAttention"
    " ScaledDotProductFusedAttentionOverrideable Norm Reshape Softsign AccumulateGrad"
)
"""Names of other devices, dtypes, builds or releases, and of what leaves no node of its own."""

SAVED = {
    "Add": ["alpha"],
    "Sub": ["alpha"],
    "Rsub": ["alpha"],
    "Mul": ["self", "other"],
    "Div": ["self", "other"],
    "Addmm": ["beta"],
    "Addbmm": ["beta"],
    "Baddbmm": ["beta"],
    "Addmv": ["beta"],
    "Cat": ["dim"],
    "Stack": ["dim"],
    "Sum": ["dim"],
    "Mean": ["dim"],
    "Celu": ["self", "alpha"],
    "Elu": ["self", "alpha", "scale"],
    "Gelu": ["self", "approximate"],
    "Hardshrink": ["self", "lambd"],
    "Hardsigmoid": ["self"],
    "Hardswish": ["self"],
    "Hardtanh": ["self", "min_val", "max_val"],
    "LeakyRelu": ["self", "negative_slope"],
    "LogSigmoid": ["self"],
    "Mish": ["self"],
    "Relu": ["result"],
    "Sigmoid": ["result"],
    "Silu": ["self"],
    "Softplus": ["self", "beta", "threshold"],
    "Softshrink": ["self", "lambd"],
    "Tanh": ["result"],
}
"""Stem -> what we read of such a node."""


@pytest.mark.parametrize("stem", MADE)
def test_a_node_is_called_as_we_know_it(stem):
    name = node_names.stem_of(MADE[stem]())
    assert name == stem, f"torch {torch.__version__} calls {stem}Backward0 now {name}Backward0"


@pytest.mark.parametrize("stem", SAVED)
def test_a_node_saves_what_we_read(stem):
    node = MADE[stem]().grad_fn
    gone = [name for name in SAVED[stem] if not hasattr(node, f"_saved_{name}")]
    assert gone == [], f"torch {torch.__version__}: {type(node).__name__} saves no {gone} any more"


def known_stems() -> set[str]:
    """Every name that the rules speak of."""
    sets = [v for m in (data_flow, residual) for v in vars(m).values() if isinstance(v, frozenset)]
    text = "".join(
        (Path(gradscope.__file__).parent / "autograd" / f"{module}.py").read_text()
        for module in ("data_flow", "sums", "residual", "joins")
    )
    compared = re.findall(r"stems?(?:\[[^]]*\])? (?:==|!=|in|not in) (\([^)]*\)|\"\w+\")", text)
    named = {name for group in compared for name in re.findall(r"\"(\w+)\"", group)}
    return set().union(*sets) | named | set(functions._MODULES)


def test_the_canary_watches_every_name_that_the_rules_speak_of():
    assert known_stems() - set(MADE) - ELSEWHERE == set()
