"""How much gradient arrives early in a net, compared with late: the depth profile in one number.

The decades D = log10(early / late) of the signal norm ||dL/d(output)||, early at the first hidden
layer, late at the last one on the same path to the loss: negative where the gradient vanishes
toward the input, positive where it explodes. A scaling of the loss cancels out. Weight layers stand
for the depth, activations and normalisations between them do not count as steps of their own. In a
residual net the layers of a branch see only the branch's part of the gradient, so there the ends
are the first block's input and the last block's output, where both parts are together, unless
layers lie outside of them.

Where a hidden layer ends is a matter of taste: before or behind its activation. Both are looked
at, and the one that says less counts, as long as they are alike; an activation makes a difference
of at most a decade.

Source: Glorot & Bengio, AISTATS 2010, section 4: back-propagated gradients, not weight gradients,
tell of vanishing; the latter's variance can stay constant across layers while the former shrinks.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gradscope.arithmetic import over_reference
from gradscope.diagnosis.blocks import Block, residual_blocks
from gradscope.diagnosis.main_path import along, depth, main_paths
from gradscope.kinds import GATES, RECURRENT, canonical
from gradscope.runs.run import Run
from gradscope.wording import layer_label

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


LOOKED_AT = 64
"""First recorded steps that tell which way the gradient takes."""


@dataclass(frozen=True)
class SignalPath:
    """The signal along the depth of a net, over the recorded steps.

    Attributes
    ----------
    steps : int64 (S,)
    layers : int64 (n,)
        Indices of the hidden weight layers and the output layer, from input to output.
    along : int64 (m,)
        All layers on the path, the activations and normalisations between those, too.
    depth : int
        How many such layers lie between the two ends, those of parallel branches, too.
    early, late : float64 (S,), loss/activation
        Signal at the first and the last point of the path.
    early_name, late_name : str
        What they are, in words: `layer 2 · fc1 (Linear)`, `the input of block 'b3'`.
    start, end : int
        The layers start < index <= end lie between the two ends.
    start_behind, end_behind : bool
        Whether a function that is called on the output of the layer `start` (`end`) lies before
        that end of the path, so that the end is behind it.
    decades : float64 (S,)
        log10(early / late). -inf where the early signal underflowed to 0, NaN where it is 0 for
        another reason or was not read, or where the loss gave no gradient at all.
    """

    steps: Ints
    layers: Ints
    along: Ints
    depth: int
    early: Floats
    late: Floats
    early_name: str
    late_name: str
    start: int
    end: int
    start_behind: bool
    end_behind: bool
    decades: Floats


def log10(values: Floats) -> Floats:
    """Return the decimal logarithm, -inf of 0, without a warning."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log10(values)


def is_weight_layer(layers: pd.DataFrame) -> NDArray[np.bool_]:
    """Return which layers have a weight matrix or kernel: those that add to the depth."""
    return np.diff(layers["depth"].to_numpy(np.int64), prepend=0) > 0


