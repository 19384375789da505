"""Disks that fill up, and processes that die: at any byte, and at any operation."""

import errno
import io
import os
from pathlib import Path


class Killed(BaseException):
    """The process is dead: from here on it does nothing to the disk."""


class File(io.FileIO):
    """A file whose writes ask a disk."""

    def __init__(self, path, mode, disk):
        super().__init__(path, mode)
        self.disk = disk

    def write(self, data):
        return self.disk.write(super().write, memoryview(data))


class Disk:
    """Replace, for as long as `patch` holds, what this package does to a disk."""

    def __init__(self, patch):
        real_open = Path.open

        def opened(path, mode="r", buffering=-1, **options):
            if "b" not in mode or "r" in mode:
                return real_open(path, mode, buffering, **options)
            file = self.operate(File, path, mode, self)
            return file if buffering == 0 else io.BufferedWriter(file)

        patch.setattr(Path, "open", opened)
        for owner, name in [(os, "fsync"), (os, "link"), (Path, "replace"), (Path, "unlink")]:
            patch.setattr(owner, name, self.operation(getattr(owner, name)))

    def operation(self, real):
        return lambda *arguments, **options: self.operate(real, *arguments, **options)

    def operate(self, real, *arguments, **options):
        return real(*arguments, **options)

    def write(self, real, data):
        return self.operate(real, data)


class FullDisk(Disk):
    """A disk with some bytes left."""

    def __init__(self, patch, left):
        super().__init__(patch)
        self.left = left

    def write(self, real, data):
        data = data[: self.left]
        if not data:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.left -= len(data)
        return real(data)


class DyingProcess(Disk):
    """A process that is killed before its operation of a certain number, or halfway through a write."""

    def __init__(self, patch, operations):
        super().__init__(patch)
        self.left = operations

    def operate(self, real, *arguments, **options):
        if self.left <= 0:
            raise Killed
        self.left -= 1
        return real(*arguments, **options)

    def write(self, real, data):
        if self.left == 1:
            self.left = 0
            real(data[: len(data) // 2])
            raise Killed
        return self.operate(real, data)
