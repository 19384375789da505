"""The unit sphere as a manifold with coordinates, and an eigenvector found on it."""

import geoopt
import torch
from torch import Tensor

from givens.manifolds import All, CoordinateBlock, CoordinateManifold, Coordinates
from givens.manifolds.pairs import number_to_pair
from givens.manifolds.rotations import rotate_columns_
from givens.optim import SRCD, GaussSouthwell


class Sphere(CoordinateManifold, geoopt.Sphere):
    """The unit sphere {x ∈ ℝⁿ : ‖x‖ = 1}, with the rotations of two entries as coordinates.

    Coordinate i is the pair of entries (j, l), j < l; moving along it for the time t rotates the two
    by the angle t. Its direction is f_i = x_j e_l − x_l e_j. There are n(n − 1)/2 directions for
    n − 1 dimensions: a frame, with Σ ⟨ξ, f_i⟩² = ‖ξ‖² for every tangent vector ξ.
    """

    def num_axes(self, x: Tensor) -> int:
        """Return n: the axes are the entries."""
        return x.shape[-1]

    def num_coordinates(self, x: Tensor) -> int:
        """Return n(n − 1)/2."""
        return x.shape[-1] * (x.shape[-1] - 1) // 2

    def axes(self, x: Tensor, index: Tensor) -> Tensor:
        """Return the pairs (j, l), shape ``(..., k, 2)``."""
        return torch.stack(number_to_pair(index, x.shape[-1]), dim=-1)

    def direction(self, x: Tensor, index: Tensor) -> Tensor:
        """Return f_i as dense vectors, shape ``(*batch, k, n)``."""
        j, l = self._pairs(x, Coordinates(index, disjoint=False))
        f = x.new_zeros(*j.shape, x.shape[-1])
        f.scatter_(-1, j.unsqueeze(-1), -x.gather(-1, l).unsqueeze(-1))
        return f.scatter_(-1, l.unsqueeze(-1), x.gather(-1, j).unsqueeze(-1))

    def derivatives(self, x: Tensor, egrad: Tensor, block: CoordinateBlock) -> Tensor:
        """Return ⟨grad f, f_i⟩ = x_j g_l − x_l g_j: O(1) a coordinate."""
        j, l = self._pairs(x, block)
        return x.gather(-1, j) * egrad.gather(-1, l) - x.gather(-1, l) * egrad.gather(-1, j)

    def move_(self, x: Tensor, block: CoordinateBlock, t: Tensor) -> Tensor:
        """Rotate pairs of entries, O(1) each; pairs that share one follow Exp_x(Σ t_i f_i), O(n)."""
        j, l = self._pairs(x, block)
        if isinstance(block, Coordinates) and block.disjoint:
            rotate_columns_(x.unsqueeze(-2), j, l, t.expand(j.shape))
            return x
        u = torch.zeros_like(x)
        u.scatter_add_(-1, j, -t * x.gather(-1, l))
        u.scatter_add_(-1, l, t * x.gather(-1, j))
        return x.copy_(self.expmap(x, u))

    def restore_(self, x: Tensor) -> Tensor:
        """Divide by the norm, which rounding has moved away from 1."""
        return x.div_(x.norm(dim=-1, keepdim=True))

    def _pairs(self, x: Tensor, block: CoordinateBlock) -> tuple[Tensor, Tensor]:
        """Return j and l of a block's coordinates, shape ``(*batch, k)``."""
        self.check_block(x, block)
        if isinstance(block, Coordinates):
            index = block.index
        elif isinstance(block, All):
            index = torch.arange(self.num_coordinates(x), device=x.device)
        else:
            raise NotImplementedError("Sphere moves along Coordinates or All, not along Groups")
        return number_to_pair(index.expand(*x.shape[:-1], index.shape[-1]), x.shape[-1])


if __name__ == "__main__":
    # The leading eigenvector of a symmetric matrix is where xᵀAx is largest on the sphere.
    n = 30
    A = torch.randn(n, n, generator=torch.Generator().manual_seed(0))
    A = (A + A.T) / (2 * n) ** 0.5

    sphere = Sphere()
    x = geoopt.ManifoldParameter(torch.full((n,), n**-0.5), manifold=sphere)
    optimizer = SRCD([x], lr=0.5, selection=GaussSouthwell(), maximize=True)
    for _ in range(1000):
        optimizer.zero_grad()
        value = x @ A @ x
        value.backward()
        optimizer.step()

    largest = torch.linalg.eigvalsh(A)[-1]
    print(f"xᵀAx = {value.item():.5f}, largest eigenvalue {largest.item():.5f}")
    assert torch.isclose(value, largest, atol=1e-4)
