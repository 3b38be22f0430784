"""Modules of one's own between two layers, which compute and hold nothing to be read."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from gradscope.capture.net.layers import is_layer
from gradscope.capture.net.modules import ModuleInfo


def own_between(returned: Iterable[tuple[ModuleInfo, nn.Module]]) -> dict[str, list[str]]:
    """Return which modules ran before each layer, since the layer before it.

    Torch's own that are no layers, pools and reshapes, make finite numbers of finite ones, and are
    left out.

    Parameters
    ----------
    returned : iterable of (ModuleInfo, Module)
        The calls of one forward, in the order in which they began.
    """
    found: dict[str, list[str]] = {}
    since: list[str] = []
    for info, module in returned:
        if info.is_layer:
            if since:
                found.setdefault(info.name, since)
            since = []
        elif info.name and not _is_torchs(module) and not any(map(is_layer, module.modules())):
            since.append(info.name)
    return found


def _is_torchs(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.")
