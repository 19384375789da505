"""geoopt's own optimizers on our manifold."""

import geoopt
import pytest
import torch
from strategies import DTYPES, Noise, defect

from givens.manifolds import Euclidean, OrthogonalGroup
from givens.manifolds.retractions import RETRACTIONS

OPTIMIZERS = {
    "sgd": lambda params: geoopt.optim.RiemannianSGD(params, lr=0.05),
    "momentum": lambda params: geoopt.optim.RiemannianSGD(params, lr=0.02, momentum=0.8),
    "nesterov": lambda params: geoopt.optim.RiemannianSGD(
        params, lr=0.02, momentum=0.8, nesterov=True, stabilize=10
    ),
    "adam": lambda params: geoopt.optim.RiemannianAdam(params, lr=0.05),
    "amsgrad": lambda params: geoopt.optim.RiemannianAdam(
        params, lr=0.05, amsgrad=True, stabilize=10
    ),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("retraction", RETRACTIONS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_they_stay_on_the_group_and_find_the_minimum(optimizer, retraction, dtype):
    """Procrustes: the nearest point to m·target over a batch, with the target as its known minimum."""
    noise = Noise(0)
    group = OrthogonalGroup(retraction)
    target = noise.point(2, 5, 5, det=1, dtype=dtype)
    start = OrthogonalGroup().expmap(target, 0.3 * noise.tangent(target))
    parameter = geoopt.ManifoldParameter(start, manifold=group)
    stepper = OPTIMIZERS[optimizer]([parameter])

    def cost():
        return (parameter - target).square().sum() / 2

    first = cost().item()
    for _ in range(60):
        stepper.zero_grad()
        cost().backward()
        stepper.step()
    assert cost().item() <= 0.2 * first
    assert defect(parameter) <= (1e-5 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_they_take_euclidean_space(optimizer):
    parameter = geoopt.ManifoldParameter(torch.ones(3, 2), manifold=Euclidean(2))
    stepper = OPTIMIZERS[optimizer]([parameter])
    for _ in range(60):
        stepper.zero_grad()
        parameter.square().sum().backward()
        stepper.step()
    assert float(parameter.detach().square().sum()) <= 1.0


def test_a_product_of_manifolds_holds_the_group():
    product = geoopt.ProductManifold((OrthogonalGroup(), (3, 3)), (geoopt.Sphere(), 4))
    noise = Noise(0)
    x = torch.cat([noise.point(3, 3).flatten(), torch.tensor([1.0, 0, 0, 0]).double()])
    u = product.proju(x, noise.normal(13))
    y = product.expmap(x, u)
    assert product.check_point_on_manifold(y)
    assert product.check_vector_on_tangent(x, u)
