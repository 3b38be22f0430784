"""A canary: what this torch calls the nodes that we tell operations by, and what they save.

Nobody promises these names. Where a release changes one, the test of that operation says which;
`autograd/data_flow.py`, `sums.py`, `residual.py` and `capture/functions.py` then have to learn it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import gradscope
from gradscope.autograd import data_flow, residual
from gradscope.capture import functions

torch.manual_seed(0)


def leaf(*shape: int) -> Tensor:
    return (torch.rand(*shape) * 0.5 + 0.2).requires_grad_()


V, M, B = leaf(3), leaf(3, 3), leaf(2, 3, 3)
I1, I2, I3 = leaf(1, 2, 4), leaf(1, 2, 4, 4), leaf(1, 2, 4, 4, 4)
INDEX = torch.tensor([0, 2])
WINDOW = torch.tensor([[0, 1, 2]])


MADE: dict[str, Callable[[], Tensor]] = {
    # sums and what they are made of
    "Add": lambda: V + V,
    "Sub": lambda: V - V,
    "Rsub": lambda: torch.rsub(V, V),
    "Mul": lambda: V * V,
    "Div": lambda: V / V,
    "Neg": lambda: -V,
    "Lerp": lambda: torch.lerp(V, V, V),
    "Addcmul": lambda: torch.addcmul(V, V, V),
    "Addcdiv": lambda: torch.addcdiv(V, V, V),
    "Pow": lambda: V**2,
    "Abs": lambda: V.abs(),
    "LinalgVectorNorm": lambda: torch.linalg.vector_norm(V),
    "Cat": lambda: torch.cat([V, V]),
    "Stack": lambda: torch.stack([V, V]),
    "Sum": lambda: M.sum(0),
    "Mean": lambda: M.mean(0),
    "CopySlices": lambda: _added_in_place(),
    "IndexAdd": lambda: M.index_add(0, INDEX, leaf(2, 3)),
    "IndexPut": lambda: M.index_put((INDEX,), leaf(2, 3)),
    "ScatterAdd": lambda: M.scatter_add(0, WINDOW, leaf(1, 3)),
    "MaskedScatter": lambda: V.masked_scatter(torch.tensor([True, False, True]), V),
    "MaskedFill": lambda: V.masked_fill(torch.tensor([True, False, True]), 0.0),
    "Where": lambda: torch.where(torch.tensor([True, False, True]), V, V),
    "Maximum": lambda: torch.maximum(V, V),
    "Minimum": lambda: torch.minimum(V, V),
    "Clamp": lambda: V.clamp(0, 1),
    "PreluKernel": lambda: F.prelu(V, leaf(1)),
    # products with weights
    "Mm": lambda: M @ M,
    "Bmm": lambda: torch.bmm(B, B),
    "Mv": lambda: torch.mv(M, V),
    "Dot": lambda: torch.dot(V, V),
    "Addmm": lambda: torch.addmm(M, M, M),
    "Addbmm": lambda: torch.addbmm(M, B, B),
    "Baddbmm": lambda: torch.baddbmm(B, B, B),
    "Addmv": lambda: torch.addmv(V, M, V),
    "Addr": lambda: torch.addr(M, V, V),
    "Convolution": lambda: F.conv2d(I2, leaf(2, 2, 3, 3)),
    # norms
    "NativeBatchNorm": lambda: F.batch_norm(I2, torch.zeros(2), torch.ones(2), training=True),
    "NativeLayerNorm": lambda: F.layer_norm(M, (3,)),
    "NativeGroupNorm": lambda: F.group_norm(I2, 2),
    # what mixes, squashes or picks
    "Softmax": lambda: M.softmax(1),
    "LogSoftmax": lambda: M.log_softmax(1),
    "SafeSoftmax": lambda: torch._safe_softmax(M, 1),
    "ScaledDotProductFlashAttentionForCpu": lambda: F.scaled_dot_product_attention(
        leaf(1, 1, 4, 8), leaf(1, 1, 4, 8), leaf(1, 1, 4, 8)
    ),
    "Cumsum": lambda: M.cumsum(0),
    "FftR2C": lambda: torch.fft.rfft(V),
    "FftC2C": lambda: torch.fft.fft(torch.complex(V, V)),
    "FftC2R": lambda: torch.fft.irfft(torch.complex(V, V)),
    "Sigmoid": lambda: V.sigmoid(),
    "Hardsigmoid": lambda: F.hardsigmoid(V),
    "Embedding": lambda: F.embedding(INDEX, M),
    "EmbeddingBag": lambda: F.embedding_bag(WINDOW, M),
    "Index": lambda: M[INDEX],
    "IndexSelect": lambda: M.index_select(0, INDEX),
    "Gather": lambda: M.gather(0, WINDOW),
    # views and parts
    "Slice": lambda: V[:2],
    "Split": lambda: V.split(2)[0],
    "SplitWithSizes": lambda: V.split([1, 2])[0],
    "UnsafeSplit": lambda: V.unsafe_split(2)[0],
    "UnsafeSplitWithSizes": lambda: V.unsafe_split_with_sizes([1, 2])[0],
    "Select": lambda: M[0],
    "Unbind": lambda: M.unbind(0)[0],
    "View": lambda: M.view(9),
    "UnsafeView": lambda: torch.ops.aten._unsafe_view(M, (9,)),
    "ReshapeAlias": lambda: torch.ops.aten._reshape_alias(M, (9,), (1,)),
    "T": lambda: M.t(),
    "Transpose": lambda: B.transpose(0, 1),
    "Permute": lambda: B.permute(2, 0, 1),
    "Expand": lambda: V.expand(2, 3),
    "Repeat": lambda: V.repeat(2),
    "Squeeze": lambda: leaf(1, 3).squeeze(),
    "Unsqueeze": lambda: V.unsqueeze(0),
    "Clone": lambda: V.clone(),
    "ToCopy": lambda: V.to(torch.float64),
    "AsStrided": lambda: M.as_strided((2, 2), (1, 1)),
    "Alias": lambda: torch.ops.aten.alias(V),
    "Roll": lambda: V.roll(1),
    "Flip": lambda: V.flip(0),
    # resizing
    "NativeDropout": lambda: torch.native_dropout(V, 0.5, True)[0],
    "ConstantPadNd": lambda: F.pad(V, (1, 1)),
    "ReflectionPad1D": lambda: F.pad(I1, (1, 1), mode="reflect"),
    "ReflectionPad2D": lambda: F.pad(I2, (1, 1, 1, 1), mode="reflect"),
    "ReplicationPad1D": lambda: F.pad(I1, (1, 1), mode="replicate"),
    "ReplicationPad2D": lambda: F.pad(I2, (1, 1, 1, 1), mode="replicate"),
    "AvgPool2D": lambda: F.avg_pool2d(I2, 2),
    "AvgPool3D": lambda: F.avg_pool3d(I3, 2),
    "AdaptiveAvgPool2D": lambda: F.adaptive_avg_pool2d(I2, 2),
    "AdaptiveAvgPool3D": lambda: F.adaptive_avg_pool3d(I3, 2),
    "MaxPool2DWithIndices": lambda: F.max_pool2d_with_indices(I2, 2)[0],
    "UpsampleNearest1D": lambda: F.interpolate(I1, scale_factor=2),
    "UpsampleNearest2D": lambda: F.interpolate(I2, scale_factor=2),
    "UpsampleNearest3D": lambda: F.interpolate(I3, scale_factor=2),
    "UpsampleLinear1D": lambda: F.interpolate(I1, scale_factor=2, mode="linear"),
    "UpsampleBilinear2D": lambda: F.interpolate(I2, scale_factor=2, mode="bilinear"),
    "UpsampleBicubic2D": lambda: F.interpolate(I2, scale_factor=2, mode="bicubic"),
    "UpsampleTrilinear3D": lambda: F.interpolate(I3, scale_factor=2, mode="trilinear"),
    "PixelShuffle": lambda: F.pixel_shuffle(leaf(1, 4, 2, 2), 2),
    "PixelUnshuffle": lambda: F.pixel_unshuffle(I2, 2),
    # activations
    "Celu": lambda: F.celu(V),
    "Elu": lambda: F.elu(V),
    "Gelu": lambda: F.gelu(V),
    "Hardshrink": lambda: F.hardshrink(V),
    "Hardswish": lambda: F.hardswish(V),
    "Hardtanh": lambda: F.hardtanh(V),
    "LeakyRelu": lambda: F.leaky_relu(V),
    "LogSigmoid": lambda: F.logsigmoid(V),
    "Mish": lambda: F.mish(V),
    "Relu": lambda: F.relu(V),
    "Silu": lambda: F.silu(V),
    "Softplus": lambda: F.softplus(V),
    "Softshrink": lambda: F.softshrink(V),
    "Tanh": lambda: V.tanh(),
}
"""Stem of a node's name -> an operation that leaves such a node on a CPU."""

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


def _added_in_place() -> Tensor:
    x = M.clone()
    x[:2] += 1.0
    return x


def stem_of(tensor: Tensor) -> str:
    return re.sub(r"Backward\d*$", "", type(tensor.grad_fn).__name__)


@pytest.mark.parametrize("stem", MADE)
def test_a_node_is_called_as_we_know_it(stem):
    name = stem_of(MADE[stem]())
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
