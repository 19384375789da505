"""What the applications of the benchmarks are made of: quantizers, and the peers written for them."""

import importlib
import itertools
import math
import sys
from pathlib import Path

import pytest
import torch
from geoopt import ManifoldParameter
from hypothesis import given, settings
from hypothesis import strategies as st

from givens.manifolds import OrthogonalGroup

FOLDER = Path(__file__).parents[1] / "benchmarks" / "applications"
MODULES = ("report", "rotations", "product_quantization", "low_bit", "smollm")

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
@given(seed=seeds, m=st.sampled_from([2, 4]), factor=st.sampled_from([1e-3, 1.0, 1e3]))
def test_allocated_components_are_a_rotation_that_balances(pq, seed, m, factor):
    x = vectors(80, 8, seed) * torch.logspace(0, 2, 8, dtype=torch.float64) * factor
    r = pq.allocated_components(x, m)
    torch.testing.assert_close(r.mT @ r, torch.eye(8, dtype=torch.float64))
    covariance = (x @ r).mT.cov()
    size = float(covariance.abs().max())
    torch.testing.assert_close(covariance / size, covariance.diagonal().diag() / size)
    logs = covariance.diagonal().log().view(m, -1).sum(-1)
    plain = torch.linalg.eigvalsh(x.mT.cov()).log().view(m, -1).sum(-1)
    assert logs.max() - logs.min() < 0.7 * (plain.max() - plain.min())


# Rounding to few bits.


@pytest.fixture(scope="module")
def low_bit():
    return load("low_bit")


@settings(max_examples=30)
@given(seed=seeds, bits=st.integers(2, 8), factor=st.floats(1e-3, 1e3))
def test_rounding_is_to_levels_and_by_half_a_step_at_most(low_bit, seed, bits, factor):
    y = vectors(5, 40, seed)
    rounded = low_bit.quantize(y, bits)
    step = y.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
    assert ((y - rounded).abs() <= step / 2 + 1e-12).all()
    levels = rounded / step
    torch.testing.assert_close(levels, levels.round())
    assert len(levels.round().unique()) < 2**bits
    torch.testing.assert_close(low_bit.quantize(rounded, bits), rounded)
    torch.testing.assert_close(low_bit.quantize(factor * y, bits), factor * rounded)


def test_zero_is_rounded_to_zero(low_bit):
    assert torch.equal(low_bit.quantize(torch.zeros(2, 3)), torch.zeros(2, 3))


@pytest.mark.parametrize("d", [1, 2, 12, 64, 576, 1536])
def test_hadamard_matrices_are_flat_and_orthogonal(low_bit, d):
    h = low_bit.hadamard(d)
    torch.testing.assert_close(h.abs(), torch.full((d, d), d**-0.5))
    torch.testing.assert_close(h @ h.mT, torch.eye(d), atol=1e-5, rtol=0)
    assert (
        not torch.equal(low_bit.random_hadamard(d, 0).sign(), low_bit.hadamard(d).sign()) or d < 3
    )


@pytest.mark.parametrize("d", [3, 20, 28])
def test_sizes_without_a_hadamard_matrix_here_are_refused(low_bit, d):
    with pytest.raises(ValueError, match=f"d={d}"):
        low_bit.hadamard(d)


@settings(max_examples=20)
@given(seed=seeds, d=st.integers(1, 30))
def test_the_root_of_the_kurtosis_lies_between_flat_and_one_entry(low_bit, seed, d):
    y = low_bit.unit(vectors(7, d, seed))
    assert 1 - 1e-9 <= low_bit.root_kurtosis(y) <= math.sqrt(d) + 1e-9
    assert low_bit.root_kurtosis(y.sign()) == pytest.approx(1)
    one = low_bit.unit(torch.eye(d, dtype=torch.float64))
    assert low_bit.root_kurtosis(one) == pytest.approx(math.sqrt(d))


def language_model(smollm, seed=0):
    """A small one, of the same build."""
    draw = generator(seed)

    def matrix(outputs, inputs):
        return torch.randn(outputs, inputs, generator=draw) / inputs**0.5

    d, width, hidden = 12, 4, 8
    shapes = {
        "attention": (d + 2 * width, d),
        "output": (d, d),
        "hidden": (2 * hidden, d),
        "down": (d, hidden),
    }
    weights = {f"{i}.{kind}": matrix(*shape) for i in range(2) for kind, shape in shapes.items()}
    embedding = matrix(20, d) * 4
    return smollm.Smollm(
        weights, embedding, embedding.clone(), blocks=2, heads=3, pairs=1, base=100.0, eps=1e-5
    )


def token_sequences(n, length, seed=0):
    return torch.randint(20, (n, length), generator=generator(seed))


def test_a_token_hears_only_of_those_before_it(low_bit):
    model = language_model(load("smollm"))
    tokens = token_sequences(1, 9)
    other = tokens.clone()
    other[:, 6] = (other[:, 6] + 1) % 20
    same, changed = model.losses(tokens)[0], model.losses(other)[0]
    torch.testing.assert_close(same[:5], changed[:5])  # losses of the tokens 1 to 5
    assert ((same[5:] - changed[5:]).abs() > 1e-4).all()


