"""Independent copies of a manifold as one."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from .backend import readable
from .base import CoordinateManifold
from .blocks import All, CoordinateBlock, Coordinates, Groups
from .parts import by_count, items_of, merge_steepest, same_kind, unravel
from .wrapped import Wrapped

__all__ = ["Power"]


class Power(Wrapped):
    """N copies of a manifold as one point, such as the N rotations of SO(3)ᴺ.

    A point has shape ``(..., N, *point)``, and its metric is the sum over the copies. Coordinates and
    axes are numbered copy by copy: coordinate i of copy c is c·D + i, D being the number of
    coordinates of a copy, and axis a of copy c is c·A + a. So a selection chooses among all of them,
    where in a batch every point gets a block of its own. Frame bounds and step scales are those of the
    base.

    Points come from its own :meth:`random` and :meth:`origin`, or from any tensor: geoopt refuses one
    that belongs to another manifold, such as a random point of the base.

    A step works on the copies that its block touches, which costs what the base takes for each of
    them. A group of axes must lie in one copy.

    For a block of several `Coordinates` a move reads on the host which of them fall on one copy, and
    so waits for an accelerator; moves along one coordinate, and along `All`, do not.

    Parameters
    ----------
    manifold : CoordinateManifold
        The base.

    Attributes
    ----------
    base : CoordinateManifold
        As given.

    Examples
    --------
    >>> import torch
    >>> from givens.manifolds import Coordinates, Power, SpecialOrthogonalGroup
    >>> rotations = Power(SpecialOrthogonalGroup())
    >>> x = rotations.origin(1000, 3, 3)
    >>> rotations.num_coordinates(x)
    3000
    >>> pair = Coordinates(torch.tensor([3 * 500 + 1]), disjoint=True)
    >>> y = rotations.move(x, pair, torch.tensor([0.1]))
    >>> [int(copy) for copy in (x != y).any(-1).any(-1).nonzero()]
    [500]
    """

    def __init__(self, manifold: CoordinateManifold) -> None:
        super().__init__(manifold)
        self.ndim = manifold.ndim + 1

    def extra_repr(self) -> str:
        """Show the settings of the base."""
        return self.base.extra_repr()

    # Metric

    def egrad2rgrad(self, x: Tensor, u: Tensor) -> Tensor:
        """Riemannian gradient, copy by copy."""
        return self.base.egrad2rgrad(x, u)

    def inner(
        self, x: Tensor, u: Tensor, v: Tensor | None = None, *, keepdim: bool = False
    ) -> Tensor:
        """Sum of the copies' ⟨u, v⟩; v = u by default."""
        return self._kept(self.base.inner(x, u, v).sum(-1), keepdim)

    def component_inner(self, x: Tensor, u: Tensor, v: Tensor | None = None) -> Tensor:
        """Inner product of each component, by geoopt's adaptive optimizers: that of the base."""
        return self.base.component_inner(x, u, v)

    def norm(self, x: Tensor, u: Tensor, *, keepdim: bool = False) -> Tensor:
        """Root of the sum of the copies' ‖u‖²."""
        return self._kept(torch.linalg.vector_norm(self.base.norm(x, u), dim=-1), keepdim)

    def dist(self, x: Tensor, y: Tensor, *, keepdim: bool = False) -> Tensor:
        """Root of the sum of the copies' squared distances."""
        return self._kept(torch.linalg.vector_norm(self.base.dist(x, y), dim=-1), keepdim)

    # Coordinates

    @property
    def frame_bounds(self) -> tuple[float, float] | None:  # type: ignore[override]
        """Those of the base."""
        return self.base.frame_bounds

    def num_axes(self, x: Tensor) -> int:
        """Return N·A."""
        return self._copies(x) * self.base.num_axes(x)

    def num_coordinates(self, x: Tensor) -> int:
        """Return N·D."""
        return self._copies(x) * self.base.num_coordinates(x)

    def num_disjoint(self, x: Tensor) -> int:
        """Return N times that of the base."""
        return self._copies(x) * self.base.num_disjoint(x)

    def axes(self, x: Tensor, index: Tensor) -> Tensor:
        """Return the axes that coordinates turn, as many for each as in the base."""
        per_copy = self.base.num_coordinates(x)
        first = index // per_copy * self.base.num_axes(x)
        return self.base.axes(x, index % per_copy) + first.unsqueeze(-1)

    def group_coordinates(self, x: Tensor, block: Groups) -> Tensor:
        """Return the numbers of the coordinates inside groups, each of which lies in one copy."""
        copy = block.axes[..., :1] // self.base.num_axes(x)
        own = Groups(block.axes - copy * self.base.num_axes(x))
        return self.base.group_coordinates(x, own) + copy * self.base.num_coordinates(x)

    def direction(self, x: Tensor, index: Tensor) -> Tensor:
        """Return the directions f_i as dense vectors, 0 in all copies but one."""
        batch = x.shape[: x.dim() - self.ndim]
        block = Coordinates(index.expand(*batch, index.shape[-1]), disjoint=False)
        place, own = self._locate(x, block)
        f = self.base.direction(x[self._at(x, place)], own.unsqueeze(-1)).squeeze(1)
        u = x.new_zeros((len(place), *x.shape[x.dim() - self.ndim :]))
        u[torch.arange(len(place), device=x.device), place % self._copies(x)] = f
        return u.unflatten(0, block.index.shape)

    def derivatives(self, x: Tensor, egrad: Tensor, block: CoordinateBlock) -> Tensor:
        """Return the partial derivatives of a block, which the base computes for the copies it touches."""
        self._check_pair(x, egrad, "egrad")
        self.check_block(x, block)
        if isinstance(block, All):
            return self.base.derivatives(x, egrad, block).flatten(-2)
        place, own = self._locate(x, block)
        at = self._at(x, place)
        each = self.base.derivatives(x[at], egrad[at], same_kind(block, own.unsqueeze(1)))
        return each.squeeze(1).unflatten(0, self._items(x, block)[0])

    def steepest(self, x: Tensor, egrad: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return the k steepest coordinates of all copies: from the k steepest of each."""
        self._check_pair(x, egrad, "egrad")
        self._check_count(x, k)
        per_copy = self.base.num_coordinates(x)
        index, derivatives = self.base.steepest(x, egrad, min(k, per_copy))
        scale = self.base.step_scale(x, Coordinates(index, disjoint=False)).expand(index.shape)
        first = per_copy * torch.arange(self._copies(x), device=x.device).unsqueeze(-1)
        return merge_steepest(
            (index + first).flatten(-2), derivatives.flatten(-2), scale.flatten(-2), k
        )

    def step_scale(self, x: Tensor, block: CoordinateBlock) -> Tensor:
        """Return the step scales of the base."""
        if isinstance(block, All):
            scale = self.base.step_scale(x, block)
            shape = (*x.shape[: x.dim() - self.base.ndim], self.base.num_coordinates(x))
            return scale if scale.dim() == 0 else scale.expand(shape).flatten(-2)
        place, own = self._locate(x, block)
        scale = self.base.step_scale(x[self._at(x, place)], same_kind(block, own.unsqueeze(1)))
        if scale.dim() == 0:
            return scale
        items, entries = self._items(x, block)
        return scale.expand(len(place), 1, *entries).squeeze(1).unflatten(0, items)

    def move_(self, x: Tensor, block: CoordinateBlock, t: Tensor) -> Tensor:
        """Move the copies that a block touches, as the base does, in place."""
        self._check_move(x, block, t)
        if isinstance(block, All):
            t = t.expand(*x.shape[: x.dim() - self.ndim], self.num_coordinates(x))
            t = t.unflatten(-1, (self._copies(x), self.base.num_coordinates(x)))
            self.base.move_(x, block, t)
            return x
        place, own = self._locate(x, block)
        items, entries = self._items(x, block)
        t = t.expand(*items, *entries).flatten(0, len(items) - 1)
        each: Iterable[tuple[Tensor, Tensor]] = by_count(place)
        if items[-1] == 1:
            each = [(place, torch.arange(len(place), device=x.device).unsqueeze(-1))]
        moved = []
        for copies, which in each:
            part, times = same_kind(block, own[which]), t[which]
            if (
                isinstance(part, Coordinates)
                and not part.disjoint
                and which.shape[-1] == 1 < items[-1]
            ):
                # Alone on its copy, in a move that is the exponential: for the base to take it, too,
                # the coordinate comes once more, for no time.
                part = Coordinates(part.index.expand(-1, 2), disjoint=False)
                times = torch.nn.functional.pad(times, (0, 1))
            at = self._at(x, copies)
            # A view only where the base cannot refuse the block after other copies have been moved.
            y = x[at] if isinstance(block, Coordinates) else x[at].clone()
            self.base.move_(y, part, times)
            if not (isinstance(at[0], slice) and isinstance(block, Coordinates)):
                moved.append((at, y))
        for at, y in moved:
            x[at] = y
        return x

    def restore_period(self, x: Tensor) -> int:
        """Return N times that of the base: what a copy gets of uniformly chosen coordinates."""
        return self._copies(x) * self.base.restore_period(x)

    def check_block(self, x: Tensor, block: CoordinateBlock) -> None:
        """Raise where a block names what is not there, and also where a group has axes of two copies."""
        super().check_block(x, block)
        if isinstance(block, Groups) and readable(block.axes):
            copy = block.axes // self.base.num_axes(x)
            if bool((copy != copy[..., :1]).any()):
                raise NotImplementedError(
                    f"a group has axes of several copies of {self.base.name}, between which there are no "
                    f"coordinates; take groups of the {self.base.num_axes(x)} axes of one copy"
                )

    # Checks

    def _check_shape(self, shape: tuple[int, ...], name: str) -> tuple[bool, str | None]:
        if len(shape) < self.ndim:
            return False, (
                f"'{name}' has shape {tuple(shape)}; {self.name} expects {self.ndim} dimensions or more, "
                "the copies before those of a point"
            )
        return self.base._check_shape(shape, name)

    def _copies(self, x: Tensor) -> int:
        """N."""
        return x.shape[x.dim() - self.ndim]

    def _kept(self, result: Tensor, keepdim: bool) -> Tensor:
        return result[(..., *(None,) * self.ndim)] if keepdim else result

    def _items(
        self, x: Tensor, block: Coordinates | Groups
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return items_of(x.shape[: x.dim() - self.ndim], block)

    def _locate(self, x: Tensor, block: Coordinates | Groups) -> tuple[Tensor, Tensor]:
        """Place of the copy of each coordinate or group among those of the whole batch, and what it is there.

        Shapes ``(m,)``, and ``(m,)`` or, for groups of r axes, ``(m, r)``.
        """
        items, _ = self._items(x, block)
        if isinstance(block, Coordinates):
            number, per_copy = block.index.expand(items), self.base.num_coordinates(x)
            copy = number // per_copy
            own = number % per_copy
        else:
            number, per_copy = block.axes.expand(*items, -1), self.base.num_axes(x)
            copy = number[..., 0] // per_copy
            own = number % per_copy
        batch = items[:-1]
        point = torch.arange(math.prod(batch), device=x.device).view(*batch, 1)
        return (point * self._copies(x) + copy).flatten(), own.flatten(0, len(batch))

    def _at(self, x: Tensor, place: Tensor) -> tuple[slice] | tuple[Tensor, ...]:
        """Index that takes copies out of a batch, by their places: shape ``(m, *point)``.

        A single copy of a single point is a view, where the host can tell which.
        """
        if x.dim() == self.ndim and place.numel() == 1 and readable(place):
            copy = int(place)
            return (slice(copy, copy + 1),)
        return unravel(place, x.shape[: x.dim() - self.base.ndim])
