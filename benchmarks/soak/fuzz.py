"""Fuzzing: what no one would type, and checkpoints that no one has written.

Three targets, in turn:

- *arguments*: calls of ``givens``, of its own options with values that are right, wrong or absurd, on
  folders that hold a run, a damaged run, no run. Training is cut to two steps of a tiny model. A call
  must return; unless its status is 0 it must say why in one line, ``givens: error: …``.
- *checkpoint*: a good checkpoint with bytes flipped, cut, repeated and moved, with entries of the zip
  renamed, doubled, left out or filled with something else, and with other pickles in it.
  ``load_checkpoint`` must return what was saved, or raise ``CheckpointError``; no code of a pickle runs.
- *run*: a folder whose ``config.json``, ``metrics.jsonl`` and ``checkpoint.pt`` are damaged or hold
  other values, plotted and resumed.

    python benchmarks/soak/fuzz.py --inputs 30000 --seed 0
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import pickle
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from report import console, output_option, show_machine, show_table, write_json

from givens.rnn import Trainer, cli
from givens.rnn.checkpoint import CheckpointError, load_checkpoint, save_checkpoint

MEMORY = 2**31  # bytes that a call may come to hold beside what is there

NUMBERS = [
    "0", "-0", "1", "2", "3", "-1", "0.5", "1e-3", "1e-45", "1e-400", "1e30", "1e39", "1e308", "1e400",
    "nan", "-nan", "inf", "-inf", "0x10", "1_000", "٣", "1e", "65536", "65537", "2147483647",
    "2147483648", "1000000000", "9223372036854775807", "9223372036854775808", "9" * 400, "9" * 5000,
]  # fmt: skip
TEXTS = [
    "",
    " ",
    "-",
    "--",
    "\0",
    "\n",
    "é",
    "𝕊",
    "\udcff",
    "a" * 300,
    "a" * 5000,
    "%s",
    "{}",
    "$\\frac$",
]
TEXTS += [
    "'",
    '"',
    "--help",
    "null",
    "[]",
    "../x",
    "\x1b[31m",
    "\u202e",
    "cuda",
    "cuda:99",
    "cpu:7",
]
TEXTS += ["meta", "mps", "xla", "cpu:-1"]
PATHS = [
    "run", "empty", "file", "file/x", "missing", "missing/deep/er", "/dev/null", "/dev/null/x", "/proc/x",
    "link", "loop", "x" * 300, "x/" * 3000, "ünï", "_hidden", "$1^2$", "a b", "damaged", ".", "..",
    "pipe.png", "out.png", "out.svg", "out.pdf", "out.xyz", "out", "run/config.json", "empty/out.png",
]  # fmt: skip
OPTIONS: dict[str, list[str]] = {
    "--rnn": ["orthogonal", "unitary"],
    "--optimizer": ["srcd", "srgd", "frozen"],
    "--selection": ["uniform", "cyclic", "gauss-southwell", "block"],
    "--block-fraction": ["0.5", "1", "0.001"],
    "--block-size": ["1", "3", "28"],
    "--block-rule": ["uniform", "gauss-southwell"],
    "--lr": ["0", "0.1", "1e-3"],
    "--momentum": ["0", "0.9"],
    "--other-optimizer": ["sgd", "rmsprop", "adam"],
    "--other-lr": ["0", "0.01"],
    "--hidden-size": ["2", "3", "8"],
    "--init": ["henaff-cayley", "henaff-expm", "haar", "phases", "identity"],
    "--nonlinearity": ["modrelu", "relu", "tanh", "identity"],
    "--iterations": ["1", "2", "5"],
    "--batch-size": ["1", "4"],
    "--seed": ["0", "7"],
    "--device": ["cpu"],
    "--dtype": ["float32", "float64"],
    "--run-dir": PATHS,
    "--log-every": ["1", "2"],
    "--checkpoint-every": ["1", "2"],
    "--evaluate-every": ["1", "3"],
    "--length": ["1", "2", "5"],
    "--letters": ["1", "3"],
}
FLAGS = [
    "--disjoint",
    "--overlapping",
    "--resume",
    "--overwrite",
    "--permuted",
    "--in-order",
    "--tensorboard",
]
FLAGS += ["--help", "-h", "--version"]
TINY = ["--hidden-size", "4", "--batch-size", "2"]

VALUES: list[Any] = [
    None, True, 0, -1, 1, 3, 2**63, 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf"), "", "x",
    "$\\frac$", "é\ud800", [], [1], {}, {"a": 1}, [[[]]], "\0", "1",
]  # fmt: skip


class ExecutedError(Exception):
    """A pickle ran code."""


class Payload:
    """What a malicious pickle holds: a call."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


