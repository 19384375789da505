"""Parameters that are sharded over processes: DTensor, FSDP2, and checkpoints of both."""

import inspect

import pytest
import torch
from geoopt import ManifoldParameter
from processes import needs_gloo, run
from torch import Tensor, nn

from givens.manifolds import OrthogonalGroup, constrain
from givens.optim import (
    SRCD,
    SRGD,
    Adam,
    AxisRMSProp,
    Block,
    Cyclic,
    GaussSouthwell,
    Grouping,
    Matching,
    Momentum,
    Uniform,
)
from givens.optim.distributed import clip_grad_norm_

pytestmark = needs_gloo

GROUP = OrthogonalGroup()

LAWS = {
    "uniform": lambda params, **kw: SRCD(params, 0.1, Uniform(), **kw),
    "cyclic": lambda params, **kw: SRCD(params, 0.1, Cyclic(), **kw),
    "block": lambda params, **kw: SRCD(params, 0.1, Block(size=3, rule=Uniform()), **kw),
    "gauss-southwell": lambda params, **kw: SRCD(params, 0.1, GaussSouthwell(), **kw),
    "matching": lambda params, **kw: SRCD(params, 0.1, Matching(), **kw),
    "rounds": lambda params, **kw: SRCD(params, 0.1, Matching(rounds=3), Adam(), **kw),
    "grouping": lambda params, **kw: SRCD(params, 0.1, Grouping(size=2), **kw),
    "adam": lambda params, **kw: SRCD(params, 0.05, Matching(), Adam(), **kw),
    "adam, steps": lambda params, **kw: SRCD(params, 0.05, Uniform(), Adam(clock="steps"), **kw),
    "axes": lambda params, **kw: SRCD(params, 0.05, Uniform(), AxisRMSProp(), **kw),
    "momentum": lambda params, **kw: SRCD(params, 0.05, Cyclic(), Momentum(), **kw),
    "srgd": lambda params, **kw: SRGD(params, 0.05, momentum=0.9, **kw),
    "srgd, rank": lambda params, **kw: SRGD(params, 0.05, rank=1, seed=3, **kw),
    "srgd, adam": lambda params, **kw: SRGD(params, 0.05, scaling=Adam(), **kw),
}

# Processes, or a mesh of them whose first axis replicates; and points to shard over them.
SHARDINGS = [((2,), 5), ((2,), 1), ((3,), 7), ((2, 2), 6)]


