"""Numbers at the ends of their range: a step is made as a whole, or not at all and with an error."""

import copy
import itertools
import math

import pytest
import torch
from geoopt import ManifoldParameter
from hypothesis import given
from hypothesis import strategies as st
from rules import METHODS, SCALINGS, SELECTIONS, build
from strategies import DTYPES, Noise, defect, noises
from test_finite import assert_unchanged, snapshot
from torch import Tensor, nn

from givens.manifolds import (
    Euclidean,
    Grassmann,
    Lorentz,
    OrthogonalGroup,
    Product,
    Sphere,
    Stiefel,
    SymmetricPositiveDefinite,
    Symplectic,
    UnitaryGroup,
)
from givens.manifolds.exponential import expm1
from givens.manifolds.rotations import rotate_columns_
from givens.optim import (
    SRCD,
    SRGD,
    Block,
    Capture,
    Grouping,
    Growing,
    Matching,
)
from givens.optim.base import ManifoldOptimizer
from givens.rnn import DivergenceError, SequenceModel, Trainer
from givens.rnn.checkpoint import load_checkpoint
from givens.rnn.layer import OrthogonalRNN
from givens.rnn.recurrence import recurrence, recurrence_reference
from givens.rnn.tasks import AddingProblem

ROUNDED = {torch.float32: 1e-6, torch.float64: 1e-13}


def points(dtype: torch.dtype) -> dict[str, Tensor]:
    """A parameter of every kind."""
    generator = torch.Generator().manual_seed(0)
    product = Product((OrthogonalGroup(), (4, 4)), (Sphere(), (3,)), (Euclidean(1), (2,)))
    drawn = {
        "orthogonal": (OrthogonalGroup(), (6, 6), dtype),
        "stiefel": (Stiefel(), (6, 3), dtype),
        "sphere": (Sphere(), (6,), dtype),
        "unitary": (UnitaryGroup(), (4, 4), dtype.to_complex()),
        "product": (product, (product.n_elements,), dtype),
    }
    made = {
        name: ManifoldParameter(
            manifold.random(*shape, dtype=own, generator=generator), manifold=manifold
        )
        for name, (manifold, shape, own) in drawn.items()
    }
    return {**made, "plain": nn.Parameter(torch.linspace(-1, 1, 5, dtype=dtype))}


def gradient(p: Tensor, size: float) -> Tensor:
    """One whose largest entry is of a size, up to the largest there is."""
    generator = torch.Generator().manual_seed(1)
    direction = torch.rand(p.shape, dtype=p.dtype, generator=generator) + 0.25
    return direction / direction.abs().max() * size


def off_manifold(p: Tensor) -> float:
    """Distance from the manifold; of a product, that of its orthogonal matrix."""
    x = p.detach().to(torch.promote_types(p.dtype, torch.float64))
    if not hasattr(p, "manifold"):
        return 0.0
    if isinstance(p.manifold, Product):
        x = x[:16].view(4, 4)
    x = x.unsqueeze(-1) if x.dim() == 1 else x
    return float((x.mH @ x - torch.eye(x.shape[-1])).abs().max())


every_rule = pytest.mark.parametrize(
    ("method", "scaling"),
    [*((method, "none") for method in SELECTIONS), *(("srgd", scaling) for scaling in SCALINGS)],
)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def takes(method: str, p: Tensor) -> bool:
    """Whether the method's groups exist on the parameter's manifold."""
    grouped = isinstance(METHODS[method], Grouping | Matching | Growing | Capture)
    return not (grouped and isinstance(getattr(p, "manifold", None), Product))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scaling", SCALINGS)
