"""The Grassmann manifold: subspaces, given by orthonormal bases."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .embedded import EmbeddedMetric
from .orthonormal import polar_factor
from .stiefel import OrthonormalColumns, thin_exponential, turn_frame

__all__ = ["Grassmann"]


class Grassmann(OrthonormalColumns):
    r"""The Grassmann manifold Gr(n, p) of the p-dimensional subspaces of ℝⁿ.

    A subspace is given by a matrix x with xᵀx = I whose columns span it; x and xQ, Q orthogonal, are the
    same point. A tangent vector is given by its horizontal lift, {u : xᵀu = 0}, of dimension p(n − p),
    with the metric ⟨u, v⟩ = tr(uᵀv) (Edelman, Arias and Smith, 1998). The lift of a tangent vector at
    xQ is uQ.

    Coordinate i is the pair of rows (j, l), j < l, numbered along the rows of the strict upper
    triangle; moving along it for the time t rotates the two rows by the angle t, in O(p). Its direction
    is the horizontal part of the matrix that has the row x_j in the place l and −x_l in the place j.
    These are a Parseval frame: Σ⟨u, f_i⟩² = ‖u‖² for every tangent vector u. The axes are the rows, so
    disjoint pairs commute. Blocks whose pairs overlap follow the geodesic of Σ t_i f_i.

    Derivatives are those of the cost along the motion. For a cost that depends on the subspace only,
    they are the ⟨grad f, f_i⟩.

    Points have shape ``(..., n, p)`` with n >= p >= 1 and n >= 2, float32 or float64. Where n > 2p no map
    forms an n×n matrix.

    Parameters
    ----------
    retraction : {"exponential", "polar", "qr"}
        What :meth:`retr` does. "polar" and "qr", the orthonormal factors of x + u, span the same
        subspace, which agrees with that of the exponential to order 2; as matrices, the polar factor
        agrees with it to order 2, the QR factor to order 1.

    Examples
    --------
    >>> import torch
    >>> from givens.manifolds import Coordinates, Grassmann
    >>> manifold = Grassmann()
    >>> x = manifold.origin(5, 2)
    >>> pair = Coordinates(manifold.number(x, 1, 4), disjoint=True)
    >>> y = manifold.move(x, pair, torch.tensor([0.5]))
    >>> round(float(manifold.dist(x, y)), 6)
    0.5
    """

    name = "Grassmann"

    # Points and tangent vectors

    def proju(self, x: Tensor, u: Tensor) -> Tensor:
        """Orthogonal projection on the horizontal vectors: u − x(xᵀu)."""
        return u - x @ self._normal(x, u)

    # Maps

    def expmap(self, x: Tensor, u: Tensor) -> Tensor:
        """Exp_x(u) = xV cos(Σ)Vᵀ + U sin(Σ)Vᵀ for u = UΣVᵀ (Edelman, Arias and Smith, 1998).

        With Θ = (uᵀu)^{1/2} it is x cos Θ + uΘ⁻¹ sin Θ, here as x plus an increment, so that a short step is
        accurate relative to its length. No singular vectors are needed: derivatives of every order
        exist, whatever singular values vanish or repeat. Costs and long steps are as in Stiefel's
        exponential.
        """
        u, p = self.proju(x, u), x.shape[-1]
        return x + turn_frame(x, u.new_zeros((*u.shape[:-2], p, p)), u)

    def logmap(self, x: Tensor, y: Tensor) -> Tensor:
        """Log_x(y): the shortest horizontal vector u such that Exp_x(u) spans what y spans.

        The basis of the span of y nearest to x is yZᵀ, Z being the polar factor of xᵀy; its part in x
        is xC, C = cos Θ symmetric, and its part normal to x has the singular values of sin Θ (Bendokat,
        Zimmermann and Absil, 2024). That part is multiplied by Θ/sin Θ, a power series in I − C:
        nothing is divided by a small sine or cosine, so that small angles and those next to π/2 are
        equally accurate. About 50 products of p×p matrices in float64, 25 in float32.

        The cut locus is an angle of π/2 between the subspaces. There are several shortest vectors then,
        of which one is returned, and no derivatives where two of the angles are π/2.
        """
        z = polar_factor(x.mT @ y)
        aligned = y @ z.mT
        cosine = x.mT @ aligned
        identity = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
        rest = identity - (cosine + cosine.mT) / 2
        ratio = identity
        for n in range(round(-math.log2(torch.finfo(x.dtype).eps)), 0, -1):
            ratio = identity + ratio @ rest * (n / (2 * n + 1))
        return (aligned - x @ cosine) @ ratio

    def dist(self, x: Tensor, y: Tensor, *, keepdim: bool = False) -> Tensor:
        """Geodesic distance ‖Log_x(y)‖ = (Σθ²)^{1/2} of the principal angles θ; gradient 0 at y = x."""
        return torch.linalg.matrix_norm(self.logmap(x, y), keepdim=keepdim)

    def transp_follow_expmap(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Levi-Civita's parallel transport along Exp_x(tu) to t = 1, an isometry.

        For u = UΣVᵀ it is (−xV sin(Σ)Uᵀ + U cos(Σ)Uᵀ + I − UUᵀ)v (Edelman, Arias and Smith, 1998), here in
        terms of functions of uᵀu, as in :meth:`expmap`.
        """
        u = self.proju(x, u)
        # sin Θ and 1 − cos Θ in terms of the half angle, for nothing is divided by Θ then.
        cosine, sinc = self._cos1_and_sinc(u / 2)
        along = sinc @ (u.mT @ v)
        return v - (x @ (along + cosine @ along) + u @ (sinc @ along / 2))

    # Coordinates

    def _along(self, x: Tensor, index: Tensor, t: Tensor) -> Tensor:
        return self.proju(x, super()._along(x, index, t))

    # Parts

    @property
    def _knows_low_rank(self) -> bool:
        return self._inherits(
            Grassmann.proju, Grassmann.expmap, Grassmann.retr, EmbeddedMetric.egrad2rgrad
        )

    def _low_rank_factors(self, x: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        q, r = torch.linalg.qr(left - x @ (x.mT @ left))
        return q, right @ r.mT

    def _normal(self, x: Tensor, u: Tensor) -> Tensor:
        return x.mT @ u

    def _tangency(self, x: Tensor) -> str:
        return "xᵀu"

    @staticmethod
    def _cos1_and_sinc(u: Tensor) -> tuple[Tensor, Tensor]:
        """The matrices cos Θ − I and Θ⁻¹ sin Θ for Θ = (uᵀu)^{1/2}."""
        p = u.shape[-1]
        return thin_exponential(u.new_zeros((*u.shape[:-2], p, p)), u)
