"""All manifolds with coordinates pass the kit, and the optimizers descend on all of them."""

import importlib.util
import sys
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from geoopt import ManifoldParameter
from rules import METHODS, SCALINGS, SELECTIONS, Everything, build

from givens.manifolds import (
    CoordinateManifold,
    Euclidean,
    Grassmann,
    Lorentz,
    Oblique,
    OrthogonalGroup,
    Power,
    Product,
    Scaled,
    SpecialOrthogonalGroup,
    SpecialUnitaryGroup,
    Sphere,
    Stiefel,
    SymmetricPositiveDefinite,
    Symplectic,
    UnitaryGroup,
)
from givens.manifolds.testing import check_manifold
from givens.optim import (
    SRCD,
    SRGD,
    Block,
    Grouping,
    Matching,
)

ROOT = Path(__file__).parents[1]


def example(name):
    """A module of the docs' examples, where pickle finds it."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / "examples" / f"{name}.py")
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def of_subspace(x):
    """A smooth function of the span of the columns, by the projection x·xᵀ on it."""
    n = x.shape[-2]
    weight = torch.arange(1.0, n * n + 1, dtype=torch.float64).sqrt().sin().view(n, n).to(x)
    p = x @ x.mT
    return (p * weight).sum((-2, -1)).sin() + (p @ weight @ p).square().sum((-2, -1)) / n


@dataclass(frozen=True)
class Space:
    """A manifold, the shape of its points, and what the kit has to know."""

    manifold: CoordinateManifold
    shape: tuple[int, ...]
    options: dict[str, Any] = field(default_factory=dict)
    missing: tuple[str, ...] = ()


FEWER = {"max_examples": 4}  # for a variant
SUBSPACES = {"cost": of_subspace}
# Between a sphere and a square there is no closed form of the transport, the logarithm and the distance.
PROJECTED = {"skip": ["parallel transport is parallel"]}
NO_LOG = ("log", "dist")

SPACES = {
    "Euclidean": Space(Euclidean(), (5,)),
    "Euclidean matrices": Space(Euclidean(2), (2, 3), FEWER),
    "Sphere": Space(Sphere(), (5,)),
    "circle": Space(Sphere(), (2,), FEWER),
    "Oblique columns": Space(Oblique(dim=-2), (4, 3)),
    "Oblique rows": Space(Oblique(dim=-1), (3, 4), FEWER),
    "Stiefel": Space(Stiefel(), (5, 3), PROJECTED, NO_LOG),
    "Stiefel, square": Space(Stiefel(), (4, 4), FEWER),
    "Stiefel, one column": Space(Stiefel(), (4, 1), FEWER),
    "Stiefel canonical": Space(Stiefel("canonical"), (5, 3), PROJECTED, NO_LOG),
    "Stiefel canonical, square": Space(Stiefel("canonical"), (4, 4), FEWER),
    "Stiefel, Cayley": Space(Stiefel(retraction="cayley"), (5, 3), PROJECTED | FEWER, NO_LOG),
    "Stiefel canonical, Cayley": Space(
        Stiefel("canonical", "cayley"), (5, 3), PROJECTED | FEWER, NO_LOG
    ),
    "Stiefel canonical, one column": Space(Stiefel("canonical"), (4, 1), FEWER),
    "Grassmann": Space(Grassmann(), (5, 2), SUBSPACES),
    "Grassmann, lines": Space(Grassmann(), (4, 1), SUBSPACES | FEWER),
    "OrthogonalGroup": Space(OrthogonalGroup(), (4, 4)),
    "OrthogonalGroup, Cayley": Space(OrthogonalGroup("cayley"), (4, 4), FEWER),
    "OrthogonalGroup, by rotations": Space(OrthogonalGroup("givens"), (3, 3), FEWER),
    "SpecialOrthogonalGroup": Space(SpecialOrthogonalGroup(), (4, 4)),
    "UnitaryGroup": Space(UnitaryGroup(), (3, 3)),
    "UnitaryGroup, Cayley": Space(UnitaryGroup("cayley"), (3, 3), FEWER),
    "phases": Space(UnitaryGroup(), (1, 1), FEWER),
    "SpecialUnitaryGroup": Space(SpecialUnitaryGroup(), (3, 3)),
    "SymmetricPositiveDefinite": Space(SymmetricPositiveDefinite(), (3, 3)),
    "positive numbers": Space(SymmetricPositiveDefinite(), (1, 1), FEWER),
    "Lorentz": Space(Lorentz(), (4,)),
    "Lorentz, curved less": Space(Lorentz(2.5), (5,), FEWER),
    "Lorentz, a line": Space(Lorentz(0.5), (2,), FEWER),
    "Symplectic": Space(Symplectic(), (6, 4), {}, NO_LOG),
    "Symplectic, square": Space(Symplectic(), (4, 4), FEWER, NO_LOG),
    "Symplectic, one pair of rows": Space(Symplectic("cayley"), (2, 2), FEWER, NO_LOG),
    "Product": Space(Product((Sphere(), 4), (OrthogonalGroup(), (3, 3)), (Euclidean(), 2)), (15,)),
    "Power": Space(Power(SpecialOrthogonalGroup()), (2, 3, 3)),
    "Scaled": Space(Scaled(Sphere(), 2.0), (4,)),
    "Scaled matrices": Space(Scaled(Stiefel(), 0.5), (4, 2), PROJECTED | FEWER, NO_LOG),
    "the docs' example": Space(example("positive").PositiveVectors(), (5,)),
}
every_space = pytest.mark.parametrize("name", SPACES)

# What may be missing, beside what there is nothing to check of.
NOTHING = {
    "every tensor is a point",
    "every vector is tangent",
    "every tensor nearby is a point",
    "there is one coordinate",
    "frame_bounds is None",
    "period is None",
    "low_rank_maps is empty",
    "the manifold is not compact",
    "left out by skip=",
    "transp_follow_expmap is left at its default, by transp",
}


@every_space
@pytest.mark.parametrize("device", ["cpu", *["cuda"] * torch.cuda.is_available()])
def test_it_keeps_every_law(name, device):
    space = SPACES[name]
    report = check_manifold(space.manifold, space.shape, device=device, **space.options)
    for label, reason in report.skipped.items():
        groups = "groups" in label or "of a group" in label
        missing = any(word in label for word in space.missing)
        assert reason in NOTHING or groups or missing, f"{label}: {reason}"
    # One axis a coordinate, or some that turn one among others that turn two, and so no groups.
    refused = [label for label in report.skipped if "groups blocks" in label]
    single = ("Euclidean", "example", "Positive", "positive", "Symplectic")
    assert bool(refused) is any(word in name for word in single)


def start(name):
    """A batch of points as a parameter, and a cost of all of it."""
    space = SPACES[name]
    manifold, dtype = space.manifold, space.manifold.dtypes[-1]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)
        x = manifold.random(3, *space.shape, dtype=dtype).as_subclass(torch.Tensor)
        target = manifold.random(3, *space.shape, dtype=dtype).as_subclass(torch.Tensor)
    of_points = space.options.get("cost", lambda x: (x - target).abs().square())
    return ManifoldParameter(x.clone(), manifold=manifold), lambda p: of_points(p).sum()


def takes(p, method):
    """Whether a manifold has what a method selects: two coordinates, disjoint ones, groups, pairs."""
    selection, manifold = METHODS[method], p.manifold
    if isinstance(selection, Block):
        disjoint = selection.disjoint and manifold.num_disjoint(p) < selection.size
        return manifold.num_coordinates(p) >= selection.size and not disjoint
    if isinstance(selection, Grouping) or method == "rounds":
        return manifold.every_pair and manifold.num_axes(p) >= 3
    if isinstance(selection, Matching):
        return not manifold.every_pair or manifold.num_axes(p) >= 2
    return True


@every_space
@pytest.mark.parametrize("method", METHODS)
def test_a_small_step_descends(name, method):
    p, cost = start(name)
    if not takes(p, method):
        pytest.skip("there are not enough coordinates")
    optimizer = build([p], 1e-3, method)
    values = []
    for _ in range(8):
        optimizer.zero_grad()
        value = cost(p)
        value.backward()
        values.append(value.item())
        optimizer.step()
    values.append(cost(p).item())
    slack = 1e-13 * (1 + abs(values[0]))
    assert all(after <= before + slack for before, after in pairwise(values))
    assert values[-1] < values[0]
    assert p.manifold.check_point_on_manifold(p.detach(), atol=1e-12, rtol=0)


@every_space
@pytest.mark.parametrize("scaling", [name for name, rule in SCALINGS.items() if rule])
def test_every_scaling_descends_with_every_method(name, scaling):
    for method in METHODS:
        p, cost = start(name)
        if not takes(p, method):
            continue
        optimizer = build([p], 1e-4, method, scaling)
        before = cost(p).item()
        for _ in range(5):
            optimizer.zero_grad()
            cost(p).backward()
            optimizer.step()
        assert cost(p).item() < before, method
        assert p.manifold.check_point_on_manifold(p.detach(), atol=1e-12, rtol=0)


@every_space
def test_all_coordinates_of_a_parseval_frame_are_the_gradient_step(name):
    manifold = SPACES[name].manifold
    if manifold.frame_bounds != (1.0, 1.0):
        pytest.skip("it is none")
    (p, cost), (q, _) = start(name), start(name)
    for parameter, optimizer in ((p, SRCD([p], 0.1, Everything())), (q, SRGD([q], 0.1))):
        cost(parameter).backward()
        optimizer.step()
    torch.testing.assert_close(p.detach(), q.detach(), rtol=0, atol=1e-12)


class Same:
    """A scaling that does nothing."""

    def scale(self, derivatives, moments):
        return derivatives


@every_space
def test_a_scaling_that_changes_nothing_changes_nothing(name):
    """So coordinates are found in every kind of block, and put back where they were."""
    for method, selection in SELECTIONS.items():
        (p, cost), (q, _) = start(name), start(name)
        if not takes(p, method):
            continue
        for parameter, scaling in ((p, None), (q, Same())):
            optimizer = SRCD([parameter], 0.05, selection, scaling)
            for _ in range(2):
                optimizer.zero_grad()
                cost(parameter).backward()
                optimizer.step()
        torch.testing.assert_close(p.detach(), q.detach(), rtol=0, atol=1e-12, msg=method)
