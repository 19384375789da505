"""The validating wrapper: catches every kind of offence, and otherwise is the manifold that it wraps."""

import copy
import inspect
import pickle

import geoopt
import pytest
import torch
from geoopt import ManifoldParameter
from hypothesis import given
from hypothesis import strategies as st
from strategies import Noise, batch_shapes, dims, dtypes, noises
from torch import Tensor

from givens.manifolds import (
    All,
    CoordinateManifold,
    Coordinates,
    Euclidean,
    Grassmann,
    Groups,
    Oblique,
    OrthogonalGroup,
    Power,
    Scaled,
    SpecialOrthogonalGroup,
    SpecialUnitaryGroup,
    Sphere,
    Stiefel,
    UnitaryGroup,
    constrain,
)
from givens.manifolds.testing import Validating
from givens.manifolds.testing.validating import _LAWS
from givens.optim import SRCD, SRGD, Block, Cyclic, GaussSouthwell, Uniform

GROUP = OrthogonalGroup()
CHECKED = Validating(GROUP)


def one(*numbers, disjoint=True):
    return Coordinates(torch.tensor(numbers), disjoint=disjoint)


# It behaves as the manifold


def test_it_is_what_it_wraps():
    assert isinstance(CHECKED, CoordinateManifold)
    assert not isinstance(Validating(geoopt.Sphere()), CoordinateManifold)
    assert repr(CHECKED) == "Validating(OrthogonalGroup manifold)"
    wrapped = Validating(OrthogonalGroup("cayley"))
    for name in (
        "name",
        "ndim",
        "reversible",
        "dtypes",
        "frame_bounds",
        "period",
        "compact",
        "retraction",
    ):
        assert getattr(wrapped, name) == getattr(wrapped.manifold, name)
    assert Validating(Euclidean(3)).ndim == 3
    with pytest.raises(AttributeError, match="nonsense"):
        _ = CHECKED.nonsense
    with pytest.raises(TypeError, match="no manifold"):
        Validating(torch.eye(3))


@pytest.mark.parametrize("name", sorted(_LAWS))
def test_methods_keep_signatures_and_docs(name):
    method = getattr(CoordinateManifold, name)
    wrapper = getattr(type(CHECKED), name)
    assert inspect.signature(wrapper) == inspect.signature(method)
    assert wrapper.__doc__ == method.__doc__


def test_every_public_method_is_checked_or_known_to_be_passed_on():
    """A method that is added to the interface must get a line in the table, or one here."""
    passed_on = {
        *("num_axes", "num_coordinates", "num_disjoint", "restore_period", "check_block"),
        *("unpack_tensor", "pack_point", "extra_repr", "group_values", "group_matrices"),
    }
    public = {
        name
        for base in (geoopt.Manifold, CoordinateManifold)
        for name, member in vars(base).items()
        if inspect.isfunction(member) and not name.startswith(("_", "check_", "assert_"))
    }
    assert public - passed_on == set(_LAWS) - passed_on


