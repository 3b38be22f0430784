"""A run in a few words and numbers: flow of the gradient, loss, update speed, shortcuts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gradscope.diagnosis.curves import logged_curves, nan_to_the_end
from gradscope.diagnosis.evidence import Evidence
from gradscope.diagnosis.findings import CANNOT_TELL, FLOW, Diagnosis
from gradscope.diagnosis.shortcut_story import shortcut_story
from gradscope.diagnosis.speed import typical_speed
from gradscope.diagnosis.verdict import diagnosis_of
from gradscope.runs.run import Run
from gradscope.schema import STEPS
from gradscope.wording import amount, number

Tone = Literal["good", "unsure", "bad"]

STUCK, ROSE = 0.97, 1.2
"""A loss that ends above these shares of its first value is stuck, or rose."""
LEARNED = 0.01
"""A loss that ends below this share of its first value has little left to learn."""
HILL = 0.5
"""A rise between by this share of the first loss is told, though it fell again."""
SPARK = 40
"""Points of the small picture of a loss."""
JUMP = 0.5
"""Share of a layer's weights by which one step should not move it."""
SLOW, FAST = 1e-5, 0.1
"""Median update speeds that are worth a word."""


@dataclass(frozen=True)
class Judged:
    """One thing about a run, in a few words, and how good it is.

    Of one layer it is that with the index `layer`; `size` orders what is of one kind.
    """

    words: str
    tone: Tone
    layer: int | None = None
    size: float = 0.0


@dataclass(frozen=True)
class Summary:
    """What is said of a run where there is little room.

    Attributes
    ----------
    diagnosis : Diagnosis
    flow : Judged
        `Gradient flow: healthy`, about that alone.
    verdict : Judged or None
        The verdict, where it is about something else.
    loss, speed : Judged or None
        None where no loss was logged, no update was read.
    shortcuts : str
        What they do, in a sentence; empty without any.
    last_loss : float
        The middle of its last tenth, as `Diagnosis.beside` tells it; NaN where none was logged,
        or where it ends in NaN.
    logged_loss : float
        The latest finite value of the first logged scalar that is called a loss, NaN without.
    spark : array, shape (n,), at most `SPARK` + 1
        The training loss.
    steps : int
        How many were recorded.
    """

    diagnosis: Diagnosis
    flow: Judged
    verdict: Judged | None
    loss: Judged | None
    speed: Judged | None
    shortcuts: str
    last_loss: float
    logged_loss: float
    spark: NDArray[np.float64]
    steps: int

    @property
    def parts(self) -> list[Judged]:
        """What is judged, the worst first."""
        parts = (self.verdict, self.flow, self.loss, self.speed)
        order = ("bad", "unsure", "good")
        return sorted((part for part in parts if part), key=lambda part: order.index(part.tone))

    @property
    def jumped(self) -> bool:
        """Whether what is said of the speed is a step at the start that was too large."""
        return self.speed is not None and self.speed.words.startswith("step ")

    @property
    def tone(self) -> Tone:
        """The worst of its parts."""
        tones = [part.tone for part in self.parts]
        return next((tone for tone in ("bad", "unsure") if tone in tones), "good")


