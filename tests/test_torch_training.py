"""Torch's ways of training, and its ways of writing to a parameter behind an optimizer's back."""

import copy
import io
import math

import pytest
import torch
from geoopt import ManifoldParameter
from hypothesis import given
from hypothesis import strategies as st
from strategies import Noise, defect, error, noises
from torch import nn
from torch.func import functional_call

from givens.manifolds import OrthogonalGroup, Stiefel, constrain
from givens.optim import (
    SRCD,
    SRGD,
    Adam,
    AxisRMSProp,
    Block,
    Cyclic,
    GaussSouthwell,
    Matching,
    Momentum,
    RMSProp,
    Uniform,
)

GROUP = OrthogonalGroup()
INPUTS = Noise(0).normal(8, 5).float()


def srcd(*args, **options):
    return lambda params, lr=0.05: SRCD(params, lr, *args, **options)


def srgd(**options):
    return lambda params, lr=0.05: SRGD(params, lr, **options)


# No choice of theirs depends on a parameter's number.
DEALT_ALIKE = {
    "srgd": srgd(),
    "srgd momentum": srgd(momentum=0.9, nesterov=True),
    "srgd adam": srgd(scaling=Adam()),
    "cyclic": srcd(Cyclic()),
    "cyclic adam": srcd(Cyclic(), Adam(clock="steps")),
    "gauss-southwell": srcd(GaussSouthwell()),
    "block rmsprop": srcd(Block(size=3), RMSProp()),
}
RANDOM = {
    "uniform": srcd(Uniform(), seed=3),
    "uniform momentum": srcd(Uniform(), Momentum(0.5)),
    "matching axis rmsprop": srcd(Matching(), AxisRMSProp()),
}
OPTIMIZERS = DEALT_ALIKE | RANDOM
every_optimizer = pytest.mark.parametrize("build", OPTIMIZERS.values(), ids=OPTIMIZERS)


class Model(nn.Module):
    """An orthogonal layer, orthonormal columns and plain parameters."""

    def __init__(self):
        super().__init__()
        noise = Noise(1)
        self.hidden = constrain(nn.Linear(5, 5), "weight", GROUP)
        self.last = nn.Linear(3, 5)
        constrain(self.last, "weight", Stiefel())
        with torch.no_grad():
            self.hidden.weight.copy_(noise.point(5, 5))
            self.last.weight.copy_(noise.point(5, 5)[:, :3])
            for bias in (self.hidden.bias, self.last.bias):
                bias.copy_(noise.normal(5))

    def forward(self, x):
        return self.last(self.hidden(x).tanh()[:, :3])


def loss_of(model, inputs=INPUTS):
    return (model(inputs) - inputs).square().mean()


def step(model, optimizer, inputs=INPUTS):
    optimizer.zero_grad()
    loss_of(model, inputs).backward()
    optimizer.step()


def train(build, steps, model=None):
    model = Model() if model is None else model
    optimizer = build(model.parameters())
    for _ in range(steps):
        step(model, optimizer)
    return model, optimizer


def values(model):
    return [p.detach().clone() for p in model.parameters()]


def assert_equal(one, other):
    for p, q in zip(one, other, strict=True):
        assert torch.equal(p, q)


def assert_close(one, other):
    for p, q in zip(one, other, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-5)


def assert_same_state(one, other):
    """Of optimizers, to the last bit."""
    one, other = one["state"], other["state"]
    assert one.keys() == other.keys()
    for number, entries in one.items():
        assert entries.keys() == other[number].keys()
        for name, value in entries.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, other[number][name])
            else:
                assert value == other[number][name]


# Gradients, on their way to the step


