"""Checkpoints: plain data, written atomically, and read back with suspicion."""

from __future__ import annotations

import zipfile
from collections import Counter, OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .atomic import atomic_write

FORMAT = "givens checkpoint"
VERSION = 1
# The bit of a zip record's external attributes that calls it a folder (MS-DOS).
FOLDER = 0x10


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be read, or does not fit what it is loaded into."""


def plain(value: Any, name: str = "state") -> Any:
    """Copy a state down to plain data: what `torch.load` reads with ``weights_only=True``.

    Tensors become copies on the CPU, without their subclass (a saved `geoopt.ManifoldParameter`
    could not be read back) and with the same strides.

    Parameters
    ----------
    value
        Nested dictionaries, lists and tuples of tensors, numbers, strings and None.
    name : str
        What the value is called in an error.

    Raises
    ------
    TypeError
        When something else is in it, naming the place.
    """
    if isinstance(value, Tensor):
        return value.detach().as_subclass(Tensor).to("cpu", copy=True)
    if isinstance(value, Mapping):
        # A Counter stays one: a milestone scheduler asks it for keys that it does not have.
        mapping = type(value) if isinstance(value, (Counter, OrderedDict)) else dict
        return mapping({key: plain(item, f"{name}[{key!r}]") for key, item in value.items()})
    if isinstance(value, (list, tuple)):
        items = [plain(item, f"{name}[{i}]") for i, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    if isinstance(value, (bool, type(None), torch.dtype, torch.device)):
        return value
    # Numbers and strings lose their subclass, which may not be loadable: numpy's float64 is one.
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, str):
        return str(value)
    raise TypeError(
        f"a checkpoint holds plain data only (tensors, numbers, strings, lists, dictionaries); "
        f"{name} is a {type(value).__qualname__}"
    )


def previous_checkpoint(path: Path) -> Path:
    """Return the name that the checkpoint at `path` gets when the next one replaces it."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state to a file; what `path` was before is kept as `previous_checkpoint`.

    When writing fails, both files stay as they were. At no moment is there none that is whole.

    Parameters
    ----------
    path : Path
        The file to create or replace.
    state : mapping
        Plain data (see `plain`).

    Raises
    ------
    OSError
        When the file cannot be written.
    """
    with atomic_write(path, previous=previous_checkpoint(path)) as file:
        try:
            torch.save({"format": FORMAT, "version": VERSION, **state}, file)
        except RuntimeError as error:  # what torch makes of some failed writes
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise OSError(f"{path} could not be written: {str(error).splitlines()[0]}") from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote, onto the CPU, and without running any code from it.

    Raises
    ------
    CheckpointError
        When there is no such file, or it is damaged, or was written by something else. It names
        the checkpoint before it, where there is one.
    """
    try:
        return _load(path)
    except CheckpointError as error:
        raise CheckpointError(f"{error}{mention_previous(path)}") from error.__cause__


def mention_previous(path: Path) -> str:
    """Return what an error about the checkpoint at `path` says of the one before it."""
    previous = previous_checkpoint(path)
    if not previous.exists():
        return ""
    return (
        f"; the checkpoint before it is {previous}: to go on from there, resume('previous'), or "
        "--resume previous"
    )


def _load(path: Path) -> dict[str, Any]:
    unreadable = f"{path} is damaged, or not a checkpoint of givens; it was left as it is"
    try:
        _check_archive(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint at {path}") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # damaged bytes lead anywhere in the parsers
        raise CheckpointError(unreadable) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of givens: it lacks the mark {FORMAT!r}")
    if state.get("version") != VERSION:
        raise CheckpointError(
            f"{path} has checkpoint version {state.get('version')}; this givens reads {VERSION}"
        )
    return state


def _check_archive(path: Path) -> None:
    """Refuse what torch would read without noticing: it does not look at checksums.

    A flipped bit would pass as a weight. So would whatever lies in memory, where the bit is the
    one that calls a record a folder. Records no larger than the file hold no bomb.
    """
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        size = sum(record.file_size for record in records)
        folder = any(record.external_attr & FOLDER for record in records)
        if folder or size > path.stat().st_size or archive.testzip() is not None:
            raise zipfile.BadZipFile
