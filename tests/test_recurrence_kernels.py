"""The recurrence in one launch, or in one a step, is the recurrence: on a GPU, or in Triton's interpreter."""

import logging
from types import ModuleType

import pytest
import torch
from geoopt import ManifoldParameter
from hypothesis import given
from hypothesis import strategies as st
from strategies import Noise, error, layouts, noises
from torch import Tensor

import givens.rnn.backend
from givens.manifolds import backend
from givens.rnn import OrthogonalRNN
from givens.rnn.recurrence import NONLINEARITIES, recurrence, recurrence_reference

whole = pytest.importorskip("givens.rnn.kernels")
tiled = pytest.importorskip("givens.rnn.tiled_kernels")
both = pytest.mark.parametrize("kernels", [whole, tiled], ids=["whole", "tiled"])

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
GIVEN = (st.integers(1, 6), st.integers(1, 4), st.integers(1, 9), noises, st.integers(0, 2))
phis = pytest.mark.parametrize("phi", NONLINEARITIES)


@pytest.fixture(autouse=True)
def poisoned():
    """Fresh memory is full of NaN, so that what a kernel does not write is seen."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def used(monkeypatch):
    """Send what is on the CPU to the kernels, too; the calls of each."""
    calls = {"forward_": 0, "backward": 0}

    def counted(name):
        kernel = getattr(whole, name)

        def call(*args, **kwargs):
            calls[name] += 1
            return kernel(*args, **kwargs)

        return call

    for name in calls:
        monkeypatch.setattr(whole, name, counted(name))
    monkeypatch.setattr(backend, "on_gpu", lambda _: True)
    return calls


def problem(noise: Noise, steps: int, batch: int, d: int, phi: str) -> list[Tensor | None]:
    """What the recurrence takes; W turns, so that states neither die nor grow; biases of both signs."""
    tensors = [
        noise.normal(steps, batch, d, dtype=torch.float32),
        noise.point(d, d, dtype=torch.float32) if d > 1 else torch.full((1, 1), 0.9),
        noise.normal(batch, d, dtype=torch.float32),
        noise.normal(d, dtype=torch.float32) / 3 if phi == "modrelu" else None,
    ]
    return [None if x is None else x.to(DEVICE) for x in tensors]


def wide(tensors: list[Tensor | None]) -> list[Tensor | None]:
    return [None if x is None else x.double().requires_grad_() for x in tensors]


def compare(
    kernels: ModuleType,
    tensors: list[Tensor | None],
    gradient: Tensor,
    phi: str,
    layout: int = 0,
) -> None:
    """States and derivatives beside those of the reference in float64; derivatives given its states."""
    u, weight, hx, bias = tensors
    z = u.clone()
    kernels.forward_(z, layouts(weight)[layout], layouts(hx)[layout], bias, phi)
    inputs = wide(tensors)
    states = recurrence_reference(*inputs, phi)
    assert z.dtype == torch.float32
    assert error(z.detach(), states.detach()) <= 2e-6 * max(1.0, float(states.detach().abs().max()))
    wanted = [x for x in inputs if x is not None]
    expected = torch.autograd.grad(states, wanted, gradient.double())
    # Where a unit is so near to its threshold that float32 finds it elsewhere, derivatives differ.
    if phi in ("modrelu", "relu") and not torch.equal(z == 0, states == 0):
        return
    grad_z, rows = kernels.backward(
        layouts(gradient)[layout], layouts(weight)[layout], z, phi, bias=bias is not None
    )
    scale = 2e-6 * max(1.0, float(expected[0].abs().max()))
    assert error(grad_z, expected[0]) <= scale
    assert grad_z.is_contiguous()
    assert (rows is None) is (bias is None)
    if bias is not None:
        assert error(rows.sum(0), expected[3]) <= 4 * scale * len(u)


@both
@phis
@given(*GIVEN)
def test_small_sizes(kernels, phi, steps, batch, d, noise: Noise, layout):
    tensors = problem(noise, steps, batch, d, phi)
    compare(kernels, tensors, noise.like(tensors[0]).to(DEVICE), phi, layout)


@phis
@pytest.mark.parametrize("d", [16, 17, 64, 65, 127, 128, 129, 190, 192, 193, 224, 256])
def test_sizes_at_which_the_layout_changes(phi, d):
    noise = Noise(d)
    tensors = problem(noise, 3, 2, d, phi)
    compare(whole, tensors, noise.like(tensors[0]).to(DEVICE), phi)


@phis
@pytest.mark.parametrize(
    ("batch", "d"), [(1, 31), (31, 32), (32, 33), (33, 64), (5, 65), (64, 130), (2, 300)]
)
def test_sizes_at_which_the_tiles_change(phi, batch, d):
    noise = Noise(d)
    tensors = problem(noise, 2, batch, d, phi)
    compare(tiled, tensors, noise.like(tensors[0]).to(DEVICE), phi)


@phis
def test_a_long_sequence_is_as_near_to_float64_as_the_loop_is(phi, used):
    """States and all derivatives, twice the loop's error allowed (and a few digits where it has none)."""
    noise = Noise(1)
    tensors = problem(noise, 60, 3, 20, phi)
    gradient = noise.like(tensors[0]).to(DEVICE)

    def results(make):
        inputs = [None if x is None else x.clone().requires_grad_() for x in tensors]
        states = make(*inputs, phi)
        wanted = [x for x in inputs if x is not None]
        return [states.detach(), *torch.autograd.grad(states, wanted, gradient)]

    inputs = wide(tensors)
    states = recurrence_reference(*inputs, phi)
    wanted = [x for x in inputs if x is not None]
    exact = [states.detach(), *torch.autograd.grad(states, wanted, gradient.double())]
    ours, loop = results(recurrence), results(recurrence_reference)
    assert used == {"forward_": 1, "backward": 1}
    for value, plain, truth in zip(ours, loop, exact, strict=True):
        allowed = 2 * error(plain, truth) + 4e-7 * float(truth.abs().max())
        assert error(value, truth) <= allowed


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # the interpreter's
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@both
@phis
def test_what_is_not_finite_stays_so(kernels, phi, value):
    """It is not hidden behind a mask; other rows of the batch do not notice."""
    noise = Noise(2)
    tensors = problem(noise, 4, 3, 5, phi)
    clean = tensors[0].clone()
    tensors[0][1, 1, 2] = value
    z = [x.clone() for x in (tensors[0], clean)]
    for states in z:
        kernels.forward_(states, *tensors[1:], phi)
    if phi == "tanh" and value == value:
        assert bool(z[0].isfinite().all())
    elif not (phi == "relu" and value < 0):
        assert not bool(z[0][1:, 1].isfinite().all())
    assert torch.equal(z[0][:, ::2], z[1][:, ::2])


