"""blkverify: two nodes must read the same."""

from __future__ import annotations

from collections.abc import Iterator

from diskwright.errors import ImageError
from diskwright.extent import Extent, ExtentTable
from diskwright.node import Buffer, Bytes, Lockable, Node, Permission
from diskwright.passing import Passing


def first_difference(left: memoryview, right: memoryview) -> int:
    """Index of the first byte in which two buffers of one length differ; their length if they do not."""
    if left == right:
        return len(left)
    low, high = 0, len(left)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if left[low:middle] != right[low:middle] else (middle, high)
    return low


class Blkverify(Passing):
    """What is tested, with each read compared with what is trusted, and each write done to both.

    :param raw: what is trusted.
    :param test: what is tested; its size is the size of the disk.
    """

    watches_reads = True

    def __init__(self, raw: Node, test: Node, *, writable: bool) -> None:
        super().__init__(test, role="test", writable=writable)
        self.cluster_size = None
        self.raw = Passing(raw, role="raw", writable=writable)
        if not any(node.filename.startswith("json:") for node in (raw, test)):
            self.plain_name = f"blkverify:{raw.filename}:{test.filename}"

    def children(self) -> dict[str, Node]:
        return {"test": self.below, "raw": self.raw.below}

    def allocated_size(self) -> int | None:
        """Not told, as by QEMU."""
        return None

    def set_permissions(self, used: Permission, shared: Permission) -> None:
        """Both files are used in the same way."""
        for node in self.children().values():
            if isinstance(node, Lockable):
                node.set_permissions(used, shared)

    def extents(self, offset: int = 0, length: int | None = None) -> Iterator[Extent | ExtentTable]:
        """The map of what is trusted, as far as there is any."""
        end = self.size if length is None else offset + length
        inside = max(offset, min(end, self.raw.size))
        for item in self.raw.extents(offset, inside - offset):
            yield self._watched(item)
        if end > inside:
            yield self._unmapped(inside, end - inside)

    def read_into(self, offset: int, buffer: Buffer) -> None:
        """From both.

        :raises ImageError: they differ.
        """
        view = memoryview(buffer).cast("B")
        super().read_into(offset, view)
        expected = bytearray(len(view))
        self.raw.read_into(offset, expected)
        place = first_difference(view, memoryview(expected))
        if place < len(view):
            raise ImageError(
                f"blkverify: read offset={offset} bytes={len(view)} contents mismatch at offset {offset + place}"
            )

    def write_at(self, offset: int, data: Bytes) -> None:
        """To both."""
        self.raw.write_at(offset, data)
        super().write_at(offset, data)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        """In both."""
        self.raw.write_zeroes(offset, length, unmap=unmap)
        super().write_zeroes(offset, length, unmap=unmap)

    def discard(self, offset: int, length: int) -> None:
        """In neither: what is discarded need not read the same in both."""

    def truncate(self, size: int, preallocation: str = "off") -> None:
        """Both."""
        self.raw.truncate(size, preallocation)
        super().truncate(size, preallocation)

    def flush(self) -> None:
        self.raw.flush()
        super().flush()

    def release(self) -> None:
        try:
            super().release()
        finally:
            self.raw.release()