@given(batch_shapes, dims, dtypes, noises)
def test_results_are_the_same_to_the_last_bit(batch, d, dtype, noise: Noise):
    x, y = (noise.point(*batch, d, d, dtype=dtype, det=1) for _ in range(2))
    u, v = (GROUP.proju(x, noise.like(x)) for _ in range(2))
    g = noise.like(x)
    pairs = noise.matching(batch, d)
    t = noise.normal(*pairs.index.shape, dtype=dtype)
    index = torch.arange(d * (d - 1) // 2)

    def results(m):
        yield m.retr(x, u)
        yield m.expmap(x, u)
        yield m.logmap(x, y)
        yield m.transp(x, y, v)
        yield m.transp_follow_retr(x, u, v)
        yield m.transp_follow_expmap(x, u, v)
        yield from m.retr_transp(x, u, v)
        yield from m.expmap_transp(x, u, v=v)
        yield m.inner(x, u, v)
        yield m.inner(x, u, keepdim=True)
        yield m.component_inner(x, u)
        yield m.norm(x, u)
        yield m.dist(x, y)
        yield m.dist2(x, y, keepdim=True)
        yield m.proju(x, g)
        yield m.egrad2rgrad(x=x, u=g)
        yield m.projx(g)
        yield m.direction(x, index)
        yield m.axes(x, index)
        yield m.step_scale(x, All())
        for block in (pairs, All(), noise.groups(batch, d, 2)):
            yield m.derivatives(x, g, block)
            yield m.descend_(x.clone(), g, block, lambda d, s: -0.1 * d / s)
        yield from m.steepest(x, g, 1)
        yield m.candidates(x, g, 1, torch.bfloat16)
        yield m.coupling(x, g)
        yield m.move(x, pairs, t)
        yield m.move_(x.clone(), pairs, t)
        yield m.restore_(x.clone())
        yield m.origin(*x.shape, dtype=dtype)
        yield m.random(*x.shape, dtype=dtype, generator=Noise(0).generator)

    state = noise.generator.get_state()
    expected = list(results(GROUP))
    noise.generator.set_state(state)
    for a, b in zip(results(CHECKED), expected, strict=True):
        assert torch.equal(a, b)


SELECTIONS = [
    Uniform(),
    Cyclic(),
    GaussSouthwell(),
    Block(size=3),
    Block(size=3, disjoint=True),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "make",
    [
        *(lambda p, s=s: SRCD(p, lr=0.2, selection=s) for s in SELECTIONS),
        lambda p: SRGD(p, lr=0.05),
        lambda p: SRGD(p, lr=0.05, momentum=0.9, map="retr"),
        lambda p: SRGD(p, lr=0.05, rank=2),
        lambda p: geoopt.optim.RiemannianAdam(p, lr=0.05),
    ],
)
def test_a_whole_run_gives_the_same_bits(make, dtype):
    noise = Noise(3)
    start, target = (noise.point(2, 7, 7, dtype=dtype, det=1) for _ in range(2))

    def run(manifold):
        p = ManifoldParameter(start.clone(), manifold=manifold)
        optimizer = make([p])
        for _ in range(60):
            optimizer.zero_grad()
            (p - target).square().sum().backward()
            optimizer.step()
        return p.detach()

    # RiemannianAdam transports by left translation, whose rounding is that of float32.
    assert torch.equal(run(Validating(OrthogonalGroup())), run(OrthogonalGroup()))


@pytest.mark.parametrize(
    ("manifold", "shape", "dtype"),
    [
        (Euclidean(2), (3, 4), torch.float32),
        (Sphere(), (3, 5), torch.float32),
        (Stiefel("canonical"), (2, 5, 3), torch.float64),
        (Grassmann(), (5, 2), torch.float32),
        (Oblique(), (4, 3), torch.float64),
        (SpecialOrthogonalGroup(), (2, 4, 4), torch.float32),
        (UnitaryGroup(), (2, 3, 3), torch.complex64),
        (SpecialUnitaryGroup(), (3, 3), torch.complex128),
        (Power(SpecialOrthogonalGroup()), (4, 3, 3), torch.float32),
        (Scaled(Sphere(), 2.0), (5,), torch.float64),
    ],
    ids=lambda part: getattr(part, "name", None),
)
def test_runs_on_other_geometries_give_the_same_bits(manifold, shape, dtype):
    start = manifold.random(*shape, dtype=dtype, generator=Noise(0).generator)
    target = Noise(1).normal(*shape, dtype=dtype)

    def run(manifold, make):
        p = ManifoldParameter(start.as_subclass(Tensor).clone(), manifold=manifold)
        optimizer = make([p])
        for _ in range(12):
            optimizer.zero_grad()
            (p - target).abs().square().sum().backward()
            optimizer.step()
        return p.detach()

    for make in (
        lambda p: SRCD(p, lr=0.1),
        lambda p: SRCD(p, lr=0.1, selection=Block(size=2)),
        lambda p: SRGD(p, lr=0.05, momentum=0.5),
    ):
        assert torch.equal(run(Validating(manifold), make), run(manifold, make))


def test_it_works_on_a_layer_and_is_copied_and_saved():
    manifold = Validating(OrthogonalGroup("cayley"), atol=1e-3, rtol=0)
    layer = constrain(torch.nn.Linear(4, 4), "weight", manifold)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        of_twin = twin.weight.manifold
        assert type(of_twin) is type(manifold)
        assert (of_twin.atol, of_twin.rtol, of_twin.retraction) == (1e-3, 0, "cayley")
        assert torch.equal(twin.weight, layer.weight)
        with pytest.raises(ValueError, match="given to expmap is not tangent"):
            of_twin.expmap(twin.weight, twin.weight)


def test_random_points_belong_to_the_wrapper():
    x = CHECKED.random(3, 3)
    assert x.manifold is CHECKED
    assert ManifoldParameter(x, manifold=CHECKED).manifold is CHECKED


def test_gradients_flow_through_it():
    x = Noise(0).point(3, 3)
    u = Noise(1).tangent(x).requires_grad_()
    (expected,) = torch.autograd.grad(GROUP.expmap(x, u).sum(), u)
    (flowed,) = torch.autograd.grad(CHECKED.expmap(x, u).sum(), u)
    assert torch.equal(flowed, expected)


# On the way in

D = 5
X = Noise(0).point(2, D, D)
U = Noise(1).tangent(X)
G = Noise(2).like(X)
PAIRS = Coordinates(torch.tensor([[0, 8], [1, 9]]), disjoint=True)  # (0, 1), (2, 4); (0, 2), (3, 4)
GROUPS = Groups(torch.tensor([[0, 1], [2, 4]]))
NAN = torch.full_like(X, torch.nan)
SKEW = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=X.dtype).expand(2, 2, 2, 2)

