"""Retractions of groups of matrices, as functions of a point and a skew matrix.

Each takes x of shape ``(..., d, d)`` and A = xᴴu, skew-symmetric or skew-Hermitian, and returns x·R(A),
which agrees with the exponential x·expm(A) to the order that its docstring states: the error is
O(‖A‖^(order+1)).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from .exponential import expm1
from .orthonormal import polar_factor, qr_factor
from .pairs import round_robin
from .rotations import rotate_columns

__all__ = [
    "RETRACTIONS",
    "ChosenRetraction",
    "cayley",
    "exponential",
    "givens",
    "polar",
    "qr",
]


def exponential(x: Tensor, a: Tensor) -> Tensor:
    """x·expm(A): exact."""
    return x + x @ expm1(a)


def cayley(x: Tensor, a: Tensor) -> Tensor:
    """x·(I − A/2)⁻¹(I + A/2): order 2, one solve."""
    identity = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    # (I − A/2)⁻¹(I + A/2) = I + A(I − A/2)⁻¹
    return x + torch.linalg.solve_ex(identity - a / 2, x @ a, left=False).result


def qr(x: Tensor, a: Tensor) -> Tensor:
    """The factor Q of x(I + A) = QR with a positive diagonal of R: order 1."""
    return qr_factor(x + x @ a)


def polar(x: Tensor, a: Tensor) -> Tensor:
    """The point nearest to x(I + A): order 2, one singular value decomposition."""
    return polar_factor(x + x @ a)


def givens(x: Tensor, a: Tensor) -> Tensor:
    """An ordered product of rotations, one for every pair, by the angles a_jl: order 1.

    The order is that of a round-robin tournament, so that d(d − 1)/2 rotations are about d rounds of
    disjoint ones; 3d³ flops and nothing but rotations. For real matrices.
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


class ChosenRetraction:
    """What manifolds have in common whose constructor chooses a retraction by name.

    Parameters
    ----------
    retraction : str
        What ``retr`` does: a name in :attr:`retractions`.

    Attributes
    ----------
    retractions : iterable of str
        The names.
    """

    retractions: Iterable[str]

    def __init__(self, retraction: str = "exponential") -> None:
        super().__init__()
        if retraction not in self.retractions:
            raise ValueError(
                f"retraction {retraction!r} is unknown; choose from {[*self.retractions]}"
            )
        self.retraction = retraction

    def extra_repr(self) -> str:
        """Show the retraction where it is not the exponential."""
        return "" if self.retraction == "exponential" else f"retraction={self.retraction!r}"
