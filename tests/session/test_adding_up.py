"""Readings of many processes, added up from one to the next, against sums over all at once."""

from __future__ import annotations

import math
from collections import defaultdict, deque

import numpy as np
import pytest

from gradscope import schema
from gradscope.capture.keys import OfLayer, OfParameter
from gradscope.capture.net.catalogue import Catalogue, LayerInfo
from gradscope.session.columns import Decoder, columns
from gradscope.session.holders import find_holders
from gradscope.session.joint import Joint
from gradscope.session.layer_order import merged_order
from gradscope.session.ranks import Ranks
from gradscope.session.shares import Shares
from gradscope.session.tape import HostRow

SIZE = 23  # a tree of three levels
ELEMENTS = 10


class Connections:
    """Connections in memory; nothing comes from a process that is `silent`."""

    def __init__(self, rank: int, queues: dict[int, deque[bytes]]) -> None:
        self.rank, self.queues = rank, queues

    def send(self, data: bytes, seconds: float) -> None:
        self.queues[self.rank].append(data)

    def receive(self, rank: int, seconds: float) -> bytes:
        if not self.queues[rank]:
            raise RuntimeError("timed out")
        return self.queues[rank].popleft()

    def end(self) -> None:
        pass


class Process:
    """One process, with layers of its own, of each of which it reads something once a step."""

    def __init__(self, rank, names, shares, queues):
        self.rank, self.names = rank, names
        self.notes: list[str] = []
        self.catalogue = Catalogue()
        infos = [LayerInfo(i, name, "Linear", 6, True, None) for i, name in enumerate(names)]
        self.catalogue.add_layers(infos, range(len(names)))
        self.ranks = Ranks(rank, SIZE, Connections(rank, queues), shares, Joint())
        self.decoder = Decoder(self.catalogue, shares)

    def row(self, step: int, read: dict[str, np.ndarray], copies: int) -> HostRow:
        """Return a row of readings by metric, of each layer."""
        segments = []
        for metric, values in read.items():
            if metric in ("grad_norm", "clipped_grad_norm"):
                keys = [(OfParameter(metric, (i,), copies),) for i in range(len(values))]
            else:
                keys = [(OfLayer(metric, i, ELEMENTS),) for i in range(len(values))]
            segments.append((tuple(keys), values))
        return HostRow(step, float(step), False, True, segments, {"loss": float(self.rank)})

    def exchange(self, rows, closing=False):
        decoded = list(self.decoder.decoded(rows))
        return self.ranks.exchange(decoded, closing, 1.0, self.catalogue, self.notes)


def group(names_of, shares_of):
    queues = defaultdict(deque)
    return [Process(rank, names_of(rank), shares_of(rank), queues) for rank in range(SIZE)]


def flush(processes, rows_of, closing=False):
    """Exchange what each process has, those below before those above; return process 0's tables."""
    for process in reversed(processes):
        out = process.exchange(rows_of(process), closing)
    return [columns(decoded) for decoded in out]


METRICS = ("signal_norm", "activation_norm", "zero_fraction", "attention_logit_max")


def read_by(process, step):
    random = np.random.default_rng(1000 * step + process.rank)
    return {metric: random.random(len(process.names)) for metric in METRICS}


def test_each_metric_is_that_of_all_samples_of_all_processes():
    processes = group(lambda rank: ["a", "b"], lambda rank: Shares(SIZE))
    for step in range(3):
        (tables,) = flush(processes, lambda p, s=step: [p.row(s, read_by(p, s), SIZE)])
        read = {m: np.array([read_by(p, step)[m] for p in processes]) for m in METRICS}
        expected = {
            "signal_norm": np.sqrt(np.square(read["signal_norm"] / SIZE).sum(0)),
            "activation_norm": np.sqrt(np.square(read["activation_norm"]).sum(0)),
            "zero_fraction": read["zero_fraction"].mean(0),
            "attention_logit_max": read["attention_logit_max"].max(0),
            "output_elements": np.full(2, SIZE * ELEMENTS),
        }
        for metric, values in expected.items():
            np.testing.assert_allclose(tables["layers"][metric], values, rtol=1e-12)
        assert tables["steps"]["loss"].tolist() == [0.0]  # process 0's


