"""Many processes, each with its share of a batch, take the steps that one takes with all of it."""

import copy
import math
import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path

import geoopt
import pytest
import torch
import torch.distributed as dist
from geoopt import ManifoldParameter
from hypothesis import given
from hypothesis import strategies as st
from processes import needs_gloo, run
from rules import Everything
from torch import Tensor, nn
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler
from torch.nn.parallel import DistributedDataParallel

from givens.manifolds import OrthogonalGroup, Stiefel, UnitaryGroup
from givens.optim import (
    SRCD,
    SRGD,
    Adam,
    AxisRMSProp,
    Block,
    Capture,
    Cyclic,
    GaussSouthwell,
    Grouping,
    Growing,
    Matching,
    Momentum,
    RMSProp,
    Uniform,
)
from givens.optim.base import ManifoldOptimizer
from givens.optim.distributed import clip_grad_norm_, leave_out_of_ddp
from givens.optim.random import Randomness
from givens.optim.replicas import digest

pytestmark = needs_gloo

ROOT = Path(__file__).parents[1]
SAMPLES = 12  # as many for each of 2, 3 or 4 processes


def srcd(selection, scaling=None):
    return lambda params, **options: SRCD(params, 0.02, selection, scaling, seed=3, **options)


def srgd(**settings):
    return lambda params, **options: SRGD(params, 0.02, **settings, **options)


OPTIMIZERS = {
    "uniform": srcd(Uniform()),
    "uniform, RMSProp": srcd(Uniform(), RMSProp()),
    "cyclic, momentum": srcd(Cyclic(), Momentum()),
    "gauss-southwell": srcd(GaussSouthwell()),
    "block": srcd(Block(size=3)),
    "disjoint block, Adam": srcd(Block(size=2, disjoint=True), Adam()),
    "matching": srcd(Matching()),
    "tournament, AxisRMSProp": srcd(Matching("round-robin"), AxisRMSProp()),
    "greedy matching": srcd(Matching("greedy")),
    "rounds": srcd(Matching(rounds=3)),
    "rounds, AxisRMSProp": srcd(Matching("round-robin", 2), AxisRMSProp()),
    "groups": srcd(Grouping(3)),
    "groups, Adam": srcd(Grouping(2, "round-robin"), Adam(clock="steps")),
    "growing": srcd(Growing(every=2)),
    "capture": srcd(Capture(0.5)),
    "a user's": srcd(Everything()),
    "srgd": srgd(),
    "srgd, momentum": srgd(momentum=0.5, weight_decay=0.1),
    "srgd, Adam": srgd(scaling=Adam()),
    "srgd, retraction": srgd(map="retr"),
    "srgd, rank": srgd(rank=1, seed=3),
}


def point(manifold, *shape, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return ManifoldParameter(manifold.random(*shape, dtype=dtype, generator=generator), manifold)


complex_ddp = pytest.mark.skipif(
    torch.__version__ < (2, 7), reason="DDP over gloo of torch 2.6 takes nothing complex"
)


class Model(nn.Module):
    """Square, batched, tall and complex matrices, and a layer without a constraint."""

    def __init__(self) -> None:
        super().__init__()
        self.square = point(OrthogonalGroup(), 6, 6, seed=0)
        self.batch = point(OrthogonalGroup(), 2, 4, 4, seed=1)
        self.tall = point(Stiefel(), 6, 3, seed=2)
        self.unitary = point(UnitaryGroup(), 4, 4, seed=3, dtype=torch.complex128)
        self.linear = nn.Linear(6, 4, dtype=torch.float64)
        with torch.no_grad():
            for p in self.linear.parameters():
                p.copy_(torch.linspace(-1, 1, p.numel()).view_as(p))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(2 * x @ self.square) + x @ self.tall @ self.tall.mT
        z = y @ self.batch.sin().sum((0, 1)).repeat(2)[:6].diag()
        return (self.linear(z).to(self.unitary.dtype) @ self.unitary).real


def data() -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(SAMPLES, 6, dtype=torch.float64, generator=generator)


def share(rank: int) -> Tensor:
    return data()[rank :: dist.get_world_size()]


def loss_of(model: nn.Module, x: Tensor) -> Tensor:
    return ((model(x) - 1).square().sum(-1)).mean()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, steps: int = 6) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model, x).backward()
        optimizer.step()


def values(model: nn.Module) -> list[Tensor]:
    return [p.detach().as_subclass(Tensor).clone() for p in model.parameters()]


