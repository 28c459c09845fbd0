"""Keeping the enabled bitmaps of an image current while it is written.

Before the first write the bitmaps are marked as in use in the file; what is written is noted in memory; when the image
is closed, the bitmaps are stored and the marks taken back (see :mod:`.bitmap_ops`). A crash in between leaves the
marks: nobody takes such a bitmap for complete.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .bitmaps import BitmapEntry
from .layout import BitmapFlag
from .order import Disk

if TYPE_CHECKING:
    from .image import Qcow2Image

_FLAGS_FIELD = 12


class Marks:
    """Bits that are to be set in one bitmap.

    :ivar chunks: bits by the table entry that they belong to, each as long as a cluster.
    """

    def __init__(self, granularity_bits: int, cluster_size: int) -> None:
        self.chunks: dict[int, bytearray] = {}
        self._bits = granularity_bits
        self._cluster_size = cluster_size

    def add(self, offset: int, length: int) -> None:
        """Set each bit of which a part is in a guest range, in bytes."""
        if length <= 0:
            return
        in_chunk = self._cluster_size * 8
        first, end = offset >> self._bits, ((offset + length - 1) >> self._bits) + 1
        while first < end:
            index, start = divmod(first, in_chunk)
            stop = min(in_chunk, start + end - first)
            chunk = self.chunks.get(index)
            if chunk is None:
                chunk = self.chunks[index] = bytearray(self._cluster_size)
            _set_bits(chunk, start, stop)
            first += stop - start


def _set_bits(chunk: bytearray, start: int, stop: int) -> None:
    """Set bits ``start`` to ``stop`` - 1; bit 0 is the least significant of the first byte."""
    first, last = start >> 3, (stop - 1) >> 3
    head, tail = 0xFF << (start & 7) & 0xFF, 0xFF >> (7 - (stop - 1 & 7))
    if first == last:
        chunk[first] |= head & tail
        return
    chunk[first] |= head
    chunk[last] |= tail
    chunk[first + 1 : last] = b"\xff" * (last - first - 1)


class BitmapRecorder:
    """What the bitmaps of an image have to be told when it is closed.

    :ivar marks: the bits to set, by name; empty while nothing is recorded.
    :ivar smallest: the smallest disk size since recording began, bytes: bits behind it are cleared.
    :ivar resized: whether the disk may have got another size since then.
    """

    def __init__(self, image: Qcow2Image) -> None:
        self._image = image
        self._usable = [entry for entry in image.bitmaps if not entry.flags & BitmapFlag.IN_USE]
        self._enabled = [entry for entry in self._usable if entry.flags & BitmapFlag.AUTO]
        self.marks: dict[str, Marks] = {}
        self.resized = False
        self.smallest = image.size

    def begin(self) -> None:
        """The image is about to be written: mark the enabled bitmaps as in use."""
        if self._enabled and not self.marks:
            self._mark(self._enabled)

    def add(self, offset: int, length: int) -> None:
        """A guest range has been written, in bytes."""
        for entry in self._enabled:
            self.marks[entry.name].add(offset, length)

    def prepare_resize(self) -> None:
        """The disk is about to get another size: all bitmaps have to be stored anew."""
        self._mark([entry for entry in self._usable if entry.name not in self.marks])
        self.resized = True

    def note_size(self) -> None:
        """The disk may have another size now."""
        self.smallest = min(self.smallest, self._image.size)

    def _mark(self, entries: list[BitmapEntry]) -> None:
        if not entries:
            return
        disk = Disk(self._image.file)
        for entry in entries:
            flags = int(entry.flags | BitmapFlag.IN_USE)
            disk.write(entry.offset + _FLAGS_FIELD, flags.to_bytes(4, "big"))
            self.marks[entry.name] = Marks(entry.granularity_bits, self._image.header.cluster_size)
        disk.barrier()
