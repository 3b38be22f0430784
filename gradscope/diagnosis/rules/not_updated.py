"""Not updated: a gradient arrives, and the weights never move."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from gradscope.diagnosis.evidence import WINDOW, Evidence, Mask
from gradscope.diagnosis.findings import Finding, Place, Severity
from gradscope.diagnosis.rules import remedies
from gradscope.diagnosis.rules.marks import moved_place, names_of
from gradscope.wording import amount, capitalised, listed, setting

SKIPPED = 8
"""Steps that a loss scaler has to skip, all of them, before that is said."""

LEAST_RATE = 1e-6
"""Of the largest learning rate, at and below which a schedule is over."""

OVER = 0.1
"""Share of the recorded steps after the end of a schedule: a cosine's last ones are small, too."""

ENOUGH = 3
"""Recorded steps without a move before it is said: a warm-up may start at a learning rate of 0."""

NEXT_TO_NOTHING = 1e-9
"""Share of the largest gradient below which a step is lost in rounding."""


def not_updated(evidence: Evidence) -> Iterator[Finding]:
    """Find weights that no optimizer holds, and such as its steps leave where they are."""
    yield from _without_step(evidence)
    yield from _of_others(evidence)
    yield from _outside(evidence)
    yield from _skipped(evidence)
    if not evidence.windows:
        return
    run = evidence.run
    got = evidence.owners & np.asarray((np.nan_to_num(evidence.median("grad_norm")) > 0).any(0))
    held = run.was_read("weight_norm") & run.was_read("update_norm")
    if not held.any():
        return
    unheld = got & ~run.was_read("weight_norm")
    if evidence.audited:
        unheld &= evidence.audit("no optimizer")
    yield from _unheld(evidence, unheld)
    yield from _partly_held(evidence, got)
    yield from _frozen(evidence)
    moved = np.asarray((np.nan_to_num(evidence.highest("update_norm"), nan=1) > 0).any(axis=0))
    # what gets next to nothing beside others has another fault
    grad = np.nan_to_num(evidence.median("grad_norm")).max(axis=0)
    got &= grad > NEXT_TO_NOTHING * grad.max(initial=0)
    yield from _unmoved(evidence, got & held & ~moved, got & held)
    yield from _over(evidence)


def _skipped(evidence: Evidence) -> Iterator[Finding]:
    """Find runs of which a loss scaler skipped every step, at a scale that it does not lower."""
    steps = evidence.steps
    if len(steps) < SKIPPED or not steps["skipped"].all():
        return
    scale = steps["loss_scale"].to_numpy(dtype=np.float64)
    if scale[-1] < scale[0] and len(steps) < WINDOW:  # it is on its way
        return
    first, last = int(steps["step"].iloc[0]), int(steps["step"].iloc[-1])
    yield Finding(
        "not-updated",
        "critical",
        f"The loss scaler skipped all of {len(steps)} steps, and no weight has changed: at a scale"
        f" of {setting(float(scale[-1]), 2)} gradients overflow.",
        (),
        (first, last),
        {"loss_scale": float(scale[-1])},
        (
            "call scaler.update() after each scaler.step(optimizer): it halves the scale where"
            " gradients overflow",
            "start the scaler at 2 ** 16, or use bfloat16, which needs none",
        ),
        Place(first, None, "loss_scale", "update"),
    )


def _without_step(evidence: Evidence) -> Iterator[Finding]:
    """Find runs in which gradients were made, and no optimizer was seen to step."""
    facts = evidence.run.facts
    count = int(facts.get("backwards_without_step", 0))
    if count < ENOUGH or "steps_of_others" in facts or "steps_without_gradient" in facts:
        return
    yield Finding(
        "not-updated",
        "critical",
        f"{count} backward passes have reached the model, and no step of an optimizer was seen: no"
        " weight has changed by one.",
        (),
        (0, 0),
        {"backwards": float(count)},
        (
            "call optimizer.step() after the backward pass; where gradients of several batches are"
            " added up, also after the last ones of an epoch, before zero_grad()",
        ),
    )


