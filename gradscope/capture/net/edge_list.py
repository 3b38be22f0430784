"""The edges of one run: between which layers data flow, from all forwards that were seen."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

from gradscope.autograd.layer_flow import END


class Gate(NamedTuple):
    """Where data enter or leave a module that is called by itself: a forward may end there.

    `position` is that among the tensors with a gradient.
    """

    side: Literal["in", "out"]
    module: int
    position: int


End = int | Gate
"""Number of a layer's module, or a gate; as a target `END`, too."""


class EdgeList:
    """Edges between modules, as they are found, and between layers, as `run.json` lists them.

    Parameters
    ----------
    rows : rows of run.json
        Those of a run that is resumed.
    """

    def __init__(self, rows: Iterable[Mapping[str, int]] = ()) -> None:
        self._resumed = {(row["source"], row["target"]) for row in rows}
        self._found: frozenset[tuple[End, End]] = frozenset()  # replaced: a thread may read it

    def add(self, pairs: Iterable[tuple[End, End]]) -> bool:
        """Take pairs (source, target); return whether some are new."""
        before = len(self._found)
        self._found |= frozenset(pairs)
        return len(self._found) > before

    def rows(self, layer_of: Mapping[int, int]) -> list[dict[str, int]]:
        """Return the edges between layers, by their numbers in `layer_of`; the gates are gone."""
        targets: dict[End, set[End]] = defaultdict(set)
        for source, target in self._found:
            targets[source].add(target)
        edges = set(self._resumed)
        for source in [end for end in targets if not isinstance(end, Gate)]:
            edges |= {
                (layer_of[source], END if target == END else layer_of[target])
                for target in _through_gates(source, targets)
                if source in layer_of and (target == END or target in layer_of)
            }
        return [{"source": source, "target": target} for source, target in sorted(edges)]


def _through_gates(source: End, targets: Mapping[End, set[End]]) -> set[int]:
    """Return the layers, and the end, that `source` leads to with no layer between.

    What a part of the model, called on its own, returns and another part takes was not returned for
    the loss, as far as that is seen.
    """
    found: set[int] = set()
    is_taken = False
    seen = {source}
    stack = [source]
    while stack:
        end = stack.pop()
        for target in targets.get(end, ()):
            if not isinstance(target, Gate):
                found.add(target)
            elif target not in seen:
                seen.add(target)
                stack.append(target)
                is_taken |= (
                    isinstance(end, Gate) and end.module != target.module and target.side == "in"
                )
    return found - {END} if is_taken else found
