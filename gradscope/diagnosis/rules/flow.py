"""Vanishing and exploding: what becomes of the gradient on its way from output to input."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from gradscope.arithmetic import over_reference
from gradscope.diagnosis.evidence import WINDOW, Evidence, column_medians, running_median
from gradscope.diagnosis.findings import Finding, Place, Severity
from gradscope.diagnosis.ledger import account, decades_by_group, ledger
from gradscope.diagnosis.rules import remedies
from gradscope.diagnosis.rules.blocks import TRAINED
from gradscope.diagnosis.rules.update_speed import falls, gets_nowhere
from gradscope.diagnosis.signal_path import Floats, SignalPath, log10
from gradscope.diagnosis.speed import is_adaptive, is_fast, started
from gradscope.kinds import canonical
from gradscope.wording import amount, capitalised, compared, number

VANISHING = -2.0
"""Decades between last and first hidden layer from which on a gradient vanishes."""

EXPLODING = 2.0
"""Decades from which on the gradient of a shallow net explodes."""

PER_LAYER = 0.065
"""Decades that a layer may add: plain BatchNorm adds .083 at init, a bottleneck net up to .059."""

MOST = 6.0
"""Decades that no depth excuses."""

AT_ONCE = 1.25
"""Decades that the first step alone may have beyond: much settles with the second."""

MADE_UP_FOR = 5.0
"""Decades up to which an optimizer that moves early layers as fast as late ones makes up for it:
under Adam nets of -2.5 .. -4.7 learnt within 200 steps, one of -5.9 did not."""

GAIN_MADE_UP_FOR = 4.0, 1.0
"""Decades of a gain up to which it does, and those above the bound of a deep net: healthy trainings
under Adam were met up to 2.6."""

GROWN = 2.5
"""Decades by which values grow at the start, on their way forward, from which on a gain of the
gradient is that of weights too large: in trainings that learn with such a gain they grew by 1.7."""

SLOWER = -1.0
"""Decades of update speed, early over late third of the layers, that confirm a vanishing."""


def exploding_from(path: SignalPath) -> float:
    """Return the decades from which on a net of this depth explodes."""
    return float(min(max(EXPLODING, PER_LAYER * path.depth), MOST))


def flow(evidence: Evidence) -> Iterator[Finding]:
    """Judge D = log10(early / late gradient) by its running median, and the first step apart.

    D <= -2 is vanishing: no scaling of the loss, batch or width moves D, and an early layer that
    gets a hundredth of the gradient falls behind by as much under plain SGD (Nielsen, Neural
    Networks and Deep Learning, chapter 5, where four hidden layers lose two decades and learning
    stalls). It is for information where an optimizer such as Adam moves early layers as fast as
    late ones all the same, within a decade. D >= 2 is exploding, or in deep nets .065 a layer: each
    residual block without a normalisation at its end adds sqrt(2), and nets of a hundred layers
    train with that.
    """
    path = evidence.path
    if path is None:
        return
    rows = evidence.rows[~np.isnan(path.decades[evidence.rows])]
    if len(rows) == 0:
        return
    medians = running_median(path.decades[rows])
    window = len(rows) - len(medians) + 1
    bound = exploding_from(path) + (AT_ONCE if len(rows) == 1 else 0.0)
    first = path.decades[rows[0]]
    for ill, verdict, at_first in (
        (medians <= VANISHING, "vanishing", first <= VANISHING),
        (medians >= bound, "exploding", first >= bound),
    ):
        if ill.any():
            marked = np.flatnonzero(ill)
            span = rows[marked[0] : marked[-1] + window]
            severity: Severity = "critical" if ill[-1] else "warning"
            yield _finding(evidence, path, verdict, span, severity)
        elif at_first:
            yield _finding(evidence, path, verdict, rows[:1], "information")


def _finding(
    evidence: Evidence,
    path: SignalPath,
    verdict: str,
    rows: NDArray[np.int64],
    severity: Severity,
) -> Finding:
    decades = path.decades[rows]
    middle = rows[np.argsort(decades)[len(decades) // 2]]
    steps = (int(path.steps[rows[0]]), int(path.steps[rows[-1]]))
    frame = ledger(evidence.run, int(path.steps[middle]))
    lost = float(path.decades[middle])
    numbers = {
        "decades": lost,
        "early_signal": float(path.early[middle]),
        "late_signal": float(path.late[middle]),
    }
    numbers |= {f"{group}_decades": d for group, d in decades_by_group(frame).items()}
    sentence = capitalised(f"{path.early_name} gets {compared(lost)} {path.late_name}")
    passed = severity == "information"
    if passed:
        sentence += ": transient at init, it passed within the first steps"
    elif severity == "warning":
        sentence += f", no longer so after step {steps[1]}"
    where, lost_or_won = account(frame), "lost" if verdict == "vanishing" else "won"
    sentence += f". Where it is {lost_or_won}, in decades: {where}." if where else "."
    grown = _grown(evidence, path) if verdict == "exploding" and not passed else 0.0
    if grown > GROWN:
        sentence += f" Values grow as they go forward, too, {amount(10**grown)} times at the start."
    speed = math.nan if passed else _speed_decades(evidence, path, rows)
    if not math.isnan(speed):
        numbers["update_speed_decades"] = speed
        adaptive = is_adaptive(evidence)
        made_up_for = adaptive and grown < GROWN and _can_be_made_up_for(lost, path)
        if verdict == "vanishing":
            sentence += " " + _speed_in_words(speed, adaptive=adaptive)
            made_up_for &= speed > SLOWER
        elif made_up_for := made_up_for and abs(speed) < -SLOWER:
            sentence += " " + _speed_in_words(speed, adaptive=adaptive)
        if made_up_for and gets_nowhere(evidence):
            made_up_for = False
            sentence += " The loss stands still all the same."
        severity = "information" if made_up_for else severity
    over_places = _over_places(evidence, path, middle, numbers.get("other_decades", 0.0))
    if verdict == "vanishing" and over_places and lost + over_places > VANISHING:
        severity = "information"
        sentence += (
            f" A mean over many places takes {over_places:.1f} of it, and the gradient of weights"
            " that all of them share adds up again."
        )
    if verdict == "vanishing" and severity != "information" and _young(evidence, path):
        severity = "information"
        sentence += " Weights on the way started at zero or nearly so: they let little through yet."
    if verdict == "exploding" and grown < GROWN and _does_no_harm(evidence, path, lost):
        severity = "information"
        sentence += " It does no harm so far: the loss falls, and no step is too large."
    change = _typical_change(evidence, path, rows)
    # an underflow to 0 is the far end of vanishing
    far = change <= 10**VANISHING if verdict == "vanishing" else change >= 10**EXPLODING
    layers = tuple(evidence.names[i] for i in path.layers[far])
    against = remedies.vanishing if verdict == "vanishing" else remedies.exploding
    advice = [] if passed else against(evidence, path, frame, lost)
    worst = int(path.layers[0] if not far.any() else path.layers[far][0])
    place = Place(steps[0], worst, "signal_norm", "backward")
    return Finding(verdict, severity, sentence, layers, steps, numbers, tuple(advice), place)


def _over_places(evidence: Evidence, path: SignalPath, row: int, others: float) -> float:
    """Return the decades that means over places, points or time steps take from the signal, >= 0.

    A mean over n of them hands each 1/n, which has a norm of 1/sqrt(n).
    """
    hidden = path.layers[:-1]
    if len(hidden) < 2:
        return 0.0
    elements = evidence.at("output_elements", np.array([row]))[0, hidden]
    fewer = float(log10(over_reference(elements[:1], elements[-1:]))[0]) / 2
    return min(-others, fewer) if others < 0 < fewer else 0.0


def _young(evidence: Evidence, path: SignalPath) -> bool:
    """Whether weights on the path were zero at first, and have not had the time to grow.

    At the first step likewise such as are next to zero beside the others. A bias hides in a layer's
    norm that its weights are zero, as those that a spatial transformer begins with: what comes
    before then got exactly nothing at first, of a gradient that was no small one.
    """
    signal = evidence.at("signal_norm", evidence.rows[:1])[0, path.layers]
    none = np.flatnonzero(signal == 0)
    cut = len(none) > 0 and none[-1] + 1 < len(signal)
    cut = cut and signal[none[-1] + 1] > 10**VANISHING * signal[-1]
    first = evidence.at("weight_norm", evidence.rows[:1])[0, path.layers]
    small = evidence.weights[path.layers] & ~started(evidence)[path.layers]
    some = small.any() if len(evidence.rows) == 1 else (first == 0).any()
    return bool(some or cut) and len(evidence.rows) <= TRAINED


def _can_be_made_up_for(decades: float, path: SignalPath) -> bool:
    most, above = GAIN_MADE_UP_FOR
    gain = min(max(most, exploding_from(path) + above), MADE_UP_FOR)
    return -MADE_UP_FOR < decades < gain


def _does_no_harm(evidence: Evidence, path: SignalPath, won: float) -> bool:
    """Whether a gain that an optimizer can live with goes with a loss that falls, by small steps.

    Layers whose outputs are all handed on together, as in dense blocks, add up gradients on their
    way back; what makes it an explosion is steps too large.
    """
    return _can_be_made_up_for(won, path) and falls(evidence) and not is_fast(evidence)


def _grown(evidence: Evidence, path: SignalPath) -> float:
    """Return how many decades larger values get on the path than its first layer makes them."""
    size = evidence.sizes(evidence.rows[:1])[0, path.layers]
    size = size[np.isfinite(size) & (size > 0)]
    return float(np.log10(size.max() / size[0])) if len(size) else 0.0


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


def _speed_decades(evidence: Evidence, path: SignalPath, rows: NDArray[np.int64]) -> float:
    """Return log10 of the update speed, early third of the path's layers over the late third.

    Without embeddings, of which a batch moves a few rows only.
    """
    rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), 5 * WINDOW)).round().astype(int)]
    kinds = [canonical(str(evidence.layers["kind"].iloc[i])) for i in path.layers]
    layers = path.layers[["embedding" not in kind for kind in kinds]]
    update, weight = (
        evidence.at(column, rows)[:, layers] for column in ("update_norm", "weight_norm")
    )
    typical = column_medians(over_reference(update, weight))
    typical = typical[~np.isnan(typical)]
    if len(typical) < 2:
        return math.nan
    third = max(len(typical) // 3, 1)
    early, late = np.median(typical[:third]), np.median(typical[-third:])
    return float(log10(over_reference(np.array([early]), np.array([late])))[0])


def _speed_in_words(decades: float, *, adaptive: bool) -> str:
    if decades > SLOWER:
        times = f"{number(10**decades)} times the speed of the late ones"
        if adaptive:
            return f"It is compensated by the optimizer: the early layers change at {times}."
        return f"The early layers change at {times} all the same."
    if math.isinf(decades):
        return "It is confirmed: the early layers do not change at all."
    slower = amount(10**-decades) if decades > -300 else f"10^{-decades:.0f}"
    return f"It is confirmed: the early layers change {slower} times slower than the late ones."