@every_dtype
def test_a_step_is_all_or_nothing(method, scaling, dtype):
    large = {torch.float32: 1e30, torch.float64: 1e160}[dtype]
    for (name, start), size in itertools.product(
        points(dtype).items(), (large, torch.finfo(dtype).max)
    ):
        if not takes(method, start):
            continue
        first, p = nn.Parameter(torch.ones(3, dtype=dtype)), copy.deepcopy(start)
        optimizer = build([first, p], 0.1, method, scaling)
        first.grad, p.grad = torch.ones_like(first), gradient(p, size)
        before = snapshot(optimizer)
        try:
            optimizer.step()
        except FloatingPointError as caught:
            error = str(caught)
        else:
            error = None
        if error is not None:
            assert "parameter 1 of shape" in error
            assert "parameters and state are unchanged" in error
            assert_unchanged(optimizer, before)
            continue
        assert not torch.equal(first, before[0][0])
        for tensor in [p, *(v for v in optimizer.state[p].values() if torch.is_tensor(v))]:
            assert bool(tensor.isfinite().all()), (name, size)
        assert off_manifold(p) <= 2 * ROUNDED[dtype], (name, size)


@pytest.mark.parametrize("by_host", [True, False])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("manifold", "shape"),
    [(SymmetricPositiveDefinite(), (3, 3)), (Lorentz(), (4,)), (Symplectic(), (4, 4))],
    ids=lambda x: getattr(x, "name", ""),
)
def test_a_point_that_would_run_away_stays(manifold, shape, method, by_host, monkeypatch):
    """Where points are not bounded, they can overflow although the times do not."""
    monkeypatch.setattr(ManifoldOptimizer, "_checked_by_host", lambda *_: by_host)
    generator = torch.Generator().manual_seed(0)
    raised = []
    for size in (1e2, 1e6, 1e12, 1e100):
        x = manifold.random(*shape, dtype=torch.float64, generator=generator)
        p = ManifoldParameter(x, manifold=manifold)
        try:
            optimizer = build([p], 0.1, method)
            p.grad = size * torch.randn(shape, dtype=torch.float64, generator=generator)
            before = snapshot(optimizer)
            optimizer.step()
            optimizer.check_finite()
        except (NotImplementedError, ValueError):
            return  # there are no groups
        except FloatingPointError:
            raised.append(size)
            if by_host or method != "srgd":
                assert torch.equal(p, before[0][0])
            if by_host:
                assert_unchanged(optimizer, before)
        assert bool(p.isfinite().all())
    assert raised or method not in ("everything", "srgd")  # one coordinate may shear, or shrink


@every_rule
@pytest.mark.parametrize("size", [0.0, -0.0])
def test_a_gradient_of_zero_moves_nothing_unless_a_memory_does(method, scaling, size):
    for p in points(torch.float32).values():
        if not takes(method, p):
            continue
        before = p.detach().clone()
        optimizer = build([p], 0.1, method, scaling)
        p.grad = torch.full_like(p, size)
        optimizer.step()
        assert bool(p.isfinite().all())
        assert all(
            bool(v.isfinite().all()) for v in optimizer.state[p].values() if torch.is_tensor(v)
        )
        assert float((p.detach() - before).abs().max()) <= 3e-7


@pytest.mark.parametrize("lr", [0.0, 0.1])
@pytest.mark.parametrize("method", METHODS)
def test_restoring_a_point_that_does_not_move_does_not_let_it_drift(method, lr):
    """Restorations of a point end at a fixed point of theirs."""
    p = points(torch.float32)["orthogonal"]
    start = p.detach().clone()
    optimizer = build([p], lr, method)
    p.grad = torch.zeros_like(p) if lr else gradient(p, 1.0)
    for _ in range(200):
        optimizer.step()
    assert float((p.detach() - start).abs().max()) <= 3e-7
    assert defect(p) <= 5e-7