def arguments(rng: random.Random) -> list[str]:
    """Draw a call of ``givens``."""
    command = rng.choices(["train", "plot", "info", rng.choice(TEXTS)], [12, 4, 0.1, 0.3])[0]
    if command == "plot":
        drawn = ["plot", *rng.choices(PATHS + TEXTS, k=rng.randint(0, 3))]
        if rng.random() < 0.8:
            drawn += ["-o", rng.choice(PATHS + TEXTS)]
        return drawn
    if command != "train":
        return [command, *rng.choices(TEXTS + FLAGS, k=rng.randint(0, 2))]
    task = rng.choices(["copying", "adding", "digits", rng.choice(TEXTS)], [6, 3, 0.3, 0.2])[0]
    drawn = ["train", task, *(TINY if rng.random() < 0.95 else [])]
    if task == "copying":
        drawn += ["--length", "3", "--letters", "2"]
    if task == "adding":
        drawn += ["--length", "4"]
    absurd = rng.choice([0, 0, 0.1, 0.5])
    for option in rng.sample([*OPTIONS], rng.randint(0, 6)):
        right = OPTIONS[option]
        drawn += [option, rng.choice(NUMBERS + TEXTS if rng.random() < absurd else right)]
    drawn += rng.sample(FLAGS[:-3], rng.choice([0, 0, 1, 1, 2]))
    if rng.random() < 0.05:
        drawn.insert(rng.randint(0, len(drawn)), rng.choice(TEXTS + FLAGS))
    return drawn


def damaged_bytes(rng: random.Random, data: bytes) -> bytes:
    """Flip, cut, repeat, move or overwrite bytes, a few times."""
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5, 20])):
        if not out:
            break
        a, b = sorted(rng.choices(range(len(out) + 1), k=2))
        kind = rng.randrange(7)
        if kind == 0:
            out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del out[a:]
        elif kind == 2:
            del out[a : a + rng.randint(1, 64)]
        elif kind == 3:
            out[a:a] = out[a : a + rng.randint(1, 64)]
        elif kind == 4:
            out[a : a + 8] = rng.choice([b"\0" * 8, b"\xff" * 8, rng.randbytes(8)])
        elif kind == 5:
            out[a:b], out[b:] = out[b:], out[a:b]
        else:
            out[a:a] = rng.randbytes(rng.randint(1, 64))
    return bytes(out)


def other_zip(rng: random.Random, data: bytes, marker: Path) -> bytes:
    """The archive of a checkpoint with other entries, and checksums that are right."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = [(info.filename, archive.read(info)) for info in archive.infolist()]
    names = [name for name, _ in entries]
    for _ in range(rng.randint(1, 3)):
        i = rng.randrange(len(entries))
        name, content = entries[i]
        kind = rng.randrange(9)
        if kind == 0:
            entries[i] = name, damaged_bytes(rng, content)
        elif kind == 1 and len(entries) > 1:
            del entries[i]
        elif kind == 2:
            entries[i] = (
                rng.choice([*names, "x", "../x", "/x", name + "/", "é", "archive/data.pkl"]),
                content,
            )
        elif kind == 3:
            entries.append((name, rng.randbytes(rng.randint(0, 100))))
        elif kind == 4:
            entries[i] = name, b"\0" * rng.choice([0, 1, 2**16])
        elif kind == 5:
            rng.shuffle(entries)
        else:
            number = next((n for n, (own, _) in enumerate(entries) if own.endswith("data.pkl")), i)
            entries[number] = entries[number][0], other_pickle(rng, entries[number][1], marker)
    out = io.BytesIO()
    compression = rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of doubled names
        with zipfile.ZipFile(out, "w", compression) as archive:
            for name, content in entries:
                archive.writestr(name, content)
    return out.getvalue()


def other_pickle(rng: random.Random, content: bytes, marker: Path) -> bytes:
    """Another pickle for a checkpoint: one that calls, one of other values, a damaged one."""
    kind = rng.randrange(5)
    if kind == 0:
        return pickle.dumps({"format": "givens checkpoint", "model": Payload(marker)}, protocol=2)
    if kind == 1:
        return b"cos\nsystem\n(S'mkdir " + str(marker).encode() + b"'\ntR."
    if kind == 2:
        return pickle.dumps(rng.choice(VALUES), protocol=2)
    if kind == 3:  # numbers in the pickle: sizes, strides, offsets of tensors
        out = bytearray(content)
        places = [i for i, byte in enumerate(out[:-5]) if byte in b"KMJ"]
        for i in rng.sample(places, min(len(places), rng.randint(1, 3))):
            width = {ord("K"): 1, ord("M"): 2, ord("J"): 4}[content[i]]
            out[i + 1 : i + 1 + width] = rng.choice(
                [
                    b"\xff" * width,
                    b"\0" * width,
                    b"\xff" * (width - 1) + b"\x7f",
                    rng.randbytes(width),
                ]
            )
        return bytes(out)
    return damaged_bytes(rng, content)


def other_state(rng: random.Random, state: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint's state, well written, with something else in one of its places."""
    state = copy.deepcopy(state)
    place: Any = state
    for _ in range(rng.randint(1, 5)):
        if isinstance(place, dict) and place:
            key: Any = rng.choice([*place])
        elif isinstance(place, list) and place:
            key = rng.randrange(len(place))
        else:
            break
        inner = place[key]
        if not isinstance(inner, dict | list) or not inner or rng.random() < 0.3:
            if isinstance(place, dict) and rng.random() < 0.2:
                del place[key]
            else:
                place[key] = rng.choice([v for v in VALUES if v != "é\ud800"])
            break
        place = inner
    return state


