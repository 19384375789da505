"""NaN and infinity: on a CPU nothing changes, on an accelerator what is bad stays where it is."""

import copy
import math

import pytest
import torch
from geoopt import ManifoldParameter, Sphere
from rules import Everything
from torch import Tensor

from givens.manifolds import CoordinateBlock, Groups, OrthogonalGroup
from givens.optim import (
    SRCD,
    SRGD,
    Armijo,
    Block,
    Cyclic,
    GaussSouthwell,
    GradientView,
    Uniform,
    finite,
)
from givens.optim.base import ManifoldOptimizer

MANIFOLD = OrthogonalGroup()
BAD = [math.nan, math.inf, -math.inf]


OPTIMIZERS = {
    "srgd": lambda params: SRGD(params, 0.1),
    "srgd with momentum": lambda params: SRGD(params, 0.1, momentum=0.9),
    "srgd of low rank": lambda params: SRGD(params, 0.1, rank=2),
    "srgd by a retraction": lambda params: SRGD(params, 0.1, map="retr", momentum=0.5),
    "gauss-southwell": lambda params: SRCD(params, 0.1, GaussSouthwell()),
    "block": lambda params: SRCD(params, 0.1, Block(size=3)),
    "disjoint block": lambda params: SRCD(params, 0.1, Block(size=2, disjoint=True)),
    "everything": lambda params: SRCD(params, 0.1, Everything()),
}

every_optimizer = pytest.mark.parametrize("build", OPTIMIZERS.values(), ids=OPTIMIZERS)
every_bad = pytest.mark.parametrize("bad", BAD)


def matrix(*shape: int, data: int = 0) -> ManifoldParameter:
    generator = torch.Generator().manual_seed(data)
    x = MANIFOLD.random(*shape, dtype=torch.float64, generator=generator)
    p = ManifoldParameter(x, manifold=MANIFOLD)
    p.grad = torch.randn(shape, dtype=torch.float64, generator=generator)
    return p


def vector(n: int = 4) -> torch.nn.Parameter:
    p = torch.nn.Parameter(torch.ones(n))
    p.grad = torch.linspace(1, 2, n)
    return p


