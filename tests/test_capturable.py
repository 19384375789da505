"""Steps that are recorded and repeated do what they would do if they were made one by one."""

import copy
import math

import pytest
import torch
from geoopt import ManifoldParameter
from hypothesis import given
from hypothesis import strategies as st
from recording import Recording
from rules import METHODS, SCALINGS, build
from test_every_manifold import SPACES, start, takes

from givens.manifolds import Groups, OrthogonalGroup, constrain
from givens.optim import SRCD, SRGD, Adam, Armijo, Grouping, Matching, Uniform, base
from givens.optim.random import Randomness

# These look at numbers to know what they do next.
LOOKING = {"growing", "capture"}
# There a selection of several coordinates waits to know which copies or factors they belong to, and
# where not every two axes have a coordinate, disjoint ones are found by looking.
PARTS = {"Product", "Power"}


def gradients(p, seed=0):
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randn(p.shape, generator=generator, dtype=p.dtype)


def trained(p, make, steps, monkeypatch, *, record):
    """Train by gradients that are drawn; from the second step on by the first one's recording."""
    p = copy.deepcopy(p)
    optimizer = make([p])
    p.grad = torch.zeros_like(p)
    recording = Recording(monkeypatch)
    for n, gradient in zip(range(steps), gradients(p), strict=False):
        p.grad.copy_(gradient)
        if record and n >= 2:
            recording.replay()
        elif n == 1:
            with recording:
                optimizer.step()
        else:
            with Recording(monkeypatch):  # by the same branches; only not kept
                optimizer._warm = True
                optimizer.step()
        optimizer.restore()
    return p.detach().as_subclass(torch.Tensor), optimizer


def same(a, b):
    """Whether two states of an optimizer are the same to the bit."""
    a, b = a.state_dict()["state"], b.state_dict()["state"]
    assert a.keys() == b.keys()
    for key, values in a.items():
        assert values.keys() == b[key].keys()
        for name, value in values.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(b[key][name])), name
    return True


def check(p, method, scaling, monkeypatch):
    def make(params):
        return build(params, 0.01, method, scaling, capturable=True)

    once, first = trained(p, make, 6, monkeypatch, record=False)
    again, second = trained(p, make, 6, monkeypatch, record=True)
    assert torch.equal(once, again)
    assert not torch.equal(once, p.detach())
    assert same(first, second)
    # Restored less often, and by other branches: near what an ordinary optimizer does.
    plain = copy.deepcopy(p)
    optimizer = build([plain], 0.01, method, scaling)
    for _, gradient in zip(range(6), gradients(plain), strict=False):
        plain.grad = gradient
        optimizer.step()
    eps = torch.finfo(p.dtype).eps
    assert (plain.detach() - once).abs().max() <= 1e3 * eps * (1 + once.abs().max())


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("method", [name for name in METHODS if name not in LOOKING])
def test_a_recorded_step_is_repeated(method, scaling, monkeypatch):
    manifold = OrthogonalGroup()
    p = ManifoldParameter(manifold.random(2, 5, 5), manifold=manifold)
    check(p, method, scaling, monkeypatch)


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("method", ["uniform", "cyclic", "random matching", "random groups"])
def test_on_every_manifold(name, method, monkeypatch):
    p, _ = start(name)
    several = method != "uniform" and method != "cyclic"
    if not takes(p, method) or (several and (name in PARTS or not p.manifold.every_pair)):
        pytest.skip("there is none, or it is chosen by looking")
    check(p, method, "adam", monkeypatch)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.9},
        {"momentum": 0.9, "nesterov": True},
        {"map": "retr"},
        {"map": "retr", "momentum": 0.5, "weight_decay": 0.1},
        {"maximize": True},
        {"rank": 1},
        {"rank": 1, "map": "retr"},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["OrthogonalGroup", "Stiefel", "Sphere", "UnitaryGroup"])
def test_gradient_steps(name, options, monkeypatch):
    p, _ = start(name)
    if "rank" in options and name == "Sphere":
        pytest.skip("its points are no matrices")
    if "map" in options and name in ("OrthogonalGroup", "Stiefel"):
        p.manifold = type(p.manifold)(retraction="cayley")

    def make(params):
        return SRGD(params, 0.01, **options, capturable=True)

    once, first = trained(p, make, 6, monkeypatch, record=False)
    again, second = trained(p, make, 6, monkeypatch, record=True)
    assert torch.equal(once, again)
    assert not torch.equal(once, p.detach())
    assert same(first, second)


