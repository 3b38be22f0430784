"""How data flows through an autograd graph: what is a weight, what carries one, what reaches what.

A value is numbered so that producers come before consumers, and a set of values is an integer with
one bit for each: the highest bit of a set is the value nearest to the outputs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from gradscope.autograd import torch_internals
from gradscope.autograd.graph import Edge, Graph, Origins, Value


def node_kinds(names: str) -> frozenset[str]:
    """Return a set of kinds of nodes, given in one string without `Backward0`."""
    return frozenset(names.split())


PRODUCT = node_kinds(
    "Mm Bmm Mv Dot Addmm Addbmm Baddbmm Addmv Addr Linear MkldnnLinear Bilinear Trilinear"
    " Convolution ConvolutionOverrideable MkldnnConvolution CudnnConvolution SlowConv2D"
    " ConvDepthwise2D ConvDepthwise3D SlowConvDilated2D SlowConvDilated3D ThnnConv2D"
    " ScaledMm GroupedMm ScaledGroupedMm MkldnnRnnLayer CudnnRnn MiopenRnn"
)
"""Operations that mix the elements of one input with the elements of another."""

MIXING = PRODUCT | node_kinds(
    "Softmax LogSoftmax SafeSoftmax ScaledDotProductFlashAttention Cumsum Mean Sum Select Unbind"
    " ScaledDotProductFlashAttentionForCpu ScaledDotProductEfficientAttention"
    " ScaledDotProductCudnnAttention ScaledDotProductFusedAttentionOverrideable"
    " FftC2C FftR2C FftC2R"
)
"""Operations that no shortcut leads through: they mix, reduce, or pick one element of a series."""

LOOKUP = node_kinds("Embedding EmbeddingBag Index IndexSelect Gather")

SQUASHING = node_kinds("Sigmoid Hardsigmoid Softmax")
"""Operations that make gates."""

NORM = node_kinds(
    "NativeBatchNorm CudnnBatchNorm MiopenBatchNorm NativeLayerNorm NativeGroupNorm FusedRmsNorm"
    " RmsNorm BatchNormImpl"
)

ELEMENTWISE = node_kinds(
    "Add Sub Rsub Mul Div Lerp Addcmul Addcdiv Pow PreluKernel Where Maximum Minimum Cat Stack"
    " CopySlices IndexPut IndexAdd ScatterAdd MaskedScatter MaskedFill Clamp Expand"
)
"""A parameter in one of these scales, shifts or joins the data: it is no weight of a branch."""

PARTITION = node_kinds("Slice Split SplitWithSizes UnsafeSplit UnsafeSplitWithSizes Select")
"""Operations that take a part of a tensor."""

LINEAR = (
    PRODUCT
    | NORM
    | node_kinds(
        "Add Sub Rsub Mul Div Neg View UnsafeView ReshapeAlias Reshape T Transpose Permute Expand"
        " Squeeze Unsqueeze Slice Clone ToCopy CopyBackwards AsStrided Alias Cat Stack Sum"
        " Mean NativeDropout FusedDropout ConstantPadNd AvgPool1D AvgPool2D AvgPool3D"
        " MkldnnAdaptiveAvgPool2D AdaptiveAvgPool2D AdaptiveAvgPool3D UpsampleNearest1D"
        " UpsampleNearest2D UpsampleNearest3D UpsampleLinear1D UpsampleBilinear2D"
        " UpsampleBicubic2D UpsampleTrilinear3D PixelShuffle PixelUnshuffle Roll Flip"
        " CopySlices IndexAdd ScatterAdd Lerp"
    )
)
"""Linear in the data once the weights are given; layer norm counts, an unknown operation not."""


class DataFlow:
    """Which values of a graph are data, where they get a weight, and which reach which.

    Attributes
    ----------
    stems : list of str
        Kind of each node without `Backward0`; "" for a custom Function.
    data : list of list of (int, Value)
        Position and value of each input of a node that is data, no parameter and no constant.
    bears, weighs : list of bool
        Whether the output depends on parameters of the operation; `weighs` leaves out norms.
    gates : set of int
        Nodes that make a gate, such as a sigmoid whose output other data is multiplied with.
    sources : int
        Set of the values that come from no other data, such as the first layer's output.
    reach, kept, plain, carry : dict of Value to int
        Set of values that a value comes from: by any way; through sums and norms, not through
        weights or mixing; without an operation that bears parameters; by a way that a shortcut
        could take, not through weights, sums or mixing.
    """

    def __init__(self, graph: Graph, origins: Origins) -> None:
        self.graph = graph
        self.origins = origins
        self.stems = [_stem(graph, node) for node in range(len(graph.nodes))]
        self.order = graph.order()
        self.consumers = graph.consumers()
        self.readers: list[set[int]] = [set() for _ in graph.nodes]
        for (node, _), edges in self.consumers.items():
            self.readers[node].update(reader for reader, _ in edges)
        self._find_parameters()
        self.bears = [self._bears(node) for node in range(len(graph.nodes))]
        self.gates = {
            node
            for node, stem in enumerate(self.stems)
            if stem in SQUASHING and self._scales((node, 0))
        }
        self.weighs = [b and s not in NORM for b, s in zip(self.bears, self.stems, strict=True)]
        self._find_reach()

    def _find_parameters(self) -> None:
        """Tell parameters, and what is computed from parameters alone, from data."""
        calls, index = self.origins.calls, self.graph.index
        made_for = {node for call in calls for node, _ in call.inputs}
        self.handed = {index[node] for node in made_for if node in index}
        computed = {index[node] for call in calls for node in call.computed if node in index}
        self.parameter = [False] * len(self.graph.nodes)
        self.data: list[list[tuple[int, Value]]] = [[] for _ in self.graph.nodes]
        for node in self.order:
            values = self.graph.edges[node]
            if node in computed:
                self.parameter[node] = True
                continue
            self.data[node] = [
                (position, value)
                for position, value in enumerate(values)
                if value[0] >= 0 and not self.parameter[value[0]]
            ]
            self.parameter[node] = not self.data[node] and self._is_parameter(node)
            if self.parameter[node] and node in self.handed and self._is_token(node):
                self.parameter[node] = False

    def _is_parameter(self, node: int) -> bool:
        """Tell whether a node without data is parameters, or has data that needs no gradient."""
        stem, values = self.stems[node], self.graph.edges[node]
        if stem == "AccumulateGrad":
            return self.graph.nodes[node] not in self.graph.inputs
        weights = [value for value in values if value[0] >= 0]
        if not weights or stem in LOOKUP:
            return False
        if len(weights) == len(values):
            return True
        # A tensor without gradient takes part: the model's input, or a mask upon a weight?
        mask = any(self.graph.shape(value) == self.graph.shape((node, 0)) for value in weights)
        return mask and stem not in PRODUCT

    def _is_token(self, node: int) -> bool:
        """Tell whether parameters are data: spread over the batch and handed to a module.

        So are learned latents and queries, unless they are only added to data, like positions.
        """
        if all(self.stems[reader] in ("Add", "Sub") for reader, _ in self.consumers[node, 0]):
            return False
        while self.stems[node] not in ("Expand", "Repeat"):
            if len(self.graph.edges[node]) != 1:
                return False
            node = self.graph.edges[node][0][0]
        return True

    def _bears(self, node: int) -> bool:
        stem, values = self.stems[node], self.graph.edges[node]
        if stem in ELEMENTWISE or stem == "AccumulateGrad":
            return False
        if any(producer >= 0 and self.parameter[producer] for producer, _ in values):
            return True
        if not stem and self.origins.hidden(node):
            return True
        maker = self.origins.maker(node)
        frozen = any(producer < 0 for producer, _ in values)
        owned = maker is not None and maker.owns_parameters and maker.owns_frozen
        return frozen and owned and (stem in PRODUCT or not stem)

    def _scales(self, value: Value) -> bool:
        """Tell whether a value, or one minus it, is multiplied with other data."""
        return any(
            self.stems[node] in ("Mul", "Lerp", "Addcmul")
            if len(self.data[node]) > 1
            else not self.bears[node] and self._scales((node, 0))
            for node, _ in self.consumers.get(value, [])
        )

    def goes_on(self, node: int) -> bool:
        """Tell whether the output of `node` leaves the cell: not only as a gate, or through one."""
        start = 1 << self.number[node, 0]
        seen = {node}
        stack = [node]
        while stack:
            node = stack.pop()
            if node in self.gates or self._is_let_in(node, start):
                continue
            if not self.readers[node]:
                return True
            stack += self.readers[node] - seen
            seen |= self.readers[node]
        return False

    def _is_let_in(self, node: int, start: int) -> bool:
        """Tell whether `node` multiplies data with a gate that does not depend on it."""
        if self.stems[node] != "Mul":
            return False
        for _, value in self.data[node]:
            gate = value[0]
            while gate not in self.gates and len(self.data[gate]) == 1 and not self.bears[gate]:
                gate = self.data[gate][0][1][0]
            if gate in self.gates and not self.reach[value] & start:
                return True
        return False

    def is_linear(self, node: int) -> bool:
        """Tell whether an operation is linear in its data."""
        if self.stems[node] in ("Mul", "Div") or self.stems[node] in PRODUCT:
            return len(self.data[node]) == 1
        return self.stems[node] in LINEAR and not self.acts_in_place(node)

    def acts_in_place(self, node: int) -> bool:
        """Tell whether `node` is an operation in place, on a view, that takes nothing else.

        Such is an activation; additions, products and copies have a second operand.
        """
        return self.stems[node] == "CopySlices" and len(self.graph.edges[node]) == 1

    def _find_reach(self) -> None:
        self.values: list[Value] = []
        self.number: dict[Value, int] = {}
        self.reach: dict[Value, int] = {}
        self.kept: dict[Value, int] = {}
        self.plain: dict[Value, int] = {}
        self.carry: dict[Value, int] = {}
        self.outputs: list[int] = [0] * len(self.graph.nodes)
        self.sources = 0
        slots: dict[int, set[int]] = {}
        for node, slot in self.consumers:
            slots.setdefault(node, {0}).add(slot)
        for node in self.order:
            if self.parameter[node]:
                continue
            inputs = [value for _, value in self.data[node]]
            reach = union(self.reach[value] for value in inputs)
            mixes = self.weighs[node] or self.stems[node] in MIXING
            kept = 0 if mixes else union(self.kept[value] for value in inputs)
            plain = 0 if self.bears[node] else union(self.plain[value] for value in inputs)
            carries = self._carries(node)
            carry = union(self.carry[value] for value in inputs) if carries else 0
            for slot in sorted(slots.get(node, {0})):
                bit = 1 << len(self.values)
                self.number[node, slot] = len(self.values)
                self.values.append((node, slot))
                self.reach[node, slot] = reach | bit
                self.kept[node, slot] = kept | bit
                self.plain[node, slot] = plain | bit
                self.carry[node, slot] = carry | bit
                self.outputs[node] |= bit
            self.sources |= 0 if inputs else self.outputs[node]

    def _carries(self, node: int) -> bool:
        """Tell whether a shortcut may lead through `node`."""
        stem = self.stems[node]
        if stem in MIXING or self.weighs[node] or (not stem and len(self.data[node]) > 1):
            return False
        return stem in ("Mul", "Div") or len(self.data[node]) == 1

    def between(self, low: int, high: int) -> Iterator[Value]:
        """Return the values on the ways from value number `low` to the set `high`, without it."""
        for number in range(low + 1, high.bit_length()):
            if high >> number & 1 and self.reach[self.values[number]] >> low & 1:
                yield self.values[number]

    def members(self, numbers: int) -> Iterator[Value]:
        """Return the values of a set, those nearest to the outputs first."""
        while numbers:
            number = top(numbers)
            numbers ^= 1 << number
            yield self.values[number]

    def only_reader(self, value: Value) -> Edge | None:
        """Return the edge that reads `value` if there is just one, None otherwise."""
        readers = self.consumers.get(value, [])
        return readers[0] if len(readers) == 1 else None

    def dimension(self, node: int) -> int:
        """Return the dimension along which `node` stacks or concatenates."""
        dim: int = torch_internals.saved(self.graph.nodes[node], "dim")
        return signed(dim) % len(self.shape((node, 0)))

    def shape(self, value: Value) -> tuple[int, ...]:
        """Return the shape of a value."""
        return self.graph.shape(value)


def _stem(graph: Graph, node: int) -> str:
    if torch_internals.is_custom(graph.nodes[node]):
        return ""
    stem = re.sub(r"Backward\d*$", "", graph.names[node])
    return "Alias" if stem == "Slice" and _takes_all(graph, node) else stem


def _takes_all(graph: Graph, node: int) -> bool:
    """Tell whether a slice is all of its tensor, as one of two of `x[:, 1:]` is in older torch."""
    values = graph.edges[node]  # none where the slice is an input of the model
    return any(v[0] >= 0 and graph.shape(v) == graph.shape((node, 0)) for v in values)


def signed(dim: int) -> int:
    """Return a dimension that autograd shows as an unsigned number."""
    return dim - 2**64 if dim >= 2**63 else dim


def union(sets: Iterable[int]) -> int:
    """Return the union of sets of values."""
    total = 0
    for values in sets:
        total |= values
    return total


def top(values: int) -> int:
    """Return the number of the value in a set that is nearest to the outputs, -1 if empty."""
    return values.bit_length() - 1
