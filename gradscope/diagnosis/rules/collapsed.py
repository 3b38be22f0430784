"""Collapsed: hidden layers whose outputs hardly vary."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradscope.arithmetic import over_reference
from gradscope.diagnosis.blocks import residual_blocks
from gradscope.diagnosis.evidence import WINDOW, Evidence, Mask, column_medians
from gradscope.diagnosis.findings import Finding, Place
from gradscope.diagnosis.neighbours import before_weights, beside_others
from gradscope.diagnosis.rules.marks import first_place, names_of, severity_of
from gradscope.diagnosis.rules.saturated import gates, without_slope
from gradscope.diagnosis.signal_path import composites
from gradscope.wording import number

COLLAPSED = 1e-3
"""Standard deviation of an output over its root mean square."""


ALIKE = 1e-5
"""Root of the share of an output's variance that lies between samples, where rounding alone makes
it: language models that know the frequency of letters, and nothing else yet, come down to .0008."""

ALL_ALIKE = 0.002
"""The same for all layers, from the first one on: the input hardly varies, and may do so still."""

GONE, TOGETHER = 0.01, 0.25
"""Shares left of a loss, and of what tells outputs apart, where it rewards that they are alike."""

DRAWN = 0.7
"""Share left of what tells outputs apart from which on a loss that only draws them together has."""

LOOKS = 2
"""Looks in a row at which samples must be alike."""

UNITS_ALIKE = 0.9999
"""`sample_spread` from which on units do not differ; in trainings weight layers reach .97."""

OFF_CENTRE = 0.05
"""Mean over deviation above which that is no doing of a normalisation, which centres each unit."""

EMPTIED = 0.05
"""Size of an output at the end over that at first: trainings keep a quarter."""


def collapsed(evidence: Evidence) -> Iterator[Finding]:
    """Find outputs that are one number, the same for all samples or units, or next to nothing."""
    yield from _constant(evidence)
    alike = list(_alike(evidence))
    yield from alike or _drawn_together(evidence)
    yield from _symmetric(evidence)
    yield from _emptied(evidence)


def _alike(evidence: Evidence) -> Iterator[Finding]:
    """Find nets whose output is the same for all samples, and the layer from which on it is.

    A layer by itself may be so, as a gate or a token that starts alike for all is; what follows
    then differs again.
    """
    looks, rows = evidence.looks_and_rows("sample_spread")
    if evidence.path is None or len(looks) < LOOKS:
        return
    chain = looks[:, evidence.path.layers]
    from_input = bool((chain[-LOOKS:] < ALL_ALIKE).all())
    rewarded = _comes_together(evidence)
    if not (from_input or rewarded or (chain[-LOOKS:, -1] < ALIKE).all()):
        return
    same = chain[-1] < (ALL_ALIKE if from_input else ALIKE)
    if rewarded and not same[-1]:
        same = np.arange(len(same)) == len(same) - 1
    first = len(same) - int(np.argmin(same[::-1])) if not same.all() else 0
    layers = evidence.path.layers[first:]
    from_start = from_input or bool(chain[0, -1] < ALIKE)
    differs = np.flatnonzero(chain[:-LOOKS, -1] >= ALIKE)
    begun = evidence.step(rows[differs[-1] + 1]) if len(differs) and not from_input else 0
    steps = max(begun, evidence.whole[0]), evidence.whole[1]
    yield Finding(
        "collapsed",
        "critical",
        f"What {evidence.named(layers)} {'gives' if len(layers) == 1 else 'give'} is the same for"
        f" all samples: {_share(float(chain[-1, -1]) ** 2)} of its variance lies between them.",
        tuple(evidence.names[i] for i in layers),
        steps,
        {"sample_spread": float(chain[-1, -1])},
        (
            "check that the input varies from sample to sample, and is normalised once:"
            " (x - mean) / std",
            "start from larger weights (torch.nn.init.kaiming_normal_), or normalise in between",
        )[:: 1 if from_input else -1]
        if from_start
        else (
            "the loss rewards it: hold samples apart, by negatives, a variance term, or a predictor"
            " and stop-gradient",
            "lower the learning rate, if the loss should not reward it",
        ),
        Place(steps[1], int(layers[0]), "activation_std", "forward"),
    )


def _drawn_together(evidence: Evidence) -> Iterator[Finding]:
    """Find losses that compare outputs with each other alone, and have begun to make them alike."""
    heads, looks = evidence.run.heads, evidence.looks("sample_spread")
    if heads.empty or not (heads["after"] == "outputs").all():
        return
    if evidence.path is None or len(looks) < LOOKS:
        return
    last = int(evidence.path.layers[-1])
    left = over_reference(looks[-LOOKS:, last], looks[0, last])
    if "cosine_similarity" not in set(heads["loss"]):  # which does not see how large they are
        size = evidence.looks("activation_std")
        left = left * over_reference(size[-LOOKS:, last], size[0, last])
    if not (left < DRAWN).all():
        return
    yield Finding(
        "collapsed",
        "critical",
        "The loss only draws outputs together: it compares two of the net's own, the gradient goes"
        " into both, and nothing holds samples apart. Of what told them apart at layer"
        f" {evidence.labels[last]} {float(left[-1] ** 2):.0%} is left.",
        (evidence.names[last],),
        evidence.whole,
        {"sample_spread": float(looks[-1, last])},
        (
            "detach() one side (stop-gradient) behind a predictor, or let a slow copy of the net"
            " make it",
            "hold samples apart: by negatives, or a term for the variance of each output",
        ),
        Place(evidence.whole[1], last, "sample_spread", "forward"),
    )


def _comes_together(evidence: Evidence) -> bool:
    """Whether the loss has all but gone, and with it all that tells samples' outputs apart."""
    loss, path = evidence.loss, evidence.path
    spread, size = evidence.looks("sample_spread"), evidence.looks("activation_std")
    if loss is None or path is None or len(loss.raw) < WINDOW or len(spread) < LOOKS:
        return False
    values = loss.raw[np.isfinite(loss.raw)]
    last = path.layers[-1]
    ends = [float(np.median(some)) for some in (values[:3], values[-5:])]
    share = spread[-1, last] / spread[0, last] if spread[0, last] > 0 else np.nan
    grown = size[-1, last] / size[0, last] if size[0, last] > 0 else np.nan
    gone = ends[0] > 0 and ends[1] < GONE * ends[0]
    return bool(gone and share < TOGETHER and share * grown < TOGETHER)