def distance(one: list[Tensor], other: list[Tensor]) -> float:
    return max(float((p - q).abs().max()) for p, q in zip(one, other, strict=True))


def alone(name: str, steps: int = 6) -> list[Tensor]:
    model = Model()
    train(model, OPTIMIZERS[name](model.parameters()), data(), steps)
    return values(model)


def wrapped() -> DistributedDataParallel:
    return DistributedDataParallel(leave_out_of_ddp(Model()))


# One process or many


def with_averaged_derivatives(rank: int) -> dict[str, list[Tensor]]:
    results = {}
    for name, build in OPTIMIZERS.items():
        ddp = wrapped()
        optimizer = build(ddp.parameters(), process_group=dist.group.WORLD)
        train(ddp, optimizer, share(rank))
        optimizer.check_replicas()
        results[name] = values(ddp)
    return results


def with_plain_ddp(rank: int) -> dict[str, list[Tensor]]:
    results = {}
    for name, build in OPTIMIZERS.items():
        ddp = DistributedDataParallel(Model())
        train(ddp, build(ddp.parameters()), share(rank))
        results[name] = values(ddp)
    return results


@pytest.mark.parametrize(
    "way",
    [
        with_averaged_derivatives,
        pytest.param(with_plain_ddp, marks=complex_ddp),
    ],
)
@pytest.mark.parametrize("world_size", [2, 3])
def test_many_processes_take_the_steps_of_one(way, world_size):
    results = run(way, world_size)
    for name in OPTIMIZERS:
        expected = alone(name)
        assert distance(expected, values(Model())) > 1e-3  # they went somewhere
        assert distance(results[0][name], expected) < 1e-11, name
        for other in results[1:]:
            assert all(map(torch.equal, results[0][name], other[name])), name


def by_the_device(rank: int) -> list[float]:
    """As on an accelerator: no derivative is looked at by the host."""
    distances = []
    for name, build in OPTIMIZERS.items():
        host, device = wrapped(), wrapped()
        train(host, build(host.parameters(), process_group=dist.group.WORLD), share(rank))
        optimizer = build(device.parameters(), process_group=dist.group.WORLD)
        optimizer._checked_by_host = lambda *_: False
        train(device, optimizer, share(rank))
        assert optimizer._guard._flags, name
        distances.append(distance(values(host), values(device)))
    return distances


def test_an_accelerator_averages_too():
    for distances in run(by_the_device, 2):
        assert max(distances) < 1e-12


def accumulating(rank: int) -> float:
    """Two backward passes a step, the first without DDP's messages, against one on both shares."""
    ddp, whole = wrapped(), wrapped()
    one, other = (
        srcd(Matching(), Adam())(m.parameters(), process_group=dist.group.WORLD)
        for m in (ddp, whole)
    )
    for _ in range(3):
        first, second = share(rank).chunk(2)
        one.zero_grad()
        other.zero_grad()
        with ddp.no_sync():
            (loss_of(ddp, first) / 2).backward()
        (loss_of(ddp, second) / 2).backward()
        loss_of(whole, share(rank)).backward()
        one.step()
        other.step()
    return distance(values(ddp), values(whole))


def test_gradients_may_accumulate():
    assert max(run(accumulating, 2)) < 1e-12


def a_geoopt_manifold(rank: int) -> list[Tensor]:
    p = ManifoldParameter(torch.eye(4, dtype=torch.float64), geoopt.Sphere())
    optimizer = SRGD([p], 0.1, process_group=dist.group.WORLD)
    for _ in range(3):
        optimizer.zero_grad()
        (p * torch.arange(16.0).view(4, 4).add(rank).cos()).sum().backward()
        optimizer.step()
    return [p.detach().as_subclass(Tensor)]


def test_srgd_averages_on_manifolds_of_geoopt_too():
    one, other = run(a_geoopt_manifold, 2)
    p = ManifoldParameter(torch.eye(4, dtype=torch.float64), geoopt.Sphere())
    optimizer = SRGD([p], 0.1)
    for _ in range(3):
        noise = torch.arange(16.0).view(4, 4)
        p.grad = ((noise.cos() + noise.add(1).cos()) / 2).double()
        optimizer.step()
    assert torch.equal(one[0], other[0])
    assert distance(one, [p.detach()]) < 1e-6


