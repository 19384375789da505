"""Averages of models whose parameters live on manifolds."""

import copy
import io
import math

import geoopt
import pytest
import torch
from geoopt import ManifoldParameter
from hypothesis import given
from hypothesis import strategies as st
from strategies import Noise, batch_shapes, defect, dims, dtypes, error, noises
from torch import nn
from torch.optim import swa_utils
from torch.optim.swa_utils import get_ema_avg_fn, get_ema_multi_avg_fn, get_swa_avg_fn

from givens.manifolds import (
    Euclidean,
    Grassmann,
    OrthogonalGroup,
    Power,
    Sphere,
    Stiefel,
    UnitaryGroup,
    constrain,
)
from givens.optim import SRCD, AveragedModel

GROUP = OrthogonalGroup()

RULES = {
    "equal weights": {},
    "swa": {"avg_fn": get_swa_avg_fn()},
    "ema": {"avg_fn": get_ema_avg_fn(0.75)},
    "multi ema": {"multi_avg_fn": get_ema_multi_avg_fn(0.75)},
}
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


class Holder(nn.Module):
    def __init__(self, point, manifold=None):
        super().__init__()
        self.point = ManifoldParameter(point, manifold) if manifold else nn.Parameter(point)


def averaged(points, manifold, rule):
    """The average of a sequence of points."""
    result = AveragedModel(Holder(points[0], manifold), **rule)
    for point in points:
        result.update_parameters(Holder(point, manifold))
    return result.module.point.detach()


def weights(n, rule):
    """With which the n-th point enters the average."""
    return 0.25 if "ema" in str(rule) else 1 / (n + 1)


# On a manifold


@every_rule
@given(batch_shapes, dims, dtypes, noises)
def test_an_average_is_on_the_manifold_and_on_the_geodesic(rule, batch, d, dtype, noise: Noise):
    """Exp_a(w·Log_a(x)): its distances from a and x are w and 1 − w of theirs."""
    a = noise.point(*batch, d, d, dtype=dtype, det=1)
    x = GROUP.expmap(a, 0.2 * noise.tangent(a))
    mean = averaged([a, x], GROUP, rule)
    assert defect(mean) <= 30 * torch.finfo(dtype).eps
    w, tolerance = weights(1, rule), 300 * math.sqrt(d) * torch.finfo(dtype).eps
    whole = GROUP.dist(a, x)
    assert error(GROUP.dist(a, mean), w * whole) <= tolerance
    assert error(GROUP.dist(mean, x), (1 - w) * whole) <= tolerance


@given(noises, st.integers(1, 30), st.floats(0, 0.99))
def test_on_a_circle_it_is_torch_s_average_of_the_angles(noise: Noise, n, decay):
    """SO(2) is flat, so that averages of angles are exact, by whichever rule."""
    angles = noise.uniform(n, low=-0.75, high=0.75)
    cos, sin = angles.cos(), angles.sin()
    points = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
    for rule in ({}, {"avg_fn": get_ema_avg_fn(decay)}):
        mean = averaged(points.unbind(), GROUP, rule)
        plain = swa_utils.AveragedModel(Holder(angles[:1]), **rule)
        for angle in angles:
            plain.update_parameters(Holder(angle.view(1)))
        expected = plain.module.point.item()
        assert math.atan2(mean[1, 0], mean[0, 0]) == pytest.approx(expected, abs=1e-12)


@every_rule
@given(noises)
def test_it_moves_with_the_points(rule, noise: Noise):
    """The average of Q·x is Q times the average of x: no place of the manifold is preferred."""
    start, q = noise.point(4, 4), noise.point(4, 4)
    points = [GROUP.expmap(start, 0.3 * noise.tangent(start)) for _ in range(5)]
    moved = averaged([q @ x for x in points], GROUP, rule)
    assert error(moved, q @ averaged(points, GROUP, rule)) <= 1e-12


