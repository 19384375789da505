"""What a user of torch.optim expects of an optimizer."""

import copy
import gc
import io
import math
import pickle
import weakref
from dataclasses import dataclass

import pytest
import torch
from geoopt import ManifoldParameter, Sphere
from torch import Tensor, nn
from torch.optim import lr_scheduler

from givens.manifolds import CoordinateBlock, Coordinates, OrthogonalGroup, constrain
from givens.optim import SRCD, SRGD, Block, Cyclic, GaussSouthwell, GradientView, Uniform
from givens.optim.base import ManifoldOptimizer

MANIFOLD = OrthogonalGroup()


@dataclass(frozen=True)
class UniformButNot:
    """A user's selection: uniform, except for one coordinate."""

    left_out: int

    def select(self, view: GradientView) -> CoordinateBlock:
        index = view.random.integers(view.num_coordinates - 1, *view.batch, 1)
        return Coordinates(index + (index >= self.left_out).long(), disjoint=True)


class LastPair:
    """A user's selection that knows nothing but how to select."""

    def select(self, view):
        index = torch.tensor([view.num_coordinates - 1])
        return Coordinates(index.expand(*view.batch, 1), disjoint=True)


class Highest:
    """A user's rule."""

    def choose(self, view, k):
        return torch.arange(k).expand(*view.batch, k)


def srcd(selection, **options):
    return lambda params, lr=0.1, **more: SRCD(params, lr, selection, **options, **more)


def srgd(**options):
    return lambda params, lr=0.1, **more: SRGD(params, lr, **options, **more)


OPTIMIZERS = {
    "srgd": srgd(),
    "srgd with everything": srgd(momentum=0.9, nesterov=True, weight_decay=0.01, map="retr"),
    "srgd of low rank": srgd(rank=1, seed=5),
    "uniform": srcd(Uniform(), seed=7),
    "cyclic": srcd(Cyclic()),
    "gauss-southwell": srcd(GaussSouthwell()),
    "block": srcd(Block(fraction=0.4, rule=Uniform())),
    "disjoint block": srcd(Block(size=2, rule=Cyclic(), disjoint=True)),
    "user's": srcd(UniformButNot(1)),
    "user's without a repr": srcd(LastPair()),
    "user's rule without a repr": srcd(Block(size=3, rule=Highest())),
}
every_optimizer = pytest.mark.parametrize("build", OPTIMIZERS.values(), ids=OPTIMIZERS)


class Model(nn.Module):
    """Two orthogonal matrices and two plain parameters, with a loss that needs all of them."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = ManifoldParameter(MANIFOLD.random(5, 5, generator=generator), MANIFOLD)
        self.bias = nn.Parameter(torch.randn(5, generator=generator))
        self.pair = ManifoldParameter(MANIFOLD.random(2, 4, 4, generator=generator), MANIFOLD)
        self.scale = nn.Parameter(torch.tensor(1.5))

    def loss(self) -> Tensor:
        target = torch.arange(25.0).view(5, 5).sin()
        first = (self.first * self.scale + self.bias - target).square().sum()
        return first + (self.pair.cumsum(-1) * torch.arange(4)).cos().sum()


def step(model: Model, optimizer: torch.optim.Optimizer) -> Tensor:
    optimizer.zero_grad()
    loss = model.loss()
    loss.backward()
    optimizer.step()
    return loss.detach()


def values(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def assert_equal(one: list[Tensor], other: list[Tensor]) -> None:
    """To the last bit."""
    for p, q in zip(one, other, strict=True):
        assert torch.equal(p, q)


def through_a_file(state: dict) -> dict:
    """As ``torch.load`` reads it with its defaults, which execute nothing."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file)


# Groups


