"""Retractions of the orthogonal group, as functions of a point and a skew matrix.

Each takes x of shape ``(..., d, d)`` and A = xᵀu, skew-symmetric, and returns x·R(A), which agrees
with the exponential x·expm(A) to the order that its docstring states: the error is O(‖A‖^(order+1)).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .exponential import expm1
from .pairs import round_robin
from .rotations import rotate_columns

__all__ = [
    "RETRACTIONS",
    "cayley",
    "exponential",
    "givens",
    "polar",
    "polar_factor",
    "qr",
    "qr_factor",
]


def exponential(x: Tensor, a: Tensor) -> Tensor:
    """x·expm(A): exact."""
    return x + x @ expm1(a)


def cayley(x: Tensor, a: Tensor) -> Tensor:
    """x·(I − A/2)⁻¹(I + A/2): order 2, one solve."""
    identity = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    # (I − A/2)⁻¹(I + A/2) = I + A(I − A/2)⁻¹
    return x + torch.linalg.solve(identity - a / 2, x @ a, left=False)


def qr(x: Tensor, a: Tensor) -> Tensor:
    """The orthogonal factor of x(I + A) with positive diagonal: order 1."""
    return qr_factor(x + x @ a)


def polar(x: Tensor, a: Tensor) -> Tensor:
    """The point nearest to x(I + A): order 2, one singular value decomposition."""
    return polar_factor(x + x @ a)


def givens(x: Tensor, a: Tensor) -> Tensor:
    """An ordered product of rotations, one for every pair, by the angles a_jl: order 1.

    The order is that of a round-robin tournament, so that d(d − 1)/2 rotations are about d rounds of
    disjoint ones; 3d³ flops and nothing but rotations.
    """
    for pairs in round_robin(x.shape[-1], device=x.device):
        j, l = pairs.expand(*x.shape[:-2], *pairs.shape).unbind(-1)
        angle = a.flatten(-2).gather(-1, j * x.shape[-1] + l)
        x = rotate_columns(x, j, l, angle)
    return x


RETRACTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "exponential": exponential,
    "cayley": cayley,
    "qr": qr,
    "polar": polar,
    "givens": givens,
}


def qr_factor(m: Tensor) -> Tensor:
    """Orthogonal factor Q of m = QR with a positive diagonal of R, which makes it unique."""
    q, r = torch.linalg.qr(m)
    return q * torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(m.dtype).unsqueeze(-2)


def polar_factor(m: Tensor) -> Tensor:
    """Orthogonal matrix nearest to `m` in Frobenius norm: UVᵀ for m = UΣVᵀ.

    Its derivative is U((C − Cᵀ)/(σ_i + σ_j))Vᵀ with C = Uᵀ·dm·V. Those of U and V alone are infinite
    where singular values meet, as those of I + A do, in pairs, for every skew A.
    """
    u, s, vh = torch.linalg.svd(m.detach())
    c = u.mT @ m @ vh.mT
    sums = s.unsqueeze(-1) + s.unsqueeze(-2)
    # c is Σ: what is added is 0, but for its derivative.
    slope = u @ ((c - c.mT) / (sums + torch.finfo(s.dtype).tiny)) @ vh
    return u @ vh + (slope - slope.detach())