def _constant(evidence: Evidence) -> Iterator[Finding]:
    """Find hidden layers whose outputs are all but one and the same number.

    Within a residual block a constant does no harm, nor as a gate or another factor beside what
    varies, nor as the start of an output: a bias at the targets' mean, and small weights. A single
    number has no spread.
    """
    if evidence.path is None or not evidence.windows:
        return
    spread, mean = evidence.median("activation_std"), evidence.median("activation_mean")
    share = over_reference(spread, np.hypot(spread, mean))
    flat = share < COLLAPSED
    flat &= evidence.median("output_elements") != 1
    flat &= ~composites(evidence.layers, evidence.weights) & ~gates(evidence)
    flat &= before_weights(evidence) & ~beside_others(evidence) & ~without_slope(evidence)
    for block in residual_blocks(evidence.run):
        flat[:, block.first : block.after] = False
    if not flat.any():
        return
    layers: Mask = np.any(flat, axis=0)
    yield Finding(
        "collapsed",
        severity_of(flat),
        f"All outputs of {evidence.named(layers)} are nearly the same number, whatever the input"
        " is.",
        names_of(evidence, layers),
        evidence.span(np.any(flat, axis=1)),
        {"spread_over_size": float(np.nanmin(share[flat]))},
        (
            "check that the input varies and is normalised",
            "start from larger weights, or put a normalisation before these layers",
        ),
        first_place(evidence, flat, "activation_std", "forward"),
    )


def _symmetric(evidence: Evidence) -> Iterator[Finding]:
    """Find weight layers all of whose units say the same, as where all weights are one number."""
    started = np.isin(evidence.names, evidence.run.facts.get("units_alike", []))
    hidden = evidence.weights & ~evidence.outputs
    if started.sum() > 1 and started[hidden].mean() > 0.5:
        yield _one_unit(evidence, started & hidden, {"layers": float(started.sum())})
        return
    looks = evidence.looks("sample_spread")
    if len(looks) == 0 or not evidence.windows:
        return
    elements, mean, spread = (
        evidence.median(column)[-1]
        for column in ("output_elements", "activation_mean", "activation_std")
    )
    several = elements >= 2 * np.nanmin(elements, initial=np.inf)
    same = evidence.weights & several & (np.nan_to_num(looks[-1]) > UNITS_ALIKE)
    told = same & (np.abs(mean) > OFF_CENTRE * spread)
    if told.sum() < 2 or told[hidden].mean() <= 0.5:
        return
    yield _one_unit(evidence, same, {"sample_spread": float(looks[-1][same].min())})


def _one_unit(evidence: Evidence, layers: Mask, numbers: dict[str, float]) -> Finding:
    return Finding(
        "collapsed",
        "critical",
        f"All units of {evidence.named(layers)} give the same number for a sample: they started"
        " from the same weights, get the same gradient, and stay one unit.",
        names_of(evidence, layers),
        evidence.whole,
        numbers,
        ("start from random weights (torch.nn.init.kaiming_normal_), not from one number",),
        Place(
            evidence.step(evidence.rows[0]),
            int(np.flatnonzero(layers)[0]),
            "sample_spread",
            "forward",
        ),
    )


def _emptied(evidence: Evidence) -> Iterator[Finding]:
    """Find hidden weight layers whose output the training has brought to next to nothing."""
    rows = evidence.rows
    if evidence.path is None or len(rows) < WINDOW:
        return
    few = np.concatenate([rows[:3], rows[-3:]])
    size = evidence.sizes(few)
    begun, ended = column_medians(size[:3]), column_medians(size[3:])
    left = over_reference(ended, begun)
    empty = before_weights(evidence) & evidence.weights & (np.nan_to_num(left, nan=1) < EMPTIED)
    # not what was far too large, and is as large as others now
    others = ended[evidence.weights & np.isfinite(ended)]
    empty &= ended < np.median(others) if len(others) else False
    for block in residual_blocks(evidence.run):  # a branch that has nothing to add
        empty[block.first : block.after] = False
    if not empty.any():
        return
    most = float(left[empty].min())
    yield Finding(
        "collapsed",
        "warning",
        f"The training has brought the output of {evidence.named(empty)} to {most:.1%} of its size"
        " at first: next to nothing passes there any more.",
        names_of(evidence, empty),
        (evidence.step(rows[0]), evidence.step(rows[-1])),
        {"size_left": most},
        (
            "if a term of the loss pulls it to 0, as the KL divergence of a VAE or a penalty on"
            " activations: lower that term's weight (beta), or anneal it from 0",
            "lower the weight decay, if it is what shrinks the weights there",
        ),
        Place(evidence.step(rows[-1]), int(np.flatnonzero(empty)[0]), "activation_norm", "forward"),
    )


def _share(value: float) -> str:
    return number(value, 1) if value > 0 else "nothing"
