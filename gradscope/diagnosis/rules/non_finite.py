"""The first thing that broke: where infinity or NaN came from, and what announced it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd

from gradscope.arithmetic import over_reference
from gradscope.diagnosis.evidence import Evidence, Mask
from gradscope.diagnosis.findings import Finding, Place
from gradscope.diagnosis.rules import remedies
from gradscope.diagnosis.signal_path import Floats
from gradscope.diagnosis.speed import FAST, is_fast
from gradscope.wording import amount, capitalised, listed, number

BEFORE = 5
"""Recorded steps before the break that are looked at."""

_BESIDE = re.compile(r"(^|[^a-z])(best|lowest|min|val|valid|validation|test|eval|dev)([^a-z]|$)")
"""Logged losses that say nothing of the step: the best so far is infinite at first."""

GREW = 3.0
"""Factor from which on a norm is said to have grown."""


def non_finite(evidence: Evidence) -> Iterator[Finding]:
    """Find gradients or losses that are infinite or not a number, and where that began.

    An infinite activation is none where loss and gradients are finite: masks are made of it.
    """
    bad = _broken_rows(evidence)
    if not bad.any():
        return
    first = int(np.flatnonzero(bad)[0])
    row = int(evidence.rows[first])
    steps = evidence.steps["step"].to_numpy()
    # once the weights are NaN nothing more can be read
    to_the_end = bool(bad[-1])
    last = int(steps[-1] if to_the_end else steps[evidence.rows[bad][-1]])
    broken = _first_broken(evidence, row)
    sentence = f"Step {steps[row]}: {broken.words}."
    growth, said = _announced(evidence, first)
    sentence += f" {said}"
    if not to_the_end:
        sentence += f" It passed: last seen at step {last}."
    yield Finding(
        "exploding",
        "critical" if to_the_end else "warning",
        sentence,
        broken.layers,
        (int(steps[row]), last),
        {"first_step": float(steps[row])} | growth,
        tuple(_remedies(evidence, row, broken, growth)),
        broken.place,
    )


class _Broken(NamedTuple):
    """What was not finite first."""

    words: str
    layers: tuple[str, ...]
    place: Place
    what: str
    """`weights`, `overwritten`, `input`, `forward`, `loss`, `backward` or `gradient`."""


def _first_broken(evidence: Evidence, row: int) -> _Broken:
    """Follow one step from the weights through forward and backward to what broke first."""
    labels = evidence.labels
    at = {
        column: evidence.at(column, np.array([row]))[0]
        for column in ("weight_norm", "activation_norm", "input_signal_norm", "signal_norm")
    }
    at["grad_norm"] = evidence.at("grad_norm", np.array([row]))[0]
    usually = {column: evidence.run.was_read(column) for column in at}

    def broken(column: str) -> list[int]:
        """Return the layers whose reading is infinite, or NaN though it was one at other steps."""
        return [int(i) for i in np.flatnonzero(~np.isfinite(at[column]) & _measured(column))]

    def _measured(column: str) -> Mask:
        if row > evidence.rows[0] or column == "weight_norm":
            return usually[column]
        # what is NaN from the first step on was never read: of layers that learn, all should be
        return np.asarray(usually[column] | (np.isfinite(at["weight_norm"]) & evidence.owners))

    def found(words: str, what: str, layer: int | None, column: str, phase: str) -> _Broken:
        names = () if layer is None else (evidence.names[layer],)
        return _Broken(words, names, Place(evidence.step(row), layer, column, phase), what)  # type: ignore[arg-type]

    if weights := broken("weight_norm"):
        since = "" if row == 0 else f" since the update of step {evidence.step(row - 1)}"
        words, what = f"the weights of layer {labels[weights[0]]} are not finite{since}", "weights"
        if _was_overwritten(evidence, row, weights[0]):
            words += ", though that was finite: something else wrote them"
            what = "overwritten"
        return found(words, what, weights[0], "weight_norm", "update")
    called = [i for i in range(len(labels)) if usually["activation_norm"][i]]
    if outputs := broken("activation_norm"):
        layer = outputs[0]
        kind = _word(at["activation_norm"][layer])
        read = evidence.sources.get(layer, []) if evidence.sources else called
        before = [i for i in read if i < layer and np.isfinite(at["activation_norm"][i])]
        if not before and (evidence.recurrent[layer] or _grew(evidence, row, layer)):
            return found(
                f"the forward pass became {kind} within layer {labels[layer]}, whose weights are"
                " finite",
                "forward", layer, "activation_norm", "forward",
            )  # fmt: skip
        if not before:
            return found(
                f"the forward pass is {kind} from its first layer, {labels[layer]}, on, whose"
                " weights are finite: so was what it got, the batch or what the model makes of it"
                f" before{_between(evidence, layer)}",
                "input", layer, "activation_norm", "forward",
            )  # fmt: skip
        largest = at["activation_norm"][before[-1]]
        return found(
            f"the forward pass became {kind} at layer {labels[layer]}, whose weights are finite,"
            f" or in what is computed before it{_between(evidence, layer)}: the layer before,"
            f" {labels[before[-1]]}, still gave finite numbers (norm {number(largest)})",
            "forward", layer, "activation_norm", "forward",
        )  # fmt: skip
    lossless = _loss_at(evidence, row)
    if not np.isfinite(lossless):
        return found(
            f"the loss became {_word(lossless)}, while every layer's output is finite: it happened"
            " in the loss, or in what the model computes behind its layers",
            "loss", called[-1] if called else None, "activation_norm", "loss",
        )  # fmt: skip
    signals = broken("signal_norm")
    if signals:
        layer = signals[-1]
        kind = _word(at["signal_norm"][layer])
        after = [
            i
            for i in range(layer + 1, len(labels))
            if np.isfinite(at["signal_norm"][i]) or np.isfinite(at["input_signal_norm"][i])
        ]
        if not after:
            return found(
                f"the backward pass is {kind} from the output, layer {labels[layer]}, on, though"
                " the forward pass is finite: it happened in the gradient of the loss",
                "loss", layer, "signal_norm", "loss",
            )  # fmt: skip
        inside = np.isfinite(at["signal_norm"][after[0]]) and not np.isfinite(
            at["input_signal_norm"][after[0]]
        )
        where = (
            f"within layer {labels[after[0]]}"
            if inside and usually["input_signal_norm"][after[0]]
            else f"between layer {labels[after[0]]} and layer {labels[layer]}"
            f"{_between(evidence, after[0])}"
        )
        return found(
            f"the backward pass became {kind} {where}; the forward pass is finite",
            "backward", layer, "signal_norm", "backward",
        )  # fmt: skip
    gradients = broken("grad_norm")
    layer_or_none = gradients[-1] if gradients else None
    where = f"of layer {labels[gradients[-1]]} " if gradients else ""
    return found(
        f"in the backward pass the weights' gradient {where}became infinite or not a number (NaN),"
        " while what reached the layers' outputs is finite",
        "gradient", layer_or_none, "grad_norm", "backward",
    )  # fmt: skip


def _between(evidence: Evidence, layer: int) -> str:
    """Return the modules of one's own that run before a layer, in brackets."""
    names = evidence.run.facts.get("between", {}).get(evidence.names[layer], ())
    return f" ({listed(names)} run{'s' * (len(names) == 1)} there)" if names else ""