@every_optimizer
def test_scaling_by_a_power_of_two_changes_no_bit(build):
    """Through underflow and overflow: a step that is skipped has never been."""
    model, twin = Model(), Model()
    optimizer, other = build(model.parameters()), build(twin.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20, growth_interval=2)
    for number in range(8):
        optimizer.zero_grad()
        scaler.scale(loss_of(model)).backward()
        skipped = number in (2, 3, 6)
        if skipped:
            model.last.bias.grad[0] = (math.inf, math.nan)[number % 2]
        before, kept = values(model), copy.deepcopy(optimizer.state_dict())
        scaler.step(optimizer)
        scaler.update()
        if skipped:
            assert_equal(values(model), before)
            assert_same_state(optimizer.state_dict(), kept)
        else:
            step(twin, other)
            assert_equal(values(model), values(twin))
    assert_same_state(optimizer.state_dict(), other.state_dict())


@every_optimizer
def test_gradients_that_are_unscaled_first_can_be_clipped(build):
    model, twin = Model(), Model()
    optimizer, other = build(model.parameters()), build(twin.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for _ in range(3):
        optimizer.zero_grad()
        scaler.scale(loss_of(model)).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        scaler.step(optimizer)
        scaler.update()
        other.zero_grad()
        loss_of(twin).backward()
        nn.utils.clip_grad_norm_(twin.parameters(), 0.1)
        other.step()
    assert_equal(values(model), values(twin))


@pytest.mark.parametrize("build", [srgd(), srcd(), srcd(GaussSouthwell()), srcd(Block(size=3))])
def test_clipping_the_norm_is_a_shorter_step(build):
    """Along the same coordinates: the choice of the steepest does not change."""
    model, twin = Model(), Model()
    optimizer, other = build(model.parameters()), build(twin.parameters())
    for m in (model, twin):
        loss_of(m).backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), 0.01)
    assert norm > 0.02
    other.param_groups[0]["lr"] *= 0.01 / float(norm)
    optimizer.step()
    other.step()
    assert_close(values(model), values(twin))


@pytest.mark.parametrize("build", [srgd(), srcd(GaussSouthwell())])
def test_clipping_values_is_done_before_the_step(build):
    model, twin = Model(), Model()
    optimizer, other = build(model.parameters()), build(twin.parameters())
    for m in (model, twin):
        loss_of(m).backward()
    nn.utils.clip_grad_value_(model.parameters(), 1e-3)
    for p in twin.parameters():
        p.grad = p.grad.clamp(-1e-3, 1e-3)
    optimizer.step()
    other.step()
    assert_equal(values(model), values(twin))