def local_gradients(rank: int) -> list[Tensor]:
    nested = nn.ModuleDict({"inner": Model(), "outer": Model()})
    nested.forward = lambda x: nested["inner"](x) + nested["outer"](x)
    gradients = []
    for ddp in (wrapped(), DistributedDataParallel(leave_out_of_ddp(nested))):
        loss_of(ddp, share(rank)).backward()
        gradients += [p.grad.as_subclass(Tensor) for p in ddp.parameters()]
    return gradients


def test_only_gradients_of_manifold_parameters_stay_local():
    one, other = run(local_gradients, 2)
    same = list(map(torch.equal, one, other))
    assert same == [False, False, False, False, True, True] * 3


# What differs at the start


def different_starts(rank: int) -> list[Tensor]:
    model = Model()
    with torch.no_grad():
        model.square.copy_(OrthogonalGroup().random(6, 6, dtype=torch.float64))  # unseeded
        model.unitary.mul_(1j**rank)
    model.square.data = model.square.data.mT.clone().mT  # column-major
    model.tied = model.square
    leave_out_of_ddp(model)
    return values(model)


def test_values_are_copied_from_the_first_process():
    one, other = run(different_starts, 2)
    assert all(map(torch.equal, one, other))


def errors(rank: int, build, change) -> str:
    """Message of what a first step raises after a change on rank 1; nothing has moved."""
    model = leave_out_of_ddp(Model())
    if rank == 1:
        change(model)
    before = values(model)
    optimizer = build(model.parameters(), rank)
    loss_of(model, share(rank)).backward()
    with pytest.raises(RuntimeError) as error:
        optimizer.step()
    assert all(map(torch.equal, before, values(model)))
    assert optimizer.state_dict()["state"] == {}
    return str(error.value)


def nothing(model: nn.Module) -> None:
    pass


def other_value(model: nn.Module) -> None:
    with torch.no_grad():
        model.square.mul_(-1)


def other_seed(params, rank: int) -> ManifoldOptimizer:
    return SRCD(params, 0.1, seed=rank, process_group=dist.group.WORLD)


def other_rate(params, rank: int) -> ManifoldOptimizer:
    return SRCD(params, torch.tensor(0.1 + rank), process_group=dist.group.WORLD)


def other_selection(params, rank: int) -> ManifoldOptimizer:
    selection = [Matching(), Grouping(3)][rank]
    return SRCD(params, 0.1, selection, process_group=dist.group.WORLD)


def fewer_parameters(params, rank: int) -> ManifoldOptimizer:
    return SRCD(list(params)[rank:], 0.1, process_group=dist.group.WORLD)


def all_alike(params, rank: int) -> ManifoldOptimizer:
    return SRCD(params, 0.1, process_group=dist.group.WORLD)


@pytest.mark.parametrize(
    ("build", "change", "said"),
    [
        (other_seed, nothing, "seed of parameter 0 of shape (6, 6) is 0 on rank 0"),
        (other_rate, nothing, "lr of parameter 0"),
        (other_selection, nothing, "selection of parameter 0"),
        (fewer_parameters, nothing, "on rank 1"),
        (all_alike, other_value, "the value of parameter 0 of shape (6, 6)"),
    ],
)
def test_the_first_step_compares_the_processes(build, change, said):
    for message in run(errors, 2, build, change):
        assert said in message
        assert "drift apart" in message


def loaded_on_one(rank: int) -> str:
    ddp = wrapped()
    optimizer = OPTIMIZERS["matching"](ddp.parameters(), process_group=dist.group.WORLD)
    start = copy.deepcopy(optimizer.state_dict())
    train(ddp, optimizer, share(rank), 2)
    optimizer.load_state_dict(start if rank == 1 else optimizer.state_dict())
    with pytest.raises(RuntimeError) as error:
        train(ddp, optimizer, share(rank), 1)
    return str(error.value)


def test_a_state_loaded_by_one_process_alone_is_noticed():
    for message in run(loaded_on_one, 2):
        assert "'step'" in message or "'moved'" in message


def drifting(rank: int) -> list[str]:
    """Digests before and after: a value that changes in one process is found when asked for."""
    ddp = wrapped()
    optimizer = OPTIMIZERS["uniform"](ddp.parameters(), process_group=dist.group.WORLD)
    train(ddp, optimizer, share(rank), 2)
    optimizer.check_replicas()
    with torch.no_grad():
        ddp.module.linear.bias[1] += 1e-12 * rank
    with pytest.raises(RuntimeError, match="the value of parameter 5"):
        optimizer.check_replicas()
    return [digest(p) for p in ddp.parameters()]


