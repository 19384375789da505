"""The orthogonal group."""

from __future__ import annotations

import math

import torch
from geoopt import ManifoldTensor
from geoopt.utils import size2shape
from torch import Tensor

from .base import CoordinateManifold
from .blocks import CoordinateBlock, Coordinates, Groups
from .exponential import expm1
from .pairs import number_to_pair, pair_to_number
from .retractions import RETRACTIONS, exponential, polar_factor, qr_factor
from .rotations import column_index, rotate_columns_

__all__ = ["OrthogonalGroup"]

# Entries that a pass over gradients and points may hold at a time: bounds the memory of a large
# block or of a ranking of all coordinates, and is large enough for matrix products to run at speed.
_PANEL = 2**21

_DTYPES = (torch.float32, torch.float64)


class OrthogonalGroup(CoordinateManifold):
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
            From the QR factorization of a Gaussian matrix, signs fixed (Mezzadri, 2007).
        """
        shape = size2shape(*size)
        self._assert_check_shape(shape, "x")
        if det not in (None, 1, -1):
            raise ValueError(f"det={det!r}: expected 1, -1 or None for both components")
        dtype = dtype or torch.get_default_dtype()
        self._assert_dtype(dtype)
        # In float64, so that a float32 point is orthogonal to its last digit.
        m = torch.randn(shape, dtype=torch.float64, device=device, generator=generator)
        q = qr_factor(m)
        if det is not None:
            flip = (torch.linalg.det(q) * det < 0)[..., None]
            q[..., 0] = torch.where(flip, -q[..., 0], q[..., 0])
        return ManifoldTensor(q.to(dtype), manifold=self)

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

    def num_axes(self, x: Tensor) -> int:
        """Return d: the axes are the columns."""
        return x.shape[-1]

    def num_coordinates(self, x: Tensor) -> int:
        """Return D = d(d − 1)/2."""
        return x.shape[-1] * (x.shape[-1] - 1) // 2

    def axes(self, x: Tensor, index: Tensor) -> Tensor:
        """Return the pairs (j, l), j < l, of coordinates: shape ``(..., k, 2)``."""
        return torch.stack(number_to_pair(index, x.shape[-1]), dim=-1)

    def number(self, x: Tensor, j: Tensor | int, l: Tensor | int) -> Tensor:
        """Return the numbers of the pairs (j, l), j < l; single axes give shape ``(1,)``."""
        first, second = (
            torch.atleast_1d(torch.as_tensor(axis, device=x.device)) for axis in (j, l)
        )
        return pair_to_number(first, second, x.shape[-1])

    def direction(self, x: Tensor, index: Tensor) -> Tensor:
        """Return η_i = x·H_jl as dense matrices, shape ``(*batch, k, d, d)``."""
        index = index.expand(*x.shape[:-2], index.shape[-1])
        times = torch.diag_embed(x.new_ones(index.shape))
        return x.unsqueeze(-3) @ _generator(x.unsqueeze(-3), index.unsqueeze(-2), times)

    def derivatives(self, x: Tensor, egrad: Tensor, block: CoordinateBlock) -> Tensor:
        """Return ∇_i f = (x_j·g_l − x_l·g_j)/√2, the paper's equation (9).

        Costs 4·k·d flops for `Coordinates` (no d×d product, and bounded memory for any k), 2·r·d²
        for `Groups`, one d×d product for `All`.
        """
        self._check_pair(x, egrad, "egrad")
        self.check_block(x, block)
        if isinstance(block, Coordinates):
            index = block.index.expand(*x.shape[:-2], block.index.shape[-1])
            j, l = number_to_pair(index, x.shape[-1])
            width = max(1, _PANEL // x.shape[-1])
            parts = [
                (_take(x, a) * _take(egrad, b))
                .sum(-2)
                .sub_((_take(x, b) * _take(egrad, a)).sum(-2))
                for a, b in zip(j.split(width, -1), l.split(width, -1), strict=True)
            ]
            return torch.cat(parts, -1).div_(math.sqrt(2))
        if isinstance(block, Groups):
            a = _take_groups(x, block.axes).mT @ _take_groups(egrad, block.axes)
            return (a - a.mT).div_(math.sqrt(2))
        a = x.mT @ egrad
        j, l = torch.triu_indices(x.shape[-1], x.shape[-1], offset=1, device=x.device)
        return (a[..., j, l] - a[..., l, j]).div_(math.sqrt(2))

    def steepest(self, x: Tensor, egrad: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return the k largest ``|∇_i f|``, in panels of rows of xᵀg − gᵀx: no d×d matrix is kept.

        Costs 2d³(1 + 1/p) flops in p panels, about as much as the one product xᵀg.
        """
        self._check_pair(x, egrad, "egrad")
        d = x.shape[-1]
        if not 1 <= k <= self.num_coordinates(x):
            raise ValueError(f"k={k}: a {d}×{d} matrix has {self.num_coordinates(x)} coordinates")
        best = x.new_empty((*x.shape[:-2], 0))
        index = torch.empty(best.shape, dtype=torch.int64, device=x.device)
        rows = max(1, _PANEL // d)
        for top in range(0, d - 1, rows):
            bottom = min(top + rows, d - 1)
            # Rows top…bottom of the strict upper triangle, from column top on.
            panel = x[..., top:bottom].mT @ egrad[..., top:]
            panel = panel.sub_(egrad[..., top:bottom].mT @ x[..., top:])
            height, length = panel.shape[-2:]
            pairs = height * length - height * (height + 1) // 2
            lower = torch.ones(height, length, dtype=torch.bool, device=x.device).tril_()
            slope = panel.abs().masked_fill_(lower, -1.0).flatten(-2)
            place = slope.topk(min(k, pairs), dim=-1).indices
            row = torch.div(place, length, rounding_mode="floor")
            numbers = pair_to_number(top + row, top + place - row * length, d)
            best = torch.cat([best, panel.flatten(-2).gather(-1, place)], -1)
            index = torch.cat([index, numbers], -1)
            order = best.abs().topk(min(k, best.shape[-1]), dim=-1).indices
            best, index = best.gather(-1, order), index.gather(-1, order)
        return index, best.div_(math.sqrt(2))

    def move_(self, x: Tensor, block: CoordinateBlock, t: Tensor) -> Tensor:
        """Follow the coordinates of a block for the times t, in place: x ← x·expm(Σ t_i H_i).

        Disjoint `Coordinates` are rotations of pairs of columns by t/√2, O(k·d), and the move never
        waits for an accelerator; overlapping ones are the dense exponential, O(d³), as is `All`.
        `Groups` are batched r×r exponentials and one batched product, 4·r·d² flops.
        """
        self._assert_check_shape(x.shape, "x")
        self._assert_dtype(x.dtype)
        self.check_block(x, block)
        self._check_times(x, block, t)
        if isinstance(block, Coordinates):
            index = block.index.expand(*x.shape[:-2], block.index.shape[-1])
            t = t.expand(index.shape)
            if block.disjoint or index.shape[-1] == 1:
                j, l = number_to_pair(index, x.shape[-1])
                return rotate_columns_(x, j, l, t.double() / math.sqrt(2))
            return x.add_(x @ expm1(_generator(x, index, t)))
        if isinstance(block, Groups):
            columns = _take_groups(x, block.axes)
            columns = columns + columns @ expm1(t.to(x.dtype) / math.sqrt(2))
            place = column_index(x, block.axes.flatten(-2))
            return x.scatter_(-1, place, columns.transpose(-3, -2).flatten(-2))
        index = torch.arange(self.num_coordinates(x), device=x.device)
        index = index.expand(*x.shape[:-2], index.shape[-1])
        return x.add_(x @ expm1(_generator(x, index, t)))

    def restore_(self, x: Tensor) -> Tensor:
        """One Newton–Schulz step x ← x − x(xᵀx − I)/2, in place: 4d³ flops, quadratic convergence.

        The diagonal of xᵀx − I is taken in float64, which costs O(d²): in float32 its sums round near
        1, and that would be most of the error left.
        """
        gram = x.mT @ x
        norm = torch.linalg.vector_norm(x, dim=-2, dtype=torch.float64)
        gram.diagonal(dim1=-2, dim2=-1).copy_(norm.square() - 1)
        return x.sub_(x @ gram, alpha=0.5)

    # Checks

    def _check_shape(self, shape: tuple[int, ...], name: str) -> tuple[bool, str | None]:
        if len(shape) >= 2 and shape[-1] == shape[-2] and shape[-1] >= 2:
            return True, None
        return False, (
            f"'{name}' has shape {tuple(shape)}; OrthogonalGroup expects (..., d, d) with d >= 2"
        )

    def _check_point_on_manifold(
        self, x: Tensor, *, atol: float = 1e-5, rtol: float = 1e-5
    ) -> tuple[bool, str | None]:
        if x.dtype not in _DTYPES:
            return False, f"it is {x.dtype}; OrthogonalGroup works in float32 and float64"
        gram = x.detach().mT @ x.detach()
        gram.diagonal(dim1=-2, dim2=-1).sub_(1)
        error = float(gram.abs().max()) if gram.numel() else 0.0
        if error <= atol + rtol:
            return True, None
        return False, (
            f"max |xᵀx − I| is {error:.1e}, allowed {atol + rtol:.1e}; "
            "OrthogonalGroup().projx(x) gives the nearest point"
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
            f"max |xᵀu + uᵀx| is {float(error.max()):.1e}; OrthogonalGroup().proju(x, u) gives the "
            "nearest tangent vector"
        )

    def _check_pair(self, x: Tensor, u: Tensor, name: str) -> None:
        self._assert_check_shape(x.shape, "x")
        self._assert_dtype(x.dtype)
        if u.dtype != x.dtype or u.shape != x.shape:
            raise TypeError(
                f"{name} is {u.dtype} of shape {tuple(u.shape)}; "
                f"expected those of x, {x.dtype} and {tuple(x.shape)}"
            )

    def _check_times(self, x: Tensor, block: CoordinateBlock, t: Tensor) -> None:
        if isinstance(block, Coordinates):
            expected = (block.index.shape[-1],)
        elif isinstance(block, Groups):
            expected = (*block.axes.shape[-2:], block.axes.shape[-1])
        else:
            expected = (self.num_coordinates(x),)
        expected = (*x.shape[:-2], *expected)
        fits = t.dim() <= len(expected) and all(
            a in (1, b) for a, b in zip(reversed(t.shape), reversed(expected), strict=False)
        )
        if t.dtype not in _DTYPES:
            raise TypeError(f"times are {t.dtype}; expected float32 or float64")
        if not fits:
            raise ValueError(
                f"times have shape {tuple(t.shape)}; expected one that broadcasts to {expected}"
            )

    @staticmethod
    def _assert_dtype(dtype: torch.dtype) -> None:
        if dtype not in _DTYPES:
            raise TypeError(f"OrthogonalGroup works in float32 and float64, not in {dtype}")

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


def _take(x: Tensor, columns: Tensor) -> Tensor:
    """Columns ``(..., k)`` of x, as ``(..., d, k)``."""
    return x.gather(-1, column_index(x, columns))


def _take_groups(x: Tensor, axes: Tensor) -> Tensor:
    """Groups of columns ``(..., n, r)`` of x, as ``(..., n, d, r)``."""
    axes = axes.expand(*x.shape[:-2], *axes.shape[-2:])
    return _take(x, axes.flatten(-2)).unflatten(-1, axes.shape[-2:]).transpose(-3, -2)


def _generator(x: Tensor, index: Tensor, t: Tensor) -> Tensor:
    """Σ t_i H_i as dense skew matrices of the size of `x`; numbers that occur twice add up."""
    d = x.shape[-1]
    j, l = number_to_pair(index, d)
    h = x.new_zeros((*t.shape[:-1], d * d))
    h = h.scatter_add(-1, (j * d + l).expand(t.shape), t.to(x.dtype) / math.sqrt(2)).unflatten(
        -1, (d, d)
    )
    return h - h.mT