@contextlib.contextmanager
def short_training() -> Iterator[None]:
    """Cut training to two steps, and leave out the bar."""
    train = Trainer.train

    def two_steps(self: Trainer, steps: int, *, overwrite: bool = False) -> dict[str, float]:
        self.progress = False
        return train(self, min(steps, max(0, self.step) + 2), overwrite=overwrite)

    Trainer.train = two_steps  # type: ignore[method-assign]
    try:
        yield
    finally:
        Trainer.train = train  # type: ignore[method-assign]


class Fuzzer:
    """The inputs of one seed, in a folder of its own, and what came of them.

    Parameters
    ----------
    folder : Path
        An empty folder, which becomes the working directory.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.rng = random.Random(seed)
        self.outcomes: dict[str, Counter[str]] = {}
        self.failures: list[dict[str, Any]] = []
        self.reset()
        self.call(
            [
                *[
                    "train",
                    "copying",
                    "--length",
                    "3",
                    "--letters",
                    "2",
                    "--iterations",
                    "2",
                    "--run-dir",
                    "run",
                ],
                *TINY,
            ]
        )
        self.good = {path.name: path.read_bytes() for path in (folder / "run").iterdir()}
        self.state = load_checkpoint(folder / "run" / "checkpoint.pt")
        self.marker = folder / "executed"

    def reset(self) -> None:
        """Put the folder back to what every call begins with."""
        for path in self.folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        (self.folder / "empty").mkdir()
        (self.folder / "file").write_text("mine")
        (self.folder / "link").symlink_to("run")
        (self.folder / "loop").symlink_to("loop")
        for name in ("run", "damaged", "_hidden", "$1^2$"):
            if hasattr(self, "good"):
                (self.folder / name).mkdir()
                for file, content in self.good.items():
                    (self.folder / name / file).write_bytes(content)

    def call(self, arguments: list[str]) -> str:
        """Call ``givens``; return how it ended, or raise what it should not have let through."""
        out, err = io.StringIO(), io.StringIO()
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            status = cli.main(arguments)
        out.getvalue().encode()
        last = err.getvalue().splitlines()[-1:] or [""]
        if status not in (0, 1, 2):
            raise AssertionError(f"status {status}: {err.getvalue()[-500:]}")
        if status and not (
            last[0].startswith("givens: error: ") and "Traceback" not in err.getvalue()
        ):
            raise AssertionError(
                f"status {status} without an explanation: {err.getvalue()[-500:]!r}"
            )
        return f"status {status}"

    def arguments(self) -> tuple[Any, Any]:
        """One call of the command line."""
        drawn = arguments(self.rng)
        return drawn, lambda: self.call(drawn)

    def checkpoint(self) -> tuple[Any, Any]:
        """One file for the reader."""
        data, path = self.good["checkpoint.pt"], self.folder / "fuzzed.pt"
        kind = self.rng.choices(["bytes", "zip", "random"], [5, 5, 0.5])[0]
        if kind == "bytes":
            data = damaged_bytes(self.rng, data)
        elif kind == "zip":
            data = other_zip(self.rng, data, self.marker)
        else:
            data = self.rng.choice(
                [b"", b"PK\x05\x06" + b"\0" * 18, b"PK\x03\x04"]
            ) + self.rng.randbytes(99)

        def read() -> str:
            path.write_bytes(data)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    state = load_checkpoint(path)
            except CheckpointError as error:
                if "\n" in str(error):
                    raise AssertionError("an error of several lines") from error
                return "refused"
            if kind == "bytes" and repr(state) != repr(self.state):
                raise AssertionError("damaged bytes were read as something else")
            return "read"

        return kind, read

    def run(self) -> tuple[Any, Any]:
        """One damaged folder, plotted or resumed."""
        rng, run = self.rng, self.folder / "damaged"
        what = rng.choice(["config.json", "metrics.jsonl", "checkpoint.pt"])
        if what == "checkpoint.pt":
            state = other_state(rng, self.state)
            content = None
        elif rng.random() < 0.4:
            content = damaged_bytes(rng, self.good[what])
        elif what == "config.json":
            config = json.loads(self.good[what])
            config[rng.choice([*config])] = rng.choice(VALUES)
            content = json.dumps(rng.choice([config, config, rng.choice(VALUES)])).encode()
        else:
            record = {"step": 0, "loss": 1.0}
            record[rng.choice([*record])] = rng.choice(VALUES)
            content = (
                json.dumps(rng.choice([record, record, rng.choice(VALUES)])) + "\n"
            ).encode() * 2
        if rng.random() < 0.02:
            content = b"[" * 100_000
        resume = ["train", "copying", "--run-dir", "damaged", "--resume", "--iterations", "4"]
        call = rng.choice([["plot", "damaged", "-o", "out.svg"], resume]) if content else resume

        def use() -> str:
            if content is None:
                save_checkpoint(run / what, state)
            else:
                (run / what).write_bytes(content)
            return self.call(call)

        return (what, call, content if content is None else content[-300:].decode("latin1")), use

    def fuzz(self, target: str) -> None:
        """Try one input of a target."""
        drawn, attempt = getattr(self, target)()
        counter = self.outcomes.setdefault(target, Counter())
        try:
            outcome = attempt()
            if self.marker.exists():
                raise ExecutedError("a pickle has made a folder")
        except (Exception, SystemExit) as error:
            outcome = "failed"
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(place.filename).name}:{place.lineno}"
            self.failures.append(
                {
                    "target": target,
                    "input": repr(drawn)[:1000],
                    "error": repr(error)[:500],
                    "where": where,
                }
            )
        counter[outcome] += 1
        if target != "checkpoint":
            self.reset()


@click.command(context_settings={"show_default": True})
@click.option("--inputs", type=click.IntRange(min=3), default=30_000, help="How many, in all.")
@click.option("--seed", type=int, default=0, help="Of the inputs: the same seed, the same inputs.")
@output_option
def main(inputs: int, seed: int, output: Path) -> None:
    """Fuzz the command line and the checkpoint reader."""
    torch.set_num_threads(1)
    show_machine()
    shares = {"checkpoint": 0.9, "arguments": 0.06, "run": 0.04}  # a checkpoint is the quickest
    soft = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    back = Path.cwd()
    seconds = {}
    with tempfile.TemporaryDirectory() as folder, short_training():
        os.chdir(folder)
        try:
            fuzzer = Fuzzer(Path(folder), seed)
            for target, share in shares.items():
                start = time.perf_counter()
                for _ in range(round(share * inputs)):
                    fuzzer.fuzz(target)
                seconds[target] = round(time.perf_counter() - start, 1)
        finally:
            os.chdir(back)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - soft) * 1024
    rows = [
        [target, f"{sum(counts.values()):,}", str(counts["failed"]), f"{seconds[target]} s"]
        for target, counts in fuzzer.outcomes.items()
    ]
    show_table(f"fuzzing, seed {seed}", ["target", "inputs", "failures", "time"], rows)
    for failure in fuzzer.failures[:20]:
        console.print(failure, markup=False)
    write_json(
        output / "fuzz.json",
        {
            "seed": seed,
            "inputs": inputs,
            "outcomes": {target: dict(counts) for target, counts in fuzzer.outcomes.items()},
            "seconds": seconds,
            "memory grown, MiB": round(grown / 2**20),
            "failures": fuzzer.failures,
        },
    )
    if fuzzer.failures or grown > MEMORY:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