def test_every_group_has_its_own_options():
    """One optimizer with groups is as many optimizers."""
    together, apart = Model(), Model()
    one = SRCD(
        [
            {"params": [together.first], "lr": 0.2, "selection": GaussSouthwell()},
            {
                "params": [together.pair],
                "selection": Block(size=2, disjoint=True),
                "maximize": True,
            },
            {"params": [together.bias, together.scale], "lr": 0.01},
        ],
        0.1,
        Cyclic(),
    )
    many = [
        SRCD([apart.first], 0.2, GaussSouthwell()),
        SRCD([apart.pair], 0.1, Block(size=2, disjoint=True), maximize=True),
        SRCD([apart.bias, apart.scale], 0.01),
    ]
    for _ in range(5):
        step(together, one)
        for optimizer in many:
            optimizer.zero_grad()
        apart.loss().backward()
        for optimizer in many:
            optimizer.step()
    assert_equal(values(together), values(apart))


@every_optimizer
def test_a_group_can_be_added_later(build):
    model, twin = Model(), Model()
    optimizer = build([model.first])
    optimizer.add_param_group({"params": [model.bias, model.pair, model.scale], "lr": 0.05})
    other = build(
        [{"params": [twin.first]}, {"params": [twin.bias, twin.pair, twin.scale], "lr": 0.05}]
    )
    for _ in range(3):
        step(model, optimizer)
        step(twin, other)
    assert_equal(values(model), values(twin))


def off_the_manifold() -> ManifoldParameter:
    return ManifoldParameter(torch.ones(3, 3), manifold=MANIFOLD)


BAD_GROUPS = {
    "negative lr": (lambda p: {"params": [p], "lr": -0.1}, ValueError, r"lr=-0\.1.*0 or more"),
    "NaN lr": (lambda p: {"params": [p], "lr": math.nan}, ValueError, "lr=nan.*finite"),
    "infinite lr": (lambda p: {"params": [p], "lr": math.inf}, ValueError, "lr=inf.*finite"),
    "off the manifold": (
        lambda p: {"params": [p, off_the_manifold()]},
        ValueError,
        r"shape \(3, 3\), torch\.float32, is no point of OrthogonalGroup.*\|xᵀx − I\|.*projx",
    ),
    "twice": (lambda p: {"params": [p, p]}, (ValueError, UserWarning), "duplicate"),
    "no parameter": (lambda p: {"params": ["weight"]}, TypeError, "can only optimize Tensors"),
}


@pytest.mark.parametrize(("group", "error", "message"), BAD_GROUPS.values(), ids=BAD_GROUPS)
@every_optimizer
def test_a_bad_group_is_refused_and_leaves_the_optimizer_as_it_was(build, group, error, message):
    model, twin = Model(), Model()
    optimizer = build([model.first, model.bias])
    with pytest.raises(error, match=message):
        optimizer.add_param_group(group(model.pair))
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": [model.pair, model.scale]})
    other = build([twin.first, twin.bias])
    other.add_param_group({"params": [twin.pair, twin.scale]})
    step(model, optimizer)
    step(twin, other)
    assert_equal(values(model), values(twin))


@pytest.mark.parametrize(("group", "error", "message"), BAD_GROUPS.values(), ids=BAD_GROUPS)
@every_optimizer
def test_a_bad_group_is_refused_by_the_constructor(build, group, error, message):
    with pytest.raises(error, match=message):
        build([group(Model().first)])


@every_optimizer
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_manifold_parameter_of_half_precision_is_refused(build, dtype):
    p = ManifoldParameter(torch.eye(3, dtype=dtype), manifold=MANIFOLD)
    with pytest.raises(ValueError, match=rf"{dtype}.*float32 and float64"):
        build([p])


@every_optimizer
def test_a_point_that_is_not_finite_is_refused(build):
    p = ManifoldParameter(torch.eye(3) * math.nan, manifold=MANIFOLD)
    with pytest.raises(ValueError, match="is no point of OrthogonalGroup"):
        build([p])


def test_srcd_refuses_a_group_without_coordinates():
    model = Model()
    optimizer = SRCD([model.first], 0.1)
    point = ManifoldParameter(torch.tensor([0.0, 1.0]), manifold=Sphere())
    with pytest.raises(TypeError, match="no coordinates"):
        optimizer.add_param_group({"params": [model.bias, point]})
    with pytest.raises(TypeError, match="selection="):
        optimizer.add_param_group({"params": [model.bias], "selection": Uniform})
    assert len(optimizer.param_groups) == 1