VECTORS = {
    "retr": lambda u: CHECKED.retr(X, u),
    "expmap": lambda u: CHECKED.expmap(X, u),
    "transp": lambda u: CHECKED.transp(X, X, u),
    "transp_follow_retr": lambda u: CHECKED.transp_follow_retr(X, U, u),
    "transp_follow_expmap": lambda u: CHECKED.transp_follow_expmap(X, u, U),
    "retr_transp": lambda u: CHECKED.retr_transp(X, u, U),
    "expmap_transp": lambda u: CHECKED.expmap_transp(X, U, v=u),
    "inner": lambda u: CHECKED.inner(X, U, u),
    "component_inner": lambda u: CHECKED.component_inner(X, u),
    "norm": lambda u: CHECKED.norm(X, u),
}
POINTS = {
    "retr": lambda x: CHECKED.retr(x, U),
    "logmap": lambda x: CHECKED.logmap(X, x),
    "dist": lambda x: CHECKED.dist(x, X),
    "dist2": lambda x: CHECKED.dist2(X, y=x),
    "transp": lambda x: CHECKED.transp(X, x, U),
    "proju": lambda x: CHECKED.proju(x, U),
    "egrad2rgrad": lambda x: CHECKED.egrad2rgrad(x, U),
    "norm": lambda x: CHECKED.norm(x, U),
    "derivatives": lambda x: CHECKED.derivatives(x, G, All()),
    "direction": lambda x: CHECKED.direction(x, torch.tensor([0])),
    "step_scale": lambda x: CHECKED.step_scale(x, All()),
    "steepest": lambda x: CHECKED.steepest(x, G, 2),
    "candidates": lambda x: CHECKED.candidates(x, G, 2, torch.bfloat16),
    "coupling": lambda x: CHECKED.coupling(x, G),
    "move": lambda x: CHECKED.move(x, one(0), torch.ones(1)),
    "move_": lambda x: CHECKED.move_(x, one(0), torch.ones(1)),
    "descend_": lambda x: CHECKED.descend_(x, G, All(), lambda d, s: d),
}


@pytest.mark.parametrize("method", VECTORS)
@pytest.mark.parametrize(
    ("bad", "error", "what"),
    [
        (
            U + 1e-2 * X,
            ValueError,
            r"the vector \w+ given to {} is not tangent at x: max \|.*\| is \d",
        ),
        (U + 1e-6 * X, ValueError, r"the vector \w+ given to {} is not tangent at x"),
        (1e6 * U + X, ValueError, r"the vector \w+ given to {} is not tangent at x"),
        (NAN, ValueError, r"the vector \w+ given to {} holds 50 of 50 entries that are NaN"),
        (
            U.float(),
            TypeError,
            r"the vector \w+ given to {} is torch.float32; expected torch.float64",
        ),
        (U[:, :3, :3], ValueError, r"given to {} has shape \(2, 3, 3\); expected \(2, 5, 5\)"),
        (U.expand(3, 2, D, D)[:, :1].expand(3, 4, D, D), ValueError, r"given to {} has shape"),
        (U.tolist(), TypeError, r"the vector \w+ given to {} is a list; expected a tensor"),
        (U.to("meta"), ValueError, r"given to {} lives on meta; expected cpu"),
    ],
)
def test_bad_vectors(method, bad, error, what):
    VECTORS[method](U)
    with pytest.raises(error, match=what.format(method)):
        VECTORS[method](bad)


