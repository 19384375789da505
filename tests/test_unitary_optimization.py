"""SRCD, SRGD and geoopt's optimizers with complex parameters, on the unitary groups."""

import math

import geoopt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rules import Everything
from strategies import Noise, noises
from torch import Tensor

from givens.manifolds import Groups, SpecialUnitaryGroup, UnitaryGroup, constrain
from givens.optim import SRCD, SRGD, Block, GaussSouthwell, Uniform

U, SU = UnitaryGroup(), SpecialUnitaryGroup()

every_group = pytest.mark.parametrize("group", [U, SU], ids=["U", "SU"])


def point(group, noise: Noise, *shape, dtype=torch.complex128):
    return group.random(*shape, dtype=dtype, generator=noise.generator).as_subclass(Tensor)


def error(x, y):
    return float((x.to(torch.complex128) - y.to(torch.complex128)).abs().max())


def defect(group, x):
    """Distance from the group: max |xᴴx − I|, and |det x − 1|."""
    x = x.detach().to(torch.complex128)
    unitary = error(x.mH @ x, torch.eye(x.shape[-1]))
    return max(unitary, error(torch.linalg.det(x), torch.ones(()))) if group is SU else unitary


class InGroups:
    """A pair of three axes and the third, in turn in every way."""

    def select(self, view):
        return Groups(torch.tensor([[[0, 1]], [[0, 2]], [[1, 2]]])[view.step % 3])


OPTIMIZERS = {
    "uniform": (400, lambda p: SRCD(p, 0.4, Uniform())),
    "gauss-southwell": (200, lambda p: SRCD(p, 0.4, GaussSouthwell())),
    "block": (100, lambda p: SRCD(p, 0.4, Block(fraction=0.3))),
    "disjoint block": (150, lambda p: SRCD(p, 0.4, Block(size=1, disjoint=True))),
    "groups": (60, lambda p: SRCD(p, 0.4, InGroups())),
    "all": (40, lambda p: SRCD(p, 0.4, Everything())),
    "srgd": (40, lambda p: SRGD(p, 0.4)),
    "momentum": (100, lambda p: SRGD(p, 0.2, momentum=0.5, nesterov=True)),
    "retraction": (100, lambda p: SRGD(p, 0.2, momentum=0.5, map="retr")),
    "geoopt": (100, lambda p: geoopt.optim.RiemannianSGD(p, lr=0.2, momentum=0.5)),
    "geoopt adam": (300, lambda p: geoopt.optim.RiemannianAdam(p, lr=0.05)),
}


@every_group
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_find_the_minimum(group, name):
    """Of ‖W − W*‖² over two points, W* being known."""
    noise = Noise(0)
    target = point(group, noise, 2, 3, 3)
    start = group.expmap(target, group.proju(target, 0.4 * noise.like(target)))
    steps, make = OPTIMIZERS[name]
    p = geoopt.ManifoldParameter(start, manifold=type(group)("cayley"))
    optimizer = make([p])
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (p - target).abs().square().sum() / 2
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) <= (1e-3 if name == "geoopt adam" else 1e-8)
    assert defect(group, p) <= 1e-12


@every_group
@settings(max_examples=10)
@given(st.integers(2, 5), noises, st.sampled_from([torch.complex64, torch.complex128]))
def test_coordinate_descent_along_everything_is_gradient_descent(group, d, noise: Noise, dtype):
    start, target = (point(group, noise, 2, d, d, dtype=dtype) for _ in range(2))
    ends = []
    for make in (lambda p: SRCD(p, 0.1, Everything()), lambda p: SRGD(p, 0.1)):
        p = geoopt.ManifoldParameter(start.clone(), manifold=group)
        optimizer = make([p])
        for _ in range(5):
            optimizer.zero_grad()
            (p - target).abs().square().sum().backward()
            optimizer.step()
        ends.append(p.detach())
    assert error(*ends) <= 100 * d * torch.finfo(dtype).eps


@every_group
def test_a_run_resumes_bit_for_bit(group):
    noise = Noise(0)
    start, target = point(group, noise, 4, 4), point(group, noise, 4, 4)

    def run(p, optimizer, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            (p - target).abs().square().sum().backward()
            optimizer.step()

    for make in (lambda p: SRCD(p, 0.1, Uniform()), lambda p: SRGD(p, 0.1, momentum=0.5)):
        p = geoopt.ManifoldParameter(start.clone(), manifold=group)
        optimizer = make([p])
        run(p, optimizer, 7)
        q = geoopt.ManifoldParameter(p.detach().clone(), manifold=group)
        resumed = make([q])
        resumed.load_state_dict(optimizer.state_dict())
        run(p, optimizer, 9)
        run(q, resumed, 9)
        assert torch.equal(p, q)


@every_group
def test_optimizers_refuse_what_is_not_finite(group):
    p = geoopt.ManifoldParameter(point(group, Noise(0), 4, 4), manifold=group)
    kept = p.detach().clone()
    for make in (lambda p: SRCD(p, 0.1, GaussSouthwell()), lambda p: SRGD(p, 0.1)):
        p.grad = torch.full_like(p, complex(0.0, math.nan))
        with pytest.raises(FloatingPointError, match="NaN or infinite"):
            make([p]).step()
    assert torch.equal(p, kept)


def test_a_parameter_of_a_module_becomes_unitary():
    layer = torch.nn.Linear(4, 4, bias=False, dtype=torch.complex64)
    constrain(layer, "weight", U)
    assert defect(U, layer.weight) <= 1e-6


RUNS = {
    "uniform": (2000, lambda p: SRCD([p], 0.01)),
    "large angles": (2000, lambda p: SRCD([p], 1.0)),
    "gauss-southwell": (500, lambda p: SRCD([p], 0.01, GaussSouthwell())),
    "disjoint block": (
        100,
        lambda p: SRCD([p], 0.1, Block(size=4, rule=Uniform(), disjoint=True)),
    ),
    "srgd": (500, lambda p: SRGD([p], 0.01, momentum=0.5)),
}


@every_group
@pytest.mark.parametrize("name", RUNS)
def test_a_complex64_point_stays(group, name):
    """Along random gradients, whose steps never end."""
    x = group.random(16, 16, generator=torch.Generator().manual_seed(0))
    p = geoopt.ManifoldParameter(x, manifold=group)
    steps, make = RUNS[name]
    optimizer = make(p)
    noise = Noise(1).normal(101, 16, 16, dtype=torch.complex64)
    worst = 0.0
    for step in range(steps):
        p.grad = noise[step % len(noise)]
        optimizer.step()
        if step % 97 == 96:
            worst = max(worst, defect(group, p))
    assert worst <= 1e-6