OTHERS = {
    "unitary": (UnitaryGroup(), (4, 4), torch.complex128),
    "sphere": (Sphere(), (5,), torch.float64),
    "stiefel": (Stiefel(), (6, 3), torch.float64),
    "square stiefel": (Stiefel(), (4, 4), torch.float64),
    "grassmann": (Grassmann(), (6, 3), torch.float64),
    "power": (Power(OrthogonalGroup()), (3, 4, 4), torch.float64),
    "geoopt stiefel": (geoopt.Stiefel(), (6, 3), torch.float64),
    "geoopt sphere": (geoopt.Sphere(), (5,), torch.float64),
    "lorentz": (geoopt.Lorentz().double(), (5,), torch.float64),
    "poincaré": (geoopt.PoincareBall(), (5,), torch.float64),
    "spd": (geoopt.SymmetricPositiveDefinite(), (3, 3), torch.float64),
}


@every_rule
@pytest.mark.parametrize(("manifold", "shape", "dtype"), OTHERS.values(), ids=OTHERS)
def test_every_manifold_has_averages(rule, manifold, shape, dtype):
    noise = Noise(0)
    x = manifold.projx(0.2 * noise.normal(*shape).to(dtype))
    if isinstance(manifold, geoopt.SymmetricPositiveDefinite):
        x = x @ x + torch.eye(3)
    points = [x]
    for _ in range(6):
        u = manifold.proju(x, 0.1 * noise.normal(*shape).to(dtype))
        points.append(manifold.expmap(points[-1], manifold.proju(points[-1], u)))
    mean = averaged(points, manifold, rule)
    manifold.assert_check_point_on_manifold(mean, atol=1e-9)
    # geoopt's logarithms of nearby points are good to the root of the precision.
    tolerance = 1e-3 if manifold.__module__.startswith("geoopt") else 1e-9
    assert (averaged([x] * 7, manifold, rule) - x).abs().max() <= tolerance
    assert 0 < (mean - x).norm() < 2 * max(float((y - x).norm()) for y in points)


def test_a_subspace_does_not_depend_on_its_basis():
    """The mean of two bases may be the basis of anything."""
    manifold, noise = Grassmann(), Noise(1)
    a = manifold.projx(noise.normal(6, 2))
    x = manifold.expmap(a, manifold.proju(a, 0.3 * noise.normal(6, 2)))
    q = noise.point(2, 2)
    one, other = averaged([a, x], manifold, {}), averaged([a, x @ q], manifold, {})
    assert error(one @ one.mT, other @ other.mT) <= 1e-12
    assert error(manifold.dist(a, one), manifold.dist(a, x) / 2) <= 1e-9


@given(noises)
def test_without_a_logarithm_it_is_the_nearest_point_to_the_mean(noise: Noise):
    """Stiefel, 1 < p < n: near the point that lies half way along the curve."""
    manifold = Stiefel()
    a = manifold.projx(noise.normal(5, 2))
    u = manifold.proju(a, noise.normal(5, 2))
    u = 0.01 * u / manifold.norm(a, u)
    mean = averaged([a, manifold.expmap(a, u)], manifold, {})
    assert error(mean, manifold.expmap(a, u / 2)) <= 1e-6
    assert defect(mean) <= 1e-14


def test_many_averages_in_float32_do_not_drift():
    noise = Noise(0)
    model = Holder(noise.point(8, 8, dtype=torch.float32), GROUP)
    result = AveragedModel(model, avg_fn=get_ema_avg_fn(0.9))
    for _ in range(300):
        with torch.no_grad():
            model.point.copy_(GROUP.expmap(model.point, 0.1 * noise.tangent(model.point.detach())))
            GROUP.restore_(model.point)
        result.update_parameters(model)
    assert defect(result.module.point) <= 3e-7  # 7e-7 without a restoration


def test_points_that_no_geodesic_joins_change_nothing():
    noise = Noise(0)
    a, x = noise.point(4, 4, det=1), noise.point(4, 4, det=-1)
    result = AveragedModel(Holder(a, GROUP))
    result.update_parameters(Holder(a, GROUP))
    with pytest.raises(ValueError, match="determinants of opposite sign"):
        result.update_parameters(Holder(x, GROUP))
    assert torch.equal(result.module.point, a)
    assert result.n_averaged == 1