@both
def test_zeros_of_both_signs_are_inactive(kernels):
    """A unit at exactly 0 has no direction: modReLU gives 0, whatever its bias, and no derivative."""
    zero = torch.zeros(2, 1, 4, device=DEVICE)
    zero[:, :, ::2] = -0.0
    weight, hx, bias = torch.eye(4), torch.zeros(1, 4), torch.full((4,), 0.5)
    z = zero.clone()
    kernels.forward_(z, weight.to(DEVICE), hx.to(DEVICE), bias.to(DEVICE), "modrelu")
    assert torch.equal(z, torch.zeros_like(z))
    grad, rows = kernels.backward(torch.ones_like(z), weight.to(DEVICE), z, "modrelu", bias=True)
    assert torch.equal(grad, torch.zeros_like(z))
    assert torch.equal(rows, torch.zeros_like(rows))


@both
@phis
def test_nothing_is_computed_of_an_empty_batch(kernels, phi):
    tensors = problem(Noise(0), 3, 0, 4, phi)
    kernels.forward_(*tensors, phi)
    grad, rows = kernels.backward(tensors[0], tensors[1], tensors[0], phi, bias=phi == "modrelu")
    assert grad.shape == (3, 0, 4)
    assert rows is None or rows.shape == (0, 4)


def test_the_layer_goes_there_and_trains_alike(used, monkeypatch):
    """Forward and backward are one launch each, and gradients those of the loop to rounding."""
    torch.manual_seed(0)
    layer = OrthogonalRNN(3, 12, num_layers=2).to(DEVICE)
    x = torch.randn(7, 4, 3, device=DEVICE)

    def gradients():
        layer.zero_grad()
        output, h = layer(x)
        (output.square().sum() + h.sum()).backward()
        return [p.grad.clone() for p in layer.parameters()]

    fast = gradients()
    assert used == {"forward_": 2, "backward": 2}
    assert isinstance(layer.weight_hh_l0, ManifoldParameter)
    monkeypatch.setattr(backend, "on_gpu", lambda _: False)
    for a, b in zip(fast, gradients(), strict=True):
        assert error(a, b) <= 2e-5 * max(1.0, float(b.abs().max()))
    assert used == {"forward_": 2, "backward": 2}


@phis
def test_many_units_take_a_launch_for_each_step(phi, used, monkeypatch):
    steps = []
    kernel = tiled._forward_kernel
    monkeypatch.setattr(
        tiled, "_forward_kernel", {tiled._tiles(2, 257): lambda *a, **k: steps.append(1)}
    )
    tensors = problem(Noise(3), 4, 2, 257, phi)
    recurrence(*tensors, phi)
    assert len(steps) == 4
    monkeypatch.setattr(tiled, "_forward_kernel", kernel)
    states = recurrence(*tensors, phi)
    exact = recurrence_reference(*(None if x is None else x.double() for x in tensors), phi)
    assert error(states, exact) <= 4e-6 * max(1.0, float(exact.abs().max()))
    assert used == {"forward_": 0, "backward": 0}


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_products_are_rounded_only_where_torch_allows_it(precision, allow_rounding):
    allow_rounding(precision)
    assert tiled._options()["PRECISION"] == ("ieee" if precision == "highest" else "tf32")


@pytest.mark.parametrize(("shape", "dtype", "reason"), [((2, 1, 5), torch.float64, "float64")])
def test_what_the_kernels_do_not_take_goes_to_the_loop_and_says_so_once(
    shape, dtype, reason, used, caplog
):
    givens.rnn.backend._refuse.cache_clear()
    weight = torch.eye(shape[-1], dtype=dtype)
    for _ in range(2):
        with caplog.at_level(logging.INFO, logger="givens.rnn.backend"):
            states = recurrence(
                torch.ones(shape, dtype=dtype),
                weight,
                torch.zeros(shape[1:], dtype=dtype),
                None,
                "identity",
            )
        assert torch.equal(states[-1], torch.full(shape[1:], 2.0, dtype=dtype))
    assert used["forward_"] == 0
    assert [reason in record.message for record in caplog.records] == [True]
