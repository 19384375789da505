"""What the applications of the benchmarks are made of: quantizers, and the peers written for them."""

import importlib
import sys
from pathlib import Path

import pytest
import torch
from geoopt import ManifoldParameter
from hypothesis import given, settings
from hypothesis import strategies as st

from givens.manifolds import OrthogonalGroup

FOLDER = Path(__file__).parents[1] / "benchmarks" / "applications"
MODULES = ("report", "rotations", "product_quantization")

seeds = st.integers(0, 2**31 - 1)


def load(name):
    """A script of the applications, which import each other by name."""
    pytest.importorskip("matplotlib")
    with pytest.MonkeyPatch.context() as patch:
        for folder in (FOLDER.parent, FOLDER):
            patch.syspath_prepend(folder)
        before = {name: sys.modules.get(name) for name in MODULES}
        try:
            return importlib.import_module(name)
        finally:
            for other, module in before.items():
                if module is None:
                    sys.modules.pop(other, None)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def vectors(n, d, seed):
    return torch.randn(n, d, generator=generator(seed), dtype=torch.float64)


def rotation(d, seed):
    drawn = OrthogonalGroup().random(d, d, dtype=torch.float64, generator=generator(seed))
    return drawn.as_subclass(torch.Tensor)


# Product quantization.


@pytest.fixture(scope="module")
def pq():
    return load("product_quantization")


def quantizer(pq, m, s, seed, k=5):
    centroids = torch.randn(m, k, s, generator=generator(seed), dtype=torch.float64)
    return pq.ProductQuantizer(centroids)


@settings(max_examples=20)
@given(seed=seeds, m=st.integers(1, 4), s=st.integers(1, 3))
def test_every_piece_is_coded_by_the_nearest_centroid(pq, seed, m, s):
    q, y = quantizer(pq, m, s, seed), vectors(600, m * s, seed + 1)  # more than are coded at a time
    kept = q.decode(q.encode(y))
    for i, centroids in enumerate(q.centroids):
        piece = slice(i * s, (i + 1) * s)
        distance = torch.cdist(y[:, piece], centroids)
        found = (y[:, piece] - kept[:, piece]).norm(dim=-1)
        torch.testing.assert_close(found, distance.amin(-1))


@settings(max_examples=20)
@given(seed=seeds, m=st.integers(1, 4), s=st.integers(2, 3))
def test_every_turn_of_opq_lowers_the_distortion(pq, seed, m, s):
    q, x, r = quantizer(pq, m, s, seed), vectors(60, m * s, seed + 1), rotation(m * s, seed + 2)
    before = q.distortion(x @ r)
    for _ in range(3):
        r = pq.alternate(r, q, x)
        torch.testing.assert_close(r.mT @ r, torch.eye(m * s, dtype=torch.float64))
        after = q.distortion(x @ r)
        assert after <= before + 1e-12
        before = after


@settings(max_examples=20)
@given(seed=seeds)
def test_the_rotation_of_opq_is_the_best_for_its_codes(pq, seed):
    q, x = quantizer(pq, 2, 2, seed), vectors(40, 4, seed + 1)
    start = rotation(4, seed + 2)
    codes = q.encode(x @ start)
    r = pq.alternate(start, q, x)  # moves the centroids as well

    def distance(other):
        return (x @ other - q.decode(codes)).square().sum()

    for other in range(20):
        assert distance(r) <= distance(rotation(4, other)) + 1e-9


@settings(max_examples=20)
@given(seed=seeds)
def test_a_rotation_inside_a_piece_changes_no_distortion(pq, seed):
    q, y = quantizer(pq, 3, 2, seed), vectors(40, 6, seed + 1)
    before = q.distortion(y)
    turns = [rotation(2, seed + i) for i in range(3)]
    q.centroids = torch.stack([c @ turn for c, turn in zip(q.centroids, turns, strict=True)])
    assert q.distortion(y @ torch.block_diag(*turns)) == pytest.approx(before)


