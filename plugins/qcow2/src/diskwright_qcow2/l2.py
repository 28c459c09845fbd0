"""The active L1 table and a bounded cache of the L2 tables it points to."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from . import events, layout

if TYPE_CHECKING:
    from diskwright.bounded import BoundedReader
    from diskwright.errors import InvalidImage

    from .header import Header

Table: TypeAlias = npt.NDArray[Any]
"""64-bit unsigned integers in native byte order; an L2 table with extended entries has two columns."""

CACHE_BYTES = 32 << 20
"""L2 tables kept in memory, those not yet written back aside."""


class L2Tables:
    """L2 tables by the index of their L1 entry, the least recently used of them dropped when there are too many.

    Tables that were changed stay until :meth:`mark_clean`: the writer decides when they go to the file. All methods
    may be called from several threads; changing a table is up to whoever holds the image's lock.

    :ivar l1: the active L1 table, as stored, in native byte order.
    """

    def __init__(self, reader: BoundedReader, header: Header, capacity: int | None = None) -> None:
        self._reader = reader
        self._cluster_size = header.cluster_size
        self._columns = header.l2_entry_size // layout.L2_ENTRY_SIZE
        self._limit = max(1, (CACHE_BYTES if capacity is None else capacity) // header.cluster_size)
        self._lock = threading.Lock()
        self._clean: OrderedDict[int, Table] = OrderedDict()
        self._dirty: dict[int, Table] = {}
        self._changes = 0
        self._distinct = False
        self.l1: Table = reader.table(
            layout.L1_DTYPE,
            header.l1_table_offset,
            header.l1_size,
            "active L1 table",
            limit=layout.MAX_L1_BYTES // layout.L1_ENTRY_SIZE,
        )

    def get(self, index: int) -> Table | None:
        """The table of L1 entry ``index``, shared with all other callers; ``None`` if there is none.

        :raises InvalidImage: the entry is not a cluster of the file.
        """
        while True:
            with self._lock:
                if (table := self._cached(index)) is not None:
                    return table
                changes = self._changes
            offset = int(self.l1[index]) & layout.OFFSET_MASK
            if not offset:
                return None
            table = self._load(index, offset)
            with self._lock:
                # A table that was changed meanwhile may even have been written back: what was read could be older.
                if changes == self._changes:
                    self._clean[index] = table
                    self._evict()
                    return table

    def offset_of(self, index: int) -> int:
        """Host offset of the table of L1 entry ``index``, bytes; 0 if there is none.

        :raises InvalidImage: the entry does not point to a cluster boundary.
        """
        offset = int(self.l1[index]) & layout.OFFSET_MASK
        if offset % self._cluster_size:
            raise self.corrupt(f"L2 table offset {offset:#x} unaligned (L1 index: {index:#x})")
        return offset

    def empty(self) -> Table:
        """A new table that maps nothing; it is not part of the cache."""
        count = self._cluster_size // (layout.L2_ENTRY_SIZE * self._columns)
        return np.zeros(count if self._columns == 1 else (count, self._columns), np.uint64)

    def mark_dirty(self, index: int, table: Table) -> None:
        """Keep ``table``, changed or new, as the table of L1 entry ``index`` until it is marked clean."""
        with self._lock:
            self._changes += 1
            self._clean.pop(index, None)
            self._dirty[index] = table

    def mark_clean(self, index: int) -> None:
        """The table of L1 entry ``index`` has been written back: it may be dropped from now on."""
        with self._lock:
            table = self._dirty.pop(index, None)
            if table is not None:
                self._clean[index] = table
                self._evict()

    def drop(self, index: int) -> None:
        """Forget the table of L1 entry ``index``, even if it was changed."""
        with self._lock:
            self._changes += 1
            self._clean.pop(index, None)
            self._dirty.pop(index, None)

    def dirty_tables(self) -> list[tuple[int, Table]]:
        """Index and table of all that have to be written back, in the order of the L1 table."""
        with self._lock:
            return sorted(self._dirty.items(), key=lambda item: item[0])

    @property
    def dirty_bytes(self) -> int:
        """Memory that changed tables take."""
        return len(self._dirty) * self._cluster_size

    def require_distinct(self) -> None:
        """Refuse an L1 table that uses an L2 table twice: such an image could make a map far larger than its file.

        :raises InvalidImage: it does.
        """
        if self._distinct:
            return
        offsets = np.sort(self.l1[self.l1 & np.uint64(layout.OFFSET_MASK) != 0] & np.uint64(layout.OFFSET_MASK))
        twice = np.flatnonzero(offsets[1:] == offsets[:-1])
        if len(twice):
            raise self.corrupt(f"L2 table at offset {int(offsets[twice[0]]):#x} is used by several L1 entries")
        self._distinct = True

    def corrupt(self, reason: str) -> InvalidImage:
        """An error about the tables, ready to be raised."""
        return self._reader.error(f"Image is corrupt: {reason}")

    def _cached(self, index: int) -> Table | None:
        table = self._dirty.get(index)
        if table is None and (table := self._clean.get(index)) is not None:
            self._clean.move_to_end(index)
        return table

    def _load(self, index: int, offset: int) -> Table:
        self.offset_of(index)
        count = self._cluster_size // layout.L2_ENTRY_SIZE
        events.L2_LOAD(index, offset)
        self._reader.node.note_event("l2_load")
        table = self._reader.table(layout.L2_DTYPE, offset, count, f"L2 table {index}", limit=count)
        return table if self._columns == 1 else table.reshape(-1, self._columns)

    def _evict(self) -> None:
        while len(self._clean) > self._limit:
            self._clean.popitem(last=False)


def stored(table: Table) -> bytes:
    """A table as it stands in the file."""
    return table.astype(layout.L2_DTYPE).tobytes()