def test_check_replicas_finds_a_single_bit():
    one, other = run(drifting, 2)
    assert sum(a != b for a, b in zip(one, other, strict=True)) == 1


def missing_gradient(rank: int) -> str:
    model = leave_out_of_ddp(Model())
    optimizer = all_alike(model.parameters(), rank)
    loss_of(model, share(rank)).backward()
    model.batch.grad = None
    with pytest.raises(RuntimeError) as error:
        optimizer.step()
    return str(error.value)


def frozen(rank: int) -> list[Tensor]:
    model = leave_out_of_ddp(Model())
    model.batch.requires_grad_(False)
    optimizer = OPTIMIZERS["groups, Adam"](model.parameters(), process_group=dist.group.WORLD)
    loss_of(model, share(rank)).backward()
    optimizer.step()
    return values(model)


def test_every_process_needs_every_gradient_but_of_what_is_frozen():
    for message in run(missing_gradient, 2):
        assert "parameter 1 of shape (2, 4, 4) has no gradient in this process" in message
    start = values(Model())
    for result in run(frozen, 2):
        moved = [not torch.equal(p, q) for p, q in zip(result, start, strict=True)]
        assert moved == [True, False, True, True, True, True]


# Infinities and norms


def one_bad_gradient(rank: int, name: str, bad: float) -> list[Tensor]:
    model = leave_out_of_ddp(Model())
    optimizer = OPTIMIZERS[name](model.parameters(), process_group=dist.group.WORLD)
    loss_of(model, share(rank)).backward()
    if rank == 1:
        model.tall.grad.fill_(bad)
    before = values(model)
    with pytest.raises(FloatingPointError, match=r"parameter 2 of shape \(6, 3\)"):
        optimizer.step()
    assert all(map(torch.equal, before, values(model)))
    assert optimizer.state_dict()["state"] == {}
    return before


