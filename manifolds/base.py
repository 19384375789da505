"""The interface of a manifold with coordinates."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from typing import Any

import torch
from geoopt.manifolds import Manifold
from geoopt.utils import size2shape
from torch import Tensor

from .backend import readable
from .blocks import All, CoordinateBlock, Coordinates, Groups, once
from .parts import merge_couplings, merge_steepest

__all__ = ["CoordinateManifold"]


class CoordinateManifold(Manifold):
    """A Riemannian manifold whose tangent spaces have coordinates that are cheap to move along.

    A coordinate is a one-parameter group of symmetries of the manifold: moving along it applies the
    group to the point, and its direction f_i is the velocity at time 0. On O(d) the groups are the
    rotations of two columns, the directions are the orthonormal basis of the paper's equation (4),
    and a move costs O(d). In other geometries the directions may form a frame: they span the
    tangent space, there may be more of them than its dimension, and their norms need not be 1.

    A coordinate turns one or two *axes*; coordinates without a common axis commute. This is all that
    a selection has to know of a geometry.

    Besides the methods of :class:`geoopt.manifolds.Manifold`, a subclass implements
    :meth:`num_axes`, :meth:`num_coordinates`, :meth:`axes`, :meth:`direction`, :meth:`derivatives`
    and :meth:`move_`; where its directions are no orthonormal basis, it states
    ``frame_bounds`` or, where there are none, :meth:`step_scale`; and, where it can do better
    than what is here, :meth:`steepest`, :meth:`descend_` and :meth:`restore_`.

    Leading dimensions of a point are a batch; every point of it gets its own block. `block` is one
    of :class:`Coordinates`, :class:`Groups`, :class:`All`, which say the shape of derivatives and
    times. A kind of block for which a geometry has no cheap form falls back to the dense exponential
    or raises ``NotImplementedError``.

    Attributes
    ----------
    dtypes : tuple of torch.dtype
        The types of points that the geometry works in.
    frame_bounds : tuple of float or None
        The least and the largest value of Σ⟨ξ, f_i⟩²/‖ξ‖² over tangent vectors ξ, at any point:
        (1, 1) for an orthonormal basis and for a Parseval frame. None where there are no such bounds.
    period : float or None
        Time T of one turn: along every coordinate the entries of a moving point are affine functions of
        cos(2πt/T) and sin(2πt/T). None where motions are no rotations, or are not equally fast.
    compact : bool
        Whether points are a bounded set, so that no step, however long, takes one to where numbers end.
        Where they are not, an optimizer looks at a moved copy before it moves a point.
    every_pair : bool
        Whether there is a coordinate for every two axes, so that axes may be dealt into groups freely.
    low_rank_maps : frozenset of str
        Which of the maps "expmap" and "retr" :meth:`follow_low_rank` knows.
    """

    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float64)
    frame_bounds: tuple[float, float] | None = (1.0, 1.0)
    period: float | None = None
    compact: bool = False
    every_pair: bool = False
    low_rank_maps: frozenset[str] = frozenset()

    @abc.abstractmethod
    def num_axes(self, x: Tensor) -> int:
        """Return the number of axes of one point of the batch `x`."""

    @abc.abstractmethod
    def num_coordinates(self, x: Tensor) -> int:
        """Return D, the number of coordinates of one point of the batch `x`."""

    def num_disjoint(self, x: Tensor) -> int:
        """Return how many disjoint coordinates there are, in whatever order they are picked.

        Here the axes over the axes of a coordinate: right where every two axes, or every one, have one.
        """
        one = torch.zeros(1, dtype=torch.int64, device=x.device)
        return self.num_axes(x) // self.axes(x, one).shape[-1]

    @abc.abstractmethod
    def axes(self, x: Tensor, index: Tensor) -> Tensor:
        """Return the axes that coordinates turn.

        Parameters
        ----------
        x : Tensor
            Points; only their shape matters.
        index : Tensor
            int64 numbers of coordinates in [0, D), any shape ``(..., k)``.

        Returns
        -------
        Tensor
            int64 axes, shape ``(..., k, 2)``, or ``(..., k, 1)`` where every coordinate turns one
            axis. One that turns a single axis among others that turn two names it twice.
        """

    @abc.abstractmethod
    def direction(self, x: Tensor, index: Tensor) -> Tensor:
        """Return the directions f_i as dense tangent vectors (for tests and teaching).

        Parameters
        ----------
        x : Tensor
            Points, shape ``(*batch, *point)``.
        index : Tensor
            int64 numbers of coordinates, shape ``(*batch, k)`` or ``(k,)``.

        Returns
        -------
        Tensor
            Tangent vectors at `x`, shape ``(*batch, k, *point)``.
        """

    @abc.abstractmethod
    def derivatives(self, x: Tensor, egrad: Tensor, block: CoordinateBlock) -> Tensor:
        """Return the partial derivatives ⟨grad f, f_i⟩ of the coordinates of a block.

        Parameters
        ----------
        x : Tensor
            Points.
        egrad : Tensor
            Euclidean gradient at `x`, its shape. The result is linear in it.
        block : Coordinates, Groups or All
            The coordinates.

        Returns
        -------
        Tensor
            The shape that the block prescribes.
        """

    @abc.abstractmethod
    def move_(self, x: Tensor, block: CoordinateBlock, t: Tensor) -> Tensor:
        """Follow the motions of a block's coordinates for the times `t`, in place.

        Parameters
        ----------
        x : Tensor
            Points, changed in place.
        block : Coordinates, Groups or All
            The coordinates. Without common axes their motions commute, and all are followed;
            otherwise the move is the exponential of Σ t_i f_i. Inside a group of axes it is the
            motion that the sum of the coordinates' generators makes.
        t : Tensor
            Times, of the shape that the block prescribes.

        Returns
        -------
        Tensor
            `x`.
        """

    def move(self, x: Tensor, block: CoordinateBlock, t: Tensor) -> Tensor:
        """Out-of-place :meth:`move_`."""
        return self.move_(x.clone(), block, t)

    def step_scale(self, x: Tensor, block: CoordinateBlock) -> Tensor:
        """Return s_i, by which the optimizer divides a step: t_i = −lr · ⟨grad f, f_i⟩/s_i.

        Here it is the upper frame bound, so that a step along all coordinates is never longer than the
        gradient step of the same stepsize. It is also a bound of ‖f_i‖² along the whole motion, which
        ‖f_i‖² at the point is not: where a motion turns on a small circle, f_i is short, but a
        long turn leads nowhere. A geometry without frame bounds overrides this, for example by
        ‖f_i‖² where the motions are geodesics.

        Parameters
        ----------
        x : Tensor
            Points.
        block : Coordinates, Groups or All
            The coordinates.

        Returns
        -------
        Tensor
            Positive, and broadcastable to the derivatives of the block; 0 where a coordinate cannot
            move the point.
        """
        if self.frame_bounds is None:
            raise NotImplementedError(
                f"{type(self).__name__} must define frame_bounds or step_scale"
            )
        return torch.full((), self.frame_bounds[1], dtype=x.real.dtype, device=x.device)

    def steepest(self, x: Tensor, egrad: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return the k coordinates along which f falls fastest: the largest ``|⟨grad f, f_i⟩|/√s_i``.

        A derivative that is not a number counts as the largest of all, so whoever reads the result
        learns of it.

        Parameters
        ----------
        x, egrad : Tensor
            Points and the Euclidean gradient there.
        k : int
            How many, 1 <= k <= D.

        Returns
        -------
        index, derivatives : Tensor
            Shape ``(*batch, k)``, steepest first.
        """
        self._check_count(x, k)
        derivatives = self.derivatives(x, egrad, All())
        index = torch.arange(derivatives.shape[-1], device=x.device).expand(derivatives.shape)
        return merge_steepest(index, derivatives, self.step_scale(x, All()), k)

    def candidates(self, x: Tensor, egrad: Tensor, k: int, dtype: torch.dtype) -> Tensor:
        """Return k coordinates among which the steepest should be, found in the arithmetic of another type.

        Parameters
        ----------
        x, egrad : Tensor
            Points and the Euclidean gradient there.
        k : int
            How many, 1 <= k <= D.
        dtype : torch.dtype
            Type of the products, such as ``torch.bfloat16``.

        Returns
        -------
        Tensor
            Their numbers, shape ``(*batch, k)``.

        Raises
        ------
        NotImplementedError
            If the geometry has no such way.
        """
        raise NotImplementedError(
            f"{self.name} ranks its coordinates in the type of the points; leave out dtype={dtype}"
        )

    def coupling(self, x: Tensor, egrad: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
        """Return how strongly every two axes are coupled by a gradient.

        Parameters
        ----------
        x, egrad : Tensor
            Points and the Euclidean gradient there.
        dtype : torch.dtype, optional
            Type of the products, where the geometry can do with another than that of the points.

        Returns
        -------
        Tensor
            Symmetric, shape ``(*batch, d, d)`` for d axes: √(Σ ⟨grad f, f_i⟩²/s_i) over the
            coordinates that turn both. What stands on the diagonal has no meaning. Here it costs the
            derivatives along all D coordinates, and O(D + d²).

        Raises
        ------
        NotImplementedError
            If a type is asked for and the geometry has no such way.
        """
        if dtype is not None:
            raise NotImplementedError(
                f"{self.name} couples its axes in the type of the points; leave out dtype={dtype}"
            )
        return merge_couplings(self, x, self.derivatives(x, egrad, All()))

    def descend_(
        self,
        x: Tensor,
        egrad: Tensor,
        block: CoordinateBlock,
        rule: Callable[[Tensor, Tensor], Tensor],
    ) -> Tensor:
        """Derivatives, rule, move: one step along a block, in place.

        The three verbs as one, so that a geometry may fuse them in one kernel.

        Parameters
        ----------
        x, egrad : Tensor
            Points, changed in place, and the Euclidean gradient there.
        block : Coordinates, Groups or All
            The coordinates.
        rule : callable
            Takes the derivatives and the step scales s_i to the times.

        Returns
        -------
        Tensor
            `x`.
        """
        derivatives = self.derivatives(x, egrad, block)
        return self.move_(x, block, rule(derivatives, self.step_scale(x, block)))

    def group_coordinates(self, x: Tensor, block: Groups) -> Tensor:
        """Return the numbers of the coordinates inside groups of axes.

        Parameters
        ----------
        x : Tensor
            Points; only their shape matters.
        block : Groups
            n groups of r axes.

        Returns
        -------
        Tensor
            int64, shape ``(..., n, c)``: for real geometries those of the c = r(r − 1)/2 pairs (a, b), a < b,
            of places in a group, along the rows of the strict upper triangle.
        """
        raise NotImplementedError(f"{self.name} does not number the coordinates of a group")

    def group_values(self, x: Tensor, matrices: Tensor) -> Tensor:
        """Return the derivatives of coordinates that are in the skew matrices of groups.

        Parameters
        ----------
        x : Tensor
            Points; only their shape matters.
        matrices : Tensor
            What :meth:`derivatives` returns for groups, shape ``(..., n, r, r)``.

        Returns
        -------
        Tensor
            Shape ``(..., n, c)``, in the order of :meth:`group_coordinates`: here the upper triangle.
        """
        r = matrices.shape[-1]
        a, b = torch.triu_indices(r, r, offset=1, device=matrices.device)
        return matrices[..., a, b]

    def group_matrices(self, x: Tensor, values: Tensor, r: int) -> Tensor:
        """Return the skew matrices ``(..., n, r, r)`` of groups in which coordinates have these values.

        The inverse of :meth:`group_values`.
        """
        a, b = torch.triu_indices(r, r, offset=1, device=values.device)
        upper = values.new_zeros((*values.shape[:-1], r, r))
        upper[..., a, b] = values
        return upper - upper.mT

    def gradient(self, x: Tensor, egrad: Tensor) -> Tensor:
        """Return the Riemannian gradient in the form that :meth:`follow` takes.

        Here it is the tangent vector. A group may return the element A of its Lie algebra with grad f = xA,
        from which a step is fewer products.
        """
        return self.egrad2rgrad(x, egrad)

    def follow(self, x: Tensor, v: Tensor, *, map: str = "expmap") -> Tensor:
        """Return the point at which a step along a multiple v of :meth:`gradient` ends.

        Parameters
        ----------
        x, v : Tensor
            Points, and multiples of what `gradient` has returned there.
        map : {"expmap", "retr"}
            Which map takes the step.

        Returns
        -------
        Tensor
            The shape of `x`. Costs what the map does.

        Raises
        ------
        ValueError
            If `map` is none of the two.
        """
        if map not in ("expmap", "retr"):
            raise ValueError(f"map={map!r}: expected 'expmap' or 'retr'")
        return getattr(self, map)(x, v)

    def follow_low_rank(
        self, x: Tensor, left: Tensor, right: Tensor, *, map: str = "expmap"
    ) -> Tensor:
        """Return the point at which a step along a Euclidean gradient of low rank ends, left · rightᴴ.

        It is ``follow(x, gradient(x, left @ right.mH))``, from fewer products. A stepsize goes into `right`.

        Parameters
        ----------
        x : Tensor
            Points, shape ``(*batch, n, p)``.
        left : Tensor
            Shape ``(*batch, n, k)``, with orthonormal columns.
        right : Tensor
            Shape ``(*batch, p, k)``.
        map : {"expmap", "retr"}
            Which map takes the step: one of ``low_rank_maps``.

        Returns
        -------
        Tensor
            The shape of `x`. Costs O(npk).

        Raises
        ------
        NotImplementedError
            If the geometry has no such form of the map.
        """
        raise NotImplementedError(
            f"{self.name} has no form of {map} for gradients of low rank, but of "
            f"{sorted(self.low_rank_maps)}; follow(x, gradient(x, left @ right.mH)) takes the same step"
        )

    def restore_(self, x: Tensor) -> Tensor:
        """Take away, in place, what rounding has put between `x` and the manifold (here: nothing)."""
        return x

    def restore_period(self, x: Tensor) -> int:
        """Return after how many coordinate moves of a point its restoration is due.

        So many that the restoration, spread over them, costs what a move does. Here it is half the number
        of entries of a point, which is right where a move changes as many entries as there are in
        two axes.
        """
        return max(1, math.prod(x.shape[x.dim() - self.ndim :]) // 2)

    def check_block(self, x: Tensor, block: CoordinateBlock) -> None:
        """Raise where a block names what is not there, or a common axis where there must be none.

        Contents are looked at on the CPU only: on an accelerator that would wait for the device.
        """
        if not isinstance(block, All):
            once(block, ("checked", self, x.shape), lambda: self._check_numbers(x, block))

    def _check_numbers(self, x: Tensor, block: Coordinates | Groups) -> None:
        given = block.index if isinstance(block, Coordinates) else block.axes
        if given.dtype != torch.int64:
            raise TypeError(
                f"{type(block).__name__} holds {given.dtype} numbers; expected torch.int64"
            )
        if given.numel() == 0 or not readable(given):
            return
        if isinstance(block, Coordinates):
            limit, what = self.num_coordinates(x), "coordinate"
        else:
            limit, what = self.num_axes(x), "axis"
        low, high = (int(bound) for bound in torch.aminmax(given))
        if low < 0 or high >= limit:
            raise IndexError(
                f"{what} {low if low < 0 else high} does not exist: a point of shape "
                f"{tuple(x.shape)} on {self.name} has {limit}, numbered from 0"
            )
        if isinstance(block, Groups):
            turned = block.axes.flatten(-2)
            if block.axes.shape[-1] > 1 and bool((block.axes.diff(dim=-1) <= 0).any()):
                raise ValueError(
                    "the axes of a group must ascend: sort them along the last dimension"
                )
        elif block.disjoint and block.index.shape[-1] > 1:
            axes = self.axes(x, block.index)
            # A coordinate may name its only axis twice: the second time it stands for none.
            none = -1 - torch.arange(axes.shape[-2]).unsqueeze(-1)
            turned = torch.cat(
                [axes[..., :1], torch.where(axes[..., 1:] == axes[..., :1], none, axes[..., 1:])],
                -1,
            ).flatten(-2)
        else:
            return
        turned = turned.sort(-1).values
        twice = turned[..., 1:] == turned[..., :-1]
        if bool(twice.any()):
            raise ValueError(
                f"axis {int(turned[..., 1:][twice][0])} is in two places of a block of disjoint "
                f"{what}s; pass Coordinates(index, disjoint=False) for coordinates that share axes"
            )

    # What the methods of a subclass check first.

    def _inherits(self, *methods: Callable[..., Any]) -> bool:
        """Whether the class has these very methods, and none of its own in their places."""
        return all(getattr(type(self), method.__name__) is method for method in methods)

    def _numbers(self, x: Tensor, block: CoordinateBlock) -> Tensor:
        """The numbers of the coordinates of a block, with the batch of `x`; not of groups."""
        if isinstance(block, Groups):
            raise NotImplementedError(
                f"{self.name} moves no groups of axes, whose skew matrices have no place for coordinates of "
                "a single one; use Coordinates or All"
            )
        if isinstance(block, Coordinates):
            index = block.index
        else:
            index = torch.arange(self.num_coordinates(x), device=x.device)
        return index.expand(*x.shape[: x.dim() - self.ndim], index.shape[-1])

    def _check_pair(self, x: Tensor, u: Tensor, name: str) -> None:
        """Raise unless `x` has the shape and type of points, and `u` those of `x`."""
        self._assert_check_shape(x.shape, "x")
        self._assert_dtype(x.dtype)
        if u.dtype != x.dtype or u.shape != x.shape:
            raise TypeError(
                f"{name} is {u.dtype} of shape {tuple(u.shape)}; "
                f"expected those of x, {x.dtype} and {tuple(x.shape)}"
            )

    def _check_move(self, x: Tensor, block: CoordinateBlock, t: Tensor) -> None:
        """Raise unless points, block and times go together."""
        self._assert_check_shape(x.shape, "x")
        self._assert_dtype(x.dtype)
        self.check_block(x, block)
        if isinstance(block, Coordinates):
            expected: tuple[int, ...] = (block.index.shape[-1],)
        elif isinstance(block, Groups):
            expected = (*block.axes.shape[-2:], block.axes.shape[-1])
        else:
            expected = (self.num_coordinates(x),)
        expected = (*x.shape[: x.dim() - self.ndim], *expected)
        fits = t.dim() <= len(expected) and all(
            a in (1, b) for a, b in zip(reversed(t.shape), reversed(expected), strict=False)
        )
        if t.dtype not in (*self.dtypes, torch.float32, torch.float64):
            raise TypeError(f"times are {t.dtype}; expected float32 or float64")
        if not fits:
            raise ValueError(
                f"times have shape {tuple(t.shape)}; expected one that broadcasts to {expected}"
            )

    def _checked_size(
        self, *size: int, dtype: torch.dtype | None
    ) -> tuple[tuple[int, ...], torch.dtype]:
        """Shape and type of new points; by default torch's default type, made complex where needed."""
        shape = size2shape(*size)
        self._assert_check_shape(shape, "x")
        if dtype is None:
            dtype = torch.get_default_dtype()
            dtype = dtype.to_complex() if self.dtypes[0].is_complex else dtype
        self._assert_dtype(dtype)
        return shape, dtype

    def _check_count(self, x: Tensor, k: int) -> None:
        """Raise unless a point has k coordinates."""
        if not 1 <= k <= self.num_coordinates(x):
            raise ValueError(
                f"k={k}: a point of shape {tuple(x.shape)} has {self.num_coordinates(x)} coordinates"
            )

    def _assert_dtype(self, dtype: torch.dtype) -> None:
        if dtype not in self.dtypes:
            raise TypeError(f"{self.name} works in {self._dtype_names}, not in {dtype}")

    @property
    def _dtype_names(self) -> str:
        """The types of points, as messages name them."""
        return " and ".join(str(dtype).removeprefix("torch.") for dtype in self.dtypes)