@every_optimizer
def test_names_of_parameters_change_nothing_but_messages(build):
    model, twin = Model(), Model()
    named, plain = build(model.named_parameters()), build(twin.parameters())
    for _ in range(3):
        step(model, named)
        step(twin, plain)
    assert_equal(values(model), values(twin))
    assert named.state_dict()["param_groups"][0]["param_names"] == [
        name for name, _ in model.named_parameters()
    ]
    model.pair.grad.fill_(math.nan)
    with pytest.raises(FloatingPointError, match=r"'pair' of shape \(2, 4, 4\)"):
        named.step()


# A step


@every_optimizer
def test_a_closure_is_called_once_with_gradients_enabled(build):
    model, twin = Model(), Model()
    optimizer, other = build(model.parameters()), build(twin.parameters())
    calls = []

    def closure() -> Tensor:
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = model.loss()
        loss.backward()
        return loss

    with torch.no_grad():
        loss = optimizer.step(closure)
    assert calls == [True]
    assert loss.requires_grad
    assert torch.equal(loss.detach(), step(twin, other))
    assert_equal(values(model), values(twin))
    assert other.step() is None


@every_optimizer
def test_a_gradient_is_not_modified(build):
    model = Model()
    optimizer = build(model.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        model.loss().backward()
        before = [p.grad.clone() for p in model.parameters()]
        optimizer.step()
        assert_equal(before, [p.grad for p in model.parameters()])


@every_optimizer
def test_a_parameter_stays_the_leaf_that_it_was(build):
    model = Model()
    before = [(id(p), p.data_ptr()) for p in model.parameters()]
    step(model, build(model.parameters()))
    for p, (name, address) in zip(model.parameters(), before, strict=True):
        assert id(p) == name
        assert p.data_ptr() == address
        assert p.is_leaf
        assert p.requires_grad
    assert isinstance(model.first, ManifoldParameter)


# Weight decay is no part of the function: torch.optim.SGD, too, shrinks while it ascends.
@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "srgd with everything"])
def test_maximizing_is_minimizing_the_negative(name):
    model, twin = Model(), Model()
    up = OPTIMIZERS[name](model.parameters(), maximize=True)
    down = OPTIMIZERS[name](twin.parameters())
    for _ in range(3):
        step(model, up)
        down.zero_grad()
        (-twin.loss()).backward()
        down.step()
    assert_equal(values(model), values(twin))


@every_optimizer
def test_a_parameter_without_a_gradient_is_skipped_with_its_counters(build):
    """As if its steps had never been."""
    model, twin = Model(), Model()
    optimizer, other = build(model.parameters()), build(twin.parameters())
    before = values(model)
    optimizer.step()
    assert_equal(values(model), before)
    assert not optimizer.state
    for skip in (False, True, True, False):
        optimizer.zero_grad()
        other.zero_grad()
        model.loss().backward()
        twin.pair.grad = model.pair.grad.clone()
        if skip:
            model.pair.grad = None
        optimizer.step()
        if not skip:
            other.step()
    assert torch.equal(model.pair, twin.pair)
    state, expected = optimizer.state[model.pair], other.state[twin.pair]
    assert {k: v for k, v in state.items() if not isinstance(v, Tensor)} == {
        k: v for k, v in expected.items() if not isinstance(v, Tensor)
    }


@every_optimizer
@pytest.mark.parametrize("first", [True, False])
def test_a_sparse_gradient_is_refused_before_anything_changes(build, first):
    table = nn.Embedding(5, 3, sparse=True)
    model = Model()
    params = [*table.parameters(), *model.parameters()]
    optimizer = build(params if first else params[::-1])
    model.loss().backward()
    table(torch.tensor([1, 2])).sum().backward()
    before = [p.detach().clone() for p in params]
    with pytest.raises(RuntimeError, match=r"\(5, 3\) has layout torch\.sparse_coo.*sparse=False"):
        optimizer.step()
    assert_equal([p.detach() for p in params], before)
    assert not optimizer.state


