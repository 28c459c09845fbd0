"""A file that grows in large steps, so that its file system can keep it in one piece."""

from __future__ import annotations

import threading

from diskwright.errors import ImageError
from diskwright.node import SECTOR, Bytes, Image, Node, Truncatable
from diskwright.passing import Passing


class Preallocate(Passing):
    """A write behind the end of the file reserves space for those that will follow; what is left is cut off in the end.

    :param align: bytes; the end of the file below is a multiple of this while the file grows.
    :param ahead: bytes to reserve behind the write.
    """

    def __init__(self, below: Node, *, writable: bool, align: int, ahead: int) -> None:
        super().__init__(below, writable=writable)
        self._align = align
        self._ahead = ahead
        self._growth = threading.Lock()
        self._grows = writable and isinstance(below, Truncatable) and not isinstance(below, Image)
        self._data_end = 0  # the end of the file as others see it; meaningful once something is reserved
        self._reserved_end = 0
        self._zeros_from = 0  # nothing has been written behind this

    @property
    def size(self) -> int:
        """Bytes, whole sectors, without what is reserved."""
        return self._data_end + -self._data_end % SECTOR if self._reserved_end else super().size

    def write_at(self, offset: int, data: Bytes) -> None:
        """Reserve space if the file has to grow, then write."""
        self._reserve(offset, offset + memoryview(data).nbytes, zeros=False)
        super().write_at(offset, data)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        """Reserved space is zeros already."""
        if not self._reserve(offset, offset + length, zeros=True):
            super().write_zeroes(offset, length, unmap=unmap)

    def _reserve(self, offset: int, end: int, *, zeros: bool) -> bool:
        """Note that a range is written.

        :returns: whether it is to be zeros and is so already.
        """
        with self._growth:
            if self._grows and end > (self._reserved_end or self.below.size):
                self._grow(end)
            if not self._reserved_end:
                return False
            untouched = zeros and offset >= self._zeros_from and end <= self._reserved_end
            self._data_end = max(self._data_end, end)
            if not untouched:
                self._zeros_from = max(self._zeros_from, end)
            return untouched

    def _grow(self, end: int) -> None:
        if not isinstance(self.below, Truncatable):
            return
        target = -(-(end + self._ahead) // self._align) * self._align
        if not self._reserved_end:
            self._data_end = self._zeros_from = self.below.size
        try:
            self.below.truncate(target, "falloc")
        except (OSError, ImageError):
            # Reserving is a favour: without it the file grows write by write, which will tell what is wrong.
            self._grows = False
        else:
            self._reserved_end = target

    def _cut(self) -> None:
        """Give back what is reserved."""
        if self._reserved_end and isinstance(self.below, Truncatable):
            self._reserved_end = 0
            self.below.truncate(self._data_end)

    def truncate(self, size: int, preallocation: str = "off") -> None:
        """Set the size of the file; nothing is reserved afterwards."""
        with self._growth:
            self._cut()
            super().truncate(size, preallocation)

    def release(self) -> None:
        """Cut off what is left."""
        try:
            self._cut()
        finally:
            super().release()
