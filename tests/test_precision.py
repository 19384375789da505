"""Where the user allows products to be rounded to TF32, moves and restorations are exact all the same."""

import pytest
import torch
from geoopt import ManifoldParameter
from rules import build

from givens.manifolds import OrthogonalGroup
from givens.manifolds.backend import exact_products, rounds_products
from givens.optim import SRCD, Armijo, GaussSouthwell, Trigonometric


def allowed() -> bool:
    """What torch itself would do now."""
    matmul = torch.backends.cuda.matmul
    if hasattr(matmul, "fp32_precision"):
        return matmul.fp32_precision == "tf32"
    return matmul.allow_tf32


class Watched(OrthogonalGroup):
    """Sees what torch is allowed to do at each verb."""

    def __init__(self):
        super().__init__()
        self.seen = set()


def watch(name):
    def verb(self, *args, **kwargs):
        self.seen.add((name, allowed(), rounds_products()))
        return getattr(super(Watched, self), name)(*args, **kwargs)

    setattr(Watched, name, verb)


EXACT = {"move_", "follow", "restore_"}
for name in EXACT | {"steepest"}:
    watch(name)


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("method", ["uniform", "gauss-southwell", "random groups", "srgd"])
def test_moves_are_exact_and_rankings_as_the_user_likes(
    method, capturable, precision, allow_rounding
):
    allow_rounding(precision)
    manifold = Watched()
    w = ManifoldParameter(torch.eye(4), manifold=manifold)
    w.grad = torch.randn(4, 4)
    optimizer = build([w], 0.1, method, capturable=capturable)
    for _ in range(12):
        optimizer.step()
        optimizer.restore()
    rounds = precision != "highest"
    verbs = {name for name, *_ in manifold.seen}
    assert verbs >= {"restore_", "follow" if method == "srgd" else "move_"}
    for name, by_torch, by_user in manifold.seen:
        assert by_user is rounds
        assert by_torch is (rounds and name not in EXACT)
    assert torch.get_float32_matmul_precision() == precision
    assert allowed() is rounds


@pytest.mark.parametrize("search", [Armijo(), Trigonometric(4)], ids=str)
def test_a_line_search_compares_losses_of_one_kind(search, allow_rounding):
    """Those of the closure, which are the user's, at the start and at every trial."""
    allow_rounding("high")
    manifold = Watched()
    w = ManifoldParameter(torch.eye(4), manifold=manifold)
    target = torch.randn(4, 4)
    optimizer = SRCD([w], 0.5, GaussSouthwell(), line_search=search)
    seen = []

    def closure():
        seen.append(allowed())
        optimizer.zero_grad()
        loss = (w @ target - target.mT).square().sum()
        if torch.is_grad_enabled():
            loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
    assert len(seen) > 3
    assert all(seen)
    for name, by_torch, by_user in manifold.seen:
        assert by_user
        assert by_torch is (name not in EXACT)


def test_what_the_user_allows_is_back_after_an_error(allow_rounding):
    allow_rounding("high")
    w = ManifoldParameter(torch.eye(4), manifold=OrthogonalGroup())
    w.grad = torch.full((4, 4), 1e38).triu()
    with pytest.raises(FloatingPointError):
        build([w], 1e38, "random matching").step()
    assert allowed()
    seen = []

    def fail():
        with exact_products(), exact_products():
            seen.append((rounds_products(), allowed()))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert seen == [(True, False)]
    assert allowed()
    assert torch.get_float32_matmul_precision() == "high"


@pytest.mark.skipif(torch.__version__ < (2, 9), reason="torch has one way to say it")
def test_the_newer_way_to_allow_it():
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    try:
        matmul.fp32_precision = "tf32"
        assert rounds_products()
        with exact_products():
            assert not allowed()
        assert allowed()
    finally:
        matmul.fp32_precision = before
    assert not rounds_products()
