"""Runs beside each other: degradation with depth, over- and underfitting, and their evidence.

Degradation is the observation of He et al. 2015 (Deep Residual Learning, section 1): with more
layers accuracy saturates and then falls, and that is no overfitting, as the training error rises,
too. Whether the gradient has a part in it is another question, answered here from the readings of
the very runs: it often has none.
"""

from __future__ import annotations

import html
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from gradscope.diagnosis.curves import Curve, logged_curves
from gradscope.diagnosis.findings import Diagnosis
from gradscope.diagnosis.kept import known_summary
from gradscope.diagnosis.shortcut_story import shortcut_story
from gradscope.errors import GradscopeError
from gradscope.runs.run import Run
from gradscope.schema import SPLIT_FORMS
from gradscope.wording import listed, number

WORSE_ERROR = 0.02
"""Training error, as a share, by which the deeper net must be worse for a degradation."""

WORSE_LOSS = 1.25
"""Factor between the training losses, where no error was logged."""

OVERFITTING = 0.05
"""Growth of the gap, validation less training loss, as a share of the first training loss."""


@dataclass(frozen=True)
class Observation:
    """One thing that a comparison shows.

    Attributes
    ----------
    kind : str
        `degradation`, `no degradation`, `overfitting`, `underfitting` or `shortcuts`.
    runs : tuple of str
        Names of the runs that it is about.
    sentence : str
    evidence : dict of str to float
    """

    kind: str
    runs: tuple[str, ...]
    sentence: str
    evidence: dict[str, float]


@dataclass(frozen=True)
class Comparison:
    """What the runs show beside each other; print it, or take it as a frame.

    Attributes
    ----------
    table : DataFrame, one row a run
        `run`, `depth` (weight layers), `shortcuts` (count), `step` (the one compared at),
        `train_loss`, `val_loss`, `train_error`, `val_error` (at that step, smoothed, NaN where
        not logged), `verdict`.
    observations : tuple of Observation
    notes : tuple of str
        What could not be compared, and why.
    """

    table: pd.DataFrame
    observations: tuple[Observation, ...]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        """Return the comparison as text for a terminal."""
        lines = [self.table.to_string(index=False, float_format="{:.4g}".format)]
        lines += [f"{o.kind}: {o.sentence}" for o in self.observations]
        return "\n".join(lines + [f"note: {note}" for note in self.notes])

    def to_frame(self) -> pd.DataFrame:
        """Return one row an observation: `kind`, `runs` (comma between), `sentence`, `evidence`."""
        rows = [
            (
                o.kind,
                ", ".join(o.runs),
                o.sentence,
                ", ".join(f"{name} = {number(value, 3)}" for name, value in o.evidence.items()),
            )
            for o in self.observations
        ]
        return pd.DataFrame(rows, columns=["kind", "runs", "sentence", "evidence"])

    def _repr_html_(self) -> str:
        """Return the comparison for a notebook."""
        items = [
            f"<b>{html.escape(o.kind)}</b>: {html.escape(o.sentence)}" for o in self.observations
        ]
        items += [f"<i>note: {html.escape(note)}</i>" for note in self.notes]
        table = self.table.to_html(index=False, float_format="{:.4g}".format)
        return f"{table}<ul>{''.join(f'<li>{item}</li>' for item in items)}</ul>"


