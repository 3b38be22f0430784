"""How much signal reaches each layer of a net whose shortcuts, or branches, are cut in backward."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.autograd.graph import GradientEdge

from gradscope import measure
from gradscope.capture.forwards.cuts import grad_with_cuts
from gradscope.capture.forwards.plan import CUTS
from gradscope.capture.net.catalogue import Catalogue
from gradscope.errors import GradscopeError
from gradscope.probes.probe import LossFn, probe_of

if TYPE_CHECKING:
    import pandas as pd


def cut(model: nn.Module, loss_fn: LossFn, batch: Any, edges: str = "shortcuts") -> pd.DataFrame:
    """Measure how much signal reaches each layer, and how much if no gradient passed `edges`.

    The forward pass is as it was: a net with its shortcuts cut is not the plain net.

    Parameters
    ----------
    model : nn.Module
        In the mode, training or evaluation, in which it is to be asked.
    loss_fn : callable
        `loss_fn(model(x), y)` -> loss, a 0-d Tensor.
    batch : (x, y), or a dict
        x is a tensor, a tuple of arguments or a dict of keyword arguments of the model. Of a batch
        that is a dict itself, `loss_fn(model(**batch), batch)` is the loss.
    edges : {"shortcuts", "branches"}

    Returns
    -------
    pandas.DataFrame, one row a layer in order of execution
        `layer`, `name`, `kind`, `depth` as in `run.layers`; `signal_norm` and `cut_signal_norm`,
        the L2 norms of dL/d(output), NaN for a layer that was not called.

    Raises
    ------
    GradscopeError
        If `edges` is none of the two, the loss does not depend on the model, or the model is
        distributed or uses re-entrant checkpointing.
    """
    import pandas as pd

    if edges not in CUTS:
        raise GradscopeError(f"cut(edges={edges!r}): needs one of {', '.join(CUTS)}")
    with probe_of(model, loss_fn, batch) as probe:
        plan = probe.plan()
        targets = [GradientEdge(probe.graph.nodes[n], slot) for (n, slot), _ in plan.outputs]
        found = {
            "signal_norm": grad_with_cuts(probe.graph, [], [probe.loss], targets),
            "cut_signal_norm": grad_with_cuts(probe.graph, plan.cuts[edges], [probe.loss], targets),
        }
        catalogue = Catalogue()
        catalogue.add_layers(probe.modules.layers(), probe.modules.executed)
    frame = pd.DataFrame(catalogue.layers)[["layer", "name", "kind", "depth"]]
    for column, gradients in found.items():
        squares: dict[int, float] = defaultdict(float)
        for (_, layer), gradient in zip(plan.outputs, gradients, strict=True):
            squares[catalogue.layer_of[layer]] += (
                0.0 if gradient is None else float(measure.norm(gradient)) ** 2
            )
        frame[column] = frame["layer"].map({layer: s**0.5 for layer, s in squares.items()})
    return frame
