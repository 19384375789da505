"""Symmetric positive definite matrices."""

from __future__ import annotations

import math

import torch
from geoopt import ManifoldTensor
from torch import Tensor

from .base import CoordinateManifold
from .blocks import CoordinateBlock, Coordinates
from .exponential import expm1
from .pairs import entry_to_number, number_to_entry

__all__ = ["SymmetricPositiveDefinite"]


class SymmetricPositiveDefinite(CoordinateManifold):
    r"""Symmetric positive definite d×d matrices, with the affine-invariant metric ⟨u, v⟩ = tr(x⁻¹u x⁻¹v).

    The tangent space is that of all symmetric matrices, of dimension D = d(d + 1)/2. The metric is the
    same at x and at AxAᵀ for every invertible A, and the Fisher metric of centered Gaussians but for a
    factor 2 (Pennec, Fillard and Ayache, 2006; Bhatia, 2007).

    Let x = LLᵀ with the Cholesky factor L. A coordinate multiplies L from the right by a group of lower
    triangular matrices:

    * the pair (j, l), j < l, numbered along the rows of the strict upper triangle, adds the column l of L,
      times t/√2, to the column j; its direction is (l_j l_lᵀ + l_l l_jᵀ)/√2;
    * then, from number d(d − 1)/2 on, the column j of L, multiplied by e^{t/2}; its direction is l_j l_jᵀ.

    At every point the D directions are an orthonormal basis, however ill-conditioned x is. The axes are
    the columns of L: a pair turns two, a single column one, which it names twice. A derivative costs 2d²
    flops after a factorization of x, d³/3, and a move 2d² a coordinate after one, with another of the result.

    Points have shape ``(..., d, d)``, float32 or float64. Factors are computed in float64 for either. A
    result that rounding would leave indefinite has its diagonal raised by a few roundings, so that it
    is positive definite; what has a condition number above the inverse of the precision (10⁷ in
    float32) is changed by that, and has no exact digits in its small eigenvalues anyway.

    Notes
    -----
    Maps are written in terms of L⁻¹uL⁻ᵀ, so that none needs the square root of x. A group of axes is
    refused, for the single columns in it have no place in a skew matrix.

    Examples
    --------
    >>> import torch
    >>> from givens.manifolds import Coordinates, SymmetricPositiveDefinite
    >>> manifold = SymmetricPositiveDefinite()
    >>> x = manifold.origin(3, 3)
    >>> column = Coordinates(manifold.number(x, 1, 1), disjoint=True)
    >>> y = manifold.move(x, column, torch.tensor([0.5]))
    >>> round(float(y[1, 1].log()), 6), round(float(manifold.dist(x, y)), 6)
    (0.5, 0.5)
    """

    name = "SymmetricPositiveDefinite"
    ndim = 2
    reversible = False

    # Points and tangent vectors

    def random(
        self,
        *size: int,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Points around the identity, whose logarithms are Gaussian.

        The eigenvalues of log x are about −1 to 1. The distribution is the same in every orthonormal basis,
        and that of x⁻¹.

        Parameters
        ----------
        *size : int
            Shape ``(..., d, d)``.
        dtype, device, generator
            As in :func:`torch.randn`.

        Returns
        -------
        ManifoldTensor
            Symmetric to the last digit.
        """
        shape, dtype = self._checked_size(*size, dtype=dtype)
        a = torch.randn(shape, dtype=torch.float64, device=device, generator=generator)
        half = (a + a.mT) / math.sqrt(32 * shape[-1])
        root = expm1(half, skew=False)
        root.diagonal(dim1=-2, dim2=-1).add_(1)
        return ManifoldTensor(_settled(root @ root.mT, dtype), manifold=self)

    def origin(
        self,
        *size: int,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        seed: int | None = None,
    ) -> Tensor:
        """Identity matrices of shape ``(..., d, d)``; `seed` is ignored."""
        shape, dtype = self._checked_size(*size, dtype=dtype)
        identity = torch.eye(shape[-1], dtype=dtype, device=device)
        return ManifoldTensor(identity.expand(shape).clone(), manifold=self)

    def projx(self, x: Tensor) -> Tensor:
        """Symmetric part, with its eigenvalues raised to a few roundings of the largest.

        There is no nearest point, as the set is open; this is the nearest one that a Cholesky factorization
        is sure to accept, but for the last digits. The zero matrix goes to a small multiple of the identity.
        """
        self._assert_check_shape(x.shape, "x")
        self._assert_dtype(x.dtype)
        y = _symmetric(x.double())
        values, v = torch.linalg.eigh(y.detach())
        numbers = torch.finfo(x.dtype)
        floor = 4 * x.shape[-1] * numbers.eps * values.abs().amax(-1, keepdim=True)
        missing = (floor.clamp(min=numbers.tiny) - values).clamp(min=0)
        gap = _differences(values)
        slopes = torch.where(
            gap == 0,
            -(missing > 0).to(gap.dtype).unsqueeze(-1),
            _differences(missing) / torch.where(gap == 0, 1.0, gap),
        )
        return _settled(y + _spectral(y, v, missing, slopes), x.dtype)

    def proju(self, x: Tensor, u: Tensor) -> Tensor:
        """Symmetric part of `u`."""
        return _symmetric(u).expand(torch.broadcast_shapes(x.shape, u.shape))

    def egrad2rgrad(self, x: Tensor, u: Tensor) -> Tensor:
        """Riemannian gradient of the Euclidean gradient g: x(g + gᵀ)x/2."""
        return _symmetric(x @ _symmetric(u) @ x)

    def inner(
        self, x: Tensor, u: Tensor, v: Tensor | None = None, *, keepdim: bool = False
    ) -> Tensor:
        """⟨u, v⟩ = tr(x⁻¹u x⁻¹v), shape ``(...)`` or ``(..., 1, 1)`` with `keepdim`; v = u by default."""
        factor = _factor(x)
        a = _into(factor, u)
        b = a if v is None else _into(factor, v)
        return (a * b).sum((-2, -1), keepdim=keepdim).to(x.dtype)

    def norm(self, x: Tensor, u: Tensor, *, keepdim: bool = False) -> Tensor:
        """‖u‖ = √⟨u, u⟩, whose gradient at u = 0 is taken for 0."""
        return torch.linalg.matrix_norm(_into(_factor(x), u), keepdim=keepdim).to(x.dtype)

    # Maps

    def expmap(self, x: Tensor, u: Tensor) -> Tensor:
        """Exp_x(u) = L·expm(S)·Lᵀ with S = L⁻¹uL⁻ᵀ, as the square of L·expm(S/2).

        Positive definite whatever u is, and derivatives of every order exist. In `u` only the symmetric
        part counts.
        """
        factor = _factor(x)
        half = _followed(factor, _symmetric(_into(factor, u)))
        return _settled(half @ half.mT, x.dtype)

    def logmap(self, x: Tensor, y: Tensor) -> Tensor:
        """Log_x(y) = L·log(L⁻¹yL⁻ᵀ)·Lᵀ, the only vector u with Exp_x(u) = y.

        By one symmetric eigendecomposition. Exact first derivatives flow through it, also where eigenvalues
        repeat.
        """
        factor = _factor(x)
        return _symmetric(factor @ _log(factor, x, y) @ factor.mT).to(x.dtype)

    def dist(self, x: Tensor, y: Tensor, *, keepdim: bool = False) -> Tensor:
        """Geodesic distance ‖log(L⁻¹yL⁻ᵀ)‖, the root of Σ log² λ over the eigenvalues λ of x⁻¹y.

        Its gradient at y = x is taken for 0.
        """
        return torch.linalg.matrix_norm(_log(_factor(x), x, y), keepdim=keepdim).to(x.dtype)

    def retr(self, x: Tensor, u: Tensor) -> Tensor:
        """Retraction x + u + u x⁻¹u/2, which agrees with the exponential to order 2 (Jeuris et al., 2012).

        Computed as (LLᵀ + AAᵀ)/2 with A = L + uL⁻ᵀ, so that it is positive definite whatever u is.
        """
        factor = _factor(x)
        other = factor + _symmetric(u.double()) @ _inverse(factor).mT
        return _settled((factor @ factor.mT + other @ other.mT) / 2, x.dtype)

    def transp(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """Translation MSMᵀ of v = LSLᵀ, where L and M are the Cholesky factors of x and y.

        It keeps the coefficients in the basis of the coordinates: an isometry, though not Levi-Civita's
        parallel transport.
        """
        factor = _factor(y)
        return _symmetric(factor @ _into(_factor(x), v) @ factor.mT).to(v.dtype)

    def transp_follow_expmap(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Levi-Civita's parallel transport along Exp_x(tu) to t = 1.

        For u = LALᵀ and v = LSLᵀ it is L e^{A/2} S e^{A/2} Lᵀ.
        """
        factor = _factor(x)
        half = _followed(factor, _symmetric(_into(factor, u)))
        return _symmetric(half @ _into(factor, v) @ half.mT).to(v.dtype)

    def expmap_transp(self, x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Exp_x(u), and v transported along it as Levi-Civita does."""
        return self.expmap(x, u), self.transp_follow_expmap(x, u, v)

    # Coordinates

    def num_axes(self, x: Tensor) -> int:
        """Return d, the number of columns of the factor."""
        return x.shape[-1]

    def num_coordinates(self, x: Tensor) -> int:
        """Return d(d + 1)/2."""
        return x.shape[-1] * (x.shape[-1] + 1) // 2

    def num_disjoint(self, x: Tensor) -> int:
        """Return ⌈d/2⌉: as many pairs as there are, and a single column where one is left over."""
        return (x.shape[-1] + 1) // 2

    def axes(self, x: Tensor, index: Tensor) -> Tensor:
        """Return the columns (j, l) that coordinates turn, shape ``(..., k, 2)``; j = l for a single one."""
        return torch.stack(number_to_entry(index, x.shape[-1]), -1)

    def number(self, x: Tensor, j: Tensor | int, l: Tensor | int) -> Tensor:
        """Return the numbers of the columns (j, l), j <= l; single axes give shape ``(1,)``."""
        first, second = (
            torch.atleast_1d(torch.as_tensor(axis, device=x.device)) for axis in (j, l)
        )
        return entry_to_number(first, second, x.shape[-1])

    def direction(self, x: Tensor, index: Tensor) -> Tensor:
        """Return the directions as dense matrices, shape ``(*batch, k, d, d)``."""
        index = index.expand(*x.shape[:-2], index.shape[-1])
        unit = torch.ones(index.shape, dtype=torch.float64, device=x.device)
        s = self._generators(x, index.unsqueeze(-1), unit.unsqueeze(-1))
        factor = _factor(x).unsqueeze(-3)
        return (factor @ s @ factor.mT).to(x.dtype)

    def derivatives(self, x: Tensor, egrad: Tensor, block: CoordinateBlock) -> Tensor:
        """Return the entries √2·(LᵀGL)_jl and (LᵀGL)_jj, where G is the symmetric part of the gradient.

        Costs d³/3 flops for the factor L, and 2d² a coordinate or 4d³ for all of them.
        """
        self._check_pair(x, egrad, "egrad")
        self.check_block(x, block)
        index = self._numbers(x, block)
        factor, g = _factor(x), _symmetric(egrad.double())
        j, l = self.axes(x, index).unbind(-1)
        weight = torch.where(j == l, torch.ones_like(g[..., :1, 0]), math.sqrt(2))
        if index.shape[-1] < x.shape[-1]:
            a, b = (factor.gather(-1, _columns(factor, axis)) for axis in (j, l))
            return (weight * (a * (g @ b)).sum(-2)).to(x.dtype)
        h = (factor.mT @ g @ factor).flatten(-2)
        return (weight * h.gather(-1, j * x.shape[-1] + l)).to(x.dtype)

    def move_(self, x: Tensor, block: CoordinateBlock, t: Tensor) -> Tensor:
        """Follow the coordinates of a block for the times t, in place.

        k disjoint `Coordinates` change x by a matrix of rank 2k: two factorizations, 2d³/3 flops, and 2d²
        a coordinate. Overlapping ones, and `All`, are the exponential of Σ t_i f_i, O(d³).
        """
        self._check_move(x, block, t)
        index = self._numbers(x, block)
        t = t.double().expand(index.shape)
        factor = _factor(x)
        if isinstance(block, Coordinates) and (block.disjoint or index.shape[-1] == 1):
            j, l = self.axes(x, index).unbind(-1)
            a, b = (factor.gather(-1, _columns(factor, axis)) for axis in (j, l))
            # The column j of L becomes a + c, and LLᵀ gains acᵀ + caᵀ + ccᵀ.
            c = torch.where(j == l, torch.expm1(t / 2), t / math.sqrt(2)).unsqueeze(-2) * b
            half = c @ (a + c / 2).mT
            return x.copy_(_settled(x.double() + (half + half.mT), x.dtype))
        half = _followed(factor, self._generators(x, index, t))
        return x.copy_(_settled(half @ half.mT, x.dtype))

    def restore_(self, x: Tensor) -> Tensor:
        """Make x exactly symmetric, and positive definite where rounding has spoilt that, in place."""
        return x.copy_(_settled(x.double(), x.dtype))

    def _generators(self, x: Tensor, index: Tensor, t: Tensor) -> Tensor:
        """The symmetric matrices S with Σ t_i f_i = LSLᵀ; numbers that occur twice add up."""
        d = x.shape[-1]
        j, l = self.axes(x, index).unbind(-1)
        half = torch.where(j == l, t / 2, t * math.sqrt(0.5))
        s = torch.zeros(*index.shape[:-1], d * d, dtype=torch.float64, device=x.device)
        s = s.scatter_add_(-1, j * d + l, half).unflatten(-1, (d, d))
        return s + s.mT

    # Checks

    def _check_shape(self, shape: tuple[int, ...], name: str) -> tuple[bool, str | None]:
        if len(shape) >= 2 and shape[-1] == shape[-2] >= 1:
            return True, None
        return (
            False,
            f"'{name}' has shape {tuple(shape)}; {self.name} expects (..., d, d) with d >= 1",
        )

    def _check_point_on_manifold(
        self, x: Tensor, *, atol: float = 1e-5, rtol: float = 1e-5
    ) -> tuple[bool, str | None]:
        if x.dtype not in self.dtypes:
            return False, f"it is {x.dtype}; {self.name} works in {self._dtype_names}"
        x = x.detach().double()
        if not bool(x.isfinite().all()):
            return False, "it has entries that are NaN or infinite"
        error = (x - x.mT).abs().amax((-2, -1))
        if bool((error > atol + rtol * x.abs().amax((-2, -1))).any()):
            return False, (
                f"max |x − xᵀ| is {float(error.max()):.1e}; proju(x, x) is its symmetric part"
            )
        if not bool(torch.linalg.cholesky_ex(_symmetric(x)).info.any()):
            return True, None
        least = float(torch.linalg.eigvalsh(_symmetric(x)).min())
        return False, (
            f"its least eigenvalue is {least:.1e}, and it has no Cholesky factor; projx(x) raises "
            "eigenvalues to a small multiple of the largest"
        )

    def _check_vector_on_tangent(
        self, x: Tensor, u: Tensor, *, atol: float = 1e-5, rtol: float = 1e-5
    ) -> tuple[bool, str | None]:
        u = u.detach()
        error = (u - u.mT).abs().amax((-2, -1))
        allowed = atol + rtol * u.abs().amax((-2, -1))
        if bool((error.isfinite() & (error <= allowed)).all()):
            return True, None
        return False, (
            f"max |u − uᵀ| is {float(error.max()):.1e}; proju(x, u) is its symmetric part"
        )


def _symmetric(a: Tensor) -> Tensor:
    half = a / 2  # first, for the sum of large numbers may overflow
    return half + half.mT


def _columns(x: Tensor, index: Tensor) -> Tensor:
    """The index ``(..., k)`` as gather along the columns of x wants it."""
    return index.unsqueeze(-2).expand(*x.shape[:-1], index.shape[-1])


def _factor(x: Tensor) -> Tensor:
    """Cholesky factor in float64; not a number for a matrix that is not positive definite."""
    factor, info = torch.linalg.cholesky_ex(_symmetric(x.double()))
    return torch.where((info > 0)[..., None, None], torch.nan, factor)


def _inverse(factor: Tensor) -> Tensor:
    """L⁻¹ of a lower triangular L."""
    identity = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
    return torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False)


def _into(factor: Tensor, u: Tensor) -> Tensor:
    """L⁻¹uL⁻ᵀ, in which the metric is that of the entries."""
    left = torch.linalg.solve_triangular(factor, u.double(), upper=False)
    return torch.linalg.solve_triangular(factor.mT, left, upper=True, left=False)


def _followed(factor: Tensor, s: Tensor) -> Tensor:
    """L·expm(S/2), for a symmetric S.

    Its mean eigenvalue goes separately: the rest has one above 0, beside which nothing of expm − I cancels.
    """
    mean = s.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True).unsqueeze(-1)
    rest = s - torch.diag_embed(mean.squeeze(-1).expand(s.shape[:-1]))
    return torch.exp(mean / 2) * (factor + factor @ expm1(rest / 2, skew=False))


def _log(factor: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """log(L⁻¹yL⁻ᵀ), of x = LLᵀ.

    Next to x by the eigenvalues of the difference from the identity, where that of nearby matrices is exact;
    elsewhere by those of the matrix, of which the small ones would be lost next to −1.
    """
    difference = _symmetric(_into(factor, y.double() - x.double()))
    whole = _symmetric(_into(factor, y))
    near = torch.linalg.matrix_norm(difference.detach(), keepdim=True) < 0.5
    matrix = torch.where(near, difference, whole)
    # A matrix that is not finite has no say in the others of its batch.
    finite = matrix.detach().isfinite().all(-1, keepdim=True).all(-2, keepdim=True)
    values, v = torch.linalg.eigh(torch.where(finite, matrix.detach(), 0.0))
    near = near.squeeze(-1)
    log = torch.where(near, torch.log1p(values), torch.log(torch.where(near, 1.0, values)))
    # The quotients of differences of the logarithm, at eigenvalues e^a and e^b:
    # (a − b)/(e^a − e^b) = h/sinh(h)·e^{−(a + b)/2} with h = (a − b)/2.
    half = _differences(log) / 2
    flat = half.abs() < 1e-6
    ratio = torch.where(flat, 1.0, half / torch.sinh(torch.where(flat, 1.0, half)))
    slopes = ratio * torch.exp(-(log.unsqueeze(-1) + log.unsqueeze(-2)) / 2)
    return torch.where(finite, _symmetric(_spectral(matrix, v, log, slopes)), torch.nan)


def _spectral(a: Tensor, v: Tensor, image: Tensor, slopes: Tensor) -> Tensor:
    """A function of symmetric matrices with eigenvectors v, by its values at the eigenvalues.

    `slopes` are its quotients of differences at pairs of eigenvalues: the first derivative in the
    basis v (Daleckii and Krein, 1965), also where eigenvalues repeat.
    """
    zero = a - a.detach()
    return v @ (torch.diag_embed(image) + slopes * (v.mT @ zero @ v)) @ v.mT


def _differences(values: Tensor) -> Tensor:
    return values.unsqueeze(-1) - values.unsqueeze(-2)


def _settled(y: Tensor, dtype: torch.dtype) -> Tensor:
    """Symmetric part of a float64 matrix, rounded, and positive definite after that.

    Rounding changes an entry by at most half a unit of √(y_jj·y_ll), the largest that it can be; so where it
    makes y indefinite, a few units in the last place of the diagonal put that right.
    """
    rounded = _symmetric(y).to(dtype)
    indefinite = torch.linalg.cholesky_ex(rounded.detach().double()).info > 0
    lift = 4 * y.shape[-1] * torch.finfo(dtype).eps
    raised = rounded + torch.diag_embed(lift * rounded.diagonal(dim1=-2, dim2=-1))
    return torch.where(indefinite[..., None, None], raised, rounded)
