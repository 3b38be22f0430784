"""What torch calls the nodes that operations are told by: known here, and asked of this torch.

Nobody promises these names. A graph with a node that this torch calls otherwise is not searched:
what is found in it, or is not, could be wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from gradscope.autograd.torch_internals import nodes
from gradscope.autograd.torch_internals.interfaces import Unavailable
from gradscope.autograd.torch_internals.modes import apart_from_modes

NAMES = "names of nodes"
"""What they are called among the interfaces."""


def examples() -> dict[str, Callable[[], Tensor]]:
    """Return, by the stem of a node's name, an operation that leaves such a node on a CPU."""
    v, m, b = leaf(3), leaf(3, 3), leaf(2, 3, 3)
    x1, x2, x3 = leaf(1, 2, 4), leaf(1, 2, 4, 4), leaf(1, 2, 4, 4, 4)
    index = torch.tensor([0, 2], device="cpu")
    window = torch.tensor([[0, 1, 2]], device="cpu")
    mask = torch.tensor([True, False, True], device="cpu")
    return {
        # sums and what they are made of
        "Add": lambda: v + v,
        "Sub": lambda: v - v,
        "Rsub": lambda: torch.rsub(v, v),
        "Mul": lambda: v * v,
        "Div": lambda: v / v,
        "Neg": lambda: -v,
        "Lerp": lambda: torch.lerp(v, v, v),
        "Addcmul": lambda: torch.addcmul(v, v, v),
        "Addcdiv": lambda: torch.addcdiv(v, v, v),
        "Pow": lambda: v**2,
        "Abs": lambda: v.abs(),
        "LinalgVectorNorm": lambda: torch.linalg.vector_norm(v),
        "Cat": lambda: torch.cat([v, v]),
        "Stack": lambda: torch.stack([v, v]),
        "Sum": lambda: m.sum(0),
        "Mean": lambda: m.mean(0),
        "CopySlices": lambda: _added_in_place(m),
        "IndexAdd": lambda: m.index_add(0, index, leaf(2, 3)),
        "IndexPut": lambda: m.index_put((index,), leaf(2, 3)),
        "ScatterAdd": lambda: m.scatter_add(0, window, leaf(1, 3)),
        "MaskedScatter": lambda: v.masked_scatter(mask, v),
        "MaskedFill": lambda: v.masked_fill(mask, 0.0),
        "Where": lambda: torch.where(mask, v, v),
        "Maximum": lambda: torch.maximum(v, v),
        "Minimum": lambda: torch.minimum(v, v),
        "Clamp": lambda: v.clamp(0, 1),
        "PreluKernel": lambda: F.prelu(v, leaf(1)),
        # products with weights
        "Mm": lambda: m @ m,
        "Bmm": lambda: torch.bmm(b, b),
        "Mv": lambda: torch.mv(m, v),
        "Dot": lambda: torch.dot(v, v),
        "Addmm": lambda: torch.addmm(m, m, m),
        "Addbmm": lambda: torch.addbmm(m, b, b),
        "Baddbmm": lambda: torch.baddbmm(b, b, b),
        "Addmv": lambda: torch.addmv(v, m, v),
        "Addr": lambda: torch.addr(m, v, v),
        "Convolution": lambda: F.conv2d(x2, leaf(2, 2, 3, 3)),
        # norms
        "NativeBatchNorm": lambda: F.batch_norm(x2, None, None, training=True),
        "NativeLayerNorm": lambda: F.layer_norm(m, (3,)),
        "NativeGroupNorm": lambda: F.group_norm(x2, 2),
        # what mixes, squashes or picks
        "Softmax": lambda: m.softmax(1),
        "LogSoftmax": lambda: m.log_softmax(1),
        "SafeSoftmax": lambda: torch._safe_softmax(m, 1),
        "ScaledDotProductFlashAttentionForCpu": lambda: F.scaled_dot_product_attention(
            leaf(1, 1, 4, 8), leaf(1, 1, 4, 8), leaf(1, 1, 4, 8)
        ),
        "Cumsum": lambda: m.cumsum(0),
        "FftR2C": lambda: torch.fft.rfft(v),
        "FftC2C": lambda: torch.fft.fft(torch.complex(v, v)),
        "FftC2R": lambda: torch.fft.irfft(torch.complex(v, v)),
        "Sigmoid": lambda: v.sigmoid(),
        "Hardsigmoid": lambda: F.hardsigmoid(v),
        "Embedding": lambda: F.embedding(index, m),
        "EmbeddingBag": lambda: F.embedding_bag(window, m),
        "Index": lambda: m[index],
        "IndexSelect": lambda: m.index_select(0, index),
        "Gather": lambda: m.gather(0, window),
        # views and parts
        "Slice": lambda: v[:2],
        "Split": lambda: torch.split(v, 2)[0],
        "SplitWithSizes": lambda: torch.split(v, [1, 2])[0],
        "UnsafeSplit": lambda: v.unsafe_split(2)[0],
        "UnsafeSplitWithSizes": lambda: v.unsafe_split_with_sizes([1, 2])[0],
        "Select": lambda: m[0],
        "Unbind": lambda: m.unbind(0)[0],
        "View": lambda: m.view(9),
        "UnsafeView": lambda: torch.ops.aten._unsafe_view(m, (9,)),
        "ReshapeAlias": lambda: torch.ops.aten._reshape_alias(m, (9,), (1,)),
        "T": lambda: m.t(),
        "Transpose": lambda: b.transpose(0, 1),
        "Permute": lambda: b.permute(2, 0, 1),
        "Expand": lambda: v.expand(2, 3),
        "Repeat": lambda: v.repeat(2),
        "Squeeze": lambda: leaf(1, 3).squeeze(),
        "Unsqueeze": lambda: v.unsqueeze(0),
        "Clone": lambda: v.clone(),
        "ToCopy": lambda: v.to(torch.float64),
        "AsStrided": lambda: m.as_strided((2, 2), (1, 1)),
        "Alias": lambda: torch.ops.aten.alias(v),
        "Roll": lambda: v.roll(1),
        "Flip": lambda: v.flip(0),
        # resizing
        "NativeDropout": lambda: torch.native_dropout(v, 0.5, False)[0],
        "ConstantPadNd": lambda: F.pad(v, (1, 1)),
        "ReflectionPad1D": lambda: F.pad(x1, (1, 1), mode="reflect"),
        "ReflectionPad2D": lambda: F.pad(x2, (1, 1, 1, 1), mode="reflect"),
        "ReplicationPad1D": lambda: F.pad(x1, (1, 1), mode="replicate"),
        "ReplicationPad2D": lambda: F.pad(x2, (1, 1, 1, 1), mode="replicate"),
        "AvgPool2D": lambda: F.avg_pool2d(x2, 2),
        "AvgPool3D": lambda: F.avg_pool3d(x3, 2),
        "AdaptiveAvgPool2D": lambda: F.adaptive_avg_pool2d(x2, 2),
        "AdaptiveAvgPool3D": lambda: F.adaptive_avg_pool3d(x3, 2),
        "MaxPool2DWithIndices": lambda: F.max_pool2d(x2, 2),
        "UpsampleNearest1D": lambda: F.interpolate(x1, scale_factor=2),
        "UpsampleNearest2D": lambda: F.interpolate(x2, scale_factor=2),
        "UpsampleNearest3D": lambda: F.interpolate(x3, scale_factor=2),
        "UpsampleLinear1D": lambda: F.interpolate(x1, scale_factor=2, mode="linear"),
        "UpsampleBilinear2D": lambda: F.interpolate(x2, scale_factor=2, mode="bilinear"),
        "UpsampleBicubic2D": lambda: F.interpolate(x2, scale_factor=2, mode="bicubic"),
        "UpsampleTrilinear3D": lambda: F.interpolate(x3, scale_factor=2, mode="trilinear"),
        "PixelShuffle": lambda: F.pixel_shuffle(leaf(1, 4, 2, 2), 2),
        "PixelUnshuffle": lambda: F.pixel_unshuffle(x2, 2),
        # activations
        "Celu": lambda: F.celu(v),
        "Elu": lambda: F.elu(v),
        "Gelu": lambda: F.gelu(v),
        "Hardshrink": lambda: F.hardshrink(v),
        "Hardswish": lambda: F.hardswish(v),
        "Hardtanh": lambda: F.hardtanh(v),
        "LeakyRelu": lambda: F.leaky_relu(v),
        "LogSigmoid": lambda: F.logsigmoid(v),
        "Mish": lambda: F.mish(v),
        "Relu": lambda: F.relu(v),
        "Silu": lambda: F.silu(v),
        "Softplus": lambda: F.softplus(v),
        "Softshrink": lambda: F.softshrink(v),
        "Tanh": lambda: v.tanh(),
    }


