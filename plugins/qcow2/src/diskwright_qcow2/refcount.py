"""Reference counts of host clusters: how they are stored, and a bounded cache of refcount blocks.

Counts in the cache only ever grow between two flushes, so a block may be written at any time: the worst that a crash
leaves is a leaked cluster. Clusters given up are remembered and their counts lowered only when the metadata that
dropped them is on disk (see :mod:`.order`).
"""

from __future__ import annotations

import errno
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from diskwright.bounded import BoundedReader
from diskwright.errors import NodeIOError

from . import events, layout

if TYPE_CHECKING:
    from collections.abc import Callable

    from .header import Header

Column = npt.NDArray[Any]

CACHE_BYTES = 32 << 20
"""Memory for refcount blocks, unpacked; at least :data:`MIN_CACHED_BLOCKS` are kept whatever their size."""
MIN_CACHED_BLOCKS = 3
MAX_TABLE_ENTRIES = layout.MAX_REFCOUNT_TABLE_BYTES // layout.REFCOUNT_TABLE_ENTRY_SIZE


def unpack_refcounts(stored: bytes, order: int) -> Column:
    """The counts of a refcount block as integers in native byte order.

    :param order: counts are ``1 << order`` bits wide; those narrower than a byte start at its least significant bit.
    """
    if order >= 3:
        width = np.dtype(f">u{1 << (order - 3)}")
        return np.frombuffer(stored, width).astype(width.newbyteorder("="))
    raw = np.frombuffer(stored, np.uint8)
    if order == 0:
        return np.unpackbits(raw, bitorder="little")
    bits = 1 << order
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return ((raw[:, None] >> shifts) & np.uint8((1 << bits) - 1)).reshape(-1)


