"""Laws of stochastic Riemannian gradient descent."""

import math

import geoopt
import numpy as np
import pytest
import scipy.linalg
import torch
from geoopt import ManifoldParameter
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from givens.manifolds import Euclidean, OrthogonalGroup
from givens.optim import SRGD

MANIFOLD = OrthogonalGroup()

seeds = st.integers(0, 2**32 - 1)
dims = st.integers(2, 8)
rates = st.floats(0.001, 2.0)
options = st.sampled_from(
    [
        {},
        {"momentum": 0.9},
        {"momentum": 0.5, "dampening": 0.25},
        {"momentum": 0.9, "nesterov": True},
        {"weight_decay": 0.1, "maximize": True},
        {"momentum": 0.3, "weight_decay": 0.1, "nesterov": True, "maximize": True},
    ]
)


def point(
    *shape: int, data: int = 0, dtype: torch.dtype = torch.float64, manifold=MANIFOLD
) -> tuple[ManifoldParameter, Tensor]:
    """Random parameter with a random gradient, and a copy of its value."""
    generator = torch.Generator().manual_seed(data)
    x = MANIFOLD.random(*shape, dtype=dtype, generator=generator)
    p = ManifoldParameter(x.as_subclass(Tensor), manifold=manifold)
    p.grad = torch.randn(shape, dtype=dtype, generator=generator)
    return p, p.detach().clone()


def skew(x: np.ndarray, u: np.ndarray) -> np.ndarray:
    a = x.T @ u
    return (a - a.T) / 2


def assert_same(actual: Tensor, expected: np.ndarray | Tensor, tolerance: float = 1e-12) -> None:
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    torch.testing.assert_close(
        actual.detach().as_subclass(Tensor), expected, rtol=0, atol=tolerance
    )


@given(dims, rates, seeds, st.booleans())
def test_a_step_is_the_exponential_of_the_projected_gradient(d, lr, data, maximize):
    """x ← x·expm(−lr (xᵀg − gᵀx)/2): Algorithm 1 with the paper's equations (7) and (10)."""
    p, x = point(d, d, data=data)
    SRGD([p], lr, maximize=maximize).step()
    sign = 1 if maximize else -1
    step = sign * lr * skew(x.numpy(), p.grad.numpy())
    assert_same(p, x.numpy() @ scipy.linalg.expm(step))


@given(st.integers(2, 5), seeds, options)
def test_momentum_is_a_tangent_vector_carried_along_the_geodesic(d, data, options):
    """A reference in numpy: transport of xΩ along x·e^A to x·e^{A/2} Ω e^{A/2}."""
    lr, momentum = 0.1, options.get("momentum", 0.0)
    fresh = 1 - options.get("dampening", 0.0)
    p, x = point(d, d, data=data)
    optimizer = SRGD([p], lr, **options)
    generator = torch.Generator().manual_seed(data)
    x, omega = x.numpy(), None
    for _ in range(4):
        p.grad = torch.randn(d, d, dtype=torch.float64, generator=generator)
        optimizer.step()
        grad = p.grad.numpy() * (-1 if options.get("maximize") else 1)
        grad = skew(x, grad + options.get("weight_decay", 0.0) * x)
        omega = grad if omega is None else momentum * omega + fresh * grad
        velocity = omega if momentum else grad
        if options.get("nesterov"):
            velocity = grad + momentum * omega
        half = scipy.linalg.expm(-lr * velocity / 2)
        x = x @ half @ half
        omega = half.T @ omega @ half
        assert_same(p, x, 1e-9)
        if momentum:
            buffer = optimizer.state[p]["momentum_buffer"]
            assert MANIFOLD.check_vector_on_tangent(p, buffer)
            assert_same(buffer, x @ omega, 1e-9)


@given(dims, rates, seeds, options)
def test_a_batch_is_a_loop(d, lr, data, options):
    p, x = point(3, d, d, data=data)
    together = SRGD([p], lr, **options)
    ones = [ManifoldParameter(x[n].clone(), manifold=MANIFOLD) for n in range(3)]
    alone = SRGD(ones, lr, **options)
    for _ in range(3):
        for n, one in enumerate(ones):
            one.grad = p.grad[n].clone()
        together.step()
        alone.step()
        assert_same(p, torch.stack([one.detach() for one in ones]), 1e-10)


@given(dims, seeds, options)
def test_strides_do_not_matter(d, data, options):
    p, x = point(3, d, d, data=data)
    q = ManifoldParameter(
        torch.zeros(3, d, 2 * d, dtype=torch.float64)[..., ::2], manifold=MANIFOLD
    )
    with torch.no_grad():
        q.copy_(x)
    q.grad = p.grad.mT.contiguous().mT
    for optimizer in (SRGD([p], 0.1, **options), SRGD([q], 0.1, **options)):
        optimizer.step()
        optimizer.step()
    assert not q.is_contiguous()
    assert_same(q, p.detach())


@given(dims, seeds, options)
def test_float32_follows_float64(d, data, options):
    p, x = point(d, d, data=data)
    q = ManifoldParameter(x.float(), manifold=MANIFOLD)
    q.grad = p.grad.float()
    for optimizer in (SRGD([p], 0.02, **options), SRGD([q], 0.02, **options)):
        for _ in range(5):
            optimizer.step()
    assert_same(q.double(), p.detach(), tolerance=3e-5)