# As torch does it


class Net(nn.Module):
    """Orthogonal, plain and integer parts."""

    def __init__(self, *, orthogonal):
        super().__init__()
        torch.manual_seed(0)
        self.hidden = nn.Linear(4, 4)
        if orthogonal:
            constrain(self.hidden, "weight", GROUP)
        self.norm = nn.BatchNorm1d(4)
        self.last = nn.Linear(4, 2).double()
        self.scale = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))

    def forward(self, x):
        return self.last(self.norm(self.hidden(x)).double())


def perturb(model, seed):
    noise = Noise(seed)
    with torch.no_grad():
        for p in model.parameters():
            if isinstance(p, ManifoldParameter):
                p.copy_(noise.point(*p.shape, dtype=p.dtype, det=1))
            else:
                p.add_(noise.like(p))
        for b in model.buffers():
            b.add_(seed + 1)


@every_rule
@pytest.mark.parametrize("use_buffers", [False, True])
def test_what_has_no_manifold_is_torch_s_to_the_last_bit(rule, use_buffers):
    model, plain = Net(orthogonal=True), Net(orthogonal=False)
    with torch.no_grad():  # of determinant 1
        model.hidden.weight.copy_(torch.eye(4))
    ours = AveragedModel(model, use_buffers=use_buffers, **rule)
    torchs = swa_utils.AveragedModel(plain, use_buffers=use_buffers, **rule)
    for seed in range(4):
        perturb(model, seed)
        plain.load_state_dict(model.state_dict())
        ours.update_parameters(model)
        torchs.update_parameters(plain)
    expected, found = torchs.state_dict(), ours.state_dict()
    assert expected.keys() == found.keys()
    for key, value in found.items():
        assert torch.equal(value, expected[key]) != (key == "module.hidden.weight")
    assert defect(ours.module.hidden.weight) <= 1e-6
    assert defect(torchs.module.hidden.weight) > 1e-3  # what torch's own class does


@every_rule
@given(noise=noises)
def test_a_flat_manifold_is_torch_s_to_rounding(rule, noise: Noise):
    points = [noise.normal(5) for _ in range(4)]
    plain = swa_utils.AveragedModel(Holder(points[0].clone()), **rule)
    for point in points:
        plain.update_parameters(Holder(point))
    mean = averaged([x.clone() for x in points], Euclidean(1), rule)
    assert error(mean, plain.module.point.detach()) <= 1e-14


def test_it_is_trained_saved_loaded_copied_and_used():
    """SWA from beginning to end, with batch normalization and a checkpoint half way."""
    inputs = Noise(0).normal(16, 4).float()
    model = Net(orthogonal=True)
    optimizer = SRCD(model.parameters(), 0.1)
    result = AveragedModel(model)

    def train(steps):
        for _ in range(steps):
            optimizer.zero_grad()
            (model(inputs) - 1).square().mean().backward()
            optimizer.step()
            result.update_parameters(model)

    train(3)
    file = io.BytesIO()
    torch.save(result.state_dict(), file)
    file.seek(0)
    resumed = AveragedModel(Net(orthogonal=True))
    resumed.load_state_dict(torch.load(file, weights_only=True))
    twin = copy.deepcopy(result)
    train(3)
    assert result.n_averaged == 6
    for other in (resumed, twin):
        assert other.n_averaged == 3
        assert torch.equal(other.module.hidden.weight, twin.module.hidden.weight)
        assert isinstance(other.module.hidden.weight, ManifoldParameter)
        other.update_parameters(model)
        assert defect(other.module.hidden.weight) <= 1e-6
    swa_utils.update_bn([inputs], result)
    assert result.module.norm.num_batches_tracked == 1
    assert result.eval()(inputs).shape == (16, 2)
    # The average can itself be trained on.
    SRCD(result.module.parameters(), 0.1)