@pytest.mark.parametrize("method", POINTS)
@pytest.mark.parametrize(
    ("bad", "error", "what"),
    [
        (1.01 * X, ValueError, r"the point \w given to {} is not on OrthogonalGroup: max"),
        ((1 + 1e-7) * X, ValueError, r"the point \w given to {} is not on OrthogonalGroup"),
        (NAN, ValueError, r"the point \w given to {} holds 50 of 50 entries"),
        (X[..., :3], ValueError, r"the point \w given to {} has (a wrong )?shape"),
        ((9 * X).long(), TypeError, r"the point \w given to {} is torch.int64"),
    ],
)
def test_bad_points(method, bad, error, what):
    kept = bad.clone()
    POINTS[method](X.clone())
    with pytest.raises(error, match=what.format(method)):
        POINTS[method](bad)
    assert torch.equal(bad.nan_to_num(), kept.nan_to_num())


@pytest.mark.parametrize(
    ("bad", "error", "what"),
    [
        (one(10), IndexError, "the block given to move is wrong: coordinate 10 does not exist"),
        (one(-1), IndexError, "coordinate -1 does not exist"),
        (one(0, 1), ValueError, "the block given to move is wrong: axis 0 is in two places"),
        (one(0).index, TypeError, "the block given to move is a Tensor; expected Coordinates"),
        (Coordinates(torch.tensor([0.0]), disjoint=True), TypeError, "is torch.float32"),
        (one(0, 0, 0).__class__(torch.zeros(3, 1).long(), True), ValueError, "for points of the b"),
        (Groups(torch.tensor([[0, 5]])), IndexError, "move is wrong: axis 5 does not exist"),
        (
            Groups(torch.tensor([[0, 1], [1, 2]])),
            ValueError,
            "move is wrong: axis 1 is in two places",
        ),
        (Groups(torch.tensor([[1, 0]])), ValueError, "must ascend"),
        (Groups(torch.tensor([0, 1])[0]), ValueError, "holds numbers of shape"),
        (Coordinates(torch.tensor([0], device="meta"), disjoint=True), ValueError, "lives on meta"),
    ],
)
def test_bad_blocks(bad, error, what):
    with pytest.raises(error, match=what):
        CHECKED.move(X, bad, torch.ones(1))


def test_blocks_are_looked_at_on_accelerators(monkeypatch):
    """The manifolds themselves look at contents on the CPU only; the wrapper hands them a copy there."""
    seen = []
    monkeypatch.setattr(
        OrthogonalGroup, "check_block", lambda self, x, block: seen.append(block.index.device.type)
    )
    call = Validating(OrthogonalGroup())
    call.derivatives(X, G, PAIRS)
    assert "cpu" in seen


@pytest.mark.parametrize(
    ("block", "bad", "error", "what"),
    [
        (PAIRS, torch.ones(3), ValueError, r"has shape \(3,\); expected .* \(2, 2\)"),
        (PAIRS, torch.ones(3, 2, 2), ValueError, r"has shape \(3, 2, 2\)"),
        (All(), torch.ones(9), ValueError, r"expected .* \(2, 10\)"),
        (PAIRS, torch.tensor([1.0, torch.nan]), ValueError, "holds 1 of 2 entries"),
        (PAIRS, torch.ones(2).long(), TypeError, "is torch.int64; expected float32 or float64"),
        (PAIRS, 0.1, TypeError, r"the tensor of times .* is a float"),
        (GROUPS, SKEW.abs(), ValueError, r"no batch of skew matrices: max \|t \+ tᵀ\| is 2.0e\+00"),
    ],
)
@pytest.mark.parametrize("method", ["move", "move_", "descend_"])
def test_bad_times(method, block, bad, error, what):
    x = X.clone()
    arguments = [G, block, lambda d, s: bad] if method == "descend_" else [block, bad]
    with pytest.raises(error, match=what):
        getattr(CHECKED, method)(x, *arguments)
    assert torch.equal(x, X)


COLUMN = X[..., :1]


