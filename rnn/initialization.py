"""Orthogonal and unitary matrices from which a recurrent network may start.

Every function takes the size d and returns one d×d matrix. ``INITIALIZATIONS`` and
``UNITARY_INITIALIZATIONS`` give them their names in the layers and on the command line; any function
with the same signature may stand in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol

import torch
from torch import Tensor

from ..manifolds import OrthogonalGroup, UnitaryGroup

__all__ = [
    "INITIALIZATIONS",
    "UNITARY_INITIALIZATIONS",
    "Initialization",
    "haar",
    "henaff_cayley",
    "henaff_expm",
    "identity",
    "phases",
]


class Initialization(Protocol):
    """A function that makes an orthogonal d×d matrix, or a unitary one if `dtype` is complex."""

    def __call__(
        self,
        d: int,
        /,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return the matrix; None stands for torch's default dtype, device and generator."""
        ...


def henaff_cayley(
    d: int,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Cayley transform of random 2×2 skew blocks, the paper's start (section 5.2).

    W = (I + A)⁻¹(I − A), where A is block-diagonal with blocks ((0, s), (−s, 0)) and
    s ~ U[−π, π]. A block's transform is ((1 − s², −2s), (2s, 1 − s²)) / (1 + s²), a rotation by
    2·arctan s, so that det W = 1. The angles crowd towards ±2·arctan π ≈ ±145° and never go
    beyond: no eigenvalue of W comes near −1. For odd d the last diagonal entry is 1.

    Parameters
    ----------
    d : int
        Number of rows and columns.
    dtype, device, generator
        As in :func:`torch.rand`.

    Returns
    -------
    Tensor
        Shape (d, d).

    Notes
    -----
    O(d) arithmetic, no linear solve. The blocks are those of Henaff, Szlam and LeCun (2016).
    """
    s = _uniform_angles(_checked_size(d) // 2, dtype, device, generator)
    return _block_rotations(d, (1 - s) * (1 + s) / (1 + s * s), -2 * s / (1 + s * s), dtype)


def henaff_expm(
    d: int,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Exponential of random 2×2 skew blocks, the start of expRNN.

    W = expm(A) with the matrix A of :func:`henaff_cayley`: blocks
    ((cos s, sin s), (−sin s, cos s)), so that det W = 1 and the eigenvalues e^{±is} are spread
    evenly over the unit circle. For odd d the last diagonal entry is 1.

    Parameters
    ----------
    d : int
        Number of rows and columns.
    dtype, device, generator
        As in :func:`torch.rand`.

    Returns
    -------
    Tensor
        Shape (d, d).

    Notes
    -----
    O(d) arithmetic. Lezcano-Casado and Martínez-Rubio (2019).
    """
    s = _uniform_angles(_checked_size(d) // 2, dtype, device, generator)
    return _block_rotations(d, torch.cos(s), torch.sin(s), dtype)


def haar(
    d: int,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Matrix drawn uniformly from O(d), or from U(d) if `dtype` is complex.

    On O(d) either determinant, 1 and −1, has probability 1/2.

    Parameters
    ----------
    d : int
        Number of rows and columns.
    dtype, device, generator
        As in :func:`torch.rand`.

    Returns
    -------
    Tensor
        Shape (d, d).

    Notes
    -----
    O(d³), by :meth:`OrthogonalGroup.random <givens.manifolds.OrthogonalGroup.random>` or
    :meth:`UnitaryGroup.random <givens.manifolds.UnitaryGroup.random>`.
    """
    is_complex = dtype is not None and dtype.is_complex
    group = UnitaryGroup() if is_complex else OrthogonalGroup()
    W = group.random(_checked_size(d), d, dtype=dtype, device=device, generator=generator)
    return W.detach()


def identity(
    d: int,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Identity matrix.

    Parameters
    ----------
    d : int
        Number of rows and columns.
    dtype, device
        As in :func:`torch.eye`.
    generator
        Not used, since nothing is random.

    Returns
    -------
    Tensor
        Shape (d, d).
    """
    return torch.eye(_checked_size(d), dtype=dtype, device=device)


def phases(
    d: int,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Diagonal matrix of random phases e^{iθ}, θ ~ U[−π, π].

    The eigenvalues are spread evenly over the unit circle. It is what :func:`henaff_expm` becomes
    over the complex numbers, where a rotation is diagonal in the right basis, but for the tie of
    each eigenvalue to its conjugate.

    Parameters
    ----------
    d : int
        Number of rows and columns.
    dtype, device, generator
        As in :func:`torch.randn`; a complex `dtype`, by default that of the precision of
        ``torch.get_default_dtype()``.

    Returns
    -------
    Tensor
        Shape (d, d).

    Raises
    ------
    TypeError
        If `dtype` is real.

    Notes
    -----
    O(d) arithmetic. The diagonal factors of Arjovsky, Shah and Bengio (2016) are drawn so.
    """
    dtype = torch.get_default_dtype().to_complex() if dtype is None else dtype
    if not dtype.is_complex:
        raise TypeError(f"a matrix of phases is complex, but dtype is {dtype}")
    theta = _uniform_angles(_checked_size(d), dtype, device, generator)
    return torch.diag(torch.polar(torch.ones_like(theta), theta))


INITIALIZATIONS: Mapping[str, Initialization] = MappingProxyType(
    {
        "henaff-cayley": henaff_cayley,
        "henaff-expm": henaff_expm,
        "haar": haar,
        "identity": identity,
    }
)

UNITARY_INITIALIZATIONS: Mapping[str, Initialization] = MappingProxyType(
    {"phases": phases, **INITIALIZATIONS}
)


def _checked_size(d: int) -> int:
    if d < 2:
        raise ValueError(f"the size of an orthogonal matrix must be at least 2, got {d}")
    return d


def _uniform_angles(
    n: int,
    dtype: torch.dtype | None,
    device: torch.device | None,
    generator: torch.Generator | None,
) -> Tensor:
    """Draw n real numbers from U[−π, π], in the precision of a type that may be complex."""
    s = torch.empty(n, dtype=None if dtype is None else dtype.to_real(), device=device)
    return s.uniform_(-math.pi, math.pi, generator=generator)


def _block_rotations(d: int, cosine: Tensor, sine: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Put the blocks ((c, s), (−s, c)) on the diagonal of the identity."""
    W = torch.eye(d, dtype=dtype, device=cosine.device)
    even = d - d % 2
    W.diagonal()[:even] = cosine.repeat_interleave(2)
    W.diagonal(1)[::2] = sine
    W.diagonal(-1)[::2] = -sine
    return W
