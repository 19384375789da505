"""Retractions: how near they come to the exponential, and that they stay on the group."""

import math
from itertools import pairwise

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import Noise, batch_shapes, defect, dims, dtypes, error, layouts, noises

from givens.manifolds import OrthogonalGroup
from givens.manifolds.pairs import round_robin
from givens.manifolds.retractions import RETRACTIONS

EXACT = OrthogonalGroup()
ORDERS = {"cayley": 2, "qr": 1, "polar": 2, "givens": 1}

every_retraction = pytest.mark.parametrize(
    "group", [OrthogonalGroup(name) for name in RETRACTIONS], ids=list(RETRACTIONS)
)


def test_there_is_an_order_for_every_retraction():
    assert RETRACTIONS.keys() == {"exponential", *ORDERS}


@pytest.mark.parametrize(("name", "order"), ORDERS.items())
@given(st.integers(3, 8), noises)
def test_a_retraction_agrees_with_the_exponential_to_its_order_and_no_further(
    name, order, d, noise: Noise
):
    group = OrthogonalGroup(name)
    x = noise.point(d, d)
    u = noise.tangent(x)
    u = u / torch.linalg.matrix_norm(u)
    errors = [
        float(torch.linalg.matrix_norm(group.retr(x, h * u) - EXACT.expmap(x, h * u)))
        for h in (2.0**-6, 2.0**-7, 2.0**-8)
    ]
    for coarse, fine in pairwise(errors):
        assert abs(math.log2(coarse / fine) - (order + 1)) <= 0.1


@given(batch_shapes, dims, dtypes, noises)
def test_the_default_is_the_exponential(batch, d, dtype, noise: Noise):
    x = noise.point(*batch, d, d, dtype=dtype)
    u = noise.tangent(x)
    assert torch.equal(EXACT.retr(x, u), EXACT.expmap(x, u))


@every_retraction
@given(batch_shapes, dims, dtypes, st.floats(-6, 1), noises)
def test_a_retraction_stays_on_the_component_of_its_point(
    group, batch, d, dtype, power, noise: Noise
):
    x = noise.point(*batch, d, d, dtype=dtype)
    u = noise.tangent(x)
    u = u * 10**power / torch.linalg.matrix_norm(u, keepdim=True)
    expected = group.retr(x, u)
    assert expected.dtype == dtype
    assert defect(expected) <= 20 * torch.finfo(dtype).eps * (d + 10**power)
    same_side = torch.linalg.det(x.mT.double() @ expected.double()) > 0
    assert same_side.all()
    for y, v in zip(layouts(x), layouts(u), strict=True):
        assert error(group.retr(y, v), expected) <= 20 * torch.finfo(dtype).eps * (d + 10**power)


@every_retraction
@given(batch_shapes, dims, dtypes, noises)
def test_it_starts_at_the_point(group, batch, d, dtype, noise: Noise):
    x = noise.point(*batch, d, d, dtype=dtype)
    assert error(group.retr(x, torch.zeros_like(x)), x) <= 8 * torch.finfo(dtype).eps


@every_retraction
@given(dims, noises)
def test_float32_follows_float64(group, d, noise: Noise):
    x = noise.point(d, d, dtype=torch.float32)
    u = noise.tangent(x) / d
    assert error(group.retr(x, u), group.retr(x.double(), u.double())) <= 3e-6


@every_retraction
@given(dims, noises)
def test_left_translations_carry_a_retraction_along(group, d, noise: Noise):
    x, g = noise.point(d, d), noise.point(d, d)
    u = noise.tangent(x)
    assert error(group.retr(g @ x, g @ u), g @ group.retr(x, u)) <= 1e-12


def positive_qr(m):
    q, r = scipy.linalg.qr(m)
    return q * np.sign(np.diag(r))


FORMULAS = {
    "exponential": scipy.linalg.expm,
    "cayley": lambda a: np.linalg.inv(np.eye(len(a)) - a / 2) @ (np.eye(len(a)) + a / 2),
    "qr": lambda a: positive_qr(np.eye(len(a)) + a),
    "polar": lambda a: scipy.linalg.polar(np.eye(len(a)) + a)[0],
}


@pytest.mark.parametrize("name", FORMULAS)
@given(dims, noises)
def test_a_retraction_is_its_formula(name, d, noise: Noise):
    a = noise.skew(d, d)
    x = noise.point(d, d)
    expected = x @ torch.from_numpy(FORMULAS[name](a.numpy()))
    assert error(OrthogonalGroup(name).retr(x, x @ a), expected) <= 1e-12


@given(dims, noises)
def test_the_givens_retraction_is_an_ordered_product_of_rotations(d, noise: Noise):
    x = noise.point(d, d)
    a = noise.skew(d, d)
    expected = x
    for j, l in round_robin(d).flatten(0, 1).tolist():
        pair = torch.zeros(d, d, dtype=torch.float64)
        pair[j, l], pair[l, j] = a[j, l], a[l, j]
        expected = expected @ torch.from_numpy(scipy.linalg.expm(pair.numpy()))
    assert error(OrthogonalGroup("givens").retr(x, x @ a), expected) <= 1e-12 * d


@every_retraction
@pytest.mark.parametrize("norm", [1e-3, 0.3, 2.0])
def test_gradients_flow_through_a_retraction(group, norm):
    noise = Noise(0)
    x = noise.point(4, 4)
    u = (norm * noise.tangent(x)).requires_grad_()
    torch.autograd.gradcheck(group.retr, (x.requires_grad_(), u))
