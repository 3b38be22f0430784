"""What a diagnosis says: its findings, in words, as a frame and as HTML."""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from typing import Literal

import pandas as pd

from gradscope.wording import listed, setting

Severity = Literal["critical", "warning", "information"]

CANNOT_TELL = "cannot tell"

ADVISORY = frozenset({"shortcut-dominated", "reparameterised", "update-speed"})
"""Verdicts that are no faults; of the others mere information tells of the first step alone."""

FLOW = frozenset(
    {
        "vanishing",
        "exploding",
        "dead",
        "disconnected",
        "vanishing-through-time",
        "exploding-through-time",
    }
)
"""Verdicts about the flow of the gradient."""


@dataclass(frozen=True)
class Place:
    """Where in a run to look at a finding first.

    Attributes
    ----------
    step : int
        The recorded step in which it shows first.
    layer : int or None
        Index in `Run.layers`; None where it is about no layer in particular.
    column : str
        The metric that shows it, one of `schema.LAYER_METRICS`, of `schema.DERIVED_METRICS`, or of
        `Run.steps`.
    phase : str
        `forward`, `backward`, `update` (the optimizer's step) or `loss`.
    """

    step: int
    layer: int | None
    column: str
    phase: Literal["forward", "backward", "update", "loss"]


@dataclass(frozen=True)
class Finding:
    """One thing that the readings show.

    Attributes
    ----------
    verdict : str
        One of `schema.VERDICTS`.
    severity : str
        `critical`: holds at the end of the run; `warning`: held for a while, or may do harm;
        `information`: worth knowing, no fault.
    sentence : str
        The finding in plain words.
    layers : tuple of str
        Names of the layers or blocks that it is about, from input to output.
    steps : (int, int)
        The first and the last recorded step in which it showed.
    evidence : dict of str to float
        The numbers that it rests on.
    remedies : tuple of str
        What fits its cause, the most promising first.
    place : Place or None
        Where to look first; None of what is about no step.
    """

    verdict: str
    severity: Severity
    sentence: str
    layers: tuple[str, ...]
    steps: tuple[int, int]
    evidence: dict[str, float] = field(default_factory=dict)
    remedies: tuple[str, ...] = ()
    place: Place | None = None

    def __str__(self) -> str:
        """Return the finding as a short paragraph."""
        lines = [f"{self.verdict} ({self.severity}), steps {self.steps[0]}-{self.steps[1]}"]
        lines.append(f"  {self.sentence}")
        if self.layers:
            lines.append(f"  layers: {listed(self.layers)}")
        if self.evidence:
            lines.append(f"  evidence: {self.evidence_text}")
        lines += [f"  {'' if r.startswith('tried') else 'try: '}{r}" for r in self.remedies]
        return "\n".join(lines)

    @property
    def evidence_text(self) -> str:
        """The evidence as `name = value, ...`."""
        return ", ".join(f"{name} = {setting(value)}" for name, value in self.evidence.items())


@dataclass(frozen=True)
class Diagnosis:
    """Is the gradient healthy, if not why, and what would help.

    Attributes
    ----------
    run : str
        Name of the run.
    verdict : str
        About the whole run: the most serious verdict among the findings that are no mere
        information, `healthy`, or `cannot tell: ...` with the reason. `healthy` speaks of the
        gradient's flow; it does not promise that the net will train well.
    summary : str
        The verdict in one sentence.
    beside : tuple of str
        What else there is to say of the run as a whole, a sentence each: the gradient's flow where
        the summary is of something else, the loss, the update speed, the shortcuts.
    start, end : str
        The verdict about the first and about the last recorded steps, each by itself.
    decades : float
        log10(early / late gradient), the median over the run; NaN where it cannot be told.
    early_signal, late_signal : float, loss/activation
        Signal norm at the first and the last hidden layer, medians over the run.
    findings : tuple of Finding, the most serious first
    notes : tuple of str
        What limits the diagnosis.
    settings : tuple of str
        Numbers for the training's settings that its readings suggest, a sentence each.
    """

    run: str
    verdict: str
    summary: str
    start: str
    end: str
    decades: float
    early_signal: float
    late_signal: float
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    beside: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()

    @property
    def flow(self) -> str:
        """The verdict about the flow of the gradient alone, whatever else is wrong."""
        for finding in self.findings:
            if finding.severity != "information" and finding.verdict in FLOW:
                return finding.verdict
        unknown = self.verdict.startswith(CANNOT_TELL)
        return self.verdict if unknown else "healthy"

    @property
    def verdicts(self) -> frozenset[str]:
        """`verdict`, without a reason, and the findings', but for what passed at init."""
        lasting = [f for f in self.findings if f.severity != "information" or f.verdict in ADVISORY]
        return frozenset(
            [self.verdict.partition(":")[0], *(finding.verdict for finding in lasting)]
        )

    def __str__(self) -> str:
        """Return the diagnosis as text for a terminal."""
        lines = [f"{self.run}: {self.verdict}", self.summary, *self.beside]
        lines.append(f"at the start: {self.start}; at the end: {self.end}")
        lines += [f"note: {note}" for note in self.notes]
        for finding in self.findings:
            lines += ["", str(finding)]
        if self.settings:
            lines += ["", "settings", *(f"  {sentence}" for sentence in self.settings)]
        return "\n".join(lines)

    def to_frame(self) -> pd.DataFrame:
        """Return one row a finding.

        Returns
        -------
        DataFrame
            `verdict`, `severity`, `first_step`, `last_step`, `layers` (names, comma between),
            `sentence`, `evidence` (`name = value, ...`), `remedies` (semicolon between).
        """
        columns = [
            "verdict",
            "severity",
            "first_step",
            "last_step",
            "layers",
            "sentence",
            "evidence",
            "remedies",
        ]
        rows = [
            (
                finding.verdict,
                finding.severity,
                *finding.steps,
                ", ".join(finding.layers),
                finding.sentence,
                finding.evidence_text,
                "; ".join(finding.remedies),
            )
            for finding in self.findings
        ]
        return pd.DataFrame(rows, columns=columns)

    def _repr_html_(self) -> str:
        """Return the diagnosis for a notebook; layer names are text there, never markup."""
        escape = html.escape
        parts = [
            f"<p><b>{escape(self.run)}: {escape(self.verdict)}</b><br>"
            f"{'<br>'.join(escape(line) for line in (self.summary, *self.beside))}<br>"
            f"at the start: {escape(self.start)}; at the end: {escape(self.end)}</p>"
        ]
        parts += [f"<p><i>note: {escape(note)}</i></p>" for note in self.notes]
        for finding in self.findings:
            remedies = "".join(f"<li>{escape(remedy)}</li>" for remedy in finding.remedies)
            parts.append(
                f"<details open><summary><b>{escape(finding.verdict)}</b> ({finding.severity}),"
                f" steps {finding.steps[0]}-{finding.steps[1]}</summary>"
                f"<p>{escape(finding.sentence)}<br>{escape(listed(finding.layers))}<br>"
                f"<code>{escape(finding.evidence_text)}</code></p><ul>{remedies}</ul></details>"
            )
        parts += [f"<p>{escape(sentence)}</p>" for sentence in self.settings]
        return "".join(parts)