def snapshot(optimizer: ManifoldOptimizer) -> tuple[list[Tensor], dict]:
    """Parameters and state as they are now."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    return [p.detach().clone() for p in params], copy.deepcopy(optimizer.state_dict())


def assert_unchanged(optimizer: ManifoldOptimizer, before: tuple[list[Tensor], dict]) -> None:
    """To the last bit, and to the last counter."""
    params, state = snapshot(optimizer)
    for p, old in zip(params, before[0], strict=True):
        assert torch.equal(p, old)
    assert state["param_groups"] == before[1]["param_groups"]
    assert state["state"].keys() == before[1]["state"].keys()
    for number, entries in state["state"].items():
        for key, value in entries.items():
            old = before[1]["state"][number][key]
            assert torch.equal(value, old) if isinstance(value, Tensor) else value == old


# On a CPU


@every_optimizer
@every_bad
@pytest.mark.parametrize("which", [0, 1, 2])
def test_nothing_changes_and_the_parameter_is_named(build, bad, which):
    named = [("hidden", matrix(2, 5, 5)), ("bias", vector()), ("output", matrix(6, 6, data=1))]
    optimizer = build(named)
    optimizer.step()
    name, p = named[which]
    good = p.grad
    p.grad = good.clone()
    p.grad.flatten()[-2] = bad
    before = snapshot(optimizer)
    with pytest.raises(FloatingPointError, match=rf"\d+ of \d+ derivatives .*'{name}' of shape"):
        optimizer.step()
    assert_unchanged(optimizer, before)
    # And the next step is the one that was due.
    reference, due = copy.deepcopy((optimizer, named))
    p.grad = good
    for (_, q), (_, r) in zip(named, due, strict=True):
        r.grad = q.grad.clone()
    optimizer.step()
    reference.step()
    for (_, q), (_, r) in zip(named, due, strict=True):
        assert torch.equal(q, r)


def test_a_parameter_without_a_name_is_named_by_its_number():
    optimizer = SRCD([{"params": [vector()]}, {"params": [vector(), vector(7)]}], 0.1)
    optimizer.param_groups[1]["params"][1].grad[3] = math.nan
    with pytest.raises(FloatingPointError, match=r"1 of 7 .*parameter 2 of shape \(7,\)"):
        optimizer.step()


@every_bad
def test_a_manifold_of_geoopt_is_looked_after_too(bad):
    p = ManifoldParameter(torch.tensor([1.0, 0.0, 0.0]), manifold=Sphere())
    plain = vector()
    p.grad = torch.tensor([0.0, bad, 0.0])
    optimizer = SRGD([plain, p], 0.1, momentum=0.9)
    before = snapshot(optimizer)
    with pytest.raises(FloatingPointError):
        optimizer.step()
    assert_unchanged(optimizer, before)


@pytest.mark.parametrize(
    "selection", [Uniform(), Cyclic(), Block(size=2, rule=Uniform())], ids=repr
)
@every_bad
def test_what_the_step_does_not_read_is_not_looked_at(selection, bad):
    clean, dirty = matrix(8, 8), matrix(8, 8)
    index = selection.select(GradientView(MANIFOLD, clean, clean.grad)).index
    read = set(MANIFOLD.axes(clean, index).flatten().tolist())
    unread = [column for column in range(8) if column not in read]
    dirty.grad[:, unread] = bad
    SRCD([clean], 0.1, selection).step()
    SRCD([dirty], 0.1, selection).step()
    assert torch.equal(dirty[:, list(read)], clean[:, list(read)])
    assert bool(dirty.isfinite().all())


@pytest.mark.parametrize(
    "selection", [Uniform(), Cyclic(), Block(size=2, rule=Uniform())], ids=repr
)
@every_bad
def test_what_the_step_reads_is_looked_at(selection, bad):
    p = matrix(8, 8)
    index = selection.select(GradientView(MANIFOLD, p, p.grad)).index
    p.grad[5, MANIFOLD.axes(p, index).flatten()[-1]] = bad
    optimizer = SRCD([p], 0.1, selection)
    before = snapshot(optimizer)
    with pytest.raises(FloatingPointError):
        optimizer.step()
    assert_unchanged(optimizer, before)


# As on an accelerator


@pytest.fixture
def unchecked(monkeypatch):
    """Steps that do not wait for the device, here on a CPU."""
    monkeypatch.setattr(ManifoldOptimizer, "_checked_by_host", lambda *_: False)
    monkeypatch.setattr(finite, "readable", lambda _: False)


@every_optimizer
@pytest.mark.usefixtures("unchecked")
def test_finite_steps_are_the_same_without_waiting(build, monkeypatch):
    def run() -> list[Tensor]:
        params = [matrix(2, 5, 5), vector(), matrix(6, 6, data=1)]
        optimizer = build(params)
        for _ in range(12):
            optimizer.step()
        optimizer.check_finite()
        return [p.detach() for p in params]

    unwaited = run()
    monkeypatch.undo()
    for p, q in zip(unwaited, run(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-12 if p.dtype == torch.float64 else 1e-6)


@every_optimizer
@every_bad
@pytest.mark.usefixtures("unchecked")
def test_a_flag_stops_all_that_comes_later_until_it_is_checked(build, bad):
    params = [matrix(5, 5), vector(), matrix(6, 6, data=1)]
    optimizer = build(params)
    optimizer.step()
    assert optimizer.check_finite() is None
    good = params[0].grad
    params[0].grad = torch.full_like(good, bad)
    values, _ = snapshot(optimizer)
    optimizer.step()
    params[0].grad = good
    for _ in range(3):
        optimizer.step()
    for p, old in zip(params, values, strict=True):
        assert torch.equal(p, old)
    with pytest.raises(FloatingPointError, match=r"a step on cpu read derivatives .*strict=True"):
        optimizer.check_finite()
    optimizer.check_finite()  # it raises once
    optimizer.step()
    for p, old in zip(params, values, strict=True):
        assert not torch.equal(p, old)
        assert bool(p.isfinite().all())
    optimizer.check_finite()


@every_optimizer
@pytest.mark.usefixtures("unchecked")
def test_while_the_flag_is_set_nothing_moves_however_long(build):
    """Not even by a restoration, which would round."""
    params = [matrix(4, 4), vector()]
    optimizer = build(params)
    good = params[0].grad
    params[0].grad = torch.full_like(good, math.nan)
    values, _ = snapshot(optimizer)
    optimizer.step()
    params[0].grad = good
    for _ in range(50):
        optimizer.step()
    for p, old in zip(params, values, strict=True):
        assert torch.equal(p, old)


@pytest.mark.parametrize("build", [SRCD, SRGD])
@every_bad
@pytest.mark.usefixtures("unchecked")
def test_a_bad_plain_parameter_stays_where_it_is(build, bad):
    p, q = vector(), vector()
    q.grad[2] = bad
    optimizer = build([p, q], 0.125)
    optimizer.step()
    assert torch.equal(p, 1 - 0.125 * p.grad)  # it came before
    assert torch.equal(q, torch.ones(4))
    with pytest.raises(FloatingPointError):
        optimizer.check_finite()


@pytest.mark.parametrize(
    "selection",
    [GaussSouthwell(), Block(size=2, disjoint=True), Block(size=3), Everything()],
    ids=lambda selection: type(selection).__name__,
)
@every_bad
@pytest.mark.usefixtures("unchecked")
def test_only_bad_coordinates_stay(selection, bad):
    """The points of a batch whose derivatives are finite still move as they would alone."""
    p = matrix(3, 5, 5)
    value = p.detach().clone()
    p.grad[1] = bad
    SRCD([p], 0.1, selection).step()
    assert torch.equal(p[1], value[1])
    q = matrix(3, 5, 5)
    SRCD([q], 0.1, selection).step()
    for n in (0, 2):
        assert not torch.equal(p[n], value[n])
        torch.testing.assert_close(p[n], q[n])


@every_bad
@pytest.mark.usefixtures("unchecked")
def test_a_bad_pair_of_a_disjoint_block_stays_and_the_others_turn(bad):
    p = matrix(6, 6)
    value = p.detach().clone()
    p.grad[3, 2] = bad
    SRCD([p], 0.1, Block(size=3, rule=Cyclic(), disjoint=True)).step()  # (0, 1), (2, 3), (4, 5)
    still = [torch.equal(p[:, n], value[:, n]) for n in range(6)]
    assert still == [False, False, True, True, False, False]
    assert bool(p.isfinite().all())


@every_bad
@pytest.mark.usefixtures("unchecked")
def test_a_bad_group_stays_and_the_others_turn(bad):
    """All of it: a part of a group that turns would be another rotation."""

    class Thirds:
        def select(self, view: GradientView) -> CoordinateBlock:
            return Groups(torch.arange(9).view(3, 3))

    p, q = matrix(9, 9), matrix(9, 9)
    value = p.detach().clone()
    p.grad[3, 4] = bad
    SRCD([p], 0.1, Thirds()).step()
    SRCD([q], 0.1, Thirds()).step()
    assert torch.equal(p[:, 3:6], value[:, 3:6])
    others = [0, 1, 2, 6, 7, 8]
    assert not torch.equal(p[:, others], value[:, others])
    assert torch.equal(p[:, others], q[:, others])


@pytest.mark.usefixtures("unchecked")
def test_a_momentum_that_met_nan_is_not_spoiled():
    p = matrix(4, 4)
    optimizer = SRGD([p], 0.1, momentum=0.9)
    optimizer.step()
    buffer = optimizer.state[p]["momentum_buffer"].clone()
    good = p.grad
    p.grad = torch.full_like(good, math.nan)
    optimizer.step()
    assert torch.equal(optimizer.state[p]["momentum_buffer"], buffer)
    with pytest.raises(FloatingPointError):
        optimizer.check_finite()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_cpu_and_a_strict_step_check_before_they_change(device):
    class Elsewhere:
        def __init__(self) -> None:
            self.device = torch.device(device)

    optimizer = SRCD([vector()], 0.1)
    assert optimizer._checked_by_host({"strict": True, "line_search": None}, Elsewhere())
    lenient = {"strict": False, "line_search": None}
    assert optimizer._checked_by_host(lenient, Elsewhere()) == (device == "cpu")
    assert optimizer._checked_by_host({**lenient, "line_search": Armijo()}, Elsewhere())
