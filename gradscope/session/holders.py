"""Which layers which processes have: all alike, stages of a pipeline, experts of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

OVERLAP = (
    "processes have layers of which some are the same and others are not, in a way that is neither"
    " that of stages of a pipeline nor that of experts: of which loss a signal is the gradient is"
    ' not known, and there are no signals, activations and shortcuts. watch(ranks="all") has what'
    " each process reads"
)


def find_holders(groups: Sequence[tuple[Sequence[str], int]]) -> list[dict[str, Any]]:
    """Return for each group how its layers are those of others.

    Groups without a layer in common are stages of a pipeline. What is in all groups of a stage is
    trained on samples of each process, and what is not are experts.

    Parameters
    ----------
    groups : names of the layers with parameters, and of how many processes they are

    Returns
    -------
    list of dict, JSON
        `stages`; `holders`, a layer's share of all processes, where it is not `usual`; `problem`.
    """
    size = sum(count for _, count in groups)
    sets = [set(names) for names, _ in groups]
    stages: list[set[int]] = []  # of numbers of groups
    for i, names in enumerate(sets):
        joined = [stage for stage in stages if any(names & sets[j] for j in stage)]
        stages = [stage for stage in stages if stage not in joined] + [{i}.union(*joined)]
    sizes = {sum(groups[i][1] for i in stage) for stage in stages}
    common = [set.intersection(*(sets[i] for i in stage)) for stage in stages]
    problem = "" if len(sizes) == 1 and all(common) else OVERLAP
    result = []
    for names in sets:
        holders = {
            name: sum(count for some, (_, count) in zip(sets, groups, strict=True) if name in some)
            / size
            for name in sorted(names)
        }
        usual = max(set(holders.values()), key=list(holders.values()).count, default=1.0)
        result.append(
            {
                "stages": len(stages),
                "usual": usual,
                "holders": {name: x for name, x in holders.items() if x != usual},
                "problem": problem,
            }
        )
    return result
