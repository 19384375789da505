"""The special orthogonal group: what distinguishes it from the orthogonal group, and SO(3)."""

import math

import numpy as np
import pytest
import torch
from geoopt import ManifoldParameter
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from strategies import DTYPES, Noise, batch_shapes, defect, dims, dtypes, error, layouts, noises
from torch import Tensor

from givens.manifolds import OrthogonalGroup, SpecialOrthogonalGroup, Sphere
from givens.optim import SRCD, SRGD, Block, Cyclic, GaussSouthwell, Uniform

GROUP = SpecialOrthogonalGroup()


def eps(dtype):
    return torch.finfo(dtype).eps


def vectors(a):
    """Rotation vectors of skew 3×3 matrices."""
    return torch.stack([a[..., 2, 1], a[..., 0, 2], a[..., 1, 0]], -1)


def cross(v):
    """The skew matrices of cross products with vectors, whose exponentials are the rotations."""
    a = torch.zeros(*v.shape, 3, dtype=v.dtype)
    a[..., 2, 1], a[..., 0, 2], a[..., 1, 0] = v.unbind(-1)
    return a - a.mT


# Points


@given(batch_shapes, dims, dtypes, noises)
def test_random_points_are_rotations(batch, d, dtype, noise: Noise):
    x = GROUP.random(*batch, d, d, dtype=dtype, generator=noise.generator)
    assert (x.shape, x.dtype, x.manifold) == ((*batch, d, d), dtype, GROUP)
    assert defect(x) <= 1.5 * eps(dtype) + 1e-14
    assert (torch.linalg.det(x) > 0).all()
    GROUP.assert_check_point_on_manifold(x)
    again = GROUP.random(*batch, d, d, dtype=dtype, generator=Noise(noise.seed).generator)
    assert torch.equal(x, again)
    origin = GROUP.origin(*batch, d, d, dtype=dtype)
    assert origin.manifold is GROUP
    GROUP.assert_check_point_on_manifold(origin)


def test_random_points_follow_the_haar_measure():
    """The density of the angle of a random rotation of space is (1 − cos φ)/π."""
    count = 20_000
    x = GROUP.random(count, 3, 3, dtype=torch.float64, generator=Noise(0).generator)
    trace = x.diagonal(dim1=-2, dim2=-1).sum(-1)
    angle = torch.arccos((trace - 1).div(2).clamp(-1, 1))
    for sample, mean in ((angle, math.pi / 2 + 2 / math.pi), (trace, 0.0), (trace**2, 1.0)):
        assert abs(float(sample.mean()) - mean) <= 5 * float(sample.std()) / math.sqrt(count)


@pytest.mark.parametrize("det", [-1, None, 2])
def test_there_are_no_points_of_another_determinant(det):
    with pytest.raises(ValueError, match=f"det={det}: .*OrthogonalGroup"):
        GROUP.random(3, 3, det=det)


@given(batch_shapes, dims, dtypes, noises)
def test_projx_is_the_nearest_rotation(batch, d, dtype, noise: Noise):
    m = noise.normal(*batch, d, d, dtype=dtype)
    kept = m.clone()
    for y in layouts(m):
        x = GROUP.projx(y)
        assert x.dtype == dtype
        assert defect(x) <= 3 * eps(dtype)
        assert (torch.linalg.det(x) > 0).all()
    assert torch.equal(m, kept)
    s = torch.linalg.svdvals(m.double())
    s[..., -1] *= torch.linalg.det(m.double()).sign()
    # ‖m − x‖² = ‖m‖² + d − 2⟨m, x⟩, and no rotation has a larger ⟨m, x⟩ than the signed sum.
    limit = 40 * d * eps(dtype) * float(1 + s.abs().max())
    assert error((m * x).sum((-2, -1)), s.sum(-1)) <= limit
    others = GROUP.random(20, *batch, d, d, dtype=torch.float64, generator=noise.generator)
    assert ((others * m).sum((-2, -1)) <= s.sum(-1) + limit).all()
    assert error(GROUP.projx(x), x) <= 4 * eps(dtype)


@given(batch_shapes, dims, dtypes, noises)
def test_near_a_rotation_projx_is_that_of_the_orthogonal_group(batch, d, dtype, noise: Noise):
    x = noise.point(*batch, d, d, dtype=dtype, det=1)
    m = x + 0.1 / d * noise.like(x)
    assert error(GROUP.projx(m), OrthogonalGroup().projx(m)) <= 10 * eps(dtype)


