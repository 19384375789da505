"""Where the recurrent matrices start."""

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from givens.rnn.initialization import (
    INITIALIZATIONS,
    UNITARY_INITIALIZATIONS,
    haar,
    henaff_cayley,
    henaff_expm,
    identity,
    phases,
)

every = pytest.mark.parametrize("init", INITIALIZATIONS.values(), ids=INITIALIZATIONS.keys())
every_unitary = pytest.mark.parametrize(
    "init", UNITARY_INITIALIZATIONS.values(), ids=UNITARY_INITIALIZATIONS.keys()
)
seeds = st.integers(0, 2**31)
sizes = st.integers(2, 40)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def recovered_blocks(seed, d):
    """The matrix A of which `henaff_cayley` is the Cayley transform, by a solve."""
    W = henaff_cayley(d, dtype=torch.float64, generator=generator(seed)).numpy()
    return scipy.linalg.solve(np.eye(d) + W, np.eye(d) - W)


@every
@given(d=sizes, seed=seeds)
def test_orthogonal(init, d, seed):
    for dtype, tolerance in ((torch.float64, 1e-14), (torch.float32, 1e-6)):
        W = init(d, dtype=dtype, generator=generator(seed))
        assert type(W) is torch.Tensor
        assert W.dtype == dtype
        assert W.shape == (d, d)
        assert (W.double().T @ W.double() - torch.eye(d)).abs().max() < tolerance


@every_unitary
@given(d=sizes, seed=seeds)
def test_unitary(init, d, seed):
    for dtype, tolerance in ((torch.complex128, 1e-14), (torch.complex64, 1e-6)):
        W = init(d, dtype=dtype, generator=generator(seed))
        assert type(W) is torch.Tensor
        assert W.dtype == dtype
        assert W.shape == (d, d)
        gram = W.to(torch.complex128).mH @ W.to(torch.complex128)
        assert (gram - torch.eye(d)).abs().max() < tolerance
        assert torch.equal(init(d, dtype=dtype, generator=generator(seed)), W)
        if init in (phases, haar):
            assert (W.imag.abs() > 1e-3).any()
        else:
            assert torch.equal(
                W, init(d, dtype=dtype.to_real(), generator=generator(seed)).to(dtype)
            )


@every
def test_default_arguments(init):
    torch.manual_seed(3)
    first = init(7)
    assert first.dtype == torch.get_default_dtype()
    torch.manual_seed(3)
    assert torch.equal(init(7), first)
    if init is not identity:
        assert not torch.equal(init(7), first)
    assert torch.equal(init(7, generator=generator(1)), init(7, generator=generator(1)))
    assert init(7, device=torch.device("cpu")).device.type == "cpu"


@pytest.mark.parametrize("init", [*INITIALIZATIONS.values(), phases])
@pytest.mark.parametrize("d", [1, 0])
def test_too_small(init, d):
    with pytest.raises(ValueError, match=f"at least 2, got {d}"):
        init(d)