def _grew(evidence: Evidence, row: int, layer: int) -> bool:
    """Whether a layer's output was growing in the steps before, so that it overflowed by itself."""
    rows = evidence.rows[evidence.rows < row][-4 * BEFORE :]
    out = evidence.at("activation_norm", rows)[:, layer] if len(rows) else np.zeros(0)
    out = out[np.isfinite(out) & (out > 0)]
    return len(out) > 1 and bool(out[-1] > GREW * np.median(out))


def _was_overwritten(evidence: Evidence, row: int, layer: int) -> bool:
    """Whether the step before this row left a layer's weights finite, which now are not."""
    before = evidence.rows[evidence.rows < row][-1:]
    if len(before) == 0:
        return False
    both = [evidence.at(c, before)[0, layer] for c in ("weight_norm", "update_norm")]
    return bool(np.isfinite(both).all()) and evidence.step(before[0]) + 1 == evidence.step(row)


def _word(value: float) -> str:
    return "infinite" if np.isinf(value) else "not a number (NaN)"


def _announced(evidence: Evidence, first: int) -> tuple[dict[str, float], str]:
    """Return what grew in the steps before, as numbers and in words."""
    rows = evidence.rows[max(first - BEFORE, 0) : first]
    if len(rows) == 0:
        return {}, "It was so from the first recorded step on."
    norms = evidence.steps["grad_norm"].to_numpy(dtype=np.float64)
    usual, last = _usual(norms, evidence, first), norms[rows[-1]]
    growth: dict[str, float] = {}
    parts = []
    if np.isfinite(last) and last > GREW * usual:
        growth["gradient_growth"] = float(last / usual)
        parts.append(
            f"the gradient's norm had grown {amount(last / usual)} times, to {number(last)}"
        )
    out = evidence.at("activation_norm", evidence.rows[:first][-21:])
    larger = np.zeros(out.shape[1])
    for layer, values in enumerate(out.T):
        known = values[np.isfinite(values) & (values > 0)]
        if len(known) > 1:
            larger[layer] = known[-1] / np.median(known)
    if len(larger) and larger.max() > GREW:
        layer = int(larger.argmax())
        growth["activation_growth"] = float(larger[layer])
        parts.append(
            f"the output of layer {evidence.labels[layer]} had grown {amount(larger[layer])} times"
        )
    last_row = rows[-1:]
    speed = over_reference(
        evidence.at("update_norm", last_row)[0], evidence.at("weight_norm", last_row)[0]
    )
    speed[~evidence.weights] = 0
    if np.nanmax(speed, initial=0) > FAST:
        layer = int(np.nanargmax(speed))
        growth["update_ratio"] = float(speed[layer])
        parts.append(
            f"the weights of layer {evidence.labels[layer]} had been changed by"
            f" {remedies.of_size(float(speed[layer]))}"
        )
    if not parts:
        return growth, "Nothing announced it: norms were as usual the step before."
    return growth, capitalised(f"{', and '.join(parts)}, the step before.")