@pytest.mark.parametrize(
    ("left", "right", "error", "what"),
    [
        (2 * COLUMN, COLUMN, ValueError, "factor left .* has no orthonormal columns"),
        (COLUMN[:, 1:], COLUMN, ValueError, "factor left .* has shape"),
        (COLUMN, COLUMN[:, 1:], ValueError, "factor right .* has shape"),
        (COLUMN, COLUMN.float(), TypeError, "factor right"),
        (COLUMN, torch.nan * COLUMN, ValueError, "factor right .* NaN"),
    ],
)
def test_bad_factors(left, right, error, what):
    assert CHECKED.follow_low_rank(X, COLUMN, COLUMN).shape == X.shape
    with pytest.raises(error, match=what):
        CHECKED.follow_low_rank(X, left, right)


@pytest.mark.parametrize("k", [0, 11, 2.0])
def test_bad_counts(k):
    with pytest.raises(ValueError, match=r"the number k given to steepest is .* from 1 to 10"):
        CHECKED.steepest(X, G, k)


@pytest.mark.parametrize("method", ["derivatives", "steepest", "proju", "egrad2rgrad", "projx"])
@pytest.mark.parametrize(
    ("bad", "error"), [(NAN, ValueError), (G.float(), TypeError), (G[..., :3], ValueError)]
)
def test_bad_gradients(method, bad, error):
    rest = {"derivatives": [All()], "steepest": [2]}.get(method, [])
    if method == "projx" and bad.dtype != G.dtype:
        return  # any type of point may be projected
    with pytest.raises(error, match=f"the tensor \\w+ given to {method}"):
        getattr(CHECKED, method)(*([] if method == "projx" else [X]), bad, *rest)


def test_a_rule_must_be_a_function():
    with pytest.raises(TypeError, match="the rule given to descend_ is a float"):
        CHECKED.descend_(X.clone(), G, All(), 0.1)


# On the way out: a manifold with a mistake in one method


def broken(**methods):
    return Validating(type("Broken", (OrthogonalGroup,), methods)())


def add_to(tensor, name, amount=1e-3):
    def wrong(self, *args, **kwargs):
        result = getattr(OrthogonalGroup(), name)(*args, **kwargs)
        return result + amount if tensor is None else (result[0] + amount, *result[1:])

    return wrong


def without_a_row(name):
    def wrong(self, *args, **kwargs):
        return getattr(OrthogonalGroup(), name)(*args, **kwargs)[1:]

    return wrong


RESULTS = {
    "retr": (lambda m: m.retr(X, U), "the point that"),
    "expmap": (lambda m: m.expmap(X, U), "the point that"),
    "logmap": (lambda m: m.logmap(X, GROUP.expmap(X, U)), "the vector that .* not tangent at x"),
    "transp": (lambda m: m.transp(X, X.flip(0), U), "the vector that .* not tangent at y"),
    "transp_follow_retr": (lambda m: m.transp_follow_retr(X, U, U), r"not tangent at retr\(x, u\)"),
    "transp_follow_expmap": (lambda m: m.transp_follow_expmap(X, U, U), r"at expmap\(x, u\)"),
    "proju": (lambda m: m.proju(X, G), "the vector that"),
    "egrad2rgrad": (lambda m: m.egrad2rgrad(X, G), "the vector that"),
    "projx": (lambda m: m.projx(G), "the point that"),
    "direction": (lambda m: m.direction(X, torch.tensor([1, 2])), "the tensor of directions that"),
    "random": (lambda m: m.random(3, 3), "the point that"),
    "origin": (lambda m: m.origin(3, 3), "the point that"),
    "move": (lambda m: m.move(X, All(), torch.ones(10)), "the point that"),
}


@pytest.mark.parametrize("name", RESULTS)
def test_results_off_the_manifold(name):
    call, what = RESULTS[name]
    with pytest.raises(RuntimeError, match=f"{what}.*Broken.{name}"):
        call(broken(**{name: add_to(None, name)}))


@pytest.mark.parametrize(
    "name", [*sorted({*RESULTS} - {"random", "origin"}), "inner", "dist", "axes"]
)
def test_results_of_a_wrong_shape_or_type(name):
    calls = {
        **{key: call for key, (call, _) in RESULTS.items()},
        "inner": lambda m: m.inner(X, U),
        "dist": lambda m: m.dist(X, X),
        "axes": lambda m: m.axes(X, torch.tensor([1, 2])),
    }
    with pytest.raises(RuntimeError, match=f"Broken.{name} returned has shape"):
        calls[name](broken(**{name: without_a_row(name)}))

    def to_half(self, *args, **kwargs):
        return getattr(OrthogonalGroup(), name)(*args, **kwargs).half()

    if name not in ("inner", "dist"):
        with pytest.raises(RuntimeError, match=f"Broken.{name} returned is torch.float16"):
            calls[name](broken(**{name: to_half}))


