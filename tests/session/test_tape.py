"""Rows on their way to the host: one copy for each device, nothing dropped."""

from __future__ import annotations

import threading

import numpy as np
import torch

from gradscope.capture.keys import OfLayer
from gradscope.capture.reading.readings import Readings
from gradscope.capture.reading.rows import Row
from gradscope.session.tape import Tape


def test_readings_of_several_devices_are_kept_apart_and_all_arrive():
    readings = Readings()
    readings.add(1.5, (OfLayer("signal_norm", 0),))
    readings.add(torch.zeros((), device="meta"), (OfLayer("signal_norm", 1),))
    readings.add_all([2.5], [(OfLayer("signal_norm", 2),)])
    segments = readings.segments()
    assert [(values.device.type, len(layout)) for layout, values in segments] == [
        ("cpu", 2),
        ("meta", 1),
    ]
    tape = Tape()
    tape.put(Row(0, segments=segments))
    tape.put(Row(1, segments=segments))
    rows = tape.fetch()
    assert [row.step for row in rows] == [0, 1]
    for row in rows:
        (on_host, host), (on_meta, elsewhere) = row.segments
        assert [keys[0].module for keys in on_host] == [0, 2]
        assert [keys[0].module for keys in on_meta] == [1]
        np.testing.assert_array_equal(host, [1.5, 2.5])
        assert np.isnan(elsewhere).all()  # meta tensors have no values


def test_numbers_and_tensors_taken_together_go_where_each_belongs():
    """As of an activation on an accelerator whose derivative is not known: NaN, a tensor, NaN."""
    readings = Readings()
    readings.add_all(
        [float("nan"), torch.zeros((), device="meta"), 0.5],
        [(OfLayer("derivative_mean", n),) for n in range(3)],
    )
    segments = readings.segments()
    assert [([keys[0].module for keys in layout], v.device.type) for layout, v in segments] == [
        ([0, 2], "cpu"),
        ([1], "meta"),
    ]


def test_a_row_that_was_put_once_more_arrives_once():
    tape = Tape()
    for step in (0, 1, 1, 2):  # an interrupt came before whoever put 1 knew that it had
        tape.put(Row(step))
    assert [row.step for row in tape.fetch()] == [0, 1, 2]
    for step in (2, 3):
        tape.put(Row(step))
    assert [row.step for row in tape.fetch()] == [3]


def test_a_full_tape_waits_for_the_drain_and_drops_nothing():
    tape = Tape(limit=10)
    segments = [(((OfLayer("signal_norm", 0),),) * 8, torch.zeros(8))]
    tape.put(Row(0, segments=segments))
    tape.put(Row(1, segments=segments))
    writer = threading.Thread(target=tape.put, args=(Row(2, segments=segments),))
    writer.start()
    seen = []
    while len(seen) < 3:
        seen += [row.step for row in tape.fetch()]
    writer.join()
    assert seen == [0, 1, 2]
