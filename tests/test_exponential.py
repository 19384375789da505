"""expm − I of skew-symmetric matrices."""

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import DTYPES, Noise, batch_shapes, dtypes, error, layouts, noises

from givens.manifolds import exponential
from givens.manifolds.exponential import expm1

sizes = st.integers(1, 12)
norms = st.floats(-8, 1.5).map(lambda power: 10.0**power)  # 1e-8 … 32


def spectral(a):
    """The same by eigenvalues: accurate relative to ‖a‖, however small it is."""
    values, vectors = np.linalg.eigh(1j * a.double().numpy())
    f = (vectors * np.expm1(-1j * values)[..., None, :]) @ vectors.conj().swapaxes(-1, -2)
    return torch.from_numpy(f.real.copy())


def skew(noise, *shape, norm, dtype=torch.float64):
    a = noise.skew(*shape)
    return (a * (norm / torch.linalg.matrix_norm(a, ord=2, keepdim=True).clamp_min(1e-300))).to(
        dtype
    )


def norm_of(a):
    return float(torch.linalg.matrix_norm(a.double(), ord=2).max()) if a.numel() else 0.0


class OffHost(torch.Tensor):
    """A tensor on the CPU that says it is not, which takes the path that never waits for a device."""

    device = torch.device("cuda")


def without_waiting(a):
    return expm1(a.as_subclass(OffHost)).as_subclass(torch.Tensor)


PATHS = pytest.mark.parametrize("expm1", [expm1, without_waiting])


@PATHS
@given(sizes, norms, noises)
def test_it_is_scipys_expm_less_the_identity(expm1, r, norm, noise: Noise):
    a = skew(noise, r, r, norm=norm)
    expected = scipy.linalg.expm(a.numpy()) - np.eye(r)
    assert error(expm1(a), torch.from_numpy(expected)) <= 2e-14 * (1 + norm)


@PATHS
@given(sizes, batch_shapes, norms, dtypes, noises)
def test_it_is_accurate_relative_to_the_norm(expm1, r, batch, norm, dtype, noise: Noise):
    a = skew(noise, *batch, r, r, norm=norm, dtype=dtype)
    f = expm1(a)
    assert f.dtype == dtype
    assert f.shape == a.shape
    # expm(a) − I, computed as such, is off by 1e-16 (1e-7), whatever the norm.
    assert error(f, spectral(a)) <= 20 * torch.finfo(dtype).eps * norm_of(a)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("degree", [2, 4, 8])
@pytest.mark.parametrize("factor", [0.999, 1.001, 1.9, 2.9])
def test_every_polynomial_is_accurate_up_to_its_radius_and_left_there(degree, factor, dtype):
    norm = factor * exponential._radius(degree, dtype)
    plane = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    for r in (2, 3, 8):
        # Equal planes: of such a matrix the norm is not overestimated.
        a = torch.zeros(r, r, dtype=torch.float64)
        a[: r // 2 * 2, : r // 2 * 2] = torch.block_diag(*[plane] * (r // 2))
        a = (norm * a).to(dtype)
        assert error(expm1(a), spectral(a)) <= 2 * torch.finfo(dtype).eps * norm_of(a)


@PATHS
@given(sizes, norms, dtypes, noises)
def test_the_exponential_is_orthogonal_and_the_opposite_its_inverse(
    expm1, r, norm, dtype, noise: Noise
):
    a = skew(noise, r, r, norm=norm, dtype=dtype)
    f = expm1(a).double()
    tolerance = 40 * torch.finfo(dtype).eps * norm_of(a)
    assert error(f + f.mT, -f.mT @ f) <= tolerance
    assert error(expm1(-a), f.mT) <= tolerance


@PATHS
@given(sizes, st.lists(norms, min_size=2, max_size=5), dtypes, noises)
def test_a_batch_of_mixed_norms_is_a_loop(expm1, r, mixed, dtype, noise: Noise):
    batch = torch.stack([skew(noise, r, r, norm=norm, dtype=dtype) for norm in mixed])
    for a, f in zip(batch, expm1(batch), strict=True):
        assert error(f, expm1(a)) <= 20 * torch.finfo(dtype).eps * norm_of(a)


@given(sizes, norms, noises)
def test_float32_follows_float64(r, norm, noise: Noise):
    a = skew(noise, r, r, norm=norm, dtype=torch.float32)
    assert error(expm1(a), expm1(a.double())) <= 20 * torch.finfo(torch.float32).eps * norm


@given(sizes, norms, dtypes, noises)
def test_memory_layout_does_not_matter(r, norm, dtype, noise: Noise):
    a = skew(noise, 2, r, r, norm=norm, dtype=dtype)
    for b in layouts(a):
        assert error(expm1(b), spectral(a)) <= 20 * torch.finfo(dtype).eps * norm_of(a)


@PATHS
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_matrix_that_is_not_finite_harms_no_other(expm1, bad):
    a = skew(Noise(0), 3, 4, 4, norm=10.0)
    expected = expm1(a)
    a[1, 0, 2] = bad
    f = expm1(a)
    assert error(f[[0, 2]], expected[[0, 2]]) <= 1e-13
    assert not f[1].isfinite().all()


@PATHS
@pytest.mark.parametrize("shape", [(0, 3, 3), (1, 1), (3, 1, 1)])
def test_empty_and_single_entries(expm1, shape):
    assert torch.equal(expm1(torch.zeros(shape)), torch.zeros(shape))


@pytest.mark.parametrize("r", [2, exponential._SMALL])
def test_small_matrices_wait_for_no_device(r):
    # A meta tensor has no data: to read any of it raises.
    a = torch.empty(5, r, r, device="meta")
    f = expm1(a)
    assert (f.shape, f.device.type) == (a.shape, "meta")


@pytest.mark.parametrize("norm", [1e-6, 1e-2, 0.3, 4.0])
def test_gradients(norm):
    a = skew(Noise(0), 3, 3, norm=norm).requires_grad_()
    torch.autograd.gradcheck(lambda a: expm1(a - a.mT), a)