def pack_refcounts(counts: Column, order: int) -> bytes:
    """The reverse of :func:`unpack_refcounts`; the counts must fit."""
    if order >= 3:
        return counts.astype(f">u{1 << (order - 3)}").tobytes()
    if order == 0:
        return np.packbits(counts, bitorder="little").tobytes()
    bits = 1 << order
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    parts = counts.astype(np.uint8).reshape(-1, 8 // bits) << shifts
    packed: Column = np.bitwise_or.reduce(parts, axis=1)
    return packed.astype(np.uint8).tobytes()


class RefcountBlocks:
    """The refcount table and its blocks, of one image.

    :param cache: bytes of unpacked blocks to keep in memory, the usual number if None.
    :ivar table: host offset of each refcount block in bytes, 0 where there is none.
    :ivar table_offset: where the table stands on disk, bytes.
    :ivar table_clusters: its size there.
    :ivar table_dirty: whether entries have changed since it was written.
    :ivar block_entries: clusters that one block covers.
    """

    def __init__(
        self,
        header: Header,
        reader: BoundedReader,
        write: Callable[[int, bytes], None],
        cache: int | None = None,
    ) -> None:
        self.order = header.refcount_order
        self.cluster_bits = header.cluster_bits
        self.block_entries = header.refcount_block_entries
        self.maximum = (1 << header.refcount_bits) - 1
        self.table_offset = header.refcount_table_offset
        self.table_clusters = header.refcount_table_clusters
        self.table_dirty = False
        self._reader = reader
        self._write = write
        entries = (self.table_clusters << self.cluster_bits) // layout.REFCOUNT_TABLE_ENTRY_SIZE
        reader.node.note_event("reftable_load")
        self.table: Column = reader.table(
            layout.REFCOUNT_TABLE_DTYPE, self.table_offset, entries, "refcount table", limit=MAX_TABLE_ENTRIES
        )
        self._cache: OrderedDict[int, Column] = OrderedDict()
        self._dirty: set[int] = set()
        self._created: set[int] = set()
        unpacked = self.block_entries * np.dtype(f"u{max(1, (1 << self.order) // 8)}").itemsize
        self._capacity = max(MIN_CACHED_BLOCKS, (CACHE_BYTES if cache is None else cache) // unpacked)

    def block(self, index: int) -> Column | None:
        """The counts of a block, to be changed only by methods of this class; ``None`` where there is no block.

        :raises InvalidImage: the table points outside the file.
        """
        cached = self._cache.get(index)
        if cached is not None:
            self._cache.move_to_end(index)
            return cached
        if index >= len(self.table) or not self.table[index]:
            return None
        offset = int(self.table[index])
        if offset & ((1 << self.cluster_bits) - 1):
            raise self._reader.error(f"Refblock offset {offset:#x} unaligned (reftable index: {index:#x})", offset)
        events.REFBLOCK_LOAD(index, offset)
        self._reader.node.note_event("refblock_load")
        stored = self._reader.bytes(offset, 1 << self.cluster_bits, "refcount block")
        counts = unpack_refcounts(stored, self.order)
        self._keep(index, counts)
        return counts

    def note(self, step: str) -> None:
        """Tell the file of a step that is no request, see :meth:`Node.note_event`."""
        self._reader.node.note_event(step)

    def create(self, index: int, offset: int) -> None:
        """Add an empty block that stands at ``offset``; the table must have room for its entry."""
        self.note("refblock_alloc")
        self._keep(index, unpack_refcounts(bytes(1 << self.cluster_bits), self.order))
        self._created.add(index)
        self.table[index] = offset
        self.table_dirty = True
        self._dirty.add(index)

    def remove(self, index: int) -> None:
        """Leave out a block that counts nothing but itself."""
        self.table[index] = 0
        self.table_dirty = True
        self._cache.pop(index, None)
        self._dirty.discard(index)

    def correct(self, index: int, counts: Column, *, lower_only: bool) -> None:
        """Set counts of a block, from its first on, to what they should be.

        :param lower_only: whether to leave those alone that are too low.
        """
        block = self.block(index)
        if block is not None:
            part = block[: len(counts)]
            if lower_only:
                np.minimum(part, counts, out=part, casting="unsafe")
            else:
                part[:] = counts
            self._dirty.add(index)

    def _keep(self, index: int, counts: Column) -> None:
        while len(self._cache) >= self._capacity:
            oldest = next(iter(self._cache))
            if oldest in self._dirty:  # it leaves when it has been written: that may fail
                self._write_block(oldest, self._cache[oldest])
            del self._cache[oldest]
        self._cache[index] = counts

    def _write_block(self, index: int, counts: Column) -> None:
        events.REFBLOCK_WRITE(index, int(self.table[index]))
        if index in self._created:
            self._created.discard(index)
            self.note("refblock_alloc_write")
        self._reader.node.note_event("refblock_update_part")
        self._write(int(self.table[index]), pack_refcounts(counts, self.order))
        self._dirty.discard(index)

    def count(self, cluster: int) -> int:
        """The reference count of one host cluster."""
        block = self.block(cluster // self.block_entries)
        return 0 if block is None else int(block[cluster % self.block_entries])

    def add(self, first: int, number: int = 1) -> None:
        """Count one more reference to each of ``number`` neighbouring clusters; their blocks exist.

        :raises InvalidImage: a count would not fit into its field; nothing has changed then in its block.
        """
        end = first + number
        while first < end:
            index, start = divmod(first, self.block_entries)
            stop = min(self.block_entries, start + end - first)
            block = self.block(index)
            if block is None:
                raise self._reader.error(f"no refcount block covers cluster {first}")
            part = block[start:stop]
            if int(part.max()) >= self.maximum:
                raise self._reader.error(f"reference count of a cluster from {first} on would exceed {self.maximum}")
            part += 1
            self._dirty.add(index)
            first += stop - start

    def subtract(self, clusters: Column) -> int:
        """Count one reference less for each of the given clusters, which may repeat.

        :returns: the lowest cluster that became free, or -1.
        :raises InvalidImage: a cluster had fewer references; the others are done.
        """
        ordered, times = np.unique(clusters, return_counts=True)
        indexes = ordered // self.block_entries
        starts = np.flatnonzero(np.diff(indexes, prepend=-1))
        lowest, wrong = -1, -1
        for start, stop in zip(starts.tolist(), [*starts.tolist()[1:], len(ordered)], strict=True):
            index = int(indexes[start])
            block = self.block(index)
            places = (ordered[start:stop] - index * self.block_entries).astype(np.intp)
            if block is None:
                wrong = int(ordered[start])
                continue
            before = block[places].astype(np.uint64)
            less = times[start:stop].astype(np.uint64)
            fits = before >= less
            if not fits.all():
                wrong = int(ordered[start:stop][~fits][0])
            after = np.where(fits, before - np.where(fits, less, 0), before)
            block[places] = after.astype(block.dtype)
            self._dirty.add(index)
            freed = places[(after == 0) & (before > 0)]
            if lowest < 0 and len(freed):
                lowest = index * self.block_entries + int(freed[0])
        if wrong >= 0:
            raise self._reader.error(f"cluster {wrong} has fewer references than are dropped")
        return lowest

    def enlarge(self, entries: int) -> None:
        """Give the table room for so many entries, in memory.

        :raises NodeIOError: no table may be that large: the file is at its limit.
        """
        if entries > MAX_TABLE_ENTRIES:
            raise NodeIOError("", OSError(errno.EFBIG, "file too large"))
        grown = np.zeros(entries, self.table.dtype)
        grown[: len(self.table)] = self.table
        self.table = grown
        self.table_dirty = True

    def write_blocks(self) -> None:
        """Write all blocks that have changed."""
        for index in sorted(self._dirty):
            self._write_block(index, self._cache[index])

    def write_table(self, offset: int | None = None) -> None:
        """Write the whole table to :attr:`table_offset`, or to another place; there is room for it."""
        self._reader.node.note_event("reftable_update")
        place = self.table_offset if offset is None else offset
        self._write(place, self.table.astype(layout.REFCOUNT_TABLE_DTYPE).tobytes())
        self.table_dirty = False

    @property
    def dirty(self) -> bool:
        """Whether blocks wait to be written."""
        return bool(self._dirty)