def _usual(norms: Floats, evidence: Evidence, first: int) -> float:
    """Return the median gradient norm of the steps before, without the last ones."""
    rows = evidence.rows[:first]
    earlier = norms[rows[: max(len(rows) - BEFORE, 1)]]
    earlier = earlier[np.isfinite(earlier) & (earlier > 0)]
    return float(np.median(earlier[-20:])) if len(earlier) else np.nan


def _loss_at(evidence: Evidence, row: int) -> float:
    """Return the worst of the losses at a row, infinite or NaN if one is; 0 where none was logged.

    A NaN counts where there is no number at any other step, or no gradient at this one.
    """
    steps = evidence.steps
    lossless = np.isnan(float(steps["grad_norm"].iloc[row]))
    worst = 0.0
    for name in _losses(steps):
        values = steps[name].to_numpy(dtype=np.float64)
        if np.isinf(values[row]) or (
            np.isnan(values[row]) and (lossless or np.isnan(values).all())
        ):
            worst = float(values[row])
    return worst


def _losses(steps: pd.DataFrame) -> list[str]:
    """Return the columns of losses that a step is made from, no validation's and no best one."""
    return [
        name
        for name in steps.columns.difference(["loss_scale"])
        if "loss" in name and not _BESIDE.search(name.lower())
    ]


def _remedies(
    evidence: Evidence, row: int, broken: _Broken, growth: dict[str, float]
) -> Iterator[str]:
    if broken.what == "input":
        yield "check the batch of this step with torch.isfinite(x).all() before the model sees it"
        yield (
            "if it is finite, look for a logarithm, division, root or exponential in what the model"
            " computes before this layer; add an eps"
        )
        yield "look for a division by a standard deviation of 0, or missing values, in the data"
        return
    if broken.what == "overwritten":
        yield (
            "look for what writes parameters between the steps: a checkpoint that is loaded, an"
            " average, an operation in place"
        )
        return
    if growth or broken.what == "weights" or is_fast(evidence):
        yield remedies.lower_rate(evidence, row)
        yield remedies.clip(evidence, broken.place.step)
    if broken.what == "forward" and not growth:
        yield "look for a logarithm, division, root or exponential before this layer; add an eps"
    if broken.what == "loss":
        yield (
            "look for a logarithm of 0 or less, or a division by 0, in the loss and behind the last"
            " layer; use the form that takes logits"
        )
        yield (
            "look for a root or norm of 0 in the loss, whose slope is infinite (add an eps inside),"
            " and for missing values among the targets"
        )
    if broken.what in ("backward", "gradient"):
        yield (
            "look for a root, norm, division or power at 0 there: its value is finite, its slope is"
            " not; add an eps inside, or torch.where on the input"
        )
        yield (
            "look for an exponential or power that overflows there, in half precision from 65,504"
            " on: compute it in float32, or clamp what goes in"
        )
    if not growth and broken.what != "weights":
        yield "torch.autograd.set_detect_anomaly(True) names the line"


