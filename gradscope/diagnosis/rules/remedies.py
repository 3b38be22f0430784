"""What to try: where the ledger, the optimizer and the other findings agree, with its number.

Each remedy comes with the decades that it could give back; those that give back most come first.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from gradscope.arithmetic import over_reference
from gradscope.diagnosis.evidence import Evidence
from gradscope.diagnosis.ledger import decades_by_group
from gradscope.diagnosis.signal_path import SignalPath
from gradscope.diagnosis.speed import FAST, is_adaptive, is_fast, started
from gradscope.kinds import BOTH_SIDES, canonical
from gradscope.wording import amount, number, setting

SHALLOW = 4
"""Weight layers below which a shortcut has nothing to jump over."""

AT_START = 1.0
"""Decades within which the first step's flow counts as healthy: what is ill later arose in it."""

FIRST = 1000
"""Recorded steps that are searched for the first one that was too large."""

ROSE = 10
"""Factor over a learning rate that was too large at which it is its rise that is to blame."""

BEYOND = 1e3
"""Update speed that is not the learning rate's fault alone."""

KEEP_GRADIENTS = (
    "move zero_grad() before the backward pass, or after the step: between backward and step it"
    " throws the gradient away"
)

CLIP = 0.9
"""Quantile of the gradient's norm to clip at: one step in ten is clipped."""


def vanishing(evidence: Evidence, path: SignalPath, frame: pd.DataFrame, lost: float) -> list[str]:
    """Return what would help against a loss of gradient, what gives back most first."""
    groups = decades_by_group(frame)
    on_path = frame[frame["on_path"]]
    found: list[tuple[float, str]] = []
    if _arose(evidence, path) and is_fast(evidence):
        found.append((np.inf, lower_rate(evidence)))
    if evidence.run.shortcuts.empty and len(path.layers) >= SHALLOW:
        found.append((-lost, "add a shortcut around every two layers: y = x + branch(x)"))
    activations = on_path.loc[on_path["group"] == "activation", "kind"]
    flat = [kind for kind in activations.unique() if canonical(kind) in BOTH_SIDES]
    if flat and groups.get("activation", 0) < -0.5:
        found.append(
            (
                -groups["activation"],
                f"replace {', '.join(flat)} by ReLU or GELU: its slope alone costs"
                f" {-groups['activation']:.1f} decades",
            )
        )
    norms = any("norm" in kind for kind in evidence.kinds)
    both = groups.get("weight", 0) + groups.get("activation", 0)
    small = groups.get("weight", 0) < -0.5 and not _arose(evidence, path)
    if small and not norms and "sigmoid" not in {canonical(kind) for kind in flat}:
        found.append((-both, _rescaled(evidence, path, both, "larger")))
    if not norms:
        found.append(
            (-lost / 2, "put a normalisation between weights and activation (BatchNorm, LayerNorm)")
        )
    if not is_adaptive(evidence) and lost > -4:
        found.append((0.1, "use Adam: scaling each weight's step makes up for a loss of this size"))
    return _ordered(found)


def exploding(evidence: Evidence, path: SignalPath, frame: pd.DataFrame, won: float) -> list[str]:
    """Return what would help against a gain of gradient, what takes away most first."""
    groups = decades_by_group(frame)
    found: list[tuple[float, str]] = []
    arose = _arose(evidence, path)
    if arose and is_fast(evidence):
        found.append((np.inf, lower_rate(evidence)))
    if groups.get("shortcut", 0) > 0.5 and not arose:
        count = len(evidence.run.shortcuts)
        found.append(
            (
                groups["shortcut"],
                f"scale each branch by 1/sqrt({count}) = {count**-0.5:.2f}, or start its last"
                " layer at zero: blocks without that grow with depth",
            )
        )
    norms = any("norm" in kind for kind in evidence.kinds)
    if groups.get("weight", 0) > 0.5 and not norms and not arose:
        both = groups["weight"] + groups.get("activation", 0)
        found.append((groups["weight"], _rescaled(evidence, path, both, "smaller")))
    if any("batchnorm" in kind for kind in evidence.kinds) and not arose:
        found.append(
            (
                0.2,
                "warm the learning rate up: BatchNorm without shortcuts explodes at initialisation"
                " and often recovers within the first steps",
            )
        )
    if not norms:
        found.append((won / 2, "put a normalisation before each branch or activation"))
    found.append((0.1, clip(evidence) if arose else "clip the gradient's norm, at 1 for a start"))
    return _ordered(found)


