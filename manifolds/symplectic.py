"""Symplectic matrices, square and tall."""

from __future__ import annotations

import math

import torch
from geoopt import ManifoldTensor
from torch import Tensor

from .base import CoordinateManifold
from .blocks import CoordinateBlock, Coordinates
from .columns import PANEL, column_index, put_, take
from .exponential import expm1
from .orthonormal import random_orthonormal
from .pairs import entry_to_number, number_to_entry
from .retractions import ChosenRetraction

__all__ = ["Symplectic"]


class Symplectic(ChosenRetraction, CoordinateManifold):
    r"""The symplectic Stiefel manifold Sp(2n, 2k) = {x ∈ ℝ^{2n×2k} : xᵀJx = J}; for k = n the group Sp(2n).

    J is [[0, I], [−I, 0]], in the size that fits: rows j and n + j are conjugate, as positions and momenta
    are. The tangent space is T_x = {JSx : S = Sᵀ}, of dimension 4nk − k(2k − 1). The metric is
    ⟨u, v⟩ = ½ tr(SᵀT) with the least of the symmetric matrices S, T for which u = JSx and v = JTx: the
    right-invariant one, and that of the quotient Sp(2n)/Sp(2(n − k)) (Bendokat and Zimmermann, 2021). As
    a formula, it is tr(uᵀ(I − ½JᵀPJ)v(xᵀx)⁻¹) with the projection P on the columns of x. It is the same at x
    and at UxV for every orthogonal symplectic U and symplectic V; so it measures changes relative to x, which
    may be as large as it likes.

    A coordinate is a pair of rows (a, b), a <= b, numbered along the rows of the strict upper triangle of
    2n rows, and then, from number n(2n − 1) on, the single rows. It acts from the left by
    expm(tJS), S = e_a e_bᵀ + e_b e_aᵀ or √2·e_a e_aᵀ:

    * the pair of conjugate rows (j, n + j) is multiplied by e^t and e^{−t} (a squeeze);
    * of any other pair each row is added, times t or −t, to the conjugate of the other (a shear);
    * a single row is added, times √2·t or −√2·t, to its conjugate.

    Two rows change, in O(k), and a shear is exact: nothing is a function of t. As rotations from the left are
    of Stiefel's canonical metric, the directions JSx are a Parseval frame at every point, and an orthonormal
    basis where k = n. The axes are the n pairs of conjugate rows; a coordinate turns one or two.

    Points have shape ``(..., 2n, 2k)`` with n >= k >= 1, float32 or float64. Maps are computed in float64
    for either, and none forms a matrix of 2n×2n where k is small. The set is unbounded, and what rounding
    leaves of xᵀJx − J grows with ‖x‖²: float32 holds the equation to about 3·10⁻⁷‖x‖², so to three
    digits up to a norm of 50. A stepsize that is too long for the largest x on the way runs away.

    Parameters
    ----------
    retraction : {"exponential", "cayley"}
        What :meth:`retr` does. "cayley", (I − JS/2)⁻¹(I + JS/2)x, agrees with the exponential to order
        1, and has poles: a step must be shorter than 2.

    Examples
    --------
    >>> import torch
    >>> from givens.manifolds import Coordinates, Symplectic
    >>> manifold = Symplectic()
    >>> x = manifold.origin(6, 4)
    >>> squeeze = Coordinates(manifold.number(x, 0, 3), disjoint=True)
    >>> y = manifold.move(x, squeeze, torch.tensor([0.5]))
    >>> round(float(y[0, 0].log()), 6), round(float(y[3, 2].log()), 6)
    (0.5, -0.5)
    """

    name = "Symplectic"
    ndim = 2
    reversible = False
    retractions = ("exponential", "cayley")

    # Points and tangent vectors

    def random(
        self,
        *size: int,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Points around the orthogonal ones: exponentials of normal vectors at a uniform one of these.

        The singular values are about 1/e to e. The distribution stays as it is under orthogonal symplectic
        matrices from either side.

        Parameters
        ----------
        *size : int
            Shape ``(..., 2n, 2k)``.
        dtype, device, generator
            As in :func:`torch.randn`.
        """
        shape, dtype = self._checked_size(*size, dtype=dtype)
        unitary = random_orthonormal(
            *shape[:-2],
            shape[-2] // 2,
            shape[-1] // 2,
            dtype=torch.complex128,
            device=device,
            generator=generator,
        )
        left, right = torch.cat([unitary.real, unitary.imag], -2), unitary.imag
        x = torch.cat([left, torch.cat([-right, unitary.real], -2)], -1)
        noise = torch.randn(shape, dtype=torch.float64, device=device, generator=generator)
        x = self.expmap(x, self.proju(x, noise / math.sqrt(4 * shape[-2])))
        return ManifoldTensor(x.to(dtype), manifold=self)

    def origin(
        self,
        *size: int,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        seed: int | None = None,
    ) -> Tensor:
        """The columns 0 … k − 1 and n … n + k − 1 of the identity; `seed` is ignored."""
        shape, dtype = self._checked_size(*size, dtype=dtype)
        half = torch.eye(shape[-2] // 2, shape[-1] // 2, dtype=dtype, device=device)
        x = torch.block_diag(half, half)
        return ManifoldTensor(x.expand(shape).clone(), manifold=self)

    def projx(self, x: Tensor) -> Tensor:
        """A point xA, with a matrix A that is the identity where x is a point.

        What the polar factor is for orthonormal columns, but not the nearest point, for which there is no
        closed form. With xᵀJx = OK, K symmetric and O orthogonal, A is K^{−1/2}T, and T the orthogonal
        matrix with OT = TJ that is nearest to the identity. Derivatives are exact at points, and
        approximate elsewhere.

        Raises
        ------
        ValueError
            Where xᵀJx is singular to working precision, as for columns that are linearly dependent:
            there is no such point.
        """
        self._assert_check_shape(x.shape, "x")
        self._assert_dtype(x.dtype)
        y = x.double()
        form = y.detach().mT @ _conjugate(y.detach())
        k = form.shape[-1] // 2
        values, z = torch.linalg.eigh(-1j * form)
        values, z = values[..., k:], z[..., k:]
        if not bool((values[..., 0] > 1e-14 * values[..., -1]).all()):
            raise ValueError(
                "projx: xᵀJx is singular, so no matrix xA is symplectic; are columns of x linearly dependent?"
            )
        # Where J has the eigenvectors (1, i), O has z: T takes these to those, with the best phases.
        u, _, vh = torch.linalg.svd(z[..., :k, :] - 1j * z[..., k:, :])
        z = (z / values.sqrt().unsqueeze(-2)) @ (u @ vh).mH
        y = y @ torch.cat([z.real, z.imag], -1) * math.sqrt(2)
        return _restored(_restored(y)).to(x.dtype)

    def proju(self, x: Tensor, u: Tensor) -> Tensor:
        """Projection u − JQ·skew(QᵀJᵀuR⁻¹)·R, with x = QR.

        Orthogonal in the metric, whose formula is one for all matrices.
        """
        q, r, c, _ = _coefficients(x, u)
        return (u.double() - _conjugate(q @ ((c - c.mT) / 2) @ r)).to(u.dtype)

    def egrad2rgrad(self, x: Tensor, u: Tensor) -> Tensor:
        """Riemannian gradient of the Euclidean gradient g: g xᵀx + Jx gᵀJx."""
        wide, g = x.double(), u.double()
        turned = _conjugate(wide)
        return (g @ (wide.mT @ wide) + turned @ (g.mT @ turned)).to(u.dtype)

    def inner(
        self, x: Tensor, u: Tensor, v: Tensor | None = None, *, keepdim: bool = False
    ) -> Tensor:
        """⟨u, v⟩ in the metric, shape ``(...)`` or ``(..., 1, 1)`` with `keepdim`; v = u by default."""
        a = _flat(x, u)
        b = a if v is None else _flat(x, v)
        return (a * b).sum((-2, -1), keepdim=keepdim).to(x.dtype)

    def norm(self, x: Tensor, u: Tensor, *, keepdim: bool = False) -> Tensor:
        """‖u‖ = √⟨u, u⟩, whose gradient at u = 0 is taken for 0."""
        return torch.linalg.matrix_norm(_flat(x, u), keepdim=keepdim).to(x.dtype)

    # Maps

    def expmap(self, x: Tensor, u: Tensor) -> Tensor:
        """Exp_x(u) = expm(Ω − Ωᵀ)·expm(Ωᵀ)·x with Ω = JS, the least generator for which u = Ωx.

        By exponentials of a real and of a complex matrix of 4k rows and columns (2k where k = n). Ω − Ωᵀ
        commutes with J, which stands for the imaginary unit.
        """
        wide = x.double()
        b, m, coefficients = _generator(wide, u)
        turned = _conjugate(b)
        products, form = b.mT @ b, b.mT @ turned
        size = coefficients.shape[-1]
        # ΩᵀB = −BM(BᵀJB) and (Ω − Ωᵀ)B = B·M(BᵀJB) + JB·M(BᵀB).
        change = expm1(-m @ form, skew=False)[..., :size] @ coefficients
        moved = change + torch.nn.functional.pad(coefficients, (0, 0, 0, b.shape[-1] - size))
        turn = expm1(torch.complex(m @ form, m @ products), skew=False)
        increment = b @ (change + turn.real @ moved) + turned @ (turn.imag @ moved)
        return (wide + increment).to(x.dtype)

    def retr(self, x: Tensor, u: Tensor) -> Tensor:
        """The retraction that the constructor names."""
        return self._cayley(x, u) if self.retraction == "cayley" else self.expmap(x, u)

    def logmap(self, x: Tensor, y: Tensor) -> Tensor:
        """Raise: no closed form is known.

        Raises
        ------
        NotImplementedError
            Always.
        """
        raise self._no_closed_form("logarithm")

    def dist(self, x: Tensor, y: Tensor, *, keepdim: bool = False) -> Tensor:
        """Raise: no closed form is known.

        Raises
        ------
        NotImplementedError
            Always.
        """
        raise self._no_closed_form("distance")

    def transp(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """Right translation JSy of v = JSx, with the least S.

        Linear, and it makes no vector longer; for k = n an isometry, though not Levi-Civita's.
        """
        q, _, c, rest = _coefficients(x, v)
        other = y.double()
        along = q.mT @ other
        s = q @ ((c + c.mT) / 2 @ along + rest.mT @ other) + rest @ along
        return _conjugate(s).to(v.dtype)

    # Coordinates

    def num_axes(self, x: Tensor) -> int:
        """Return n, the number of pairs of conjugate rows."""
        return x.shape[-2] // 2

    def num_coordinates(self, x: Tensor) -> int:
        """Return n(2n + 1), the dimension of Sp(2n)."""
        return x.shape[-2] * (x.shape[-2] + 1) // 2

    def num_disjoint(self, x: Tensor) -> int:
        """Return ⌈n/2⌉: those of two axes, and one of a single axis where one is left over."""
        return (self.num_axes(x) + 1) // 2

    def axes(self, x: Tensor, index: Tensor) -> Tensor:
        """Return the pairs of conjugate rows that coordinates turn, shape ``(..., k, 2)``; one twice."""
        return torch.stack(number_to_entry(index, x.shape[-2]), -1) % self.num_axes(x)

    def number(self, x: Tensor, a: Tensor | int, b: Tensor | int) -> Tensor:
        """Return the numbers of the rows (a, b), a <= b; single rows give shape ``(1,)``."""
        first, second = (torch.atleast_1d(torch.as_tensor(row, device=x.device)) for row in (a, b))
        return entry_to_number(first, second, x.shape[-2])

    def direction(self, x: Tensor, index: Tensor) -> Tensor:
        """Return the directions as dense matrices, shape ``(*batch, k, 2n, 2k)``."""
        index = index.expand(*x.shape[:-2], index.shape[-1])
        one = torch.ones(index.shape, dtype=torch.float64, device=x.device)
        copies = x.unsqueeze(-3).expand(*index.shape, *x.shape[-2:])
        return self._along(copies, index.unsqueeze(-1), one.unsqueeze(-1)).to(x.dtype)

    def derivatives(self, x: Tensor, egrad: Tensor, block: CoordinateBlock) -> Tensor:
        """Return the partial derivatives, by two products of a row of x and one of the gradient: O(k) each.

        For `All` they come from one product of 2n×2k matrices.
        """
        self._check_pair(x, egrad, "egrad")
        self.check_block(x, block)
        index = self._numbers(x, block)
        if isinstance(block, Coordinates):
            width = max(1, PANEL // x.shape[-1])
            return torch.cat([self._slopes(x, egrad, i) for i in index.split(width, -1)], -1)
        a, b = number_to_entry(index, x.shape[-2])
        products = x @ _conjugate(egrad).mT
        slopes = -(products + products.mT).flatten(-2).gather(-1, a * x.shape[-2] + b)
        return torch.where(a == b, slopes * math.sqrt(0.5), slopes)

    def move_(self, x: Tensor, block: CoordinateBlock, t: Tensor) -> Tensor:
        """Follow the coordinates of a block for the times t, in place.

        Disjoint `Coordinates` change two rows each, O(k), without waiting for an accelerator. Overlapping
        ones, and `All`, are the exponential of Σ t_i f_i.
        """
        self._check_move(x, block, t)
        index = self._numbers(x, block)
        t = t.double().expand(index.shape)
        if not isinstance(block, Coordinates) or not (block.disjoint or index.shape[-1] == 1):
            return x.copy_(self.expmap(x, self._along(x.double(), index, t)))
        a, b, to_a, to_b, of_b, of_a = self._shears(x, index, t)
        squeeze = to_a == b
        of_b, of_a = (torch.where(squeeze, torch.expm1(s), s).unsqueeze(-2) for s in (of_b, of_a))
        first, second, at_a, at_b = (take(x.mT, row).double() for row in (a, b, to_a, to_b))
        values = torch.cat([at_a + of_b * second, at_b + of_a * first], -1)
        put_(x.mT, torch.cat([to_a, to_b], -1), values.to(x.dtype))
        return x

    def restore_(self, x: Tensor) -> Tensor:
        """One Newton step x ← x + ½ xJ(xᵀJx − J), in place: quadratic convergence, O(nk²).

        A point from which rounding has left less than a digit of the equation stays as it is.
        """
        return x.copy_(_restored(x.double()))

    def _slopes(self, x: Tensor, egrad: Tensor, index: Tensor) -> Tensor:
        """Derivatives along a few coordinates, shape ``(*batch, k)``."""
        one = torch.ones((), dtype=x.dtype, device=x.device)
        a, b, to_a, to_b, of_b, of_a = self._shears(x, index, one)
        slopes = of_b * (take(egrad.mT, to_a) * take(x.mT, b)).sum(-2)
        other = of_a * (take(egrad.mT, to_b) * take(x.mT, a)).sum(-2)
        return torch.where(a == b, slopes, slopes + other)

    def _shears(
        self, x: Tensor, index: Tensor, t: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Rows a, b, their conjugates, and what of b is added to the one of a, and of a to the one of b."""
        n = self.num_axes(x)
        a, b = number_to_entry(index, 2 * n)
        t = torch.where(a == b, t * math.sqrt(2), t)
        of_b, of_a = torch.where(a < n, -t, t), torch.where(b < n, -t, t)
        return a, b, (a + n) % (2 * n), (b + n) % (2 * n), of_b, of_a

    def _along(self, x: Tensor, index: Tensor, t: Tensor) -> Tensor:
        """The tangent vector Σ t_i f_i, in float64; numbers that occur twice add up."""
        rows = x.mT
        u = torch.zeros_like(rows, dtype=torch.float64, memory_format=torch.contiguous_format)
        width = max(1, PANEL // x.shape[-1])
        for i, s in zip(index.split(width, -1), t.split(width, -1), strict=True):
            a, b, to_a, to_b, of_b, of_a = self._shears(x, i, s)
            u.scatter_add_(-1, column_index(u, to_a), of_b.unsqueeze(-2) * take(rows, b))
            of_a = torch.where(a == b, 0.0, of_a)
            u.scatter_add_(-1, column_index(u, to_b), of_a.unsqueeze(-2) * take(rows, a))
        return u.mT

    # Checks

    def _check_shape(self, shape: tuple[int, ...], name: str) -> tuple[bool, str | None]:
        if len(shape) >= 2 and shape[-2] >= shape[-1] >= 2 and not any(d % 2 for d in shape[-2:]):
            return True, None
        return False, (
            f"'{name}' has shape {tuple(shape)}; {self.name} expects (..., 2n, 2k) with n >= k >= 1"
        )

    def _check_point_on_manifold(
        self, x: Tensor, *, atol: float = 1e-5, rtol: float = 1e-5
    ) -> tuple[bool, str | None]:
        if x.dtype not in self.dtypes:
            return False, f"it is {x.dtype}; {self.name} works in {self._dtype_names}"
        x = x.detach().double()
        error = _defect(x).abs()
        lengths = torch.linalg.vector_norm(x, dim=-2)
        allowed = atol + rtol * lengths.unsqueeze(-1) * lengths.unsqueeze(-2)
        if bool((error <= allowed).all()):
            return True, None
        return False, (
            f"max |xᵀJx − J| is {float(error.max()):.1e}, with columns of a length up to "
            f"{float(lengths.max()):.1e}; {self.name}().projx(x) gives a point"
        )

    def _check_vector_on_tangent(
        self, x: Tensor, u: Tensor, *, atol: float = 1e-5, rtol: float = 1e-5
    ) -> tuple[bool, str | None]:
        x, u = x.detach().double(), u.detach().double()
        form = x.mT @ _conjugate(u)
        error = (form - form.mT).abs()
        lengths, speeds = (torch.linalg.vector_norm(a, dim=-2) for a in (x, u))
        products = lengths.unsqueeze(-1) * speeds.unsqueeze(-2)
        if bool((error <= atol + rtol * (products + products.mT)).all()):
            return True, None
        return False, (
            f"max |xᵀJu + uᵀJx| is {float(error.max()):.1e}; "
            f"{self.name}().proju(x, u) gives a tangent vector"
        )

    # Parts

    @staticmethod
    def _cayley(x: Tensor, u: Tensor) -> Tensor:
        """(I − Ω/2)⁻¹(I + Ω/2)x = x + JBM(I − BᵀJBM/2)⁻¹Bᵀx, by a solve of 4k rows."""
        wide = x.double()
        b, m, _ = _generator(wide, u)
        left = _conjugate(b) @ m
        identity = torch.eye(b.shape[-1], dtype=b.dtype, device=b.device)
        step = torch.linalg.solve_ex(identity - b.mT @ left / 2, b.mT @ wide).result
        return (wide + left @ step).to(x.dtype)

    @staticmethod
    def _no_closed_form(what: str) -> NotImplementedError:
        return NotImplementedError(
            f"the {what} of symplectic matrices has no closed form; torch.linalg.matrix_norm(x - y) is "
            "the distance in the space around them"
        )


def _conjugate(x: Tensor) -> Tensor:
    """Jx: the rows of the second half, and minus those of the first."""
    first, second = x.chunk(2, dim=-2)
    return torch.cat([second, -first], -2)


def _defect(x: Tensor) -> Tensor:
    """xᵀJx − J."""
    form = x.mT @ _conjugate(x)
    return form - _conjugate(torch.eye(x.shape[-1], dtype=x.dtype, device=x.device))


def _restored(x: Tensor) -> Tensor:
    defect = _defect(x)
    small = torch.linalg.matrix_norm(defect.detach(), keepdim=True) < 0.5
    return torch.where(small, x + x @ _conjugate(defect / 2), x)


def _coefficients(x: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Q and R with x = QR, and C and K of JᵀuR⁻¹ = QC + K, K normal to Q; u is tangent where C is symmetric.

    Then u = JSx with S = QCQᵀ + KQᵀ + QKᵀ, and no other S is as small.
    """
    q, r = torch.linalg.qr(x.double())
    w = torch.linalg.solve_triangular(r, -_conjugate(u.double()), upper=True, left=False)
    c = q.mT @ w
    return q, r, c, w - q @ c


def _flat(x: Tensor, u: Tensor) -> Tensor:
    """A matrix that is as long, as an array, as u is in the metric: linear in it."""
    _, _, c, rest = _coefficients(x, u)
    return torch.cat([c * math.sqrt(0.5), rest], -2)


def _generator(x: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """B, M and R with S = BMBᵀ, of u = JSx, and x = B[R; 0].

    B is [Q, K/‖K‖], the norm being taken for a constant, so that M is as small as u and the Gram matrices
    of B are at most 1; for square x it is Q.
    """
    q, r, c, rest = _coefficients(x, u)
    c = (c + c.mT) / 2
    if x.shape[-2] == x.shape[-1]:
        return q, c, r
    size = torch.linalg.matrix_norm(rest.detach(), keepdim=True)
    size = torch.where(size > 0, size, 1.0)
    unit = torch.eye(c.shape[-1], dtype=c.dtype, device=c.device) * size
    m = torch.cat([torch.cat([c, unit], -1), torch.cat([unit, torch.zeros_like(unit)], -1)], -2)
    return torch.cat([q, rest / size], -1), m, r