def _broken_rows(evidence: Evidence) -> Mask:
    """Return which of `evidence.rows` hold an infinite value, or a NaN that is no missing reading.

    A NaN of the global gradient norm is one where the norm is known at other steps, where the loss
    of that step is none, either, or where the step made weights NaN; where optimizers got finite
    gradients and made finite updates it was not read, and where all that they hold had no gradient
    there is none. A NaN of the loss may be one that was not logged, but not at every step.
    """
    steps = evidence.steps.iloc[evidence.rows]
    total = steps["grad_norm"].to_numpy(dtype=np.float64)
    bad: Mask = np.isinf(total)
    for column in ("signal_norm", "grad_norm"):
        bad |= evidence.infinite(column)
    lossless = np.zeros(len(bad), dtype=bool)
    for name in _losses(steps):
        loss = steps[name].to_numpy(dtype=np.float64)
        bad |= np.isinf(loss) | np.isnan(loss).all()
        lossless |= np.isnan(loss)
    got = steps["clipped_grad_norm"].to_numpy(dtype=np.float64)
    unknown = np.isnan(total) & ~(np.isfinite(got) & _moved_well(evidence))
    unknown &= ~_had_nothing(evidence)
    if unknown.any():
        known = np.isfinite(total).any()
        bad |= unknown & (known | lossless | _made_nan(evidence) | _ended_in_nan(evidence))
    return bad


def _moved_well(evidence: Evidence) -> Mask:
    """Return in which of `evidence.rows` weights moved, and none by NaN, (R,)."""
    update, weight = (evidence.at(c, evidence.rows) for c in ("update_norm", "weight_norm"))
    held = np.isfinite(weight) & evidence.owners
    moved = (held & np.isfinite(update)).any(axis=1)
    return np.asarray(moved & ~(held & np.isnan(update)).any(axis=1))


def _had_nothing(evidence: Evidence) -> Mask:
    """Return in which of `evidence.rows` no weights that were held had a gradient, or moved, (R,).

    A gradient of NaN makes NaN of what a step changes.
    """
    weight, update, grad = (
        evidence.at(c, evidence.rows) for c in ("weight_norm", "update_norm", "grad_norm")
    )
    held = np.isfinite(weight) & evidence.owners
    without = held & np.isnan(grad) & (update == 0)
    return np.asarray(held.any(axis=1) & (without == held).all(axis=1))


def _ended_in_nan(evidence: Evidence) -> Mask:
    """Return which of `evidence.rows` nothing but losses of NaN came after: the last, or none."""
    ended = np.zeros(len(evidence.rows), dtype=bool)
    after = evidence.steps.iloc[evidence.rows[-1] + 1 :]
    losses = after[_losses(evidence.steps)]
    ended[-1] = losses.size > 0 and losses.isna().all(axis=None)
    return ended


def _made_nan(evidence: Evidence) -> Mask:
    """Return which of `evidence.rows` come with or after a step that made finite weights NaN, (R,).

    The change of weights that got no gradient, or no step, is 0; NaN it is where they became NaN.
    """
    made = np.zeros(len(evidence.rows), dtype=bool)
    some = evidence.run.was_read("update_norm").any()
    for index in range(len(made)):
        row = evidence.rows[index : index + 1]
        weight, update, grad, out = (
            evidence.at(column, row)[0]
            for column in ("weight_norm", "update_norm", "grad_norm", "activation_norm")
        )
        lost = np.isfinite(weight) & evidence.owners & np.isnan(update) & np.isnan(grad)
        if lost.any() and (some or np.isnan(out[lost]).any()):
            made[index:] = True
            break
    return made