@every_rule
@every_dtype
@pytest.mark.parametrize("flush", [False, True])
def test_subnormal_derivatives_make_no_nan(method, scaling, dtype, flush):
    if flush and not torch.set_flush_denormal(True):
        pytest.skip("this processor does not flush")
    try:
        for p in points(dtype).values():
            if not takes(method, p):
                continue
            optimizer = build([p], 0.1, method, scaling)
            for size in (torch.finfo(dtype).tiny / 4, torch.finfo(dtype).smallest_normal):
                p.grad = gradient(p, size)
                optimizer.step()
            assert bool(p.isfinite().all())
            assert off_manifold(p) <= ROUNDED[dtype]
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.parametrize("scaling", ["rmsprop", "adam", "amsgrad", "axis-rmsprop"])
@pytest.mark.parametrize("by_host", [True, False])
def test_a_square_that_overflows_does_not_poison_the_memory(scaling, by_host, monkeypatch):
    """torch's Adam would never move such a coordinate again."""
    monkeypatch.setattr(ManifoldOptimizer, "_checked_by_host", lambda *_: by_host)
    for p in points(torch.float32).values():
        if not takes("everything", p):
            continue
        optimizer = build([p], 0.01, "srgd", scaling)
        p.grad = gradient(p, 1.0)
        optimizer.step()
        before = snapshot(optimizer)
        p.grad = gradient(p, 1e25)
        if by_host:
            with pytest.raises(FloatingPointError, match=r"overflows .* not their squares"):
                optimizer.step()
            assert_unchanged(optimizer, before)
        else:
            optimizer.step()
            with pytest.raises(FloatingPointError, match="too large for a step"):
                optimizer.check_finite()
            assert bool(p.isfinite().all())
        p.grad = gradient(p, 1.0)
        moved = p.detach().clone()
        optimizer.step()
        assert not torch.equal(p, moved)
        assert all(
            bool(v.isfinite().all()) for v in optimizer.state[p].values() if torch.is_tensor(v)
        )


def test_an_error_in_computing_a_step_changes_nothing():
    class Fails(OrthogonalGroup):
        def expmap(self, x, u):
            raise NotImplementedError("no exponential here")

    first = nn.Parameter(torch.ones(3))
    p = ManifoldParameter(torch.eye(3), manifold=Fails())
    optimizer = SRGD([first, p], 0.1, momentum=0.5)
    first.grad, p.grad = torch.ones(3), torch.rand(3, 3)
    before = snapshot(optimizer)
    with pytest.raises(NotImplementedError):
        optimizer.step()
    assert_unchanged(optimizer, before)


def test_a_scaling_that_returns_another_shape_changes_nothing():
    class Sums:
        def scale(self, derivatives, moments):
            return derivatives.sum(-1)

    first, p = nn.Parameter(torch.ones(3)), points(torch.float32)["orthogonal"]
    optimizer = SRCD([first, p], 0.1, Block(size=3), Sums())
    first.grad, p.grad = torch.ones(3), gradient(p, 1.0)
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match="must have their shape"):
        optimizer.step()
    assert_unchanged(optimizer, before)


# Huge angles


@given(st.integers(2, 12), st.floats(0, 12), st.sampled_from(DTYPES), noises)
def test_an_exponential_is_orthogonal_whatever_its_angles(r, power, dtype, noise: Noise):
    a = (noise.skew(r, r) * 10.0**power).to(dtype)
    q = expm1(a) + torch.eye(r, dtype=dtype)
    assert defect(q) <= ROUNDED[dtype] * (4 if dtype == torch.float32 else 1)
    assert float(torch.linalg.det(q.double())) > 0


@given(
    st.sampled_from([Stiefel(), Stiefel("canonical"), Grassmann()]),
    st.sampled_from([(9, 2), (9, 4), (5, 4), (4, 4), (3, 1)]),
    st.floats(0, 20),
    st.sampled_from(DTYPES),
    noises,
)
def test_a_frame_stays_orthonormal_whatever_the_length_of_a_step(
    m, shape, power, dtype, noise: Noise
):
    """Each point of a batch by itself, and where the step has not the full rank, too."""
    x = noise.point(3, shape[0], shape[0])[..., : shape[1]].to(dtype)
    u = noise.normal(3, *shape)
    u[1, :-1] = 0
    u[2] *= 1e-6
    u = m.proju(x, u.to(dtype))
    u[:2] *= 10.0**power
    y = m.expmap(x, u)
    assert defect(y) <= (1e-6 if dtype == torch.float32 else 1e-14)
    assert torch.equal(y[2], m.expmap(x[2], u[2]))


