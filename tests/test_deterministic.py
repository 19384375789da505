"""Same seed, same machine, same bits: twice in a process, and in another one."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from geoopt import ManifoldParameter
from rules import METHODS, SCALINGS, build
from strategies import defect
from torch import nn

from givens.manifolds import OrthogonalGroup
from givens.optim import (
    SRCD,
    SRGD,
)
from givens.rnn import OrthogonalRNN, SequenceModel
from givens.rnn.tasks import CopyingMemory

TRAININGS = ["uniform", "block", "greedy matching", "random groups", "growing", "srgd"]
RULES = [(method, scaling) for method in METHODS for scaling in SCALINGS]


def steps(method, scaling, seed=0):
    """Bits of two points after steps along seeded gradients."""
    generator = torch.Generator().manual_seed(seed)
    manifold = OrthogonalGroup()
    p = ManifoldParameter(manifold.random(2, 9, 9, generator=generator), manifold=manifold)
    optimizer = build([p], 0.1, method, scaling, seed=seed)
    for _ in range(12):
        p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()
    return digest([p, *optimizer.state[p].values()])


def training(method, seed=0, *, autocast=False):
    """The parameters of a network after a short training, and its last loss."""
    torch.manual_seed(seed)
    task = CopyingMemory(length=4, letters=2, batch_size=8, seed=seed)
    model = SequenceModel(OrthogonalRNN(task.input_size, 12), task.output_size)
    matrices = [p for p in model.parameters() if isinstance(p, ManifoldParameter)]
    others = [p for p in model.parameters() if not isinstance(p, ManifoldParameter)]
    optimizers = [
        build(matrices, 0.1, method, seed=seed),
        torch.optim.RMSprop(others, 1e-2),
    ]
    for n in range(8):
        x, target = task[n]
        for optimizer in optimizers:
            optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = task.loss(model(x), target)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
    return [*model.parameters(), loss]


def digest(values):
    """Hash of the bits of tensors and of the text of other values."""
    content = hashlib.sha256()
    for value in values:
        if isinstance(value, torch.Tensor):
            value = value.detach().as_subclass(torch.Tensor).contiguous().numpy().tobytes()
        else:
            value = repr(value).encode()
        content.update(value)
    return content.hexdigest()


def everything():
    """What another process repeats."""
    with deterministic():
        return {
            **{f"{method}, {scaling}": steps(method, scaling) for method, scaling in RULES},
            **{f"training, {method}": digest(training(method)) for method in TRAININGS},
        }


@contextmanager
def deterministic() -> Iterator[None]:
    """Let torch refuse what is not deterministic."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@pytest.fixture(autouse=True)
def refuse_what_is_not_deterministic():
    with deterministic():
        yield


@pytest.mark.parametrize(("method", "scaling"), RULES)
def test_steps_repeat_to_the_bit(method, scaling):
    assert steps(method, scaling) == steps(method, scaling)
    assert steps(method, scaling) != steps(method, scaling, seed=1)


@pytest.mark.parametrize("method", TRAININGS)
def test_a_training_repeats_to_the_bit(method):
    assert digest(training(method)) == digest(training(method))
    assert digest(training(method)) != digest(training(method, seed=1))


def test_another_process_gets_the_same_bits():
    code = (
        "import json, torch, test_deterministic\n"
        "torch.set_num_threads(1)\n"
        "print(json.dumps(test_deterministic.everything()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == everything()


@pytest.mark.parametrize("method", TRAININGS)
def test_a_training_in_bfloat16_keeps_float32_points_on_the_manifold(method):
    """Autocast computes in bfloat16; parameters, gradients and steps stay in float32."""
    values = training(method, autocast=True)
    assert digest(values) != digest(training(method))
    assert digest(values) == digest(training(method, autocast=True))
    for value in values:
        assert value.dtype == torch.float32
        assert value.isfinite().all()
        if isinstance(value, ManifoldParameter):
            assert defect(value) <= 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_layer_of_half_precision_is_refused_wherever_it_comes_from(dtype):
    """As such, and as a part of a model that becomes one before its optimizer is built."""
    with pytest.raises(TypeError, match=f"float32.*{dtype}"):
        OrthogonalRNN(2, 4, dtype=dtype)
    model = nn.Sequential(OrthogonalRNN(2, 4)).to(dtype)
    for optimizer in (SRGD, SRCD):
        with pytest.raises(ValueError, match=f"{dtype}.*works in float32 and float64"):
            optimizer(model.parameters(), 0.1)
