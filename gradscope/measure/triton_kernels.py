"""Sums over tensors on a GPU, one pass each, in their own dtype: the code that Triton compiles.

Elements are read tile by tile. Each tile is multiplied by the power of two that brings its largest
magnitude near 1 and added up in float32; only its totals become float64. So no square leaves the
range, and the float64 units, slow on consumer cards, have little to do. In a census the elements'
distances from their tile's mean are added up, or a deviation far below the mean would be lost.

A tensor is given as an entry of integers, so that one compiled function serves all of a dtype:

    x, y, z   addresses in units of UNIT bytes, by which the compiler knows how wide it may load
    n         elements that lie there, one behind the other
    factor    how often each of them stands for an element (of an expanded tensor)
    center, radius    of a census: bits of float32
    row       address of five float64, to which the sums are added

Which sums these are is said by the kind, as in gpu_kernel.py:

    0    sum x^2
    1    sum x^2, sum x
    2    sum x^2, sum x, how many are not 0
    3    sum x^2, sum x, how many are not 0, how many are farther than `radius` from `center`
    4    sum x^2, sum y^2, sum x y
    5    sum x^2, while x is copied to y
    6    sum (x - y)^2
    7    sum y^2, sum z^2, sum y z, sum x^2, sum (x - y - z)^2
"""

# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

FIELDS = 8
"""Integers of an entry."""

TILE = 4096
"""Elements that a program holds at once."""

CHUNK = 16 * TILE
"""Elements of an entry of a table that one program reads."""


@triton.jit
def _load(pointer, start, n, MASKED: tl.constexpr, TILE: tl.constexpr):
    """Return a tile as float32, 0 beyond the end."""
    offsets = start + tl.arange(0, TILE)
    if MASKED:
        return tl.load(pointer + offsets, mask=offsets < n, other=0.0).to(tl.float32)
    return tl.load(pointer + offsets).to(tl.float32)


@triton.jit
def _store(pointer, values, start, n, MASKED: tl.constexpr, TILE: tl.constexpr):
    offsets = start + tl.arange(0, TILE)
    if MASKED:
        tl.store(pointer + offsets, values.to(pointer.dtype.element_ty), mask=offsets < n)
    else:
        tl.store(pointer + offsets, values.to(pointer.dtype.element_ty))


@triton.jit
def _scaled(values):
    """Return `values` with the largest near 1, and the exponent field of what they were times."""
    peak = tl.max(tl.abs(values), axis=0)
    field = tl.maximum(254 - ((peak.to(tl.int32, bitcast=True) >> 23) & 255), 1)
    return values * (field << 23).to(tl.float32, bitcast=True), field


@triton.jit
def _back(total, field, TIMES: tl.constexpr):
    """Return a float32 total divided by that factor to the TIMES, float64."""
    exponent = 1023 - (field.to(tl.int64) - 127) * TIMES
    return total.to(tl.float64) * (exponent << 52).to(tl.float64, bitcast=True)


@triton.jit
def _squares(values):
    """Return the sum of squares of a tile, float64."""
    scaled, field = _scaled(values)
    return _back(tl.sum(scaled * scaled, axis=0), field, 2)


@triton.jit
def _pair(values, others):
    """Return the sums of squares of two tiles and that of their products, float64."""
    one, one_field = _scaled(values)
    other, other_field = _scaled(others)
    product = _back(_back(tl.sum(one * other, axis=0), one_field, 1), other_field, 1)
    return (
        _back(tl.sum(one * one, axis=0), one_field, 2),
        _back(tl.sum(other * other, axis=0), other_field, 2),
        product,
    )


@triton.jit
def _tile(
    x, y, z, start, n, center, radius, KIND: tl.constexpr, MASKED: tl.constexpr, TILE: tl.constexpr
):
    """Return five float64 sums over one tile."""
    nothing = tl.full((), 0.0, tl.float64)
    values = _load(x, start, n, MASKED, TILE)
    if KIND == 5:
        _store(y, values, start, n, MASKED, TILE)
    if KIND == 6:
        values -= _load(y, start, n, MASKED, TILE)
    if KIND == 0 or KIND == 5 or KIND == 6:
        return _squares(values), nothing, nothing, nothing, nothing
    if KIND == 4:
        square, other, product = _pair(values, _load(y, start, n, MASKED, TILE))
        return square, other, product, nothing, nothing
    if KIND == 7:
        one = _load(y, start, n, MASKED, TILE)
        two = _load(z, start, n, MASKED, TILE)
        square, other, product = _pair(one, two)
        return square, other, product, _squares(values), _squares(values - one - two)
    scaled, field = _scaled(values)
    count = tl.minimum(n - start, TILE)
    mean = tl.sum(scaled, axis=0) / count.to(tl.float32)
    mean = tl.where(tl.abs(mean) <= 4.0, mean, 0.0)  # not so among inf and NaN
    rest = scaled - mean
    if MASKED:
        rest = tl.where(start + tl.arange(0, TILE) < n, rest, 0.0)
    base, weight = mean.to(tl.float64), count.to(tl.float64)
    shift = tl.sum(rest, axis=0).to(tl.float64)
    spread = tl.sum(rest * rest, axis=0).to(tl.float64)
    cross = tl.where(base != 0, base * (base * weight + 2 * shift), 0.0)  # inf may be in shift
    square = _back(spread + cross, field, 2)
    total = _back(base * weight + shift, field, 1)
    if KIND == 1:
        return square, total, nothing, nothing, nothing
    nonzero = tl.sum((values != 0).to(tl.int32), axis=0).to(tl.float64)
    if KIND == 2:
        return square, total, nonzero, nothing, nothing
    far = tl.abs(values - center) > radius
    if MASKED:
        far = far & (start + tl.arange(0, TILE) < n)
    return square, total, nonzero, tl.sum(far.to(tl.int32), axis=0).to(tl.float64), nothing