def summarise(run: Run) -> Summary:
    """Return what there is to say of `run` in short; it reads the whole of it."""
    evidence = Evidence(run)
    diagnosis = diagnosis_of(evidence)
    verdict = diagnosis.verdict.partition(":")[0]
    flow = verdict if verdict == CANNOT_TELL else diagnosis.flow
    tones: dict[str, Tone] = {"healthy": "good", CANNOT_TELL: "unsure"}
    other = verdict not in FLOW and verdict not in tones
    steps, values, raw = _training_loss(run)
    points = min(len(values), SPARK)
    kept = np.append(np.arange(points) * len(values) // max(points, 1), len(values) - 1)
    loss = _loss(run, steps, values, raw)
    speed = _speed(evidence, learned=len(raw) > 0 and _at_the_end(raw) < LEARNED * raw[0])
    broke = any("first_step" in finding.evidence for finding in diagnosis.findings)
    if broke and speed is not None and speed.tone == "good":  # a median from before that
        speed = None
    return Summary(
        diagnosis,
        Judged(f"Gradient flow: {flow}", tones.get(flow, "bad")),
        Judged(verdict.replace("-", " ").capitalize(), "bad") if other else None,
        loss,
        speed,
        shortcut_story(run),
        np.nan if nan_to_the_end(run.steps["step"].to_numpy(), steps) else _at_the_end(raw),
        _logged_loss(run),
        values[kept] if len(values) else values,
        len(run.steps),
    )


def _logged_loss(run: Run) -> float:
    steps = run.steps
    for name in steps.columns[len(STEPS) :]:
        if "loss" in name.lower():
            values = steps[name].to_numpy()
            finite = values[np.isfinite(values)]
            return float(finite[-1]) if len(finite) else np.nan
    return np.nan


def _training_loss(run: Run) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Return steps and values of the training loss, or of another one, smooth, and as logged.

    They are empty without any.
    """
    curves = logged_curves(run)
    for key in (("train", "loss"), ("val", "loss"), ("train", "error"), ("val", "error")):
        if key in curves:
            return curves[key].steps, curves[key].values, curves[key].raw
    return np.zeros(0, dtype=np.int64), np.zeros(0), np.zeros(0)


def _at_the_end(values: NDArray[np.float64]) -> float:
    return float(np.median(values[-max(len(values) // 10, 1) :])) if len(values) else np.nan


def _loss(
    run: Run,
    steps: NDArray[np.int64],
    values: NDArray[np.float64],
    raw: NDArray[np.float64],
) -> Judged | None:
    if not len(values):
        return None
    lost = nan_to_the_end(run.steps["step"].to_numpy(), steps)
    if lost is not None:
        return Judged(f"loss NaN from step {lost[0]:,} on", "bad")
    broken = ~np.isfinite(values)
    if broken.any():
        return Judged(f"loss not finite at step {steps[broken][0]:,}", "bad")
    first, last, top = raw[0], _at_the_end(raw), max(values.max(), raw[0])
    way = f"loss {number(first)} → {number(last)}"
    if last > ROSE * first:
        return Judged(f"{way}, rose", "bad")
    if top > 2 * first and len(values) > 2:
        return Judged(
            f"loss {number(first)} → {number(top)} → {number(last)}, rose between", "unsure"
        )
    if last > STUCK * first and len(values) >= 20:
        return Judged(f"{way}, hardly falls", "bad")
    rises = values - np.minimum.accumulate(values)
    if len(values) >= 20 and rises.max() > HILL * abs(first):
        hill = number(values[int(np.argmax(rises))])
        return Judged(f"loss {number(first)} → {hill} → {number(last)}, rose between", "good")
    return Judged(way, "good")


def _speed(evidence: Evidence, *, learned: bool) -> Judged | None:
    """Return how far steps move the weights, as the diagnosis does; a jump at the start first."""
    run = evidence.run
    table = run.layers
    deeper = np.diff(table["depth"].to_numpy(), prepend=0) > 0  # not the normalisation after it
    layers = np.flatnonzero(deeper if deeper.any() else np.ones(len(table), bool))
    steps = run.steps["step"].to_numpy()
    if not (len(steps) and len(layers)):
        return None
    _, early = run.matrix("update_ratio", None, int(steps[:20][-1]), layers.tolist())
    jumps = np.where(np.isfinite(early) & (early > JUMP), early, 0)
    if jumps.any():
        row, layer = np.unravel_index(int(np.argmax(jumps)), jumps.shape)
        by = jumps[row, layer]
        names = table["name"].to_numpy()[layers]
        far = f"{by * 100:.0f}%" if by < 10 else f"{amount(by)} times its size"
        moved = f"step {steps[row]} moved {names[int(layer)]} by {far}"
        # the harm that it did, if any, is told of the loss
        return Judged(moved, "unsure", int(layers[int(layer)]), float(by))
    speed = typical_speed(evidence)
    known = speed[np.isfinite(speed)]
    if not len(known):
        return None
    still = int((known == 0).sum())
    if still == len(known):
        return Judged("no layer moves", "unsure")
    if still:
        return Judged(f"{still} of {len(known)} layers do not move", "unsure")
    middle = float(np.median(known))
    if middle < SLOW and not learned:  # what has been learned need not move
        return Judged(f"weights hardly move: {number(middle)} a step", "unsure")
    if middle > FAST:
        return Judged(f"weights move fast: {number(middle)} a step", "unsure")
    return Judged(f"update speed {number(middle)} a step", "good")