@given(st.floats(-1e300, 1e300), noises)
def test_a_rotation_is_one_whatever_its_angle(angle, noise: Noise):
    x = noise.point(4, 4)
    rotate_columns_(
        x, torch.tensor([0]), torch.tensor([1]), torch.tensor([angle], dtype=torch.float64)
    )
    assert defect(x) <= 1e-14


# The recurrence

AT = [0.0, -0.0, 0.5, -0.5, 1e-45, -1e-45, torch.finfo(torch.float32).tiny, 3.0, -3.0]


@pytest.mark.parametrize("nonlinearity", ["modrelu", "relu", "tanh", "identity"])
@pytest.mark.parametrize("bias", [-0.5, -0.0, 0.0, 0.5])
def test_states_and_gradients_at_kinks_are_those_of_the_loop(nonlinearity, bias):
    """At z = ±0 and at the tie |z| + b = 0 the derivative is 0, and the state has no NaN."""
    results = []
    for function in (recurrence, recurrence_reference):
        z = torch.tensor([[AT], [AT]]).requires_grad_()
        weight = torch.zeros(len(AT), len(AT), requires_grad=True)
        h = torch.full((1, len(AT)), -0.0, requires_grad=True)
        b = torch.full((len(AT),), bias, requires_grad=True) if nonlinearity == "modrelu" else None
        states = function(z, weight, h, b, nonlinearity)
        states.sum().backward()
        given_ = [states, z.grad, weight.grad, h.grad, *([] if b is None else [b.grad])]
        results.append([x.detach() for x in given_])
    assert torch.equal(results[0][0].signbit(), results[1][0].signbit())
    for ours, loop in zip(*results, strict=True):
        assert bool(ours.isfinite().all())
        assert torch.equal(ours == 0, loop == 0)
        torch.testing.assert_close(ours, loop, rtol=1e-5, atol=0)
    if nonlinearity == "modrelu" and bias == -0.5:  # the tie
        assert results[0][1][0, 0, 2] == 0


@pytest.mark.parametrize("nonlinearity", ["modrelu", "relu", "tanh", "identity"])
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_stays_where_the_loop_has_it(nonlinearity, bad):
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(3, 2, 4, generator=generator)
    z[0, 0, 1] = bad
    weight = torch.eye(4) * 0.5 + 0.1
    bias = torch.zeros(4) if nonlinearity == "modrelu" else None
    h = torch.zeros(2, 4)
    ours = recurrence(z, weight, h, bias, nonlinearity)
    loop = recurrence_reference(z, weight, h, bias, nonlinearity)
    assert torch.equal(ours.isnan(), loop.isnan())
    torch.testing.assert_close(ours, loop, equal_nan=True)
    assert bool(ours[:, 1].isfinite().all())


def test_a_nan_in_the_input_stops_training_and_keeps_the_checkpoint(tmp_path):
    class Spoiled(AddingProblem):
        def __getitem__(self, n):
            input, target = super().__getitem__(n)
            if n == 5:
                input[2, 0, 0] = math.nan
            return input, target

    task = Spoiled(length=6, batch_size=3)
    model = SequenceModel(OrthogonalRNN(task.input_size, 4), task.output_size, task.readout)
    optimizer = SRCD(model.parameters(), 0.01)
    trainer = Trainer(model, optimizer, task, tmp_path, checkpoint_every=2, progress=False)
    with pytest.raises(DivergenceError, match="step 5: the loss is nan"):
        trainer.train(10)
    state = load_checkpoint(tmp_path / "checkpoint.pt")
    assert state["step"] == 4
    assert all(bool(value.isfinite().all()) for value in state["model"].values())
