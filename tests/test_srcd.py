"""Laws of stochastic Riemannian coordinate descent."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import scipy.linalg
import torch
from geoopt import ManifoldParameter, Sphere
from hypothesis import given
from hypothesis import strategies as st
from rules import Everything
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from givens.manifolds import (
    CoordinateBlock,
    Coordinates,
    Euclidean,
    Groups,
    OrthogonalGroup,
)
from givens.optim import SRCD, SRGD, Block, Cyclic, GaussSouthwell, GradientView, Uniform

MANIFOLD = OrthogonalGroup()
RULES = [GaussSouthwell(), Uniform(), Cyclic()]

seeds = st.integers(0, 2**32 - 1)
dims = st.integers(2, 8)
rates = st.floats(0.001, 2.0)


@dataclass(frozen=True)
class RandomGroups:
    """A user's selection: the axes dealt into n groups of r at random."""

    n: int
    r: int

    def select(self, view: GradientView) -> CoordinateBlock:
        axes = view.random.distinct(view.num_axes, self.n * self.r, *view.batch)
        return Groups(axes.unflatten(-1, (self.n, self.r)).sort(-1).values)


def point(
    *shape: int, data: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[ManifoldParameter, Tensor]:
    """Random parameter with a random gradient, and a copy of its value."""
    generator = torch.Generator().manual_seed(data)
    x = MANIFOLD.random(*shape, dtype=dtype, generator=generator)
    p = ManifoldParameter(x, manifold=MANIFOLD)
    p.grad = torch.randn(shape, dtype=dtype, generator=generator)
    return p, p.detach().clone()


def dense_step(x: Tensor, grad: Tensor, lr: float, index: list[int] | None = None) -> np.ndarray:
    """x·expm(−lr Σ ∇_i f H_i) over the coordinates `index` (all by default), by scipy."""
    a = x.numpy().T @ grad.numpy()
    omega = (a - a.T) / 2  # Σ ∇_i f H_i
    if index is not None:
        rows, columns = np.triu_indices(len(a), 1)
        keep = np.zeros_like(omega)
        keep[rows[index], columns[index]] = keep[columns[index], rows[index]] = 1
        omega = omega * keep
    return x.numpy() @ scipy.linalg.expm(-lr * omega)


def assert_same(actual: Tensor, expected: np.ndarray | Tensor, tolerance: float = 1e-12) -> None:
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    torch.testing.assert_close(
        actual.detach().as_subclass(Tensor), expected, rtol=0, atol=tolerance
    )


# What one step is


@given(dims, rates, seeds)
def test_the_uniform_step_is_the_paper_s(d, lr, data):
    """Columns j and l turn by −lr (a_jl − a_lj)/2: Algorithm 2 with the angle t/√2."""
    p, x = point(d, d, data=data)
    SRCD([p], lr, seed=data).step()
    chosen = Uniform().select(GradientView(MANIFOLD, p, p.grad, seed=data))
    j, l = np.triu_indices(d, 1)[0][chosen.index], np.triu_indices(d, 1)[1][chosen.index]
    a = (x.mT @ p.grad).numpy()
    phi = float(-lr * (a[j, l] - a[l, j]) / 2)
    y = x.clone()
    y[:, j] = math.cos(phi) * x[:, j] - math.sin(phi) * x[:, l]
    y[:, l] = math.sin(phi) * x[:, j] + math.cos(phi) * x[:, l]
    assert_same(p, y)


@given(dims, rates, seeds, st.sampled_from([(), (3,)]), st.booleans())
def test_all_coordinates_together_are_the_gradient_step(d, lr, data, batch, maximize):
    q, _ = point(*batch, d, d, data=data)
    SRGD([q], lr, maximize=maximize).step()
    for selection in (Block(fraction=1.0), Everything(), RandomGroups(1, d)):
        p, _ = point(*batch, d, d, data=data)
        SRCD([p], lr, selection, maximize=maximize).step()
        assert_same(p, q.detach())


@given(dims, rates, seeds, st.sampled_from(RULES), st.booleans(), st.data())
def test_a_block_is_the_dense_step_restricted_to_it(d, lr, data, rule, disjoint, draw):
    """Disjoint blocks too, whose rotations commute."""
    k = draw.draw(st.integers(1, d // 2 if disjoint else d * (d - 1) // 2))
    selection = Block(size=k, rule=rule, disjoint=disjoint)
    p, x = point(d, d, data=data)
    index = selection.select(GradientView(MANIFOLD, x, p.grad)).index
    SRCD([p], lr, selection).step()
    assert_same(p, dense_step(x, p.grad, lr, index.tolist()))


@given(st.integers(2, 9), rates, seeds, st.data())
def test_groups_are_the_dense_step_inside_the_groups(d, lr, data, draw):
    r = draw.draw(st.integers(1, d))
    selection = RandomGroups(draw.draw(st.integers(1, d // r)), r)
    p, x = point(d, d, data=data)
    groups = selection.select(GradientView(MANIFOLD, x, p.grad)).axes.tolist()
    inside = [{j, l} <= set(group) for j in range(d) for l in range(j + 1, d) for group in groups]
    index = np.flatnonzero(np.reshape(inside, (-1, len(groups))).any(-1)).tolist()
    SRCD([p], lr, selection).step()
    assert_same(p, dense_step(x, p.grad, lr, index))


@given(st.integers(2, 9), rates, seeds, st.sampled_from(RULES), st.data())
def test_a_disjoint_block_is_a_product_of_single_moves_in_any_order(d, lr, data, rule, draw):
    selection = Block(size=draw.draw(st.integers(1, d // 2)), rule=rule, disjoint=True)
    p, x = point(d, d, data=data)
    index = selection.select(GradientView(MANIFOLD, x, p.grad)).index
    derivatives = MANIFOLD.derivatives(x, p.grad, Coordinates(index, disjoint=True))
    y = x.clone()
    for n in draw.draw(st.permutations(range(len(index)))):
        one = Coordinates(index[n : n + 1], disjoint=True)
        MANIFOLD.move_(y, one, -lr * derivatives[n : n + 1])
    SRCD([p], lr, selection).step()
    assert_same(p, y)


@given(
    dims,
    rates,
    seeds,
    st.sampled_from(
        [
            GaussSouthwell(),
            Cyclic(),
            Everything(),
            Block(fraction=0.5),
            Block(size=1, disjoint=True),
            Block(fraction=0.4, rule=Cyclic()),
        ]
    ),
)
def test_a_batch_is_a_loop(d, lr, data, selection):
    p, x = point(2, 3, d, d, data=data)
    SRCD([p], lr, selection).step()
    for n in range(2):
        for m in range(3):
            one = ManifoldParameter(x[n, m].clone(), manifold=MANIFOLD)
            one.grad = p.grad[n, m].clone()
            SRCD([one], lr, selection).step()
            assert_same(p[n, m], one.detach())


@given(dims, rates, seeds)
def test_a_random_batch_moves_every_point_along_its_own_coordinate(d, lr, data):
    p, x = point(5, d, d, data=data)
    SRCD([p], lr, Uniform(), seed=data).step()
    index = Uniform().select(GradientView(MANIFOLD, x, p.grad, seed=data)).index
    for n in range(5):
        assert_same(p[n], dense_step(x[n], p.grad[n], lr, index[n].tolist()))


@given(dims, seeds, st.sampled_from([Uniform(), GaussSouthwell(), Block(size=1, disjoint=True)]))
def test_strides_do_not_matter(d, data, selection):
    p, x = point(3, d, d, data=data)
    wide = torch.zeros(3, d, 2 * d, dtype=torch.float64)[..., ::2]
    q = ManifoldParameter(wide, manifold=MANIFOLD)
    with torch.no_grad():
        q.copy_(x.mT.contiguous().mT)
    q.grad = p.grad.mT.contiguous().mT
    for optimizer in (SRCD([p], 0.1, selection), SRCD([q], 0.1, selection)):
        optimizer.step()
        optimizer.step()
    assert not q.is_contiguous()
    assert_same(q, p.detach())


@given(dims, seeds)
def test_float32_follows_float64(d, data):
    p, x = point(d, d, data=data)
    q = ManifoldParameter(x.float(), manifold=MANIFOLD)
    q.grad = p.grad.float()
    for optimizer in (SRCD([p], 0.1), SRCD([q], 0.1)):
        for _ in range(10):
            optimizer.step()
    assert_same(q.double(), p.detach(), tolerance=1e-5)


@given(st.integers(1, 9), rates, seeds, st.sampled_from(RULES), st.data())
def test_on_euclidean_space_it_is_the_textbooks_coordinate_descent(n, lr, data, rule, draw):
    generator = torch.Generator().manual_seed(data)
    start, grad = torch.randn(2, n, dtype=torch.float64, generator=generator)
    p = ManifoldParameter(start.clone(), manifold=Euclidean())
    p.grad = grad
    selection = Block(size=draw.draw(st.integers(1, n)), rule=rule)
    index = selection.select(GradientView(Euclidean(), start, grad)).index
    expected = start.clone()
    expected[index] -= lr * grad[index]
    SRCD([p], lr, selection).step()
    assert_same(p, expected)


# A run


SELECTIONS = [
    Uniform(),
    Cyclic(),
    GaussSouthwell(),
    Block(fraction=0.3),
    Block(size=2, disjoint=True),
    Block(size=3, rule=Uniform()),
    RandomGroups(2, 2),
    Everything(),
]


@pytest.mark.parametrize("selection", SELECTIONS, ids=repr)
@given(st.integers(4, 7), seeds)
def test_a_small_step_descends_by_the_selected_gradient(selection, d, data):
    """f(x_new) <= f(x) − lr/2 ‖selected gradient‖² for lr below 1/L, here on tr(xᵀAxB)."""
    generator = torch.Generator().manual_seed(data)
    a, b = torch.randn(2, d, d, dtype=torch.float64, generator=generator)
    p, x = point(d, d, data=data)
    # |f″| along a unit direction is at most 4‖A‖‖B‖.
    lr = 1 / float(4 * torch.linalg.matrix_norm(a, 2) * torch.linalg.matrix_norm(b, 2))
    optimizer = SRCD([p], lr, selection)

    def loss() -> Tensor:
        return (p.mT @ a @ p @ b).trace()

    p.grad = None
    before = loss()
    before.backward()
    view = GradientView(MANIFOLD, x, p.grad)
    squares = view.derivatives(selection.select(view)).square()
    decrease = float(squares.sum()) / (2 if isinstance(selection, RandomGroups) else 1)
    optimizer.step()
    assert loss().item() <= before.item() - lr / 2 * decrease + 1e-12


@pytest.mark.parametrize("selection", SELECTIONS, ids=repr)
def test_it_finds_the_nearest_rotation(selection):
    """min ‖x − M‖² over the component of the start: the polar factor of M."""
    d = 6
    generator = torch.Generator().manual_seed(1)
    m = torch.eye(d, dtype=torch.float64) * 2
    m += 0.3 * torch.randn(d, d, dtype=torch.float64, generator=generator)
    p = ManifoldParameter(torch.eye(d, dtype=torch.float64), manifold=MANIFOLD)
    optimizer = SRCD([p], 0.3, selection)
    for _ in range(400):
        optimizer.zero_grad()
        (p - m).square().sum().backward()
        optimizer.step()
    assert_same(p, MANIFOLD.projx(m), tolerance=1e-6)


@given(dims, seeds, st.sampled_from([Uniform(), Block(size=1, rule=Uniform(), disjoint=True)]))
def test_every_parameter_and_step_makes_its_own_choice(d, seed, selection):
    """The key of parameter n at its step t is (seed, t, n), whatever the groups."""
    ps = [point(d, d, data=n)[0] for n in range(3)]
    optimizer = SRCD([{"params": ps[:2]}, {"params": ps[2:]}], 0.1, selection, seed=seed)
    for step in range(3):
        values = [p.detach().clone() for p in ps]
        optimizer.step()
        for number, (p, x) in enumerate(zip(ps, values, strict=True)):
            view = GradientView(MANIFOLD, x, p.grad, seed=seed, step=step, number=number)
            assert_same(p, dense_step(x, p.grad, 0.1, selection.select(view).index.tolist()))


def test_the_seed_decides_the_choices():
    def run(seed: int) -> Tensor:
        p, _ = point(8, 8)
        optimizer = SRCD([p], 0.1, seed=seed)
        for _ in range(5):
            optimizer.step()
        return p.detach()

    torch.manual_seed(0)
    first = run(0)
    torch.manual_seed(1)
    assert torch.equal(run(0), first)
    assert not torch.equal(run(1), first)


def test_the_global_random_state_is_left_alone():
    p, _ = point(8, 8)
    before = torch.get_rng_state()
    SRCD([p], 0.1).step()
    assert torch.equal(torch.get_rng_state(), before)


# Cost


class NoDense(TorchDispatchMode):
    """Refuses matrix products, and new tensors of `size` elements or more."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        dense = any(part in name for part in ("mm", "matmul", "dot", "mv", "linalg"))
        # The largest of a few numbers is no dense work; it is checked that there are few.
        if name == "linalg_vector_norm":
            dense = args[0].numel() >= self.size
        assert not dense, name
        old = {
            tensor.untyped_storage().data_ptr()
            for tensor in tree_leaves((args, kwargs))
            if isinstance(tensor, Tensor)
        }
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in old:
                # Storage, not elements: an expanded view of a few columns is no dense matrix.
                bytes_held = tensor.untyped_storage().nbytes()
                assert bytes_held < self.size * tensor.element_size(), (name, tensor.shape)
        return out


@pytest.mark.parametrize(
    "selection",
    [
        Uniform(),
        Cyclic(),
        Block(size=3, rule=Cyclic()),
        Block(size=1, rule=Uniform()),
    ],
    ids=repr,
)
@pytest.mark.parametrize("batch", [(), (2,)])
def test_derivatives_of_few_coordinates_cost_no_dense_work(selection, batch):
    d = 256
    p, _ = point(*batch, d, d, dtype=torch.float32)
    view = GradientView(MANIFOLD, p, p.grad)
    with NoDense(d * d):
        view.derivatives(selection.select(view))


@pytest.mark.parametrize("selection", [Uniform(), Cyclic()], ids=repr)
@pytest.mark.parametrize("batch", [(), (2,)])
def test_a_step_along_one_coordinate_costs_no_dense_work(selection, batch):
    d = 256
    p, _ = point(*batch, d, d, dtype=torch.float32)
    optimizer = SRCD([p], 0.1, selection)
    counter = FlopCounterMode(display=False)
    with counter, NoDense(d * d):
        for _ in range(5):
            optimizer.step()
    assert counter.get_total_flops() == 0


def test_dense_work_is_noticed():
    """The two checks above see what they are for."""
    d = 64
    for selection in (GaussSouthwell(), Everything(), Block(size=2, rule=Uniform())):
        p, _ = point(d, d)
        with pytest.raises(AssertionError), NoDense(d * d):
            SRCD([p], 0.1, selection).step()
        p, _ = point(d, d)
        with FlopCounterMode(display=False) as counter:
            SRCD([p], 0.1, selection).step()
        assert counter.get_total_flops() >= 2 * d**3


@given(st.integers(3, 9), seeds, st.sampled_from([math.nan, math.inf]), st.integers(1, 3))
def test_uniform_reads_the_columns_of_its_pair_and_no_others(d, seed, poison, points):
    """What stands in the other columns, of the gradient and of the point, has no influence."""
    p, x = point(points, d, d, data=seed)
    q, _ = point(points, d, d, data=seed)
    optimizers = SRCD([p], 0.1, seed=seed), SRCD([q], 0.1, seed=seed)
    index = Uniform().select(GradientView(MANIFOLD, x, x, seed=seed)).index
    touched = torch.zeros(points, d, dtype=torch.bool)
    touched.scatter_(-1, MANIFOLD.axes(x, index).squeeze(-2), True)
    others = ~touched.unsqueeze(-2).expand(points, d, d)
    q.data.masked_fill_(others, poison)  # which the optimizer does not notice
    q.grad.masked_fill_(others, poison)
    # Once: after as many moves as there are coordinates the whole matrix is put back on the manifold.
    for optimizer in optimizers:
        optimizer.step()
    assert_same(q[~others], p[~others].detach(), tolerance=0)
    assert torch.equal(q[others], torch.full_like(x, poison)[others]) or bool(
        q[others].isnan().all() and math.isnan(poison)
    )


# Parameters without a manifold


@given(st.integers(0, 3), st.booleans(), seeds)
def test_a_plain_parameter_gets_torch_s_sgd_to_the_last_bit(dims_, maximize, data):
    generator = torch.Generator().manual_seed(data)
    shape = (3, 4, 5)[:dims_]
    start = torch.randn(shape, generator=generator)
    p, q = (torch.nn.Parameter(start.clone()) for _ in range(2))
    ours = SRCD([p], 0.1, maximize=maximize)
    torchs = torch.optim.SGD([q], 0.1, maximize=maximize)
    for _ in range(5):
        p.grad = torch.randn(shape, generator=generator)
        q.grad = p.grad.clone()
        ours.step()
        torchs.step()
        assert torch.equal(p, q)


@given(seeds, st.sampled_from([torch.float32, torch.float64]))
def test_a_tensor_for_a_learning_rate_is_the_number(data, dtype):
    outcomes = []
    for lr in (0.125, torch.tensor(0.125, dtype=torch.float64), torch.tensor(0.125)):
        p, _ = point(4, 4, data=data, dtype=dtype)
        plain = torch.nn.Parameter(torch.ones(3, dtype=dtype))
        plain.grad = torch.ones(3, dtype=dtype)
        SRCD([p, plain], lr, GaussSouthwell()).step()
        assert p.dtype == plain.dtype == dtype
        outcomes.append((p.detach().clone(), plain.detach().clone()))
    for w, v in outcomes[1:]:
        eps = torch.finfo(dtype).eps
        assert_same(w, outcomes[0][0], 4 * eps)
        assert_same(v, outcomes[0][1], 4 * eps)


# Errors


def test_a_manifold_without_coordinates_is_refused():
    p = ManifoldParameter(torch.tensor([1.0, 0.0]), manifold=Sphere())
    with pytest.raises(TypeError, match=r"Sphere.*has no coordinates.*givens\.manifolds.*SRGD"):
        SRCD([p], 0.1)


@pytest.mark.parametrize("selection", [Uniform, Block, "uniform", 3, [], Cyclic().choose], ids=repr)
def test_what_is_no_selection_is_refused(selection):
    with pytest.raises(TypeError, match=r"selection=.*select\(view\)"):
        SRCD([point(3, 3)[0]], 0.1, selection)


@pytest.mark.parametrize("seed", [0.5, "1", None])
def test_a_seed_is_an_integer(seed):
    with pytest.raises(TypeError, match=r"seed=.*integer"):
        SRCD([point(3, 3)[0]], 0.1, seed=seed)


@pytest.mark.parametrize(
    ("block", "error", "message"),
    [
        (Coordinates(torch.tensor([10]), disjoint=True), IndexError, "coordinate 10 .*has 10"),
        (Coordinates(torch.tensor([-1]), disjoint=True), IndexError, "coordinate -1 "),
        (Coordinates(torch.tensor([0.0]), disjoint=True), TypeError, "float32.*int64"),
        (Coordinates(torch.tensor([0, 1]), disjoint=True), ValueError, "axis 0 .*disjoint=False"),
        (Groups(torch.tensor([[0, 5]])), IndexError, "axis 5 .*has 5"),
        (Groups(torch.tensor([[0, 1], [1, 2]])), ValueError, "axis 1 is in two places"),
        (Groups(torch.tensor([[1, 0]])), ValueError, "ascend"),
    ],
)
def test_a_wrong_block_of_a_user_s_selection_changes_nothing(block, error, message):
    class Wrong:
        def select(self, view: GradientView) -> CoordinateBlock:
            return block

    good, bad = point(5, 5)[0], point(5, 5)[0]
    optimizer = SRCD([{"params": [good], "selection": Uniform()}, {"params": [bad]}], 0.1, Wrong())
    before = good.detach().clone(), bad.detach().clone()
    with pytest.raises(error, match=message):
        optimizer.step()
    assert torch.equal(good, before[0])
    assert torch.equal(bad, before[1])
    assert not optimizer.state


@pytest.mark.parametrize(
    ("selection", "message"),
    [(Block(size=11), "wants 11.*has 10"), (Block(size=3, disjoint=True), "wants 3 disjoint")],
)
def test_a_block_that_does_not_fit_changes_nothing(selection, message):
    good, small = point(9, 9)[0], point(5, 5)[0]
    optimizer = SRCD([good, small], 0.1, selection)
    before = good.detach().clone()
    with pytest.raises(ValueError, match=message):
        optimizer.step()
    assert torch.equal(good, before)
    assert not optimizer.state