@pytest.mark.parametrize("name", ["uniform", "gauss-southwell", "groups, Adam", "srgd"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_gradient_in_one_process_stops_all(name, bad):
    run(one_bad_gradient, 2, name, bad)


def clipping(rank: int, max_norm: float) -> tuple[float, float, float, float]:
    ddp = wrapped()
    loss_of(ddp, share(rank)).backward()
    before = [p.grad.clone() for p in ddp.parameters()]
    norm = clip_grad_norm_(ddp.parameters(), max_norm, process_group=dist.group.WORLD)
    ratios = torch.stack(
        [p.grad.abs().sum() / g.abs().sum() for p, g in zip(ddp.parameters(), before, strict=True)]
    )
    average = DistributedDataParallel(Model())
    loss_of(average, share(rank)).backward()
    of_average = torch.nn.utils.get_total_norm([p.grad for p in average.parameters()])
    return float(norm), float(ratios.min()), float(ratios.max()), float(of_average)


@complex_ddp
@pytest.mark.parametrize("max_norm", [0.1, 1e6])
def test_gradients_are_clipped_by_the_same_factor_everywhere(max_norm):
    results = run(clipping, 3, max_norm)
    norm, *_, of_average = results[0]
    for other in results:
        assert other[0] == norm
        assert other[1] == pytest.approx(min(1, max_norm / norm), rel=1e-5)
        assert other[2] == pytest.approx(other[1], rel=1e-12)
    assert of_average <= norm * (1 + 1e-12)
    assert norm < 3 * of_average


def clipping_alike(rank: int) -> tuple[float, float]:
    """All processes with the same samples: nothing to distinguish it from torch's own."""
    model = leave_out_of_ddp(Model())
    loss_of(model, data()).backward()
    expected = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
    return float(clip_grad_norm_(model.parameters(), 1.0, process_group=dist.group.WORLD)), float(
        expected
    )


def clipping_what_is_not_finite(rank: int) -> None:
    model = leave_out_of_ddp(Model())
    loss_of(model, data()).backward()
    if rank == 0:
        model.square.grad[0, 0] = math.nan
    before = model.tall.grad.clone()
    with pytest.raises(RuntimeError, match="nan"):
        clip_grad_norm_(
            model.parameters(), 1.0, process_group=dist.group.WORLD, error_if_nonfinite=True
        )
    assert torch.equal(before, model.tall.grad)
    assert clip_grad_norm_([], 1.0, process_group=dist.group.WORLD) == 0
    assert model.square.grad.mul_(1e200) is not None
    model.square.grad[0, 0] = 0
    assert clip_grad_norm_(model.parameters(), 1.0, process_group=dist.group.WORLD) > 1e150


def test_the_norm_is_torch_s_where_gradients_agree():
    for norm, expected in run(clipping_alike, 2):
        assert norm == pytest.approx(expected, rel=1e-12)
    run(clipping_what_is_not_finite, 2)


def with_a_scaler(rank: int) -> tuple[list[float], list[Tensor], bool]:
    """An infinity of one process's own in the third of six steps, as float16 would make it."""
    ddp = wrapped()
    # Torch's scalers take no complex gradients.
    params = [p for p in ddp.parameters() if not p.is_complex()]
    optimizer = OPTIMIZERS["matching"](params, process_group=dist.group.WORLD)
    scaler = ShardedGradScaler("cpu", init_scale=8.0, process_group=dist.group.WORLD)
    scales = []
    for step in range(6):
        optimizer.zero_grad()
        scaler.scale(loss_of(ddp, share(rank))).backward()
        if step == 2 and rank == 1:
            ddp.module.square.grad[0, 0] = math.inf
        before = values(ddp)
        scaler.step(optimizer)
        assert all(map(torch.equal, before, values(ddp))) == (step == 2)
        scaler.update()
        scales.append(scaler.get_scale())
    return scales, values(ddp), True


def test_a_scaler_skips_the_step_in_all_processes():
    (one, p, _), (other, q, _) = run(with_a_scaler, 2)
    assert one == other == [8.0, 8.0, 4.0, 4.0, 4.0, 4.0]
    assert all(map(torch.equal, p, q))
    # A skipped step is none: five steps on the same data.
    model = Model()
    params = [p for p in model.parameters() if not p.is_complex()]
    train(model, OPTIMIZERS["matching"](params), data(), 5)
    assert distance(p, values(model)) < 1e-11


# Habits


def states(rank: int) -> None:
    ddp = wrapped()
    optimizer = OPTIMIZERS["groups, Adam"](ddp.parameters(), process_group=dist.group.WORLD)
    train(ddp, optimizer, share(rank), 3)
    for copying in (copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="belongs to a process group"):
            copying(optimizer)
    halfway, state = copy.deepcopy(ddp.module.state_dict()), copy.deepcopy(optimizer.state_dict())
    train(ddp, optimizer, share(rank), 3)

    again = wrapped()
    again.module.load_state_dict(halfway)
    resumed = OPTIMIZERS["groups, Adam"](again.parameters(), process_group=dist.group.WORLD)
    resumed.load_state_dict(state)
    train(again, resumed, share(rank), 3)
    assert all(map(torch.equal, values(ddp), values(again)))


def test_a_state_resumes_to_the_bit_and_an_optimizer_of_a_group_is_not_copied():
    run(states, 2)


def what_cannot_be_left_out(rank: int) -> None:
    with pytest.raises(ValueError, match="no parameter on a manifold"):
        leave_out_of_ddp(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="before"):
        leave_out_of_ddp(DistributedDataParallel(Model()))


@complex_ddp
def test_what_cannot_be_left_out_is_said():
    run(what_cannot_be_left_out, 1)


@given(
    total=st.integers(1, 6),
    inner=st.integers(1, 3),
    high=st.integers(1, 300),
    k=st.integers(1, 4),
    data=st.data(),
)
def test_a_part_of_a_batch_draws_its_part_of_the_numbers(total, inner, high, k, data):
    k = min(k, high)
    first = data.draw(st.integers(0, total))
    last = data.draw(st.integers(first, total))
    device = torch.device("cpu")
    whole = Randomness(1, 2, 3, device, batch=(total, inner))
    part = Randomness(1, 2, 3, device, batch=(last - first, inner), first=first)
    for draw in (
        lambda random, n: random.integers(high, n, inner),
        lambda random, n: random.distinct(high, k, n, inner),
        lambda random, n: random.integers(high, n, inner, 2),
    ):
        assert torch.equal(draw(part, last - first), draw(whole, total)[first:last])
    # What is no part of the batch is common to all.
    assert torch.equal(part.integers(high, 7, 11), whole.integers(high, 7, 11))


def test_the_example_runs_under_torchrun(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    result = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"),
            f"--master-port={port}",
            str(ROOT / "docs/examples/distributed/ddp.py"),
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    loss, defect = result.stdout.split(", max |WᵀW − I| ")
    assert float(loss.removeprefix("loss ")) < 1.6
    assert float(defect) < 1e-6