def compare(runs: Sequence[Run], diagnoses: Sequence[Diagnosis] | None = None) -> Comparison:
    """Say whether deeper nets train worse, what their gradients say of it, and how well runs fit.

    Parameters
    ----------
    runs : sequence of Run
        Trained alike on the same data. Losses, errors or accuracies are found among the logged
        scalars by their names: `train_loss`, `loss/val`, `val_acc`, `training_error` ...
    diagnoses : sequence of Diagnosis, optional
        Of each run, where they are known already.

    Returns
    -------
    Comparison
        Training is compared at the last step that all of the runs have, fit at each run's end.

    Raises
    ------
    GradscopeError
        If `runs` is empty, or holds something else than a `Run`.

    Notes
    -----
    Degradation: of two nets that both have shortcuts or both have none, each the best trained of
    its depth, the deeper one has the higher training error by 2 points or more (or, where no error
    was logged, a loss 1.25 times as high). Overfitting: the training loss still fell while the
    gap, validation less training loss, grew by a twentieth of the first training loss or more,
    counted from the lowest validation loss or, where that is the last one, from the middle of the
    run. Underfitting: the training loss kept more than half of its first value, and validation is
    within a tenth of it.
    """
    given: list[Run] = [runs] if isinstance(runs, Run) else list(runs)
    for run in given:
        if not isinstance(run, Run):
            kind = type(run).__name__
            raise GradscopeError(
                f"compare() takes runs, got {kind}; read one with gradscope.load(path)"
            )
    if not given:
        raise GradscopeError("compare() needs at least one run, got none")
    curves = [logged_curves(run) for run in given]
    if diagnoses is None:
        known = [known_summary(run) for run in given]
        diagnoses, stories = [s.diagnosis for s in known], [s.shortcuts for s in known]
    else:
        diagnoses, stories = list(diagnoses), [shortcut_story(run) for run in given]
    step = min((int(run.steps["step"].max()) for run in given if len(run.steps)), default=0)
    table = _table(given, curves, diagnoses, step)
    observations: list[Observation] = []
    for a, b in itertools.combinations(_best_of_each_depth(table), 2):
        if table["depth"].iloc[a] < table["depth"].iloc[b]:
            observations += _degradation(table.iloc[a], table.iloc[b], diagnoses[b])
    for run, curve, story in zip(given, curves, stories, strict=True):
        observations += _fit(run, curve)
        if story:
            sentence = f"{run.name}: {story[0].lower()}{story[1:]}"
            observations.append(Observation("shortcuts", (run.name,), sentence, {}))
    return Comparison(table, tuple(observations), _not_logged(given, curves))


def _best_of_each_depth(table: pd.DataFrame) -> list[int]:
    """Return places of runs, from shallow to deep: the best trained of its depth, of either kind.

    With shortcuts is one kind, without the other.
    """
    ranked = table.reset_index().sort_values(["train_error", "train_loss"], kind="stable")
    best = ranked.groupby(["depth", ranked["shortcuts"] > 0], sort=False)["index"].first()
    return sorted(best.tolist(), key=lambda place: (table["depth"].iloc[place], place))


def _not_logged(
    runs: Sequence[Run], curves: Sequence[Mapping[tuple[str, str], Curve]]
) -> tuple[str, ...]:
    """Say what could not be compared, as nobody logged it."""
    training, validation = [], []
    for run, curve in zip(runs, curves, strict=True):
        if ("train", "loss") not in curve and ("train", "error") not in curve:
            training.append(run.name)
        elif ("val", "loss") not in curve:
            validation.append(run.name)
    notes = []
    if training:
        notes.append(
            f"{listed(training)}: no training loss or error was logged; log one with"
            " scope.log(train_loss=loss)"
        )
    if validation:
        notes.append(
            f"{listed(validation)}: no validation loss was logged, so how well it fits cannot be"
            " told; log one with scope.log(val_loss=loss)"
        )
    return tuple(notes)


def _table(
    runs: list[Run],
    curves: list[dict[tuple[str, str], Curve]],
    diagnoses: list[Diagnosis],
    step: int,
) -> pd.DataFrame:
    rows = []
    for run, curve, diagnosis in zip(runs, curves, diagnoses, strict=True):
        row: dict[str, object] = {
            "run": run.name,
            "depth": max((int(layer["depth"]) for layer in run.meta["layers"]), default=0),
            "shortcuts": sum(join["form"] in SPLIT_FORMS for join in run.meta["shortcuts"]),
            "step": step,
        }
        for part, measure in itertools.product(("train", "val"), ("loss", "error")):
            found = curve.get((part, measure))
            row[f"{part}_{measure}"] = found.at(step) if found else np.nan
        rows.append(row | {"verdict": diagnosis.verdict})
    return pd.DataFrame(rows)