def test_batches_give_the_gradient_of_the_distortion(pq, monkeypatch):
    monkeypatch.setattr(pq, "BATCH", 50)
    q, x = quantizer(pq, 2, 2, 0), vectors(30, 4, 1)
    centroids = q.centroids.clone()
    r = rotation(4, 2).requires_grad_()
    batch = x[torch.randint(len(x), (50,), generator=generator(3))]
    y = batch @ r
    (y - q.decode(q.encode(y))).square().sum(-1).mean().backward()
    found = pq.batch_gradient(x, q, 3)(r.detach())
    torch.testing.assert_close(found, r.grad)
    assert not torch.equal(q.centroids, centroids)


def test_centroids_that_follow_a_stream_are_its_means(pq):
    q = quantizer(pq, 2, 2, 0)
    y = vectors(200, 4, 1)
    codes = q.encode(y)
    for _ in range(600):  # until the past has faded
        q.follow(y, codes)
    other = quantizer(pq, 2, 2, 0)
    other.fit(y, codes)
    torch.testing.assert_close(q.centroids, other.centroids)


def test_recall_counts_the_neighbours_that_are_found(pq):
    x = vectors(1100, 4, 0)
    search = pq.Search(x, questions=30, seed=1)
    # One centroid a vector: nothing is lost, whatever the rotation.
    r = rotation(4, 2)
    exact = pq.ProductQuantizer((search.base @ r).unsqueeze(0))
    assert search.recall(r, exact) == 1
    # One centroid in all: the order is arbitrary, and of 1,070 vectors ten are right by chance.
    blind = pq.ProductQuantizer(torch.zeros(1, 1, 4, dtype=torch.float64))
    assert search.recall(r, blind) < 0.1


@settings(max_examples=20)
@given(seed=seeds, m=st.sampled_from([1, 2, 4]))
def test_allocated_components_are_a_rotation_that_balances(pq, seed, m):
    x = vectors(80, 8, seed) * torch.logspace(0, 2, 8, dtype=torch.float64)
    r = pq.allocated_components(x, m)
    torch.testing.assert_close(r.mT @ r, torch.eye(8, dtype=torch.float64))
    covariance = (x @ r).mT.cov()
    torch.testing.assert_close(covariance, covariance.diagonal().diag(), atol=1e-8, rtol=1e-8)
    logs = covariance.diagonal().log().view(m, -1).sum(-1)
    plain = torch.linalg.eigvalsh(x.mT.cov()).log().view(m, -1).sum(-1)
    assert logs.max() - logs.min() <= plain.max() - plain.min() + 1e-9


@pytest.mark.parametrize(("distortion", "seconds"), [(0.5, 4.0), (0.75, 2.0), (1.0, 1.0)])
def test_time_to_a_distortion_lies_between_two_looks(pq, distortion, seconds):
    run = {"seconds": [1.0, 4.0, 9.0], "distortion": [1.0, 0.5, 0.6]}
    assert pq.time_to(run, distortion) == pytest.approx(seconds)
    assert pq.time_to(run, 0.4) == float("inf")


# The peer that has no package.


@settings(max_examples=20)
@given(seed=seeds, d=st.integers(2, 6))
def test_cayley_sgd_takes_the_step_of_the_cayley_transform(seed, d):
    x = rotation(d, seed)
    gradient = vectors(d, d, seed + 1)
    lr = 0.3 / float((gradient @ x.mT - x @ gradient.mT).norm())
    p = ManifoldParameter(x.clone(), manifold=OrthogonalGroup())
    p.grad = gradient
    load("rotations").CayleySGD([p], lr, iterations=40).step()
    w = -(gradient @ x.mT - x @ gradient.mT) / 2  # of the canonical metric: Ŵ − Ŵᵀ
    one = torch.eye(d, dtype=torch.float64)
    expected = torch.linalg.solve(one - lr / 2 * w, (one + lr / 2 * w) @ x)
    torch.testing.assert_close(p.detach().as_subclass(torch.Tensor), expected)