@pytest.mark.parametrize("rank", [0, 5, SIZE - 1])
def test_what_one_process_could_not_read_is_not_made_up_of_what_others_have(rank):
    processes = group(lambda rank: ["a", "b"], lambda rank: Shares(SIZE))

    def rows_of(process):
        row = process.row(0, read_by(process, 0), SIZE)
        if process.rank == rank:  # of "a" it says that it should have read it
            nothing = ((OfLayer("activation_norm", 0, 0),),), np.array([math.nan])
            kept = [(keys[1:], values[1:]) for keys, values in row.segments]
            return [row._replace(segments=[*kept, nothing])]
        return [row]

    (tables,) = flush(processes, rows_of)
    for metric in ("activation_norm", "output_elements"):
        assert np.isnan(tables["layers"][metric]).tolist() == [True, False]


def test_of_a_step_that_one_process_doubts_no_signal_is_made_up():
    processes = group(lambda rank: ["a", "b"], lambda rank: Shares(SIZE))

    def rows_of(process, step):
        row = process.row(step, {**read_by(process, step), "grad_norm": np.ones(2)}, SIZE)
        if process.rank == 5 and step == 1:
            kept = [some for some in row.segments if isinstance(some[0][0][0], OfParameter)]
            row = row._replace(segments=kept, is_doubtful=True)
        return [row]

    for step in range(3):
        (tables,) = flush(processes, lambda p, s=step: rows_of(p, s))
        for metric in METRICS:
            assert np.isnan(tables["layers"][metric]).all() == (step == 1)
        np.testing.assert_allclose(tables["layers"]["grad_norm"], 1.0)
    assert processes[0].ranks.combiner.partial == [1]


def test_notes_of_all_processes_come_to_the_first_and_steps_that_it_did_not_make_are_told():
    processes = group(lambda rank: ["a", "b"], lambda rank: Shares(SIZE))
    processes[SIZE - 1].notes.append("of the last")
    processes[3].notes.append("of the third")
    flush(processes, lambda p: [p.row(0, read_by(p, 0), SIZE)])
    assert set(processes[0].ranks.joint.notes) == {"of the last", "of the third"}
    processes[2].notes.append("of the second")
    flush(processes, lambda p: [p.row(1, read_by(p, 1), SIZE)] if p.rank else [])
    assert "of the second" in processes[0].ranks.joint.notes
    assert processes[0].ranks.foreign == []
    flush(processes, lambda p: [], closing=True)
    assert processes[0].ranks.foreign == [1]


