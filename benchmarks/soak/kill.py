"""Kill a training run with SIGKILL at random moments: it must end with the bits of an unbroken one.

The run saves a checkpoint at every step, so that kills fall into writes, too. Every tenth comes while a
process starts, at a moment that is drawn evenly from the time that this takes; the others come at an
evenly drawn part of a step, some steps further on. After every kill both checkpoints must be whole. The
temporary file that a killed process leaves says what it was writing.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import click
import torch
from geoopt import ManifoldParameter
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts

from givens.optim import SRCD, Block
from givens.rnn import OrthogonalRNN, SequenceModel, Trainer
from givens.rnn.checkpoint import load_checkpoint, previous_checkpoint
from givens.rnn.logs import read_metrics
from givens.rnn.tasks import CopyingMemory

# Steps from one kill to the next, at most.
STRIDE = 8


def make_trainer(run_dir: Path) -> Trainer:
    """Make a run with all that a resumption has to bring back: momenta, rates, random numbers."""
    torch.manual_seed(0)
    task = CopyingMemory(length=5, letters=2, batch_size=8)
    rnn = OrthogonalRNN(task.input_size, 64, num_layers=2, dropout=0.2)
    model = SequenceModel(rnn, task.output_size, task.readout)
    points = [p for p in model.parameters() if isinstance(p, ManifoldParameter)]
    others = [p for p in model.parameters() if not isinstance(p, ManifoldParameter)]
    turning = SRCD(points, 0.01, Block(fraction=0.01))
    return Trainer(
        model,
        [turning, torch.optim.Adam(others, 1e-3)],
        task,
        run_dir,
        schedulers=[CosineAnnealingWarmRestarts(turning, 10)],
        log_every=1,
        checkpoint_every=1,
        evaluate_every=7,
        progress=False,
    )


def train(run_dir: Path, steps: int) -> None:
    """Start a run, or go on with it: what a process does that is going to be killed."""
    torch.set_num_threads(1)
    trainer = make_trainer(run_dir)
    if trainer.checkpoint_path.exists():
        trainer.resume()
    trainer.train(steps)


class Killed:
    """A run that is killed again and again.

    Parameters
    ----------
    run_dir : Path
        Its folder.
    steps : int
        Its length.
    start : str
        How `multiprocessing` starts a process.
    """

    def __init__(self, run_dir: Path, steps: int, start: str) -> None:
        self.trainer = make_trainer(run_dir)
        self.steps = steps
        self.context: Any = multiprocessing.get_context(start)
        self.writing: Counter[str] = Counter()
        self.left: set[str] = set()
        self.saved = 0

    def run(self) -> float:
        """Let a process train to the end, and return the seconds that this took."""
        started = time.perf_counter()
        process = self._process()
        process.join()
        if process.exitcode != 0:
            raise SystemExit(f"a process that was not killed ended with {process.exitcode}")
        return time.perf_counter() - started

    def kill(self, more: int, delay: float) -> bool:
        """Kill a process some steps further on and a delay later, and look at what it leaves.

        Returns
        -------
        bool
            Whether it was killed: on a machine that is busy enough it may be done before.
        """
        target = self.step() + more
        process = self._process()
        while self.step() < target and process.is_alive():
            time.sleep(0.0005)
        time.sleep(delay)
        process.kill()
        process.join()
        if process.exitcode not in (0, -signal.SIGKILL):
            raise SystemExit(f"a process ended with {process.exitcode} before it was killed")
        self._check()
        return process.exitcode != 0

    def step(self) -> int:
        """Return the step of the last record, or -1."""
        path = self.trainer.metrics_path
        lines = path.read_bytes().rsplit(b"\n", 2) if path.exists() else []
        return int(json.loads(lines[-2])["step"]) if len(lines) > 1 else -1

    def _process(self) -> BaseProcess:
        process: BaseProcess = self.context.Process(
            target=train, args=(self.trainer.run_dir, self.steps)
        )
        process.start()
        return process

    def _check(self) -> None:
        left = {path.name for path in self.trainer.run_dir.glob(".*.tmp")}
        if len(left) > 2:  # one of each checkpoint
            raise SystemExit(f"temporary files pile up: {left}")
        for name in left - self.left:
            self.writing[name.removeprefix(".").rsplit(".", 2)[0]] += 1
        self.left = left
        path = self.trainer.checkpoint_path
        if path.exists():
            step = load_checkpoint(path)["step"]
            if step < self.saved:
                raise SystemExit(f"the checkpoint went back from step {self.saved} to {step}")
            self.saved = step
        if previous_checkpoint(path).exists():
            load_checkpoint(previous_checkpoint(path))


def bits(value: Any) -> Any:
    """Return a state with bytes for tensors, and without the time that it took."""
    if isinstance(value, Tensor):
        return value.dtype, tuple(value.shape), value.contiguous().numpy().tobytes()
    if isinstance(value, Mapping):
        return {key: bits(item) for key, item in value.items() if key != "seconds"}
    if isinstance(value, (list, tuple)):
        return [bits(item) for item in value]
    return value


@click.command(help=__doc__)
@click.option("--kills", default=200, show_default=True, help="How many.")
@click.option("--seed", default=0, show_default=True, help="Of the moments.")
@click.option(
    "--start",
    type=click.Choice(["spawn", "fork"]),
    default="spawn",
    show_default=True,
    help="A fresh interpreter for every process, or, much faster, a copy of this one.",
)
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(__file__).parents[2] / "runs" / "benchmarks",
    help="Folder for the JSON file.  [default: runs/benchmarks]",
)
def main(kills: int, seed: int, start: str, output: Path) -> None:  # noqa: D103
    sys.path.append(str(Path(__file__).parents[1]))
    from report import console, show_machine, show_table, write_json  # not in what is killed

    show_machine()
    steps = (kills + 10) * STRIDE
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="kill-", dir=Path.cwd()) as folder:
        whole = Killed(Path(folder, "whole"), steps, start)
        broken = Killed(Path(folder, "broken"), steps, start)
        a_step = whole.run() / steps
        starting = whole.run()  # there is nothing left to do
        clock = time.perf_counter()
        done = 0
        for n in range(kills):
            if n % 10 == 9:
                done += broken.kill(0, rng.uniform(0, starting))
            else:
                done += broken.kill(rng.randint(1, STRIDE - 1), rng.uniform(0, a_step))
            if n % 10 == 9 or n + 1 == kills:
                console.print(
                    f"{done} kills, step {broken.step()} of {steps}, "
                    f"{time.perf_counter() - clock:.0f} s; while writing: {dict(broken.writing)}"
                )
        broken.run()
        states = [bits(load_checkpoint(run.trainer.checkpoint_path)) for run in (whole, broken)]
        records = [bits(read_metrics(run.trainer.metrics_path)) for run in (whole, broken)]
        left = [path.name for path in broken.trainer.run_dir.glob(".*.tmp")]
    same = {name: states[0][name] == states[1][name] for name in states[0] if name != "seconds"}
    same["metrics"] = records[0] == records[1]
    show_table(
        f"{done} kills in a run of {steps} steps, processes by {start}",
        ["", "same bits as unbroken"],
        [[name, "yes" if equal else "NO"] for name, equal in same.items()],
    )
    result = {
        "kills": done,
        "seed": seed,
        "start": start,
        "steps": steps,
        "records": len(records[1]),
        "killed while writing": dict(broken.writing),
        "left over": left,
        "same bits": same,
    }
    write_json(output / "kill.json", result)
    if left or not all(same.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
