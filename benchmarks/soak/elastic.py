"""Kill and stop processes of a sharded run under torchrun: it must end as an unbroken one does.

The run is the example docs/examples/distributed/checkpoint.py, in float64, with a checkpoint at every second
step. A process that is drawn at random gets SIGKILL at a random moment of a step that is drawn too, every
tenth time SIGSTOP, which the others notice by their timeout. torchrun starts all of them again. With
the same number of processes the end has to be that of the unbroken run to the last bit. In the
last run every blow ends torchrun, and another number of processes goes on: the same to rounding.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import timedelta
from itertools import chain, cycle, repeat
from pathlib import Path
from typing import Any

import click
import torch

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples" / "distributed"
# Steps from one blow to the next, at most, and seconds after which a process that hangs is given up.
STRIDE = 8
TIMEOUT = 15


def work(folder: Path, steps: int) -> None:
    """Train, as a process that torchrun has started, and tell who and where it is."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    sys.path.insert(0, str(EXAMPLES))
    import checkpoint

    place = folder / f"rank{os.environ['RANK']}"
    update = checkpoint.update

    def tell(net: Any, optimizers: Any, step: int) -> None:
        temporary = place.with_suffix(".tmp")
        temporary.write_text(f"{os.getpid()} {os.environ['TORCHELASTIC_RESTART_COUNT']} {step}")
        temporary.replace(place)
        update(net, optimizers, step)

    checkpoint.update = tell
    checkpoint.STEPS, checkpoint.EVERY = steps, 2
    checkpoint.TIMEOUT = timedelta(seconds=TIMEOUT)
    checkpoint.main(folder / "checkpoints")


class Run:
    """A run that is struck again and again.

    Parameters
    ----------
    folder : Path
        Its folder, which must exist.
    steps : int
        Its length.
    rng : random.Random
        Draws processes and moments.
    """

    def __init__(self, folder: Path, steps: int, rng: random.Random) -> None:
        self.folder = folder
        self.steps = steps
        self.rng = rng
        self.struck = {"SIGKILL": 0, "SIGSTOP": 0}
        self.unfinished: set[str] = set()  # checkpoints that were being written

    def train(self, size: int, blows: Iterator[signal.Signals], max_restarts: int) -> bool:
        """Start torchrun, strike its processes while there are blows; return whether it got to the end."""
        for place in self.folder.glob("rank*"):
            place.unlink()
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *(f"--nproc-per-node={size}", f"--max-restarts={max_restarts}"),
            *("--monitor-interval=0.1", __file__, str(self.folder), str(self.steps)),
        ]
        environment = {
            **os.environ,
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
            "OMP_NUM_THREADS": "1",
        }
        with (
            (self.folder / "log").open("ab") as log,
            subprocess.Popen(command, env=environment, stdout=log, stderr=log) as torchrun,
        ):
            for restart in range(max_restarts + 1):
                blow = next(blows, None)
                if blow is None or not self.strike(torchrun, size, restart, blow):
                    break
            return torchrun.wait() == 0

    def strike(
        self, torchrun: subprocess.Popen[bytes], size: int, restart: int, blow: signal.Signals
    ) -> bool:
        """Strike one process in a step that it comes to; return whether there was still one."""
        place = self.folder / f"rank{self.rng.randrange(size)}"
        first, further = None, self.rng.randrange(STRIDE)
        while torchrun.poll() is None:
            began = time.perf_counter()
            pid, now, step = map(int, place.read_text().split()) if place.exists() else (0, -1, 0)
            if now == restart:
                first = step if first is None else first
                if step >= first + further:
                    time.sleep(self.rng.uniform(0, 0.1))
                    try:
                        os.kill(pid, blow)
                    except ProcessLookupError:  # it has come to its end
                        return False
                    self.struck[blow.name] += 1
                    self.unfinished |= {
                        path.name
                        for path in (self.folder / "checkpoints").glob("0*")
                        if not (path / ".metadata").exists()
                    }
                    return True
            time.sleep(max(0, 0.002 - (time.perf_counter() - began)))
        return False

    def result(self) -> dict[str, torch.Tensor]:
        """Return the numbers of the last checkpoint, whole."""
        from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

        dcp_to_torch_save(self.folder / "checkpoints" / f"{self.steps:08d}", self.folder / "whole")
        found: dict[str, torch.Tensor] = {}

        def collect(name: str, value: Any) -> None:
            if isinstance(value, dict):
                for key, part in value.items():
                    collect(f"{name}.{key}", part)
            elif isinstance(value, (int, float, torch.Tensor)):
                found[name] = torch.as_tensor(value, dtype=torch.float64)

        collect("", torch.load(self.folder / "whole", weights_only=False))
        return found


@click.command(help=__doc__)
@click.option("--blows", default=20, show_default=True, help="How many, of every run.")
@click.option("--seed", default=0, show_default=True, help="Of processes and moments.")
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(__file__).parents[2] / "runs" / "benchmarks",
    help="Folder for the JSON file.  [default: runs/benchmarks]",
)
def main(blows: int, seed: int, output: Path) -> None:  # noqa: D103
    sys.path.append(str(Path(__file__).parents[1]))
    from report import console, show_machine, show_table, write_json

    show_machine()
    rng = random.Random(seed)
    steps = (blows + 2) * STRIDE
    signals = [signal.SIGSTOP if n % 10 == 9 else signal.SIGKILL for n in range(blows)]
    runs = []
    with tempfile.TemporaryDirectory(prefix="elastic-") as folder:

        def start(name: str) -> Run:
            Path(folder, name).mkdir()
            return Run(Path(folder, name), steps, rng)

        expected = {}
        for size in (2, 4):
            whole = start(f"unbroken {size}")
            assert whole.train(size, iter(()), 0), (whole.folder / "log").read_text()[-2000:]
            expected[size] = whole.result()
        for name, sizes, restarts in [
            ("2", repeat(2, 1), blows),
            ("4", repeat(4, 1), blows),
            ("2, 4, 3, 2, …", chain(cycle((2, 4, 3))), 0),
        ]:
            run = start(name)
            clock = time.perf_counter()
            left = iter(signals)
            if not any(run.train(size, left, restarts) for size in sizes):
                raise SystemExit((run.folder / "log").read_text()[-2000:])
            found, reference = run.result(), expected[4 if name == "4" else 2]
            assert found.keys() == reference.keys()
            differences = [float((found[key] - reference[key]).abs().max()) for key in found]
            runs.append(
                {
                    "processes": name,
                    **run.struck,
                    "steps": steps,
                    "checkpoints that were being written": len(run.unfinished),
                    "largest difference": max(differences),
                    "seconds": round(time.perf_counter() - clock, 1),
                }
            )
            console.print(runs[-1])
    show_table(
        f"A run of {steps} steps that is struck, beside one that is not",
        list(runs[0]),
        [[str(value) for value in run.values()] for run in runs],
    )
    write_json(output / "elastic.json", {"seed": seed, "runs": runs})
    if runs[0]["largest difference"] or runs[1]["largest difference"]:
        raise SystemExit("another end than that of the unbroken run")


if __name__ == "__main__":
    if "TORCHELASTIC_RESTART_COUNT" in os.environ:
        work(Path(sys.argv[1]), int(sys.argv[2]))
    else:
        main()
