"""Makes the image of a real file system: files of this machine, text and programs, with zeros and holes between."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .paths import data_ranges

SOURCES = ("/usr", "/opt")
"""Where the files come from."""
FULL = 0.6
"""Part of the disk that files take."""
WRITTEN_ZEROS = 0.08
"""Part of the disk that is free and yet not a hole, as if files had been there and been wiped."""
LARGEST = 0.05
"""A file that would take more than this part of the disk is left out."""
BLOCK = 4096
MIB = 1 << 20


def make(path: Path, size: int) -> None:
    """Make the image of an ext4 file system; without ``mke2fs``, of files one behind the other.

    :param size: bytes.
    """
    mke2fs = shutil.which("mke2fs", path=f"{os.environ.get('PATH', '')}:/sbin:/usr/sbin")
    with path.open("wb") as file:
        file.truncate(size)
    files = chosen_files(int(size * FULL), int(size * LARGEST))
    if mke2fs is None:
        _pack(path, files)
    else:
        with tempfile.TemporaryDirectory(dir=path.parent) as name:
            staging = Path(name)
            for source, place in files:
                target = staging / place
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
            command = [mke2fs, "-q", "-F", "-t", "ext4", "-m", "0", "-d", str(staging), str(path)]
            subprocess.run(command, check=True)
    _write_zeros(path, int(size * WRITTEN_ZEROS))


def chosen_files(budget: int, largest: int) -> Iterator[tuple[Path, str]]:
    """Files and the places for them, until they take so many bytes: always the same on the same machine.

    Directories are mixed, so that a small image has a bit of everything. Where there is too little, files come again.
    """
    found = sorted(_regular_files(), key=lambda path: hashlib.blake2b(str(path).encode("utf-8", "replace")).digest())
    for turn in range(100):
        for source in found:
            try:
                length = source.stat().st_size
            except OSError:
                continue
            taken = -(-length // BLOCK) * BLOCK
            if length > largest or not length or not os.access(source, os.R_OK):
                continue
            budget -= taken + 256  # the inode
            if budget < 0:
                return
            yield source, f"{turn}{source}"
        if not found:
            return


def _regular_files() -> Iterator[Path]:
    pending = list(SOURCES)
    while pending:
        try:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
                    elif entry.is_file(follow_symlinks=False):
                        yield Path(entry.path)
        except OSError:  # not there, or not for us
            continue


def _pack(path: Path, files: Iterator[tuple[Path, str]]) -> None:
    """Write files one behind the other, after every few a hole of a third of what they took."""
    with path.open("r+b") as image:
        start = 0
        for number, (source, _) in enumerate(files):
            image.write(source.read_bytes())
            end = -(-image.tell() // BLOCK) * BLOCK
            if number % 16 == 0:
                end += (end - start) // 3 // BLOCK * BLOCK
                start = end
            image.seek(end)


def _write_zeros(path: Path, budget: int) -> None:
    """Turn holes into written zeros, half of each, until so many bytes are written."""
    with path.open("r+b") as file:
        size = path.stat().st_size
        position = 0
        for start, end in [*data_ranges(file.fileno()), (size, size)]:
            length = min((start - position) // 2 // BLOCK * BLOCK, budget)
            while length > 0:
                done = os.pwrite(file.fileno(), bytes(min(length, MIB)), position)
                position, length, budget = position + done, length - done, budget - done
            position = end
