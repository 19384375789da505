"""Files that are either the old ones or the new ones, never half of either."""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_write(path: Path, *, previous: Path | None = None) -> Iterator[BinaryIO]:
    """Open a file that takes the name `path` only once it is complete and on the disk.

    The bytes go to a temporary file in the same folder (a rename is atomic only within one file
    system), which is flushed to the disk and then renamed. When anything fails before that, the
    temporary file is removed and an older `path` stays as it was.

    Parameters
    ----------
    path : Path
        The file to create or to replace. Its folder must exist.
    previous : Path, optional
        The name that an older `path` gets, in the same folder; what had it before goes.

    Raises
    ------
    OSError
        When the folder cannot be written to.
    """
    temporary = _temporary(path)
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            also_name(path, previous)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def also_name(path: Path, other: Path) -> None:
    """Give a file a second name in its folder, atomically; what had that name before goes.

    No byte is copied where the file system has hard links.
    """
    temporary = _temporary(other)
    try:
        temporary.unlink(missing_ok=True)
        try:
            os.link(path, temporary)
        except OSError:  # a file system without hard links
            shutil.copyfile(path, temporary)
        temporary.replace(other)
    finally:
        # A rename between two names of one file does nothing, and leaves both.
        temporary.unlink(missing_ok=True)


def remove_leftovers(path: Path) -> None:
    """Remove the temporary files of killed processes that were writing `path`.

    Only for whoever alone may write it: what another process is writing now looks the same.
    """
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.[0-9]*.tmp"):
        leftover.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _sync_folder(folder: Path) -> None:
    """Put a rename itself on the disk, where the system lets a folder be opened (POSIX)."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
