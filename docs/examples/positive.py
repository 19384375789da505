"""Positive vectors as a manifold with coordinates, and a matrix balanced on it."""

# ruff: noqa: D102 - the formulas of the class docstring, one method each

import torch
from geoopt import ManifoldParameter

from givens.manifolds import CoordinateManifold, Coordinates, Groups
from givens.optim import SRCD, GaussSouthwell


class PositiveVectors(CoordinateManifold):
    """The positive vectors {x ∈ ℝⁿ : xᵢ > 0}, with the metric ⟨u, v⟩ = Σ uᵢvᵢ/xᵢ².

    Every vector is tangent. Exp_x(u)ᵢ = xᵢ exp(uᵢ/xᵢ), Log_x(y)ᵢ = xᵢ log(yᵢ/xᵢ), grad fᵢ = xᵢ² ∂f/∂xᵢ.
    Coordinate i multiplies the entry i by eᵗ. Its axis is that entry, its direction xᵢeᵢ: an
    orthonormal basis.
    """

    name, ndim, reversible = "PositiveVectors", 1, True

    def _check_point_on_manifold(self, x, *, atol=1e-5, rtol=1e-5):
        return (True, None) if bool((x > 0).all()) else (False, "an entry is not positive")

    def _check_vector_on_tangent(self, x, u, *, atol=1e-5, rtol=1e-5):
        return True, None

    def random(self, *size, dtype=None, device=None):
        return torch.randn(*size, dtype=dtype, device=device).exp()

    def projx(self, x):
        return x.clamp(min=torch.finfo(x.dtype).eps)

    def proju(self, x, u):
        return u

    def egrad2rgrad(self, x, u):
        return x.square() * u

    def inner(self, x, u, v=None, *, keepdim=False):
        return (u / x * ((u if v is None else v) / x)).sum(-1, keepdim=keepdim)

    def expmap(self, x, u):
        return x * (u / x).exp()

    retr = expmap

    def logmap(self, x, y):
        return x * (y / x).log()

    def dist(self, x, y, *, keepdim=False):
        return (y / x).log().norm(dim=-1, keepdim=keepdim)

    def transp(self, x, y, v):
        return v * (y / x)

    def num_axes(self, x):
        return x.shape[-1]

    num_coordinates = num_axes

    def axes(self, x, index):
        return index.unsqueeze(-1)

    def direction(self, x, index):
        return x.unsqueeze(-2) * torch.nn.functional.one_hot(index, x.shape[-1])

    def derivatives(self, x, egrad, block):
        return (x * egrad).gather(-1, self._entries(x, block))

    def move_(self, x, block, t):
        entries = self._entries(x, block)
        times = t.to(x.dtype).expand(entries.shape)
        return x.mul_(torch.zeros_like(x).scatter_add_(-1, entries, times).exp())

    def _entries(self, x, block):
        self.check_block(x, block)
        if isinstance(block, Groups):
            raise NotImplementedError(
                "every coordinate has one axis, so a group of axes holds none"
            )
        every = torch.arange(x.shape[-1], device=x.device)
        index = block.index if isinstance(block, Coordinates) else every
        return index.expand(*x.shape[:-1], index.shape[-1])


if __name__ == "__main__":
    # Where xᵀAx/2 − Σ log xᵢ is smallest, all rows and columns of the matrix xᵢAᵢⱼxⱼ add up to 1.
    A = torch.rand(20, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    A = A + A.T
    x = ManifoldParameter(torch.ones(20, dtype=torch.float64), manifold=PositiveVectors())
    optimizer = SRCD([x], lr=0.5, selection=GaussSouthwell())
    for _ in range(500):
        optimizer.zero_grad()
        (x @ A @ x / 2 - x.log().sum()).backward()
        optimizer.step()
    sums = (x * (A @ x)).detach()
    print(f"row sums are {sums.min():.9f} to {sums.max():.9f}")
    assert torch.allclose(sums, torch.ones_like(sums), atol=1e-8)
