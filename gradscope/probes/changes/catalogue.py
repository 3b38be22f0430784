"""The changes that there are, and which of them are tried against what."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Sequence
from typing import Any

from torch import nn

from gradscope.errors import GradscopeError
from gradscope.probes.changes.activation import GELU, RELU, TANH
from gradscope.probes.changes.branches import BY_DEPTH, REZERO, ZERO
from gradscope.probes.changes.change import ALWAYS, Change
from gradscope.probes.changes.clipping import CLIPPING
from gradscope.probes.changes.depth import QUARTER
from gradscope.probes.changes.dropout import DROPOUT
from gradscope.probes.changes.head import BARE_HEAD
from gradscope.probes.changes.initialisation import HE, ORTHOGONAL, XAVIER
from gradscope.probes.changes.learning_rate import BY_SPEED, TENFOLD, TENTH, THIRD, TRIPLE
from gradscope.probes.changes.lsuv import LSUV
from gradscope.probes.changes.mode import TRAINING_MODE
from gradscope.probes.changes.normalisation import BATCH_NORM, LAYER_NORM, RMS_NORM
from gradscope.probes.changes.other_optimizer import ADAM
from gradscope.probes.changes.recurrent import RECURRENT
from gradscope.probes.changes.shortcuts import POST_ACTIVATION, SHORTCUTS
from gradscope.probes.changes.symmetry import BROKEN_SYMMETRY
from gradscope.probes.changes.together import GELU_HE, RELU_HE, own, together
from gradscope.probes.changes.trainable import TRAINABLE
from gradscope.probes.changes.warm_up import WARM_UP

Asked = str | Change | Callable[[nn.Module], nn.Module | None] | Sequence[Any]
"""How a user names a change: by its name, as an object, as a function, or several at once."""

CHANGES: dict[str, Change] = {
    "train-all": TRAINABLE,
    "train-mode": TRAINING_MODE,
    "no-softmax": BARE_HEAD,
    "less-dropout": DROPOUT,
    "break-symmetry": BROKEN_SYMMETRY,
    "lr/10": TENTH,
    "lr/3": THIRD,
    "lr*3": TRIPLE,
    "lr*10": TENFOLD,
    "lr-by-speed": BY_SPEED,
    "warm-up": WARM_UP,
    "clip": CLIPPING,
    "adam": ADAM,
    "he": HE,
    "xavier": XAVIER,
    "orthogonal": ORTHOGONAL,
    "lsuv": LSUV,
    "recurrent": RECURRENT,
    "zero-branches": ZERO,
    "tanh": TANH,
    "relu": RELU,
    "gelu": GELU,
    "relu+he": RELU_HE,
    "gelu+he": GELU_HE,
    "batch-norm": BATCH_NORM,
    "layer-norm": LAYER_NORM,
    "rms-norm": RMS_NORM,
    "branch-scale": BY_DEPTH,
    "rezero": REZERO,
    "shortcuts": SHORTCUTS,
    "shortcuts-before-activation": POST_ACTIVATION,
    "shallower": QUARTER,
}
"""Name, as in `what_if(changes=[...])` and of a try's folder -> change."""


def against(verdicts: Collection[str]) -> dict[str, Change]:
    """Return the changes that are tried unasked against any of `verdicts`.

    Parameters
    ----------
    verdicts : collection of str
        `none` where nothing was found that a change could mend.
    """
    return {
        key: change
        for key, change in CHANGES.items()
        if change.against & set(verdicts) or change.against == ALWAYS
    }


def named(asked: Sequence[Asked]) -> dict[str, Change]:
    """Return the changes that a user asked for, by the name of their folder.

    Raises
    ------
    GradscopeError
        If one is none.
    """
    return dict(_named(one) for one in asked)


def _named(asked: Asked) -> tuple[str, Change]:
    if isinstance(asked, str):
        if asked not in CHANGES:
            near = difflib.get_close_matches(asked, CHANGES, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(CHANGES)}"
            raise GradscopeError(f"what_if(changes=...): {asked!r} is no change; {hint}")
        return asked, CHANGES[asked]
    if isinstance(asked, Change):
        return next((key for key, known in CHANGES.items() if known == asked), asked.name), asked
    if isinstance(asked, (list, tuple)) and asked:
        parts = named(asked)
        return "+".join(parts), together(list(parts.values()))
    if callable(asked):
        change = own(asked)
        return change.name, change
    raise GradscopeError(
        f"what_if(changes=...): takes names, functions from model to model, or lists of them, got"
        f" {asked!r:.80}"
    )
