"""Which layers the findings about a run name, to be marked in the picture of its net."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gradscope.diagnosis.findings import Finding
from gradscope.diagnosis.summary import Summary
from gradscope.runs.run import Run

MOST = 4
"""So many findings are marked, the gravest."""


@dataclass(frozen=True)
class Alarm:
    """A finding in the picture of a net.

    Attributes
    ----------
    layer : int
        Index in `Run.layers` of the one to look at first.
    layers : list of int
        All that it is about.
    name : str
        Its name.
    words : str
        The verdict and the layer.
    verdict : str
        Empty where it is none of the diagnosis.
    bad : bool
        Whether it is worse than a warning.
    """

    layer: int
    layers: list[int]
    name: str
    words: str
    verdict: str
    bad: bool

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON takes it: the layers as stretches of neighbours."""
        stretches: list[list[int]] = []
        for layer in self.layers:
            if stretches and stretches[-1][1] == layer - 1:
                stretches[-1][1] = layer
            else:
                stretches.append([layer, layer])
        return {
            "layer": self.layer,
            "name": self.name,
            "stretches": stretches,
            "words": self.words,
            "bad": self.bad,
        }


def net_alarms(run: Run, summary: Summary | None) -> list[Alarm]:
    """Return what is wrong with layers of `run`, the worst first, as its strip says it."""
    if summary is None:
        return []
    names = [str(name) for name in run.layers["name"]]
    grave = [f for f in summary.diagnosis.findings if f.severity != "information"]
    found = [alarm for finding in grave if (alarm := _alarm(finding, names, summary)) is not None]
    speed = summary.speed
    if speed is not None and speed.layer is not None and speed.tone != "good":
        layer, bad = speed.layer, speed.tone == "bad"
        found.append(Alarm(layer, [layer], names[layer], speed.words, "", bad))
    return sorted(found, key=lambda alarm: not alarm.bad)[:MOST]


def _alarm(finding: Finding, names: list[str], summary: Summary) -> Alarm | None:
    """Return the finding as an alarm; None if it is about no layer."""
    place = None if finding.place is None else finding.place.layer
    about = set(finding.layers)
    layers = [
        layer
        for layer, name in enumerate(names)
        if name in about or any(name.startswith(f"{block}.") for block in about)
    ]
    if place is None and layers:
        place = layers[0]
    if place is None or place >= len(names):
        return None
    layers = sorted({place, *layers})
    many = f" and {len(finding.layers) - 1} more" if len(finding.layers) > 1 else ""
    words = f"{finding.verdict}: {names[place]}{many}"
    # what decides the verdict is marked as the strip says it
    bad = finding.severity == "critical" or finding.verdict == summary.diagnosis.verdict
    return Alarm(place, layers, names[place], words, finding.verdict, bad)
