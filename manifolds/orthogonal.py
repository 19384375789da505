"""The orthogonal group."""

from __future__ import annotations

import math

import torch
from geoopt import ManifoldTensor
from geoopt.utils import size2shape
from torch import Tensor

from .exponential import expm1
from .orthonormal import defect, orthonormalize_, polar_factor, random_orthonormal
from .retractions import RETRACTIONS, exponential
from .rotation_coordinates import RotationCoordinates

__all__ = ["OrthogonalGroup"]


class OrthogonalGroup(RotationCoordinates):
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
    ndim = 2
    reversible = True
    radians = 1 / math.sqrt(2)

    def __init__(self, retraction: str = "exponential") -> None:
        super().__init__()
        if retraction not in RETRACTIONS:
            raise ValueError(f"retraction {retraction!r} is unknown; choose from {[*RETRACTIONS]}")
        self.retraction = retraction

    def extra_repr(self) -> str:
        """Show the retraction where it is not the exponential."""
        return "" if self.retraction == "exponential" else f"retraction={self.retraction!r}"

    # Points and tangent vectors

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
        shape = size2shape(*size)
        self._assert_check_shape(shape, "x")
        if det not in (None, 1, -1):
            raise ValueError(f"det={det!r}: expected 1, -1 or None for both components")
        dtype = dtype or torch.get_default_dtype()
        self._assert_dtype(dtype)
        q = random_orthonormal(*shape, dtype=dtype, device=device, generator=generator)
        if det is not None:
            flip = (torch.linalg.det(q) * det < 0)[..., None]
            q[..., 0] = torch.where(flip, -q[..., 0], q[..., 0])
        return ManifoldTensor(q, manifold=self)

    def origin(
        self,
        *size: int,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        seed: int | None = None,
    ) -> Tensor:
        """Identity matrices of shape ``(..., d, d)``; `seed` is ignored."""
        shape = size2shape(*size)
        self._assert_check_shape(shape, "x")
        dtype = dtype or torch.get_default_dtype()
        self._assert_dtype(dtype)
        identity = torch.eye(shape[-1], dtype=dtype, device=device)
        return ManifoldTensor(identity.expand(shape).clone(), manifold=self)

    def projx(self, x: Tensor) -> Tensor:
        """Nearest orthogonal matrix: the polar factor, by a singular value decomposition."""
        self._assert_dtype(x.dtype)
        return self.restore_(polar_factor(x))

    def proju(self, x: Tensor, u: Tensor) -> Tensor:
        """Orthogonal projection on the tangent space: x(xᵀu − uᵀx)/2, the paper's equation (7)."""
        return x @ self._skew(x, u)

    def egrad2rgrad(self, x: Tensor, u: Tensor) -> Tensor:
        """Riemannian gradient: the projection of the Euclidean one."""
        return self.proju(x, u)

    def inner(
        self, x: Tensor, u: Tensor, v: Tensor | None = None, *, keepdim: bool = False
    ) -> Tensor:
        """⟨u, v⟩ = tr(uᵀv), shape ``(...)`` or ``(..., 1, 1)`` with `keepdim`; v = u by default."""
        product = (u * (u if v is None else v)).sum((-2, -1), keepdim=keepdim)
        batch = torch.broadcast_shapes(x.shape[:-2], u.shape[:-2])
        return product.expand((*batch, 1, 1) if keepdim else batch)

    def norm(self, x: Tensor, u: Tensor, *, keepdim: bool = False) -> Tensor:
        """‖u‖ = √tr(uᵀu)."""
        return self.inner(x, u, keepdim=keepdim).sqrt()

    # Maps

    def expmap(self, x: Tensor, u: Tensor) -> Tensor:
        """Exp_x(u) = x·expm(xᵀu), the paper's equation (10)."""
        return exponential(x, self._skew(x, u))

    def logmap(self, x: Tensor, y: Tensor) -> Tensor:
        """Log_x(y): the shortest tangent vector u with Exp_x(u) = y.

        With Q = xᵀy = R² and R = S + K, S symmetric and K skew (they commute), log Q = 2·θ(S)K with
        θ(cos φ) = φ/sin φ: one singular value decomposition and one symmetric eigendecomposition. The
        cut locus is an eigenvalue −1 of Q, where there are several shortest vectors and one of them is
        returned; up to the square root of the precision around it the angle is taken for π.

        Raises
        ------
        ValueError
            Where x and y lie on different components (their determinants differ).
        """
        log, connected = self._log(x, y)
        if not bool(connected.all()):
            raise ValueError(
                "logmap: x and y have determinants of opposite sign; no geodesic joins the two "
                "components of the orthogonal group. Flip the sign of one column of one of them."
            )
        return x @ log

    def dist(self, x: Tensor, y: Tensor, *, keepdim: bool = False) -> Tensor:
        """Geodesic distance ‖Log_x(y)‖; infinite between the two components."""
        log, connected = self._log(x, y)
        distance = torch.where(connected, torch.linalg.matrix_norm(log), torch.inf)
        return distance[..., None, None] if keepdim else distance

    def retr(self, x: Tensor, u: Tensor) -> Tensor:
        """The retraction that the constructor names."""
        return RETRACTIONS[self.retraction](x, self._skew(x, u))

    def transp(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """Left translation y(xᵀv): an isometry, though not Levi-Civita's parallel transport."""
        return y @ (x.mT @ v)

    def transp_follow_expmap(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Levi-Civita's parallel transport along Exp_x(tu) to t = 1.

        For u = xA and v = xΩ it is x e^{A/2} Ω e^{A/2}.
        """
        half = expm1(self._skew(x, u) / 2)
        omega = self._skew(x, v)
        omega = omega + half @ omega
        return x @ (omega + omega @ half)

    def expmap_transp(self, x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Exp_x(u), and v transported along it as Levi-Civita does."""
        return self.expmap(x, u), self.transp_follow_expmap(x, u, v)

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

    def restore_(self, x: Tensor) -> Tensor:
        """One Newton–Schulz step x ← x − x(xᵀx − I)/2, in place: 4d³ flops, quadratic convergence."""
        return orthonormalize_(x)

    # Checks

    def _check_shape(self, shape: tuple[int, ...], name: str) -> tuple[bool, str | None]:
        if len(shape) >= 2 and shape[-1] == shape[-2] and shape[-1] >= 2:
            return True, None
        return False, (
            f"'{name}' has shape {tuple(shape)}; {self.name} expects (..., d, d) with d >= 2"
        )

    def _check_point_on_manifold(
        self, x: Tensor, *, atol: float = 1e-5, rtol: float = 1e-5
    ) -> tuple[bool, str | None]:
        if x.dtype not in self.dtypes:
            return False, f"it is {x.dtype}; {self.name} works in float32 and float64"
        error = defect(x)
        if error <= atol + rtol:
            return True, None
        return False, (
            f"max |xᵀx − I| is {error:.1e}, allowed {atol + rtol:.1e}; "
            f"{self.name}().projx(x) gives the nearest point"
        )

    def _check_vector_on_tangent(
        self, x: Tensor, u: Tensor, *, atol: float = 1e-5, rtol: float = 1e-5
    ) -> tuple[bool, str | None]:
        a = x.detach().mT @ u.detach()
        error = (a + a.mT).abs().amax((-2, -1))
        allowed = atol + rtol * u.abs().amax((-2, -1))
        if bool((error.isfinite() & (error <= allowed)).all()):
            return True, None
        return False, (
            f"max |xᵀu + uᵀx| is {float(error.max()):.1e}; {self.name}().proju(x, u) gives the "
            "nearest tangent vector"
        )

    # Parts

    @staticmethod
    def _skew(x: Tensor, u: Tensor) -> Tensor:
        """Skew part of xᵀu."""
        a = x.mT @ u
        return (a - a.mT) / 2

    @staticmethod
    def _log(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Logarithm of xᵀy, and whether x and y lie on one component."""
        q = x.mT @ y
        d = q.shape[-1]
        eps = torch.finfo(q.dtype).eps
        # The square root R of Q is the polar factor of I + Q. Where Q is −1, I + Q is 0 and leaves R
        # free: there R is a quarter turn in the planes of consecutive singular vectors.
        u, s, vh = torch.linalg.svd(q + torch.eye(d, dtype=q.dtype, device=q.device))
        odd = d % 2  # an eigenvalue 1 of Q, the largest of I + Q, has no partner
        first, second = vh.mT[..., odd:].unflatten(-1, (d // 2, 2)).unbind(-1)
        quarter_turn = torch.stack([second, -first], -1).flatten(-2)
        free = (s[..., odd::2] < math.sqrt(eps)).repeat_interleave(2, -1).unsqueeze(-2)
        image = torch.where(free, quarter_turn, u[..., odd:])
        r = torch.cat([u[..., :odd], image], -1) @ vh
        # Its angles are at most π/2, where φ/sin φ is a smooth function of cos φ.
        cosine, v = torch.linalg.eigh((r + r.mT) / 2)
        cosine = cosine.clamp(-1, 1)
        flat = 1 - cosine < 4 * eps
        sine = torch.sqrt((1 - cosine) * (1 + cosine))
        ratio = torch.where(flat, 1.0, torch.arccos(cosine) / torch.where(flat, 1.0, sine))
        log = (v * ratio.unsqueeze(-2)) @ (v.mT @ (r - r.mT))
        return (log - log.mT) / 2, torch.linalg.det(q) > 0
