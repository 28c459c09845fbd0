"""A null device as a node."""

from __future__ import annotations

import time

from diskwright.extent import Extent, Kind
from diskwright.node import Buffer, Bytes, Node


class NullNode(Node):
    """Takes every write and keeps none; reads are zeros.

    :param size: bytes.
    :param latency: seconds that each request takes.
    :param read_zeroes: whether the map says that all of it is zero, so that nobody has to read it.
    """

    def __init__(self, filename: str, size: int, *, writable: bool, latency: float, read_zeroes: bool) -> None:
        self.filename = filename
        self.read_only = not writable
        self._size = size
        self._latency = latency
        self._read_zeroes = read_zeroes

    @property
    def size(self) -> int:
        """Bytes."""
        return self._size

    def extent(self, offset: int, length: int) -> Extent:
        """The map of a range."""
        if self._read_zeroes:
            return Extent(offset, length, Kind.ZERO)
        return Extent(offset, length, Kind.DATA, self, offset)

    def allocated_size(self) -> int:
        """Nothing takes any space."""
        return 0

    def read_into(self, offset: int, buffer: Buffer) -> None:
        """Zeros, whatever was written."""
        self._wait()
        view = memoryview(buffer).cast("B")
        view[:] = bytes(len(view))

    def write_at(self, offset: int, data: Bytes) -> None:
        """Forget it."""
        self._wait()

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        """Forget it."""
        self._wait()

    def discard(self, offset: int, length: int) -> None:
        """There is nothing to give back."""
        self._wait()

    def flush(self) -> None:
        """What is lost already cannot get lost."""
        self._wait()

    def _wait(self) -> None:
        if self._latency:
            time.sleep(self._latency)
