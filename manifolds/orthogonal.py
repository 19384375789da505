"""The orthogonal group."""

from __future__ import annotations

import math

import torch
from geoopt import ManifoldTensor
from torch import Tensor

from .exponential import expm1
from .matrix_group import MatrixGroup
from .orthonormal import random_orthonormal
from .rotation_coordinates import RotationCoordinates

__all__ = ["OrthogonalGroup"]


class OrthogonalGroup(MatrixGroup, RotationCoordinates):
    r"""The orthogonal group O(d) = {W ∈ ℝ^{d×d} : WᵀW = I}, with the metric ⟨ξ, ζ⟩ = tr(ξᵀζ).

    The tangent space is T_W = {WΩ : Ω = −Ωᵀ}, of dimension D = d(d − 1)/2, with the orthonormal basis
    η_i = W H_jl, H_jl = (e_j e_lᵀ − e_l e_jᵀ)/√2 (the paper's equations (2) to (5)). Coordinate i is
    the pair of columns (j, l), j < l, numbered along the rows of the strict upper triangle; moving
    along it for the time t rotates the two columns by the angle t/√2. (The paper's equation (12)
    leaves the √2 out.) Its axes are the columns, so disjoint pairs commute.

    Points have shape ``(..., d, d)`` with d >= 2, float32 or float64.

    Parameters
    ----------
    retraction : {"exponential", "cayley", "qr", "polar", "givens"}
        What :meth:`retr` does; see :mod:`givens.manifolds.retractions`.

    Examples
    --------
    >>> import torch
    >>> from givens.manifolds import Coordinates, OrthogonalGroup
    >>> manifold = OrthogonalGroup()
    >>> x = manifold.random(5, 5, dtype=torch.float64)
    >>> pair = Coordinates(manifold.number(x, 1, 3), disjoint=True)
    >>> y = manifold.move(x, pair, torch.tensor([0.1], dtype=torch.float64))
    >>> round(float(manifold.dist(x, y)), 6)
    0.1
    """

    name = "OrthogonalGroup"
    radians = 1 / math.sqrt(2)

    # Points

    def random(
        self,
        *size: int,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
        det: int | None = None,
    ) -> Tensor:
        """Points from the Haar measure.

        Parameters
        ----------
        *size : int
            Shape ``(..., d, d)``.
        dtype, device, generator
            As in :func:`torch.randn`.
        det : {1, -1}, optional
            Determinant; by default both components are equally likely.

        Returns
        -------
        ManifoldTensor
            Orthogonal to the last digit.
        """
        if det not in (None, 1, -1):
            raise ValueError(f"det={det!r}: expected 1, -1 or None for both components")
        shape, dtype = self._checked_size(*size, dtype=dtype)
        q = random_orthonormal(*shape, dtype=dtype, device=device, generator=generator)
        if det is not None:
            flip = (torch.linalg.det(q) * det < 0)[..., None]
            q[..., 0] = torch.where(flip, -q[..., 0], q[..., 0])
        return ManifoldTensor(q, manifold=self)

    # Maps

    def logmap(self, x: Tensor, y: Tensor) -> Tensor:
        """Log_x(y): the shortest tangent vector u with Exp_x(u) = y.

        It is x times the principal logarithm of xᵀy, by one singular value decomposition and one
        Hermitian eigendecomposition. The cut locus is an eigenvalue −1 of xᵀy, where there are several
        shortest vectors and one of them is returned; up to the square root of the precision around it
        the vector may be a little longer than the shortest.

        Raises
        ------
        ValueError
            Where x and y lie on different components (their determinants differ).
        """
        if not bool(_connected(x, y).all()):
            raise ValueError(
                "logmap: x and y have determinants of opposite sign; no geodesic joins the two "
                "components of the orthogonal group. Flip the sign of one column of one of them."
            )
        return super().logmap(x, y)

    def dist(self, x: Tensor, y: Tensor, *, keepdim: bool = False) -> Tensor:
        """Geodesic distance ‖Log_x(y)‖; infinite between the two components."""
        connected = _connected(x, y)[..., None, None]
        distance = super().dist(x, torch.where(connected, y, x), keepdim=True)
        distance = torch.where(connected, distance, torch.inf)
        return distance if keepdim else distance[..., 0, 0]

    # Coordinates

    def columns(self, x: Tensor) -> Tensor:
        """Return `x`: the axes are the columns."""
        return x

    def _follow_(self, x: Tensor, index: Tensor, t: Tensor) -> Tensor:
        # The exponential of x·A, whose A need not be recovered from xᵀ(x·A).
        d = x.shape[-1]
        j, l = self._pairs(x, index)
        a = x.new_zeros((*t.shape[:-1], d * d))
        a = a.scatter_add_(-1, j * d + l, t.to(x.dtype) * self.radians).unflatten(-1, (d, d))
        return x.add_(x @ expm1(a - a.mT))


def _connected(x: Tensor, y: Tensor) -> Tensor:
    """Whether x and y lie on one component."""
    return torch.linalg.det(x.detach().mT @ y.detach()) > 0
