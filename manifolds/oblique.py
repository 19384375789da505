"""The oblique manifold: matrices whose columns, or rows, are unit vectors."""

from __future__ import annotations

import torch
from geoopt import ManifoldTensor
from torch import Tensor

from .blocks import All, CoordinateBlock, Groups
from .embedded import EmbeddedMetric
from .pairs import number_to_pair, pair_to_number
from .rotation_coordinates import RotationCoordinates
from .sphere import Sphere

__all__ = ["Oblique"]


class Oblique(EmbeddedMetric, RotationCoordinates):
    r"""The oblique manifold {X ∈ ℝ^{n×p} : diag(XᵀX) = 1}, with the metric ⟨U, V⟩ = tr(UᵀV).

    Every column is a point of the unit sphere S^{n−1}, by itself: a product of p spheres (Absil and
    Gallivan, 2006). With ``dim=-1`` it is the rows that are unit vectors.

    A coordinate rotates two entries of one column, as on :class:`Sphere`, in O(1). They are numbered
    column after column: c·n(n − 1)/2 + the number of the pair of rows. The axes are the entries, by
    their places in the row-major order of the matrix, so that coordinates in different columns commute,
    as do disjoint ones in one. The directions are a Parseval frame.

    Points have shape ``(..., n, p)``, float32 or float64; n >= 2 and p >= 1 (for rows, the other way
    round).

    Parameters
    ----------
    dim : {-2, -1}
        Dimension along which the norm is 1: -2 for columns, -1 for rows.
    retraction : {"exponential", "projection"}
        What :meth:`retr` does, as on the sphere.

    Notes
    -----
    A move works in place if the entries of every point lie in row-major order with equal strides, as
    those of a contiguous tensor do. Otherwise, as for a transposed one, it costs two copies of the point.

    Examples
    --------
    >>> import torch
    >>> from givens.manifolds import Oblique
    >>> manifold = Oblique()
    >>> x = manifold.random(4, 3, dtype=torch.float64)
    >>> bool(manifold.check_point_on_manifold(x)), manifold.num_coordinates(x)
    (True, 18)
    """

    name = "Oblique"
    ndim = 2
    reversible = False
    every_pair = False

    def __init__(self, dim: int = -2, retraction: str = "exponential") -> None:
        super().__init__()
        if dim not in (-2, -1):
            raise ValueError(f"dim={dim!r}: expected -2 (unit columns) or -1 (unit rows)")
        self.dim = dim
        self._sphere = Sphere(retraction)

    def extra_repr(self) -> str:
        """Show the dimension, and the retraction where it is not the exponential."""
        return ", ".join(filter(None, [f"dim={self.dim}", self._sphere.extra_repr()]))

    def _spheres(self, x: Tensor) -> Tensor:
        """Matrices as points of spheres, shape ``(..., p, n)``; its own inverse."""
        return x.mT if self.dim == -2 else x

    # Points and tangent vectors

    def random(
        self,
        *size: int,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Points with independent columns, uniformly distributed over the sphere.

        Parameters
        ----------
        *size : int
            Shape ``(..., n, p)``.
        dtype, device, generator
            As in :func:`torch.randn`.

        Returns
        -------
        ManifoldTensor
            With columns of norm 1 to the last digit.
        """
        shape, dtype = self._checked_size(*size, dtype=dtype)
        x = torch.randn(shape, dtype=torch.float64, device=device, generator=generator)
        return ManifoldTensor(self.projx(x).to(dtype), manifold=self)

    def origin(
        self,
        *size: int,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        seed: int | None = None,
    ) -> Tensor:
        """Matrices whose columns all are the first unit vector; `seed` is ignored."""
        shape, dtype = self._checked_size(*size, dtype=dtype)
        x = torch.zeros(shape, dtype=dtype, device=device)
        x.select(self.dim, 0).fill_(1)
        return ManifoldTensor(x, manifold=self)

    def projx(self, x: Tensor) -> Tensor:
        """Nearest point: every column divided by its norm. A zero column goes to the first unit vector."""
        self._assert_check_shape(x.shape, "x")
        self._assert_dtype(x.dtype)
        return self._spheres(self._sphere.projx(self._spheres(x)))

    def proju(self, x: Tensor, u: Tensor) -> Tensor:
        """Orthogonal projection on the tangent space, column by column: u − x·diag(xᵀu)."""
        return self._spheres(self._sphere.proju(self._spheres(x), self._spheres(u)))

    # Maps: those of the sphere, column by column

    def expmap(self, x: Tensor, u: Tensor) -> Tensor:
        """Exp_x(u): :meth:`Sphere.expmap` of every column."""
        return self._spheres(self._sphere.expmap(self._spheres(x), self._spheres(u)))

    def logmap(self, x: Tensor, y: Tensor) -> Tensor:
        """Log_x(y): :meth:`Sphere.logmap` of every column, whose cut locus is an opposite column."""
        return self._spheres(self._sphere.logmap(self._spheres(x), self._spheres(y)))

    def dist(self, x: Tensor, y: Tensor, *, keepdim: bool = False) -> Tensor:
        """Geodesic distance: the root of the sum of the squares of the columns' distances."""
        angles = self._sphere.dist(self._spheres(x), self._spheres(y))
        distance = torch.linalg.vector_norm(angles, dim=-1)
        return distance[..., None, None] if keepdim else distance

    def retr(self, x: Tensor, u: Tensor) -> Tensor:
        """The retraction that the constructor names, of every column."""
        return self._spheres(self._sphere.retr(self._spheres(x), self._spheres(u)))

    def transp(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """Orthogonal projection on the tangent space at y: no isometry, but needs no geodesic."""
        return self.proju(y, v)

    def transp_follow_expmap(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Levi-Civita's parallel transport along Exp_x(tu) to t = 1, of every column."""
        spheres = (self._spheres(w) for w in (x, u, v))
        return self._spheres(self._sphere.transp_follow_expmap(*spheres))

    def expmap_transp(self, x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Exp_x(u), and v transported along it as Levi-Civita does."""
        return self.expmap(x, u), self.transp_follow_expmap(x, u, v)

    # Coordinates

    def columns(self, x: Tensor) -> Tensor:
        """Return the entries as matrices of one row, shape ``(..., 1, n·p)``: a view where there is one."""
        return x.flatten(-2).unsqueeze(-2)

    def num_coordinates(self, x: Tensor) -> int:
        """Return p·n(n − 1)/2, the number of pairs of entries that share a column."""
        return self._spheres(x).shape[-2] * self._pairs_each(x)

    def num_disjoint(self, x: Tensor) -> int:
        """Return p·⌊n/2⌋."""
        return self._spheres(x).shape[-2] * (x.shape[self.dim] // 2)

    def axes(self, x: Tensor, index: Tensor) -> Tensor:
        """Return the places of the two entries of each coordinate, ascending: shape ``(..., k, 2)``."""
        sphere = torch.div(index, self._pairs_each(x), rounding_mode="floor")
        pair = index - sphere * self._pairs_each(x)
        entries = torch.stack(number_to_pair(pair, x.shape[self.dim]), dim=-1)
        sphere = sphere.unsqueeze(-1)
        row, column = (entries, sphere) if self.dim == -2 else (sphere, entries)
        return row * x.shape[-1] + column

    def number(self, x: Tensor, j: Tensor | int, l: Tensor | int) -> Tensor:
        """Return the numbers of the coordinates that turn the entries j and l, j < l.

        Raises
        ------
        ValueError
            If two entries do not share a column; no coordinate turns them. The host reads the entries.
        """
        (sphere, first), (other, second) = (
            self._place(x, torch.atleast_1d(torch.as_tensor(axis, device=x.device)))
            for axis in (j, l)
        )
        if not torch.equal(*torch.broadcast_tensors(sphere, other)):
            what = "column" if self.dim == -2 else "row"
            raise ValueError(f"number: j and l are entries of different {what}s; see axes")
        return sphere * self._pairs_each(x) + pair_to_number(first, second, x.shape[self.dim])

    def derivatives(self, x: Tensor, egrad: Tensor, block: CoordinateBlock) -> Tensor:
        """Return the partial derivatives x_a·g_b − x_b·g_a, of entries a and b in one column.

        Costs O(k) for `Coordinates`, O(n²p) for `All`, O(mr²) for m `Groups`, where entries in different
        columns have no coordinate: their derivative is 0.
        """
        if isinstance(block, All):
            self._check_pair(x, egrad, "egrad")
            return self._sphere.derivatives(self._spheres(x), self._spheres(egrad), block).flatten(
                -2
            )
        derivatives = super().derivatives(x, egrad, block)
        if isinstance(block, Groups):
            return torch.where(self._share(x, block), derivatives, 0.0)
        return derivatives

    def steepest(self, x: Tensor, egrad: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return the k coordinates of the largest ``|⟨grad f, f_i⟩|``, and their derivatives: O(n²p).

        The steepest of all columns are among the k steepest of each.
        """
        self._check_pair(x, egrad, "egrad")
        self._check_count(x, k)
        each = self._pairs_each(x)
        index, slope = self._sphere.steepest(self._spheres(x), self._spheres(egrad), min(k, each))
        first = each * torch.arange(index.shape[-2], device=x.device).unsqueeze(-1)
        index, slope = (index + first).flatten(-2), slope.flatten(-2)
        order = slope.abs().topk(k, dim=-1).indices
        return index.gather(-1, order), slope.gather(-1, order)

    def move_(self, x: Tensor, block: CoordinateBlock, t: Tensor) -> Tensor:
        """Follow the coordinates of a block for the times t, in place.

        Disjoint `Coordinates` are rotations of two entries, O(1) each; overlapping ones, and `All`, are the
        exponential of Σ t_i f_i, O(np). `Groups` are batched r×r exponentials; times of entries in
        different columns belong to no coordinate, and are passed over.
        """
        self._assert_check_shape(x.shape, "x")
        rows, width = x.shape[-2:]
        if width > 1 and rows > 1 and x.stride(-2) != width * x.stride(-1):
            return x.copy_(self.move_(x.clone(memory_format=torch.contiguous_format), block, t))
        if isinstance(block, Groups):
            self._check_move(x, block, t)
            t = torch.where(self._share(x, block), t, 0.0)
        return super().move_(x, block, t)

    def restore_(self, x: Tensor) -> Tensor:
        """Divide every column by its norm, taken in float64, in place: O(np)."""
        self._sphere.restore_(self._spheres(x))
        return x

    def _pairs_each(self, x: Tensor) -> int:
        """Number of coordinates of one column."""
        n = x.shape[self.dim]
        return n * (n - 1) // 2

    def _place(self, x: Tensor, axis: Tensor) -> tuple[Tensor, Tensor]:
        """Column of an entry, and place in it."""
        row = torch.div(axis, x.shape[-1], rounding_mode="floor")
        column = axis - row * x.shape[-1]
        return (column, row) if self.dim == -2 else (row, column)

    def _share(self, x: Tensor, block: Groups) -> Tensor:
        """Which entries of a group share a column, shape ``(..., n, r, r)``."""
        sphere, _ = self._place(x, block.axes)
        return sphere.unsqueeze(-1) == sphere.unsqueeze(-2)

    # Checks

    def _check_shape(self, shape: tuple[int, ...], name: str) -> tuple[bool, str | None]:
        if len(shape) >= 2 and shape[self.dim] >= 2 and shape[-3 - self.dim] >= 1:
            return True, None
        expected = "n >= 2 and p >= 1" if self.dim == -2 else "n >= 1 and p >= 2"
        return False, (
            f"'{name}' has shape {tuple(shape)}; {self.name} with dim={self.dim} expects "
            f"(..., n, p) with {expected}"
        )

    def _check_point_on_manifold(
        self, x: Tensor, *, atol: float = 1e-5, rtol: float = 1e-5
    ) -> tuple[bool, str | None]:
        return self._sphere._check_point_on_manifold(self._spheres(x), atol=atol, rtol=rtol)

    def _check_vector_on_tangent(
        self, x: Tensor, u: Tensor, *, atol: float = 1e-5, rtol: float = 1e-5
    ) -> tuple[bool, str | None]:
        u = self._spheres(u)
        return self._sphere._check_vector_on_tangent(self._spheres(x), u, atol=atol, rtol=rtol)