def composites(layers: pd.DataFrame, candidates: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which layers hold one of `candidates`: their output is no point of its own."""
    names = [str(name) for name in layers["name"]]
    held = [name for name, candidate in zip(names, candidates, strict=True) if candidate]
    parents = {name[:i] for name in held for i, letter in enumerate(name) if letter == "."}
    return np.array(
        [name in parents or (name == "(root)" and len(held) > 1) for name in names], dtype=bool
    )


_paths: WeakKeyDictionary[Run, tuple[int, SignalPath | None]] = WeakKeyDictionary()


def signal_path(run: Run) -> SignalPath | None:
    """Return the signal along the depth of `run`; None if no weight layer's signal was recorded.

    It is worked out once for each number of steps.
    """
    count = len(run.steps)
    known = _paths.get(run)
    if known is None or known[0] != count:
        known = _paths[run] = (count, _signal_path(run))
    return known[1]


def _signal_path(run: Run) -> SignalPath | None:
    layers = run.layers
    read = run.was_read("signal_norm")
    for kind in (is_weight_layer(layers), layers["parameters"].to_numpy() > 0):
        points = kind & read
        points &= ~composites(layers, points)
        if points.any():
            break
    else:
        return None

    found = [_along(run, *chosen) for chosen in _chosen(run, np.flatnonzero(points))]
    return max(found, key=_how_far)


def _chosen(run: Run, points: Ints) -> list[tuple[Ints, Ints, int]]:
    """Return the points on each path to judge, all layers on it, and how deep the net is there.

    Where no flow was recorded that is everything, in the order of execution.
    """
    pairs = edges_of(run)
    if len(pairs) == 0:
        return [(points, np.arange(len(run.layers)), len(points))]
    carried, norm, mean, std = (
        _middle(run.matrix(column)[1][:LOOKED_AT])
        for column in ("input_signal_norm", "activation_norm", "activation_mean", "activation_std")
    )
    elements = over_reference(norm**2, mean**2 + std**2)
    points = points[~np.isin(points, before_gates(run, pairs))]
    paths = main_paths(pairs, points, carried, elements)
    return [(path, along(pairs, path, points), depth(pairs, path, points)) for path in paths]


def edges_of(run: Run) -> Ints:
    """Return the flow of data from layer to layer, (E, 2): source, target; -1 for the output."""
    return np.asarray(run.edges[["source", "target"]].to_numpy(dtype=np.int64))


def before_gates(run: Run, edges: Ints) -> list[int]:
    """Return the layers whose output, behind a sigmoid, only multiplies what goes on elsewhere.

    Whatever reads it reads something else, too.
    """
    kinds = dict(enumerate(map(str, run.layers["kind"]))) | run.functions
    sigmoids = {i for i, kind in kinds.items() if canonical(kind) in GATES}
    reads: dict[int, set[int]] = defaultdict(set)
    read_by: dict[int, set[int]] = defaultdict(set)
    for source, target in edges.tolist():
        read_by[source].add(target)
        reads[target].add(source)
    found = []
    for layer in list(read_by):
        gate = layer if layer in sigmoids else next(iter(read_by[layer] & sigmoids), None)
        if gate is None or (gate != layer and read_by[layer] != {gate}):
            continue
        if gate == layer and layer not in run.functions:
            continue
        readers = read_by[gate]
        if readers and -1 not in readers and all(len(reads[reader]) > 1 for reader in readers):
            found.append(layer)
    return found


def _middle(values: NDArray[np.floating]) -> Floats:
    """Return the middle reading of each layer, NaN where there is none."""
    ordered = np.sort(values.astype(np.float64), axis=0)  # NaN comes last
    known = (~np.isnan(ordered)).sum(axis=0)
    return np.asarray(ordered[np.maximum(known - 1, 0) // 2, np.arange(ordered.shape[1])])


def _how_far(path: SignalPath) -> float:
    """Return how far the gradient changes along a path, in the middle of the run."""
    known = path.decades[~np.isnan(path.decades)]
    return abs(float(np.sort(known)[len(known) // 2])) if len(known) else -1.0


def _along(run: Run, chosen: Ints, every: Ints, deep: int) -> SignalPath:
    """Return the signal along the points `chosen`, from input to output, past layers `every`."""
    layers = run.layers
    hidden = chosen[:-1] if len(chosen) > 1 else chosen
    # each end twice: at the layer's output, and behind its activation, where the next one begins
    second = chosen[min(1, len(chosen) - 1)]
    steps, at_output = _columns(run, "signal_norm", [hidden[0], hidden[-1]])
    _, at_input = _columns(run, "input_signal_norm", [second, chosen[-1]])
    early = [
        _End(at_output[0], int(hidden[0]), False, _named(layers, hidden[0])),
        _End(at_input[0], int(second) - 1, True, _named(layers, hidden[0])),
    ]
    late = [
        _End(at_output[1], int(hidden[-1]), False, _named(layers, hidden[-1])),
        _End(at_input[1], int(chosen[-1]) - 1, True, _named(layers, hidden[-1])),
    ]
    blocks = residual_blocks(run) if len(chosen) > 1 else []
    blocks = [b for b in blocks if ((chosen >= b.first) & (chosen < b.after)).any()]
    blocks = [b for b in blocks if not _in_time(run, b)]
    if blocks and (hidden < blocks[0].first).sum() <= 1:
        stem = at_output[0] if hidden[0] < blocks[0].first else None
        early = [_or_else(_before(run, blocks[0]), stem)] * 2
    if blocks and hidden[-1] < blocks[-1].after:
        late = [_or_else(_behind(run, blocks[-1]), at_input[1])] * 2
    before, behind = (
        _decades(run, chosen, a.signal, b.signal) for a, b in zip(early, late, strict=True)
    )
    which = int(_says_less(behind, before))
    return SignalPath(
        steps,
        chosen,
        every,
        deep,
        early[which].signal,
        late[which].signal,
        early[which].name,
        late[which].name,
        early[which].place,
        late[which].place,
        early[which].behind,
        late[which].behind,
        behind if which else before,
    )


def signal_at(run: Run, layers: Ints, step: int) -> Floats:
    """Return the signal norm of `layers` at one recorded step, (n,), loss/activation."""
    values = run.matrix("signal_norm", step, step, layers.tolist())[1][0]
    return np.asarray(values, dtype=np.float64)


def _columns(run: Run, column: str, layers: list[np.int64]) -> tuple[Ints, list[Floats]]:
    """Return the recorded steps, and a metric of each of `layers` at them, (S,)."""
    steps, values = run.matrix(column, layers=[int(layer) for layer in layers])
    return steps, list(values.astype(np.float64).T)


class _End(NamedTuple):
    """An end of the path: the signal there, (S,), the last layer before it, and its name.

    `behind`: it is behind what is called on that layer's output, too.
    """

    signal: Floats
    place: int
    behind: bool
    name: str


def _before(run: Run, block: Block) -> _End:
    totals = run.shortcut_matrix("total_norm", shortcuts=[block.shortcut])[1][:, 0]
    name = f"the input of block '{block.name}'"
    return _End(np.asarray(totals, dtype=np.float64), block.first - 1, True, name)


def _behind(run: Run, block: Block) -> _End:
    if block.form != "identity":
        return _before(run, block)
    # an identity passes the gradient on as it is: the shortcut's part is all of it
    passed = run.shortcut_matrix("shortcut_norm", shortcuts=[block.shortcut])[1][:, 0]
    name = f"the output of block '{block.name}'"
    return _End(np.asarray(passed, dtype=np.float64), block.after - 1, True, name)


def _in_time(run: Run, block: Block) -> bool:
    """Whether a block lies between two time steps of a recurrent layer, not in depth."""
    branch = str(run.shortcuts["branch"].iloc[block.shortcut])
    kinds = run.layers["kind"][run.layers["name"] == branch]
    return any(canonical(str(kind)) in RECURRENT for kind in kinds)


def _or_else(end: _End, neighbour: Floats | None) -> _End:
    """Return `end`, at steps that left its block out with the signal of the layer next to it."""
    if neighbour is None:
        return end
    return end._replace(signal=np.where(np.isnan(end.signal), neighbour, end.signal))


def _says_less(decades: Floats, other: Floats) -> bool:
    """Whether `decades` is alike `other`, but closer to 0, in the middle of the run."""
    both = np.isfinite(decades) & np.isfinite(other)
    if not both.any():
        return False
    here, there = float(np.median(decades[both])), float(np.median(other[both]))
    return abs(here) < abs(there) and abs(here - there) < 1


def _named(layers: pd.DataFrame, index: int) -> str:
    name, kind = str(layers["name"].iloc[index]), str(layers["kind"].iloc[index])
    return f"layer {layer_label(int(index), name, kind)}"


def _decades(run: Run, layers: Ints, early: Floats, late: Floats) -> Floats:
    """Return log10(early / late), telling an underflow from a path that is cut or switched off.

    A signal that had already lost two decades at the earliest layer where it is not 0 went on to
    underflow; one that is healthy there and 0 in the layer before was cut.
    """
    decades = log10(over_reference(early, late))
    decades[~np.isfinite(early) | ~np.isfinite(late)] = np.nan
    gone = np.flatnonzero((early == 0) & (late > 0))
    if len(gone):
        signal = run.matrix("signal_norm")[1]
    for row in gone:
        values = signal[row, layers]
        arrived = values[values > 0].astype(np.float64)
        if len(arrived) == 0 or arrived[0] > 0.01 * late[row]:
            decades[row] = np.nan
    return decades
