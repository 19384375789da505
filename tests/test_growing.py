"""Laws of blocks that grow."""

import pytest
import torch
from geoopt import ManifoldParameter
from hypothesis import given
from hypothesis import strategies as st

from givens.manifolds import All, OrthogonalGroup
from givens.optim import SRCD, Block, Capture, GaussSouthwell, GradientView, Growing, Uniform

GROUP = OrthogonalGroup()
seeds = st.integers(0, 2**32 - 1)


def view_of(d, batch=(), *, data=0, step=0):
    generator = torch.Generator().manual_seed(data)
    x = GROUP.random(*batch, d, d, dtype=torch.float64, generator=generator)
    g = torch.randn(*batch, d, d, dtype=torch.float64, generator=generator)
    return GradientView(GROUP, x, g, seed=data, step=step)


@given(
    st.integers(1, 5),
    st.floats(1.1, 4.0),
    st.integers(1, 20),
    st.integers(0, 10**6),
    st.sampled_from([GaussSouthwell(), Uniform()]),
    st.booleans(),
    seeds,
)
def test_a_growing_block_is_a_block_of_the_size_that_is_due(
    first, factor, every, step, rule, disjoint, data
):
    view = view_of(9, data=data, step=step)
    growing = Growing(first, factor, every, rule=rule, disjoint=disjoint)
    most = 4 if disjoint else 36
    exponent = min(step // every, 200)
    size = min(int(first * factor**exponent * (1 + 1e-12)), most)
    block, expected = growing.select(view), Block(size=size, rule=rule, disjoint=disjoint)
    again = view_of(9, data=data, step=step)
    assert torch.equal(block.index, expected.select(again).index)
    assert block.disjoint == (disjoint or size == 1)


def test_a_growing_block_stops_at_its_last_size():
    assert Growing(2, 3.0, 10, last=7).select(view_of(9, step=10**9)).index.shape == (7,)


@given(st.floats(0.05, 1.0), st.sampled_from([(), (3,)]), st.integers(2, 8), seeds)
def test_a_capture_is_the_smallest_block_that_holds_the_share(share, batch, d, data):
    view = view_of(d, batch, data=data)
    every = view.derivatives(All())
    index = Capture(share).select(view).index
    norm = torch.linalg.vector_norm(every, dim=-1)
    held = torch.linalg.vector_norm(every.gather(-1, index), dim=-1)
    assert bool((held >= share * norm * (1 - 1e-9)).all())
    if index.shape[-1] > 1:  # one fewer would not do, at least for one point
        fewer = torch.linalg.vector_norm(every.gather(-1, index[..., :-1]), dim=-1)
        assert bool((fewer < share * norm).any())


def test_a_capture_grows_when_the_gradient_spreads():
    x = torch.eye(6, dtype=torch.float64)
    sparse, spread = (
        torch.zeros(6, 6, dtype=torch.float64),
        torch.triu(torch.ones(6, 6), 1).double(),
    )
    sparse[1, 4] = 1.0
    sizes = [
        Capture(0.95).select(GradientView(GROUP, x, g)).index.shape[-1] for g in (sparse, spread)
    ]
    assert sizes == [1, 14]  # 0.95² of 15 equal squares is 13.5


def test_a_nan_is_chosen_and_so_found():
    p = ManifoldParameter(torch.eye(5), manifold=GROUP)
    p.grad = torch.ones(5, 5)
    p.grad[0, 3] = torch.nan
    with pytest.raises(FloatingPointError):
        SRCD([p], 0.1, Capture()).step()
    assert torch.equal(p, torch.eye(5))


@pytest.mark.parametrize("selection", [Growing(1, 2.0, 10), Growing(disjoint=True), Capture(0.9)])
def test_srcd_descends(selection):
    generator = torch.Generator().manual_seed(0)
    p = ManifoldParameter(GROUP.random(6, 6, generator=generator, det=1), manifold=GROUP)
    target = GROUP.random(6, 6, generator=generator, det=1)
    optimizer = SRCD([p], 0.2, selection)
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        loss = (p - target).square().sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Growing(0), "size=0"),
        (lambda: Growing(factor=1.0), "factor"),
        (lambda: Growing(every=0), "every"),
        (lambda: Growing(3, last=2), "last"),
        (lambda: Capture(0.0), "share"),
        (lambda: Capture(1.5), "share"),
    ],
)
def test_settings_out_of_range_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