class TestHenaff:
    @given(d=sizes, seed=seeds)
    def test_blocks(self, d, seed):
        A = recovered_blocks(seed, d)
        s = np.diag(A, 1)[::2]
        assert np.abs(s).max() <= math.pi
        assert len(s) == d // 2
        expected = np.zeros((d, d))
        for i, entry in enumerate(s):
            expected[2 * i, 2 * i + 1], expected[2 * i + 1, 2 * i] = entry, -entry
        np.testing.assert_allclose(A, expected, atol=1e-12)

    @given(d=sizes, seed=seeds)
    def test_cayley_by_a_solve(self, d, seed):
        A = recovered_blocks(seed, d)
        W = henaff_cayley(d, dtype=torch.float64, generator=generator(seed)).numpy()
        np.testing.assert_allclose(scipy.linalg.solve(np.eye(d) + A, np.eye(d) - A), W, atol=1e-12)

    @given(d=sizes, seed=seeds)
    def test_exponential_of_the_same_blocks(self, d, seed):
        W = henaff_expm(d, dtype=torch.float64, generator=generator(seed)).numpy()
        np.testing.assert_allclose(scipy.linalg.expm(recovered_blocks(seed, d)), W, atol=1e-12)

    @pytest.mark.parametrize("init", [henaff_cayley, henaff_expm])
    @pytest.mark.parametrize("d", [2, 9, 30])
    def test_component_of_the_identity(self, init, d):
        W = init(d, dtype=torch.float64, generator=generator(d))
        assert torch.linalg.det(W).item() == pytest.approx(1)
        if d % 2:
            assert W[-1, -1] == 1

    def test_eigenvalues(self):
        W = henaff_cayley(500, dtype=torch.float64, generator=generator(0))
        angles = torch.linalg.eigvals(W).angle().abs()
        assert angles.max() <= 2 * math.atan(math.pi)
        assert angles.max() > 2.4

    def test_entries_are_uniform(self):
        draws = []
        for seed in range(15):
            W = henaff_expm(800, dtype=torch.float64, generator=generator(seed))
            draws.append(torch.atan2(W.diagonal(1)[::2], W.diagonal()[::2]))
        s = torch.cat(draws).numpy()
        uniform = scipy.stats.uniform(-math.pi, 2 * math.pi)
        assert scipy.stats.kstest(s, uniform.cdf).pvalue > 1e-3
        # 6,000 draws come this near to the ends but for one time in 10¹⁰.
        assert s.max() > 0.992 * math.pi
        assert s.min() < -0.992 * math.pi


class TestHaar:
    def test_moments(self):
        # Of a Haar matrix: E W_ij = 0, E W_ij² = 1/d, E (tr W)² = 1; both determinants equally.
        g, d, n = generator(0), 6, 1000
        draws = torch.stack([haar(d, dtype=torch.float64, generator=g) for _ in range(n)])
        assert draws.mean(0).abs().max() < 5 / (d * n) ** 0.5
        assert (draws.square().mean(0) - 1 / d).abs().max() < 0.04
        traces = draws.diagonal(dim1=1, dim2=2).sum(1)
        assert traces.square().mean().item() == pytest.approx(1, abs=0.25)
        positive = (torch.linalg.det(draws) > 0).double().mean().item()
        assert positive == pytest.approx(0.5, abs=2.5 / n**0.5)

    def test_unitary_moments(self):
        # Of a Haar unitary matrix: E W_ij = 0, E |W_ij|² = 1/d, E |tr W|² = 1, E (tr W)² = 0.
        g, d, n = generator(0), 6, 1000
        draws = torch.stack([haar(d, dtype=torch.complex128, generator=g) for _ in range(n)])
        assert draws.mean(0).abs().max() < 5 / (d * n) ** 0.5
        assert (draws.abs().square().mean(0) - 1 / d).abs().max() < 0.04
        traces = draws.diagonal(dim1=1, dim2=2).sum(1)
        assert traces.abs().square().mean().item() == pytest.approx(1, abs=0.2)
        assert traces.square().mean().abs() < 0.2


class TestPhases:
    def test_are_uniform(self):
        W = phases(6000, dtype=torch.complex128, generator=generator(0))
        assert W.count_nonzero() == 6000
        uniform = scipy.stats.uniform(-math.pi, 2 * math.pi)
        assert scipy.stats.kstest(W.diagonal().angle().numpy(), uniform.cdf).pvalue > 1e-3

    def test_default_dtype_and_refusal(self):
        assert phases(3).dtype == torch.complex64
        with pytest.raises(TypeError, match=r"complex, but dtype is torch\.float32"):
            phases(3, dtype=torch.float32)


def test_identity():
    assert torch.equal(identity(4), torch.eye(4))


def test_names():
    assert list(INITIALIZATIONS) == ["henaff-cayley", "henaff-expm", "haar", "identity"]
    assert dict(UNITARY_INITIALIZATIONS) == {"phases": phases, **INITIALIZATIONS}
