"""The Stiefel manifold: matrices with orthonormal columns."""

from __future__ import annotations

import math

import torch
from geoopt import ManifoldTensor
from torch import Tensor

from .backend import readable, recorded
from .exponential import expm1
from .low_rank import exponential_turn
from .orthogonal import OrthogonalGroup
from .orthonormal import (
    orthonormalize_,
    polar_factor,
    qr_factor,
    random_orthonormal,
)
from .orthonormal_matrices import OrthonormalMatrices
from .rotation_coordinates import RotationCoordinates
from .sphere import Sphere

__all__ = ["OrthonormalColumns", "Stiefel", "thin_exponential", "turn_frame"]

# Radians up to which the Gram matrix leaves max |xᵀx − I| <= 1e-6 in float32.
_FAR = 8.0


class OrthonormalColumns(OrthonormalMatrices, RotationCoordinates):
    """What the Stiefel and the Grassmann manifold share: points are n×p matrices x with xᵀx = I.

    Coordinate i is the pair of rows (j, l), j < l, numbered along the rows of the strict upper
    triangle; moving along it for the time t rotates the two rows by the angle t, in O(p). The axes are
    the rows, so disjoint pairs commute. Where n > 2p no map forms an n×n matrix.

    Points have shape ``(..., n, p)`` with n >= p >= 1 and n >= 2, float32 or float64.

    Parameters
    ----------
    retraction : str
        What :meth:`retr` does: a name in :attr:`retractions`.

    Attributes
    ----------
    retractions : tuple of str
        "exponential" follows the geodesic; "polar" and "qr" take the factor of x + u.
    """

    reversible = False
    retractions: tuple[str, ...] = ("exponential", "polar", "qr")

    # Points and tangent vectors

    def random(
        self,
        *size: int,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Points from the uniform distribution, which rotations from either side leave as it is.

        Parameters
        ----------
        *size : int
            Shape ``(..., n, p)``.
        dtype, device, generator
            As in :func:`torch.randn`.

        Returns
        -------
        ManifoldTensor
            With columns that are orthonormal to the last digit.
        """
        shape, dtype = self._checked_size(*size, dtype=dtype)
        x = random_orthonormal(*shape, dtype=dtype, device=device, generator=generator)
        return ManifoldTensor(x, manifold=self)

    def origin(
        self,
        *size: int,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        seed: int | None = None,
    ) -> Tensor:
        """The first p columns of the identity, shape ``(..., n, p)``; `seed` is ignored."""
        shape, dtype = self._checked_size(*size, dtype=dtype)
        x = torch.eye(*shape[-2:], dtype=dtype, device=device)
        return ManifoldTensor(x.expand(shape).clone(), manifold=self)

    # Maps

    def retr(self, x: Tensor, u: Tensor) -> Tensor:
        """The retraction that the constructor names."""
        if self.retraction == "polar":
            return polar_factor(x + u)
        if self.retraction == "qr":
            return qr_factor(x + u)
        return self.expmap(x, u)

    def transp(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """Orthogonal projection on the tangent space at y: no isometry, but needs no geodesic."""
        return self.proju(y, v)

    def expmap_transp(self, x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Exp_x(u), and v transported along it as :meth:`transp_follow_expmap` does."""
        return self.expmap(x, u), self.transp_follow_expmap(x, u, v)

    # Coordinates

    def columns(self, x: Tensor) -> Tensor:
        """Return the transposes, shape ``(..., p, n)``: the axes are the rows."""
        return x.mT

    # Checks

    def _check_shape(self, shape: tuple[int, ...], name: str) -> tuple[bool, str | None]:
        if len(shape) >= 2 and shape[-2] >= max(2, shape[-1]) and shape[-1] >= 1:
            return True, None
        hint = ""
        if len(shape) >= 2 and shape[-1] > shape[-2] >= 1:
            hint = f"; a wide matrix is a point when transposed: {name}.mT"
        return False, (
            f"'{name}' has shape {tuple(shape)}; {self.name} expects (..., n, p) with n >= p >= 1 "
            f"and n >= 2{hint}"
        )


class Stiefel(OrthonormalColumns):
    r"""The Stiefel manifold St(n, p) = {x ∈ ℝ^{n×p} : xᵀx = I}, n >= p.

    The tangent space is T_x = {xA + K : A = −Aᵀ, xᵀK = 0}, of dimension np − p(p + 1)/2. The Euclidean
    metric is that of the space around it, ⟨u, v⟩ = tr(uᵀv); the canonical one, ⟨u, v⟩ = tr(uᵀ(I − xxᵀ/2)v),
    counts the entries of A once instead of twice (Edelman, Arias and Smith, 1998).

    Coordinate i is the pair of rows (j, l), j < l, numbered along the rows of the strict upper
    triangle; moving along it for the time t rotates the two rows by the angle t, in O(p). Its direction
    f_jl has the row x_j in the place l and −x_l in the place j. For u = xA + K, Σ⟨u, f_i⟩² is
    2‖A‖² + ‖K‖² in the Euclidean metric: between ‖u‖² and 2‖u‖², for p = n always 2‖u‖². In the canonical
    metric it is ‖u‖², a Parseval frame. The axes are the rows, so disjoint pairs commute.

    Points have shape ``(..., n, p)`` with n >= p >= 1 and n >= 2, float32 or float64. Where n > 2p no map
    forms an n×n matrix; of the n(n − 1)/2 coordinates of a tall one, move along some and not along
    all. For p = n and the Euclidean metric this is the orthogonal group (its points, geodesics, logarithm and
    distance), with rotations from the left where :class:`~givens.manifolds.OrthogonalGroup` has them
    from the right. For p = 1 it is the sphere.

    Parameters
    ----------
    metric : {"euclidean", "canonical"}
        The metric.
    retraction : {"exponential", "polar", "qr", "cayley"}
        What :meth:`retr` does. "polar", the polar factor of x + u, agrees with the exponential of the
        Euclidean metric to order 2; "cayley" (Wen and Yin, 2013) with that of the canonical one; "qr",
        the orthogonal factor of x + u, and either of them in the other metric to order 1.

    Examples
    --------
    >>> import torch
    >>> from givens.manifolds import Coordinates, Stiefel
    >>> manifold = Stiefel()
    >>> x = manifold.origin(5, 2)
    >>> pair = Coordinates(manifold.number(x, 1, 4), disjoint=True)
    >>> y = manifold.move(x, pair, torch.tensor([0.5]))
    >>> round(float((x.mT @ y)[1, 1].arccos()), 6)
    0.5
    """

    name = "Stiefel"
    retractions = ("exponential", "polar", "qr", "cayley")

    def __init__(self, metric: str = "euclidean", retraction: str = "exponential") -> None:
        super().__init__(retraction)
        if metric not in ("euclidean", "canonical"):
            raise ValueError(
                f"metric {metric!r} is unknown; choose from ['euclidean', 'canonical']"
            )
        self.metric = metric
        self.frame_bounds = (1.0, 2.0) if metric == "euclidean" else (1.0, 1.0)

    def extra_repr(self) -> str:
        """Show the metric, and the retraction where it is not the exponential."""
        return ", ".join(filter(None, [f"metric={self.metric!r}", super().extra_repr()]))

    # Points and tangent vectors

    def proju(self, x: Tensor, u: Tensor) -> Tensor:
        """Orthogonal projection on the tangent space, u − x(xᵀu + uᵀx)/2, in either metric."""
        return u - x @ (self._normal(x, u) / 2)

    def egrad2rgrad(self, x: Tensor, u: Tensor) -> Tensor:
        """Riemannian gradient of the Euclidean gradient g, in the metric: ⟨grad f, ξ⟩ = tr(gᵀξ).

        The projection of g in the Euclidean metric, g − x gᵀx in the canonical one.
        """
        if self.metric == "euclidean":
            return super().egrad2rgrad(x, u)
        return u - x @ (u.mT @ x)

    def inner(
        self, x: Tensor, u: Tensor, v: Tensor | None = None, *, keepdim: bool = False
    ) -> Tensor:
        """⟨u, v⟩ in the metric, shape ``(...)`` or ``(..., 1, 1)`` with `keepdim`; v = u by default."""
        v = u if v is None else v
        if self.metric == "canonical":
            v = v - x @ (x.mT @ v / 2)
        return super().inner(x, u, v, keepdim=keepdim)

    def norm(self, x: Tensor, u: Tensor, *, keepdim: bool = False) -> Tensor:
        """‖u‖ = √⟨u, u⟩ in the metric, whose gradient at u = 0 is taken for 0."""
        if self.metric == "canonical":
            # By the square root of I − xxᵀ/2.
            u = u - x @ (x.mT @ u * (1 - math.sqrt(0.5)))
        return super().norm(x, u, keepdim=keepdim)

    # Maps

    def expmap(self, x: Tensor, u: Tensor) -> Tensor:
        r"""Exp_x(u), by the exponential of a matrix of 2p rows and columns.

        With u = xA + QR, Q orthonormal and normal to x, it is [x Q] times the first p columns of
        expm([[A, −Rᵀ], [R, 0]]) in the canonical metric (Edelman, Arias and Smith, 1998), and in the
        Euclidean one of expm([[2A, −Rᵀ], [R, 0]]), times expm(−A) (Zimmermann and Hüper, 2022). The
        result is x plus an increment, so that a short step is accurate relative to its length, and
        derivatives of every order exist at any u (``turn_frame``). About 10np² flops, and a few
        products of 2p×2p matrices; where u is longer than 8, besides a QR factorization of n×2p.
        """
        a, k = self._parts(x, u)
        if self.metric == "canonical":
            return x + turn_frame(x, a, k)
        turned, back = turn_frame(x, 2 * a, k), expm1(-a)
        return x + (turned + x @ back + turned @ back)

    def logmap(self, x: Tensor, y: Tensor) -> Tensor:
        """Log_x(y) for p = n, where it is the orthogonal group's, and for p = 1, the sphere's.

        Raises
        ------
        NotImplementedError
            For 1 < p < n, where there is no closed form.
        ValueError
            For p = n, where x and y lie on different components (their determinants differ).
        """
        if x.shape[-1] == x.shape[-2]:
            return OrthogonalGroup().logmap(x, y)
        if x.shape[-1] == 1:
            return Sphere().logmap(x.squeeze(-1), y.squeeze(-1)).unsqueeze(-1)
        raise self._no_closed_form("logarithm", x, "proju(x, y - x) agrees with it to first order")

    def dist(self, x: Tensor, y: Tensor, *, keepdim: bool = False) -> Tensor:
        """Geodesic distance for p = n (infinite between the two components) and for p = 1.

        Raises
        ------
        NotImplementedError
            For 1 < p < n, where there is no closed form.
        """
        if x.shape[-1] == x.shape[-2]:
            distance = OrthogonalGroup().dist(x, y, keepdim=keepdim)
            return distance if self.metric == "euclidean" else distance * math.sqrt(0.5)
        if x.shape[-1] == 1:
            distance = Sphere().dist(x.squeeze(-1), y.squeeze(-1), keepdim=keepdim)
            return distance.unsqueeze(-1) if keepdim else distance
        raise self._no_closed_form(
            "distance", x, "torch.linalg.matrix_norm(x - y) agrees with the Euclidean one nearby"
        )

    def retr(self, x: Tensor, u: Tensor) -> Tensor:
        """The retraction that the constructor names."""
        return self._cayley(x, u) if self.retraction == "cayley" else super().retr(x, u)

    def transp_follow_expmap(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Transport along Exp_x(tu) to t = 1.

        Levi-Civita's for p = n and for p = 1; for 1 < p < n, where it has no closed form, the projection
        on the tangent space at the end.
        """
        if x.shape[-1] == x.shape[-2]:
            return OrthogonalGroup().transp_follow_expmap(x, u, v)
        if x.shape[-1] == 1:
            moved = Sphere().transp_follow_expmap(x.squeeze(-1), u.squeeze(-1), v.squeeze(-1))
            return moved.unsqueeze(-1)
        return self.proju(self.expmap(x, u), v)

    def follow_low_rank(
        self, x: Tensor, left: Tensor, right: Tensor, *, map: str = "expmap"
    ) -> Tensor:
        """Return the exponential, or the Cayley transform, along a gradient left · rightᵀ, O(npk)."""
        geodesic = map == "expmap" or self.retraction == "exponential"
        if map not in self.low_rank_maps or self.metric == "canonical" or not geodesic:
            return super().follow_low_rank(x, left, right, map=map)
        # The geodesic of the canonical metric, with 2A for A, and expm(−A) from the right.
        turned = exponential_turn(x, left, right)
        q, r = torch.linalg.qr(x.mT @ left)
        return exponential_turn(turned, turned @ q, right @ r.mT / -2)

    # Parts

    @property
    def _knows_low_rank(self) -> bool:
        return self._inherits(Stiefel.egrad2rgrad, Stiefel.expmap, Stiefel.retr)

    def _low_rank_factors(self, x: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        if self.metric == "canonical":
            return left, right
        q, r = torch.linalg.qr(left - x @ (x.mT @ left / 2))
        return q, right @ r.mT

    @staticmethod
    def _parts(x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """The skew matrix A and the normal part K of u = xA + K."""
        a = x.mT @ u
        return (a - a.mT) / 2, u - x @ a

    @staticmethod
    def _cayley(x: Tensor, u: Tensor) -> Tensor:
        """(I − W/2)⁻¹(I + W/2)x with the n×n generator W = (K + xA)xᵀ − xKᵀ, by a p×p solve.

        On the span of x and K, W is [[A, −KᵀK], [I, 0]]; the p rows of the identity eliminate the
        lower half of Wen and Yin's 2p×2p system.
        """
        a, k = Stiefel._parts(x, u)
        quarter = k.mT @ (k / 4)
        identity = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
        c = torch.linalg.solve_ex(identity + quarter - a / 2, a - 2 * quarter).result
        return x + (x @ c + k @ (c / 2) + k)

    @staticmethod
    def _no_closed_form(what: str, x: Tensor, instead: str) -> NotImplementedError:
        return NotImplementedError(
            f"the {what} of the Stiefel manifold has no closed form for 1 < p < n, here for points of "
            f"shape {tuple(x.shape)}; {instead}, and Grassmann() has one between the spans of columns"
        )


def turn_frame(x: Tensor, b: Tensor, k: Tensor) -> Tensor:
    """The increment expm(L)x − x for the skew L = xBxᵀ + Kxᵀ − xKᵀ: Lx = xB + K, LK = −xKᵀK.

    For n <= 2p by L itself. In taller matrices L turns 2p directions at most; a turn of a few radians
    comes from the Gram matrix KᵀK (``thin_exponential``), which needs no factorization. That costs a
    digit of orthogonality for every digit of the angle, so longer ones are made in an orthonormal
    basis of these directions. Their derivatives are still those of the first way, for a basis has
    none where K has not the full rank.

    Parameters
    ----------
    x : Tensor
        Orthonormal columns, shape ``(..., n, p)``.
    b : Tensor
        Skew-symmetric matrices, shape ``(..., p, p)``.
    k : Tensor
        The shape of `x`, normal to it: xᵀk = 0.

    Returns
    -------
    Tensor
        The shape of `x`. Where the host does not look at the angles, on an accelerator with p <= 32 and where
        calls are recorded, all are turned in the first way.
    """
    n, p = x.shape[-2:]
    if n <= 2 * p:
        x = x.contiguous()  # the same bits in every memory layout
        half = (x @ (b / 2) + k) @ x.mT
        return expm1(half - half.mT) @ x
    along, across = thin_exponential(b, k)
    turned = x @ along + k @ across
    if recorded(x) or (p <= 32 and not readable(x)):
        return turned
    size = torch.linalg.matrix_norm(b.detach()) + torch.linalg.matrix_norm(k.detach())
    far = size.nan_to_num(nan=0.0)[..., None, None] > _FAR
    if not bool(far.any()):
        return turned
    basis = orthonormalize_(torch.linalg.qr(torch.cat([x, k], -1).detach()).Q)
    exact = basis @ turn_frame(basis.mT @ x.detach(), b.detach(), basis.mT @ k.detach())
    slope = torch.where(turned.isfinite(), turned - turned.detach(), 0.0)
    return torch.where(far, exact + slope, turned)


def thin_exponential(b: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients C and S in expm(L)x = x + xC + KS, where Lx = xB + K and LK = −xKᵀK.

    They are entire functions of B and of the Gram matrix KᵀK = Θ² (for B = 0, cos Θ − I and Θ⁻¹ sin Θ), so
    that their derivatives exist whatever the rank of K, and whatever singular values it repeats.

    Parameters
    ----------
    b : Tensor
        Skew-symmetric matrices, shape ``(..., p, p)``.
    k : Tensor
        Shape ``(..., n, p)``.

    Returns
    -------
    C, S : Tensor
        Shape ``(..., p, p)``.
    """
    p = b.shape[-1]
    # In the frame [x, K/‖K‖], the norm being taken for a constant, the matrix of L is not skew, but well
    # balanced: expm1's estimate of the norm, which is meant for skew matrices, is at most √2 too small.
    size = torch.linalg.matrix_norm(k.detach(), keepdim=True)
    size = torch.where(size > 0, size, 1.0)
    unit = torch.eye(p, dtype=b.dtype, device=b.device) * size
    upper = torch.cat([b, -(k.mT @ (k / size))], -1)
    lower = torch.cat([unit, torch.zeros_like(unit)], -1)
    f = expm1(torch.cat([upper, lower], -2), skew=False)[..., :p]
    return f[..., :p, :], f[..., p:, :] / size
