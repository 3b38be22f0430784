"""Numbers in words that a reader understands."""

from __future__ import annotations

import math
from collections.abc import Sequence

_LARGE = ((1e12, "trillion"), (1e9, "billion"), (1e6, "million"), (1e3, "thousand"))


def amount(value: float) -> str:
    """Return a large factor in words: `634 thousand`, `3.0`, `1.2 million`, `10^21`."""
    if not math.isfinite(value):
        return "infinitely many" if value > 0 else "?"
    if value >= 1e15:
        return f"10^{round(math.log10(value))}"
    for size, name in _LARGE:
        if value >= size:
            count = value / size
            return f"{count:.0f} {name}" if count >= 10 else f"{count:.1f} {name}"
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def number(value: float, digits: int = 2) -> str:
    """Return `value` to so many digits: `0.21`, `6.2`, `3.0e-7`, `exactly 0`, `NaN`, `inf`."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    if value == 0:
        return "exactly 0"
    if 0.001 <= abs(value) < 10_000:
        decimals = digits - 1 - math.floor(math.log10(abs(value)))
        return f"{value:.{max(decimals, 0)}f}"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return f"{mantissa}e{int(exponent):+d}"


def setting(value: float, digits: int = 3) -> str:
    """Return a value that somebody chose, to so many digits at most: `0.05`, `3e-4`, `128`."""
    if value == 0:
        return "0"
    mantissa, sign, exponent = number(value, digits).partition("e")
    if "." in mantissa:
        mantissa = mantissa.rstrip("0").rstrip(".")
    return f"{mantissa}{sign}{exponent}"


def compared(decades: float) -> str:
    """Return what log10(early / late gradient) means: `634 thousand times less gradient than`."""
    if math.isinf(decades):
        return "none of the gradient of" if decades < 0 else "infinitely more gradient than"
    if abs(decades) < 0.18:  # a factor of 1.5
        return "about as much gradient as"
    # 10 ** decades overflows beyond 308
    times = amount(10 ** abs(decades)) if abs(decades) < 300 else f"10^{round(abs(decades))}"
    return f"{times} times {'more' if decades > 0 else 'less'} gradient than"


def layer_label(index: int, name: str, kind: str) -> str:
    """Return what a layer is called everywhere: `19 · blocks.4.fc1 (Linear)`."""
    return f"{index} · {name} ({kind})"


def layers_labelled(labels: Sequence[str]) -> str:
    """Return labels as those of layers: `layer 3 · fc1 (Linear)`, `layers A, B`, as `listed`."""
    return f"layer{'s' * (len(labels) != 1)} {listed(labels)}"


def layers_named(names: Sequence[str]) -> str:
    """Return names as those of layers: `layer 'fc1'`, `layers 'a', 'b'`, as `listed`."""
    quoted = listed([f"'{name}'" for name in names])
    return f"layer{'s' * (len(names) != 1)} {quoted}"


def capitalised(sentence: str) -> str:
    """Return `sentence` with a capital first letter, the rest as it is."""
    return sentence[:1].upper() + sentence[1:]


def listed(names: Sequence[str], most: int = 4) -> str:
    """Return names as `a, b, c`, those beyond `most` counted: `a, b ... y, z (26 in all)`."""
    if len(names) <= most:
        return ", ".join(names)
    half = most // 2
    return f"{', '.join(names[:half])} ... {', '.join(names[-half:])} ({len(names)} in all)"
