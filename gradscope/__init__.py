"""gradscope: see why a deep net does not learn.

>>> scope = gradscope.watch(model)          # then train as before
>>> scope.run.frame()                       # what each layer got, as a pandas frame
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gradscope._version import __version__
from gradscope.errors import GradscopeError, GradscopeWarning

if TYPE_CHECKING:
    from gradscope import plots as plots
    from gradscope.comparison import Comparison, compare
    from gradscope.counterfactual import cut, path_lengths
    from gradscope.diagnosis import diagnose
    from gradscope.findings import Diagnosis, Finding
    from gradscope.gains import ledger
    from gradscope.loading import load, load_all
    from gradscope.probes import Shattering, shattering
    from gradscope.run import Run
    from gradscope.scope import Scope, watch

__all__ = [
    "Comparison",
    "Diagnosis",
    "Finding",
    "GradscopeError",
    "GradscopeWarning",
    "Run",
    "Scope",
    "Shattering",
    "__version__",
    "compare",
    "cut",
    "diagnose",
    "ledger",
    "load",
    "load_all",
    "path_lengths",
    "shattering",
    "watch",
]

_HOMES = {
    "watch": "gradscope.scope",
    "Scope": "gradscope.scope",
    "Run": "gradscope.run",
    "load": "gradscope.loading",
    "load_all": "gradscope.loading",
    "diagnose": "gradscope.diagnosis",
    "Diagnosis": "gradscope.findings",
    "Finding": "gradscope.findings",
    "ledger": "gradscope.gains",
    "compare": "gradscope.comparison",
    "Comparison": "gradscope.comparison",
    "cut": "gradscope.counterfactual",
    "path_lengths": "gradscope.counterfactual",
    "shattering": "gradscope.probes",
    "Shattering": "gradscope.probes",
}
"""Public name -> module that defines it, imported on first use: training needs no pandas, reading
no torch, neither of them plotly."""


def __getattr__(name: str) -> Any:
    if name == "plots":  # a module, which needs plotly
        return importlib.import_module("gradscope.plots")
    if name in _HOMES:
        value = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
        return value
    raise AttributeError(f"module 'gradscope' has no attribute {name!r}")
