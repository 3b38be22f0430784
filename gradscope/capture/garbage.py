"""Python's garbage collection, put off while much is made at once that lives on for a while.

It begins whenever some hundreds of objects are new, and goes the deeper the more of these live on.
The hooks on a graph all do, until the backward: it would go through them in vain again and again,
and now and then through all that the process holds.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collection_put_off() -> Iterator[None]:
    """Let no collection begin meanwhile; what is due is done afterwards, once."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
