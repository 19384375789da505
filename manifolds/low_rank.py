"""Turns by skew matrices of low rank, from their factors.

L = q(xr)ᴴ − (xr)qᴴ is what a gradient of rank k makes of the generator of a step: skew, and of rank 2k at
most. A point x is turned by a function of L in O(npk), without an n×n matrix. Shapes: x ``(..., n, p)``, q
``(..., n, k)``, r ``(..., p, k)``; the columns of x and of q are orthonormal.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .exponential import expm1
from .orthonormal import orthonormalize_

__all__ = ["LOW_RANK_TURNS", "cayley_turn", "exponential_turn"]


def exponential_turn(x: Tensor, q: Tensor, r: Tensor) -> Tensor:
    """expm(L)x, in an orthonormal basis of what q and xr span: 10npk flops, and a factorization of n×2k."""
    k = q.shape[-1]
    basis, factor = torch.linalg.qr(torch.cat([q, x @ r], -1))
    c = factor[..., :k] @ factor[..., k:].mH
    turned = orthonormalize_(basis) @ (expm1(c - c.mH) @ (basis.mH @ x))
    return turned.add_(x)


def cayley_turn(x: Tensor, q: Tensor, r: Tensor) -> Tensor:
    """(I − L/2)⁻¹(I + L/2)x, by a k×k solve: 10npk flops.

    With xr = qh + z, qᴴz = 0, L is qaqᴴ + qzᴴ − zqᴴ, where a = hᴴ − h. What it adds to x lies in the span of
    q and z, and its part in z is what −(qᴴx + its part in q/2) says, which leaves k equations
    (Wen and Yin, 2013, have 2k).
    """
    y = x @ r
    h = q.mH @ y
    z = y - q @ h
    # zᴴx would be rᴴ − hᴴqᴴx, were xᴴx = I; but then long steps magnify what rounding has left of xᴴx − I.
    there, across = q.mH @ x, z.mH @ x
    a = h.mH - h - z.mH @ z / 2
    identity = torch.eye(q.shape[-1], dtype=q.dtype, device=q.device)
    along = torch.linalg.solve_ex(identity - a / 2, a @ there + across).result
    turned = torch.cat([q, -z], -1) @ torch.cat([along, there + along / 2], -2)
    return turned.add_(x)


LOW_RANK_TURNS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "exponential": exponential_turn,
    "cayley": cayley_turn,
}
"""By the name of the retraction."""
