"""Vanishing and exploding: what becomes of the gradient on its way from output to input."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gradscope.arithmetic import over_reference
from gradscope.diagnosis.evidence import WINDOW, Evidence, Mask, column_medians, running_median
from gradscope.diagnosis.findings import Finding, Severity
from gradscope.diagnosis.ledger import account, decades_by_group, ledger
from gradscope.diagnosis.signal_path import Floats, SignalPath, is_weight_layer, log10
from gradscope.kinds import BOTH_SIDES, canonical
from gradscope.wording import amount, compared

DECADES = 2.0
"""A gradient that changes by this many decades between last and first hidden layer is ill."""

SLOWER = -1.0
"""Decades of update speed, early over late third of the layers, that confirm a vanishing."""


def flow(evidence: Evidence) -> Iterator[Finding]:
    """Judge D = log10(early / late gradient) by its running median, and the first step apart.

    D <= -2 is vanishing, D >= 2 exploding: no scaling of the loss, batch or width moves D, and an
    early layer that gets a hundredth of the gradient falls behind by as much under plain SGD
    (Nielsen, Neural Networks and Deep Learning, chapter 5, where four hidden layers lose two
    decades and learning stalls).
    """
    path = evidence.path
    if path is None:
        return
    rows = evidence.rows[~np.isnan(path.decades[evidence.rows])]
    if len(rows) == 0:
        return
    medians = running_median(path.decades[rows])
    window = len(rows) - len(medians) + 1
    for ill, verdict in ((medians <= -DECADES, "vanishing"), (medians >= DECADES, "exploding")):
        if ill.any():
            marked = np.flatnonzero(ill)
            span = rows[marked[0] : marked[-1] + window]
            now = bool(ill[-1])
            yield _finding(evidence, path, verdict, span, "critical" if now else "warning")
        elif (
            (path.decades[rows[0]] <= -DECADES)
            if verdict == "vanishing"
            else (path.decades[rows[0]] >= DECADES)
        ):
            yield _finding(evidence, path, verdict, rows[:1], "information")


def non_finite(evidence: Evidence) -> Iterator[Finding]:
    """Find gradients, activations or losses that are infinite or not a number."""
    bad = _non_finite_rows(evidence)
    if not bad.any():
        return
    rows = evidence.rows[bad]
    step = evidence.steps["step"].to_numpy()
    layers: list[str] = []
    for column in ("activation_norm", "signal_norm", "grad_norm"):
        values = evidence.run.matrix(column)[1]
        broken = ~np.isfinite(values[rows[0]]) & np.isfinite(values).any(axis=0)
        layers += [
            evidence.names[i] for i in np.flatnonzero(broken) if evidence.names[i] not in layers
        ]
    # once the weights are NaN nothing more can be read
    to_the_end = bool(bad[-1])
    last = step[-1] if to_the_end else step[rows[-1]]
    yield Finding(
        "exploding",
        "critical" if to_the_end else "warning",
        f"Gradients, activations or the loss became infinite or not a number (NaN) at step"
        f" {step[rows[0]]}" + ("." if to_the_end else f", last at step {last}."),
        tuple(sorted(layers, key=evidence.names.index)),
        (int(step[rows[0]]), int(last)),
        {"first_step": float(step[rows[0]])},
        (
            "lower the learning rate, or warm it up over the first steps",
            "clip the gradient's norm before the optimizer's step",
            "look for a division, logarithm or exponential that overflows near the layers named",
        ),
    )


def _non_finite_rows(evidence: Evidence) -> Mask:
    """Return which of `evidence.rows` hold an infinite value, or a NaN that is no missing reading.

    A NaN of the global gradient norm is one where the norm is known at other steps, or where the
    loss of that step is none, either.
    """
    steps = evidence.steps.iloc[evidence.rows]
    total = steps["grad_norm"].to_numpy(dtype=np.float64)
    bad: Mask = np.isinf(total)
    for column in ("activation_norm", "signal_norm", "grad_norm"):
        bad |= evidence.infinite(column)
    lossless = np.zeros(len(bad), dtype=bool)
    for name in steps.columns.difference(["loss_scale"]):
        if "loss" in name:
            loss = steps[name].to_numpy(dtype=np.float64)
            bad |= np.isinf(loss)
            lossless |= np.isnan(loss)
    bad |= np.isnan(total) & (np.isfinite(total).any() | lossless)
    return bad


def _finding(
    evidence: Evidence, path: SignalPath, verdict: str, rows: NDArray[np.int64], severity: Severity
) -> Finding:
    decades = path.decades[rows]
    middle = rows[np.argsort(decades)[len(decades) // 2]]
    steps = (int(path.steps[rows[0]]), int(path.steps[rows[-1]]))
    account_frame = ledger(evidence.run, int(path.steps[middle]))
    lost = float(path.decades[middle])
    numbers = {
        "decades": lost,
        "early_signal": float(path.early[middle]),
        "late_signal": float(path.late[middle]),
    }
    numbers |= {f"{group}_decades": d for group, d in decades_by_group(account_frame).items()}
    sentence = (
        f"{path.early_name[0].upper()}{path.early_name[1:]} gets {compared(lost)} {path.late_name}."
    )
    if severity == "information":
        sentence += " Transient at init: it passed within the first steps."
    elif severity == "warning":
        sentence += f" No longer so after step {steps[1]}."
    sentence += f" Decades by kind of module: {account(account_frame)}."
    if verdict == "vanishing" and severity != "information":
        speed = _speed_decades(evidence, rows)
        if not math.isnan(speed):
            numbers["update_speed_decades"] = speed
            sentence += " " + _speed_in_words(speed)
    change = _typical_change(evidence, path, rows)
    # an underflow to 0 is the far end of vanishing
    far = change <= 10**-DECADES if verdict == "vanishing" else change >= 10**DECADES
    layers = tuple(evidence.names[i] for i in path.layers[far])
    remedies = (_against_vanishing if verdict == "vanishing" else _against_exploding)(
        evidence, account_frame
    )
    return Finding(verdict, severity, sentence, layers, steps, numbers, tuple(remedies))


def _typical_change(evidence: Evidence, path: SignalPath, rows: NDArray[np.int64]) -> Floats:
    """Return the median over `rows` of each layer's signal over the late one, (n,)."""
    signal = evidence.run.matrix("signal_norm")[1]
    late = path.late[rows]
    return np.concatenate(
        [
            column_medians(over_reference(signal[rows, layer].astype(np.float64), late)[:, None])
            for layer in path.layers
        ]
    )


