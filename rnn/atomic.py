"""Files that are either the old ones or the new ones, never half of either."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a file that takes the name `path` only once it is complete and on the disk.

    The bytes go to a temporary file in the same folder (a rename is atomic only within one file
    system), which is flushed to the disk and then renamed. When anything fails before that, the
    temporary file is removed and an older `path` stays as it was.

    Parameters
    ----------
    path : Path
        The file to create or to replace. Its folder must exist.

    Raises
    ------
    OSError
        When the folder cannot be written to.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        if temporary.exists():
            temporary.unlink()
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Put a rename itself on the disk, where the system lets a folder be opened (POSIX)."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
