"""The order in which changes of metadata reach the file.

Guest data, then refcounts, then L2 tables, then the L1 table, each made durable before the next: whatever instant a
crash picks, every reference on disk leads to something that is complete and counted. Clusters that were given up are
free only after that. All metadata of an image that is being written passes through here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from diskwright.errors import InvalidImage
from diskwright.extent import distinct
from diskwright.node import Node, Writable

from . import events, layout
from .allocate import Run
from .hostspace import Cause, give_back
from .l2 import stored

if TYPE_CHECKING:
    from .allocate import ClusterAllocator
    from .l2 import L2Tables, Table
    from .refcount import Column

MAX_DIRTY_BYTES = 32 << 20
"""Changed L2 tables in memory beyond which they are written back."""
MAX_RELEASED = 1 << 20
"""Clusters given up beyond which the metadata that dropped them is written back."""

Span = tuple[int, int]
"""First changed entry of a table and the entry behind the last."""


class Disk:
    """The file as metadata is written to it: whole writes, and barriers that nothing later overtakes.

    :ivar node: the file.
    """

    def __init__(self, node: Node) -> None:
        if not isinstance(node, Writable):
            raise InvalidImage(f"'{node.filename}' cannot be written", filename=node.filename)
        self.node = node
        self._writable: Writable = node

    def write(self, offset: int, data: bytes) -> None:
        """Write metadata."""
        self.node.note_event("none")
        self._writable.write_at(offset, data)

    def barrier(self) -> None:
        """Everything written so far is durable when this returns."""
        self.node.flush()

    def pad(self) -> None:
        """Fill the file up to whole sectors: compressed data ends anywhere."""
        size = self.node.size
        if size % layout.COMPRESSED_SECTOR:
            self.write(size, bytes(-size % layout.COMPRESSED_SECTOR))


class WriteOrder:
    """Changed metadata of one image, until it is written.

    :ivar passed: causes for which the space of clusters that go free is given back to the file system.
    """

    passed: frozenset[Cause] = frozenset()

    def __init__(self, disk: Disk, l2: L2Tables, allocator: ClusterAllocator, l1_offset: int, data_node: Node) -> None:
        self.disk = disk
        self.l2 = l2
        self.allocator = allocator
        self.blocks = allocator.blocks
        self._l1_offset = l1_offset
        self._data_node = data_node
        self._l1_span: Span | None = None
        self._l2_spans: dict[int, Span] = {}
        self._released: list[Column] = []
        self._released_count = 0
        self._passed: list[Column] = []

    def l1_changed(self, index: int) -> None:
        """An entry of the active L1 table is to be written."""
        self._l1_span = _widened(self._l1_span, (index, index + 1))

    def l2_changed(self, index: int, table: Table, span: Span) -> None:
        """Entries of the L2 table of L1 entry ``index`` are to be written."""
        self._l2_spans[index] = _widened(self._l2_spans.get(index), span)
        self.l2.mark_dirty(index, table)

    def l2_dropped(self, index: int) -> None:
        """The L2 table of L1 entry ``index`` is not part of the image any more."""
        self._l2_spans.pop(index, None)

    def release(self, clusters: Column, cause: Cause = Cause.OTHER) -> None:
        """Drop a reference to each of the clusters, as soon as it is safe; they may repeat."""
        if len(clusters):
            if cause in self.passed:
                self._passed.append(clusters)
            self._released.append(clusters)
            self._released_count += len(clusters)

    @property
    def full(self) -> bool:
        """Whether enough has gathered that it should be written back."""
        return self.l2.dirty_bytes > MAX_DIRTY_BYTES or self._released_count > MAX_RELEASED

    @property
    def left_by_table(self) -> list[Run]:
        """The places that the refcount table leaves when it is written next."""
        if self.allocator.moved_table is None:
            return []
        blocks = self.blocks
        return [Run(blocks.table_offset >> blocks.cluster_bits, blocks.table_clusters), *self.allocator.outgrown]

    def flush(self) -> None:
        """Write everything back, in order, and make it durable."""
        events.FLUSH("data")
        if self._data_node is not self.disk.node:
            self._data_node.flush()
        self.disk.pad()
        events.FLUSH("refcounts")
        if self.allocator.moved_table is not None:
            self.blocks.note("refblock_alloc_write_blocks")
        self.blocks.write_blocks()
        self.disk.barrier()
        self._switch_table()
        events.FLUSH("L2 tables")
        if self._write_l2():
            self.disk.barrier()
        events.FLUSH("L1 table")
        if self._write_l1():
            self.disk.barrier()
        events.FLUSH("free clusters")
        self._free()

    def _switch_table(self) -> None:
        """Write the refcount table; if it has moved, to its new place before the header points there."""
        blocks, moved = self.blocks, self.allocator.moved_table
        if moved is not None:
            offset = moved.first << blocks.cluster_bits
            events.REFTABLE_MOVE(offset, moved.length)
            blocks.note("refblock_alloc_write_table")
            blocks.write_table(offset)
            self.disk.barrier()
            blocks.note("refblock_alloc_switch_table")
            self.disk.write(layout.REFCOUNT_TABLE_FIELD, offset.to_bytes(8, "big") + moved.length.to_bytes(4, "big"))
            self.disk.barrier()
            # Not before: if any of this fails, the table is where it was, and the next flush does it all again.
            left = self.left_by_table
            blocks.table_offset, blocks.table_clusters = offset, moved.length
            self.allocator.moved_table = None
            self.allocator.outgrown.clear()
            for run in left:
                self.release(np.arange(run.first, run.end))
        elif blocks.table_dirty:
            blocks.note("refblock_alloc_hookup")
            blocks.write_table()
            self.disk.barrier()

    def _write_l2(self) -> bool:
        tables = self.l2.dirty_tables()
        for index, table in tables:
            offset = self.l2.offset_of(index)
            first, last = self._l2_spans.get(index, (0, len(table)))
            entry_size = table[:1].nbytes
            events.L2_WRITE(index, offset, first, last - first)
            if last - first == len(table):  # new, or a copy
                self.blocks.note("l2_alloc_write")
            self.disk.node.note_event("l2_update")
            self.disk.write(offset + first * entry_size, stored(table[first:last]))
        for index, _ in tables:
            self._l2_spans.pop(index, None)
            self.l2.mark_clean(index)
        return bool(tables)

    def _write_l1(self) -> bool:
        if self._l1_span is None:
            return False
        first, last = self._l1_span
        events.L1_WRITE(first, last - first)
        self.disk.node.note_event("l1_update")
        self.disk.write(self._l1_offset + first * layout.L1_ENTRY_SIZE, stored(self.l2.l1[first:last]))
        self._l1_span = None
        return True

    def _free(self) -> None:
        if not self._released:
            return
        clusters = np.concatenate(self._released)
        self._released, self._released_count = [], 0
        events.CLUSTER_FREE(len(clusters))
        self.disk.node.note_event("cluster_free")
        lowest = self.blocks.subtract(clusters)
        if lowest >= 0:
            self.allocator.freed(lowest)
        self.blocks.write_blocks()
        if self._passed:
            # Nothing on disk leads to these clusters any more, and nobody has taken them for something else yet.
            passed, self._passed = distinct(np.concatenate(self._passed)), []
            free = np.fromiter((not self.blocks.count(cluster) for cluster in passed.tolist()), bool, len(passed))
            give_back(self.disk.node, passed[free], self.blocks.cluster_bits)


def _widened(span: Span | None, other: Span) -> Span:
    return other if span is None else (min(span[0], other[0]), max(span[1], other[1]))
