"""Damage a checkpoint in every place: it must be refused, or hold what was saved.

Every bit is flipped, every byte inverted, every block of 64 and of 512 bytes zeroed, and the file is cut
at every length.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import click
import torch

from givens.rnn.checkpoint import CheckpointError, load_checkpoint, save_checkpoint

sys.path.append(str(Path(__file__).parents[1]))

from report import output_option, show_machine, show_table, write_json

STATE = {
    "step": 7,
    "model": {"weight": torch.arange(12.0).reshape(3, 4), "count": torch.tensor(2**40)},
    "optimizers": [{"lr": 0.1, "betas": (0.9, 0.99), "name": "x", "none": None, "flag": True}],
}


def damaged(good: bytes) -> Iterator[tuple[str, bytes]]:
    """Give out every damage and its kind."""
    for place in range(8 * len(good)):
        byte = good[place // 8] ^ 1 << place % 8
        yield "a bit flipped", replace(good, place // 8, bytes([byte]))
    for place, byte in enumerate(good):
        yield "a byte inverted", replace(good, place, bytes([byte ^ 0xFF]))
    for size in (64, 512):
        for place in range(0, len(good), 64):
            zeros = bytes(min(size, len(good) - place))
            yield f"{size} bytes zeroed", replace(good, place, zeros)
    for length in range(len(good)):
        yield "cut", good[:length]


def replace(good: bytes, place: int, new: bytes) -> bytes:
    """Return bytes with others in a place."""
    return good[:place] + new + good[place + len(new) :]


@click.command(help=__doc__)
@output_option
def main(output: Path) -> None:  # noqa: D103
    show_machine()
    counts: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "checkpoint.pt")
        save_checkpoint(path, STATE)
        saved = repr(load_checkpoint(path))
        good = path.read_bytes()
        for kind, data in damaged(good):
            path.write_bytes(data)
            try:
                outcome = "harmless" if repr(load_checkpoint(path)) == saved else "WRONG"
            except CheckpointError:
                outcome = "noticed"
            counts.setdefault(kind, Counter())[outcome] += 1
    outcomes = ("noticed", "harmless", "WRONG")
    show_table(
        f"a checkpoint of {len(good)} bytes",
        ["damage", *outcomes],
        [[kind, *(f"{count[name]:,}" for name in outcomes)] for kind, count in counts.items()],
    )
    write_json(output / "damage.json", {"bytes": len(good), "counts": counts})
    if any(count["WRONG"] for count in counts.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
