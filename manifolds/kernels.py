"""Triton kernels for disjoint pairs and groups of columns: derivatives, moves, and both in one pass.

They compute what ``rotation_coordinates`` and ``rotations`` state in plain torch, with the same care in
rounding. One program takes one pair of one matrix, so that a step on all columns reads the point and
the gradient once and writes the point once, each column being contiguous where the matrix is
column-major. Of groups, programs take some rows; the exponentials in between are few and small.
Triton compiles a kernel when it is first called, without a compiler on the machine.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .backend import rounds_products

__all__ = ["descend_", "group_slopes", "rotate_", "slopes", "turn_groups_"]

# Longest columns that a program keeps in registers from the derivative to the rotation. (A GPU's core
# has 65,536 of them; a program at this size uses about half.) Longer ones are read twice.
_LONGEST = 8192

# What a thread takes of a column: 16 bytes of float32 four times, so that loads are in flight.
_PER_THREAD = 16

# Largest groups, whose r×r matrices a program keeps in registers, and how many rows it takes at a time.
LARGEST_GROUP = 64
_GROUP_ROWS = 64


def slopes(x: Tensor, g: Tensor, j: Tensor, l: Tensor) -> Tensor:
    """Return x_j·g_l − x_l·g_j for pairs of columns.

    Parameters
    ----------
    x, g : Tensor
        Shape ``(..., m, n)``, float32 or float64, any strides that make one dimension of the leading ones.
    j, l : Tensor
        int64 columns, shape ``(..., k)`` with the leading dimensions of `x`.

    Returns
    -------
    Tensor
        Shape ``(..., k)``. Costs 4·k·m flops and reads as many numbers.
    """
    x, g = flat(x), flat(g)
    out = torch.empty(j.shape, dtype=x.dtype, device=x.device)
    k = out.shape[-1]
    if out.numel():
        j, l = _flat_pairs(j), _flat_pairs(l)
        _slopes_kernel[k, x.shape[0]](
            *(x, g, j, l, out, x.shape[-2], k),
            *(*x.stride(), *g.stride(), *j.stride(), *l.stride()),
            **_blocks(x.shape[-2]),
        )
    return out


def rotate_(x: Tensor, j: Tensor, l: Tensor, angle: Tensor) -> Tensor:
    """Rotate pairs of columns in place, as ``rotations.rotate_columns_`` does.

    Parameters
    ----------
    x : Tensor
        Shape ``(..., m, n)``, float32 or float64, strides as for :func:`slopes`.
    j, l : Tensor
        int64 columns, shape ``(..., k)`` with the leading dimensions of `x`; no column twice.
    angle : Tensor
        Radians, finite, float32 or float64, the shape of `j`.

    Returns
    -------
    Tensor
        `x`. Reads and writes 2·k·m numbers per matrix.
    """
    y = flat(x)
    if j.numel():
        j, l, angle = _flat_pairs(j), _flat_pairs(l), _flat_pairs(angle)
        _rotate_kernel[j.shape[-1], y.shape[0]](
            *(y, j, l, angle, *y.shape[-2:]),
            *(*y.stride(), *j.stride(), *l.stride(), *angle.stride()),
            EPS=torch.finfo(y.dtype).eps,
            **_blocks(y.shape[-2]),
        )
        torch.autograd.graph.increment_version(x)
    return x


def descend_(
    x: Tensor,
    g: Tensor,
    j: Tensor,
    l: Tensor | None,
    *,
    rate: float | Tensor,
    radians: float,
    limit: float,
    stopped: Tensor,
) -> Tensor:
    """Rotate pairs of columns by ``radians² · rate · (x_j·g_l − x_l·g_j)``, in place, in one pass.

    A pair whose derivative is not finite, or whose time ``radians · rate · (…)`` is not below the limit,
    stays where it is and sets `stopped`; where that is set, nothing moves. (Of the pairs of the
    call that sets it, some may have moved.)

    Parameters
    ----------
    x, g : Tensor
        Points, changed in place, and gradients: float32, shape ``(..., m, n)``, strides as for
        :func:`slopes`.
    j, l : Tensor
        int64 columns, shape ``(..., k)`` with the leading dimensions of `x`; no column twice. Without `l`
        the numbers of the pairs, along the rows of the strict upper triangle.
    rate : float or Tensor
        Stepsize with its sign; a tensor has one element.
    radians : float
        Angle that a unit of time turns.
    limit : float
        What times must stay below.
    stopped : Tensor
        One bool, on the device.

    Returns
    -------
    Tensor
        `x`. For k = n/2 the least traffic that there can be: two reads and a write of a matrix.
    """
    y, g = flat(x), flat(g)
    if j.numel():
        numbered = l is None
        j = _flat_pairs(j)
        l = j if l is None else _flat_pairs(l)
        if isinstance(rate, Tensor) and rate.device != y.device:
            rate = float(rate)
        _descend_kernel[j.shape[-1], y.shape[0]](
            *(y, g, j, l, rate, stopped, y.shape[-2], y.shape[-1], limit),
            *(*y.stride(), *g.stride(), *j.stride(), *l.stride()),
            RADIANS=radians,
            NUMBERED=numbered,
            RATE_IS_TENSOR=isinstance(rate, Tensor),
            EPS=torch.finfo(y.dtype).eps,
            WHOLE=y.shape[-2] <= _LONGEST,
            **_blocks(y.shape[-2]),
        )
        torch.autograd.graph.increment_version(x)
    return x


def group_slopes(x: Tensor, g: Tensor, axes: Tensor) -> Tensor:
    """Return XᵀG − GᵀX for groups of columns X of `x` and G of `g`.

    Parameters
    ----------
    x, g : Tensor
        Shape ``(..., m, n)``, float32, strides as for :func:`slopes`.
    axes : Tensor
        int64 columns, shape ``(..., k, r)`` with the leading dimensions of `x`, r <= 64.

    Returns
    -------
    Tensor
        Skew, shape ``(..., k, r, r)``. Costs 2·k·r²·m flops and reads 2·k·r·m numbers, none of them twice.
        Rounded to TF32 before they are multiplied where ``torch.set_float32_matmul_precision`` allows it.
    """
    if not axes.numel():
        return x.new_zeros((*axes.shape, axes.shape[-1]))
    k, r = axes.shape[-2:]
    x, g, groups = flat(x), flat(g), axes.reshape(-1, k, r)
    # Few groups do not fill a GPU, so rows are shared out, in an order that does not vary.
    parts = max(1, min(triton.cdiv(x.shape[-2], _GROUP_ROWS), 1024 // max(1, k * len(x))))
    products = torch.empty((parts, len(x), k, r, r), dtype=x.dtype, device=x.device)
    _group_slopes_kernel[k, parts, len(x)](
        *(x, g, groups, products, x.shape[-2], triton.cdiv(x.shape[-2], parts), k, r, len(x)),
        *(*x.stride(), *g.stride(), *groups.stride()),
        PRECISION="tf32" if rounds_products() else "ieee",
        ROWS=_GROUP_ROWS,
        R=max(16, triton.next_power_of_2(r)),
    )
    a = products.sum(0).view(*axes.shape, r)
    return a - a.mT


def turn_groups_(x: Tensor, axes: Tensor, increments: Tensor) -> Tensor:
    """Turn groups of columns, X ← X + X·E, in place.

    Parameters
    ----------
    x : Tensor
        Shape ``(..., m, n)``, float32, strides as for :func:`slopes`.
    axes : Tensor
        int64 columns, shape ``(..., k, r)`` with the leading dimensions of `x`, r <= 64; none twice.
    increments : Tensor
        E, what the turns differ from I by, shape ``(..., k, r, r)``.

    Returns
    -------
    Tensor
        `x`. Costs 2·k·r²·m flops, and reads and writes k·r·m numbers. Where
        ``torch.set_float32_matmul_precision`` allows TF32, by three products of that kind, which keep
        float32's digits.
    """
    if axes.numel():
        k, r = axes.shape[-2:]
        y, groups = flat(x), axes.reshape(-1, k, r)
        e = increments.expand(*axes.shape, r).reshape(-1, k, r, r)
        _turn_groups_kernel[k, triton.cdiv(y.shape[-2], _GROUP_ROWS), len(y)](
            *(y, groups, e, y.shape[-2], r, *y.stride(), *groups.stride(), *e.stride()),
            # In three parts, which keep float32's digits: what a move rounds, later steps do not mend.
            PRECISION="tf32x3" if rounds_products() else "ieee",
            ROWS=_GROUP_ROWS,
            R=max(16, triton.next_power_of_2(r)),
        )
        torch.autograd.graph.increment_version(x)
    return x


def flat(x: Tensor) -> Tensor:
    """View matrices as ``(b, m, n)``; a RuntimeError says that their strides do not allow it."""
    return x.view(math.prod(x.shape[:-2]), *x.shape[-2:])


def _flat_pairs(index: Tensor) -> Tensor:
    # An index that is expanded over a batch of several dimensions is copied: it is small.
    return index.reshape(-1, index.shape[-1])


def _blocks(m: int) -> dict[str, Any]:
    block = min(triton.next_power_of_2(m), _LONGEST)
    warps = triton.next_power_of_2(max(1, block // (32 * _PER_THREAD)))
    return {"BLOCK": block, "num_warps": warps}


@triton.jit
def _slopes_kernel(
    x, g, j, l, out, m, k,
    xb, xm, xn, gb, gm, gn, jb, jk, lb, lk,
    BLOCK: tl.constexpr,
):  # fmt: skip
    pair, batch = tl.program_id(0), tl.program_id(1).to(tl.int64)
    j = tl.load(j + batch * jb + pair * jk)
    l = tl.load(l + batch * lb + pair * lk)
    x, g = x + batch * xb, g + batch * gb
    slope = _slope(x + j * xn, x + l * xn, xm, g + j * gn, g + l * gn, gm, m, BLOCK)
    tl.store(out + batch * k + pair, slope)


@triton.jit
def _rotate_kernel(
    x, j, l, angle, m, n,
    xb, xm, xn, jb, jk, lb, lk, ab, ak,
    EPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    pair, batch = tl.program_id(0), tl.program_id(1).to(tl.int64)
    j = tl.load(j + batch * jb + pair * jk)
    l = tl.load(l + batch * lb + pair * lk)
    angle = tl.load(angle + batch * ab + pair * ak)
    x += batch * xb
    entry = _entry(x + j * xn, xm, m, n, j)
    _rotate(x + j * xn, x + l * xn, xm, m, angle.to(tl.float64), entry, EPS, BLOCK)


@triton.jit
def _descend_kernel(
    x, g, j, l, rate, stopped, m, n, limit,
    xb, xm, xn, gb, gm, gn, jb, jk, lb, lk,
    RADIANS: tl.constexpr, NUMBERED: tl.constexpr, RATE_IS_TENSOR: tl.constexpr,
    EPS: tl.constexpr, WHOLE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    pair, batch = tl.program_id(0), tl.program_id(1).to(tl.int64)
    first = tl.load(j + batch * jb + pair * jk)
    if NUMBERED:
        j, l = _pair(first, n)
    else:
        j, l = first, tl.load(l + batch * lb + pair * lk)
    halted = tl.load(stopped)
    x, g = x + batch * xb, g + batch * gb
    x_j, x_l, g_j, g_l = x + j * xn, x + l * xn, g + j * gn, g + l * gn

    rows = tl.arange(0, BLOCK).to(tl.int64)
    if WHOLE:
        inside = rows < m
        a = tl.load(x_j + rows * xm, mask=inside, other=0.0)
        b = tl.load(x_l + rows * xm, mask=inside, other=0.0)
        c = tl.load(g_j + rows * gm, mask=inside, other=0.0)
        e = tl.load(g_l + rows * gm, mask=inside, other=0.0)
        slope = tl.sum(a * e) - tl.sum(b * c)
    else:
        slope = _slope(x_j, x_l, xm, g_j, g_l, gm, m, BLOCK)
    slope *= RADIANS
    if RATE_IS_TENSOR:
        rate = tl.load(rate).to(slope.dtype)
    t = rate * slope
    # Comparisons with NaN are false.
    small = (tl.abs(slope) < float("inf")) & (tl.abs(t) < limit)
    if not small:
        tl.store(stopped, True)
    angle = tl.where(small & (halted == 0), t, 0.0).to(tl.float64) * RADIANS

    entry = _entry(x_j, xm, m, n, j)
    if WHOLE:
        a, b = _rotated(a, b, angle, entry, EPS)
        tl.store(x_j + rows * xm, a, mask=inside)
        tl.store(x_l + rows * xm, b, mask=inside)
    else:
        _rotate(x_j, x_l, xm, m, angle, entry, EPS, BLOCK)


@triton.jit
def _entry(x_j, xm, m, n, j):
    """The entry of a column that ``rotations.entries`` takes, read by all threads before one writes there."""
    entry = tl.load(x_j + tl.where(m >= n, j, 0) * xm)
    tl.debug_barrier()
    return entry


@triton.jit
def _slope(x_j, x_l, xm, g_j, g_l, gm, m, BLOCK: tl.constexpr):
    """x_j·g_l − x_l·g_j, in blocks of rows."""
    rise = tl.zeros((BLOCK,), x_j.dtype.element_ty)
    fall = tl.zeros((BLOCK,), x_j.dtype.element_ty)
    for top in range(0, m, BLOCK):
        rows = top + tl.arange(0, BLOCK).to(tl.int64)
        inside = rows < m
        a = tl.load(x_j + rows * xm, mask=inside, other=0.0)
        b = tl.load(x_l + rows * xm, mask=inside, other=0.0)
        c = tl.load(g_j + rows * gm, mask=inside, other=0.0)
        e = tl.load(g_l + rows * gm, mask=inside, other=0.0)
        rise += a * e
        fall += b * c
    return tl.sum(rise) - tl.sum(fall)


@triton.jit
def _rotate(x_j, x_l, xm, m, angle, entry, EPS: tl.constexpr, BLOCK: tl.constexpr):
    """Rotate two columns in blocks of rows."""
    for top in range(0, m, BLOCK):
        rows = top + tl.arange(0, BLOCK).to(tl.int64)
        inside = rows < m
        a = tl.load(x_j + rows * xm, mask=inside, other=0.0)
        b = tl.load(x_l + rows * xm, mask=inside, other=0.0)
        a, b = _rotated(a, b, angle, entry, EPS)
        tl.store(x_j + rows * xm, a, mask=inside)
        tl.store(x_l + rows * xm, b, mask=inside)


@triton.jit
def _rotated(a, b, angle, entry, EPS: tl.constexpr):
    """Both columns after the rotation: quarter turns, then the increments."""
    turn, sine, tangent = _reduced(angle, entry, a.dtype, EPS)
    odd = (turn == 1) | (turn == 3)
    first, second = tl.where(odd, b, a), tl.where(odd, a, b)
    first = tl.where((turn == 1) | (turn == 2), -first, first)
    second = tl.where(turn >= 2, -second, second)
    lean = second + tangent * first
    lift = first - tangent * second
    return first - sine * lean, second + sine * lift


@triton.jit
def _reduced(angle, entry, dtype: tl.constexpr, EPS: tl.constexpr):
    """Quarter turns, sine and half-angle tangent, as ``rotations.reduced`` chooses them."""
    quarter = tl.floor(angle * 0.6366197723675814 + 0.5)  # 2/π
    left = angle - quarter * 1.5707963267948966
    # Where no digit of an angle is left, so is none of what it leaves after its quarter turns.
    exact_sine = _sine(tl.minimum(tl.maximum(left, -1.0), 1.0))
    sine = exact_sine.to(dtype)
    tangent = (exact_sine / (1.0 + tl.sqrt(1.0 - exact_sine * exact_sine))).to(dtype)
    if dtype == tl.float32:
        above = exact_sine * 0.0 + float("inf")
        below, low_sine, low_tangent = above, sine, tangent
        for n in tl.static_range(9):
            candidate = (exact_sine * (1.0 + (n - 4) * EPS)).to(dtype)
            wide = candidate.to(tl.float64)
            exact = wide / (1.0 + tl.sqrt(1.0 - wide * wide))
            rounded = exact.to(dtype)
            for _side in tl.static_range(2):
                miss = rounded.to(tl.float64) - exact
                higher, lower = (miss >= 0.0) & (miss < above), (miss <= 0.0) & (-miss < below)
                sine, tangent = (
                    tl.where(higher, candidate, sine),
                    tl.where(higher, rounded, tangent),
                )
                low_sine = tl.where(lower, candidate, low_sine)
                low_tangent = tl.where(lower, rounded, low_tangent)
                above, below = tl.where(higher, miss, above), tl.where(lower, -miss, below)
                # The number on the other side.
                away = tl.where(miss > 0.0, -0.7, 0.7) * EPS
                near = rounded.to(tl.float64)
                rounded = (near + tl.abs(near) * away).to(dtype)
        digits = tl.abs(entry.to(tl.float64)) * 8192.0
        drawn = (digits - tl.floor(digits)) * (above + below) < below
        sine, tangent = tl.where(drawn, sine, low_sine), tl.where(drawn, tangent, low_tangent)
    return quarter - 4.0 * tl.floor(quarter * 0.25), sine, tangent


@triton.jit
def _sine(x):
    """Sine of a float64 in [−π/4, π/4], by Taylor's series; tl.sin reserves memory for large arguments."""
    square = x * x
    series = 1.0 - square * (1.0 / 272)
    series = 1.0 - square * (1.0 / 210) * series
    series = 1.0 - square * (1.0 / 156) * series
    series = 1.0 - square * (1.0 / 110) * series
    series = 1.0 - square * (1.0 / 72) * series
    series = 1.0 - square * (1.0 / 42) * series
    series = 1.0 - square * (1.0 / 20) * series
    return x - x * square * (1.0 / 6) * series


