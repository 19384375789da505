"""What a step with a process group sends: the numbers that it needs, in one message, and nothing else."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import processes
import pytest
import torch
import torch.distributed as dist
from geoopt import Euclidean, ManifoldParameter
from torch import Tensor
from torch.optim import Optimizer

from givens.manifolds import OrthogonalGroup, SpecialUnitaryGroup, UnitaryGroup
from givens.optim import (
    SRCD,
    SRGD,
    Adam,
    Block,
    Capture,
    Cyclic,
    GaussSouthwell,
    Grouping,
    Matching,
    Uniform,
)

pytestmark = processes.needs_gloo

ORTHOGONAL, UNITARY = OrthogonalGroup(), UnitaryGroup()
STEPS = 3


def srcd(*args: Any) -> Callable[..., Optimizer]:
    return lambda params, group: SRCD(params, 0.1, *args, process_group=group)


def srgd(**options: Any) -> Callable[..., Optimizer]:
    return lambda params, group: SRGD(params, 0.1, process_group=group, **options)


@dataclass(frozen=True)
class Case:
    """An optimizer, its parameters, and how many real numbers each message of a step has."""

    make: Callable[..., Optimizer]
    messages: list[int]
    shapes: tuple[tuple[int, ...], ...] = ((7, 7),)
    manifold: Any = ORTHOGONAL
    dtypes: tuple[torch.dtype, ...] = (torch.float32,)


COMPLEX = {"manifold": UNITARY, "dtypes": (torch.complex128,)}

# On O(7) there are D = 21 coordinates, on U(7) 49.
CASES = {
    # The choice does not depend on the gradient: one number for every coordinate that moves.
    "one coordinate": Case(srcd(Uniform()), [1]),
    "one after the other": Case(srcd(Cyclic()), [1]),
    "one for every matrix of a batch": Case(srcd(Uniform()), [5], ((5, 7, 7),)),
    "a block": Case(srcd(Block(size=4, rule=Uniform())), [4]),
    "a matching": Case(srcd(Matching()), [3]),
    "an even matching": Case(srcd(Matching()), [4], ((8, 8),)),
    "a round of a tournament": Case(srcd(Matching("round-robin")), [3]),
    "an adaptive matching": Case(srcd(Matching(), Adam()), [3]),
    "two groups of three": Case(srcd(Grouping(3)), [2 * 3]),
    "two groups of four": Case(srcd(Grouping(4)), [2 * 6], ((9, 9),)),
    "one complex coordinate": Case(srcd(Uniform()), [1], **COMPLEX),
    "three unitary groups of two": Case(srcd(Grouping(2)), [3 * 4], **COMPLEX),
    "two special unitary groups of three": Case(
        srcd(Grouping(3)), [2 * 9], manifold=SpecialUnitaryGroup(), dtypes=(torch.complex128,)
    ),
    # Many parameters share a message, one for every type.
    "three parameters": Case(srcd(Matching()), [3 + 1 + 2], ((7, 7), (2, 2), (4, 4))),
    "two types": Case(
        srcd(Matching()), [3 + 3, 3], ((7, 7),) * 3, dtypes=(torch.float32, torch.float64)
    ),
    # A selection that looks at all has to see the average of all: the gradient, or its derivatives.
    "the steepest": Case(srcd(GaussSouthwell()), [49]),
    "a greedy matching": Case(srcd(Matching("greedy")), [21, 3]),
    "a greedy matching by another type": Case(srcd(Matching("greedy", dtype=torch.bfloat16)), [49]),
    "a steep disjoint block": Case(srcd(Block(size=2, disjoint=True)), [21, 2]),
    "a share of the norm": Case(srcd(Capture(1.0)), [21, 21]),
    "all": Case(srgd(), [49]),
    "all, adaptive": Case(srgd(scaling=Adam()), [21]),
    # DDP has averaged the gradients of parameters without a manifold.
    "without a manifold": Case(srcd(Uniform()), [], manifold=Euclidean()),
}


def train(rank: int) -> dict[str, list[tuple[list[int], int]]]:
    """For every case and step: the real numbers of each message, and how many collectives there were."""
    sent: list[int] = []
    all_reduce = dist.all_reduce

    def counted(tensor: Tensor, *args: Any, **options: Any) -> Any:
        sent.append(tensor.numel() * (2 if tensor.is_complex() else 1))
        return all_reduce(tensor, *args, **options)

    dist.all_reduce = counted
    world = dist.group.WORLD
    assert world is not None
    record: dict[str, list[tuple[list[int], int]]] = {}
    for name, case in CASES.items():
        generator = torch.Generator().manual_seed(rank)  # every process has gradients of its own
        params = []
        for i, shape in enumerate(case.shapes):
            dtype = case.dtypes[i % len(case.dtypes)]
            start = torch.eye(shape[-1], dtype=dtype).expand(shape).clone()
            params.append(ManifoldParameter(start, manifold=case.manifold))
        optimizer = case.make(params, world)
        record[name] = []
        for step in range(1 + STEPS):
            for p in params:
                p.grad = torch.randn(p.shape, dtype=p.dtype, generator=generator)
            sent.clear()
            before = world._get_sequence_number_for_group()
            optimizer.step()
            if step:  # the first one compares the processes
                collectives = world._get_sequence_number_for_group() - before
                record[name].append((list(sent), collectives))
    return record


@pytest.fixture(scope="module")
def sent():
    return processes.run(train, 2)


@pytest.mark.parametrize("name", CASES)
def test_a_step_sends_what_it_needs_and_nothing_else(sent, name):
    messages = CASES[name].messages
    for record in sent:
        assert record[name] == [(messages, len(messages))] * STEPS