@pytest.mark.parametrize("scaling", ["none", "adam"])
def test_a_rate_on_the_device_and_a_parameter_without_a_manifold(scaling, monkeypatch):
    manifold = OrthogonalGroup()
    found = {}
    for record in (False, True):
        rate = torch.tensor(0.1, dtype=torch.float64)
        w = ManifoldParameter(manifold.origin(6, 6).double(), manifold=manifold)
        b = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
        optimizer = SRCD([w, b], rate, Matching(), SCALINGS[scaling], capturable=True)
        recording = Recording(monkeypatch)
        for n, (of_w, of_b) in enumerate(zip(gradients(w), gradients(b), strict=True)):
            if n == 5:
                break
            rate.fill_(0.1 / (n + 1))  # as a schedule does
            w.grad = of_w if w.grad is None else w.grad.copy_(of_w)
            b.grad = of_b if b.grad is None else b.grad.copy_(of_b)
            if n == 1:
                with recording:
                    optimizer.step()
            elif record and n > 1:
                recording.replay()
            else:
                optimizer.step()
        found[record] = w.detach().clone(), b.detach().clone()
    assert (found[True][0] - found[False][0]).abs().max() < 1e-15
    assert torch.equal(found[True][1], found[False][1])


def test_the_number_of_the_step_is_there_before_the_first_one():
    """A compiler takes what a step makes for known, and its random numbers for sums that overflow."""
    w = ManifoldParameter(torch.eye(6), manifold=OrthogonalGroup())
    b = torch.nn.Parameter(torch.ones(3))
    for optimizer, counted in (
        (SRCD([w, b], 0.1, capturable=True), {w}),
        (SRCD([w, b], 0.1, scaling=Adam(), capturable=True), {w, b}),
        (SRGD([w, b], 0.1, capturable=True), set()),
        (SRGD([w, b], 0.1, rank=1, capturable=True), {w}),
        (SRGD([w, b], 0.1, scaling=Adam(), capturable=True), {w, b}),
        (SRCD([w, b], 0.1), set()),
    ):
        assert {p for p in (w, b) if p in optimizer.state} == counted
        assert all(torch.equal(optimizer.state[p]["step"], torch.tensor(0)) for p in counted)


@given(
    st.integers(-(2**70), 2**70),
    st.integers(0, 2**62),
    st.integers(0, 100),
    st.integers(1, 40),
    st.integers(0, 3),
)
def test_what_is_drawn_does_not_depend_on_where_the_step_is_counted(seed, step, number, high, n):
    by_host, by_device = (
        Randomness(seed, at, number, torch.device("cpu"), (2,), 3)
        for at in (step, torch.tensor(step))
    )
    for _ in range(2):
        assert torch.equal(by_host.integers(high, 2, n), by_device.integers(high, 2, n))
        k = min(n, high)
        assert torch.equal(by_host.distinct(high, k, 2), by_device.distinct(high, k, 2))
        assert torch.equal(by_host.distinct(100 + high, 1), by_device.distinct(100 + high, 1))


def test_a_recording_notices_who_reads(monkeypatch):
    for look in (lambda x: bool(x.any()), lambda x: x.nonzero(), lambda x: x.new_tensor([1.0])):
        with pytest.raises(RuntimeError, match="cannot be recorded"), Recording(monkeypatch):
            look(torch.ones(3))


@pytest.fixture
def w():
    return ManifoldParameter(torch.eye(6, dtype=torch.float64), manifold=OrthogonalGroup())


def test_not_a_number_stops_all_that_follows(w, monkeypatch):
    optimizer = SRCD([w], 0.1, Matching(), Adam(), capturable=True)
    w.grad = torch.ones_like(w).triu()
    optimizer.step()
    recording = Recording(monkeypatch)
    with recording:
        optimizer.step()
    before, saved = w.detach().clone(), copy.deepcopy(optimizer.state[w])
    w.grad.fill_(math.nan)
    recording.replay()
    w.grad.copy_(torch.ones(6, 6).tril())
    recording.replay()
    assert torch.equal(before, w)
    for name in ("first", "second", "visits"):
        assert torch.equal(saved[name], optimizer.state[w][name])
    with pytest.raises(FloatingPointError):
        optimizer.restore()
    recording.replay()  # goes on
    assert not torch.equal(before, w)
    optimizer.restore()


def test_the_next_step_finds_out(w):
    optimizer = SRCD([w], 0.1, Matching(), capturable=True)
    w.grad = torch.full_like(w, math.inf)
    optimizer.step()
    w.grad.zero_()
    with pytest.raises(FloatingPointError):
        optimizer.step()
    optimizer.step()