def test_layers_of_stages_join_in_order_and_each_counts_the_processes_that_have_it():
    """Stages 0 and 2 on even processes, 1 and 3 on odd ones, as interleaved schedules have them."""
    names = [["layers.0", "layers.10"], ["layers.2", "layers.11"]]
    told = find_holders([(some, SIZE // 2 + 1 - i) for i, some in enumerate(names)])
    usual = [part["usual"] for part in told]

    def shares(rank: int) -> Shares:
        return Shares(1, dict.fromkeys(names[rank % 2], usual[rank % 2]))

    processes = group(lambda rank: names[rank % 2], shares)
    (tables,) = flush(
        processes, lambda p: [p.row(0, {"grad_norm": np.array([3.0, 4.0]) + p.rank % 2}, SIZE)]
    )
    rows = processes[0].ranks.joint.layers
    assert [row["name"] for row in rows] == ["layers.0", "layers.2", "layers.10", "layers.11"]
    assert [row["depth"] for row in rows] == [1, 2, 3, 4]
    np.testing.assert_allclose(tables["layers"]["grad_norm"], [3, 4, 4, 5], rtol=1e-12)
    assert tables["steps"]["grad_norm"] == pytest.approx([math.sqrt(9 + 16 + 16 + 25)])
    assert told[0]["problem"]  # as stages of a pipeline are of as many processes each


def test_what_one_of_many_holds_otherwise_is_not_believed():
    processes = group(lambda rank: ["a", "b", "c"], lambda rank: Shares(SIZE))

    def rows(process: Process) -> list[HostRow]:
        norms = np.array([1.0, 2.0, 3.0 + 1e-3 * (process.rank == 17)])
        return [process.row(0, {"clipped_grad_norm": norms * (1 + 1e-7 * process.rank)}, SIZE)]

    (tables,) = flush(processes, rows)
    clipped = tables["layers"]["clipped_grad_norm"]
    np.testing.assert_allclose(clipped[:2], [1, 2], rtol=1e-5)
    assert np.isnan(clipped[2]) and np.isnan(tables["steps"]["clipped_grad_norm"][0])
    assert processes[0].ranks.combiner.unlike["clipped_grad_norm"].tolist() == [2]


@pytest.mark.parametrize("alike", [True, False])
def test_a_part_of_a_layer_that_all_hold_is_compared_and_counts_once(alike):
    """As a bias beside a weight of which each process has a shard."""
    processes = group(lambda rank: ["a", "b"], lambda rank: Shares(SIZE))

    def row(process: Process) -> HostRow:
        shard, whole = float(process.rank), 3.0 + (0 if alike else 1e-3 * (process.rank == 17))
        read = [(0, 1, shard), (0, SIZE, whole), (1, 1, shard)]
        keys = tuple((OfParameter("grad_norm", (i,), copies),) for i, copies, _ in read)
        segments = [(keys, np.array([norm for *_, norm in read]))]
        return HostRow(0, 0.0, False, True, segments, {})

    (tables,) = flush(processes, lambda p: [row(p)])
    shards = sum(rank**2 for rank in range(SIZE))
    expected = [math.sqrt(shards + 9) if alike else math.nan, math.sqrt(shards)]
    np.testing.assert_allclose(tables["layers"]["grad_norm"], expected, rtol=1e-12)
    assert np.isnan(tables["steps"]["grad_norm"][0]) == (not alike)
    assert list(processes[0].ranks.combiner.unlike) == ([] if alike else ["grad_norm"])


def test_of_a_process_that_falls_silent_and_those_that_it_sends_for_nothing_is_made_up():
    processes = group(lambda rank: ["a"], lambda rank: Shares(SIZE))

    def rows(process: Process, step: int) -> list[HostRow]:
        read = {"signal_norm": np.ones(1), "grad_norm": np.full(1, 2.0)}
        return [process.row(step, read, SIZE)]

    (before,) = flush(processes, lambda p: rows(p, 0))
    left = [process for process in processes if process.rank != 2]
    (after,) = flush(left, lambda p: rows(p, 1))
    assert before["layers"]["signal_norm"] == pytest.approx([SIZE**-0.5])
    assert np.isnan(after["layers"]["signal_norm"]).all()
    assert after["layers"]["grad_norm"] == pytest.approx([2.0])  # all hold it alike
    assert processes[0].ranks.gone == [2] and processes[0].ranks.combiner.partial == [1]


def test_steps_wait_until_the_slowest_has_read_them_and_end_with_the_last():
    processes = group(lambda rank: ["a"], lambda rank: Shares(SIZE))
    read = {"signal_norm": np.ones(1)}

    def flushed(first: int, last: int, closing: bool = False) -> list[list[int]]:
        """Return the steps that come out where process 22 is one step behind the others."""

        def rows(process: Process) -> list[HostRow]:
            behind = (process.rank == SIZE - 1) and not closing
            start = first - (process.rank == SIZE - 1 and first > 0)
            return [process.row(s, read, SIZE) for s in range(start, last - behind)]

        return [t["steps"]["step"].tolist() for t in flush(processes, rows, closing)]

    assert flushed(0, 3) == [[0, 1]]
    assert flushed(3, 6) == [[2, 3, 4]]
    assert flushed(6, 6, closing=True) == [[5]]
    assert all(process.ranks.done for process in processes)


@pytest.mark.parametrize(
    "sequences, order",
    [
        ("embed layers.0 layers.3|layers.1 layers.2 head", "embed layers.0 layers.1 layers.2"),
        ("gate e.0 e.1 head|gate e.2 e.3 head", "gate e.0 e.1 e.2 e.3 head"),
        ("a b c|a c b", "a b c"),
        ("body.0|tail.0", "body.0 tail.0"),
    ],
)
def test_layers_of_all_processes_are_put_in_one_order(sequences, order):
    names = list(dict.fromkeys(sequences.replace("|", " ").split()))
    numbers = [[names.index(name) for name in s.split()] for s in sequences.split("|")]
    merged = [names[number] for number in merged_order(numbers, names)]
    assert sorted(merged) == sorted(names)
    assert merged[: len(order.split())] == order.split()


def test_experts_are_told_from_stages():
    common = ["embed", "head"]
    told = find_holders([([*common, f"experts.{i}"], 2) for i in range(4)])
    assert all(part["stages"] == 1 and not part["problem"] for part in told)
    assert told[1]["holders"] == {"experts.1": 0.25} and told[1]["usual"] == 1.0
    told = find_holders([([f"stage{i}"], 2) for i in range(4)])
    assert all(part["stages"] == 4 and part["usual"] == 0.25 for part in told)


def test_every_metric_adds_up_in_some_way():
    ways = {"root sum square", "sum", "mean", "deviation", "root mean square", "largest"}
    metrics = schema.LAYER_METRICS + schema.SHORTCUT_METRICS
    assert {column.combine for column in metrics} <= ways
