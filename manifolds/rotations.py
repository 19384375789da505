"""Plane rotations of disjoint pairs of columns: the arithmetic of a derivative and of a move."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor

from .backend import kernels_for, readable
from .columns import CACHE, column_index, panels, put_, take

__all__ = ["entries", "reduced", "rotate_columns", "rotate_columns_", "slopes"]

# How far from a sine numbers next to it are tried, in units of its last place or half of it.
_REACH = 4


def rotate_columns_(x: Tensor, j: Tensor, l: Tensor, angle: Tensor) -> Tensor:
    """Rotate the columns j and l of `x` by an angle: x ← x·G_jl(angle), the paper's equation (13).

    ``x_j ← cos φ · x_j − sin φ · x_l``, ``x_l ← sin φ · x_j + cos φ · x_l``, computed as the
    increments of Rutishauser, −s(x_l + τ x_j) and s(x_j − τ x_l) with s = sin φ and τ = tan(φ/2),
    after exact quarter turns that leave ``|φ|`` <= π/4. In the plain form cos φ rounds to 1 at small
    angles, and the columns grow at every step.

    One more care keeps the drift from orthogonality small at large angles, too. A rounded s and a
    rounded τ scale both columns by the same factor next to 1 every time the angle occurs. So of the
    numbers next to s, all of which are the angle to about its precision, two are found whose τ lies
    closely above and closely below a number that can be represented, and the last digits of an
    entry of the column decide between them, so that the mean factor is 1 (``reduced``). What is
    left is a random walk.

    Parameters
    ----------
    x : Tensor
        Shape ``(..., m, d)``, float32 or float64, any strides; changed in place.
    j, l : Tensor
        int64 columns, shape ``(..., k)`` with the leading dimensions of `x`; no column twice.
    angle : Tensor
        Radians, finite, the shape of `j`; float64 keeps the digits of large angles.

    Returns
    -------
    Tensor
        `x`. Costs O(k·m) per matrix, and never waits for an accelerator.
    """
    if _opaque(j):
        _rotate_opaquely_(x, j, l, angle)
        return x
    kernels = kernels_for(x)
    if kernels is not None:
        kernels.rotate_(x, j, l, angle)
        return x
    parts = reduced(angle, x.dtype, entries(x, j))
    for rows, pairs in panels(x, j.shape[-1]):
        panel, at_j, at_l = x[..., rows, :], j[..., pairs], l[..., pairs]
        first, second = _rotated(panel, at_j, at_l, *(part[..., pairs] for part in parts))
        put_(panel, at_j, first)
        put_(panel, at_l, second)
    return x


def rotate_columns(x: Tensor, j: Tensor, l: Tensor, angle: Tensor) -> Tensor:
    """Out-of-place :func:`rotate_columns_`, through which gradients flow."""
    first, second = _rotated(x, j, l, *reduced(angle, x.dtype, entries(x.detach(), j)))
    return x.scatter(-1, column_index(x, j), first).scatter_(-1, column_index(x, l), second)


def slopes(x: Tensor, g: Tensor, j: Tensor, l: Tensor) -> Tensor:
    """x_j·g_l − x_l·g_j, by how much a function with the gradient g rises as pairs of columns turn.

    Parameters
    ----------
    x, g : Tensor
        Shape ``(..., m, d)``.
    j, l : Tensor
        int64 columns, shape ``(..., k)`` with the leading dimensions of `x`.

    Returns
    -------
    Tensor
        The shape of `j`. Costs 4·k·m flops, in panels of bounded memory.
    """
    if _opaque(j) and not torch.is_grad_enabled():
        return _slopes_opaquely(x, g, j, l)
    kernels = kernels_for(x, g)
    if kernels is not None:
        return cast(Tensor, kernels.slopes(x, g, j, l))
    if x.shape[-2] * j.numel() <= CACHE:
        return _slopes(x, g, j, l)
    total = x.new_zeros(j.shape)
    for rows, pairs in panels(x, j.shape[-1]):
        total[..., pairs] += _slopes(x[..., rows, :], g[..., rows, :], j[..., pairs], l[..., pairs])
    return total


def _slopes(x: Tensor, g: Tensor, j: Tensor, l: Tensor) -> Tensor:
    rise = (take(x, j) * take(g, l)).sum(-2)
    return rise.sub_((take(x, l) * take(g, j)).sum(-2))


def _opaque(j: Tensor) -> bool:
    """Whether a compiler is to leave the work on pairs of columns as it is.

    What it makes of many gathered columns is slower than panels and kernels; of one pair it is faster.
    """
    return torch.compiler.is_compiling() and j.numel() > 1


@torch.library.custom_op(
    "givens::rotate_columns_",
    mutates_args={"x"},
    schema="(Tensor(a!) x, Tensor j, Tensor l, Tensor angle) -> ()",
)
def _rotate_opaquely_(x: Tensor, j: Tensor, l: Tensor, angle: Tensor) -> None:
    rotate_columns_(x, j, l, angle)


@torch.library.custom_op(
    "givens::slopes",
    mutates_args=(),
    schema="(Tensor x, Tensor g, Tensor j, Tensor l) -> Tensor",
)
def _slopes_opaquely(x: Tensor, g: Tensor, j: Tensor, l: Tensor) -> Tensor:
    return slopes(x, g, j, l)


@_slopes_opaquely.register_fake
def _(x: Tensor, g: Tensor, j: Tensor, l: Tensor) -> Tensor:
    return x.new_empty(j.shape)


def _rotated(
    x: Tensor, j: Tensor, l: Tensor, turn: Tensor, sine: Tensor, tangent: Tensor
) -> tuple[Tensor, Tensor]:
    """The columns j and l after the rotation, each of shape ``(..., m, k)``."""
    turn, sine, tangent = turn.unsqueeze(-2), sine.unsqueeze(-2), tangent.unsqueeze(-2)
    if readable(x) and not bool(turn.any()):
        first, second = take(x, j), take(x, l)
    else:
        # A quarter turn takes (x_j, x_l) to (−x_l, x_j): read from the other column, with a sign.
        odd = (turn.remainder(2) == 1).squeeze(-2)
        sign_j = torch.where((turn == 1) | (turn == 2), -1.0, 1.0).to(x.dtype)
        sign_l = torch.where(turn >= 2, -1.0, 1.0).to(x.dtype)
        first = take(x, torch.where(odd, l, j)).mul_(sign_j)
        second = take(x, torch.where(odd, j, l)).mul_(sign_l)

    lean = torch.addcmul(second, tangent, first)
    lift = torch.addcmul(first, tangent, second, value=-1)
    return torch.addcmul(first, sine, lean, value=-1), torch.addcmul(second, sine, lift)


def entries(x: Tensor, j: Tensor) -> Tensor:
    """An entry of each column ``(..., k)``: on the diagonal, or on top where not all columns meet it."""
    row = x.diagonal(dim1=-2, dim2=-1) if x.shape[-2] >= x.shape[-1] else x[..., 0, :]
    return row.gather(-1, j)


def reduced(angle: Tensor, dtype: torch.dtype, entry: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Quarter turns q, and sin φ and tan(φ/2) of what is left of an angle: q·π/2 + φ, ``|φ|`` <= π/4.

    Sine and tangent belong together: the rotation scales by a factor that is off 1 by as much as the
    tangent is off that of the sine. Of two pairs that are off in opposite directions one is drawn such
    that the mean is 0; the digits of `entry` from 2⁻¹⁴ on are the random number.

    Parameters
    ----------
    angle : Tensor
        Radians, finite.
    dtype : torch.dtype
        float32 or float64: what sine and tangent are to be rounded to. In float64 they are rounded plainly.
    entry : Tensor
        Real numbers that change from move to move, the shape of `angle`.

    Returns
    -------
    tuple of Tensor
        The shape of `angle`; quarter turns 0, 1, 2 or 3 as float64, sine and tangent as `dtype`.
    """
    angle = angle.double()
    quarter = torch.round(angle * (2 / math.pi))
    # Where no digit of an angle is left, so is none of what it leaves after its quarter turns.
    sine = torch.sin((angle - quarter * (math.pi / 2)).clamp(-1.0, 1.0))
    if dtype == torch.float64:
        return quarter.remainder(4), sine, sine / (1 + torch.sqrt(1 - sine * sine))
    eps = torch.finfo(dtype).eps
    steps = torch.arange(-_REACH, _REACH + 1, dtype=sine.dtype, device=sine.device)
    sines = (sine.unsqueeze(-1) * (1 + eps * steps)).to(dtype)
    wide = sines.double()
    tangents = wide / (1 + torch.sqrt(1 - wide * wide))
    near = tangents.to(dtype)
    beyond = torch.where(tangents.detach() > near.detach(), math.inf, -math.inf).to(dtype)
    other = near + (near.detach().nextafter(beyond) - near.detach())
    rounded = torch.stack([near, other], -2)
    miss = (rounded - tangents.unsqueeze(-2)).flatten(-2)
    above, at_above = miss.masked_fill(miss < 0, math.inf).min(-1)
    below, at_below = miss.masked_fill(miss > 0, -math.inf).max(-1)
    drawn = (entry.double().abs() * 2**13).frac() * (below - above) > below
    best = torch.where(drawn, at_above, at_below).unsqueeze(-1)
    sine = sines.gather(-1, best % sines.shape[-1]).squeeze(-1)
    return quarter.remainder(4), sine, rounded.flatten(-2).gather(-1, best).squeeze(-1)