def test_rounding_is_taken_away_when_it_is_due(w, monkeypatch):
    restored = []
    monkeypatch.setattr(OrthogonalGroup, "restore_", lambda self, x: restored.append(1) or x)
    optimizer = SRCD([w], 0.1, Matching(), capturable=True)
    optimizer.restore()  # nothing yet
    w.grad = torch.ones_like(w).triu()
    for _ in range(20):
        optimizer.step()
    assert not restored
    # 18 moves are a period here, 3 are a step.
    optimizer.restore(5)
    assert not restored
    optimizer.restore()
    assert len(restored) == 1
    optimizer.restore(5)
    assert len(restored) == 1
    optimizer.restore(100)
    assert len(restored) == 2
    with pytest.raises(ValueError, match="0 or more"):
        optimizer.restore(-1)
    plain = SRCD([w], 0.1)
    plain.step()
    plain.restore(10**6)
    assert len(restored) == 2


def test_long_runs_stay_on_the_manifold(monkeypatch):
    manifold = OrthogonalGroup()
    w = ManifoldParameter(manifold.origin(16, 16, dtype=torch.float32), manifold=manifold)
    optimizer = SRCD([w], 1.0, Matching(), capturable=True)
    recording = Recording(monkeypatch)
    draw = gradients(w)
    w.grad = next(draw).clone()
    optimizer.step()
    with recording:
        optimizer.step()
    for _ in range(300):
        w.grad.copy_(next(draw))
        recording.replay()
        optimizer.restore()
    gram = w.detach().double().mT @ w.detach().double()
    assert (gram - torch.eye(16)).abs().max() < 1e-6


@pytest.mark.parametrize("first", [True, False])
def test_a_state_can_be_taken_on_and_taken_back(w, first):
    """Counted on the host at first and then on the device, or the other way round."""
    reference = copy.deepcopy(w)
    optimizer = SRCD([w], 0.1, Uniform(), Adam(clock="steps"), capturable=first)
    plain = SRCD([reference], 0.1, Uniform(), Adam(clock="steps"))
    for n, gradient in zip(range(8), gradients(w), strict=False):
        if n == 4:
            saved = optimizer.state_dict()
            optimizer = SRCD([w], 0.1, Uniform(), Adam(clock="steps"), capturable=not first)
            optimizer.load_state_dict(saved)
        w.grad, reference.grad = gradient, gradient
        optimizer.step()
        plain.step()
    assert (w - reference).abs().max() < 1e-14
    assert int(optimizer.state[w]["step"]) == 8
    assert isinstance(optimizer.state[w]["step"], int) is first


def test_a_rate_or_a_shard_that_a_recording_would_miss_is_refused(w, monkeypatch):
    for make in (SRCD, SRGD):
        with pytest.raises(ValueError, match="lr is a tensor on meta"):
            make([w], torch.tensor(0.1, device="meta"), capturable=True)
        with pytest.raises(ValueError, match="finite learning rate"):
            make([w], torch.tensor(-0.1), capturable=True)
    monkeypatch.setattr(base, "is_sharded", lambda _: True)
    with pytest.raises(TypeError, match="cannot have capturable=True"):
        SRCD([w], 0.1, capturable=True)


def test_restoring_is_not_recorded(w, monkeypatch):
    optimizer = SRCD([w], 0.1, capturable=True)
    w.grad = torch.ones_like(w).triu()
    optimizer.step()
    with Recording(monkeypatch), pytest.raises(RuntimeError, match="after the replay"):
        optimizer.restore()
    assert "moved" not in optimizer.state[w]


def test_what_cannot_be_recorded_is_refused(w, monkeypatch):
    with pytest.raises(ValueError, match="strict"):
        SRCD([w], 0.1, strict=True, capturable=True)
    with pytest.raises(ValueError, match="line_search"):
        SRGD([w], 0.1, line_search=Armijo(), capturable=True)
    w.grad = torch.ones_like(w).triu()
    before = w.detach().clone()
    for method in LOOKING:
        optimizer = build([w], 0.1, method, capturable=True)
        with pytest.raises(TypeError, match="capturable=True cannot"):
            optimizer.step()
    new, plain = SRCD([w], 0.1, capturable=True), SRCD([w], 0.1, Grouping(3))
    with Recording(monkeypatch):
        with pytest.raises(RuntimeError, match="do some steps before"):
            new.step()
        with pytest.raises(RuntimeError, match="capturable=True"):
            plain.step()
    assert torch.equal(before, w)


