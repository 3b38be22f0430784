"""What a flush costs each process of a training of many, simulated on one machine.

    python tests/benchmarks/scale.py [--processes 64 256 1024] [--blocks 80]

Every process of the training has what it would have: rows of a Llama-like net, or of its stage of
it, decoded, added up and sent on by gradscope's own code; but messages go through memory, one
process after the other, and of those that only send there is one for all of a stage. Seconds are
those of the processor, so that others on the machine do not count, nor what one waits for others.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from typing import ClassVar

import numpy as np

from gradscope import schema
from gradscope.capture.keys import Keys, Layout, OfLayer, OfParameter, OfShortcut
from gradscope.capture.net.catalogue import Catalogue, LayerInfo
from gradscope.capture.net.shortcut_list import ShortcutInfo
from gradscope.session.columns import Decoder, columns
from gradscope.session.connections import below
from gradscope.session.holders import find_holders
from gradscope.session.joint import Joint
from gradscope.session.ranks import Ranks
from gradscope.session.shares import Shares
from gradscope.session.tape import HostRow

FLUSHES = 4  # of one step each; the first one has the layout, too
STAGES = 8

OF_PARAMETERS = ("grad_norm", "clipped_grad_norm", "weight_norm", "update_norm")
OF_ALL = (
    "signal_norm",
    "input_signal_norm",
    "activation_norm",
    "activation_mean",
    "activation_std",
)
OF_ACTIVATIONS = ("derivative_mean", "zero_fraction", "saturated_fraction")
OF_SHORTCUTS = tuple(schema.names(schema.SHORTCUT_METRICS[:5] + schema.FORWARD_NORMS))

_BLOCK = (
    ("attention_norm", "RMSNorm"),
    ("attention.wq", "Linear"),
    ("attention.wk", "Linear"),
    ("attention.wv", "Linear"),
    ("attention.wo", "Linear"),
    ("ffn_norm", "RMSNorm"),
    ("feed_forward.w1", "Linear"),
    ("feed_forward.act", "SiLU"),
    ("feed_forward.w3", "Linear"),
    ("feed_forward.w2", "Linear"),
)


class Memory:
    """Connections of one process, by queues that all of them share."""

    queues: ClassVar[defaultdict[int, deque[bytes]]] = defaultdict(deque)

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self.received = self.sent = 0

    def send(self, data: bytes, seconds: float) -> None:
        self.sent += len(data)
        self.queues[self._rank].append(data)

    def receive(self, rank: int, seconds: float) -> bytes:
        data = self.queues[rank].popleft()
        self.received += len(data)
        return data

    def end(self) -> None:
        pass


def layers_of(blocks: range, total: int) -> list[tuple[str, str]]:
    """Return name and kind of the layers of a stage with some of the blocks."""
    first = [("tok_embeddings", "Embedding")] if 0 in blocks else []
    last = [("norm", "RMSNorm"), ("output", "Linear")] if total - 1 in blocks else []
    of_blocks = [(f"layers.{i}.{name}", kind) for i in blocks for name, kind in _BLOCK]
    return first + of_blocks + last


def layout_of(layers: list[tuple[str, str]], shortcuts: int, copies: int) -> Layout:
    """Return what one row of such a stage has readings of."""

    def keys() -> Iterator[Keys]:
        for number, (_, kind) in enumerate(layers):
            if kind != "SiLU":
                for metric in OF_PARAMETERS:
                    yield (OfParameter(metric, (number,), copies),)
            for metric in OF_ALL + (OF_ACTIVATIONS if kind == "SiLU" else ()):
                yield (OfLayer(metric, number, 4096 * 8192),)
        for number in range(shortcuts):
            for metric in OF_SHORTCUTS:
                yield (OfShortcut(metric, number),)

    return tuple(keys())


class Process:
    """One process of the training."""

    def __init__(self, rank: int, size: int, blocks: range, total: int, shares: Shares) -> None:
        layers = layers_of(blocks, total)
        self.catalogue = Catalogue()
        infos = [
            LayerInfo(i, name, kind, 8192**2, kind == "Linear", None)
            for i, (name, kind) in enumerate(layers)
        ]
        self.catalogue.add_layers(infos, range(len(infos)))
        joins = [
            ShortcutInfo(
                f"layers.{i}", "identity", f"layers.{i - 1}", f"layers.{i}", branch, 0, 0.5
            )
            for i in blocks
            for branch in (f"layers.{i}.attention_norm", f"layers.{i}.ffn_norm")
        ]
        self.catalogue.joins.meet(joins)
        self.catalogue.add_shortcuts(range(len(infos)))
        self.catalogue.edges.add((i, i + 1) for i in range(len(layers) - 1))
        self.connections = Memory(rank)
        self.ranks = Ranks(rank, size, self.connections, shares, Joint())
        self.decoder = Decoder(self.catalogue, shares)
        self.layout = layout_of(layers, len(joins), size)
        self.random = np.random.default_rng(0)  # what all hold alike is alike
        self.seconds: list[float] = []
        self.bytes: list[tuple[int, int]] = []

    def flush(self, step: int) -> None:
        values = self.random.random(len(self.layout))
        row = HostRow(step, float(step), False, False, [(self.layout, values)], {"loss": 1.0})
        self.connections.received = self.connections.sent = 0
        begun = time.thread_time()
        decoded = list(self.decoder.decoded([row]))
        for some in self.ranks.exchange(decoded, False, 1.0, self.catalogue):
            tables = columns(some)
            assert np.isfinite(tables["layers"]["grad_norm"]).sum() > 0
        self.seconds.append(time.thread_time() - begun)
        self.bytes.append((self.connections.received, self.connections.sent))


def simulate(size: int, blocks: int, stages: int) -> None:
    """Print what a flush costs where `size` processes train `stages` parts of the net."""
    per = blocks // stages
    parts_of = [range(i * per, (i + 1) * per) for i in range(stages)]
    names = [[name for name, kind in layers_of(p, blocks) if kind != "SiLU"] for p in parts_of]
    told = find_holders([(some, size // stages) for some in names])
    Memory.queues.clear()
    processes: dict[int, Process] = {}
    alike: dict[
        int, list[int]
    ] = {}  # those that only send, by one of each stage: all send the same
    of_stage: dict[int, int] = {}
    for rank in range(size):
        stage = rank * stages // size
        if not below(rank, size):
            alike.setdefault(of_stage.setdefault(stage, rank), []).append(rank)
            if of_stage[stage] != rank:
                continue
        held = dict.fromkeys(names[stage], told[stage]["usual"])
        shares = Shares(size / stages, held)
        processes[rank] = Process(rank, size, parts_of[stage], blocks, shares)
    for step in range(FLUSHES):
        for rank in sorted(processes, reverse=True):  # those below before those above
            processes[rank].flush(step)
            for other in alike.get(rank, [])[1:]:
                Memory.queues[other].append(Memory.queues[rank][-1])
    first = processes.pop(0)
    others = [process for process in processes.values() if process.bytes[0][0]]
    steady = min(first.seconds[1:])
    worst = np.median([min(process.seconds[1:]) for process in others])
    rows = (
        f"{size:5d} processes, {stages} stage{'s' if stages > 1 else ' '}",
        f"process 0: {1e3 * steady:5.1f} ms, {first.bytes[-1][0] / 1e6:.2f} MB received",
        f"one that passes on: {1e3 * worst:5.1f} ms, {others[0].bytes[-1][0] / 1e6:.2f} MB in,"
        f" {others[0].bytes[-1][1] / 1e6:.2f} MB out",
        f"first flush of process 0: {1e3 * first.seconds[0]:6.1f} ms,"
        f" {first.bytes[0][0] / 1e6:.2f} MB",
    )
    print(*rows, sep="; ", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--blocks", type=int, default=80)
    options = parser.parse_args()
    for stages in (1, STAGES):
        for size in options.processes:
            simulate(size, options.blocks, stages)


if __name__ == "__main__":
    main()
