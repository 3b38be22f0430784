"""Games: a part that learns through another one, as a generator, and gets less and less of it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradscope.arithmetic import over_reference
from gradscope.diagnosis.evidence import Evidence
from gradscope.diagnosis.findings import Finding, Place
from gradscope.diagnosis.rules.collapsed import ALL_ALIKE, LOOKS
from gradscope.diagnosis.rules.update_speed import SLUGGISH
from gradscope.wording import amount, capitalised, number

STARVES = 100.0
"""Factor by which the gradient has to fall to be told of, from a player's first turns on."""

STARVED = 1000.0
"""Factor from which on it is no success: the parts of games that go well keep their gradients."""

STALLS = 10.0
"""Factor that is enough where next to nothing moves any more, and that at an unchanged rate."""

FEWEST = 6
"""Turns of a player to judge it by."""


def starved_player(evidence: Evidence) -> Iterator[Finding]:
    """Find a player whose gradient, which comes through another one, has all but gone.

    Players are told by their turns: layers that an optimizer moves at some steps, and others at
    other steps, though the signal passes the latter on its way to the former. Likewise one that
    makes the same of whatever it is given, as without noise.
    """
    owners = np.flatnonzero(evidence.weights & evidence.run.was_read("update_norm"))
    rows = evidence.rows[-4096:]
    if len(rows) < 2 * FEWEST or len(owners) < 2:
        return
    moved = np.isfinite(evidence.at("update_norm", rows)[:, owners])
    signal = np.isfinite(evidence.at("signal_norm", rows)[:, owners])
    grad = evidence.at("grad_norm", rows)[:, owners]
    patterns, which = np.unique(moved.T, axis=0, return_inverse=True)
    which = which.reshape(-1)
    for player, turns in enumerate(patterns):
        if turns.sum() < FEWEST or turns.all():
            continue
        own = which == player
        through = ~own & ~moved[turns].any(axis=0) & (signal[turns].mean(axis=0) > 0.5)
        through &= moved.any(axis=0)
        if not through.any():
            continue
        looks = evidence.looks("sample_spread")[:, owners[own]]
        looks = looks[~np.isnan(looks).any(axis=1)]
        if len(looks) >= LOOKS and (looks[-LOOKS:] < ALL_ALIKE).all():
            yield _same_for_all(evidence, owners[own], float(looks[-1].max()))
        size = np.sqrt(np.nansum(grad[turns][:, own] ** 2, axis=1))
        few = max(len(size) // 4, 3)
        first, last = float(np.max(size[:3])), float(np.median(size[-few:]))
        stalls = _stalls(evidence, owners[own], rows[turns], few)
        if not 0 < last < first / (STALLS if stalls else STARVES):
            continue
        yield _finding(evidence, owners[own], owners[through], rows[turns], (first, last), stalls)


def _stalls(evidence: Evidence, own: np.ndarray, turns: np.ndarray, few: int) -> bool:
    """Whether a player's weights hardly move in its last turns, though the rate is as it was."""
    moved, size = (
        evidence.at(column, turns[-few:])[:, own] for column in ("update_norm", "weight_norm")
    )
    speed = over_reference(moved, size)
    speed = speed[np.isfinite(speed)]
    rate = evidence.steps["learning_rate"].to_numpy(dtype=np.float64)[turns]
    return bool(len(speed) and np.median(speed) < SLUGGISH and rate[-1] > rate[0] / STALLS)


def _finding(
    evidence: Evidence,
    own: np.ndarray,
    through: np.ndarray,
    turns: np.ndarray,
    size: tuple[float, float],
    stalls: bool,
) -> Finding:
    fell = size[0] / size[1]
    other = _of(evidence, through)
    return Finding(
        "vanishing",
        "warning" if fell >= STARVED or stalls else "information",
        f"{_of(evidence, own)} learns through {other}, and its gradient has fallen {amount(fell)}"
        f" times since the start, from {number(size[0], 1)} to {number(size[1], 1)}: {other} is so"
        " sure of its judgement that what it is given makes no difference any more.",
        tuple(evidence.names[i] for i in own),
        (evidence.step(turns[0]), evidence.step(turns[-1])),
        {"first_gradient": size[0], "last_gradient": size[1]},
        (
            "use the non-saturating loss, -log D(G(z)), or a hinge or Wasserstein loss",
            f"slow the discriminator, {other}, down: a lower learning rate, fewer steps, a gradient"
            " penalty or spectral norm",
        ),
        Place(evidence.step(turns[-1]), int(own[0]), "grad_norm", "backward"),
    )


def _same_for_all(evidence: Evidence, own: np.ndarray, spread: float) -> Finding:
    return Finding(
        "collapsed",
        "critical",
        f"{_of(evidence, own)} makes the same for all samples, from its first layer on: only"
        f" {number(spread**2, 1)} of the variance of what its layers give lies between them.",
        tuple(evidence.names[i] for i in own),
        evidence.whole,
        {"sample_spread": spread},
        (
            "give it larger noise, of mean 0 and deviation 1: check that its input varies from"
            " sample to sample",
            "normalise its input, or start its first layer from larger weights",
        ),
        Place(evidence.whole[0], int(own[0]), "sample_spread", "forward"),
    )


def _of(evidence: Evidence, layers: np.ndarray) -> str:
    """Return the module that holds the layers, or the first of them in words."""
    parts = {evidence.names[i].partition(".")[0] for i in layers}
    if len(parts) == 1 and len(layers) > 1:
        return f"'{parts.pop()}'"
    return capitalised(evidence.named(layers[:1]))
