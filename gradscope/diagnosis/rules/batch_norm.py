"""BatchNorms: over two or three values, or by running statistics in training."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from gradscope.arithmetic import over_reference
from gradscope.diagnosis.evidence import Evidence, Mask, column_medians
from gradscope.diagnosis.findings import Finding, Place
from gradscope.diagnosis.rules.marks import first_place, names_of
from gradscope.diagnosis.signal_path import Floats
from gradscope.kinds import canonical
from gradscope.wording import capitalised, number

FEWEST = 4
"""Values from which on a mean and a variance are worth their names."""

FITS = (0.9, 1.02)
"""Mean square of an output over that which its weights give to the batch's statistics: 1, or less
where inputs vary by as little as eps."""

MISFITS = (0.25, 4.0)
"""Beyond these the running statistics are not those of what comes in."""

ABOVE_EPS = 0.03
"""Deviation between samples of an input that eps, 1e-5, takes nothing from."""


def tiny_batch(evidence: Evidence) -> Iterator[Finding]:
    """Find BatchNorms that see fewer than four values a channel.

    How many channels there are follows from the parameters, a weight and a bias for each. What
    micro-batches see apart is known from their calls.
    """
    batch = _batch_norms(evidence)
    if not batch.any() or not evidence.windows:
        return
    channels = evidence.layers["parameters"].to_numpy(dtype=np.float64) / 2
    each = over_reference(evidence.median("output_elements"), channels)
    at_a_call = evidence.run.facts.get("batchnorm_values", {})
    each = np.fmin(each, [at_a_call.get(name, np.inf) for name in evidence.names])
    few: Mask = (each.round() < FEWEST) & (each > 1.5) & batch
    if not few.any():
        return
    layers = np.any(few, axis=0)
    take = "takes" if layers.sum() == 1 else "take"
    number = float(np.median(each[few]).round())
    yield Finding(
        "tiny-batch",
        "warning",
        f"{capitalised(evidence.named(layers))} {take} mean and variance"
        f" over {number:.0f} values a channel: what comes out says more of the rest of the batch"
        " than of the sample.",
        names_of(evidence, layers),
        evidence.span(np.any(few, axis=1)),
        {"values": number},
        (
            "raise the batch size (accumulating gradients does not help BatchNorm)",
            "use GroupNorm or LayerNorm, which look at one sample at a time",
        ),
        first_place(evidence, few, "activation_std", "forward"),
    )


def running_statistics(evidence: Evidence) -> Iterator[Finding]:
    """Find BatchNorms in eval mode: what comes out is not what the batch's statistics make.

    By these each channel has mean beta and variance gamma^2, so that the mean square of the output
    is that of all gammas and betas, whatever comes in.
    """
    batch = _batch_norms(evidence)
    looks, rows = evidence.looks_and_rows("sample_spread")
    if not batch.any() or len(rows) == 0:
        return
    fit = _fit(evidence, rows)
    tells = batch & ~np.isnan(fit) & (_input_spread(evidence, looks, rows) > ABOVE_EPS)
    off = tells & ((fit < FITS[0]) | (fit > FITS[1]))
    last = len(rows) - 1 - tells[::-1].argmax(axis=0)
    layers = (off.sum(axis=0) > tells.sum(axis=0) / 2) & off[last, np.arange(off.shape[1])]
    if not layers.any():
        return
    middle = column_medians(np.where(tells, fit, np.nan)[:, layers])
    worst = float(middle[np.abs(np.log(middle)).argmax()])
    wrong = not MISFITS[0] < worst < MISFITS[1]
    first = rows[int(np.flatnonzero(off[:, layers].any(axis=1))[0])]
    yield Finding(
        "batchnorm-eval",
        "critical" if wrong else "information",
        f"{capitalised(evidence.named(layers))} {'does' if layers.sum() == 1 else 'do'} not"
        " normalise by the batch, but by running statistics, as in eval mode: the mean square of"
        f" the output is {number(worst)} times what the batch's would give.",
        names_of(evidence, layers),
        (evidence.step(first), evidence.step(rows[-1])),
        {"mean_square_over_batch": worst},
        (
            "call model.train() before each epoch: after a validation in eval mode it is easily"
            " forgotten",
            "if the statistics are frozen on purpose, load those of a pretrained net",
        ),
        Place(evidence.step(first), int(np.flatnonzero(layers)[0]), "activation_std", "forward"),
    )


def _batch_norms(evidence: Evidence) -> Mask:
    kinds = [canonical(str(kind)) for kind in evidence.layers["kind"]]
    batch = [kind in ("syncbatchnorm", "batchnorm") or kind[:-2] == "batchnorm" for kind in kinds]
    return np.array(batch, dtype=bool) & evidence.owners


def _fit(evidence: Evidence, rows: np.ndarray) -> Floats:
    """Return the mean square of each output over that of gamma and beta, (rows, layers)."""
    norm, elements, weight = (
        evidence.at(column, rows)
        for column in ("activation_norm", "output_elements", "weight_norm")
    )
    channels = evidence.layers["parameters"].to_numpy(dtype=np.float64) / 2
    return over_reference(norm**2 / np.where(elements > 0, elements, np.nan), weight**2 / channels)


def _input_spread(evidence: Evidence, looks: Floats, rows: NDArray[np.int64]) -> Floats:
    """Return how far samples differ in what each layer reads, of one source; NaN if not known."""
    spread = evidence.at("activation_std", rows) * looks
    read = np.array([max(evidence.sources.get(i, [i - 1])) for i in range(spread.shape[1])])
    return np.where(read >= 0, spread[:, read], np.nan)
