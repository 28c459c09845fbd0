"""A disk that keeps a copy of what is read from lower layers."""

from __future__ import annotations

from collections.abc import Iterator

from diskwright.engine.chain import layers, resolve
from diskwright.engine.ranges import Range, aligned, cut, intersection
from diskwright.extent import Kind
from diskwright.node import Buffer, Image, Node, WritableImage
from diskwright.passing import Passing, unfiltered

CHUNK = 1 << 20
"""Bytes that are copied at a time."""


class CopyOnRead(Passing):
    """What a read finds in lower layers is written into the upper one, in whole clusters.

    :param below: the disk.
    :param bottom: the lowest layer whose data is copied; ``None``: all is, and the zeros where no layer has anything.
    :ivar depths: how many layers there are down to the bottom, ``None`` if that is not one of them, or not given.
    """

    def __init__(self, below: Node, bottom: Node | None) -> None:
        super().__init__(below, writable=True)
        if isinstance(below, WritableImage):
            # One lock for both: nobody may write between reading what is to be copied and storing it.
            self.lock = below.lock
        self._has_bottom = bottom is not None
        self.depths: int | None = None
        for depth, layer in enumerate(layers(below) if isinstance(below, Image) else ()):
            if bottom is not None and isinstance(layer, Image) and unfiltered(layer) is bottom:
                self.depths = depth + 1

    def read_into(self, offset: int, buffer: Buffer) -> None:
        """Copy what has to be, then read."""
        if isinstance(self.below, Image):
            self._keep(self.below, offset, min(offset + memoryview(buffer).nbytes, self.size))
        super().read_into(offset, buffer)

    def _keep(self, image: Image, start: int, end: int) -> None:
        block = image.cluster_size or 1
        for first, last in cut(aligned([(start, end)], block, self.size), max(CHUNK, block)):
            with self.lock:
                for hole in list(self._inherited(image, first, last)):
                    self._copy(*hole)

    def _inherited(self, image: Image, start: int, end: int) -> Iterator[Range]:
        """What the upper layer of a range does not have, and is to have."""
        absent = _ranges(image, start, end, 1, absent=True)
        if not self._has_bottom:
            return absent
        found = _ranges(image, start, end, self.depths or 1, absent=False)
        return intersection(absent, aligned(found, image.cluster_size or 1, end))

    def _copy(self, start: int, end: int) -> None:
        data = bytearray(end - start)
        self.below.read_into(start, data)
        if any(data):
            self.write_at(start, data)
            return
        # The space stays as it is: nothing has changed for whoever reads the disk.
        self.write_zeroes(start, end - start, unmap=False)


def _ranges(image: Image, start: int, end: int, depths: int, *, absent: bool) -> Iterator[Range]:
    """Which parts of a range the upper layers do not have, or have."""
    for table in resolve(image, start, end - start, holes=False, depth_limit=depths):
        for extent in table:
            if (extent.kind is Kind.ABSENT) is absent:
                yield extent.offset, extent.end