def randn(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def points(*shape: int, seed: int = 0) -> Tensor:
    """Contiguous, as FSDP demands."""
    return torch.linalg.qr(randn(*shape, seed=seed))[0].contiguous()


def mesh_of(shape: tuple[int, ...]):
    from torch.distributed.device_mesh import init_device_mesh

    names = ("replicate", "shard")[-len(shape) :]
    return init_device_mesh("cpu", shape, mesh_dim_names=names)


def shard(x: Tensor, mesh):
    """Replicated over all axes of the mesh but the last."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    return distribute_tensor(x, mesh, [*[Replicate()] * (mesh.ndim - 1), Shard(0)])


def sharded_parameter(x: Tensor, mesh) -> nn.Parameter:
    p = nn.Parameter(shard(x, mesh))
    p.manifold = GROUP
    return p


def assert_close(x: Tensor, y: Tensor) -> None:
    """To rounding; x may be sharded."""
    x = x.detach().full_tensor() if hasattr(x, "full_tensor") else x
    torch.testing.assert_close(x.detach(), y.detach(), rtol=0, atol=1e-13)


# DTensor


def step_sharded_and_whole(rank: int, mesh_shape: tuple[int, ...], size: int) -> None:
    mesh = mesh_of(mesh_shape)
    for name, law in LAWS.items():
        whole = ManifoldParameter(points(size, 4, 4), manifold=GROUP)
        part = sharded_parameter(points(size, 4, 4), mesh)
        one, many = law([whole]), law([part])
        for step in range(5):
            gradient = randn(size, 4, 4, seed=step)
            whole.grad, part.grad = gradient.clone(), shard(gradient, mesh)
            one.step()
            many.step()
        try:
            assert_close(part, whole)
        except AssertionError as error:
            raise AssertionError(f"{name} takes other steps with a sharded batch") from error


@pytest.mark.parametrize(("mesh_shape", "size"), SHARDINGS)
def test_a_sharded_batch_takes_the_steps_of_the_whole_one(mesh_shape, size):
    """However unevenly it is sharded: the last process may have less, or nothing."""
    run(step_sharded_and_whole, torch.Size(mesh_shape).numel(), mesh_shape, size)


def step_with_gradients_in_any_placement(rank: int) -> None:
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

    mesh = mesh_of((2,))
    gradient = randn(4, 3, 3, seed=1)
    summand = gradient * (0.25 if rank == 0 else 0.75)
    placed = {
        "partial": DTensor.from_local(summand, mesh, [Partial()]),
        "replicated": distribute_tensor(gradient, mesh, [Replicate()]),
        "sharded": distribute_tensor(gradient, mesh, [Shard(0)]),
    }
    whole = ManifoldParameter(points(4, 3, 3), manifold=GROUP)
    whole.grad = gradient
    SRCD([whole], 0.1, GaussSouthwell()).step()
    for placements in ([Shard(0)], [Replicate()]):
        for grad in placed.values():
            p = nn.Parameter(distribute_tensor(points(4, 3, 3), mesh, placements))
            p.manifold = GROUP
            p.grad = grad
            SRCD([p], 0.1, GaussSouthwell()).step()
            assert_close(p, whole)


def test_gradients_come_in_any_placement():
    run(step_with_gradients_in_any_placement, 2)


def refuse_what_is_no_batch(rank: int) -> None:
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = mesh_of((2,))
    for x, dim in ((points(4, 4), 0), (points(1, 4, 4), 1), (points(4, 4, 4), 2)):
        p = nn.Parameter(distribute_tensor(x, mesh, [Shard(dim)]))
        p.manifold = GROUP
        with pytest.raises(
            ValueError, match=r"cuts its points apart: only a batch .* ignored_params"
        ):
            SRCD([p], 0.1)
        module = nn.Module()
        module.weight = nn.Parameter(p.data)
        with pytest.raises(ValueError, match="cuts its points apart"):
            constrain(module, "weight", GROUP)


def test_points_that_are_cut_apart_are_refused():
    run(refuse_what_is_no_batch, 2)


def step_with_a_nan_on_the_last_rank(rank: int) -> None:
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = mesh_of((2,))
    for name, law in LAWS.items():
        p, q = (sharded_parameter(points(3, 4, 4, seed=s), mesh) for s in range(2))
        optimizer = law([p, q])
        p.grad, q.grad = (
            distribute_tensor(randn(3, 4, 4, seed=s), mesh, [Shard(0)]) for s in (2, 3)
        )
        optimizer.step()
        before = [
            (x.to_local().clone(), {k: bits(v) for k, v in optimizer.state[x].items()})
            for x in (p, q)
        ]
        if rank == 1:
            q.grad.to_local().fill_(torch.nan)
        with pytest.raises(FloatingPointError, match=r"parameter 1 of shape \(3, 4, 4\) are NaN"):
            optimizer.step()
        for x, (value, state) in zip((p, q), before, strict=True):
            assert torch.equal(x.to_local(), value), name
            assert {k: bits(v) for k, v in optimizer.state[x].items()} == state, name


def bits(value: object) -> object:
    """Something that compares equal when all bits are."""
    if isinstance(value, Tensor):
        value = value.detach()
        part = value.to_local() if hasattr(value, "to_local") else value
        return (tuple(value.shape), part.contiguous().view(torch.uint8).tolist())
    return value


def test_a_nan_on_one_rank_stops_the_step_on_all():
    run(step_with_a_nan_on_the_last_rank, 2)


# FSDP2


@pytest.fixture
def leaves_parameters_out() -> None:
    from torch.distributed.fsdp import fully_shard

    if "ignored_params" not in inspect.signature(fully_shard).parameters:
        pytest.skip("fully_shard takes ignored_params since torch 2.7")


needs_ignored_params = pytest.mark.usefixtures("leaves_parameters_out")


class Network(nn.Module):
    """A rotation, a batch of rotations, and a matrix without a constraint."""

    def __init__(self, size: int, width: int = 4) -> None:
        super().__init__()
        self.rotation = nn.Parameter(points(width, width, seed=1))
        self.heads = nn.Parameter(points(size, width, width, seed=2))
        self.readout = nn.Parameter(randn(3, size * width, seed=3))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.einsum("bi,ij,njk->bnk", x, self.rotation, self.heads)
        return hidden.tanh().flatten(1) @ self.readout.T


def batch(width: int = 4) -> tuple[Tensor, Tensor]:
    return randn(12, width, seed=4), randn(12, 3, seed=5)


def loss_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return (model(x) - y).square().mean()


def whole_network(size: int, law) -> tuple[Network, list[torch.optim.Optimizer]]:
    net = Network(size)
    constrain(net, "rotation", GROUP)
    constrain(net, "heads", GROUP)
    optimizers = [
        law([net.rotation]),
        law([net.heads]),
        torch.optim.Adam([net.readout], 0.01),
    ]
    return net, optimizers


def sharded_network(size: int, law, mesh) -> tuple[Network, list[torch.optim.Optimizer]]:
    """The batch of rotations is sharded, and so is the matrix; the single rotation is not."""
    from torch.distributed.fsdp import fully_shard

    net = Network(size)
    constrain(net, "rotation", GROUP)
    fully_shard(net, mesh=mesh, ignored_params={net.rotation})
    constrain(net, "heads", GROUP)
    optimizers = [
        law([net.rotation], process_group=torch.distributed.group.WORLD),
        law([net.heads]),
        torch.optim.Adam([net.readout], 0.01),
    ]
    return net, optimizers


def train(net, optimizers, x: Tensor, y: Tensor, steps: int) -> None:
    for _ in range(steps):
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss_of(net, x, y).backward()
        for optimizer in optimizers:
            optimizer.step()


def share(rank: int) -> tuple[Tensor, Tensor]:
    """This process's share of the batch."""
    size = torch.distributed.get_world_size()
    return tuple(z.chunk(size)[rank] for z in batch())


def train_sharded_and_whole(rank: int, mesh_shape: tuple[int, ...], size: int) -> list[Tensor]:
    replicas = []
    for law in (LAWS["matching"], LAWS["srgd"]):
        net, optimizers = sharded_network(size, law, mesh_of(mesh_shape))
        heads = net.heads
        train(net, optimizers, *share(rank), steps=4)
        whole, one = whole_network(size, law)
        train(whole, one, *batch(), steps=4)
        net.reshard()
        assert net.heads is heads
        for part, full in zip(net.parameters(), whole.parameters(), strict=True):
            assert_close(part, full)
        replicas.append(net.rotation.detach().clone().as_subclass(Tensor))
    return replicas


@needs_ignored_params
@pytest.mark.parametrize(("mesh_shape", "size"), SHARDINGS)
def test_fsdp_trains_as_one_process_does(mesh_shape, size):
    first, *others = run(train_sharded_and_whole, torch.Size(mesh_shape).numel(), mesh_shape, size)
    for other in others:
        for one, two in zip(first, other, strict=True):
            assert torch.equal(one, two)


def clip_sharded_gradients(rank: int) -> tuple[float, float, float]:
    net, _ = sharded_network(3, LAWS["cyclic"], mesh_of((2,)))
    loss_of(net, *share(rank)).backward()
    group = torch.distributed.group.WORLD

    def norm() -> float:
        squares = [net.rotation.grad.square().sum().reshape(1)]
        torch.distributed.all_reduce(squares[0])
        squares[0] /= 2
        squares += [
            p.grad.full_tensor().square().sum().reshape(1) for p in (net.heads, net.readout)
        ]
        return float(torch.cat(squares).sum().sqrt())

    before = norm()
    found = clip_grad_norm_(net.parameters(), before / 3, process_group=group)
    return before, float(found), norm()


@needs_ignored_params
def test_clipping_finds_one_norm_of_sharded_and_replicated_gradients():
    results = run(clip_sharded_gradients, 2)
    assert results[0] == results[1]
    before, found, after = results[0]
    assert found == pytest.approx(before, rel=1e-14)
    assert after == pytest.approx(before / 3, rel=1e-5)


def lose_the_manifold(rank: int) -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

    x, y = share(rank)
    # All of it sharded, and not constrained again.
    net, _ = whole_network(3, LAWS["cyclic"])
    fully_shard(net)
    with pytest.raises(
        TypeError, match=r"has no manifold: sharding loses it. Call .* after fully_shard"
    ):
        SRCD(net.parameters(), 0.1)
    with pytest.raises(TypeError, match=r"of FSDPNetwork has been replaced .*after fully_shard"):
        loss_of(net, x, y)
    # A conversion, which torch makes by swapping: the same parameter without its attributes.
    net, _ = sharded_network(3, LAWS["cyclic"], mesh_of((2,)))
    loss_of(net, x, y).backward()
    net.reshard()
    net.float().double()
    with pytest.raises(TypeError, match="heads of FSDPNetwork has been replaced"):
        loss_of(net, x, y)
    # Its predecessor.
    net, _ = whole_network(3, LAWS["cyclic"])
    fsdp = FullyShardedDataParallel(net, device_id=torch.device("cpu"))
    with pytest.raises(TypeError, match="of Network is no parameter any more: FullyShardedData"):
        loss_of(fsdp, x, y)


@needs_ignored_params
def test_a_manifold_that_sharding_loses_is_missed():
    run(lose_the_manifold, 2)


def load_with_and_without_assign(rank: int) -> None:
    net, optimizers = sharded_network(3, LAWS["cyclic"], mesh_of((2,)))
    train(net, optimizers, *share(rank), steps=1)
    net.reshard()
    state = {key: value.clone() for key, value in net.state_dict().items()}
    for assign in (False, True):
        train(net, optimizers, *share(rank), steps=1)
        net.load_state_dict(state, assign=assign)
        assert net.heads.manifold is GROUP
        assert_close(net.heads, state["heads"].full_tensor())
        loss_of(net, *share(rank)).backward()


@needs_ignored_params
def test_loading_leaves_a_sharded_parameter_on_its_manifold():
    run(load_with_and_without_assign, 2)


def constrain_what_is_off(rank: int) -> None:
    from torch.distributed.fsdp import fully_shard

    net = Network(5)
    with torch.no_grad():
        net.heads.add_(0.1 * randn(5, 4, 4, seed=6))
    nearest = GROUP.projx(net.heads.detach())
    fully_shard(net)
    p = net.heads
    constrain(net, "heads", GROUP)
    assert net.heads is p
    assert_close(p, nearest)


def test_constrain_takes_the_nearest_points_of_a_sharded_batch():
    run(constrain_what_is_off, 2)


# Checkpoints

CHECKPOINTED = ("adam", "uniform", "srgd")


def save(folder, net, optimizers) -> None:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict

    model, optimizer = get_state_dict(net, optimizers)
    dcp.save({"model": model, "optimizer": optimizer}, checkpoint_id=folder)


def load(folder, net, optimizers) -> None:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    model, optimizer = get_state_dict(net, optimizers)  # what is there, for dcp to fill
    dcp.load({"model": model, "optimizer": optimizer}, checkpoint_id=folder)
    set_state_dict(net, optimizers, model_state_dict=model, optim_state_dict=optimizer)


def whole(value: object) -> object:
    """A whole tensor where a part was."""
    if isinstance(value, Tensor):
        value = value.detach()
        return (
            (value.full_tensor() if hasattr(value, "full_tensor") else value)
            .clone()
            .as_subclass(Tensor)
        )
    return value


def everything(net, optimizers) -> dict[str, object]:
    """Parameters, and all that the optimizers remember."""
    found = {name: whole(p) for name, p in net.named_parameters()}
    names = {p: name for name, p in net.named_parameters()}
    for optimizer in optimizers:
        for p, state in optimizer.state.items():
            for key, value in state.items():
                found[f"{names[p]}, {key}"] = whole(value)
        for group in optimizer.param_groups:
            for key in group.keys() - {"params"}:
                found[f"{names[group['params'][0]]}, {key}"] = repr(group[key])
    return found


def train_and_save(rank: int, folder: str) -> list[dict[str, object]]:
    """What is saved, and what it comes to, with one optimizer after the other."""
    size = torch.distributed.get_world_size()
    found = []
    for name in CHECKPOINTED:
        net, optimizers = sharded_network(5, LAWS[name], mesh_of((size,)))
        train(net, optimizers, *share(rank), steps=3)
        net.reshard()
        save(f"{folder}/{name}", net, optimizers)
        found.append(everything(net, optimizers))
        train(net, optimizers, *share(rank), steps=3)
        net.reshard()
        found.append(everything(net, optimizers))
    return found


def load_and_train(rank: int, folder: str) -> list[dict[str, object]]:
    size = torch.distributed.get_world_size()
    found = []
    for name in CHECKPOINTED:
        net, optimizers = sharded_network(5, LAWS[name], mesh_of((size,)))
        load(f"{folder}/{name}", net, optimizers)
        found.append(everything(net, optimizers))
        train(net, optimizers, *share(rank), steps=3)
        net.reshard()
        found.append(everything(net, optimizers))
    return found


def load_whole_and_train(rank: int, folder: str) -> list[dict[str, object]]:
    found = []
    for name in CHECKPOINTED:
        net, optimizers = whole_network(5, LAWS[name])
        load(f"{folder}/{name}", net, optimizers)
        found.append(everything(net, optimizers))
        train(net, optimizers, *batch(), steps=3)
        found.append(everything(net, optimizers))
    return found


def assert_same(one: dict[str, object], other: dict[str, object], atol: float = 0.0) -> None:
    assert one.keys() == other.keys()
    for key, value in one.items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(other[key], value, rtol=0, atol=atol, msg=key)
        else:
            assert value == other[key], key


@needs_ignored_params
def test_a_checkpoint_goes_on_with_any_number_of_processes(tmp_path):
    first, *others = run(train_and_save, 4, str(tmp_path))
    for other in others:
        for one, two in zip(first, other, strict=True):
            assert_same(one, two)
    for function, size in [
        (load_whole_and_train, 1),
        (load_and_train, 1),
        (load_and_train, 3),
        (load_and_train, 4),
    ]:
        for result in run(function, size, str(tmp_path)):
            for n, (expected, found) in enumerate(zip(first, result, strict=True)):
                # By as many processes to the last bit; loaded always so, and trained to rounding.
                assert_same(expected, found, atol=0.0 if size == 4 or n % 2 == 0 else 1e-13)


def test_what_checkpoints_do_to_a_fresh_optimizer_moves_nothing():
    """For its state to be there, torch takes a step with zero gradients and lr=0."""
    from torch.distributed.checkpoint.state_dict import get_state_dict

    for name, law in LAWS.items():
        net = nn.Module()
        net.weight = ManifoldParameter(points(5, 4, 4), manifold=GROUP)
        optimizer = law([net.weight])
        rate = optimizer.param_groups[0]["lr"]
        get_state_dict(net, optimizer)
        assert torch.equal(net.weight, points(5, 4, 4)), name
        assert net.weight.grad is None
        assert optimizer.param_groups[0]["lr"] == rate
