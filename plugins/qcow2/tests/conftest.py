"""What the tests of this package share: the real tools, disks with patterns in them, and a file in memory."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from diskwright.node import Buffer, Node


class MemoryNode(Node):
    """Bytes in memory; behind their end it reads zeros."""

    filename = "memory"

    def __init__(self, data: bytes) -> None:
        self.data = bytearray(data)

    @property
    def size(self) -> int:
        return len(self.data)

    def read_into(self, offset: int, buffer: Buffer) -> None:
        part = self.data[offset : offset + len(buffer)]
        buffer[:] = part.ljust(len(buffer), b"\0")


@pytest.fixture(scope="session")
def memory_node() -> Callable[[bytes], Node]:
    """Make a node of bytes."""
    return MemoryNode


def _program(name: str) -> str:
    chosen = os.environ.get("DISKWRIGHT_QEMU_IMG")
    beside = Path(chosen).with_name(name) if chosen else None
    found = str(beside) if beside and beside.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (Debian: qemu-utils)")
    return found


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, (command, done)
    assert "failed" not in done.stdout + done.stderr, (command, done)
    return done.stdout


@pytest.fixture(scope="session")
def qemu_img() -> Callable[..., str]:
    """Run the real qemu-img, which must succeed; its standard output."""
    program = _program("qemu-img")
    return lambda *args: _run([program, *map(os.fspath, args)])


@pytest.fixture(scope="session")
def qemu_io() -> Callable[..., str]:
    """Run commands of the real qemu-io on a qcow2 image: ``qemu_io(path, "write -P 1 0 64k", ...)``."""
    program = _program("qemu-io")
    return lambda path, *commands: _run(
        [program, "-f", "qcow2", *(part for command in commands for part in ("-c", command)), os.fspath(path)]
    )


def _pattern(size: int, seed: int) -> bytes:
    rng = random.Random(seed)
    text = Path(random.__file__).read_bytes()
    disk = bytearray(size)
    for _ in range(10):
        start = rng.randrange(size) // 512 * 512
        piece = rng.choice((text, rng.randbytes(70_000), rng.randbytes(512), text[:5000] * 9))[: size - start]
        disk[start : start + len(piece)] = piece
    return bytes(disk)


@pytest.fixture(scope="session")
def pattern() -> Callable[[int, int], bytes]:
    """A disk of text, noise and zeros: ``pattern(size, seed)``."""
    return _pattern