@every_optimizer
def test_hooks_run(build):
    model = Model()
    optimizer = build(model.parameters())
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    optimizer.register_state_dict_post_hook(lambda _, state: seen.append("saved"))
    optimizer.register_load_state_dict_pre_hook(lambda _, state: seen.append("loaded"))
    step(model, optimizer)
    optimizer.load_state_dict(optimizer.state_dict())
    assert seen == ["before", "after", "saved", "loaded"]


@every_optimizer
def test_a_gradient_scaler_skips_an_infinite_gradient(build):
    model, twin = Model(), Model()
    optimizer, other = build(model.parameters()), build(twin.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    for overflow in (False, True, False):
        optimizer.zero_grad()
        scaler.scale(model.loss()).backward()
        if overflow:
            model.first.grad[0, 0] = math.inf
        scaler.step(optimizer)
        scaler.update()
        if not overflow:
            step(twin, other)
    for p, q in zip(values(model), values(twin), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-5)


@every_optimizer
def test_nothing_holds_an_optimizer_that_is_no_longer_used(build):
    model = Model()
    optimizer = build(model.parameters())
    step(model, optimizer)
    gone = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert gone() is None


def test_one_line_makes_a_weight_orthogonal():
    layer = constrain(nn.Linear(6, 6), "weight", MANIFOLD)
    optimizer = SRCD(layer.parameters(), 0.1, GaussSouthwell())
    inputs = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    losses = []
    for _ in range(50):
        optimizer.zero_grad()
        loss = (layer(inputs) - inputs.flip(-1)).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert MANIFOLD.check_point_on_manifold(layer.weight, atol=1e-6)


# The learning rate


@every_optimizer
def test_a_rate_of_zero_changes_no_parameter(build):
    model = Model()
    optimizer = build(model.parameters(), lr=0.0)
    before = values(model)
    step(model, optimizer)
    assert_equal(values(model), before)
    # A restoration may round, once a sweep, and no more than that.
    for _ in range(60):
        step(model, optimizer)
    for p, q in zip(values(model), before, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=3e-7)


@every_optimizer
@pytest.mark.parametrize("lr", [-1e-9, -1.0, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_a_rate_that_is_no_rate_is_refused(build, lr, as_tensor):
    model = Model()
    optimizer = build([{"params": [model.first]}, {"params": [model.pair, model.bias]}])
    model.loss().backward()
    bad = torch.tensor(lr) if as_tensor else lr
    with pytest.raises(ValueError, match=r"lr=.*finite learning rate, 0 or more"):
        build(model.parameters(), lr=bad)
    before = values(model)
    optimizer.param_groups[1]["lr"] = bad  # by hand, or by a scheduler
    with pytest.raises(ValueError, match=r"lr=.*finite learning rate, 0 or more"):
        optimizer.step()
    assert_equal(values(model), before)
    assert not optimizer.state


@every_optimizer
def test_a_scheduler_that_sets_a_negative_rate_is_found_out(build):
    model = Model()
    optimizer = build(model.parameters())
    scheduler = lr_scheduler.LambdaLR(optimizer, lambda epoch: 1.0 - epoch)
    step(model, optimizer)
    scheduler.step()
    step(model, optimizer)  # a rate of 0
    scheduler.step()
    before = values(model)
    with pytest.raises(ValueError, match=r"lr=-0\.1"):
        step(model, optimizer)
    assert_equal(values(model), before)


SCHEDULERS = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.9**epoch),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda epoch: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [1, 3]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.5, 2),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.1, 1.0, 4),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.8),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 4),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 4),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, 2, cycle_momentum=False),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=8, cycle_momentum=False),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.5, 2), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.5, 2), lr_scheduler.ExponentialLR(o, 0.9)], [2]
    ),
    "SWALR": lambda o: torch.optim.swa_utils.SWALR(o, 0.02, anneal_epochs=3),
}