def leaf(*shape: int) -> Tensor:
    """Return a tensor of numbers between 0.2 and 0.7 that requires grad, without a random one."""
    count = torch.Size(shape).numel()
    numbers = torch.linspace(0.2, 0.7, count, dtype=torch.float32, device="cpu")
    return numbers.reshape(shape).requires_grad_()


def _added_in_place(m: Tensor) -> Tensor:
    x = m.clone()
    x[:2] += 1.0
    return x


def stem_of(tensor: Tensor) -> str:
    """Return what torch calls the node that made a tensor, without `Backward` and its number."""
    assert tensor.grad_fn is not None
    return re.sub(r"Backward\d*$", "", nodes.kind_name(type(tensor.grad_fn)))


@cache
def strange_names() -> dict[str, str]:
    """Return the stem that this torch gives to a node -> the one known, where they differ."""
    return apart_from_modes(_strange_names)


def _strange_names() -> dict[str, str]:
    strange = {}
    with torch.inference_mode(False), torch.enable_grad():
        for known, make in examples().items():
            with suppress(Exception):  # an operation that this torch does not have
                if (found := stem_of(make())) != known:
                    strange[found] = known
    return strange


def check_names(names: Iterable[str]) -> None:
    """Refuse a graph with nodes of these names where they are not what they are known by.

    Raises
    ------
    Unavailable
    """
    strange = strange_names()
    if strange and any(re.sub(r"Backward\d*$", "", name) in strange for name in set(names)):
        raise Unavailable(NAMES)
