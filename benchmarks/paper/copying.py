"""The paper's experiment: an orthogonal RNN learns to copy, with one stepsize for everything.

A run is one method and one seed. It leaves its losses and the partial derivatives at its two ends in
a folder, and is not done again where these are there: what was interrupted goes on, and Figure 2
reads what was trained for Figure 3.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim import SGD, Optimizer

from givens.manifolds import All
from givens.optim import SRCD, SRGD, Block, GaussSouthwell, Uniform
from givens.rnn.atomic import atomic_write
from givens.rnn.layer import OrthogonalRNN
from givens.rnn.model import SequenceModel
from givens.rnn.tasks import CopyingMemory

sys.path.append(str(Path(__file__).parents[1]))

from report import console, write_json


@dataclass(frozen=True)
class Settings:
    """Sizes of the experiment, in the paper's letters: d, L, K, batch size, iterations, α."""

    hidden_size: int
    length: int
    letters: int = 10
    batch_size: int = 128
    iterations: int = 500
    lr: float = 2e-4

    @property
    def name(self) -> str:
        """Name for the folder of the runs."""
        return (
            f"copying-d{self.hidden_size}-L{self.length}-K{self.letters}-B{self.batch_size}"
            f"-N{self.iterations}-lr{self.lr:g}"
        )

    def title(self) -> str:
        """Return the settings as the title of a table or picture."""
        return (
            f"copying task, L = {self.length}, K = {self.letters}, d = {self.hidden_size}, "
            f"batch {self.batch_size}, stepsize {self.lr:g}"
        )


PAPER = Settings(hidden_size=190, length=1000)
SMALL = Settings(hidden_size=64, length=100, iterations=100)


def _frozen(model: SequenceModel, lr: float, seed: int) -> Optimizer:
    recurrent = model.rnn.weight_hh_l0
    return SGD([p for p in model.parameters() if p is not recurrent], lr)


# What updates W. Everything else takes steps of plain SGD with the same stepsize, as in the paper.
METHODS: dict[str, Callable[[SequenceModel, float, int], Optimizer]] = {
    "frozen": _frozen,
    "srcd-u": lambda model, lr, seed: SRCD(model.parameters(), lr, Uniform(), seed=seed),
    "srcd-gs": lambda model, lr, seed: SRCD(model.parameters(), lr, GaussSouthwell(), seed=seed),
    "block": lambda model, lr, seed: SRCD(model.parameters(), lr, Block(fraction=0.005), seed=seed),
    "srgd": lambda model, lr, seed: SRGD(model.parameters(), lr),
}
NAMES = {
    "frozen": "W frozen",
    "srcd-u": "SRCD-U",
    "srcd-gs": "SRCD-GS",
    "block": "block, 0.5 %",
    "srgd": "SRGD",
}


@dataclass(frozen=True)
class Run:
    """One method, one seed.

    Attributes
    ----------
    losses : ndarray
        Loss on batch n after n updates, n = 0 … iterations.
    derivatives : dict of str to ndarray
        All D partial derivatives of the recurrent matrix, over one batch: ``"start"``, ``"end"``.
    seconds : float
        Wall time of the training, over its iterations.
    """

    losses: np.ndarray
    derivatives: dict[str, np.ndarray]
    seconds: float


def make_model(settings: Settings, task: CopyingMemory, seed: int) -> SequenceModel:
    """Make the paper's network, which depends on the seed and not on the method."""
    torch.manual_seed(seed)
    rnn = OrthogonalRNN(task.input_size, settings.hidden_size, init="henaff-cayley")
    return SequenceModel(rnn, task.output_size)


def make_task(settings: Settings, seed: int) -> CopyingMemory:
    """Make the batches, which depend on the seed and not on the method."""
    return CopyingMemory(settings.length, settings.letters, settings.batch_size, seed=seed)


def train(settings: Settings, method: str, seed: int) -> tuple[Run, float]:
    """Do one run; also return the largest entry of WᵀW − I at its end."""
    task = make_task(settings, seed)
    model = make_model(settings, task, seed)
    optimizer = METHODS[method](model, settings.lr, seed)
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    start = _derivatives(model, task, 0)[1]
    for p in model.parameters():
        p.requires_grad_(id(p) in trained)
    losses = []
    clock = time.perf_counter()
    for n in range(settings.iterations):
        input, target = task[n]
        optimizer.zero_grad()
        loss = task.loss(model(input), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    seconds = (time.perf_counter() - clock) / settings.iterations
    last, end = _derivatives(model, task, settings.iterations)
    weight = model.rnn.weight_hh_l0.detach().double()
    drift = float((weight.mT @ weight - torch.eye(len(weight), dtype=weight.dtype)).abs().max())
    run = Run(np.array([*losses, last]), {"start": start, "end": end}, seconds)
    return run, drift


def _derivatives(model: SequenceModel, task: CopyingMemory, n: int) -> tuple[float, np.ndarray]:
    """Return the loss on batch n and the partial derivatives of the recurrent matrix."""
    weight = model.rnn.weight_hh_l0.requires_grad_(True)
    input, target = task[n]
    loss = task.loss(model(input), target)
    (gradient,) = torch.autograd.grad(loss, [weight])
    derivatives = weight.manifold.derivatives(weight.detach(), gradient, All())
    return loss.item(), derivatives.numpy()


def runs(
    settings: Settings, methods: Sequence[str], seeds: Sequence[int], folder: Path, jobs: int
) -> dict[str, list[Run]]:
    """Return the runs of methods, a list over the seeds each, and train those that are missing.

    Parameters
    ----------
    settings : Settings
        Sizes.
    methods, seeds : sequence
        What to run. Seeds come first, so that an interrupted comparison has whole seeds.
    folder : Path
        Where the runs of these settings lie.
    jobs : int
        Processes that train at a time, with one thread each: at these sizes two processes do more
        than one with two threads.
    """
    wanted = [(method, seed) for seed in seeds for method in methods]
    missing = [key for key in wanted if not _path(folder, *key).exists()]
    if missing:
        console.print(f"{len(wanted) - len(missing)} of {len(wanted)} runs are in {folder}")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, torch.set_num_threads, (1,)) as pool:
        futures = {pool.submit(_train_and_save, settings, *key, folder): key for key in missing}
        for future in as_completed(futures):
            method, seed = futures[future]
            console.print(f"{NAMES[method]}, seed {seed}: {future.result()}")
    return {method: [_load(_path(folder, method, seed)) for seed in seeds] for method in methods}


def _path(folder: Path, method: str, seed: int) -> Path:
    return folder / f"{method}-seed{seed}.json"


def _train_and_save(settings: Settings, method: str, seed: int, folder: Path) -> str:
    run, drift = train(settings, method, seed)
    path = _path(folder, method, seed)
    result: dict[str, Any] = {
        "settings": asdict(settings),
        "method": method,
        "seed": seed,
        "seconds per iteration": run.seconds,
        "max |WᵀW − I|": drift,
        "losses": run.losses.tolist(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path.with_suffix(".npz")) as file:
        np.savez(file, **run.derivatives)
    write_json(path, result)  # last: it says that the run is complete
    return (
        f"loss {run.losses[0]:.3f} → {run.losses[-1]:.4f}, "
        f"{run.seconds:.3f} s an iteration, max |WᵀW − I| = {drift:.1e}"
    )


def _load(path: Path) -> Run:
    result = json.loads(path.read_bytes())
    with np.load(path.with_suffix(".npz")) as derivatives:
        return Run(np.array(result["losses"]), dict(derivatives), result["seconds per iteration"])