@pytest.mark.filterwarnings("ignore:The epoch parameter in:UserWarning")  # SequentialLR's own
@pytest.mark.parametrize("make", SCHEDULERS.values(), ids=SCHEDULERS)
@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1)], ids=["number", "tensor"])
@pytest.mark.parametrize("name", ["srgd with everything", "uniform", "gauss-southwell"])
def test_the_rate_of_a_scheduler_arrives_in_the_step(name, make, lr):
    """Beside an optimizer whose rate is set by hand."""
    build = OPTIMIZERS[name]
    model, twin = Model(), Model()
    optimizer = build(model.parameters(), lr=copy.deepcopy(lr))
    other = build(twin.parameters(), lr=0.1)
    scheduler = make(optimizer)
    rates = set()
    for _ in range(6):
        rate = float(optimizer.param_groups[0]["lr"])
        rates.add(rate)
        other.param_groups[0]["lr"] = rate
        step(model, optimizer)
        step(twin, other)
        if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
            scheduler.step(1.0)
        else:
            scheduler.step()
    assert len(rates) > 1
    for p, q in zip(values(model), values(twin), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-4)


def test_a_scheduler_cycles_the_momentum():
    model = Model()
    optimizer = SRGD(model.parameters(), 0.1, momentum=0.9)
    scheduler = lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=5)
    momenta = set()
    for _ in range(4):
        step(model, optimizer)
        momenta.add(optimizer.param_groups[0]["momentum"])
        scheduler.step()
    assert len(momenta) > 1


# Saving and loading


@every_optimizer
def test_a_loaded_run_is_the_unbroken_run(build):
    """Bit for bit, across a file: momentum, random choices, cycles, and the restoration's counter."""
    model = Model()
    optimizer = build(model.parameters())
    for _ in range(7):
        step(model, optimizer)
    saved = through_a_file({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    for _ in range(17):
        step(model, optimizer)

    torch.manual_seed(123)
    resumed = Model()
    continued = build(resumed.parameters(), lr=0.7)
    step(resumed, continued)  # has a state of its own, which is replaced
    resumed.load_state_dict(saved["model"])
    continued.load_state_dict(saved["optimizer"])
    for _ in range(17):
        step(resumed, continued)
    assert_equal(values(model), values(resumed))
    assert_same_state(continued.state_dict(), optimizer.state_dict())


def assert_same_state(one: dict, other: dict) -> None:
    assert one["param_groups"] == other["param_groups"]
    assert one["state"].keys() == other["state"].keys()
    for number, entries in one["state"].items():
        assert entries.keys() == other["state"][number].keys()
        for key, value in entries.items():
            expected = other["state"][number][key]
            assert torch.equal(value, expected) if isinstance(value, Tensor) else value == expected


@every_optimizer
def test_a_state_is_plain_data(build):
    """And not the optimizer's own, which goes on."""
    model = Model()
    optimizer = build(model.parameters())
    state = optimizer.state_dict()
    kept = copy.deepcopy(state)
    step(model, optimizer)
    assert_same_state(state, kept)
    state["param_groups"][0]["lr"] = 99.0
    assert optimizer.param_groups[0]["lr"] == 0.1

    def check(item: object) -> None:
        if isinstance(item, dict):
            for key, value in item.items():
                check(key)
                check(value)
        elif isinstance(item, list | tuple):
            for value in item:
                check(value)
        else:
            assert item is None or type(item) in (int, float, bool, str, Tensor), type(item)

    check(optimizer.state_dict())


@every_optimizer
def test_loading_does_not_share_the_saved_tensors(build):
    model = Model()
    optimizer = build(model.parameters())
    step(model, optimizer)
    state = optimizer.state_dict()
    kept = copy.deepcopy(state)
    twin = Model()
    other = build(twin.parameters())
    other.load_state_dict(state)
    for _ in range(10):
        step(twin, other)
    assert_same_state(state, kept)


def test_a_counter_survives_where_float32_ends():
    """Cyclic's place at steps past 2²⁴, and the restoration's count."""
    total = 10
    for start in (2**24 - 1, 2**24 + 1, 2**53 + 1):
        p = ManifoldParameter(torch.eye(5), manifold=MANIFOLD)
        p.grad = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))
        optimizer = SRCD([p], 0.1, Cyclic())
        optimizer.step()
        state = optimizer.state_dict()
        state["state"][0]["step"] = start
        optimizer.load_state_dict(through_a_file(state))
        for count in range(4):
            before = p.detach().clone()
            optimizer.step()
            moved = (p != before).any(0).nonzero().flatten()
            turned = MANIFOLD.axes(p, torch.tensor([(start + count) % total])).flatten()
            assert moved.tolist() == turned.tolist()
        assert optimizer.state_dict()["state"][0]["step"] == start + 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_momentum_keeps_its_precision_and_a_count_its_type(dtype):
    p = ManifoldParameter(torch.eye(4, dtype=dtype), manifold=MANIFOLD)
    p.grad = torch.randn(4, 4, dtype=dtype, generator=torch.Generator().manual_seed(0))
    optimizer = SRGD([p], 0.1, momentum=0.9)
    optimizer.step()
    buffer = optimizer.state[p]["momentum_buffer"]
    optimizer.load_state_dict(through_a_file(optimizer.state_dict()))
    assert torch.equal(optimizer.state[p]["momentum_buffer"], buffer)
    assert optimizer.state[p]["momentum_buffer"].dtype == dtype
    assert type(optimizer.state[p]["moved"]) is int