@pytest.mark.parametrize("name", ["retr_transp", "expmap_transp"])
def test_results_that_are_pairs(name):
    with pytest.raises(RuntimeError, match=f"the point that Broken.{name} returned"):
        getattr(broken(**{name: add_to(0, name)}), name)(X, U, U)

    def stays(self, x, u, v):
        return OrthogonalGroup().expmap(x, u), v

    with pytest.raises(RuntimeError, match=r"the vector .* not tangent at the point returned"):
        getattr(broken(**{name: stays}), name)(X, U, U)
    with pytest.raises(RuntimeError, match=r"what .* returned is a Tensor; expected 2 tensors"):
        getattr(broken(**{name: lambda self, x, u, v: x}), name)(X, U, U)


@pytest.mark.parametrize(
    ("name", "wrong", "what"),
    [
        ("inner", lambda self, x, u, v=None, keepdim=False: 0 * x[:, 0, 0] + torch.nan, "NaN"),
        ("norm", lambda self, x, u, keepdim=False: -torch.ones(2), "negative"),
        ("dist", lambda self, x, y, keepdim=False: torch.full((2,), torch.nan), "negative or NaN"),
        ("dist", lambda self, x, y, keepdim=False: torch.zeros(2, 1, 1), r"expected \(2,\)"),
    ],
)
def test_numbers_that_are_none(name, wrong, what):
    rest = [X] if name == "dist" else [U]
    with pytest.raises(RuntimeError, match=f"the number that Broken.{name} returned .*{what}"):
        getattr(broken(**{name: wrong}), name)(X, *rest)


@pytest.mark.parametrize(
    ("block", "wrong", "what"),
    [
        (PAIRS, torch.ones(2, 1), r"has shape \(2, 1\); expected \(2, 2\)"),
        (PAIRS, torch.ones(2, 2).float(), "is torch.float32; expected torch.float64"),
        (PAIRS, torch.full((2, 2), torch.inf), "4 of 4 entries"),
        (GROUPS, torch.ones(2, 2, 2, 2), "no batch of skew matrices"),
        (All(), torch.ones(10), r"expected \(2, 10\)"),
    ],
)
def test_derivatives_that_are_none(block, wrong, what):
    wrong = wrong if "float32" in what else wrong.double()
    manifold = broken(derivatives=lambda self, x, egrad, block: wrong)
    with pytest.raises(RuntimeError, match=f"the tensor of derivatives that .*{what}"):
        manifold.derivatives(X, G, block)
    x = X.clone()
    with pytest.raises(RuntimeError, match=f"that Broken.descend_ gave to the rule .*{what}"):
        manifold.descend_(x, G, block, lambda d, s: d)
    assert torch.equal(x, X)


@pytest.mark.parametrize(
    ("name", "wrong", "what"),
    [
        ("step_scale", lambda self, x, block: -torch.ones(()), "is negative"),
        ("step_scale", lambda self, x, block: torch.ones(3), r"has shape \(3,\)"),
        ("axes", lambda self, x, index: torch.full((*index.shape, 2), 5), "names an axis"),
    ],
)
def test_scales_and_axes_that_are_none(name, wrong, what):
    argument = PAIRS if name == "step_scale" else PAIRS.index
    with pytest.raises(RuntimeError, match=what):
        getattr(broken(**{name: wrong}), name)(X, argument)


@pytest.mark.parametrize("index", [[[0, 0], [1, 2]], [[0, 10], [1, 2]]])
def test_steepest_coordinates_that_are_none(index):
    wrong = (torch.tensor(index), torch.zeros(2, 2, dtype=X.dtype))
    with pytest.raises(RuntimeError, match=r"the tensor of coordinates that Broken\.steepest"):
        broken(steepest=lambda self, x, egrad, k: wrong).steepest(X, G, 2)


def test_a_type_that_is_none():
    with pytest.raises(
        TypeError, match=r"the dtype given to candidates is a str; expected a torch\.dtype"
    ):
        CHECKED.candidates(X, G, 1, "bfloat16")