def _degradation(shallow: pd.Series, deep: pd.Series, diagnosis: Diagnosis) -> list[Observation]:
    """Compare two rows of the table, nets of the same kind of which the second is deeper."""
    if (shallow["shortcuts"] > 0) != (deep["shortcuts"] > 0):
        return []
    measure = "train_error"
    if np.isnan([shallow[measure], deep[measure]]).any():
        measure = "train_loss"
    few, many = float(shallow[measure]), float(deep[measure])
    if np.isnan([few, many]).any():
        return []
    if measure == "train_error":
        worse, values = many - few >= WORSE_ERROR, f"{few:.1%} against {many:.1%}"
    else:
        worse = many >= WORSE_LOSS * few and many - few > 0.01
        values = f"{number(few, 3)} against {number(many, 3)}"
    name = measure.replace("train_", "training ")
    what = (
        f"{shallow['run']} ({shallow['depth']} layers) and {deep['run']} ({deep['depth']} layers)"
        f" reach a {name} of {values} at step {deep['step']}"
    )
    runs = (str(shallow["run"]), str(deep["run"]))
    evidence = {f"shallow_{measure}": few, f"deep_{measure}": many, "decades": diagnosis.decades}
    if not worse:
        return [Observation("no degradation", runs, f"{what}: depth does no harm.", evidence)]
    sentence = f"{what}: the deeper net trains worse. {_part_of_the_gradient(diagnosis)}"
    return [Observation("degradation", runs, sentence, evidence)]


def _part_of_the_gradient(diagnosis: Diagnosis) -> str:
    """Return whether the gradient of the deeper net can be why it trains worse."""
    if diagnosis.verdict.startswith("cannot tell"):
        return f"Whether its gradient has a part in that, one {diagnosis.verdict}."
    if diagnosis.verdict == "healthy":
        change = f"over the net it changes by {diagnosis.decades:+.1f} decades"
        passed = [f for f in diagnosis.findings if f.verdict in ("vanishing", "exploding")]
        at_init = f" It was {passed[0].verdict} at the first step only." if passed else ""
        return f"Vanishing is not the cause: its gradient flows, {change}.{at_init}"
    if diagnosis.end == "healthy":
        return (
            f"Its gradient was {diagnosis.verdict} for a while and flows at the end: a part in"
            " that it may have, but it is no cause that lasts."
        )
    if diagnosis.verdict == "vanishing":
        return f"Its gradient vanishes, which can be the cause: {diagnosis.summary}"
    return f"Vanishing is not what was found, but: {diagnosis.summary}"


def _fit(run: Run, curves: dict[tuple[str, str], Curve]) -> list[Observation]:
    """Judge over- and underfitting from a run's training and validation loss."""
    train, val = curves.get(("train", "loss")), curves.get(("val", "loss"))
    if train is None or val is None or len(val.values) < 3 or len(train.values) < 3:
        return []
    if not np.isfinite(val.values).any():
        return []
    first = float(train.values[0])
    shared = val.steps
    train_then = np.array([train.at(int(step)) for step in shared])
    gap = val.values - train_then
    best = int(np.nanargmin(val.values))
    since = best if best < len(gap) - 1 else len(gap) // 2
    evidence = {
        "first_train_loss": first,
        "train_loss": float(train_then[-1]),
        "val_loss": float(val.values[-1]),
        "lowest_val_loss": float(val.values[best]),
        "step_of_lowest_val_loss": float(shared[best]),
    }
    if gap[-1] - gap[since] >= OVERFITTING * first and train_then[-1] < train_then[since]:
        sentence = (
            f"{run.name} overfits: from step {shared[since]} to the end its training loss fell from"
            f" {number(train_then[since], 3)} to {number(train_then[-1], 3)}, while the validation"
            f" loss went from {number(val.values[since], 3)} to {number(val.values[-1], 3)}."
        )
        return [Observation("overfitting", (run.name,), sentence, evidence)]
    if train_then[-1] > 0.5 * first and abs(gap[-1]) <= 0.1 * train_then[-1]:
        sentence = (
            f"{run.name} underfits: its training loss is still {number(train_then[-1], 3)}, after"
            f" {number(first, 3)} at first, and the validation loss, {number(val.values[-1], 3)},"
            " is close to it."
        )
        return [Observation("underfitting", (run.name,), sentence, evidence)]
    return []