@triton.jit
def _pair(number, n):
    """The pair with a number, as ``pairs.number_to_pair`` finds it."""
    b = 2 * n.to(tl.int64) - 1
    root = tl.sqrt((b * b - 8 * number).to(tl.float64))
    j = ((b.to(tl.float64) - root) * 0.5).to(tl.int64)
    return j, number + 1 - (j * (2 * n - 3 - j) >> 1)


@triton.jit
def _group_slopes_kernel(
    x, g, axes, out, m, share, k, r, batches,
    xb, xm, xn, gb, gm, gn, ab, ak, ar,
    PRECISION: tl.constexpr, ROWS: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    group, part, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    place = tl.arange(0, R)
    inside = place < r
    column = tl.load(axes + batch * ab + group * ak + place * ar, mask=inside, other=0)
    x, g = x + batch * xb + column[:, None] * xn, g + batch * gb + column[:, None] * gn
    product = tl.zeros((R, R), x.dtype.element_ty)
    bottom = tl.minimum(m, (part + 1) * share)
    for top in range(part * share, bottom, ROWS):
        rows = top + tl.arange(0, ROWS).to(tl.int64)
        within = inside[:, None] & (rows < bottom)[None, :]
        a = tl.load(x + rows[None, :] * xm, mask=within, other=0.0)
        b = tl.load(g + rows[None, :] * gm, mask=within, other=0.0)
        product += tl.dot(a, tl.trans(b), input_precision=PRECISION)
    to = ((part * batches + batch) * k + group) * r * r
    mask = inside[:, None] & inside[None, :]
    tl.store(out + to + place[:, None] * r + place[None, :], product, mask=mask)


@triton.jit
def _turn_groups_kernel(
    x, axes, increments, m, r,
    xb, xm, xn, ab, ak, ar, eb, ek, ei, ej,
    PRECISION: tl.constexpr, ROWS: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    group, tile, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    place = tl.arange(0, R)
    inside = place < r
    column = tl.load(axes + batch * ab + group * ak + place * ar, mask=inside, other=0)
    rows = tile * ROWS + tl.arange(0, ROWS).to(tl.int64)
    x += batch * xb + column[:, None] * xn + rows[None, :] * xm
    within = inside[:, None] & (rows < m)[None, :]
    e = increments + batch * eb + group * ek + place[:, None] * ei + place[None, :] * ej
    e = tl.load(e, mask=inside[:, None] & inside[None, :], other=0.0)
    a = tl.load(x, mask=within, other=0.0)
    # (X·E)ᵀ = Eᵀ·Xᵀ: the rows of the tile are the columns of x.
    a += tl.dot(tl.trans(e), a, input_precision=PRECISION)
    tl.store(x, a, mask=within)