@every_optimizer
def test_gradients_accumulate(build):
    """Two halves of a batch are the batch."""
    model, twin = Model(), Model()
    optimizer, other = build(model.parameters()), build(twin.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        for half in INPUTS.split(4):
            (loss_of(model, half) / 2).backward()
        other.zero_grad()
        grads = [
            torch.autograd.grad(loss_of(twin, half) / 2, [*twin.parameters()])
            for half in INPUTS.split(4)
        ]
        for p, *parts in zip(twin.parameters(), *grads, strict=True):
            p.grad = sum(parts)
        optimizer.step()
        other.step()
    assert_equal(values(model), values(twin))
    whole, _ = train(build, 3)
    assert_close(values(model), values(whole))


# Many parameters, and parameters that rest


def matrices(count, seed=0):
    noise = Noise(seed)
    ps = [ManifoldParameter(noise.point(3, 3), manifold=GROUP) for _ in range(count)]
    grads = [[noise.normal(3, 3) for _ in ps] for _ in range(2)]
    return ps, grads


def follow(optimizers, ps, grads):
    for row in grads:
        for p, grad in zip(ps, row, strict=True):
            p.grad = grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    return [p.detach() for p in ps]


@pytest.mark.parametrize("name", ["srgd momentum", "cyclic adam", "block rmsprop"])
def test_many_parameters_are_as_many_optimizers_in_any_order(name):
    build, count = DEALT_ALIKE[name], 200
    ps, grads = matrices(count)
    together = follow([build(ps)], ps, grads)
    ps, _ = matrices(count)
    apart = follow([build([p]) for p in ps], ps, grads)
    ps, _ = matrices(count)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()
    shuffled = follow([build([ps[i] for i in order])], ps, grads)
    assert_equal(together, apart)
    assert_equal(together, shuffled)


@pytest.mark.parametrize("build", RANDOM.values(), ids=RANDOM)
def test_a_random_choice_depends_on_a_parameter_s_number_alone(build):
    """Not on its group, nor on what the others are and whether they have a gradient."""
    ps, grads = matrices(20)
    together = follow([build(ps)], ps, grads)
    ps, _ = matrices(20)
    grouped = follow([build([{"params": ps[:7]}, {"params": ps[7:]}])], ps, grads)
    assert_equal(together, grouped)
    ps, _ = matrices(20)
    others = [nn.Parameter(torch.ones(2)) for _ in ps[:-1]]
    alone = follow([build([*others, ps[-1]])], ps, grads)
    assert torch.equal(alone[-1], together[-1])
    ps, _ = matrices(20)
    first = follow([build(ps[-1:])], ps, grads)
    assert not torch.equal(first[-1], together[-1])


@every_optimizer
def test_what_is_frozen_stands_still_and_goes_on_where_it_stopped(build):
    """Its value, its moments and its counters; the others do not notice."""
    model, twin = Model(), Model()
    optimizer, other = build(model.parameters()), build(twin.parameters())
    weight = model.hidden.weight
    step(model, optimizer)
    step(twin, other)
    before, kept = weight.detach().clone(), copy.deepcopy(optimizer.state[weight])
    weight.requires_grad_(False)
    for _ in range(3):
        step(model, optimizer)
        other.zero_grad()
        loss_of(twin).backward()
        twin.hidden.weight.grad = None
        other.step()
    assert torch.equal(weight, before)
    assert_same_state({"state": {0: kept}}, {"state": {0: optimizer.state[weight]}})
    weight.requires_grad_(True)
    for _ in range(3):
        step(model, optimizer)
        step(twin, other)
    assert_equal(values(model), values(twin))


@pytest.mark.parametrize("build", DEALT_ALIKE.values(), ids=DEALT_ALIKE)
def test_a_group_that_comes_later_starts_from_nothing_and_disturbs_nothing(build):
    model, twin = Model(), Model()
    optimizer, first = build(model.hidden.parameters()), build(twin.hidden.parameters())
    for _ in range(3):
        step(model, optimizer)
        step(twin, first)
    model.zero_grad()
    twin.zero_grad()
    optimizer.add_param_group({"params": [*model.last.parameters()]})
    second = build(twin.last.parameters())
    for _ in range(3):
        step(model, optimizer)
        twin.zero_grad()
        loss_of(twin).backward()
        first.step()
        second.step()
    assert_equal(values(model), values(twin))


# Models that are called in other ways


@pytest.mark.skipif(
    torch.__version__ < (2, 8),
    reason="before torch 2.8 a read of a subclass of Parameter breaks the graph",
)
@pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0:RuntimeWarning")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_model_is_trained_like_itself(backend):
    for build in (OPTIMIZERS["srgd momentum"], OPTIMIZERS["uniform momentum"]):
        plain, _ = train(build, 4)
        model = Model()
        compiled = torch.compile(model, backend=backend, fullgraph=True)
        train(build, 4, compiled)
        assert_close(values(model), values(plain))
        assert_equal(values(compiled), values(model))
        assert isinstance(compiled.hidden.weight, ManifoldParameter)
    torch._dynamo.reset()


@every_optimizer
def test_gradients_of_functional_calls_are_gradients(build):
    model, twin = Model(), Model()
    optimizer, other = build(model.parameters()), build(twin.parameters())
    for _ in range(3):
        detached = {name: p.detach() for name, p in model.named_parameters()}
        grads = torch.func.grad(
            lambda ps: (functional_call(model, ps, INPUTS) - INPUTS).square().mean()
        )(detached)
        for name, p in model.named_parameters():
            p.grad = grads[name]
        optimizer.step()
        step(twin, other)
    assert_close(values(model), values(twin))
    assert all(isinstance(m.weight, ManifoldParameter) for m in (model.hidden, model.last))


class Tied(nn.Module):
    """One orthogonal matrix in two layers."""

    def __init__(self):
        super().__init__()
        self.encode = constrain(nn.Linear(5, 5), "weight", GROUP)
        self.decode = nn.Linear(5, 5)
        self.decode.weight = self.encode.weight

    def forward(self, x):
        return self.decode(self.encode(x).tanh())


@every_optimizer
def test_a_shared_matrix_is_moved_once(build):
    torch.manual_seed(0)
    model = Tied()
    twin = copy.deepcopy(model)
    assert twin.decode.weight is twin.encode.weight
    assert twin.encode.weight is not model.encode.weight
    assert len([*model.parameters()]) == 3
    optimizer, other = (
        build(model.parameters()),
        build([*twin.encode.parameters(), twin.decode.bias]),
    )
    for _ in range(3):
        step(model, optimizer)
        step(twin, other)
    assert_equal(values(model), values(twin))
    assert optimizer.state[model.encode.weight]
    state = model.state_dict()
    assert torch.equal(state["encode.weight"], state["decode.weight"])
    loaded = Tied()
    loaded.load_state_dict(state)
    assert loaded.decode.weight is loaded.encode.weight
    assert_equal(values(loaded), values(model))


@every_optimizer
def test_a_model_in_shared_memory_trains_on(build):
    model, optimizer = train(build, 2)
    model.share_memory()
    assert model.hidden.weight.is_shared()
    twin, other = train(build, 2)
    for _ in range(2):
        step(model, optimizer)
        step(twin, other)
    assert_equal(values(model), values(twin))


@every_optimizer
def test_a_whole_module_goes_through_a_file_and_trains_on(build):
    model, optimizer = train(build, 3)
    file = io.BytesIO()
    torch.save((model, optimizer), file)
    file.seek(0)
    twin, other = torch.load(file, weights_only=False)
    assert other.param_groups[0]["params"][0] is twin.hidden.weight
    for _ in range(3):
        step(model, optimizer)
        step(twin, other)
    assert_equal(values(model), values(twin))


# Another type of numbers


@every_optimizer
def test_a_model_that_becomes_double_trains_on(build):
    """With moments that were float32; what follows is as precise as they were."""
    model, optimizer = train(build, 3)
    twin, other = train(build, 3)
    model.double()
    for _ in range(5):
        step(model, optimizer, INPUTS.double())
        step(twin, other)
    assert model.hidden.weight.dtype == torch.float64
    for p, q in zip(values(model), values(twin), strict=True):
        assert error(p, q) <= 2e-2
    assert defect(model.hidden.weight) <= 1e-6


@every_optimizer
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_that_becomes_half_is_refused(build, dtype):
    """And has lost its precision for good, which is noticed too."""
    model, optimizer = train(build, 2)
    kept = copy.deepcopy(optimizer.state_dict())
    model.to(dtype)
    before = values(model)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    with pytest.raises(
        ValueError, match=rf"parameter 0 of shape \(5, 5\).*{dtype}.*float32 and float64"
    ):
        optimizer.step()
    assert_equal(values(model), before)
    model.float()
    with pytest.raises(ValueError, match=r"was written to.*no point of OrthogonalGroup.*projx"):
        optimizer.step()
    assert_equal(values(model), [value.float() for value in before])
    assert_same_state(optimizer.state_dict(), kept)
    with torch.no_grad():
        for layer in (model.hidden, model.last):
            layer.weight.copy_(layer.weight.manifold.projx(layer.weight))
    optimizer.step()
    assert defect(model.hidden.weight) <= 1e-6


# What others write


def write(p, value):
    with torch.no_grad():
        p.copy_(value)


def assign_data(p, value):
    p.data = value.clone()


def write_vector(p, value):
    nn.utils.vector_to_parameters(value.flatten(), [p])


def write_and_touch_the_rest(p, value):
    with torch.no_grad():
        for row, new in zip(p, value, strict=True):
            row.copy_(new)


class Only(nn.Module):
    def __init__(self, p):
        super().__init__()
        self.p = p


def load(p, value):
    Only(p).load_state_dict({"p": value})


WRITES = {
    "copy_": write,
    "load_state_dict": load,
    "data": assign_data,
    "vector_to_parameters": write_vector,
    "row by row": write_and_touch_the_rest,
}
every_write = pytest.mark.parametrize("put", WRITES.values(), ids=WRITES)


@every_write
@every_optimizer
def test_values_off_the_manifold_are_refused_at_the_next_step(build, put):
    model, optimizer = train(build, 2)
    kept = copy.deepcopy(optimizer.state_dict())
    point = model.hidden.weight.detach().clone()
    put(model.hidden.weight, 2 * point)
    before = values(model)
    for _ in range(2):  # as long as they are there
        with pytest.raises(
            ValueError, match=r"parameter 0 of shape.*written to since.*is 3.*projx"
        ):
            step(model, optimizer)
        assert_equal(values(model), before)
        assert_same_state(optimizer.state_dict(), kept)
    put(model.hidden.weight, point)
    step(model, optimizer)
    twin, other = train(build, 2)
    step(twin, other)
    assert_equal(values(model), values(twin))


@every_write
@given(noise=noises)
def test_another_point_is_welcome(put, noise: Noise):
    model, optimizer = train(OPTIMIZERS["gauss-southwell"], 2)
    put(model.hidden.weight, noise.point(5, 5, dtype=torch.float32))
    step(model, optimizer)
    assert defect(model.hidden.weight) <= 1e-6


@pytest.mark.parametrize(
    "init", [nn.init.xavier_normal_, nn.init.ones_, nn.init.eye_, nn.init.orthogonal_]
)
def test_an_initialization_is_welcome_if_it_is_a_point(init):
    model, optimizer = train(OPTIMIZERS["uniform"], 1)
    model.apply(lambda m: init(m.weight) if m is model.hidden else None)
    if init in (nn.init.eye_, nn.init.orthogonal_):
        step(model, optimizer)
        assert defect(model.hidden.weight) <= 1e-6
    else:
        with pytest.raises(ValueError, match="written to"):
            step(model, optimizer)


@every_optimizer
def test_a_parameter_that_has_lost_its_manifold_is_not_trained_as_a_plain_one(build):
    """Swapped by torch, its identity kept: the optimizer holds it still."""
    model, optimizer = train(build, 2)
    kept = copy.deepcopy(optimizer.state_dict())
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        model.double()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    before = values(model)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    with pytest.raises(RuntimeError, match=r"parameter 0.*was on OrthogonalGroup.*plain"):
        optimizer.step()
    assert_equal(values(model), before)
    assert_same_state(optimizer.state_dict(), kept)


@given(st.integers(1, 20))
def test_a_run_that_no_one_disturbs_checks_nothing(steps):
    """The check costs as much as a product of matrices: it is made of what others write, only."""
    model, optimizer = train(OPTIMIZERS["uniform"], 1)
    calls = []

    def check(x, **options):
        calls.append(x)
        return OrthogonalGroup.check_point_on_manifold(GROUP, x, **options)

    model.hidden.weight.manifold = counting = OrthogonalGroup()
    step(model, optimizer)  # another manifold is a reason to look, too
    counting.check_point_on_manifold = check
    for _ in range(steps):
        step(model, optimizer)
    assert not calls
    write(model.hidden.weight, torch.eye(5))
    step(model, optimizer)
    assert len(calls) == 1