@given(dims, noises)
def test_projx_is_scipys_alignment_in_space(d, noise: Noise):
    """Wahba's problem, for as many vectors as there are rows."""
    a, b = noise.normal(d + 2, 3), noise.normal(d + 2, 3)
    expected, _ = Rotation.align_vectors(a.numpy(), b.numpy())
    m = a.mT @ b
    s = torch.linalg.svdvals(m)
    s[-1] *= torch.linalg.det(m).sign()
    limit = 1e-13 * float(s[0] / (s[-1] + s[-2]))
    assert error(GROUP.projx(m), torch.from_numpy(expected.as_matrix())) <= limit


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e12])
def test_projx_takes_reflections_and_singular_matrices(dtype, scale):
    """Where several rotations are nearest, one of them; derivatives stay numbers."""
    reflection = Noise(0).point(4, 4, dtype=dtype, det=-1)
    for m in (reflection, -torch.eye(3, dtype=dtype), torch.zeros(3, 3, dtype=dtype)):
        m = (scale * m).requires_grad_()
        x = GROUP.projx(m)
        assert GROUP.check_point_on_manifold(x)
        nuclear = torch.linalg.svdvals(m.detach())
        best = nuclear.sum() if torch.linalg.det(m) >= 0 else nuclear.sum() - 2 * nuclear[-1]
        assert error((m * x).sum().detach(), best) <= 20 * eps(dtype) * scale
        (gradient,) = torch.autograd.grad((x**3).sum(), m)
        assert not gradient.isnan().any()


@pytest.mark.parametrize("det", [1, -1])
@pytest.mark.parametrize("d", [2, 3, 4])
def test_gradients_flow_through_projx(d, det):
    """On both sides: where the polar factor is a rotation, and where it is not."""
    noise = Noise(1)
    m = noise.normal(3, d, d)
    m[:, 0] *= det * torch.linalg.det(m).sign().unsqueeze(-1)
    torch.autograd.gradcheck(GROUP.projx, (m.requires_grad_(),))


# Checks


@given(batch_shapes, dims, dtypes, noises)
def test_a_reflection_is_no_rotation(batch, d, dtype, noise: Noise):
    x = noise.point(*batch, d, d, dtype=dtype, det=1)
    assert GROUP.check_point_on_manifold(x)
    x[(0,) * len(batch)][:, 1] *= -1
    ok, reason = GROUP.check_point_on_manifold(x, explain=True)
    assert not ok
    assert "determinant is −1" in reason
    assert "sign of one column" in reason
    assert "projx" in reason
    assert OrthogonalGroup().check_point_on_manifold(x)
    assert GROUP.check_point_on_manifold(GROUP.projx(x))
    ok, reason = GROUP.check_point_on_manifold(1.1 * x, explain=True)
    assert not ok
    assert "max |x" in reason


def test_an_optimizer_refuses_a_reflection():
    x = ManifoldParameter(torch.diag(torch.tensor([1.0, 1.0, -1.0])), manifold=GROUP)
    with pytest.raises(ValueError, match="SpecialOrthogonalGroup manifold: its determinant is −1"):
        SRCD([x], lr=0.1)


def test_bad_input():
    with pytest.raises(ValueError, match=r"SpecialOrthogonalGroup expects \(\.\.\., d, d\)"):
        GROUP.projx(torch.zeros(3, 2))
    with pytest.raises(TypeError, match="SpecialOrthogonalGroup works in"):
        GROUP.projx(torch.eye(3, dtype=torch.int64))
    assert repr(GROUP) == "SpecialOrthogonalGroup manifold"
    assert GROUP.projx(torch.empty(3, 4, 4, device="meta")).device.type == "meta"


# Maps: all of O(d)'s stay in the component


@given(batch_shapes, dims, dtypes, noises)
def test_any_two_rotations_are_joined(batch, d, dtype, noise: Noise):
    x, y = (noise.point(*batch, d, d, dtype=dtype, det=1) for _ in range(2))
    u = GROUP.logmap(x, y)
    distance = GROUP.dist(x, y)
    assert distance.isfinite().all()
    assert error(distance, GROUP.norm(x, u)) <= 1e3 * d * eps(dtype)
    assert error(GROUP.expmap(x, u), y) <= 1e3 * d * eps(dtype)


@pytest.mark.parametrize("retraction", ["exponential", "cayley", "qr", "polar", "givens"])
@given(dims, st.floats(-3, 1), noises)
def test_retractions_stay_in_the_component(retraction, d, power, noise: Noise):
    x = noise.point(d, d, det=1)
    y = SpecialOrthogonalGroup(retraction).retr(x, 10**power * noise.tangent(x))
    assert torch.linalg.det(y) > 0


# SO(3), by scipy


