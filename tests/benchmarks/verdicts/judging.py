"""Judge recorded runs: what the rules say of them, and whether it is right."""

from __future__ import annotations

import re
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradscope
from gradscope.diagnosis.findings import CANNOT_TELL, Diagnosis, Finding

if TYPE_CHECKING:
    from .trainings import Fault, Training


@dataclass(frozen=True)
class Look:
    """What was said of one training after some steps.

    Attributes
    ----------
    kind : str
        Of the fault; empty for a healthy training.
    visible : bool
        Whether the fault, if there is one, can be seen by then.
    ill : bool
        Whether the verdict is another than healthy, or that nothing can be told.
    unknown : bool
        Whether nothing can be told.
    cause : bool
        Whether the right cause is among the findings, with the layer where there is one.
    remedy : bool
        Whether a finding of the right cause has a fitting remedy.
    """

    name: str
    half: str
    kind: str
    visible: bool
    steps: int
    verdict: str
    decades: float
    ill: bool
    unknown: bool = False
    cause: bool = False
    remedy: bool = False
    error: str = ""
    findings: list[dict[str, Any]] = field(default_factory=list)

    @property
    def right(self) -> bool:
        """Of a healthy training that it is not called ill, of another that its cause is named."""
        return self.cause if self.kind else not self.ill


def diagnosed(path: Path) -> Diagnosis | str:
    """Return the diagnosis of a run, or the exception that it ended with."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return gradscope.diagnose(gradscope.load(path))
        except Exception as error:
            return f"{type(error).__name__}: {error}"


def judge(training: Training, steps: int, diagnosis: Diagnosis | str) -> Look:
    """Compare a diagnosis with what is known of the training."""
    fault = training.fault
    kind, visible = (fault.kind, steps >= fault.seen) if fault else ("", True)
    start = (training.name, training.half, kind, visible, steps)
    if isinstance(diagnosis, str):
        return Look(*start, "error", float("nan"), ill=True, error=diagnosis)
    unknown = diagnosis.verdict.startswith(CANNOT_TELL)
    named = [f for f in diagnosis.findings if fault and names(f, fault)]
    return Look(
        *start,
        diagnosis.verdict,
        diagnosis.decades,
        ill=diagnosis.verdict != "healthy" and not unknown,
        unknown=unknown,
        cause=bool(named),
        remedy=any(helps(f, fault) for f in named if fault),
        findings=[asdict(f) for f in diagnosis.findings],
    )


def names(finding: Finding, fault: Fault) -> bool:
    """Whether a finding names the fault, and its layer where it has one."""
    if hyphened(finding.verdict) not in map(hyphened, fault.verdicts):
        return False
    if finding.severity == "information" and not fault.information:
        return False
    told = finding.sentence
    if fault.says and not any(word in told.lower() for word in fault.says):
        return False
    return not fault.layers or any(
        layer in finding.layers or re.search(rf"(?<![\w.]){re.escape(layer)}(?![\w.]*\w)", told)
        for layer in fault.layers
    )


def helps(finding: Finding, fault: Fault) -> bool:
    """Whether one of a finding's remedies fits the fault."""
    return any(word in remedy.lower() for remedy in finding.remedies for word in fault.remedy)


def hyphened(verdict: str) -> str:
    """Return a verdict with hyphens for blanks."""
    return verdict.replace(" ", "-")
