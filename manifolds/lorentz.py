"""Hyperbolic space, as a hyperboloid."""

from __future__ import annotations

import math

import torch
from geoopt import ManifoldTensor
from torch import Tensor

from .angles import SMALL, angle_over_sine, cosh_and_sinhc
from .base import CoordinateManifold
from .blocks import CoordinateBlock, Coordinates, Groups
from .columns import put_, take_groups
from .exponential import expm1
from .rotation_coordinates import RotationCoordinates

__all__ = ["Lorentz"]


class Lorentz(RotationCoordinates):
    r"""Hyperbolic space H^n as the hyperboloid {x ∈ ℝ^{n+1} : −x_0² + x_1² + … + x_n² = −k, x_0 > 0}.

    The metric is Minkowski's, ⟨u, v⟩ = −u_0v_0 + u_1v_1 + … + u_nv_n, on the tangent space
    T_x = {u : ⟨x, u⟩ = 0} of dimension n; the curvature is −1/k, the convention of
    :class:`geoopt.Lorentz`.

    Coordinate i is the pair of entries (j, l), j < l, numbered along the rows of the strict upper
    triangle. For j > 0 it rotates the two entries by the angle t, in O(1); for j = 0 it is the boost that
    adds t to the rapidity along the axis l, in O(n). Directions are x_j e_l − x_l e_j and
    x_0 e_l + x_l e_0. At the distance r from the origin (√k, 0, …, 0) their sum Σ⟨u, f_i⟩² is
    between k‖u‖², where u points away from the origin, and (2x_0² − k)‖u‖², where it goes around it, with
    x_0 = √k·cosh(r/√k): without scales a step that is short enough for one is nothing for the other, so
    every coordinate has its own (:meth:`step_scale`). The axes are the entries; no two boosts are disjoint.

    Points have shape ``(..., n + 1)`` with n >= 1, float32 or float64. The entries x_1, …, x_n count, and
    x_0 follows from them. The next numbers to them are other points, at the distance ε·x_0, however the
    maps are computed: float32 has three digits of a position left at a distance of 9√k and none at 16√k,
    float64 three at 29√k and none at 36√k. The maps, computed in float64, add errors of that size and no
    larger ones.

    Parameters
    ----------
    k : float
        Minus the inverse of the curvature, above 0.

    Examples
    --------
    >>> import torch
    >>> from givens.manifolds import Coordinates, Lorentz
    >>> manifold = Lorentz()
    >>> x = manifold.origin(4)
    >>> boost = Coordinates(manifold.number(x, 0, 2), disjoint=True)
    >>> y = manifold.move(x, boost, torch.tensor([0.5]))
    >>> round(float(manifold.dist(x, y)), 6)
    0.5
    """

    name = "Lorentz"
    ndim = 1
    reversible = False
    frame_bounds = None
    period = None  # boosts do not come round
    compact = False

    def __init__(self, k: float = 1.0) -> None:
        super().__init__()
        if not (math.isfinite(k) and k > 0):
            raise ValueError(f"k={k}: expected a finite number above 0; the curvature is −1/k")
        self.k = float(k)

    def extra_repr(self) -> str:
        """Show k."""
        return f"k={self.k:g}"

    # Points and tangent vectors

    def random(
        self,
        *size: int,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Points around the origin, at a distance of about √k: exponentials of normal vectors there.

        Parameters
        ----------
        *size : int
            Shape ``(..., n + 1)``.
        dtype, device, generator
            As in :func:`torch.randn`.
        """
        shape, dtype = self._checked_size(*size, dtype=dtype)
        u = torch.randn(shape, dtype=torch.float64, device=device, generator=generator)
        u[..., 0] = 0
        u = u * math.sqrt(self.k / (shape[-1] - 1))
        x = self.expmap(self.origin(*shape, dtype=torch.float64, device=device), u)
        return ManifoldTensor(self.projx(x.as_subclass(Tensor).to(dtype)), manifold=self)

    def origin(
        self,
        *size: int,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        seed: int | None = None,
    ) -> Tensor:
        """Copies of the point (√k, 0, …, 0), shape ``(..., n + 1)``; `seed` is ignored."""
        shape, dtype = self._checked_size(*size, dtype=dtype)
        x = torch.zeros(shape, dtype=dtype, device=device)
        x[..., 0] = math.sqrt(self.k)
        return ManifoldTensor(x, manifold=self)

    def projx(self, x: Tensor) -> Tensor:
        """The point with the same x_1, …, x_n."""
        self._assert_check_shape(x.shape, "x")
        self._assert_dtype(x.dtype)
        return self._point(x[..., 1:].double()).to(x.dtype)

    def proju(self, x: Tensor, u: Tensor) -> Tensor:
        """Orthogonal projection of the ambient space on the tangent space.

        Orthogonal as arrays are, not in Minkowski's product, in which rounding grows with x_0².
        """
        wide, vector = x.double(), u.double()
        normal = torch.cat([-wide[..., :1], wide[..., 1:]], -1)
        normal = normal / torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        space = vector[..., 1:] - (normal * vector).sum(-1, keepdim=True) * normal[..., 1:]
        return self._vector(wide, space).to(u.dtype)

    def egrad2rgrad(self, x: Tensor, u: Tensor) -> Tensor:
        """Riemannian gradient of the Euclidean gradient g: h + ⟨x, h⟩x/k with h = (−g_0, g_1, …, g_n)."""
        wide, g = x.double(), u.double()
        along = (wide * g).sum(-1, keepdim=True) / self.k
        return self._vector(wide, g[..., 1:] + along * wide[..., 1:]).to(u.dtype)

    def inner(
        self, x: Tensor, u: Tensor, v: Tensor | None = None, *, keepdim: bool = False
    ) -> Tensor:
        """⟨u, v⟩ of tangent vectors; `keepdim` keeps a dimension of 1; v = u by default."""
        a = self._flat(x, u)
        b = a if v is None else self._flat(x, v)
        return (a * b).sum(-1, keepdim=keepdim).to(x.dtype)

    def norm(self, x: Tensor, u: Tensor, *, keepdim: bool = False) -> Tensor:
        """‖u‖ = √⟨u, u⟩, whose gradient at u = 0 is taken for 0."""
        return torch.linalg.vector_norm(self._flat(x, u), dim=-1, keepdim=keepdim).to(x.dtype)

    # Maps

    def expmap(self, x: Tensor, u: Tensor) -> Tensor:
        """Exp_x(u) = x cosh θ + u (sinh θ)/θ, θ = ‖u‖/√k; of `u` the entries u_1, …, u_n count.

        As x plus an increment, so that a short step is accurate relative to its length; derivatives of
        every order exist at u = 0.
        """
        space, vector = x[..., 1:].double(), u[..., 1:].double()
        square = self._flat(x, u).square().sum(-1, keepdim=True) / self.k
        cosine, sinc = cosh_and_sinhc(square / 4)
        # sinh θ = θ·sinc·cosine and cosh θ − 1 = θ²·sinc²/2, cosine and sinc being those of θ/2.
        return self._point(space + sinc * (cosine * vector + sinc * (square / 2) * space)).to(
            x.dtype
        )

    def retr(self, x: Tensor, u: Tensor) -> Tensor:
        """The exponential."""
        return self.expmap(x, u)

    def logmap(self, x: Tensor, y: Tensor) -> Tensor:
        """Log_x(y) = (θ/sinh θ)(y − x cosh θ), the only vector u with Exp_x(u) = y; θ = dist(x, y)/√k."""
        wide, other = x.double(), y.double()
        square = self._chord(wide, other).square().sum(-1, keepdim=True) / (4 * self.k)
        # The square of sinh(θ/2).
        small = square < SMALL
        root = torch.where(small, 1.0, square).sqrt()
        far = torch.asinh(root) / (root * torch.sqrt(1 + root.square()))
        ratio = torch.where(small, angle_over_sine(-torch.where(small, square, 0.0)), far)
        space = ratio * (other[..., 1:] - wide[..., 1:] - 2 * square * wide[..., 1:])
        return self._vector(wide, space).to(x.dtype)

    def dist(self, x: Tensor, y: Tensor, *, keepdim: bool = False) -> Tensor:
        """Geodesic distance 2√k·arsinh(‖x − y‖/(2√k)), with Minkowski's length of the difference.

        Its gradient at y = x is taken for 0.
        """
        chord = self._chord(x.double(), y.double())
        chord = torch.linalg.vector_norm(chord, dim=-1, keepdim=keepdim)
        root = math.sqrt(self.k)
        return (2 * root * torch.asinh(chord / (2 * root))).to(x.dtype)

    def transp(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """Levi-Civita's parallel transport along the geodesic to y: v + ⟨y, v⟩(x + y)/(k − ⟨x, y⟩)."""
        wide, other = x.double(), y.double()
        whole = self._vector(wide, v[..., 1:].double())
        change = other - wide
        along = (change * whole)[..., 1:].sum(-1, keepdim=True) - (change * whole)[..., :1]
        square = self._chord(wide, other).square().sum(-1, keepdim=True)
        space = whole + along / (2 * self.k + square / 2) * (wide + other)
        return self._vector(other, space[..., 1:]).to(v.dtype)

    def transp_follow_expmap(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Levi-Civita's parallel transport along Exp_x(tu) to t = 1.

        v + ⟨u, v⟩/k·((sinh θ)/θ·x + (cosh θ − 1)/θ²·u), θ = ‖u‖/√k.
        """
        wide = x.double()
        a, b = self._flat(wide, u), self._flat(wide, v)
        cosine, sinc = cosh_and_sinhc((a * a).sum(-1, keepdim=True) / (4 * self.k))
        along = (a * b).sum(-1, keepdim=True) / self.k * sinc
        space = cosine * wide[..., 1:] + sinc / 2 * u[..., 1:].double()
        return self._vector(self.expmap(wide, u), v[..., 1:].double() + along * space).to(v.dtype)

    def expmap_transp(self, x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Exp_x(u), and v transported along it as Levi-Civita does."""
        return self.expmap(x, u), self.transp_follow_expmap(x, u, v)

    # Coordinates: rotations of entries, but for the sign of the first

    def columns(self, x: Tensor) -> Tensor:
        """Return points as matrices of one row, shape ``(..., 1, n + 1)``: the axes are the entries."""
        return x.unsqueeze(-2)

    def step_scale(self, x: Tensor, block: CoordinateBlock) -> Tensor:
        """Return k + 4(x_1² + … + x_n² − x_l²) for boosts along l, and k + 4(x_1² + … + x_n²) for rotations.

        Of a boost ‖f_i‖² has a 1 in the place of the 4: of a rotation it is x_j² + x_l². With the factor 4
        Σ⟨u, f_i⟩²/s_i is at most ‖u‖² at every point, and with no smaller one; it is ‖u‖² at the origin
        and along an axis.
        """
        y = x.detach().double()
        if isinstance(block, Groups):
            l = block.axes.expand(*x.shape[:-1], *block.axes.shape[-2:])
            entry = y.unsqueeze(-2).expand(*l.shape[:-1], -1).gather(-1, l).square()
            # A group has the axis 0, if it has it, in its first place: its row and column are boosts.
            first = torch.where(l[..., :1] == 0, entry, 0.0) * (l > 0)
            turned = torch.zeros_like(entry).unsqueeze(-1).repeat_interleave(l.shape[-1], -1)
            turned[..., 0, :], turned[..., :, 0] = first, first
        else:
            j, l = self._pairs(x, self._numbers(x, block))
            turned = torch.where(j == 0, y.gather(-1, l).square(), 0.0)
        square = y[..., 1:].square().sum(-1)[(..., *(None,) * (turned.dim() - x.dim() + 1))]
        return (self.k + 4 * (square - turned).clamp(min=0)).to(x.dtype)

    def derivatives(self, x: Tensor, egrad: Tensor, block: CoordinateBlock) -> Tensor:
        """Return the partial derivatives x_j·g_l − x_l·g_j, and x_0·g_l + x_l·g_0: O(1) each."""
        self._check_pair(x, egrad, "egrad")
        return super().derivatives(x, _reflected(egrad), block)

    def steepest(self, x: Tensor, egrad: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return the k coordinates of the largest ``|⟨grad f, f_i⟩|/√s_i``, and their derivatives: O(n²)."""
        return CoordinateManifold.steepest(self, x, egrad, k)

    def move_(self, x: Tensor, block: CoordinateBlock, t: Tensor) -> Tensor:
        """Follow the coordinates of a block for the times t, in place.

        Disjoint `Coordinates` and groups of 2 are rotations, O(1) each, and at most one boost, O(n);
        overlapping ones, and `All`, are the exponential of Σ t_i f_i. Larger `Groups` are batched r×r
        exponentials.
        """
        self._check_move(x, block, t)
        if isinstance(block, Groups) and block.axes.shape[-1] == 2:
            index = self.group_coordinates(x, block).squeeze(-1)
            t = self.group_values(x, t).squeeze(-1)
            block = Coordinates(index, disjoint=True)
        if isinstance(block, Groups):
            columns = take_groups(self.columns(x), block.axes)
            sign = torch.where(block.axes == 0, -1.0, 1.0).unsqueeze(-2)
            columns = columns + columns @ expm1(t.to(x.dtype) * sign.to(x.dtype), skew=False)
            place = block.axes.flatten(-2).expand(*x.shape[:-1], -1)
            put_(self.columns(x), place, columns.transpose(-3, -2).flatten(-2))
            return self.restore_(x)
        if not isinstance(block, Coordinates) or not (block.disjoint or block.index.shape[-1] == 1):
            return super().move_(x, block, t)
        j, l = self._pairs_of(x, block)
        boosts = j == 0
        t = t.double().expand(j.shape)
        super().move_(x, block, torch.where(boosts, 0.0, t))
        # At most one, for they share an axis.
        axis = torch.where(boosts, l, 0).sum(-1, keepdim=True).clamp(min=1)
        return self._boost_(x, axis, torch.where(boosts, t, 0.0).sum(-1, keepdim=True))

    def restore_(self, x: Tensor) -> Tensor:
        """Compute x_0 from the other entries, in place: O(n)."""
        return x.copy_(self._point(x[..., 1:].double()))

    def _along(self, x: Tensor, index: Tensor, t: Tensor) -> Tensor:
        return _reflected(super()._along(x, index, t))

    def _boost_(self, x: Tensor, axis: Tensor, t: Tensor) -> Tensor:
        """Add the rapidities t along an axis of each point.

        The boost multiplies x_0 + x_l by e^t and x_0 − x_l by e^{−t}. One of them is a difference of large
        numbers, and is computed as what their product, k and the squares of the other entries, says.
        """
        space = x[..., 1:].double()
        entry = space.gather(-1, axis - 1)
        rest = space.scatter(-1, axis - 1, 0.0).square().sum(-1, keepdim=True) + self.k
        large = entry.abs() + torch.sqrt(rest + entry.square())
        small = rest / large
        plus = torch.where(entry < 0, small, large)
        minus = torch.where(entry < 0, large, small)
        entry = entry + (plus * torch.expm1(t) - minus * torch.expm1(-t)) / 2
        return x.copy_(self._point(space.scatter(-1, axis - 1, entry)))

    # Checks

    def _check_shape(self, shape: tuple[int, ...], name: str) -> tuple[bool, str | None]:
        if len(shape) >= 1 and shape[-1] >= 2:
            return True, None
        return False, (
            f"'{name}' has shape {tuple(shape)}; {self.name} expects (..., n + 1) with n >= 1"
        )

    def _check_point_on_manifold(
        self, x: Tensor, *, atol: float = 1e-5, rtol: float = 1e-5
    ) -> tuple[bool, str | None]:
        if x.dtype not in self.dtypes:
            return False, f"it is {x.dtype}; {self.name} works in {self._dtype_names}"
        x = x.detach().double()
        error = (self._point(x[..., 1:]) - x)[..., 0].abs()
        if bool((error <= atol + rtol * x[..., 0].abs()).all()):
            return True, None
        return False, (
            f"x_0 is off √(k + x_1² + … + x_n²) by up to {float(error.max()):.1e}, with k = {self.k:g}; "
            "projx(x) computes it from the other entries"
        )

    def _check_vector_on_tangent(
        self, x: Tensor, u: Tensor, *, atol: float = 1e-5, rtol: float = 1e-5
    ) -> tuple[bool, str | None]:
        x, u = x.detach().double(), u.detach().double()
        error = (self._vector(x, u[..., 1:]) - u)[..., 0].abs()
        if bool((error <= atol + rtol * u.abs().amax(-1)).all()):
            return True, None
        return False, (
            f"u_0 is off (x_1u_1 + … + x_nu_n)/x_0 by up to {float(error.max()):.1e}; "
            "proju(x, u) gives the nearest tangent vector"
        )

    # Parts, in float64

    def _point(self, space: Tensor) -> Tensor:
        """The point with these entries x_1, …, x_n."""
        first = torch.sqrt(self.k + space.square().sum(-1, keepdim=True))
        return torch.cat([first, space], -1)

    def _vector(self, x: Tensor, space: Tensor) -> Tensor:
        """The tangent vector with these entries u_1, …, u_n."""
        first = (x[..., 1:] * space).sum(-1, keepdim=True) / x[..., :1]
        return torch.cat([first, space], -1)

    def _flat(self, x: Tensor, u: Tensor) -> Tensor:
        """A vector of n + 1 entries that is as long, as an array, as a tangent vector: linear in it.

        With u_0 = (x_1u_1 + … + x_nu_n)/x_0, the part u − u_0x/x_0 in space, and √k·u_0/x_0.
        """
        x, u = x.double(), u[..., 1:].double()
        ratio = (x[..., 1:] * u).sum(-1, keepdim=True) / x[..., :1].square()
        return torch.cat([math.sqrt(self.k) * ratio, u - ratio * x[..., 1:]], -1)

    def _chord(self, x: Tensor, y: Tensor) -> Tensor:
        """A vector of n + 1 entries that is as long, as an array, as x − y in Minkowski's product.

        With d = x − y, d_0 from the other entries, and e = d_0/(x_0 + y_0): √(1/(1 − e²)) times 2√k·e and
        2(y_0·x − x_0·y)/(x_0 + y_0) in space, which is written with d and the point nearer to the origin.
        """
        total = x[..., :1] + y[..., :1]
        change = (x - y)[..., 1:]
        first = (change * (x + y)[..., 1:]).sum(-1, keepdim=True) / total
        inner = torch.where(x[..., :1] < y[..., :1], x, y)
        across = 2 * (inner[..., :1] * change - first * inner[..., 1:]) / total
        along = 2 * math.sqrt(self.k) * first / total
        stretch = total / (2 * torch.sqrt(x[..., :1]) * torch.sqrt(y[..., :1]))
        return stretch * torch.cat([along, across], -1)


def _reflected(u: Tensor) -> Tensor:
    """The vector with −u_0 in the place of u_0."""
    return torch.cat([-u[..., :1], u[..., 1:]], -1)
