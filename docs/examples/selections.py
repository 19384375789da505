"""A selection and a rule of one's own, on a problem with a known answer."""

from dataclasses import dataclass

import torch
from torch import Tensor

from givens.manifolds import CoordinateBlock, Coordinates, OrthogonalGroup, constrain
from givens.optim import SRCD, Block, GradientView, Matching, Selection


@dataclass(frozen=True)
class Alternating:
    """A cheap selection, and a thorough one every so many steps."""

    cheap: Selection
    thorough: Selection
    every: int = 10

    def select(self, view: GradientView) -> CoordinateBlock:
        """Ask the one whose turn it is."""
        chosen = self.cheap if view.step % self.every else self.thorough
        return chosen.select(view)


@dataclass(frozen=True)
class SteepestOf:
    """The steepest of `sample` random coordinates: Gauss–Southwell at a price that one can choose."""

    sample: int

    def choose(self, view: GradientView, k: int) -> Tensor:
        """Draw coordinates, and rank them by slope."""
        if k > self.sample:
            raise ValueError(f"{self} cannot choose {k} coordinates; make sample at least {k}")
        index = view.random.distinct(view.num_coordinates, self.sample, *view.batch)
        block = Coordinates(index, disjoint=False)
        slope = view.derivatives(block).abs() / view.manifold.step_scale(view.x, block).sqrt()
        return index.gather(-1, slope.topk(k, dim=-1).indices)


def fit(selection: Selection, steps: int) -> float:
    """Fit a rotation to one that is known, and return the squared distance that is left."""
    torch.manual_seed(0)
    d = 16
    target = OrthogonalGroup().random(d, d, det=1)
    layer = torch.nn.Linear(d, d, bias=False)
    torch.nn.init.eye_(layer.weight)
    constrain(layer, "weight", OrthogonalGroup())
    optimizer = SRCD(layer.parameters(), lr=0.3, selection=selection)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (layer.weight - target).square().sum()
        loss.backward()
        optimizer.step()
    return float(loss.detach())


if __name__ == "__main__":
    for selection, steps in [
        (Alternating(Matching(), Matching("greedy")), 300),
        (Block(size=4, rule=SteepestOf(sample=24)), 250),
    ]:
        loss = fit(selection, steps)
        print(f"{selection}: {loss:.1e} after {steps} steps")
        assert loss < 1e-3
