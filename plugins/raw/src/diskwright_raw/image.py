"""Raw images: guest offset plus a constant is the offset in the file."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator, Sequence

from diskwright.errors import InvalidOption, io_error
from diskwright.extent import Extent, ExtentTable, Kind
from diskwright.hookspecs import OpenOptions
from diskwright.node import (
    SECTOR,
    Buffer,
    Bytes,
    Image,
    Node,
    Placement,
    Truncatable,
    Writable,
    WritableImage,
)
from diskwright.zeroing import discard, make_zeros


class RawImage(WritableImage):
    """A range of a file as a disk, by default all of it.

    :raises InvalidOption: the range does not fit into the file.
    """

    def __init__(self, source: Node, options: OpenOptions) -> None:
        super().__init__()
        self.file = source
        self.filename = options.filename
        self.read_only = not options.writable
        self._start: int = options.values.get("offset", 0)
        limit: int | None = options.values.get("size")
        self._fixed = limit is not None
        self._size = self._range_in_file(limit)

    def _range_in_file(self, limit: int | None) -> int:
        available = _whole_sectors(self.file.size)
        if self._start > available:
            raise InvalidOption(
                f"Offset ({self._start}) cannot be greater than size of the containing file ({available})"
            )
        if limit is None:
            return _whole_sectors(available - self._start)
        if limit % SECTOR:
            raise InvalidOption("Specified size is not multiple of 512")
        if self._start + limit > available:
            raise InvalidOption(
                f"The sum of offset ({self._start}) and size ({limit}) has to be smaller or equal to the "
                f" actual size of the containing file ({available})"
            )
        return limit

    @property
    def size(self) -> int:
        """Bytes, whole sectors: a last sector that the file holds in part ends in zeros."""
        return self._size

    def new_reads_zero(self) -> bool:
        """As the file."""
        return self.file.new_reads_zero()

    def map(self, offset: int, length: int) -> Iterator[Extent | ExtentTable]:
        """The extents of a guest range; see ``block_status``."""
        start, end = offset + self._start, offset + self._start + length
        inside = max(start, min(end, self.file.size))
        if inside > start:
            yield from self._map_file(start, inside - start)
        if end > inside:
            yield Extent(inside - self._start, end - inside, Kind.ZERO, self.file, inside)

    def _map_file(self, start: int, length: int) -> Iterable[Extent | ExtentTable]:
        if isinstance(self.file, Image):
            from diskwright.engine.chain import resolve

            return map(self._in_one_layer, resolve(self.file, start, length, holes=False))
        extents = self.file.extents(start, length)
        return (self._moved(item) for item in extents) if self._start else extents

    def _in_one_layer(self, table: ExtentTable) -> ExtentTable:
        """The map of an image below through all its layers, which are one to whoever reads this disk."""
        rows = table.rows.copy()
        rows["offset"] -= self._start
        rows["depth"] = 0
        return ExtentTable(rows, table.nodes)

    def read_encoded(self, offset: int, buffer: memoryview) -> None:
        """What an image below has compressed or encrypted."""
        self.read_into(offset, buffer)

    def _moved(self, item: Extent | ExtentTable) -> Extent | ExtentTable:
        if isinstance(item, Extent):
            return item._replace(offset=item.offset - self._start)
        rows = item.rows.copy()
        rows["offset"] -= self._start
        return ExtentTable(rows, item.nodes)

    def read_into(self, offset: int, buffer: Buffer) -> None:
        """Straight from the file."""
        view = memoryview(buffer).cast("B")
        inside = max(0, min(len(view), self._size - offset))
        if inside < len(view):
            view[inside:] = bytes(len(view) - inside)
        self.file.read_into(self._start + offset, view[:inside])

    def write_at(self, offset: int, data: Bytes) -> None:
        """Straight to the file."""
        view = memoryview(data).cast("B")
        if self.store_zeros(offset, view):
            return
        for placement in self.allocate(offset, len(view)):
            self._writable().write_at(placement.node_offset, view)

    def allocate(self, offset: int, length: int) -> Sequence[Placement]:
        """Every guest byte has its place already."""
        if offset + length > self._size:
            raise io_error(f"Could not write '{self.filename}'", errno.ENOSPC)
        return [Placement(offset, length, self.file, self._start + offset)] if length else []

    def link(self, placements: Sequence[Placement]) -> None:
        """Nothing to do: there is no metadata."""

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        """Make a range read as zeros, by the file's own means if it has any."""
        for placement in self.allocate(offset, length):
            make_zeros(self.file, placement.node_offset, length, unmap=unmap)

    def discard(self, offset: int, length: int) -> None:
        """Let the file forget a range, if it can."""
        for placement in self.allocate(offset, length):
            discard(self.file, placement.node_offset, length)

    def truncate(self, size: int, preallocation: str = "off") -> None:
        """Give the disk, and with it the file, another size.

        :raises InvalidOption: the range was fixed when the disk was opened, or the file has a fixed size.
        """
        if self._fixed:
            raise InvalidOption("Cannot resize fixed-size raw disks")
        if not isinstance(self.file, Truncatable):
            raise InvalidOption("The size of the file cannot be changed")
        self.file.truncate(self._start + size, preallocation)
        self._size = _whole_sectors(size)

    def _writable(self) -> Writable:
        if not isinstance(self.file, Writable):
            raise io_error(f"Could not write '{self.filename}'", errno.EROFS)
        return self.file


def _whole_sectors(size: int) -> int:
    return -(-size // SECTOR) * SECTOR