@given(batch_shapes, st.floats(-9, math.log10(2 * math.pi)), noises)
def test_the_exponential_is_that_of_rotation_vectors(batch, power, noise: Noise):
    x = GROUP.random(*batch, 3, 3, dtype=torch.float64, generator=noise.generator)
    x = x.as_subclass(Tensor)
    axis = noise.normal(*batch, 3)
    v = 10**power * axis / axis.norm(dim=-1, keepdim=True)
    turned = Rotation.from_rotvec(v.reshape(-1, 3).numpy()).as_matrix().reshape(*batch, 3, 3)
    assert error(GROUP.expmap(x, x @ cross(v)), x @ torch.from_numpy(turned)) <= 1e-14


angles = st.one_of(
    st.floats(0, math.pi - 0.01),
    st.floats(-12, -1).map(lambda power: 10.0**power),
    st.floats(-7, -1).map(lambda power: math.pi - 10.0**power),
)


@given(batch_shapes, angles, noises)
def test_the_logarithm_is_the_rotation_vector(batch, angle, noise: Noise):
    x = GROUP.random(*batch, 3, 3, dtype=torch.float64, generator=noise.generator)
    x = x.as_subclass(Tensor)
    axis = noise.normal(*batch, 3)
    v = angle * axis / axis.norm(dim=-1, keepdim=True)
    turned = Rotation.from_rotvec(v.reshape(-1, 3).numpy())
    y = x @ torch.from_numpy(turned.as_matrix().reshape(*batch, 3, 3))
    # Badly conditioned towards π, as every logarithm of a matrix is.
    limit = 2e-14 / min(1.0, math.pi - angle)
    found = vectors(x.mT @ GROUP.logmap(x, y))
    assert error(found, v) <= limit
    assert error(found, torch.from_numpy(turned.as_rotvec()).view(*batch, 3)) <= limit
    magnitude = torch.from_numpy(turned.magnitude()).view(batch)
    assert error(GROUP.dist(x, y) / math.sqrt(2), magnitude) <= 2e-14 + (
        0 if angle < 3 else math.sqrt(eps(x.dtype))
    )


@given(st.floats(-16, -7), noises)
def test_at_a_half_turn_the_axis_has_two_signs(power, noise: Noise):
    """Up to the square root of the precision around it: one of both shortest vectors."""
    axis = Sphere().projx(noise.normal(3))
    for angle in (math.pi, math.pi - 10**power):
        y = torch.from_numpy(Rotation.from_rotvec((angle * axis).numpy()).as_matrix())
        v = vectors(GROUP.logmap(torch.eye(3, dtype=y.dtype), y))
        assert abs(float(v.norm()) - math.pi) <= 2e-7
        assert min(error(v, math.pi * axis), error(v, -math.pi * axis)) <= 1e-6


# Descent


def noisy_descent(make, x, steps):
    """Steps along noise, which lead everywhere; the least and the largest determinant on the way."""
    noise = Noise(3)
    x = ManifoldParameter(x, manifold=GROUP)
    optimizer = make([x])
    determinants = []
    for _ in range(steps):
        x.grad = noise.like(x)
        optimizer.step()
        determinants.append(torch.linalg.det(x.detach().double()))
    return torch.stack(determinants)


OPTIMIZERS = {
    "uniform": lambda p: SRCD(p, lr=3.0),
    "Gauss-Southwell": lambda p: SRCD(p, lr=3.0, selection=GaussSouthwell()),
    "block": lambda p: SRCD(p, lr=3.0, selection=Block(size=5)),
    "disjoint block": lambda p: SRCD(p, lr=3.0, selection=Block(size=2, disjoint=True)),
    "gradient": lambda p: SRGD(p, lr=3.0, momentum=0.5),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_determinant_never_changes(name):
    x = GROUP.random(3, 4, 4, dtype=torch.float32, generator=Noise(0).generator)
    determinants = noisy_descent(OPTIMIZERS[name], x.as_subclass(Tensor), 200)
    assert error(determinants, torch.ones(())) <= 1e-5


@pytest.mark.parametrize("selection", [Uniform(), Cyclic(), GaussSouthwell()])
def test_rotation_averaging(selection):
    """The chordal mean of rotations, for a batch of problems at once, is the projection of their mean."""
    noise = Noise(0)
    centre = noise.point(5, 1, 3, 3, det=1)
    samples = GROUP.expmap(centre, 0.3 * centre @ noise.skew(5, 20, 3, 3))
    mean = samples.mean(1)
    x = ManifoldParameter(GROUP.origin(5, 3, 3, dtype=torch.float64), manifold=GROUP)
    optimizer = SRCD([x], lr=0.5, selection=selection)
    for _ in range(300):
        x.grad = x.detach() - mean
        optimizer.step()
    expected = Rotation.concatenate([Rotation.from_matrix(s.numpy()).mean() for s in samples])
    assert error(x.detach(), GROUP.projx(mean)) <= 1e-9
    assert error(x.detach(), torch.from_numpy(np.stack(expected.as_matrix()))) <= 1e-9