def test_attention_sees_distances_and_not_places(low_bit):
    model = language_model(load("smollm"))
    x = torch.randn(1, 5, 12, generator=generator(1))
    padded = torch.cat([x[:, :1].expand(1, 3, 12), x], 1)
    # Of the last tokens, where the first ones are left out of sight.
    turn = model._rotary(8)
    late = model._attend(0, x, turn[3:], load("smollm").plain)
    early = model._attend(0, x, turn[:5], load("smollm").plain)
    torch.testing.assert_close(late, early, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(model._attend(0, padded, turn, load("smollm").plain)[:, 3:], early)


@pytest.mark.parametrize("readers", ["stream", "feed-forward"])
def test_a_rotation_changes_nothing_until_it_is_rounded(readers, low_bit, monkeypatch):
    smollm = load("smollm")
    places = low_bit.Places(language_model(smollm), token_sequences(12, 9), readers)
    assert len(places.measured) == 2 * len(low_bit.READERS[readers])
    r = rotation(places.d, 0).float()
    exact = places.perplexity(None)
    assert places.error(r) > 1e-4
    assert places.perplexity(r) != pytest.approx(exact, rel=1e-4)
    monkeypatch.setattr(low_bit, "quantize", lambda y: y)
    assert places.error(r) < 1e-10
    assert places.perplexity(r) == pytest.approx(exact, rel=1e-4)


def test_what_parts_read_side_by_side_gives_the_sum_of_what_they_write(low_bit, monkeypatch):
    monkeypatch.setattr(low_bit, "WIDE", 13)
    model = language_model(load("smollm"))
    apart = low_bit.Places(model, token_sequences(12, 9), "feed-forward")
    beside = low_bit.Places(model, token_sequences(12, 9), "wide")
    assert (beside.d, beside.measured) == (13, ["0.down"])
    found = beside.held_out["0.down"] @ beside.weights["0.down"].mT
    first, second = (apart.held_out[name] for name in ("0.down", "1.down"))
    expected = first @ model.weights["0.down"].mT
    expected += second[:, :5] @ model.weights["1.down"][:, :5].mT
    torch.testing.assert_close(found, expected)
    assert len(beside.activations) == len(apart.activations) / 2


def test_gradients_are_those_of_activations_and_rows_alike(low_bit):
    places = low_bit.Places(language_model(load("smollm")), token_sequences(12, 9), "stream")
    r = rotation(12, 0).float()
    found = sum(places.gradient(seed)(r) for seed in range(40)) / 40
    r.requires_grad_()
    cost = sum(low_bit.root_kurtosis(part @ r) for part in (places.activations, places.rows)) / 2
    (expected,) = torch.autograd.grad(cost, r)
    assert (found - expected).norm() < 0.1 * expected.norm()


# What the applications share.


@pytest.fixture
def rotations(monkeypatch):
    """With a clock that moves on by one at every look at it."""
    module = load("rotations")
    monkeypatch.setattr(module, "clock", itertools.count().__next__)
    return module


@pytest.mark.parametrize("name", ["Cayley SGD", "SRGD, Adam", "SRCD, matching, Adam"])
def test_learning_goes_down_and_stays_orthogonal(rotations, name):
    target = rotation(6, 1).float()
    start = rotations.random_rotation(6, 0)
    looks = []
    steps = rotations.learn(
        rotations.METHODS[name],
        0.1,
        start,
        lambda r: r - target,
        lambda r, seconds: looks.append((seconds, rotations.departure(r), (r - target).norm())),
        marks=(20, 60),
    )
    assert steps > 30
    assert all(departure < 1e-4 for _, departure, _ in looks)
    assert looks[-1][2] < looks[0][2] < (start - target).norm()


def test_looking_is_not_on_the_clock(rotations):
    def run(idle):
        seconds = []

        def look(r, spent):
            seconds.append(spent)
            for _ in range(idle):
                rotations.clock()

        method = rotations.METHODS["SRCD, matching, Adam"]
        start = rotations.random_rotation(4, 0)
        return rotations.learn(method, 0.1, start, lambda r: r, look, (10, 20, 30)), seconds

    assert run(0) == run(1000)


def test_the_stepsize_with_the_least_cost_is_taken_for_the_other_seeds(rotations):
    best = rotations.METHODS["SRGD, Adam"].stepsizes[2]

    def trained(name, lr, seed):
        return {"stepsize": lr, "seed": seed, "cost": [0.0, abs(lr - best) + 1]}

    runs, tuning = rotations.tuned(["SRGD, Adam"], trained, 3, "cost")
    assert [(run["stepsize"], run["seed"]) for run in runs] == [(best, 0), (best, 1), (best, 2)]
    assert [run["stepsize"] for run in tuning] == list(rotations.METHODS["SRGD, Adam"].stepsizes)


@pytest.mark.parametrize(("cost", "seconds"), [(0.5, 4.0), (0.75, 2.0), (1.0, 1.0)])
def test_time_to_a_cost_lies_between_two_looks(rotations, cost, seconds):
    looks = [1.0, 4.0, 9.0], [1.0, 0.5, 0.6]
    assert rotations.time_to(*looks, cost) == pytest.approx(seconds)
    assert rotations.time_to(*looks, 0.4) == float("inf")


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


@pytest.mark.parametrize("best", [1e-3, 0.03, 1.0, 30.0, 1000.0])
def test_the_best_stepsize_has_a_worse_one_on_each_side(best, rotations, monkeypatch):
    monkeypatch.setattr(
        rotations, "METHODS", {"any": rotations.Method(None, (0.3, 1.0, 3.0), "black")}
    )

    def trained(name, lr, seed):
        return {"stepsize": lr, "seed": seed, "cost": [abs(math.log(lr / best))]}

    runs, tuning = rotations.tuned(["any"], trained, 2, "cost")
    assert [(run["stepsize"], run["seed"]) for run in runs] == [(best, 0), (best, 1)]
    tried = [run["stepsize"] for run in tuning]
    assert min(tried) < best < max(tried)
    assert len(tried) == len({*tried})
    assert not {*tried} - {float(f"{a}e{b}") for a in (1, 3) for b in range(-5, 5)}