# Older compilers do not follow a step, which is made as it is then.
compiles = pytest.mark.skipif(
    torch.__version__ < (2, 13), reason="needs the compiler of torch 2.13"
)
# What torch itself does or says.
quiet = pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor", "ignore:Guards may run slower on Python 3.13"
)
COMPILED = {
    "uniform": "adam by steps",
    "random matching": "none",
    "random groups": "adam",
    "gauss-southwell": "axis-rmsprop",
    "block": "rmsprop",
    "srgd": "none",
}


@compiles
@quiet
@pytest.mark.parametrize("batch", [(), (2,)])
@pytest.mark.parametrize("method", COMPILED)
def test_a_compiled_step_is_a_step(method, batch):
    torch.compiler.reset()
    manifold = OrthogonalGroup()
    w = ManifoldParameter(manifold.random(*batch, 5, 5), manifold=manifold)
    b = torch.nn.Parameter(torch.ones(3))
    plain = copy.deepcopy([w, b])
    optimizer = build([w, b], 0.01, method, COMPILED[method], capturable=True)
    ordinary = build(plain, 0.01, method, COMPILED[method])
    step = torch.compile(optimizer.step, backend="aot_eager", fullgraph=True)
    restore = torch.compile(optimizer.restore, backend="aot_eager")  # which leaves it as it is
    for n, (of_w, of_b) in enumerate(zip(gradients(w), gradients(b), strict=True)):
        if n == 6:
            break
        for params in ([w, b], plain):
            params[0].grad, params[1].grad = of_w, of_b
        optimizer.step() if n == 0 else step()
        restore()
        ordinary.step()
    assert (w - plain[0]).abs().max() < 1e-5
    assert torch.equal(b, plain[1])
    assert not torch.equal(b, torch.ones(3))


@compiles
@quiet
def test_sizes_and_layouts_that_change_are_compiled_anew():
    torch.compiler.reset()
    for d, transposed in ((5, False), (7, True), (6, False)):
        x, gradient = OrthogonalGroup().random(d, d).as_subclass(torch.Tensor), torch.randn(d, d)
        if transposed:
            x, gradient = x.mT.contiguous().mT, gradient.mT.contiguous().mT
        moved = []
        for capturable in (False, True):
            w = ManifoldParameter(x.clone(), manifold=OrthogonalGroup())
            w.grad = gradient
            optimizer = SRCD([w], 0.1, Matching(), capturable=capturable)
            step = optimizer.step
            if capturable:
                step = torch.compile(step, backend="aot_eager", fullgraph=True)
            for _ in range(3):
                step()
            moved.append(w.detach())
        assert (moved[0] - moved[1]).abs().max() < 1e-6
        assert (moved[0] - x).abs().max() > 1e-2


@quiet
@pytest.mark.parametrize("capturable", [True, False])
def test_a_compiled_training_step(capturable):
    torch.compiler.reset()
    models, optimizers = [], []
    for _ in range(2):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
        constrain(model[0], "weight", OrthogonalGroup())
        models.append(model)
        optimizers.append(
            SRCD(model.parameters(), 0.05, Grouping(3), Adam(), capturable=capturable)
        )

    def train(model, optimizer, x):
        optimizer.zero_grad()
        loss = (model(x) - x.sum(-1, keepdim=True)).square().mean()
        loss.backward()
        optimizer.step()
        return loss.detach()

    compiled = torch.compile(train, backend="aot_eager")
    losses = []
    for _ in range(20):
        x = torch.randn(32, 4)
        losses.append(train(models[0], optimizers[0], x))
        assert abs(losses[-1] - compiled(models[1], optimizers[1], x)) < 1e-4
        optimizers[1].restore()
    assert losses[-1] < losses[0] / 2
    # A step that counts on the host is made as it is.
    number = optimizers[1].state[models[1][0].weight]["step"]
    assert isinstance(number, torch.Tensor) is capturable


@compiles
@quiet
def test_pairs_are_left_alone_by_a_compiler():
    torch.compiler.reset()
    manifold = OrthogonalGroup()
    x, g = manifold.random(6, 6), torch.randn(6, 6)
    block = Groups(torch.tensor([[0, 3], [1, 5]]))
    t = torch.zeros(2, 2, 2)
    t[:, 0, 1], t[:, 1, 0] = 0.3, -0.3

    @torch.no_grad()
    def both(x, g, t):
        return manifold.derivatives(x, g, block), manifold.move_(x.clone(), block, t)

    calls = []

    def backend(graph, _):
        calls.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    compiled = torch.compile(both, backend=backend, fullgraph=True)(x, g, t)
    for found, expected in zip(compiled, both(x, g, t), strict=True):
        assert torch.equal(found, expected)
    assert {"givens.slopes", "givens.rotate_columns_"} <= {
        c.removesuffix(".default") for c in calls
    }