def lower_rate(evidence: Evidence, row: int | None = None) -> str:
    """Return by how much to lower the learning rate, from the first step that was too large.

    Or to let it rise less, where at `row` it is many times what it was then.
    """
    rows = evidence.rows[:FIRST]
    plain = "lower the learning rate, or warm it up over the first steps"
    if len(rows) == 0:
        return plain
    update, weight = (evidence.at(column, rows) for column in ("update_norm", "weight_norm"))
    speed = over_reference(update, weight)
    speed[:, ~started(evidence)] = np.nan
    speed[~np.isfinite(speed)] = 0
    large = np.flatnonzero(speed.max(axis=1) > FAST)
    if len(large) == 0:
        return plain
    most = float(speed[large[0]].max())
    if most > BEYOND:
        return (
            "no learning rate is small enough as long as the gradient is that large: step"
            f" {evidence.step(rows[large[0]])} changed weights by {of_size(most)}; see where it"
            " grows, and warm the rate up"
        )
    factor = 10.0 ** np.ceil(np.log10(most / 1e-2))
    rate = float(evidence.steps["learning_rate"].iloc[rows[large[0]]])
    now = np.nan if row is None else float(evidence.steps["learning_rate"].iloc[row])
    if now > ROSE * rate > 0:
        return (
            f"let the learning rate rise less: it was {setting(now, 2)} there, and"
            f" {setting(rate, 2)} at step {evidence.step(rows[large[0]])}, the first to change"
            f" weights by {of_size(most)}, where 0.1 to 1% is usual"
        )
    how = f"by a factor of {amount(factor)} perhaps"
    if rate > 0:
        how = f"from {setting(rate, 2)} to {setting(rate / factor, 2)} perhaps"
    return (
        f"lower the learning rate, {how}, or warm it up: step"
        f" {evidence.step(rows[large[0]])} changed weights by {of_size(most)}, 0.1 to 1% is usual"
    )


def share(speed: float) -> str:
    """Return an update speed in words: `0.32%`, `14 times`, `2e-06`."""
    if speed >= 2:
        return f"{amount(speed)} times"
    if speed >= 0.1:
        return f"{speed:.0%}"
    return f"{number(100 * speed)}%" if speed >= 1e-4 else number(speed, 1)


def of_size(speed: float) -> str:
    """Return it as what a step changes weights by: `32% of their size`, `14 times their size`."""
    return f"{share(speed)} {'' if speed >= 2 else 'of '}their size"


def clip_norm(evidence: Evidence, before: int | None = None) -> float:
    """Return the gradient norm that one step in ten exceeds, NaN without readings of it.

    Parameters
    ----------
    before : int, optional
        Look at the steps before this one alone, what came then is not what to allow. Of those the
        earlier half counts, in which the trouble had not begun.
    """
    rows = evidence.rows
    if before is not None:
        rows = rows[evidence.steps["step"].to_numpy()[rows] < before]
        rows = rows[: max(len(rows) // 2, 1)]
    norms = evidence.steps["grad_norm"].to_numpy(dtype=np.float64)[rows]
    norms = norms[np.isfinite(norms) & (norms > 0)]
    return float(np.quantile(norms, CLIP)) if len(norms) else np.nan


def clip(evidence: Evidence, before: int | None = None) -> str:
    """Return where to clip the gradient's norm, see `clip_norm`."""
    norm = clip_norm(evidence, before)
    if np.isnan(norm):
        return "clip the gradient's norm before the optimizer's step"
    when = "so far" if before is None else "before that"
    return f"clip the gradient's norm at {number(norm)}, its 90th percentile {when}"


def _arose(evidence: Evidence, path: SignalPath) -> bool:
    """Whether the gradient flowed well at the first step that was recorded."""
    first = path.decades[evidence.rows]
    first = first[~np.isnan(first)]
    return len(first) > 1 and abs(float(first[0])) < AT_START


def _rescaled(evidence: Evidence, path: SignalPath, decades: float, word: str) -> str:
    """Return the weights' size at the start, and the one at which they keep the gradient's size."""
    layers = path.layers[:-1] if len(path.layers) > 1 else path.layers
    size = evidence.at("weight_norm", evidence.rows[:1])[0, layers]
    count = evidence.layers["parameters"].to_numpy(dtype=np.float64)[layers]
    std = size / np.sqrt(count)
    middle = int(np.argsort(std)[len(std) // 2])
    factor = 10 ** (-decades / max(len(layers) - 1, 1))
    how = "Xavier" if {"tanh", "softsign"} & evidence.kinds else "He"
    call = "xavier_normal_, with the gain" if how == "Xavier" else "kaiming_normal_"
    told = ""
    if np.isfinite(std[middle]) and 0.01 < factor < 100 and abs(np.log10(factor)) > 0.02:
        told = (
            f": std {number(std[middle])} -> {number(std[middle] * factor)} for layer"
            f" {evidence.labels[layers[middle]]}, and the others likewise"
        )
    return f"start from {word} weights, {how}'s (torch.nn.init.{call}){told}"


def _ordered(found: list[tuple[float, str]]) -> list[str]:
    """Return the remedies, those that could change most first."""
    return [text for _, text in sorted(found, key=lambda entry: -entry[0])]
