"""What a function of a user's script returns: the model, its loss, batches and optimizer."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from gradscope.errors import GradscopeError


def returned(place: str) -> tuple[Any, Any, Any, Any]:
    """Import a script and call a function of it without arguments.

    Parameters
    ----------
    place : str
        `train.py:setup` or `package.module:setup`. What the script does below
        `if __name__ == "__main__"` is left out.

    Returns
    -------
    model, loss_fn, batches, optimizer

    Raises
    ------
    GradscopeError
        If there is no such script or function, or it fails or returns something else.
    """
    source, _, name = place.rpartition(":")
    if not source or not name:
        raise GradscopeError(f"{place}: write SCRIPT:FUNCTION, such as train.py:setup")
    module = _imported(source)
    function = getattr(module, name, None)
    if not callable(function):
        raise GradscopeError(f"{source}: has no function {name!r}")
    try:
        found = function()
    except Exception as error:
        raise GradscopeError(f"{place} failed: {_reason(error)}") from error
    if not isinstance(found, (tuple, list)) or len(found) != 4:
        raise GradscopeError(
            f"{place}: must return (model, loss_fn, batches, optimizer), got {type(found).__name__}"
        )
    model, loss_fn, batches, optimizer = found
    return model, loss_fn, batches, optimizer


def _imported(source: str) -> ModuleType:
    path = Path(source)
    is_file = path.suffix == ".py"
    if is_file and not path.is_file():
        raise GradscopeError(f"{source}: there is no such script")
    sys.path.insert(0, str(path.resolve().parent if is_file else Path.cwd()))
    try:
        if not is_file:
            return importlib.import_module(source)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module  # what is defined there can be pickled
        spec.loader.exec_module(module)
        return module
    except Exception as error:
        raise GradscopeError(f"{source} cannot be imported: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
