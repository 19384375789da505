"""The unit sphere."""

from __future__ import annotations

import torch
from geoopt import ManifoldTensor
from torch import Tensor

from .angles import SMALL, angle_over_sine, cos_and_sinc
from .embedded import EmbeddedMetric
from .retractions import ChosenRetraction
from .rotation_coordinates import RotationCoordinates

__all__ = ["Sphere"]


class Sphere(ChosenRetraction, EmbeddedMetric, RotationCoordinates):
    r"""The unit sphere S^{n−1} = {x ∈ ℝⁿ : ‖x‖ = 1}, with the metric ⟨u, v⟩ = uᵀv of the space around it.

    The tangent space is T_x = {u : xᵀu = 0}, of dimension n − 1. Coordinate i is the pair of entries
    (j, l), j < l, numbered along the rows of the strict upper triangle; moving along it for the time t
    rotates the two entries by the angle t, in O(1). Its direction is f_jl = x_j e_l − x_l e_j. The
    n(n − 1)/2 directions are a Parseval frame: Σ⟨u, f_i⟩² = ‖u‖² for every tangent vector u, because
    Lagrange's identity gives ‖x‖²‖u‖² − (xᵀu)². The axes are the entries, so disjoint pairs commute.

    Points have shape ``(..., n)`` with n >= 2, float32 or float64.

    Parameters
    ----------
    retraction : {"exponential", "projection"}
        What :meth:`retr` does: follow the geodesic, or project x + u, which agrees with it to order 2.

    Notes
    -----
    The formulas for the exponential, the logarithm and the transport are those of Absil, Mahony and
    Sepulchre (2008), written in half-angles so that nothing cancels; that for the distance is
    Kahan's. Every map costs O(n).

    Examples
    --------
    >>> import torch
    >>> from givens.manifolds import Coordinates, Sphere
    >>> manifold = Sphere()
    >>> x = manifold.origin(4)
    >>> pair = Coordinates(manifold.number(x, 0, 2), disjoint=True)
    >>> y = manifold.move(x, pair, torch.tensor([0.5]))
    >>> round(float(manifold.dist(x, y)), 6)
    0.5
    """

    name = "Sphere"
    ndim = 1
    reversible = False
    retractions = ("exponential", "projection")

    # Points and tangent vectors

    def random(
        self,
        *size: int,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Points uniformly distributed over the sphere.

        Parameters
        ----------
        *size : int
            Shape ``(..., n)``.
        dtype, device, generator
            As in :func:`torch.randn`.

        Returns
        -------
        ManifoldTensor
            Of norm 1 to the last digit: drawn and normalized in float64.
        """
        shape, dtype = self._checked_size(*size, dtype=dtype)
        x = torch.randn(shape, dtype=torch.float64, device=device, generator=generator)
        return ManifoldTensor(self.projx(x).to(dtype), manifold=self)

    def origin(
        self,
        *size: int,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        seed: int | None = None,
    ) -> Tensor:
        """Copies of the first unit vector e_0, shape ``(..., n)``; `seed` is ignored."""
        shape, dtype = self._checked_size(*size, dtype=dtype)
        x = torch.zeros(shape, dtype=dtype, device=device)
        x[..., 0] = 1
        return ManifoldTensor(x, manifold=self)

    def projx(self, x: Tensor) -> Tensor:
        """Nearest point, x/‖x‖, for vectors of any finite length, however short or long.

        All points are equally near to the zero vector: it goes to e_0, and passes no gradient.
        """
        self._assert_check_shape(x.shape, "x")
        self._assert_dtype(x.dtype)
        size = x.detach().abs().amax(-1, keepdim=True)
        zero = size == 0
        origin = torch.zeros_like(x, dtype=torch.float64)
        origin[..., 0] = 1
        y = torch.where(zero, origin, x.double() / torch.where(zero, 1, size).double())
        return (y / torch.linalg.vector_norm(y, dim=-1, keepdim=True)).to(x.dtype)

    def proju(self, x: Tensor, u: Tensor) -> Tensor:
        """Orthogonal projection on the tangent space: u − (xᵀu)x."""
        return u - _dot(x, u) * x

    # Maps

    def expmap(self, x: Tensor, u: Tensor) -> Tensor:
        """Exp_x(u) = x cos θ + u (sin θ)/θ, θ = ‖u‖.

        As x plus an increment, so that a short step is accurate relative to its length; derivatives of
        every order exist at u = 0. A part of `u` that is not tangent is left out.
        """
        u = self.proju(x, u)
        cosine, sinc = cos_and_sinc(_dot(u, u) / 4)
        # sin θ = θ·sinc·cosine and 1 − cos θ = θ²·sinc²/2, cosine and sinc being those of θ/2.
        return x + sinc * (cosine * u - sinc * (_dot(u, u) / 2) * x)

    def logmap(self, x: Tensor, y: Tensor) -> Tensor:
        """Log_x(y): the shortest tangent vector u with Exp_x(u) = y.

        The cut locus is y = −x. There every direction leads to y in the distance π; the one returned is
        the projection of the unit vector of the least entry of x (so that it depends on x alone). A
        point is taken for −x if it is by no more than rounding (one part in the precision) off it.
        Derivatives exist everywhere else, at x = y too.
        """
        # A difference of neighbours is exact: neither next to x nor next to −x does anything cancel.
        u = self.proju(x, y - torch.where(_dot(x, y) < 0, -x, x))
        square = _dot(x - y, x - y) / 4  # of the sine of half the angle
        near = square < SMALL
        opposite = (square > 0.5) & (_dot(u, u) <= torch.finfo(x.dtype).eps ** 2)
        least = x.detach().abs().argmin(-1, keepdim=True)
        away = self.projx(self.proju(x, torch.zeros_like(x).scatter(-1, least, 1.0)))
        # The general case, evaluated at a harmless place where it does not apply.
        exceptional = near | opposite
        angle = self.dist(x, torch.where(exceptional, away, y), keepdim=True)
        sine = torch.linalg.vector_norm(torch.where(exceptional, away, u), dim=-1, keepdim=True)
        ratio = torch.where(near, angle_over_sine(square), angle / sine)
        return torch.where(opposite, torch.pi * away, ratio * u)

    def dist(self, x: Tensor, y: Tensor, *, keepdim: bool = False) -> Tensor:
        """Geodesic distance, the angle 2·atan2(‖x − y‖, ‖x + y‖), accurate from 0 to π.

        Its gradient is 0 where there is none, at y = x and y = −x.
        """
        chord = torch.linalg.vector_norm(x - y, dim=-1, keepdim=keepdim)
        return 2 * torch.atan2(chord, torch.linalg.vector_norm(x + y, dim=-1, keepdim=keepdim))

    def retr(self, x: Tensor, u: Tensor) -> Tensor:
        """The retraction that the constructor names."""
        return (
            self.expmap(x, u)
            if self.retraction == "exponential"
            else self.projx(x + self.proju(x, u))
        )

    def transp(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """Orthogonal projection on the tangent space at y: no isometry, but needs no geodesic."""
        return self.proju(y, v)

    def transp_follow_expmap(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Levi-Civita's parallel transport along Exp_x(tu) to t = 1, an isometry.

        v − (uᵀv)·((sin θ)/θ · x + (1 − cos θ)/θ² · u): what is normal to u stays. For the transport
        from x to y along the shortest geodesic let u = Log_x(y).
        """
        u = self.proju(x, u)
        cosine, sinc = cos_and_sinc(_dot(u, u) / 4)
        return v - _dot(u, v) * sinc * (cosine * x + sinc / 2 * u)

    def expmap_transp(self, x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Exp_x(u), and v transported along it as Levi-Civita does."""
        return self.expmap(x, u), self.transp_follow_expmap(x, u, v)

    # Coordinates

    def columns(self, x: Tensor) -> Tensor:
        """Return points as matrices of one row, shape ``(..., 1, n)``: the axes are the entries."""
        return x.unsqueeze(-2)

    def restore_(self, x: Tensor) -> Tensor:
        """Divide by the norm, taken in float64, in place: O(n)."""
        return x.div_(torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float64))

    # Checks

    def _check_shape(self, shape: tuple[int, ...], name: str) -> tuple[bool, str | None]:
        if len(shape) >= 1 and shape[-1] >= 2:
            return True, None
        return False, f"'{name}' has shape {tuple(shape)}; {self.name} expects (..., n) with n >= 2"

    def _check_point_on_manifold(
        self, x: Tensor, *, atol: float = 1e-5, rtol: float = 1e-5
    ) -> tuple[bool, str | None]:
        if x.dtype not in self.dtypes:
            return False, f"it is {x.dtype}; expected float32 or float64"
        norm = torch.linalg.vector_norm(x.detach(), dim=-1)
        error = (norm - 1).abs()
        if bool((error <= atol + rtol).all()):
            return True, None
        return False, (
            f"max |‖x‖ − 1| is {float(error.max()):.1e}, allowed {atol + rtol:.1e}; "
            "projx(x) gives the nearest point"
        )

    def _check_vector_on_tangent(
        self, x: Tensor, u: Tensor, *, atol: float = 1e-5, rtol: float = 1e-5
    ) -> tuple[bool, str | None]:
        u = u.detach()
        error = _dot(x.detach(), u).abs()
        allowed = atol + rtol * torch.linalg.vector_norm(u, dim=-1, keepdim=True)
        if bool((error.isfinite() & (error <= allowed)).all()):
            return True, None
        return False, (
            f"max |xᵀu| is {float(error.max()):.1e}; proju(x, u) gives the nearest tangent vector"
        )


def _dot(u: Tensor, v: Tensor) -> Tensor:
    """uᵀv, with a last dimension of 1."""
    return (u * v).sum(-1, keepdim=True)
