"""What a law of :mod:`givens.manifolds.testing.laws` draws, and how it compares."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..base import CoordinateManifold
from ..blocks import All, CoordinateBlock, Coordinates, Groups

__all__ = ["Case", "DoesNotApply", "Found", "Setting"]


class Found(Exception):  # noqa: N818
    """A law does not hold, and by how much."""


class DoesNotApply(Exception):  # noqa: N818
    """There is nothing to check, for a reason."""


@dataclass(frozen=True)
class Setting:
    """What all inputs have in common: the arguments of ``check_manifold``."""

    manifold: CoordinateManifold
    shape: tuple[int, ...]
    dtypes: tuple[torch.dtype, ...]
    batches: tuple[tuple[int, ...], ...]
    device: torch.device
    cost: Callable[[Tensor], Tensor] | None
    max_examples: int

    @property
    def widest(self) -> torch.dtype:
        """The most precise type."""
        return min(self.dtypes, key=lambda dtype: torch.finfo(dtype).eps)


class Case:
    """One input of a law: it draws points, vectors, blocks and times, and compares results.

    Everything that it draws follows from the seed.

    Attributes
    ----------
    manifold : CoordinateManifold
        The manifold that is checked.
    dtype, batch, size, seed
        Type of the points, shape of the batch, size of vectors and times, seed of the noise.
    kind : str or None
        The kind of block, for a law that is about blocks.
    story : dict
        What else a message shows of the input.
    """

    def __init__(
        self,
        setting: Setting,
        dtype: torch.dtype,
        batch: tuple[int, ...],
        size: float,
        seed: int,
        kind: str | None,
    ) -> None:
        self.setting, self.manifold = setting, setting.manifold
        self.dtype, self.batch, self.size, self.seed, self.kind = dtype, batch, size, seed, kind
        self.story: dict[str, object] = {}
        self._generator = self._stream(1)
        self._dims = tuple(range(-len(setting.shape), 0))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the points, the batch's dimensions first."""
        return (*self.batch, *self.setting.shape)

    @property
    def quotient(self) -> bool:
        """Whether points count as equal that differ in their representation."""
        return self.setting.cost is not None

    def tell(self, name: str, value: object) -> None:
        """Let a message show something that was drawn."""
        self.story[name] = value

    # Draws

    def _stream(self, number: int) -> torch.Generator:
        """Random numbers that have nothing to do with the manifold's own, which start from the seed."""
        return torch.Generator().manual_seed(self.seed ^ number * 0x9E3779B9 % 2**32)

    def noise(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Normal noise, by default of the shape and type of the points."""
        dtype = dtype or self.dtype
        wide = torch.complex128 if dtype.is_complex else torch.float64
        drawn = torch.randn(shape or self.shape, dtype=wide, generator=self._generator)
        return drawn.to(dtype).to(self.setting.device)

    def integers(self, high: int, *shape: int) -> Tensor:
        """Uniform integers below `high`."""
        return torch.randint(high, shape, generator=self._generator).to(self.setting.device)

    def point(self) -> Tensor:
        """A batch of random points."""
        try:
            x = self.manifold.random(*self.shape, dtype=self.dtype, device=self.setting.device)
        except NotImplementedError:
            x = self.manifold.projx(self.noise())
        return plain(x).clone()

    def vector(self, x: Tensor, length: float | None = None) -> Tensor:
        """A tangent vector of a length, by default of this case's size: in the metric and around it.

        The longer of the two counts, for a metric may be a small multiple of the ambient one.
        """
        u = self.manifold.proju(x, self.noise(*x.shape))
        length = self.size if length is None else length
        square = self.manifold.inner(x, u, keepdim=True)
        square = torch.maximum(square, self.per_point(self.dot(u, u)))
        return u * (length / square.sqrt())

    def nearby(self) -> tuple[Tensor, Tensor, Tensor]:
        """A point, a short vector and where it leads: not as far as geodesics meet again."""
        x = self.point()
        u = self.vector(x, 0.2 * min(self.size, 1.0))
        return x, u, self.manifold.expmap(x, u)

    def one(self, x: Tensor) -> Coordinates:
        """A block of one coordinate."""
        index = self.integers(self.manifold.num_coordinates(x), *self.batch, 1)
        self.tell("coordinate", index)
        return Coordinates(index, disjoint=True)

    def every(self, x: Tensor) -> Coordinates:
        """All coordinates by their numbers."""
        total = self.manifold.num_coordinates(x)
        index = torch.arange(total, device=x.device).expand(*self.batch, total)
        return Coordinates(index, disjoint=False)

    def block(self, x: Tensor) -> CoordinateBlock:
        """A block of this case's kind."""
        block: CoordinateBlock = All()
        if self.kind == "disjoint":
            block = Coordinates(self._disjoint(x), disjoint=True)
        elif self.kind == "overlapping":
            k, total = 2 + int(self.integers(4, 1)), self.manifold.num_coordinates(x)
            block = Coordinates(self.integers(total, *self.batch, k), disjoint=False)
        elif self.kind == "groups":
            block = Groups(self._groups(x))
        self.tell("block", block)
        return block

    def _disjoint(self, x: Tensor) -> Tensor:
        """Numbers of coordinates without a common axis, equally many for every point of the batch."""
        rows = []
        for _ in range(math.prod(self.batch)):
            order = torch.randperm(self.manifold.num_coordinates(x), generator=self._generator)
            axes = self.manifold.axes(x, order.to(x.device)).tolist()
            used: set[int] = set()
            row = []
            for number, own in zip(order.tolist(), axes, strict=True):
                if not used & set(own):
                    used |= set(own)
                    row.append(number)
            rows.append(row)
        k = 1 + int(self.integers(min(len(row) for row in rows), 1))
        index = torch.tensor([row[:k] for row in rows], dtype=torch.int64, device=x.device)
        return index.view(*self.batch, k)

    def _groups(self, x: Tensor) -> Tensor:
        """Groups of r axes that coordinates join, as many as there are, different for every point."""
        total = self.manifold.num_coordinates(x)
        parts = [{axis} for axis in range(self.manifold.num_axes(x))]
        for turned in self.manifold.axes(x, torch.arange(total, device=x.device)).tolist():
            joined = [part for part in parts if part & set(turned)]
            parts = [part for part in parts if part not in joined] + [set().union(*joined)]
        most = max(len(part) for part in parts)
        if most == 1:  # nothing is joined, and what a group might mean is not known
            parts, most = [set(range(len(parts)))], len(parts)
        r = min(most, 2 + int(self.integers(max(1, most - 1), 1)))
        rows = []
        for _ in range(math.prod(self.batch)):
            row: list[list[int]] = []
            for part in parts:
                order = torch.randperm(len(part), generator=self._generator)
                dealt = torch.tensor(sorted(part))[order][: len(part) // r * r]
                row += dealt.view(-1, r).sort(-1).values.tolist()
            rows.append(row)
        groups = torch.tensor(rows, dtype=torch.int64, device=x.device)
        return groups.view(*self.batch, -1, r)

    def times(self, x: Tensor, block: CoordinateBlock) -> Tensor:
        """Times for a block, of this case's size."""
        if isinstance(block, Groups):
            t = self.noise(*block.axes.shape, block.axes.shape[-1])
            t = (t - t.mH) / 2
        else:
            index = block.index if isinstance(block, Coordinates) else self.every(x).index
            t = self.noise(*index.shape, dtype=self.dtype.to_real())
        t = self.size * t
        self.tell("times", t)
        return t

    def cost(self, x: Tensor) -> Tensor:
        """The cost of points: the user's, or a random smooth function of the ambient space."""
        if self.setting.cost is not None:
            return self.setting.cost(x)
        generator = self._stream(2)
        flat = plain(x).flatten(-len(self._dims))
        flat = torch.view_as_real(flat).flatten(-2) if x.is_complex() else flat
        n = flat.shape[-1]
        a, b = torch.randn(2, n, dtype=torch.float64, generator=generator).to(flat)
        return ((flat * a).sin() * b).sum(-1) + (flat * b).sum(-1).square() / n

    def egrad(self, x: Tensor) -> Tensor:
        """The Euclidean gradient of the cost."""
        y = x.detach().clone().requires_grad_()
        return torch.autograd.grad(self.cost(y).sum(), y)[0]

    # Arithmetic

    def dot(self, u: Tensor, v: Tensor) -> Tensor:
        """The inner product of the ambient space, Re⟨u, v⟩, one for each point."""
        return (u.conj() * v).real.sum(self._dims)

    def per_point(self, value: Tensor) -> Tensor:
        """Give a tensor of the batch's shape the dimensions of a point, as ones."""
        return value[(..., *(None,) * len(self._dims))]

    def slope(self, f: Callable[[float], Tensor], h: float = 2.0**-9) -> Tensor:
        """The derivative of f at 0, by differences of fourth order."""
        return (8 * (f(h) - f(-h)) - (f(2 * h) - f(-2 * h))) / (12 * h)

    def gram(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """The inner products of two lists of tangent vectors at one point."""
        shape = (u.shape[0], v.shape[0], *self.setting.shape)
        x, u, v = x.expand(shape), u.unsqueeze(1).expand(shape), v.unsqueeze(0).expand(shape)
        return self.manifold.inner(x, u, v)

    def tangent_basis(self, x: Tensor) -> Tensor:
        """An orthonormal basis of the tangent space at one point, shape ``(dimension, *shape)``."""
        n = math.prod(self.setting.shape)
        ambient = torch.eye(n, dtype=self.dtype, device=x.device).unflatten(-1, self.setting.shape)
        if self.dtype.is_complex:
            ambient = torch.cat([ambient, 1j * ambient])
        vectors = self.manifold.proju(x.expand_as(ambient), ambient)
        values, mix = torch.linalg.eigh(self.gram(x, vectors, vectors))
        keep = values > 1e-6 * values.max()
        mix = (mix[:, keep] / values[keep].sqrt()).to(self.dtype)
        return torch.tensordot(mix.mT, vectors, dims=1)

    def frame(self) -> tuple[Tensor, Tensor]:
        """⟨q, f⟩ for an orthonormal tangent basis q and all directions f at one point; the point."""
        self.batch = ()
        x = self.point()
        f = self.manifold.direction(x, self.every(x).index)
        return self.gram(x, self.tangent_basis(x), f), x

    # Tolerances: all of them are here

    def tolerance(self, *sizes: Tensor) -> float:
        """What rounding may do: 20 units in the last place, times dimension and magnitudes."""
        scale = 1 + sum(largest(size) for size in sizes)
        return 20 * torch.finfo(self.dtype).eps * max(self.setting.shape) * scale**2

    def last_digits(self, x: Tensor) -> float:
        """What the rounding of exact entries may do to equations of second degree."""
        return 8 * torch.finfo(self.dtype).eps * (1 + largest(x)) ** 2

    def rough(self, *sizes: Tensor) -> float:
        """What rounding and truncation may do to a finite difference in float64."""
        return 1e-8 * max(self.setting.shape) * (1 + sum(largest(size) for size in sizes)) ** 2

    # Comparisons: each raises Found

    def require(self, condition: bool, otherwise: str) -> None:
        """Let a condition hold."""
        if not condition:
            raise Found(otherwise)

    def close(
        self,
        actual: Tensor,
        expected: Tensor,
        what: str,
        *sizes: Tensor,
        tolerance: float | None = None,
    ) -> None:
        """Let two tensors agree: in shape, and up to a tolerance that grows with `sizes`."""
        shapes = tuple(actual.shape), tuple(expected.shape)
        self.require(
            shapes[0] == shapes[1], f"{what}: they have shapes {shapes[0]} and {shapes[1]}"
        )
        allowed = self.tolerance(expected, *sizes) if tolerance is None else tolerance
        wide = torch.complex128 if actual.is_complex() or expected.is_complex() else torch.float64
        difference = largest(plain(actual).to(wide) - plain(expected).to(wide))
        self.require(
            difference <= allowed,  # which what is not a number is not
            f"{what}: they differ by {difference:.1e}, allowed is {allowed:.1e}",
        )

    def same_point(self, x: Tensor, y: Tensor, what: str, *sizes: Tensor) -> None:
        """Let two tensors be one point; on a quotient, by the cost there and after random moves."""
        if not self.quotient:
            return self.close(x, y, what, *sizes)
        for _ in range(4):
            self.close(self.cost(x), self.cost(y), f"{what}, by the cost", x, *sizes)
            one, time = self.one(x), self.noise(*self.batch, 1, dtype=self.dtype.to_real())
            x, y = self.manifold.move(x, one, time), self.manifold.move(y, one, time)
        return None

    def kept(self, x: Tensor, what: str, shape: tuple[int, ...] | None = None) -> None:
        """Let a tensor have the shape, type and device of the points."""
        shape, device = self.shape if shape is None else shape, self.setting.device
        same = x.shape == shape and x.dtype == self.dtype and x.device.type == device.type
        self.require(
            same,
            f"{what} has shape {tuple(x.shape)} in {x.dtype} on {x.device}; "
            f"expected {shape} in {self.dtype} on {device}",
        )

    def on_manifold(self, x: Tensor, what: str, tolerance: float | None = None) -> None:
        """Let a tensor be a point by the manifold's check, of the shape and type of this case."""
        self.kept(x, what)
        self.require(bool(x.isfinite().all()), f"{what} is not finite")
        tolerance = self.tolerance(x) if tolerance is None else tolerance
        ok, why = self.manifold.check_point_on_manifold(
            plain(x).to(self.setting.widest), explain=True, atol=tolerance, rtol=0.0
        )
        self.require(ok, f"{what} is no point, to a tolerance of {tolerance:.1e}: {why}")

    def on_tangent(
        self, x: Tensor, u: Tensor, what: str, *sizes: Tensor, tolerance: float | None = None
    ) -> None:
        """Let a tensor be a tangent vector by the manifold's check, of the points' shape and type."""
        self.kept(u, what)
        self.require(bool(u.isfinite().all()), f"{what} is not finite")
        tolerance = self.tolerance(x, u, *sizes) if tolerance is None else tolerance
        ok, why = self.manifold.check_vector_on_tangent(
            x, u, explain=True, ok_point=True, atol=tolerance, rtol=0.0
        )
        self.require(ok, f"{what} is not tangent, to a tolerance of {tolerance:.1e}: {why}")


def plain(x: Tensor) -> Tensor:
    """A tensor without its subclass."""
    return x.as_subclass(Tensor)


def largest(x: Tensor) -> float:
    """The largest entry in magnitude; not a number, where one is not."""
    return float(x.detach().abs().max()) if x.numel() else 0.0
