"""Coordinates that are rotations of two axes: those of O(d), Stiefel, the sphere and their kin."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable

import torch
from torch import Tensor

from .backend import kernels_for
from .base import CoordinateManifold
from .blocks import CoordinateBlock, Coordinates, Groups, once
from .columns import PANEL, column_index, take
from .exponential import expm1
from .group_rotations import group_slopes, turn_groups_
from .pairs import number_to_pair, pair_to_number
from .rotations import rotate_columns_, slopes
from .rules import GradientRule

__all__ = ["RotationCoordinates"]


class RotationCoordinates(CoordinateManifold):
    """Geometry whose coordinates rotate two of n axes, in the plane that they span.

    A subclass says where the axes of a point are: :meth:`columns` shows it as a matrix that has one
    column for each. Coordinate i is the pair of axes (j, l), j < l, numbered along the rows of the
    strict upper triangle (``givens.manifolds.pairs``); moving along it for the time t rotates the
    columns j and l by the angle ``radians * t``, and its direction f_i puts the column j in the place
    l and minus the column l in the place j, times ``radians``.

    Rotations of disjoint pairs cost O(m) each, m being the height of a column. Pairs that share an
    axis follow the manifold's own exponential, Exp_x(Σ t_i f_i). Groups of r axes turn by batched
    r×r exponentials, 4·r·m·n flops.

    Attributes
    ----------
    radians : float
        Angle by which a unit of time turns the two axes.
    """

    radians: float = 1.0
    every_pair = True
    compact = True

    @property
    def period(self) -> float | None:  # type: ignore[override]
        """Time of one turn, 2π/radians."""
        return 2 * math.pi / self.radians

    @abc.abstractmethod
    def columns(self, x: Tensor) -> Tensor:
        """Return a view of points, shape ``(*batch, m, n)``, whose n columns are the axes."""

    def num_axes(self, x: Tensor) -> int:
        """Return n, the number of axes."""
        return self.columns(x).shape[-1]

    def num_coordinates(self, x: Tensor) -> int:
        """Return n(n − 1)/2, the number of pairs of axes."""
        n = self.num_axes(x)
        return n * (n - 1) // 2

    def axes(self, x: Tensor, index: Tensor) -> Tensor:
        """Return the pairs (j, l), j < l, of coordinates: shape ``(..., k, 2)``."""
        return torch.stack(number_to_pair(index, self.num_axes(x)), dim=-1)

    def number(self, x: Tensor, j: Tensor | int, l: Tensor | int) -> Tensor:
        """Return the numbers of the pairs (j, l), j < l; single axes give shape ``(1,)``."""
        first, second = (
            torch.atleast_1d(torch.as_tensor(axis, device=x.device)) for axis in (j, l)
        )
        return pair_to_number(first, second, self.num_axes(x))

    def group_coordinates(self, x: Tensor, block: Groups) -> Tensor:
        """Return the numbers of the pairs of axes inside groups, shape ``(..., n, r(r − 1)/2)``."""
        r = block.axes.shape[-1]
        a, b = torch.triu_indices(r, r, offset=1, device=x.device)
        return self.number(x, block.axes[..., a], block.axes[..., b])

    def direction(self, x: Tensor, index: Tensor) -> Tensor:
        """Return the directions f_i as dense vectors, shape ``(*batch, k, *point)``."""
        batch, point = x.shape[: x.dim() - self.ndim], x.shape[x.dim() - self.ndim :]
        index = index.expand(*batch, index.shape[-1])
        copies = x.unsqueeze(-self.ndim - 1).expand(*index.shape, *point)
        return self._along(copies, index.unsqueeze(-1), x.new_ones(()))

    def derivatives(self, x: Tensor, egrad: Tensor, block: CoordinateBlock) -> Tensor:
        """Return the partial derivatives, x_j·g_l − x_l·g_j times ``radians``, of columns x and g.

        Costs 4·k·m flops for `Coordinates` (no n×n product, and bounded memory for any k), 2·r·m·n
        for `Groups`, 2·m·n² for `All`.
        """
        self._check_pair(x, egrad, "egrad")
        self.check_block(x, block)
        y, g = self.columns(x), self.columns(egrad)
        if isinstance(block, Coordinates):
            return slopes(y, g, *self._pairs_of(x, block)).mul_(self.radians)
        if isinstance(block, Groups) and block.axes.shape[-1] == 2:
            j, l = (a.expand(*y.shape[:-2], a.shape[-1]) for a in block.axes.unbind(-1))
            values = slopes(y, g, j, l).mul_(self.radians)
            return self.group_matrices(x, values.unsqueeze(-1), 2)
        if isinstance(block, Groups):
            axes = block.axes.expand(*y.shape[:-2], *block.axes.shape[-2:])
            return group_slopes(y, g, axes).mul_(self.radians)
        a = y.mT @ g
        j, l = torch.triu_indices(y.shape[-1], y.shape[-1], offset=1, device=x.device)
        return (a[..., j, l] - a[..., l, j]).mul_(self.radians)

    def steepest(self, x: Tensor, egrad: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return the k coordinates of the largest ``|⟨grad f, f_i⟩|``, and their derivatives.

        In panels of rows of yᵀg − gᵀy, y and g being the columns of the point and of the gradient: no
        n×n matrix is kept. Costs 2·m·n²(1 + 1/p) flops in p panels, about as much as the one product
        yᵀg.
        """
        self._check_pair(x, egrad, "egrad")
        self._check_count(x, k)
        index, values = _steepest(self.columns(x), self.columns(egrad), k)
        return index, values.mul_(self.radians)

    def candidates(self, x: Tensor, egrad: Tensor, k: int, dtype: torch.dtype) -> Tensor:
        """Return the k coordinates that :meth:`steepest` finds where its products are in another type.

        In ``torch.bfloat16`` the d×d product takes a fraction of the time, on processors that have it.
        """
        self._check_pair(x, egrad, "egrad")
        self._check_count(x, k)
        if not self._inherits(RotationCoordinates.steepest):
            return super().candidates(x, egrad, k, dtype)
        return _steepest(self.columns(x).to(dtype), self.columns(egrad).to(dtype), k)[0]

    def coupling(self, x: Tensor, egrad: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
        """Return ``|⟨grad f, f_i⟩|/√s_i`` as a symmetric n×n matrix: one product, 2·m·n² flops."""
        if not self._inherits(RotationCoordinates.derivatives, CoordinateManifold.step_scale):
            return super().coupling(x, egrad, dtype=dtype)
        self._check_pair(x, egrad, "egrad")
        assert self.frame_bounds is not None
        y, g = self.columns(x), self.columns(egrad)
        a = (y.to(dtype or y.dtype).mT @ g.to(dtype or g.dtype)).to(x.dtype)
        return (a - a.mT).abs_().mul_(self.radians / math.sqrt(self.frame_bounds[1]))

    def move_(self, x: Tensor, block: CoordinateBlock, t: Tensor) -> Tensor:
        """Follow the coordinates of a block for the times t, in place.

        Disjoint `Coordinates` are rotations of pairs of columns, O(k·m), and the move never waits for an
        accelerator; overlapping ones, and `All`, are the manifold's exponential of Σ t_i f_i. `Groups`
        of 2 are rotations, larger ones batched r×r exponentials and one batched product, 4·r·m·n flops.
        """
        self._check_move(x, block, t)
        y = self.columns(x)
        if isinstance(block, Coordinates):
            if block.disjoint or block.index.shape[-1] == 1:
                j, l = self._pairs_of(x, block)
                rotate_columns_(y, j, l, t.double().expand(j.shape) * self.radians)
                return x
            index = block.index.expand(*x.shape[: x.dim() - self.ndim], block.index.shape[-1])
            return self._follow_(x, index, t.expand(index.shape))
        if isinstance(block, Groups):
            if block.axes.shape[-1] == 2:
                j, l = (a.expand(*y.shape[:-2], a.shape[-1]) for a in block.axes.unbind(-1))
                rotate_columns_(y, j, l, t[..., 0, 1].double().expand(j.shape) * self.radians)
                return x
            turn = expm1(t.to(x.dtype) * self.radians)
            axes = block.axes.expand(*y.shape[:-2], *block.axes.shape[-2:])
            turn_groups_(y, axes, turn.expand(*axes.shape, axes.shape[-1]))
            return x
        index = self._numbers(x, block)
        return self._follow_(x, index, t.expand(index.shape))

    def descend_(
        self,
        x: Tensor,
        egrad: Tensor,
        block: CoordinateBlock,
        rule: Callable[[Tensor, Tensor], Tensor],
    ) -> Tensor:
        """Derivatives, rule, move; of disjoint pairs on a GPU in one kernel, where the rule allows it.

        With a ``manifolds.rules.GradientRule`` and float32 the point and the gradient are read
        once, and the point is written once.
        """
        y, g = self.columns(x), self.columns(egrad)
        kernels = kernels_for(y, g)
        if (
            kernels is None
            or x.dtype != torch.float32
            or not isinstance(rule, GradientRule)
            or not _pairs_are_disjoint(block)
            or not self._descends_plainly
        ):
            return super().descend_(x, egrad, block, rule)
        assert self.frame_bounds is not None
        self._check_pair(x, egrad, "egrad")
        self.check_block(x, block)
        l: Tensor | None = None
        if isinstance(block, Groups):
            j, l = (a.expand(*y.shape[:-2], a.shape[-1]) for a in block.axes.unbind(-1))
        elif isinstance(block, Coordinates):
            j = block.index.expand(*y.shape[:-2], block.index.shape[-1])
        kernels.descend_(
            y,
            g,
            j,
            l,
            rate=rule.rate / self.frame_bounds[1],
            radians=self.radians,
            limit=rule.limit,
            stopped=rule.stopped,
        )
        return x

    @property
    def _descends_plainly(self) -> bool:
        """Whether a subclass leaves derivatives, moves and step scale as they are here."""
        return self.frame_bounds is not None and self._inherits(
            RotationCoordinates.derivatives,
            RotationCoordinates.move_,
            CoordinateManifold.step_scale,
        )

    def _follow_(self, x: Tensor, index: Tensor, t: Tensor) -> Tensor:
        """Move to Exp_x(Σ t_i f_i), in place; numbers that occur twice add up."""
        return x.copy_(self.expmap(x, self._along(x, index, t)))

    def _along(self, x: Tensor, index: Tensor, t: Tensor) -> Tensor:
        """The tangent vector Σ t_i f_i; `index` has shape ``(*batch, k)``, `t` broadcasts to it."""
        u = torch.zeros_like(x, memory_format=torch.contiguous_format)
        y, v = self.columns(x), self.columns(u)
        t = (t * self.radians).to(x.dtype).expand(index.shape)
        j, l = self._pairs(x, index)
        width = max(1, PANEL // y.shape[-2])
        for a, b, s in zip(j.split(width, -1), l.split(width, -1), t.split(width, -1), strict=True):
            s = s.unsqueeze(-2)
            v.scatter_add_(-1, column_index(v, b), s * take(y, a))
            v.scatter_add_(-1, column_index(v, a), -s * take(y, b))
        return u

    def _pairs_of(self, x: Tensor, block: Coordinates) -> tuple[Tensor, Tensor]:
        """The two columns of each coordinate of a block, with the batch of `x`."""
        key = ("pairs", self.num_axes(x), x.shape[: x.dim() - self.ndim])
        return once(block, key, lambda: self._pairs(x, block.index))

    def _pairs(self, x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """The two columns of each coordinate, with the batch of `x`."""
        j, l = self.axes(x, index).unbind(-1)
        batch = x.shape[: x.dim() - self.ndim]
        return j.expand(*batch, j.shape[-1]), l.expand(*batch, l.shape[-1])


def _steepest(y: Tensor, g: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k pairs of columns of the largest |y_j·g_l − y_l·g_j|, and these numbers."""
    n = y.shape[-1]
    best = y.new_empty((*y.shape[:-2], 0))
    index = torch.empty(best.shape, dtype=torch.int64, device=y.device)
    rows = max(1, PANEL // n)
    for top in range(0, n - 1, rows):
        bottom = min(top + rows, n - 1)
        # Rows top…bottom of the strict upper triangle, from column top on.
        panel = y[..., top:bottom].mT @ g[..., top:]
        panel = panel.sub_(g[..., top:bottom].mT @ y[..., top:])
        height, length = panel.shape[-2:]
        pairs = height * length - height * (height + 1) // 2
        slope = panel.abs()
        lower = torch.ones(height, height, dtype=torch.bool, device=y.device).tril_()
        slope[..., :height].masked_fill_(lower, -1.0)
        place = _largest(slope, min(k, pairs))
        row = torch.div(place, length, rounding_mode="floor")
        numbers = pair_to_number(top + row, top + place - row * length, n)
        best = torch.cat([best, panel.flatten(-2).gather(-1, place)], -1)
        index = torch.cat([index, numbers], -1)
        order = best.abs().topk(min(k, best.shape[-1]), dim=-1).indices
        best, index = best.gather(-1, order), index.gather(-1, order)
    return index, best


def _largest(x: Tensor, k: int) -> Tensor:
    """Places of the k largest entries of matrices, in row-major order; NaN is the largest of all."""
    height, length = x.shape[-2:]
    if k >= height:
        return x.flatten(-2).topk(k, dim=-1).indices
    # They are in the k rows of the largest entries: topk of few numbers is faster than of many.
    row = x.amax(-1).topk(k, dim=-1).indices
    some = x.gather(-2, row.unsqueeze(-1).expand(*row.shape, length))
    place = some.flatten(-2).topk(k, dim=-1).indices
    inside = torch.div(place, length, rounding_mode="floor")
    return row.gather(-1, inside) * length + place - inside * length


def _pairs_are_disjoint(block: CoordinateBlock) -> bool:
    """Whether a block consists of pairs of columns, none of which is in two of them."""
    if isinstance(block, Groups):
        return block.axes.shape[-1] == 2
    return isinstance(block, Coordinates) and (block.disjoint or block.index.shape[-1] == 1)