@triton.jit
def _read(
    x,
    y,
    z,
    n,
    factor,
    center,
    radius,
    row,
    first,
    step,
    KIND: tl.constexpr,
    X: tl.constexpr,
    Y: tl.constexpr,
    UNIT: tl.constexpr,
    TILE: tl.constexpr,
):
    """Add the sums over tiles `first`, `first + step` ... of `n` elements to a row."""
    x = tl.multiple_of((x * UNIT).to(tl.pointer_type(X)), UNIT)
    y = tl.multiple_of((y * UNIT).to(tl.pointer_type(Y)), UNIT)
    z = tl.multiple_of((z * UNIT).to(tl.pointer_type(Y)), UNIT)
    a = tl.full((), 0.0, tl.float64)
    b = tl.full((), 0.0, tl.float64)
    c = tl.full((), 0.0, tl.float64)
    d = tl.full((), 0.0, tl.float64)
    e = tl.full((), 0.0, tl.float64)
    center = center.to(tl.int32).to(tl.float32, bitcast=True)
    radius = radius.to(tl.int32).to(tl.float32, bitcast=True)
    whole = n // TILE
    for i in range(first, whole, step):
        f, g, h, k, m = _tile(x, y, z, i * TILE, n, center, radius, KIND, False, TILE)
        a += f
        b += g
        c += h
        d += k
        e += m
    if whole * TILE < n and whole % step == first:
        f, g, h, k, m = _tile(x, y, z, whole * TILE, n, center, radius, KIND, True, TILE)
        a += f
        b += g
        c += h
        d += k
        e += m
    row = row.to(tl.pointer_type(tl.float64))
    times = factor.to(tl.float64)
    tl.atomic_add(row, a * times, sem="relaxed")
    if (KIND >= 1 and KIND <= 4) or KIND == 7:
        tl.atomic_add(row + 1, b * times, sem="relaxed")
    if (KIND >= 2 and KIND <= 4) or KIND == 7:
        tl.atomic_add(row + 2, c * times, sem="relaxed")
    if KIND == 3 or KIND == 7:
        tl.atomic_add(row + 3, d * times, sem="relaxed")
    if KIND == 7:
        tl.atomic_add(row + 4, e * times, sem="relaxed")


@triton.jit(do_not_specialize=["x", "y", "z", "n", "factor", "center", "radius", "row"])
def one(
    x,
    y,
    z,
    n,
    factor,
    center,
    radius,
    row,
    KIND: tl.constexpr,
    X: tl.constexpr,
    Y: tl.constexpr,
    UNIT: tl.constexpr,
    TILE: tl.constexpr,
):
    """Read one entry by as many programs as there are."""
    first, step = tl.program_id(0), tl.num_programs(0)
    _read(x, y, z, n, factor, center, radius, row, first, step, KIND, X, Y, UNIT, TILE)


@triton.jit(do_not_specialize=["entries", "chunks"])
def many(
    entries,
    chunks,
    KIND: tl.constexpr,
    X: tl.constexpr,
    Y: tl.constexpr,
    UNIT: tl.constexpr,
    TILE: tl.constexpr,
    CHUNK: tl.constexpr,
    FIELDS: tl.constexpr,
    X_BYTES: tl.constexpr,
    Y_BYTES: tl.constexpr,
):
    """Read a table of entries, a chunk of one of them by each program.

    `entries` and `chunks` are addresses of int64: rows of an entry, and of an entry's number and
    which of its chunks.
    """
    chunk = chunks.to(tl.pointer_type(tl.int64)) + 2 * tl.program_id(0)
    entry = entries.to(tl.pointer_type(tl.int64)) + FIELDS * tl.load(chunk)
    start = tl.load(chunk + 1) * CHUNK
    x = tl.load(entry) + start * X_BYTES // UNIT
    y = tl.load(entry + 1) + start * Y_BYTES // UNIT
    z = tl.load(entry + 2) + start * Y_BYTES // UNIT
    n = tl.minimum(tl.load(entry + 3) - start, CHUNK)
    factor, center, radius = tl.load(entry + 4), tl.load(entry + 5), tl.load(entry + 6)
    row = tl.load(entry + 7)
    _read(x, y, z, n, factor, center, radius, row, 0, 1, KIND, X, Y, UNIT, TILE)