# What an SRCD with Block(size=2) over the parameters of a model must not load.
FOREIGN = {
    "SGD": (lambda ps: torch.optim.SGD(ps, 0.1, momentum=0.9), "not one of SRCD.*selection"),
    "Adam": (lambda ps: torch.optim.Adam(ps), "not one of SRCD.*selection"),
    "SRGD": (lambda ps: SRGD(ps, 0.1, momentum=0.9), "not one of SRCD.*selection"),
    "another selection": (
        lambda ps: SRCD(ps, 0.1, Uniform()),
        r"selection=Uniform\(\), this optimizer has Block\(size=2",
    ),
    "another block": (lambda ps: SRCD(ps, 0.1, Block(size=3)), "size=3.*size=2"),
    "two groups": (
        lambda ps: SRCD([{"params": ps[:2]}, {"params": ps[2:]}], 0.1, Block(size=2)),
        "2 parameter groups, this optimizer 1",
    ),
    "fewer parameters": (lambda ps: SRCD(ps[:2], 0.1, Block(size=2)), "parameter group"),
}


def assert_refused(state: dict, message: str) -> None:
    """By an optimizer that has done a step, which goes on as if it had not been asked."""
    model, twin = Model(), Model()
    optimizer, other = (SRCD(m.parameters(), 0.25, Block(size=2)) for m in (model, twin))
    step(model, optimizer)
    step(twin, other)
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(state)
    assert_same_state(optimizer.state_dict(), other.state_dict())
    step(model, optimizer)
    step(twin, other)
    assert_equal(values(model), values(twin))


@pytest.mark.parametrize(("build", "message"), FOREIGN.values(), ids=FOREIGN)
def test_a_foreign_state_is_refused_and_changes_nothing(build, message):
    model = Model()
    optimizer = build([*model.parameters()])
    step(model, optimizer)
    assert_refused(optimizer.state_dict(), message)


def test_a_damaged_state_is_refused_and_changes_nothing():
    model = Model()
    optimizer = SRCD(model.parameters(), 0.1, Block(size=2))
    step(model, optimizer)
    state = optimizer.state_dict()
    assert_refused({**state, "param_groups": []}, "0 parameter groups, this optimizer 1")
    damaged = copy.deepcopy(state)
    damaged["param_groups"][0]["lr"] = math.nan
    assert_refused(damaged, "lr=nan")