def _of_others(evidence: Evidence) -> Iterator[Finding]:
    """Find runs without a step, as the optimizers that stepped hold nothing of the model."""
    count = int(evidence.run.facts.get("steps_of_others", 0))
    if count < ENOUGH or evidence.run.was_read("update_norm").any():
        return
    yield Finding(
        "not-updated",
        "critical",
        f"The optimizer holds none of the parameters that the model trains: {count} times it"
        " stepped after a backward pass through the model, and not one weight of it moved.",
        (),
        (0, count - 1),
        {"steps": float(count)},
        (
            "make the optimizer from the parameters of the model that is trained, after layers were"
            " added, and it was copied, loaded, wrapped or moved: Adam(model.parameters())",
        ),
    )


def _outside(evidence: Evidence) -> Iterator[Finding]:
    """Find parameters of layers that the model does not know that it has."""
    shapes = evidence.run.facts.get("outside", [])
    if not shapes or len(evidence.rows) == 0:
        return
    each = list(dict.fromkeys(" x ".join(map(str, shape)) or "1" for shape in shapes))
    elements = sum(math.prod(shape) for shape in shapes)
    names = evidence.run.facts.get("outside_in", [])
    kept = f"are kept in a Python list or dict, {listed(names)}, " if names else ""
    yield Finding(
        "not-updated",
        "critical",
        f"The model computes with {len(shapes)} parameters, {amount(elements)} numbers, that"
        f" model.parameters() does not list and no optimizer holds (of shapes {listed(each)}): they"
        f" {kept}never learn, are not saved, and do not move to another device.",
        (),
        evidence.whole,
        {"parameters": float(len(shapes)), "elements": float(elements)},
        (
            "keep layers in nn.ModuleList or nn.ModuleDict, not in a Python list or dict, and make"
            " the optimizer afterwards",
            "if they belong to another model that is meant to stay as it is, freeze it:"
            " requires_grad_(False)",
        ),
    )


def _unheld(evidence: Evidence, layers: Mask) -> Iterator[Finding]:
    if not layers.any():
        return
    yield Finding(
        "not-updated",
        "critical",
        f"No optimizer holds the weights of {evidence.named(layers)}: a gradient arrives at every"
        " step, and the weights stay as they were.",
        names_of(evidence, layers),
        evidence.whole,
        {"layers": float(layers.sum())},
        (
            "hand model.parameters() to the optimizer after the model is complete: layers that"
            " were added or replaced later need optimizer.add_param_group",
            "if they are meant to stay as they are, freeze them: requires_grad_(False) saves their"
            " backward pass",
        ),
        moved_place(evidence, layers, "grad_norm"),
    )


def _partly_held(evidence: Evidence, got: Mask) -> Iterator[Finding]:
    """Find weights that no optimizer holds, of layers of which it holds the rest."""
    parts = {i: names for i, names in evidence.partly("no optimizer").items() if got[i]}
    if not parts:
        return
    layers = np.isin(np.arange(len(got)), list(parts))
    which = listed(list(dict.fromkeys(name for names in parts.values() for name in names)))
    yield Finding(
        "not-updated",
        "critical",
        f"No optimizer holds {which} of {evidence.named(layers)}, while it holds what else is"
        " there: a gradient arrives at every step, and they stay as they were.",
        names_of(evidence, layers),
        evidence.whole,
        {"layers": float(layers.sum())},
        (
            "make the optimizer after weights are parametrised (weight_norm, spectral_norm), pruned"
            " or replaced: it holds those of before",
            "write into a parameter, under no_grad() (weight.copy_), in place of making a new one",
        ),
        moved_place(evidence, layers, "grad_norm"),
    )


def _frozen(evidence: Evidence) -> Iterator[Finding]:
    """Tell of what is frozen: it is meant, or was forgotten."""
    layers = evidence.audit("frozen")
    if not layers.any():
        return
    count = int(evidence.layers["parameters"].to_numpy()[layers].sum())
    yield Finding(
        "not-updated",
        "information",
        f"{capitalised(evidence.named(layers))} {'is' if layers.sum() == 1 else 'are'} frozen"
        f" (requires_grad is False), {amount(count)} parameters of"
        f" {amount(int(evidence.layers['parameters'].sum()))}.",
        names_of(evidence, layers),
        evidence.whole,
        {"layers": float(layers.sum()), "parameters": float(count)},
        ("if they are meant to learn: requires_grad_(True), before the optimizer is made",),
        moved_place(evidence, layers, "weight_norm"),
    )


