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
    from gradscope.diagnosis.comparison import Comparison, compare
    from gradscope.diagnosis.findings import Diagnosis, Finding
    from gradscope.diagnosis.ledger import ledger
    from gradscope.diagnosis.verdict import diagnose
    from gradscope.probes.cut import cut
    from gradscope.probes.path_lengths import path_lengths
    from gradscope.probes.shattering import Shattering, shattering
    from gradscope.runs.loading import load, load_all
    from gradscope.runs.run import Run
    from gradscope.session.scope import Scope
    from gradscope.session.watch import unwatch, watch
    from gradscope.session.what_if import what_if
    from gradscope.showing import dashboard, report
    from gradscope.whatif.result import WhatIf

__all__ = [
    "Comparison",
    "Diagnosis",
    "Finding",
    "GradscopeError",
    "GradscopeWarning",
    "Run",
    "Scope",
    "Shattering",
    "WhatIf",
    "__version__",
    "compare",
    "cut",
    "dashboard",
    "diagnose",
    "ledger",
    "load",
    "load_all",
    "path_lengths",
    "report",
    "shattering",
    "unwatch",
    "watch",
    "what_if",
]

_HOMES = {
    "watch": "gradscope.session.watch",
    "unwatch": "gradscope.session.watch",
    "what_if": "gradscope.session.what_if",
    "WhatIf": "gradscope.whatif.result",
    "Scope": "gradscope.session.scope",
    "Run": "gradscope.runs.run",
    "load": "gradscope.runs.loading",
    "load_all": "gradscope.runs.loading",
    "diagnose": "gradscope.diagnosis.verdict",
    "Diagnosis": "gradscope.diagnosis.findings",
    "Finding": "gradscope.diagnosis.findings",
    "ledger": "gradscope.diagnosis.ledger",
    "compare": "gradscope.diagnosis.comparison",
    "Comparison": "gradscope.diagnosis.comparison",
    "cut": "gradscope.probes.cut",
    "path_lengths": "gradscope.probes.path_lengths",
    "shattering": "gradscope.probes.shattering",
    "Shattering": "gradscope.probes.shattering",
    "report": "gradscope.showing",
    "dashboard": "gradscope.showing",
}
"""Public name -> module that defines it, imported on first use: training needs no pandas, reading
no torch, neither of them plotly."""


def __getattr__(name: str) -> Any:
    if name == "plots":  # a module, which needs plotly
        return importlib.import_module("gradscope.plots")
    if name in _HOMES:
        value = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
        if name in ("Run", "load", "load_all"):
            importlib.import_module("gradscope.diagnosis.headline").put_into_notebooks()
        return value
    raise AttributeError(f"module 'gradscope' has no attribute {name!r}")