@given(st.integers(2, 7), seeds)
def test_a_small_step_descends_by_the_gradient(d, data):
    """f(x_new) <= f(x) − lr/2 ‖grad f‖² for lr below 1/L, here on tr(xᵀAxB)."""
    generator = torch.Generator().manual_seed(data)
    a, b = torch.randn(2, d, d, dtype=torch.float64, generator=generator)
    p, x = point(d, d, data=data)
    # |f″| along a unit direction is at most 4‖A‖‖B‖.
    lr = 1 / float(4 * torch.linalg.matrix_norm(a, 2) * torch.linalg.matrix_norm(b, 2))
    optimizer = SRGD([p], lr)

    def loss() -> Tensor:
        return (p.mT @ a @ p @ b).trace()

    p.grad = None
    before = loss()
    before.backward()
    square = float(MANIFOLD.egrad2rgrad(x, p.grad).square().sum())
    optimizer.step()
    assert loss().item() <= before.item() - lr / 2 * square + 1e-12


@given(dims, seeds)
def test_weight_decay_does_nothing_to_an_orthogonal_matrix(d, data):
    """Its norm is constant."""
    (p, _), (q, _) = point(d, d, data=data), point(d, d, data=data)
    SRGD([p], 0.1).step()
    SRGD([q], 0.1, weight_decay=10.0).step()
    assert_same(p, q.detach())


@pytest.mark.parametrize("retraction", ["cayley", "qr", "polar", "givens"])
@given(st.integers(3, 7), seeds)
def test_the_map_is_the_manifold_s_exponential_or_its_retraction(retraction, d, data):
    manifold = OrthogonalGroup(retraction)
    outcome = {}
    for name in ("expmap", "retr"):
        p, x = point(d, d, data=data, manifold=manifold)
        SRGD([p], 0.5, map=name).step()
        outcome[name] = p.detach()
        u = -0.5 * manifold.egrad2rgrad(x, p.grad)
        assert_same(p, getattr(manifold, name)(x, u))
    assert not torch.allclose(outcome["expmap"], outcome["retr"])


# Parameters without a manifold


def run_beside_torch(shape, options, lr, dtype, data):
    """Ours and torch's SGD on the same gradients: yields both parameters after every step."""
    generator = torch.Generator().manual_seed(data)
    start = torch.randn(shape, generator=generator, dtype=dtype)
    p, q = (torch.nn.Parameter(start.clone()) for _ in range(2))
    ours, torchs = SRGD([p], lr, **options), torch.optim.SGD([q], lr, **options)
    for _ in range(6):
        p.grad = torch.randn(shape, generator=generator, dtype=dtype)
        q.grad = p.grad.clone()
        ours.step()
        torchs.step()
        yield p, q


@given(st.sampled_from([(), (5,), (3, 4)]), rates, seeds, options)
def test_a_plain_parameter_gets_torch_s_sgd(shape, lr, data, options):
    for p, q in run_beside_torch(shape, options, lr, torch.float64, data):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


def test_a_plain_parameter_gets_torch_s_sgd_to_the_last_bit_where_products_are_exact():
    """With powers of two for factors nothing is rounded but what torch rounds too."""
    for options in (
        {},
        {"momentum": 0.5},
        {"momentum": 0.5, "dampening": 0.5},
        {"momentum": 0.5, "nesterov": True, "maximize": True},
        {"weight_decay": 0.25, "momentum": 0.5},
    ):
        for p, q in run_beside_torch((33,), options, 0.125, torch.float32, 0):
            assert torch.equal(p, q)


@given(seeds, options)
def test_euclidean_space_is_no_constraint(data, options):
    """geoopt's and ours: the same steps as without a manifold."""
    generator = torch.Generator().manual_seed(data)
    start = torch.randn(4, generator=generator)
    plain = torch.nn.Parameter(start.clone())
    others = [
        ManifoldParameter(start.clone(), manifold=geoopt.Euclidean()),
        ManifoldParameter(start.clone(), manifold=geoopt.Euclidean(ndim=1)),
        ManifoldParameter(start.clone(), manifold=Euclidean()),
    ]
    optimizer = SRGD([plain, *others], 0.1, **options)
    for _ in range(3):
        plain.grad = torch.randn(4, generator=generator)
        for p in others:
            p.grad = plain.grad.clone()
        optimizer.step()
        for p in others:
            assert_same(p, plain.detach(), 0)


# Errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"momentum": 1.0}, r"momentum=1\.0.*\[0, 1\)"),
        ({"momentum": -0.1}, r"momentum=-0\.1"),
        ({"momentum": math.nan}, "momentum=nan"),
        ({"weight_decay": -1.0}, r"weight_decay=-1\.0.*0 or more"),
        ({"weight_decay": math.inf}, "weight_decay=inf"),
        ({"nesterov": True}, "nesterov=True needs a momentum"),
        ({"nesterov": True, "momentum": 0.5, "dampening": 0.5}, "dampening=0"),
        ({"map": "exp"}, "map='exp'.*'expmap' or 'retr'"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    p, _ = point(3, 3)
    with pytest.raises(ValueError, match=message):
        SRGD([p], 0.1, **options)
    optimizer = SRGD([p], 0.1)
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))], **options})
    assert len(optimizer.param_groups) == 1
