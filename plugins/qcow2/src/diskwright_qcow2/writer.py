"""Changing the mapping of an image: allocation, copy on write, zeros and compressed clusters."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from diskwright.errors import InvalidImage
from diskwright.node import Placement

from . import layout
from .allocate import ClusterAllocator, Run
from .hostspace import Cause
from .layout import Autoclear, Incompatible
from .linking import link
from .order import Disk, WriteOrder
from .overlap import MetadataMap
from .packing import compressed_clusters, write_compressed
from .placing import RangeWithinTable, head_length, tail_length, written_bitmaps
from .refcount import Column, RefcountBlocks
from .runtime import Overlap

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .image import Qcow2Image
    from .l2 import Table

_OFFSET_MASK = np.uint64(layout.OFFSET_MASK)
_COPIED = np.uint64(layout.OFLAG_COPIED)
_COMPRESSED = np.uint64(layout.OFLAG_COMPRESSED)
_ZERO = np.uint64(layout.OFLAG_ZERO)


class ImageWriter:
    """What is needed to write an image; made by the first change. All methods are called under the image's lock.

    :ivar packed_end: host offset behind the last compressed cluster, where the next one may go; 0 if none may.
    """

    def __init__(self, image: Qcow2Image) -> None:
        self.image = image
        self.header = image.header
        self.l2 = image.l2
        self.disk = Disk(image.file)
        self._failure: InvalidImage | None = None
        self.packed_end = 0
        # Runs of clusters that were handed out for guest data and that no table refers to yet: their first cluster, and
        # the one behind the last.
        self._unlinked: dict[int, int] = {}
        image.l2.require_distinct()
        blocks = RefcountBlocks(image.header, image.reader, self.disk.write, image.runtime.refcount_cache)
        self.metadata = MetadataMap(image, blocks.table)
        if overlap := self.metadata.overlap():
            self._refuse(overlap)
        self.allocator = ClusterAllocator(blocks, self._guard, self._note_refcounts)
        self.order = WriteOrder(self.disk, image.l2, self.allocator, image.header.l1_table_offset, image.data_node)
        self.order.passed = Cause.of(image.runtime)
        self._begin()

    def _begin(self) -> None:
        """Say in the file that what this writer does not keep up to date cannot be relied on any more."""
        known = self.header.autoclear_features & Autoclear.SUPPORTED
        if not self.image.bitmaps:
            known &= ~Autoclear.BITMAPS
        if known != self.header.autoclear_features:
            self.disk.write(layout.AUTOCLEAR_FIELD, int(known).to_bytes(8, "big"))
            self.disk.barrier()
            self.header = self.image.header = self.header.replace(autoclear_features=known)

    def _note_refcounts(self, run: Run) -> None:
        self.metadata.add(run, Overlap.REFCOUNT_BLOCK | Overlap.REFCOUNT_TABLE)

    def _guard(self, run: Run) -> None:
        if conflict := self.metadata.conflict(run):
            self._refuse(conflict)

    def _refuse(self, conflict: str) -> None:
        """Mark the image as corrupt, and do not write it any more."""
        if self.header.version > 2:
            features = self.header.incompatible_features | Incompatible.CORRUPT
            self.disk.write(layout.INCOMPATIBLE_FIELD, int(features).to_bytes(8, "big"))
            self.disk.barrier()
            self.header = self.image.header = self.header.replace(incompatible_features=features)
        self._failure = InvalidImage(
            "qcow2: Marking image as corrupt: Preventing invalid write on metadata "
            f"(overlaps with {conflict}); further corruption events will be suppressed",
            filename=self.image.file.filename,
        )
        raise self._failure

    @property
    def failed(self) -> bool:
        """Whether the image turned out to be corrupt, and is not written any more."""
        return self._failure is not None

    def _require_sound(self) -> None:
        if self._failure is not None:
            raise self._failure

    def allocate(self, offset: int, length: int) -> list[Placement]:
        """See :meth:`WritableImage.allocate`."""
        self._require_sound()
        if length < 0 or offset < 0 or offset + length > self.header.disk_size:
            raise InvalidImage(f"a write of {length} bytes at {offset} is outside the disk")
        placements: list[Placement] = []
        for part in self.parts(offset, offset + length):
            for placement in self._place(part):
                if placements and _continues(placements[-1], placement):
                    last = placements[-1]
                    joined = last.length + placement.length
                    placements[-1] = last._replace(length=joined, tail=placement.tail)
                else:
                    placements.append(placement)
        return placements

    def link(self, placements: Sequence[Placement]) -> None:
        """See :meth:`WritableImage.link`."""
        self._require_sound()
        for placement in placements:
            start, end = placement.node_offset - placement.head, placement.node_offset + placement.length
            self._forget_unlinked(start, end + placement.tail)
        link(self, placements)
        if self.order.full:
            self.flush()

    def _forget_unlinked(self, start: int, end: int) -> None:
        """Tables are going to refer to these bytes of the file."""
        if self._unlinked:
            bits = self.header.cluster_bits
            cluster, behind = start >> bits, -(-end >> bits)
            while cluster < behind:
                cluster = self._unlinked.pop(cluster, cluster + 1)

    def give_back_unlinked(self) -> None:
        """Nothing that was handed out will be written any more: what no table refers to is free, as it was before."""
        self._require_sound()
        if self._unlinked:
            runs = [np.arange(first, end) for first, end in self._unlinked.items()]
            self._unlinked.clear()
            lowest = self.allocator.blocks.subtract(np.concatenate(runs))
            if lowest >= 0:
                self.allocator.freed(lowest)

    def reserve(self, start: int, end: int) -> int:
        """Give a guest range clusters without writing to them; with subclusters, these stay unallocated.

        :returns: the host offset behind the last new cluster, bytes.
        """
        behind = 0
        size = self.header.cluster_size
        for placement in self.allocate(start, end - start):
            for part in self.parts(placement.offset, placement.offset + placement.length):
                host = placement.node_offset + part.start - placement.offset
                entries = self._host_entries(part, host)
                self._forget_unlinked(host, host + len(entries) * size)
                self.replace(part, self.own_table(part.l1_index), entries, np.zeros(len(entries), np.uint64))
                behind = max(behind, host + len(entries) * size)
        if self.order.full:
            self.flush()
        return behind

    def flush(self) -> None:
        """Write all metadata back, see :class:`WriteOrder`."""
        self._require_sound()
        left = self.order.left_by_table
        self.order.flush()
        for run in left:
            self.metadata.drop(run)
        self._note_table()
        self._forget_freed()

    def _note_table(self) -> None:
        """The refcount table may have moved: then the header in the file says so already."""
        blocks = self.allocator.blocks
        if blocks.table_offset != self.header.refcount_table_offset:
            self.header = self.image.header = self.header.replace(
                refcount_table_offset=blocks.table_offset, refcount_table_clusters=blocks.table_clusters
            )

    def _forget_freed(self) -> None:
        if self.packed_end and not self.allocator.blocks.count((self.packed_end - 1) >> self.header.cluster_bits):
            self.packed_end = 0  # all that was packed there is gone, and so is the cluster

    def write_compressed(self, clusters: Sequence[tuple[int, bytes]]) -> None:
        """Store compressed clusters, each with its guest offset, packed one behind the other."""
        self._require_sound()
        write_compressed(self, clusters)
        if self.order.full:
            self.flush()

    def parts(self, start: int, end: int) -> Iterator[RangeWithinTable]:
        """A guest range cut at the borders of L2 tables."""
        coverage = self.header.l1_coverage
        while start < end:
            stop = min(end, (start // coverage + 1) * coverage)
            yield RangeWithinTable(self.header, start, stop)
            start = stop

    def own_table(self, index: int) -> Table:
        """The L2 table of an L1 entry, for changing: a new one, or a copy, unless the image owns it alone."""
        entry = int(self.l2.l1[index])
        table = self.l2.get(index)
        if table is not None and entry & layout.OFLAG_COPIED:
            return table
        run = self.allocator.take(1)
        if table is not None:
            self.disk.node.note_event("l2_alloc_cow_read")
        table = self.l2.empty() if table is None else table.copy()
        self.metadata.add(run, Overlap.ACTIVE_L2)
        bits = self.header.cluster_bits
        self.l2.l1[index] = run.first << bits | layout.OFLAG_COPIED
        self.order.l1_changed(index)
        self.order.l2_changed(index, table, (0, len(table)))
        if old := entry & layout.OFFSET_MASK:
            self.metadata.drop(Run(old >> bits, 1))
            self.order.release(np.array([old >> bits], np.int64))
        return table

    def drop_table(self, index: int) -> None:
        """Forget the L2 table of an L1 entry with all that it refers to."""
        table = self.l2.get(index)
        if table is None:
            return
        entries = table[:, 0] if self.header.extended_l2 else table
        self.release(entries, np.zeros(len(entries), np.uint64), Cause.ALWAYS)
        cluster = (int(self.l2.l1[index]) & layout.OFFSET_MASK) >> self.header.cluster_bits
        self.l2.l1[index] = 0
        self.l2.drop(index)
        self.order.l1_changed(index)
        self.order.l2_dropped(index)
        self.metadata.drop(Run(cluster, 1))
        self.order.release(np.array([cluster], np.int64))

    def _place(self, part: RangeWithinTable) -> Iterator[Placement]:
        """Places for a range inside one L2 table."""
        entries, bitmaps = part.entries(self.own_table(part.l1_index))
        if not self.header.has_data_file and not entries.any():
            yield from self._place_new(part, 0, len(entries), entries, bitmaps)
            return
        placed = (entries & _COMPRESSED == 0) & (entries & _COPIED != 0)
        hosts = (entries & _OFFSET_MASK).astype(np.int64)
        if self.header.has_data_file:
            head = head_length(part, entries[0], bitmaps[0], bool(placed[0]))
            tail = tail_length(part, entries[-1], bitmaps[-1], bool(placed[-1]))
            if self.header.raw_data_file:
                tail = min(tail, self.header.disk_size - part.end)
            yield Placement(part.start, part.end - part.start, self.image.data_node, part.start, head, tail)
            return
        placed &= hosts != 0
        size = self.header.cluster_size
        breaks = placed[1:] != placed[:-1]
        breaks |= placed[1:] & (hosts[1:] != hosts[:-1] + size)
        edges = [0, *(np.flatnonzero(breaks) + 1).tolist(), len(entries)]
        for first, last in pairwise(edges):
            if placed[first]:
                host = int(hosts[first])
                self._require_aligned(host)
                self._require_counted(host, last - first)
                self._guard(Run(host // size, last - first))
                yield part.placement(self.image.data_node, first, last, host, entries, bitmaps, True)
                continue
            yield from self._place_new(part, first, last, entries, bitmaps)

    def _place_new(
        self, part: RangeWithinTable, first: int, last: int, entries: Column, bitmaps: Column
    ) -> Iterator[Placement]:
        """New places for clusters ``first`` to ``last`` - 1 of a range."""
        while first < last:
            run = self.allocator.take(last - first)
            self._unlinked[run.first] = run.end
            host = run.first << self.header.cluster_bits
            stop = first + run.length
            yield part.placement(self.image.data_node, first, stop, host, entries, bitmaps, False)
            first = stop

    def _require_aligned(self, host: int) -> None:
        if host % self.header.cluster_size:
            raise self.l2.corrupt(f"Cluster allocation offset {host:#x} unaligned")

    def _require_counted(self, host: int, number: int) -> None:
        """Refuse to write to clusters that nobody has allocated: an entry of a stranger may lead anywhere."""
        first = host >> self.header.cluster_bits
        blocks = self.allocator.blocks
        if not (blocks.count(first) and blocks.count(first + number - 1)):
            raise self.l2.corrupt(f"Data cluster at {host:#x} is in use but not counted")

    def link_part(self, part: RangeWithinTable, host: int) -> None:
        """Enter the host clusters of a range inside one L2 table."""
        table = self.own_table(part.l1_index)
        entries = self._host_entries(part, host)
        old_entries, old_bitmaps = part.entries(table)
        same = old_entries & ~_ZERO == entries
        bitmaps = written_bitmaps(part, old_entries, old_bitmaps, same) if self.header.extended_l2 else old_bitmaps
        self.replace(part, table, entries, bitmaps)

    def _host_entries(self, part: RangeWithinTable, host: int) -> Column:
        """L2 entries for a range whose first byte stands at ``host``."""
        size = self.header.cluster_size
        first = host - part.start % size
        entries: Column = np.arange(first, first + (part.last - part.first) * size, size, dtype=np.uint64)
        entries |= _COPIED
        return entries

    def replace(
        self,
        part: RangeWithinTable,
        table: Table,
        entries: Column,
        bitmaps: Column,
        cause: Cause = Cause.OTHER,
    ) -> None:
        """Put new entries in the place of those of a range, and drop what the old ones referred to."""
        old_entries, old_bitmaps = part.entries(table)
        changed = (old_entries != entries) | (old_bitmaps != bitmaps)
        if not changed.any():
            return
        self.release(old_entries[changed], entries[changed], cause)
        if self.header.extended_l2:
            table[part.first : part.last, 0] = entries
            table[part.first : part.last, 1] = bitmaps
        else:
            table[part.first : part.last] = entries
        self.order.l2_changed(part.l1_index, table, (part.first, part.last))

    def release(self, old: Column, new: Column, cause: Cause = Cause.OTHER) -> None:
        """Drop the references of L2 entries that others replace."""
        if self.header.has_data_file or not old.any():
            return
        bits = np.uint64(self.header.cluster_bits)
        compressed = old & _COMPRESSED != 0
        hosts = old & _OFFSET_MASK
        kept = (hosts == new & _OFFSET_MASK) & (new & _COMPRESSED == 0)
        plain = ~compressed & (hosts != 0) & ~kept
        if plain.any():
            self.order.release((hosts[plain] >> bits).astype(np.int64), cause)
        if compressed.any():
            self.order.release(compressed_clusters(old[compressed], self.header.cluster_bits), cause)


def _continues(left: Placement, right: Placement) -> bool:
    return (
        left.node is right.node
        and not left.tail
        and not right.head
        and left.offset + left.length == right.offset
        and left.node_offset + left.length == right.node_offset
    )
