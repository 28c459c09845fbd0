"""Files with holes in them: where their data is, copies, and space for them."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

CHUNK = 16 << 20
"""Bytes."""


def data_ranges(descriptor: int) -> Iterator[tuple[int, int]]:
    """Start and end, in bytes, of what a file holds between its holes."""
    size = os.fstat(descriptor).st_size
    position = 0
    while position < size:
        try:
            start = os.lseek(descriptor, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole is left
                return
            raise
        position = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield start, position


def copy(source: Path, target: Path) -> None:
    """Copy a file, not its holes; by sharing its blocks where the file system can."""
    with source.open("rb") as reader, target.open("wb") as writer:
        os.truncate(writer.fileno(), source.stat().st_size)
        for start, end in data_ranges(reader.fileno()):
            position = start
            while position < end:
                wanted = min(CHUNK, end - position)
                try:
                    done = os.copy_file_range(reader.fileno(), writer.fileno(), wanted, position, position)
                except OSError:  # not on this file system
                    done = os.pwrite(writer.fileno(), os.pread(reader.fileno(), wanted, position), position)
                position += done


def allocated(path: Path) -> int:
    """Bytes that a file takes on disk."""
    return path.stat().st_blocks * 512


def free_space(directory: Path) -> int:
    """Bytes that may still be written to a file system."""
    return shutil.disk_usage(directory).free


def settle(files: Iterable[Path]) -> None:
    """Let the system write out what is left to write of some files: what is measured next is not to pay for it."""
    for path in files:
        with path.open("rb") as file:
            os.fdatasync(file.fileno())


def forget(path: Path) -> None:
    """Take a file out of the page cache."""
    settle([path])
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def recall(path: Path) -> None:
    """Bring a file's data into the page cache, as far as there is room."""
    with path.open("rb") as file:
        for start, end in data_ranges(file.fileno()):
            for position in range(start, end, CHUNK):
                os.pread(file.fileno(), min(CHUNK, end - position), position)


def level_memory(directory: Path, size: int) -> None:
    """See that the memory that is used next has been used a moment ago.

    A virtual machine gives memory that is free back to its host; whoever needs it next waits for the host, which can
    take three times as long as writing the file. Otherwise the second of two programs would pay for the first.

    :param size: bytes that are going to be written.
    """
    path = directory / "level"
    chunk = bytes(CHUNK)
    with path.open("wb") as file:
        for position in range(0, size, CHUNK):
            os.pwrite(file.fileno(), chunk, position)
    path.unlink()


def remove(path: Path) -> None:
    """Remove a file that may be there or not."""
    with suppress(FileNotFoundError):
        path.unlink()
