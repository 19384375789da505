"""The interface of a manifold with coordinates."""

from __future__ import annotations

import abc
from collections.abc import Callable

import torch
from geoopt.manifolds import Manifold
from torch import Tensor

from .blocks import All, CoordinateBlock, Coordinates, Groups

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
    and :meth:`move_`; where its directions are not of norm 1, :meth:`squared_norm`; and, where it
    can do better than what is here, :meth:`steepest`, :meth:`descend_` and :meth:`restore_`.

    Leading dimensions of a point are a batch; every point of it gets its own block. `block` is one
    of :class:`Coordinates`, :class:`Groups`, :class:`All`, which say the shape of derivatives and
    times. A kind of block for which a geometry has no cheap form falls back to the dense exponential
    or raises ``NotImplementedError``.
    """

    @abc.abstractmethod
    def num_axes(self, x: Tensor) -> int:
        """Return the number of axes of one point of the batch `x`."""

    @abc.abstractmethod
    def num_coordinates(self, x: Tensor) -> int:
        """Return D, the number of coordinates of one point of the batch `x`."""

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
            int64 axes, shape ``(..., k, 2)``, or ``(..., k, 1)`` where a coordinate turns one axis.
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
            The coordinates. Without common axes their motions commute; otherwise the move is the
            exponential of Σ t_i f_i.
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

    def squared_norm(self, x: Tensor, block: CoordinateBlock) -> Tensor:
        """Return ‖f_i‖² of the coordinates of a block, broadcastable to its derivatives (here: 1)."""
        return torch.ones((), dtype=x.dtype, device=x.device)

    def steepest(self, x: Tensor, egrad: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return the k coordinates along which f falls fastest: the largest ``|⟨grad f, f_i⟩|/‖f_i‖``.

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
        derivatives = self.derivatives(x, egrad, All())
        norm = self.squared_norm(x, All()).sqrt()
        slope = torch.where(norm > 0, derivatives.abs() / norm, 0.0)
        index = slope.topk(k, dim=-1).indices
        return index, derivatives.gather(-1, index)

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
            Takes the derivatives and ‖f_i‖² to the times.

        Returns
        -------
        Tensor
            `x`.
        """
        derivatives = self.derivatives(x, egrad, block)
        return self.move_(x, block, rule(derivatives, self.squared_norm(x, block)))

    def restore_(self, x: Tensor) -> Tensor:
        """Take away, in place, what rounding has put between `x` and the manifold (here: nothing)."""
        return x

    def check_block(self, x: Tensor, block: CoordinateBlock) -> None:
        """Raise where a block names what is not there, or a common axis where there must be none.

        Contents are looked at on the CPU only: on an accelerator that would wait for the device.
        """
        if isinstance(block, All):
            return
        given = block.index if isinstance(block, Coordinates) else block.axes
        if given.dtype != torch.int64:
            raise TypeError(
                f"{type(block).__name__} holds {given.dtype} numbers; expected torch.int64"
            )
        if given.device.type != "cpu" or given.numel() == 0:
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
            turned = self.axes(x, block.index).flatten(-2)
        else:
            return
        turned = turned.sort(-1).values
        twice = turned[..., 1:] == turned[..., :-1]
        if bool(twice.any()):
            raise ValueError(
                f"axis {int(turned[..., 1:][twice][0])} is in two places of a block of disjoint "
                f"{what}s; pass Coordinates(index, disjoint=False) for coordinates that share axes"
            )