def _unmoved(evidence: Evidence, layers: Mask, held: Mask) -> Iterator[Finding]:
    """Tell whose step it was that did nothing: of all that is held, or of a part."""
    if not layers.any():
        return
    whole = bool(layers[held].all())
    left = evidence.highest("clipped_grad_norm")[:, layers]
    thrown = bool((np.nan_to_num(left) == 0).all())
    if not thrown and len(evidence.rows) < ENOUGH:
        return
    most = layers[held & evidence.weights].mean() > 0.5 if (held & evidence.weights).any() else True
    severity: Severity = "critical" if whole or thrown else "warning" if most else "information"
    which = "all layers" if whole else evidence.named(layers)
    if thrown:
        sentence = (
            f"The gradient of {which} is gone before the optimizer's step: the backward pass makes"
            " one, the optimizer gets none, and no weight moves."
        )
        advice: tuple[str, ...] = (remedies.KEEP_GRADIENTS,)
    else:
        rate = evidence.steps["learning_rate"].to_numpy(dtype=np.float64)[evidence.rows]
        rate = rate[~np.isnan(rate)]
        why = (
            "its learning rate is 0 there, or its steps are smaller than their number format holds"
        )
        advice = (
            "print optimizer.param_groups[0]['lr'] in the loop: the learning rate may be 0, or a"
            " scheduler have brought it there",
            "if the weights are in float16 or bfloat16, keep them in float32 and train under"
            " torch.autocast: a step below 0.4% of a bfloat16 weight is lost",
        )
        if len(rate) and (rate == 0).all():
            why, advice = "its learning rate is 0", advice[:1]
        elif len(rate) and whole:
            why = (
                f"at a learning rate of {setting(float(np.median(rate)), 2)} its steps are"
                " smaller than their number format holds"
            )
            advice = advice[1:]
        elif len(rate) and (rate > 0).all():
            why = (
                "its steps there are smaller than their number format holds, at a learning rate of"
                f" {setting(float(np.median(rate)), 2)} or less, or are of a group whose rate is 0"
            )
            advice = advice[::-1]
        sentence = f"The optimizer steps, and no weight of {which} changes at all: {why}."
    yield Finding(
        "not-updated",
        severity,
        sentence,
        names_of(evidence, layers),
        evidence.whole,
        {"layers": float(layers.sum()), "of": float(held.sum())},
        advice,
        moved_place(evidence, layers, "update_norm"),
    )


def _over(evidence: Evidence) -> Iterator[Finding]:
    """Find a schedule that has brought the learning rate to nothing long before the end."""
    rate = evidence.steps["learning_rate"].to_numpy(dtype=np.float64)[evidence.rows]
    moving = np.flatnonzero(rate > LEAST_RATE * np.max(rate, initial=0, where=~np.isnan(rate)))
    if len(moving) == 0 or np.isnan(rate[moving[-1] + 1 :]).any():
        return
    still = len(rate) - 1 - int(moving[-1])
    if still < max(WINDOW, OVER * len(rate)):
        return
    first, last = evidence.step(evidence.rows[moving[-1] + 1]), evidence.step(evidence.rows[-1])
    yield Finding(
        "not-updated",
        "critical",
        f"The learning rate is {_little(rate[moving[-1] + 1 :])} from step {first} on: {still} of"
        f" {len(rate)} recorded steps changed nothing.",
        (),
        (first, last),
        {"steps": float(still)},
        (
            "let the scheduler take as long as the training, in the unit in which it steps (batches"
            " or epochs), or end the training there",
        ),
        Place(first, None, "learning_rate", "update"),
    )


def _little(rate: np.ndarray) -> str:
    """Return in words how little is left of a learning rate."""
    return "0" if (rate == 0).all() else f"{setting(float(rate.max()), 2)} or less"
