"""The unitary group and the special unitary group."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from geoopt import ManifoldTensor
from torch import Tensor

from .blocks import CoordinateBlock, Coordinates, Groups
from .columns import PANEL, column_index, put_, take, take_groups
from .exponential import expm1
from .logarithm import logarithm
from .matrix_group import MatrixGroup
from .orthonormal import polar_factor, random_orthonormal
from .pairs import number_to_pair, pair_to_number
from .retractions import RETRACTIONS
from .rotations import entries, reduced

__all__ = ["SpecialUnitaryGroup", "UnitaryGroup"]


class UnitaryGroup(MatrixGroup):
    r"""The unitary group U(d) = {W ∈ ℂ^{d×d} : WᴴW = I}, with the metric ⟨ξ, ζ⟩ = Re tr(ξᴴζ).

    The tangent space is T_W = {WΩ : Ω = −Ωᴴ}, a real vector space of dimension D = d². It has the
    orthonormal basis W H_i, whose coordinates are numbered in this order (pairs j < l along the rows of
    the strict upper triangle):

    * d(d − 1)/2 real rotations, H = (E_jl − E_lj)/√2;
    * d(d − 1)/2 imaginary rotations, H = i(E_jl + E_lj)/√2;
    * d phases, H = iE_jj.

    The axes are the columns; a phase turns one and names it twice. Moving along a coordinate for the
    time t multiplies by expm(tH), which changes two columns, or one: O(d).

    Points have shape ``(..., d, d)`` with d >= 1, complex64 or complex128; derivatives and times of
    coordinates are real. The Euclidean gradient of a real function is torch's, ∂f/∂Re W + i ∂f/∂Im W, so
    that df = Re tr(egradᴴ dW).

    The times and derivatives of `Groups` are skew-Hermitian matrices T, the motion expm(T/√2): for a < b
    the real and imaginary parts of T_ab belong to the two rotations, and T_aa/(i√2) to the phase.

    Parameters
    ----------
    retraction : {"exponential", "cayley", "qr", "polar"}
        What :meth:`retr` does; see :mod:`givens.manifolds.retractions`.

    Examples
    --------
    >>> import torch
    >>> from givens.manifolds import Coordinates, UnitaryGroup
    >>> manifold = UnitaryGroup()
    >>> x = manifold.random(2, 2, dtype=torch.complex128)
    >>> phase = Coordinates(torch.tensor([3]), disjoint=True)  # the phase of column 1
    >>> y = manifold.move(x, phase, torch.tensor([torch.pi / 2], dtype=torch.float64))
    >>> torch.allclose(y[:, 1], 1j * x[:, 1])
    True
    """

    name = "UnitaryGroup"
    dtypes = (torch.complex64, torch.complex128)
    retractions: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
        name: retraction for name, retraction in RETRACTIONS.items() if name != "givens"
    }
    least_size = 1
    every_pair = True

    # Points

    def random(
        self,
        *size: int,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Points from the Haar measure.

        Parameters
        ----------
        *size : int
            Shape ``(..., d, d)``.
        dtype, device, generator
            As in :func:`torch.randn`; by default the complex counterpart of torch's default type.

        Returns
        -------
        ManifoldTensor
            Unitary to the last digit.
        """
        shape, dtype = self._checked_size(*size, dtype=dtype)
        q = random_orthonormal(*shape, dtype=dtype, device=device, generator=generator)
        return ManifoldTensor(q, manifold=self)

    # Coordinates

    def num_axes(self, x: Tensor) -> int:
        """Return d, the number of columns."""
        return x.shape[-1]

    def num_coordinates(self, x: Tensor) -> int:
        """Return d²."""
        return x.shape[-1] ** 2

    def axes(self, x: Tensor, index: Tensor) -> Tensor:
        """Return the columns (j, l) that coordinates turn, shape ``(..., k, 2)``; j = l for a phase."""
        d = x.shape[-1]
        kind, rest = _kind(index, d)
        pair = torch.stack(number_to_pair(rest.clamp(max=d * (d - 1) // 2 - 1), d), -1)
        return torch.where((kind == 2).unsqueeze(-1), rest.unsqueeze(-1), pair)

    def direction(self, x: Tensor, index: Tensor) -> Tensor:
        """Return the directions x·H_i as dense vectors, shape ``(*batch, k, d, d)``."""
        one = torch.ones((), dtype=torch.float64, device=x.device)
        return x.unsqueeze(-3) @ self._generator(x.unsqueeze(-3), index.unsqueeze(-1), one)

    def derivatives(self, x: Tensor, egrad: Tensor, block: CoordinateBlock) -> Tensor:
        """Return the partial derivatives Re tr(H_iᴴ xᴴ egrad).

        Real for `Coordinates` (O(d) each: no d×d product, and bounded memory for any number of them)
        and `All` (one d×d product); skew-Hermitian matrices for `Groups` (2·r·d² complex flops).
        """
        self._check_pair(x, egrad, "egrad")
        self.check_block(x, block)
        if isinstance(block, Coordinates):
            turns = self._turns(x, block.index)
            width = max(1, PANEL // x.shape[-1])
            parts = zip(*(field.split(width, -1) for field in turns), strict=True)
            return torch.cat([_slopes(x, egrad, _Turns(*part)) for part in parts], -1)
        if isinstance(block, Groups):
            a = take_groups(x, block.axes).mH @ take_groups(egrad, block.axes)
            return self._algebra(a) * math.sqrt(2)
        a = x.mH @ egrad
        level = a.diagonal(dim1=-2, dim2=-1).imag
        j, l = torch.triu_indices(x.shape[-1], x.shape[-1], offset=1, device=x.device)
        of_pairs = self._of_pairs((a - a.mH) / math.sqrt(2), level, 0)[..., j, l]
        return torch.cat([of_pairs.flatten(-2), self._of_columns(level)], -1)

    def steepest(self, x: Tensor, egrad: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return the k coordinates of the largest ``|⟨grad f, f_i⟩|``, and their derivatives.

        In panels of rows of xᴴg − gᴴx, g being the gradient: no d×d matrix is kept.
        """
        self._check_pair(x, egrad, "egrad")
        self._check_count(x, k)
        d = x.shape[-1]
        level = (x.conj() * egrad).sum(-2).imag
        best = self._of_columns(level)
        total = self.num_coordinates(x)
        index = torch.arange(total - best.shape[-1], total, device=x.device).expand(best.shape)
        rows = max(1, PANEL // d)
        for top in range(0, d - 1, rows):
            bottom = min(top + rows, d - 1)
            # Rows top…bottom of the strict upper triangle, from column top on.
            panel = x[..., top:bottom].mH @ egrad[..., top:]
            panel = panel.sub_(egrad[..., top:bottom].mH @ x[..., top:]).mul_(1 / math.sqrt(2))
            slopes = self._of_pairs(panel, level, top)
            kinds, height, length = slopes.shape[-3:]
            lower = torch.ones(height, length, dtype=torch.bool, device=x.device).tril_()
            count = kinds * (height * length - height * (height + 1) // 2)
            place = slopes.abs().masked_fill_(lower, -1.0).flatten(-3).topk(min(k, count)).indices
            best = torch.cat([best, slopes.flatten(-3).gather(-1, place)], -1)
            kind, place = _divmod(place, height * length)
            row, column = _divmod(place, length)
            numbers = kind * (d * (d - 1) // 2) + pair_to_number(top + row, top + column, d)
            index = torch.cat([index, numbers], -1)
            order = best.abs().topk(min(k, best.shape[-1])).indices
            best, index = best.gather(-1, order), index.gather(-1, order)
        order = best.abs().topk(k).indices
        return index.gather(-1, order), best.gather(-1, order)

    def move_(self, x: Tensor, block: CoordinateBlock, t: Tensor) -> Tensor:
        """Follow the coordinates of a block for the times t, in place: x ← x·expm(Σ t_i H_i).

        Disjoint `Coordinates` turn their columns, O(d) each, without waiting for an accelerator;
        overlapping ones, and `All`, are a dense exponential. `Groups` are batched r×r exponentials and
        one batched product, 2·r·d² complex flops each.
        """
        self._check_move(x, block, t)
        if isinstance(block, Groups):
            columns = take_groups(x, block.axes)
            columns = columns + columns @ expm1(self._algebra(t.to(x.dtype)) / math.sqrt(2))
            place = block.axes.flatten(-2).expand(*x.shape[:-2], -1)
            return put_(x, place, columns.transpose(-3, -2).flatten(-2))
        if t.is_complex():
            raise TypeError(f"times are {t.dtype}; expected float32 or float64")
        if isinstance(block, Coordinates) and (block.disjoint or block.index.shape[-1] == 1):
            return _turn_columns_(x, self._turns(x, block.index), t)
        return x.add_(x @ expm1(self._generator(x, self._numbers(x, block), t)))

    def group_coordinates(self, x: Tensor, block: Groups) -> Tensor:
        """Return the numbers of the r² coordinates inside groups: both kinds of rotations, and phases."""
        pairs = x.shape[-1] * (x.shape[-1] - 1) // 2
        a, b = _places(block.axes.shape[-1], x.device)
        pair = pair_to_number(block.axes[..., a], block.axes[..., b], x.shape[-1])
        return torch.cat([pair, pairs + pair, 2 * pairs + block.axes], -1)

    def group_values(self, x: Tensor, matrices: Tensor) -> Tensor:
        """Return the real derivatives in the skew-Hermitian matrices of groups, r² for each."""
        upper = matrices[(..., *_places(matrices.shape[-1], x.device))]
        level = matrices.diagonal(dim1=-2, dim2=-1).imag / math.sqrt(2)
        return torch.cat([upper.real, upper.imag, level], -1)

    def group_matrices(self, x: Tensor, values: Tensor, r: int) -> Tensor:
        """Return the skew-Hermitian matrices of groups in which coordinates have these values."""
        pairs = r * (r - 1) // 2
        real, imaginary, level = values.split([pairs, pairs, values.shape[-1] - 2 * pairs], -1)
        upper = torch.zeros(*values.shape[:-1], r, r, dtype=x.dtype, device=x.device)
        upper[(..., *_places(r, x.device))] = torch.complex(real, imaginary)
        return upper - upper.mH + torch.diag_embed(1j * math.sqrt(2) * level)

    # Parts

    def _phase_radians(self, d: int) -> float:
        """The angle by which a unit of time turns the column, or the two, of a phase."""
        return 1.0

    def _of_pairs(self, panel: Tensor, level: Tensor, top: int) -> Tensor:
        """Derivatives of the coordinates of pairs, from rows of (a − aᴴ)/√2 and the diagonal of Im a.

        The rows start at `top`, the columns, too; the kinds are in front of them.
        """
        return torch.stack([panel.real, panel.imag], -3)

    def _of_columns(self, level: Tensor) -> Tensor:
        """Derivatives of the coordinates of single columns."""
        return level

    def _turns(self, x: Tensor, index: Tensor) -> _Turns:
        """What the coordinates do, with the batch of `x`."""
        d = x.shape[-1]
        batch = torch.broadcast_shapes(x.shape[:-2], index.shape[:-1])
        index = index.expand(*batch, index.shape[-1])
        kind, _ = _kind(index, d)
        j, l = self.axes(x, index).unbind(-1)
        phase = kind == 2
        return _Turns(
            j,
            l,
            torch.where(phase, j, l),
            torch.where(phase, l, j),
            torch.where(kind == 0, 1.0, -1j).to(x.dtype),
            torch.where(kind == 0, 1.0, torch.where(phase & (j != l), -1j, 1j)).to(x.dtype),
            torch.full_like(index, 1 / math.sqrt(2), dtype=torch.float64).masked_fill_(
                phase, self._phase_radians(d)
            ),
        )

    def _generator(self, x: Tensor, index: Tensor, t: Tensor) -> Tensor:
        """The skew-Hermitian matrices Σ t_i H_i; numbers that occur twice add up."""
        d = x.shape[-1]
        turns = self._turns(x, index)
        t = (t * turns.weight).to(x.dtype)
        a = torch.zeros(*t.shape[:-1], d * d, dtype=x.dtype, device=x.device)
        a.scatter_add_(-1, turns.partner_j * d + turns.j, -turns.unit_j * t)
        a.scatter_add_(-1, turns.partner_l * d + turns.l, turns.unit_l * t)
        return a.unflatten(-1, (d, d))


class SpecialUnitaryGroup(UnitaryGroup):
    r"""The special unitary group SU(d) = {W ∈ ℂ^{d×d} : WᴴW = I, det W = 1}, a subgroup of U(d).

    The tangent space is T_W = {WΩ : Ω = −Ωᴴ, tr Ω = 0}, of dimension d² − 1. Its coordinates are
    D = 3d(d − 1)/2, three for every pair of columns (j, l), j < l, numbered in this order (pairs along the
    rows of the strict upper triangle):

    * real rotations, H = (E_jl − E_lj)/√2;
    * imaginary rotations, H = i(E_jl + E_lj)/√2;
    * relative phases, H = i(E_jj − E_ll)/√d.

    The first two kinds are orthonormal. The relative phases are more than the dimension of the diagonal
    matrices, but with this factor a Parseval frame of them, so Σ⟨ξ, f_i⟩² = ‖ξ‖² for all tangent ξ.

    Points have shape ``(..., d, d)`` with d >= 2, complex64 or complex128; gradients and the matrices of
    `Groups` as on :class:`UnitaryGroup`, the latter without their trace: a group turns by SU(r).

    Parameters
    ----------
    retraction : {"exponential", "cayley", "qr", "polar"}
        What :meth:`retr` does: that of U(d), made of determinant 1 by a common phase, which changes
        none of their orders.
    """

    name = "SpecialUnitaryGroup"
    least_size = 2

    # Points

    def random(
        self,
        *size: int,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Points from the Haar measure: those of U(d), with the determinant taken from a column.

        Parameters
        ----------
        *size : int
            Shape ``(..., d, d)``.
        dtype, device, generator
            As in :func:`torch.randn`; by default the complex counterpart of torch's default type.

        Returns
        -------
        ManifoldTensor
            Unitary and of determinant 1 to the last digit.
        """
        shape, dtype = self._checked_size(*size, dtype=dtype)
        q = random_orthonormal(*shape, dtype=torch.complex128, device=device, generator=generator)
        q[..., 0] *= torch.linalg.det(q).conj().unsqueeze(-1)
        return ManifoldTensor(q.to(dtype), manifold=self)

    def projx(self, x: Tensor) -> Tensor:
        """Nearest unitary matrix, times the number nearest to 1 that makes its determinant 1.

        The polar factor, divided by the d-th root of its determinant. It is not the nearest point of
        SU(d), which has no closed form, but farther than that by at most what the division moves.
        """
        self._assert_dtype(x.dtype)
        y = _special(polar_factor(x))
        # The last digits have no derivative of their own.
        return y + (self.restore_(y.detach().clone()) - y.detach())

    # Maps

    def logmap(self, x: Tensor, y: Tensor) -> Tensor:
        """Log_x(y): the shortest tangent vector u with Exp_x(u) = y.

        It is x times a logarithm of xᴴy of trace 0. Where the angles of xᴴy in (−π, π] add up to 2πk, not
        to 0, the principal logarithm is none of su(d): in the shortest one the k angles that are farthest
        go the other way round. The cut locus is where there is a choice: the k-th and the next angle
        coincide, or for k = 0 an eigenvalue −1; one of the shortest vectors is returned there.
        """
        return super().logmap(x, y)

    def _retract(self, x: Tensor, a: Tensor) -> Tensor:
        y = super()._retract(x, a)
        return y if self.retraction == "exponential" else _special(y)

    def restore_(self, x: Tensor) -> Tensor:
        """One Newton–Schulz step, and the phase of the determinant taken from the first column, in place.

        The determinant is taken in complex128, to know its phase to the last digit of complex64.
        """
        super().restore_(x)
        angle = torch.linalg.det(x.to(torch.complex128)).angle().unsqueeze(-1)
        first = torch.zeros_like(angle, dtype=torch.int64)
        return _turn_columns_(x, _phase(x, first), -angle)

    # Coordinates

    def num_coordinates(self, x: Tensor) -> int:
        """Return 3d(d − 1)/2."""
        return 3 * x.shape[-1] * (x.shape[-1] - 1) // 2

    def axes(self, x: Tensor, index: Tensor) -> Tensor:
        """Return the pairs of columns (j, l), j < l, shape ``(..., k, 2)``."""
        _, rest = _kind(index, x.shape[-1])
        return torch.stack(number_to_pair(rest, x.shape[-1]), -1)

    def group_coordinates(self, x: Tensor, block: Groups) -> Tensor:
        """Return the numbers of the coordinates inside groups, three for every pair."""
        pairs = x.shape[-1] * (x.shape[-1] - 1) // 2
        a, b = _places(block.axes.shape[-1], x.device)
        pair = pair_to_number(block.axes[..., a], block.axes[..., b], x.shape[-1])
        return torch.cat([pair, pairs + pair, 2 * pairs + pair], -1)

    def group_values(self, x: Tensor, matrices: Tensor) -> Tensor:
        """Return the real derivatives in the skew-Hermitian matrices of groups, three for every pair."""
        r = matrices.shape[-1]
        rotations, level = super().group_values(x, matrices).split([r * (r - 1), r], -1)
        a, b = _places(r, x.device)
        return torch.cat([rotations, (level[..., a] - level[..., b]) / math.sqrt(x.shape[-1])], -1)

    def group_matrices(self, x: Tensor, values: Tensor, r: int) -> Tensor:
        """Return the skew-Hermitian matrices of groups in which coordinates have these values.

        The relative phases are a Parseval frame for groups of all d columns, and for smaller ones when
        multiplied by √(d/r): here they are taken so, which makes this the inverse of :meth:`group_values`.
        """
        rotations, relative = values.split([r * (r - 1), r * (r - 1) // 2], -1)
        a, b = _places(r, x.device)
        relative = relative * (math.sqrt(x.shape[-1]) / r)
        level = values.new_zeros(*values.shape[:-1], r).index_add_(-1, a, relative)
        level.index_add_(-1, b, relative, alpha=-1)
        return super().group_matrices(x, torch.cat([rotations, level], -1), r)

    # Parts

    def _phase_radians(self, d: int) -> float:
        return 1 / math.sqrt(d)

    def _of_pairs(self, panel: Tensor, level: Tensor, top: int) -> Tensor:
        rotations = super()._of_pairs(panel, level, top)
        height = panel.shape[-2]
        level = level / math.sqrt(level.shape[-1])
        relative = level[..., top : top + height, None] - level[..., None, top:]
        return torch.cat([rotations, relative.unsqueeze(-3)], -3)

    def _of_columns(self, level: Tensor) -> Tensor:
        return level[..., :0]

    def _algebra(self, a: Tensor) -> Tensor:
        """The skew part, without its trace."""
        a = super()._algebra(a)
        trace = a.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
        identity = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
        return a - trace / a.shape[-1] * identity

    def _log(self, x: Tensor, y: Tensor) -> Tensor:
        return self._algebra(logarithm(x.mH @ y, traceless=True))

    # Checks

    def _check_point_on_manifold(
        self, x: Tensor, *, atol: float = 1e-5, rtol: float = 1e-5
    ) -> tuple[bool, str | None]:
        ok, reason = super()._check_point_on_manifold(x, atol=atol, rtol=rtol)
        if not ok or x.numel() == 0:
            return ok, reason
        error = float((torch.linalg.det(x.detach().to(torch.complex128)) - 1).abs().max())
        if error <= atol + rtol:
            return True, None
        return False, (
            f"|det x − 1| is {error:.1e}, allowed {atol + rtol:.1e}; "
            f"{self.name}().projx(x) gives a point nearby"
        )

    def _check_vector_on_tangent(
        self, x: Tensor, u: Tensor, *, atol: float = 1e-5, rtol: float = 1e-5
    ) -> tuple[bool, str | None]:
        ok, reason = super()._check_vector_on_tangent(x, u, atol=atol, rtol=rtol)
        if not ok:
            return ok, reason
        trace = (x.detach().conj() * u.detach()).sum((-2, -1)).abs()
        if bool((trace <= atol + rtol * u.detach().abs().amax((-2, -1))).all()):
            return True, None
        return False, (
            f"|tr xᴴu| is {float(trace.max()):.1e}; {self.name}().proju(x, u) gives the nearest "
            "tangent vector"
        )


class _Turns(NamedTuple):
    """What coordinates do to columns, each field of shape ``(..., k)``.

    H puts −unit_j times the column partner_j in the place of j, and unit_l times the column partner_l
    in that of l, times radians: the partner is the other column for a rotation, the column itself
    for a phase.
    """

    j: Tensor
    l: Tensor
    partner_j: Tensor
    partner_l: Tensor
    unit_j: Tensor
    unit_l: Tensor
    radians: Tensor

    @property
    def weight(self) -> Tensor:
        """The radians, by halves where both places are one."""
        return torch.where(self.j == self.l, self.radians / 2, self.radians)

    def partners(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """The partners, with their units, of columns `first` and `second` in the places j and l."""
        rotation = (self.j != self.partner_j).unsqueeze(-2)
        of_first = torch.where(rotation, second, first) * self.unit_j.unsqueeze(-2)
        return of_first, torch.where(rotation, first, second) * self.unit_l.unsqueeze(-2)


def _phase(x: Tensor, j: Tensor) -> _Turns:
    """The phases of columns."""
    i = torch.full(j.shape, 1j, dtype=x.dtype, device=x.device)
    return _Turns(j, j, j, j, -i, i, torch.ones_like(j, dtype=torch.float64))


def _turn_columns_(x: Tensor, turns: _Turns, t: Tensor) -> Tensor:
    """Follow the coordinates of disjoint columns for the times t, in place: x ← x·expm(Σ t_i H_i).

    On its columns every H is, times the radians, a square root of −1: it takes (w_j, w_l) to (−p_j, p_l),
    p being the partners with their units. So the motion is a rotation, computed as
    :func:`givens.manifolds.rotations.rotate_columns_` does: exact quarter turns, then the
    increments −s(p_j + τ w_j) and s(p_l − τ w_l), with s = sin φ and τ = tan(φ/2). A phase writes its
    column twice, with the same bits.
    """
    angle, entry = t.double() * turns.radians, entries(x.real, turns.j)
    turn, sine, tangent = (part.unsqueeze(-2) for part in reduced(angle, x.real.dtype, entry))
    place_j, place_l = column_index(x, turns.j), column_index(x, turns.l)
    first, second = x.gather(-1, place_j), x.gather(-1, place_l)
    of_first, of_second = turns.partners(first, second)
    odd = turn.remainder(2) == 1
    sign_j = torch.where((turn == 1) | (turn == 2), -1.0, 1.0).to(sine.dtype)
    sign_l = torch.where(turn >= 2, -1.0, 1.0).to(sine.dtype)
    first = torch.where(odd, of_first, first) * sign_j
    second = torch.where(odd, of_second, second) * sign_l
    of_first, of_second = turns.partners(first, second)
    x.scatter_(-1, place_j, first - sine * (of_first + tangent * first))
    return x.scatter_(-1, place_l, second + sine * (of_second - tangent * second))


def _slopes(x: Tensor, egrad: Tensor, turns: _Turns) -> Tensor:
    """Derivatives of coordinates, from four columns each."""
    of_j = (take(x, turns.partner_j).conj() * take(egrad, turns.j)).sum(-2)
    of_l = (take(x, turns.partner_l).conj() * take(egrad, turns.l)).sum(-2)
    slope = (turns.unit_l.conj() * of_l - turns.unit_j.conj() * of_j).real
    return slope * turns.weight.to(slope.dtype)


def _special(x: Tensor) -> Tensor:
    """Unitary matrices divided by the d-th root, nearest to 1, of their determinant."""
    angle = torch.linalg.det(x).angle() / x.shape[-1]
    return x * torch.exp(-1j * angle)[..., None, None]


def _kind(index: Tensor, d: int) -> tuple[Tensor, Tensor]:
    """Kind of coordinates, 0 real, 1 imaginary, 2 phase, and their number within it."""
    pairs = d * (d - 1) // 2
    kind = (index >= pairs).long() + (index >= 2 * pairs).long()
    return kind, index - kind * pairs


def _places(r: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The pairs of places in a group of r, along the rows of the strict upper triangle."""
    a, b = torch.triu_indices(r, r, offset=1, device=device)
    return a, b


def _divmod(a: Tensor, b: int) -> tuple[Tensor, Tensor]:
    """Quotient and remainder of whole numbers."""
    quotient = torch.div(a, b, rounding_mode="floor")
    return quotient, a - quotient * b
