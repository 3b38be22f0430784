"""Remedies that were tried on copies of the net stand before those that were not."""

from __future__ import annotations

from dataclasses import replace

from gradscope.diagnosis.findings import Finding
from gradscope.runs.run import Run
from gradscope.runs.tries import read_tried, remedy

_MOST_IN_VAIN = 3  # changes that do not help are told of so many times


def tried_first(finding: Finding, run: Run) -> Finding:
    """Return a finding with the changes that were tried against it, and their numbers, first.

    Parameters
    ----------
    finding : Finding
    run : Run
        That it is about; `gradscope.what_if` has left beside it what it tried.
    """
    tried = read_tried(run.path)
    if finding.severity == "information" or not tried:
        return finding
    unchanged, *changes = tried
    meant = [row for row in changes if not row.against or finding.verdict in row.against]
    useful = [row for row in meant if row.helps]
    told = useful + [row for row in meant if not row.helps][:_MOST_IN_VAIN]
    remedies = (*(remedy(row, unchanged) for row in told), *finding.remedies)
    return replace(finding, remedies=remedies)
