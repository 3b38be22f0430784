"""What stands behind and beside a layer, told by the flow of data between layers.

Read on in the order of execution: a state that a recurrent layer hands back is no step in depth.
"""

from __future__ import annotations

import numpy as np

from gradscope.diagnosis.evidence import Evidence, Mask
from gradscope.diagnosis.main_path import reached


def behind(evidence: Evidence, layer: int) -> set[int]:
    """Return the layers that what `layer` gives comes to."""
    return reached(evidence.readers, layer, {-1}) - {-1}


def before_weights(evidence: Evidence) -> Mask:
    """Return behind which layers weights follow: the others are what the model gives."""
    if not evidence.readers:
        return ~evidence.outputs
    found = np.zeros(len(evidence.names), dtype=bool)
    for layer in range(len(found) - 1, -1, -1):
        read_by = [r for r in evidence.readers.get(layer, ()) if r >= 0]
        found[layer] = bool((evidence.weights | found)[read_by].any())
    return found


def beside_others(evidence: Evidence) -> Mask:
    """Return which layers are read together with others by all that reads them, as factors are."""
    found = np.zeros(len(evidence.names), dtype=bool)
    returned = sum(-1 in read_by for read_by in evidence.readers.values())
    count = {layer: len(read) for layer, read in evidence.sources.items()} | {-1: returned}
    for layer, read_by in evidence.readers.items():
        found[layer] = all(count[reader] > 1 for reader in read_by)
    return found
