"""Laws of the stepsize's schedule."""

import copy
import io
import math

import pytest
import torch
from geoopt import ManifoldParameter
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from givens.manifolds import OrthogonalGroup
from givens.optim import SRCD, SRGD, RobbinsMonroLR

delays = st.floats(0.5, 1e4)
powers = st.floats(0.51, 1.0)


def sgd(*rates):
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in rates]
    return torch.optim.SGD(groups, lr=1.0)


def advance(scheduler, steps):
    for _ in range(steps):
        scheduler.optimizer.step()
        scheduler.step()


@given(delays, powers, st.integers(0, 60), st.lists(st.floats(0.0, 10.0), min_size=1, max_size=3))
def test_every_rate_is_the_formula(delay, power, steps, rates):
    scheduler = RobbinsMonroLR(sgd(*rates), delay, power)
    advance(scheduler, steps)
    expected = [lr / (1 + steps / delay) ** power for lr in rates]
    assert scheduler.get_last_lr() == pytest.approx(expected, rel=1e-14)
    assert [group["lr"] for group in scheduler.optimizer.param_groups] == scheduler.get_last_lr()


@given(st.floats(1.0, 100.0), st.sampled_from([0.6, 0.8, 1.0]), st.integers(1, 2000))
def test_rates_fulfil_the_conditions_of_robbins_and_monro(delay, power, steps):
    """The sum is at least an integral that diverges, that of the squares at most one that converges."""
    scheduler = RobbinsMonroLR(sgd(0.3), delay, power)
    rates = []
    for _ in range(steps):
        rates.append(scheduler.get_last_lr()[0])
        advance(scheduler, 1)
    end = 1 + steps / delay
    integral = math.log(end) if power == 1 else (end ** (1 - power) - 1) / (1 - power)
    assert sum(rates) >= 0.3 * delay * integral * (1 - 1e-9)
    assert sum(rate**2 for rate in rates) <= 0.3**2 * (1 + delay / (2 * power - 1)) * (1 + 1e-9)


@given(delays, powers, st.integers(0, 30), st.integers(0, 30))
def test_a_loaded_schedule_goes_on_to_the_bit(delay, power, before, after):
    unbroken = RobbinsMonroLR(sgd(0.3, 0.1), delay, power)
    advance(unbroken, before)
    file = io.BytesIO()
    torch.save([unbroken.optimizer.state_dict(), unbroken.state_dict()], file)
    file.seek(0)
    of_optimizer, of_scheduler = torch.load(file)
    resumed = RobbinsMonroLR(sgd(0.3, 0.1), delay=1.0)
    resumed.optimizer.load_state_dict(of_optimizer)
    resumed.load_state_dict(of_scheduler)
    advance(unbroken, after)
    advance(resumed, after)
    assert resumed.get_last_lr() == unbroken.get_last_lr()
    assert (resumed.delay, resumed.power) == (delay, power)


def test_it_can_begin_in_the_middle():
    unbroken = RobbinsMonroLR(sgd(0.3), delay=7.0)
    advance(unbroken, 12)
    optimizer = sgd(0.3)
    optimizer.param_groups[0]["initial_lr"] = 0.3
    begun = RobbinsMonroLR(optimizer, delay=7.0, last_epoch=11)
    assert begun.get_last_lr() == unbroken.get_last_lr()


@pytest.mark.filterwarnings("ignore:The epoch parameter in:UserWarning")  # SequentialLR's own
def test_it_follows_a_warm_up():
    optimizer = sgd(0.3)
    warm_up = lr_scheduler.LinearLR(optimizer, 0.1, total_iters=5)
    scheduler = lr_scheduler.SequentialLR(
        optimizer, [warm_up, RobbinsMonroLR(optimizer, delay=10.0)], [5]
    )
    rates = []
    for _ in range(9):
        rates.append(scheduler.get_last_lr()[0])
        advance(scheduler, 1)
    assert rates[:5] == pytest.approx([0.3 * (0.1 + 0.9 * k / 5) for k in range(5)])
    assert rates[5:] == pytest.approx([0.3 / (1 + k / 10) for k in range(4)])


@pytest.mark.parametrize("build", [SRGD, SRCD])
@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1)], ids=["number", "tensor"])
def test_the_rate_arrives_in_the_step(build, lr):
    start = OrthogonalGroup().random(4, 4, generator=torch.Generator().manual_seed(0))
    w, twin = (ManifoldParameter(start.clone(), manifold=OrthogonalGroup()) for _ in range(2))
    optimizer, other = build([w], lr=copy.deepcopy(lr)), build([twin], lr=0.1)
    scheduler = RobbinsMonroLR(optimizer, delay=2.0, power=0.7)
    for k in range(5):
        other.param_groups[0]["lr"] = 0.1 / (1 + k / 2) ** 0.7
        for p in (w, twin):
            p.grad = torch.arange(16.0).view(4, 4).sin()
        optimizer.step()
        other.step()
        scheduler.step()
    torch.testing.assert_close(w, twin)
    assert not torch.equal(w, start)


@pytest.mark.parametrize("power", [0.5, 0.0, -1.0, 1.001, math.nan, math.inf])
def test_a_power_that_breaks_the_conditions_is_refused(power):
    optimizer = sgd(0.3)
    before = dict(optimizer.param_groups[0])
    with pytest.raises(ValueError, match=r"power=.*in \(1/2, 1\]"):
        RobbinsMonroLR(optimizer, 10.0, power)
    assert optimizer.param_groups[0] == before


@pytest.mark.parametrize("delay", [0, -1.0, math.nan, math.inf])
def test_a_delay_that_is_none_is_refused(delay):
    optimizer = sgd(0.3)
    with pytest.raises(ValueError, match=r"delay=.*above 0"):
        RobbinsMonroLR(optimizer, delay)
    assert "initial_lr" not in optimizer.param_groups[0]
