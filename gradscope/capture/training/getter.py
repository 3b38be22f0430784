"""Where a program keeps the gradients of its parameters: in `.grad`, or where it says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

GradientGetter = str | Callable[[Tensor], Tensor | None] | None


class Getter:
    """Gets the gradient of a parameter.

    Parameters
    ----------
    given : str, function or None
        Name of an attribute of parameters, such as "main_grad"; or a function from a parameter to
        its gradient, or None without one, which is asked at an optimizer's step alone, as it may
        have to speak to other processes; or None for `.grad`.
    tell : called with a sentence, once

    Attributes
    ----------
    is_function : bool
    is_given : bool
    """

    def __init__(self, given: GradientGetter, tell: Callable[[str], None]) -> None:
        self.is_given = given is not None
        self.is_function = callable(given)
        self._given: Any = given or "grad"
        self._tell = tell
        self._failed = False

    def __call__(self, parameter: Tensor) -> Tensor | None:
        """Return the gradient of `parameter`; None without one, and after a failure."""
        if not self.is_function:
            found = getattr(parameter, self._given, None)
        elif self._failed:
            return None
        else:
            try:
                found = self._given(parameter)
            except Exception as error:
                self._fail(f"raised {type(error).__name__}: {error}")
                return None
        if found is None or isinstance(found, Tensor):
            return found
        self._fail(f"gave a {type(found).__name__} for a gradient, not a tensor or None")
        return None

    def _fail(self, what: str) -> None:
        self._failed = True
        self._tell(
            f"watch(gradient=...) {what}: it is not asked again, grad_norm and clipped_grad_norm"
            " are NaN from here on, and the training goes on"
        )