def test_a_momentum_of_other_shapes_is_refused_and_changes_nothing():
    def run(*sizes: int) -> tuple[SRGD, list[ManifoldParameter]]:
        ps = [ManifoldParameter(torch.eye(d), manifold=MANIFOLD) for d in sizes]
        optimizer = SRGD(ps, 0.1, momentum=0.9)
        for p in ps:
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(0))
        optimizer.step()
        return optimizer, ps

    optimizer, ps = run(3, 4)
    kept, before = copy.deepcopy(optimizer.state_dict()), [p.detach().clone() for p in ps]
    with pytest.raises(ValueError, match=r"momentum_buffer of parameter 1.*\(5, 5\).*\(4, 4\)"):
        optimizer.load_state_dict(run(3, 5)[0].state_dict())
    assert_same_state(optimizer.state_dict(), kept)
    assert_equal(ps, before)


@pytest.mark.parametrize("selection", [Uniform(), LastPair()], ids=["ours", "user's"])
def test_loading_keeps_the_selection_itself(selection):
    """Not a copy: a user's selection may hold more than settings."""
    model = Model()
    optimizer = SRCD(model.parameters(), 0.1, selection)
    optimizer.load_state_dict(SRCD(Model().parameters(), 0.3, type(selection)()).state_dict())
    assert optimizer.param_groups[0]["selection"] is selection
    assert optimizer.param_groups[0]["lr"] == 0.3


def test_a_state_does_not_depend_on_where_objects_lie_in_memory():
    """Two runs of a program must understand each other."""

    def state() -> dict:
        rules = [Highest() for _ in range(3)]  # alive at once, so at three addresses
        groups = [
            {"params": [nn.Parameter(torch.ones(1))], "selection": Block(size=1, rule=rule)}
            for rule in rules
        ]
        return SRCD(groups, 0.1).state_dict()

    texts = {group["selection"] for group in state()["param_groups"]}
    assert len(texts) == 1
    assert "Highest" in texts.pop()


def test_srgd_refuses_a_foreign_state_too():
    model = Model()
    optimizer = SRGD(model.parameters(), 0.1)
    for other in (SRCD(model.parameters(), 0.1), torch.optim.SGD(model.parameters(), 0.1)):
        with pytest.raises(ValueError, match="not one of SRGD: its parameter groups lack"):
            optimizer.load_state_dict(other.state_dict())


@every_optimizer
@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))],
    ids=["deepcopy", "pickle"],
)
def test_a_copy_goes_on_alike_and_apart(build, copied):
    model = Model()
    optimizer = build(model.parameters())
    for _ in range(5):
        step(model, optimizer)
    twin, other = copied((model, optimizer))
    assert isinstance(twin.first, ManifoldParameter)
    assert other.param_groups[0]["params"][0] is twin.first
    start = values(model)
    for _ in range(12):
        step(twin, other)
    assert_equal(values(model), start)
    for _ in range(12):
        step(model, optimizer)
    assert_equal(values(model), values(twin))
    other.check_finite()


# What it says of itself


def test_it_shows_its_options():
    params = [nn.Parameter(torch.ones(2))]
    shown = repr(SRCD(params, 0.25, Block(fraction=0.005, disjoint=True), seed=3))
    assert shown.startswith("SRCD (")
    assert "lr: 0.25" in shown
    assert "selection: Block(" in shown
    assert "fraction=0.005" in shown
    assert "disjoint=True" in shown
    assert "seed: 3" in shown
    shown = repr(SRGD(params, 0.25, momentum=0.5, map="retr"))
    assert shown.startswith("SRGD (")
    assert "momentum: 0.5" in shown
    assert "map: retr" in shown


@pytest.mark.parametrize("build", [SRCD, SRGD])
def test_it_is_an_optimizer(build):
    optimizer = build([nn.Parameter(torch.ones(2))], 0.1)
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert isinstance(optimizer, ManifoldOptimizer)
    with pytest.raises(ValueError, match="empty parameter list"):
        build([], 0.1)
    with pytest.raises(TypeError, match="iterable"):
        build(torch.ones(2), 0.1)
    with pytest.raises(TypeError, match="lr"):
        build([nn.Parameter(torch.ones(2))])