@pytest.mark.parametrize("wrong", [-1.0, torch.nan, "asymmetric"])
def test_weights_that_are_none(wrong):
    weight = torch.ones(2, 5, 5, dtype=X.dtype)
    weight[1, 2, 3] = 2 if wrong == "asymmetric" else wrong
    with pytest.raises(
        RuntimeError, match=r"weights that Broken\.coupling returned is not symmetric"
    ):
        broken(coupling=lambda self, x, egrad: weight).coupling(X, G)


def test_arguments_must_be_left_alone():
    def expmap(self, x, u):
        u.mul_(2)
        return x

    with pytest.raises(RuntimeError, match="a tensor given to expmap was changed in place"):
        broken(expmap=expmap).expmap(X, U.clone())

    def move_(self, x, block, t):
        t.neg_()
        return x

    x = X.clone()
    with pytest.raises(RuntimeError, match="a tensor given to move_ was changed in place"):
        broken(move_=move_).move_(x, PAIRS, torch.ones(2))


@pytest.mark.parametrize("name", ["move_", "descend_", "restore_"])
@pytest.mark.parametrize("mistake", ["off", "copy", "nan", "raises"])
def test_a_bad_move_is_undone(name, mistake):
    def wrong(self, x, *args):
        if mistake == "copy":
            return 1 * x
        x.mul_(torch.nan if mistake == "nan" else 1.1)
        if mistake == "raises":
            raise NotImplementedError("not yet")
        return x

    manifold = broken(**{name: wrong})
    x = torch.nn.Parameter(X.clone())
    rest = {
        "move_": [PAIRS, torch.ones(2)],
        "descend_": [G, PAIRS, lambda d, s: d],
        "restore_": [],
    }[name]
    error = NotImplementedError if mistake == "raises" else RuntimeError
    what = {"off": "is not on", "copy": "is not x", "nan": "50 of 50", "raises": "not yet"}[mistake]
    with torch.no_grad(), pytest.raises(error, match=what):
        getattr(manifold, name)(x, *rest)
    assert torch.equal(x, X)


# Other manifolds


@given(st.floats(-6, 3), noises)
def test_tolerances_are_the_user_s(power, noise: Noise):
    x = noise.point(4, 4)
    size = 10.0**power
    Validating(GROUP, atol=4 * size, rtol=0).proju(x * (1 + size) ** 0.5, x)
    with pytest.raises(ValueError, match="is not on"):
        Validating(GROUP, atol=size / 10, rtol=0).proju(x * (1 + size) ** 0.5, x)


def test_float32_points_and_vectors_pass():
    """The default tolerances are those of the type."""
    x = Noise(0).point(64, 64, dtype=torch.float32)
    u = 1e3 * GROUP.proju(x, Noise(1).like(x))
    assert torch.equal(CHECKED.expmap(x, u), GROUP.expmap(x, u))
    assert torch.equal(CHECKED.logmap(x, CHECKED.expmap(x, u)), GROUP.logmap(x, GROUP.expmap(x, u)))


@pytest.mark.parametrize(
    "manifold",
    [geoopt.Sphere(), geoopt.EuclideanStiefel(), geoopt.SymmetricPositiveDefinite(), Euclidean(2)],
    ids=lambda m: m.name,
)
def test_manifolds_of_geoopt(manifold):
    shape = (3, 4, 4) if isinstance(manifold, geoopt.SymmetricPositiveDefinite) else (3, 4, 2)
    x = manifold.projx(Noise(0).normal(*shape)).as_subclass(Tensor)
    u = 0.1 * manifold.proju(x, Noise(1).like(x))
    checked = Validating(manifold)
    for name in ("expmap", "retr", "inner", "norm"):
        assert torch.equal(getattr(checked, name)(x, u), getattr(manifold, name)(x, u))
    with pytest.raises(ValueError, match="given to expmap holds"):
        checked.expmap(x, u * torch.nan)


def test_it_finds_geoopt_s_inner_product_of_a_batch():
    """On geoopt's Poincaré ball the inner products of n pairs of vectors are n×n numbers."""
    ball = geoopt.PoincareBall()
    x = ball.expmap0(Noise(0).normal(4, 3) / 4)
    u = ball.proju(x, Noise(1).normal(4, 3))
    with pytest.raises(RuntimeError, match=r"PoincareBall.inner returned has shape \(4, 4\)"):
        Validating(ball).inner(x, u)
