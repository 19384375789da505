"""Products of manifolds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch
from geoopt import ManifoldTensor
from geoopt.manifolds import ProductManifold
from geoopt.utils import size2shape
from torch import Tensor

from .backend import readable
from .base import CoordinateManifold
from .blocks import All, CoordinateBlock, Coordinates, Groups
from .parts import by_count, items_of, merge_steepest, same_kind, unravel

__all__ = ["Product"]


class Product(CoordinateManifold, ProductManifold):
    """Product of manifolds: a point is a point of each factor, packed in one vector.

    The metric is the sum of the factors' (:class:`~givens.manifolds.Scaled` gives one more weight).
    Coordinates and axes are numbered through the factors, those of factor 0 first, so that a selection
    sees one list; a coordinate that turns one axis names it twice if others turn two. The frame bounds
    are the least and the largest of the factors', but every coordinate keeps the step scale of its own
    factor.

    A step works on the entries of the factors that its block touches, and costs what it costs there. A
    group of axes must lie in one factor.

    Which factors a block touches is read on the host, where that needs no wait. On an accelerator a
    block of `Coordinates` is put to every factor, with time 0 for what is not its own; for
    several disjoint coordinates, and for `Groups`, the host does read them, and so waits.

    Parameters
    ----------
    *manifolds_with_shape : tuple of (CoordinateManifold, int or tuple of int)
        The factors and the shapes of their points.

    Attributes
    ----------
    manifolds : nn.ModuleList
        The factors.
    shapes : list of tuple of int
        Shapes of their points.
    n_manifolds : int
        Number of factors.
    n_elements : int
        Length n of a point, which has shape ``(..., n)``.

    Examples
    --------
    Rigid motions:

    >>> import torch
    >>> from givens.manifolds import Euclidean, Product, SpecialOrthogonalGroup
    >>> motions = Product((SpecialOrthogonalGroup(), (3, 3)), (Euclidean(), (3,)))
    >>> x = motions.pack_point(torch.eye(3), torch.tensor([1.0, 2.0, 3.0]))
    >>> motions.num_coordinates(x), motions.num_axes(x)
    (6, 6)
    >>> motions.axes(x, torch.tensor([2, 3])).tolist()
    [[1, 2], [3, 3]]
    >>> rotation, translation = motions.unpack_tensor(x)
    """

    ndim = 1

    def __init__(
        self, *manifolds_with_shape: tuple[CoordinateManifold, int | tuple[int, ...]]
    ) -> None:
        for i, (manifold, size) in enumerate(manifolds_with_shape):
            if not isinstance(manifold, CoordinateManifold):
                raise TypeError(
                    f"factor {i} is {manifold!r}, which has no coordinates; use a manifold of "
                    "givens.manifolds, or geoopt.ProductManifold for those of geoopt"
                )
            shape = size2shape(size)
            if len(shape) != manifold.ndim:
                raise ValueError(
                    f"factor {i} has shape {shape}; a point of {manifold.name} has {manifold.ndim} "
                    "dimensions, and Power makes one point of several"
                )
        super().__init__(*manifolds_with_shape)
        shared = [
            d for d in CoordinateManifold.dtypes if all(d in m.dtypes for m in self.manifolds)
        ]
        if not shared:
            raise TypeError(
                f"{[m.name for m in self.manifolds]} have no real type in common, in which their points "
                "could be packed; a complex factor makes a parameter of its own"
            )
        self.dtypes = tuple(shared)
        self.name = f"Product({', '.join(m.name for m in self.manifolds)})"
        empty = [torch.empty(shape, device="meta") for shape in self.shapes]
        axes = [m.num_axes(x) for m, x in zip(self.manifolds, empty, strict=True)]
        coordinates = [m.num_coordinates(x) for m, x in zip(self.manifolds, empty, strict=True)]
        # Where the numbers of each factor begin, and where the last ones end.
        self._first_axis = [0, *itertools.accumulate(axes)]
        self._first_coordinate = [0, *itertools.accumulate(coordinates)]
        self._disjoint = sum(m.num_disjoint(x) for m, x in zip(self.manifolds, empty, strict=True))

    def extra_repr(self) -> str:
        """Show the shapes of the factors."""
        return ", ".join(map(str, self.shapes))

    # Points and tangent vectors

    def pack_point(self, *tensors: Tensor) -> Tensor:
        """Pack points of the factors, or tangent vectors, in one: the inverse of ``unpack_tensor``.

        Parameters
        ----------
        *tensors : Tensor
            One for each factor, shape ``(..., *shape)``, all of one type; their batches broadcast.

        Returns
        -------
        Tensor
            Shape ``(..., n_elements)``.
        """
        if len(tensors) != self.n_manifolds:
            raise ValueError(
                f"{len(tensors)} tensors given; expected one for each of {self.n_manifolds} factors"
            )
        for i, (part, shape) in enumerate(zip(tensors, self.shapes, strict=True)):
            if part.shape[part.dim() - len(shape) :] != shape:
                raise ValueError(
                    f"tensor {i} has shape {tuple(part.shape)}; expected (..., "
                    f"{', '.join(map(str, shape))})"
                )
            if part.dtype != tensors[0].dtype:
                raise TypeError(
                    f"tensor {i} is {part.dtype} and tensor 0 {tensors[0].dtype}; expected one type"
                )
        flat = [part.flatten(-len(shape)) for part, shape in zip(tensors, self.shapes, strict=True)]
        batch = torch.broadcast_shapes(*(part.shape[:-1] for part in flat))
        return torch.cat([part.expand(*batch, -1) for part in flat], -1)

    def random(
        self,
        *size: int | tuple[int, ...],
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Independent random points of the factors, all of which take the other arguments, too.

        Parameters
        ----------
        *size : int
            Shape ``(..., n_elements)``.
        dtype, device, **kwargs
            For the factors, such as a `generator`.
        """
        shape = size2shape(*size)
        self._assert_check_shape(shape, "x")
        parts = (
            m.random(*shape[:-1], *own, dtype=dtype, device=device, **kwargs)
            for m, own in zip(self.manifolds, self.shapes, strict=True)
        )
        return ManifoldTensor(self.pack_point(*parts), manifold=self)

    def projx(self, x: Tensor) -> Tensor:
        """Projection in each factor."""
        return self._each("projx", x)

    def proju(self, x: Tensor, u: Tensor) -> Tensor:
        """Projection in each factor."""
        return self._each("proju", x, u)

    def egrad2rgrad(self, x: Tensor, u: Tensor) -> Tensor:
        """Riemannian gradient, factor by factor."""
        return self._each("egrad2rgrad", x, u)

    def inner(
        self, x: Tensor, u: Tensor, v: Tensor | None = None, *, keepdim: bool = False
    ) -> Tensor:
        """Sum of the factors' ⟨u, v⟩, shape ``(...)`` or ``(..., 1)`` with `keepdim`; v = u by default."""
        v = u if v is None else v
        return self._lengths("inner", x, u, v).sum(-1, keepdim=keepdim)

    def norm(self, x: Tensor, u: Tensor, *, keepdim: bool = False) -> Tensor:
        """Root of the sum of the factors' ‖u‖²."""
        return torch.linalg.vector_norm(self._lengths("norm", x, u), dim=-1, keepdim=keepdim)

    # Maps

    def expmap(self, x: Tensor, u: Tensor) -> Tensor:
        """Exponential in each factor."""
        return self._each("expmap", x, u)

    def logmap(self, x: Tensor, y: Tensor) -> Tensor:
        """Logarithm in each factor."""
        return self._each("logmap", x, y)

    def dist(self, x: Tensor, y: Tensor, *, keepdim: bool = False) -> Tensor:
        """Root of the sum of the factors' squared distances."""
        return torch.linalg.vector_norm(self._lengths("dist", x, y), dim=-1, keepdim=keepdim)

    def dist2(self, x: Tensor, y: Tensor, *, keepdim: bool = False) -> Tensor:
        """Sum of the factors' squared distances."""
        return self._lengths("dist2", x, y).sum(-1, keepdim=keepdim)

    def retr(self, x: Tensor, u: Tensor) -> Tensor:
        """Retraction in each factor."""
        return self._each("retr", x, u)

    def transp(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """Transport in each factor."""
        return self._each("transp", x, y, v)

    def transp_follow_expmap(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Transport along each factor's exponential."""
        return self._each("transp_follow_expmap", x, u, v)

    def transp_follow_retr(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Transport along each factor's retraction."""
        return self._each("transp_follow_retr", x, u, v)

    def expmap_transp(self, x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Exponential and transport in each factor."""
        return self._each_pair("expmap_transp", x, u, v)

    def retr_transp(self, x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Retraction and transport in each factor."""
        return self._each_pair("retr_transp", x, u, v)

    # Coordinates

    @property
    def compact(self) -> bool:  # type: ignore[override]
        """Whether all factors are."""
        return all(m.compact for m in self.manifolds)

    @property
    def frame_bounds(self) -> tuple[float, float] | None:  # type: ignore[override]
        """The least and the largest of the factors'."""
        bounds = [m.frame_bounds for m in self.manifolds]
        if None in bounds:
            return None
        lower, upper = zip(*bounds, strict=True)
        return min(lower), max(upper)

    def num_axes(self, x: Tensor) -> int:
        """Return the sum of the factors' numbers of axes."""
        return self._first_axis[-1]

    def num_coordinates(self, x: Tensor) -> int:
        """Return the sum of the factors' numbers of coordinates."""
        return self._first_coordinate[-1]

    def num_disjoint(self, x: Tensor) -> int:
        """Return the sum of the factors' numbers of disjoint coordinates."""
        return self._disjoint

    def axes(self, x: Tensor, index: Tensor) -> Tensor:
        """Return the axes of coordinates: ``(..., k, 2)``, or ``(..., k, 1)`` if all turn one axis."""
        axes = index.unsqueeze(-1)
        for i, mine, own in self._split(index, skip=False):
            of_factor = self.manifolds[i].axes(self._part(x, i), own) + self._first_axis[i]
            axes = torch.where(mine.unsqueeze(-1), of_factor, axes)
        return axes

    def group_coordinates(self, x: Tensor, block: Groups) -> Tensor:
        """Return the numbers of the coordinates inside groups, each of which lies in one factor."""
        numbers = block.axes.new_empty(
            math.prod(block.axes.shape[:-1]), math.comb(block.axes.shape[-1], 2)
        )
        for i, _, which, own in self._shares((), Groups(block.axes.flatten(0, -2))):
            of_factor = self.manifolds[i].group_coordinates(self._part(x, i), Groups(own))
            numbers[which] = of_factor + self._first_coordinate[i]
        return numbers.unflatten(0, block.axes.shape[:-1])

    def direction(self, x: Tensor, index: Tensor) -> Tensor:
        """Return the directions f_i as dense vectors, 0 in all factors but one."""
        index = index.expand(*x.shape[:-1], index.shape[-1])
        u = x.new_zeros((*index.shape, self.n_elements))
        for i, mine, own in self._split(index):
            f = self.manifolds[i].direction(self._part(x, i), own).flatten(index.dim())
            entries = self.take_submanifold_value(u, i, reshape=False)
            entries.copy_(torch.where(mine.unsqueeze(-1), f, 0.0))
        return u

    def derivatives(self, x: Tensor, egrad: Tensor, block: CoordinateBlock) -> Tensor:
        """Return the partial derivatives of a block: those of the factors."""
        self._check_pair(x, egrad, "egrad")
        self.check_block(x, block)
        return self._values("derivatives", block, x, egrad)

    def step_scale(self, x: Tensor, block: CoordinateBlock) -> Tensor:
        """Return the step scales of a block: those of the factors."""
        return self._values("step_scale", block, x)

    def steepest(self, x: Tensor, egrad: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return the k steepest coordinates of all factors: from the k steepest of each."""
        self._check_pair(x, egrad, "egrad")
        self._check_count(x, k)
        found = []
        for i, first, count in self._numbered():
            y, g = self._part(x, i), self._part(egrad, i)
            index, derivatives = self.manifolds[i].steepest(y, g, min(k, count))
            scale = self.manifolds[i].step_scale(y, Coordinates(index, disjoint=False))
            found.append((index + first, derivatives, scale.expand(index.shape)))
        index, derivatives, scale = (torch.cat(each, -1) for each in zip(*found, strict=True))
        return merge_steepest(index, derivatives, scale, k)

    def move_(self, x: Tensor, block: CoordinateBlock, t: Tensor) -> Tensor:
        """Move the factors that a block touches, each as it does, in place.

        Without common axes, a single point's coordinates are followed in the entries that they
        change; otherwise the factors are moved as a whole.
        """
        self._check_move(x, block, t)
        batch = x.shape[:-1]
        moved: list[tuple[Tensor, tuple[Tensor, ...], Tensor]] = []
        if isinstance(block, All):
            t = t.expand(*batch, self.num_coordinates(x))
            for i, first, count in self._numbered():
                part = self._part(x, i)
                moved.append(
                    (part, (), self.manifolds[i].move(part, block, t.narrow(-1, first, count)))
                )
        elif isinstance(block, Coordinates) and not (block.disjoint and block.index.shape[-1] > 1):
            index = block.index.expand(*batch, block.index.shape[-1])
            for i, mine, own in self._split(index):
                part, times = self._part(x, i), torch.where(mine, t, 0.0)
                if index.shape[-1] == 1:
                    self.manifolds[i].move_(part, Coordinates(own, disjoint=True), times)
                else:
                    y = self.manifolds[i].move(part, Coordinates(own, disjoint=False), times)
                    moved.append((part, (), y))
        else:
            items, entries = items_of(batch, block)
            t = t.expand(*items, *entries).flatten(0, len(batch))
            for i, at, which, own in self._shares(batch, block):
                part = self._part(x, i)
                if isinstance(block, Coordinates) and not batch:
                    self.manifolds[i].move_(part, Coordinates(own, disjoint=True), t[which])
                else:
                    y = self.manifolds[i].move(part[at], same_kind(block, own), t[which])
                    moved.append((part, at, y))
        for part, at, y in moved:
            part[at] = y
        return x

    def restore_(self, x: Tensor) -> Tensor:
        """Restore each factor, in place."""
        for i, manifold in enumerate(self.manifolds):
            manifold.restore_(self._part(x, i))
        return x

    def restore_period(self, x: Tensor) -> int:
        """Return after how many uniformly chosen coordinates the first of the factors has had its period."""
        total = self.num_coordinates(x)
        periods = [
            self.manifolds[i].restore_period(self._part(x, i)) * total // count
            for i, _, count in self._numbered()
        ]
        return max(1, min(periods, default=1))

    def check_block(self, x: Tensor, block: CoordinateBlock) -> None:
        """Raise where a block names what is not there, and where a group has axes of two factors."""
        super().check_block(x, block)
        if isinstance(block, Groups) and readable(block.axes):
            factor = _interval(block.axes, self._first_axis)
            if bool((factor != factor[..., :1]).any()):
                raise NotImplementedError(
                    "a group has axes of several factors, between which there are no coordinates; take "
                    f"groups within the factors, whose axes begin with {self._first_axis[:-1]}"
                )

    # Checks

    def _check_shape(self, shape: tuple[int, ...], name: str) -> tuple[bool, str | None]:
        if len(shape) >= 1 and shape[-1] == self.n_elements:
            return True, None
        return False, (
            f"'{name}' has shape {tuple(shape)}; {self.name} expects (..., {self.n_elements}), its "
            "factors packed by pack_point"
        )

    def _check_point_on_manifold(
        self, x: Tensor, *, atol: float = 1e-5, rtol: float = 1e-5
    ) -> tuple[bool, str | None]:
        for i, manifold in enumerate(self.manifolds):
            ok, reason = manifold._check_point_on_manifold(self._part(x, i), atol=atol, rtol=rtol)
            if not ok:
                return False, f"factor {i}, {manifold.name}: {reason}"
        return True, None

    def _check_vector_on_tangent(
        self, x: Tensor, u: Tensor, *, atol: float = 1e-5, rtol: float = 1e-5
    ) -> tuple[bool, str | None]:
        for i, manifold in enumerate(self.manifolds):
            ok, reason = manifold._check_vector_on_tangent(
                self._part(x, i), self._part(u, i), atol=atol, rtol=rtol
            )
            if not ok:
                return False, f"factor {i}, {manifold.name}: {reason}"
        return True, None

    # Parts

    def _part(self, x: Tensor, i: int) -> Tensor:
        """View of the points of factor i."""
        return self.take_submanifold_value(x, i)

    def _each(self, name: str, *tensors: Tensor) -> Tensor:
        """Result of a method of the factors, packed."""
        parts = zip(*map(self.unpack_tensor, tensors), strict=True)
        return self.pack_point(
            *(getattr(m, name)(*own) for m, own in zip(self.manifolds, parts, strict=True))
        )

    def _each_pair(self, name: str, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """Both results of a method of the factors, packed."""
        parts = zip(*map(self.unpack_tensor, tensors), strict=True)
        results = [getattr(m, name)(*own) for m, own in zip(self.manifolds, parts, strict=True)]
        first, second = zip(*results, strict=True)
        return self.pack_point(*first), self.pack_point(*second)

    def _lengths(self, name: str, *tensors: Tensor) -> Tensor:
        """Numbers that a method of the factors returns, side by side in the last dimension."""
        parts = zip(*map(self.unpack_tensor, tensors), strict=True)
        results = [getattr(m, name)(*own) for m, own in zip(self.manifolds, parts, strict=True)]
        return torch.stack(torch.broadcast_tensors(*results), -1)

    def _values(self, name: str, block: CoordinateBlock, *tensors: Tensor) -> Tensor:
        """What a method of the factors says of the coordinates of a block, in the block's shape."""
        x = tensors[0]
        batch = x.shape[:-1]
        if isinstance(block, All):
            values = [
                getattr(self.manifolds[i], name)(
                    *(self._part(y, i) for y in tensors), block
                ).expand(*batch, count)
                for i, _, count in self._numbered()
            ]
            return torch.cat(values, -1) if values else x.new_zeros((*batch, 0))
        items, entries = items_of(batch, block)
        if isinstance(block, Coordinates):
            value = x.new_zeros(items)
            for i, mine, own in self._split(block.index.expand(items)):
                method = getattr(self.manifolds[i], name)
                part = Coordinates(own, disjoint=False)
                value = torch.where(mine, method(*(self._part(y, i) for y in tensors), part), value)
            return value
        value = x.new_zeros((math.prod(items), *entries))
        for i, at, which, own in self._shares(batch, block):
            method = getattr(self.manifolds[i], name)
            value[which] = method(*(self._part(y, i)[at] for y in tensors), Groups(own))
        return value.unflatten(0, items)

    def _numbered(self) -> Iterator[tuple[int, int, int]]:
        """Factors that have coordinates: their place, the number of the first one, and how many."""
        for i, (first, end) in enumerate(itertools.pairwise(self._first_coordinate)):
            if end > first:
                yield i, first, end - first

    def _split(self, index: Tensor, *, skip: bool = True) -> Iterator[tuple[int, Tensor, Tensor]]:
        """For each factor: which coordinates are its own, and their numbers there.

        In the place of another factor's coordinate stands any number that the factor has. With `skip` a
        factor that has none of the coordinates is passed over, if the host can see it without
        waiting.
        """
        for i, first, count in self._numbered():
            own = index - first
            mine = (own >= 0) & (own < count)
            if skip and readable(index) and not bool(mine.any()):
                continue
            yield i, mine, own.clamp(0, count - 1)

    def _shares(
        self, batch: tuple[int, ...], block: Coordinates | Groups
    ) -> Iterator[tuple[int, tuple[Tensor, ...], Tensor, Tensor]]:
        """Coordinates, or groups, of a block, factor by factor, for points that have equally many there.

        Yields the factor; which points of the batch; the places of their coordinates in the flattened
        block, shape ``(m, n)``, or ``(n,)`` without a batch; and what they are in the factor.
        """
        items, _ = items_of(batch, block)
        if isinstance(block, Coordinates):
            flat, begins = block.index.expand(items).flatten(), self._first_coordinate
            factor = _interval(flat, begins)
        else:
            flat = block.axes.expand(*items, -1).flatten(0, len(batch))
            begins = self._first_axis
            factor = _interval(flat[:, 0], begins)
        for i in range(self.n_manifolds):
            members = (factor == i).nonzero().squeeze(-1)
            if members.numel() == 0:
                continue
            for points, places in by_count(members // items[-1]):
                which = members[places]
                which = which if batch else which[0]
                yield i, unravel(points, batch), which, flat[which] - begins[i]


def _interval(numbers: Tensor, begins: list[int]) -> Tensor:
    """Which interval numbers lie in; `begins` are the beginnings and the end of the last."""
    # Compared one by one: a tensor of the beginnings would have to be copied to an accelerator.
    passed = torch.zeros_like(numbers)
    for end in begins[1:]:
        passed += numbers >= end
    return passed