def _speed_decades(evidence: Evidence, rows: NDArray[np.int64]) -> float:
    """Return log10 of the update speed, early third of the weight layers over the late third."""
    rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), 5 * WINDOW)).round().astype(int)]
    updates = evidence.run.matrix("update_norm")[1][rows].astype(np.float64)
    weights = evidence.run.matrix("weight_norm")[1][rows].astype(np.float64)
    speed = over_reference(updates, weights)[:, is_weight_layer(evidence.layers)]
    typical = column_medians(speed)
    typical = typical[~np.isnan(typical)]
    if len(typical) < 2:
        return math.nan
    third = max(len(typical) // 3, 1)
    early, late = np.median(typical[:third]), np.median(typical[-third:])
    return float(log10(over_reference(np.array([early]), np.array([late])))[0])


def _speed_in_words(decades: float) -> str:
    if decades > SLOWER:
        return (
            "It is compensated by the optimizer: the early layers change at"
            f" {10**decades:.2g} times the speed of the late ones."
        )
    if math.isinf(decades):
        return "It is confirmed: the early layers do not change at all."
    slower = amount(10**-decades) if decades > -300 else f"10^{-decades:.0f}"
    return f"It is confirmed: the early layers change {slower} times slower than the late ones."


def _against_vanishing(evidence: Evidence, account_frame: pd.DataFrame) -> Iterator[str]:
    groups = decades_by_group(account_frame)
    on_path = account_frame[account_frame["on_path"]]
    worst = min(groups, key=lambda name: groups[name]) if groups else "other"
    activations = on_path.loc[on_path["group"] == "activation", "kind"]
    flat = [kind for kind in activations.unique() if canonical(kind) in BOTH_SIDES]
    if evidence.run.shortcuts.empty:
        yield "add a shortcut around every two layers: y = x + branch(x)"
    if worst == "activation" and flat:
        yield (
            f"replace {', '.join(flat)} by ReLU or GELU: its derivative is what the gradient"
            " is lost in"
        )
    if groups.get("weight", 0) < -0.5 or not flat:
        if evidence.kinds & {"tanh", "softsign", "sigmoid"}:
            yield "start from Xavier weights (torch.nn.init.xavier_normal_, with the gain)"
        else:
            yield "start from He weights (torch.nn.init.kaiming_normal_): the default's are smaller"
    if not any("norm" in kind for kind in evidence.kinds):
        yield "put a normalisation between weights and activation (BatchNorm, LayerNorm)"


def _against_exploding(evidence: Evidence, account_frame: pd.DataFrame) -> Iterator[str]:
    groups = decades_by_group(account_frame)
    worst = max(groups, key=lambda name: groups[name]) if groups else "other"
    if worst == "shortcut":
        yield (
            "scale each branch by 1/sqrt(number of blocks), or start its last layer at zero:"
            " blocks without it grow with depth"
        )
    if worst == "normalisation" or any("batchnorm" in kind for kind in evidence.kinds):
        yield (
            "warm the learning rate up: BatchNorm without shortcuts explodes at initialisation"
            " and often recovers within the first steps"
        )
    if worst in ("weight", "other"):
        yield "start from smaller weights: Xavier for tanh, He (fan in) for ReLU"
    if not any("norm" in kind for kind in evidence.kinds):
        yield "put a normalisation before each branch or activation"
    yield "clip the gradient's norm, so that one step cannot throw the weights far"
