"""The metrics of a run: a JSON Lines file, the same as CSV, and TensorBoard."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from ..extras import extra
from .atomic import atomic_write

Record: TypeAlias = dict[str, float]


class MetricsError(ValueError):
    """A file of metrics that cannot be read."""


class MetricsLog(Protocol):
    """Where records go: dictionaries of numbers, one of which is ``step``."""

    def write(self, record: Mapping[str, float]) -> None:
        """Take one record."""
        ...

    def sync(self) -> None:
        """Put all records on the disk: a checkpoint is about to say that they were written."""
        ...

    def close(self) -> None:
        """Finish."""
        ...


class JSONLinesLog:
    """One JSON object a line, on its way to the disk as soon as it is written.

    Parameters
    ----------
    path : Path
        The file. Records that it has already are kept where their step is under `step`: a
        run that goes on from a checkpoint will write the later ones again.
    step : int
        The step that the run starts from.
    """

    def __init__(self, path: Path, step: int = 0) -> None:
        kept = read_metrics(path) if step > 0 and path.exists() else []
        with atomic_write(path) as file:
            for record in kept:
                if record["step"] < step:
                    file.write(_line(record))
        self._path = path
        # Without a buffer: after a failed write it would fail again when the file is closed.
        self._file = path.open("ab", buffering=0)

    def write(self, record: Mapping[str, float]) -> None:
        """Append one record."""
        rest = memoryview(_line(record))
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            error.filename = str(self._path)
            raise

    def sync(self) -> None:
        """Put all records on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoardLog:
    """TensorBoard scalars.

    Parameters
    ----------
    folder : Path
        Where the event files go.
    step : int
        The step that the run starts from: what an earlier part of the run wrote from there on is
        hidden.

    Raises
    ------
    ModuleNotFoundError
        When TensorBoard is not installed (extra ``tensorboard``).
    """

    def __init__(self, folder: Path, step: int = 0) -> None:
        self._writer = summary_writer()(folder, purge_step=step)

    def write(self, record: Mapping[str, float]) -> None:
        """Write every number of a record as a scalar."""
        for name, value in record.items():
            if name != "step":
                self._writer.add_scalar(name, value, record["step"])

    def sync(self) -> None:
        """Hand all scalars to the system; TensorBoard keeps them back for up to two minutes."""
        self._writer.flush()

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()


def summary_writer() -> Any:
    """Return TensorBoard's class `SummaryWriter`.

    Raises
    ------
    ModuleNotFoundError
        When TensorBoard is not installed (extra ``tensorboard``).
    """
    with extra("tensorboard"):
        from torch.utils.tensorboard import SummaryWriter
    return SummaryWriter


def read_metrics(path: Path) -> list[Record]:
    """Read the records of a JSON Lines file.

    A last line without its end is what a crash leaves behind, and is passed over.

    Raises
    ------
    MetricsError
        When another line is not a JSON object with a ``step``, with its number.
    """
    lines = path.read_bytes().split(b"\n")[:-1]
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if (
            not isinstance(record, dict)
            or "step" not in record
            or not all(map(is_number, record.values()))
        ):
            raise MetricsError(f"{path}, line {number}: not a record of metrics")
        records.append(record)
    return records


def is_number(value: object) -> bool:
    """Whether a value read from JSON is a number that a float can hold; NaN and infinity are."""
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) <= sys.float_info.max
    return isinstance(value, float)


def write_csv(path: Path, records: list[Record]) -> None:
    """Write records as CSV, one column for each name that occurs, in the order of appearance."""
    names = list(dict.fromkeys(name for record in records for name in record))
    table = io.StringIO()
    writer = csv.DictWriter(table, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    with atomic_write(path) as file:
        file.write(table.getvalue().encode())


def _line(record: Mapping[str, float]) -> bytes:
    return json.dumps(record).encode() + b"\n"
