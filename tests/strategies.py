"""What the tests draw: sizes, dtypes, and seeded noise from which points and blocks are made."""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from givens.manifolds import Coordinates, Groups, OrthogonalGroup
from givens.manifolds.pairs import pair_to_number

DTYPES = [torch.float32, torch.float64]

dims = st.integers(2, 9)
batch_shapes = st.sampled_from([(), (1,), (3,), (2, 3)])
dtypes = st.sampled_from(DTYPES)


@dataclass(frozen=True)
class Noise:
    """Random tensors that depend on a seed and nothing else, so that Hypothesis can repeat them."""

    seed: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "generator", torch.Generator().manual_seed(self.seed))

    def normal(self, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.randn(shape, dtype=dtype, generator=self.generator)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(shape, dtype=torch.float64, generator=self.generator)

    def like(self, x: Tensor) -> Tensor:
        return self.normal(*x.shape, dtype=x.dtype)

    def skew(self, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        a = self.normal(*shape, dtype=dtype)
        return a - a.mT

    def point(self, *shape: int, dtype: torch.dtype = torch.float64, det: int | None = None):
        x = OrthogonalGroup().random(*shape, dtype=dtype, generator=self.generator, det=det)
        return x.as_subclass(Tensor)

    def tangent(self, x: Tensor) -> Tensor:
        return x @ self.skew(*x.shape, dtype=x.dtype) / 2

    def integers(self, high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=self.generator)

    def permutations(self, batch: tuple[int, ...], n: int) -> Tensor:
        return torch.rand((*batch, n), generator=self.generator).argsort(-1)

    def matching(self, batch: tuple[int, ...], d: int, k: int | None = None) -> Coordinates:
        """k disjoint pairs of columns, by default ⌊d/2⌋."""
        k = d // 2 if k is None else k
        pairs = self.permutations(batch, d)[..., : 2 * k].unflatten(-1, (k, 2)).sort(-1).values
        return Coordinates(pair_to_number(*pairs.unbind(-1), d), disjoint=True)

    def groups(self, batch: tuple[int, ...], d: int, r: int) -> Groups:
        """As many disjoint groups of r columns as there are."""
        axes = self.permutations(batch, d)[..., : d // r * r]
        return Groups(axes.unflatten(-1, (d // r, r)).sort(-1).values)


noises = st.integers(0, 2**32 - 1).map(Noise)


def layouts(x: Tensor) -> list[Tensor]:
    """Copies in other memory layouts: contiguous, transposed, every other entry of more."""
    wide = torch.full((*x.shape[:-1], 2 * x.shape[-1]), torch.nan, dtype=x.dtype)
    wide[..., ::2] = x
    transposed = x.mT.clone(memory_format=torch.contiguous_format).mT
    return [x.clone(memory_format=torch.contiguous_format), transposed, wide[..., ::2]]


def error(x: Tensor, y: Tensor) -> float:
    """Largest difference of two tensors, computed in float64."""
    difference = (x.double() - y.double()).abs()
    return float(difference.max()) if difference.numel() else 0.0


def defect(x: Tensor) -> float:
    """max |xᵀx − I|, computed in float64."""
    x = x.detach().double()
    return error(x.mT @ x, torch.eye(x.shape[-1], dtype=torch.float64))
