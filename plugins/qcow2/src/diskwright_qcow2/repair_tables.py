"""Replacing L1 and L2 entries that cannot be, by such that read the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from diskwright.extent import distinct

from . import layout
from .check_references import StoredRefcounts
from .inactive import inactive_l1
from .l2 import stored
from .order import Disk

if TYPE_CHECKING:
    from .header import Header
    from .image import Qcow2Image
    from .refcount import Column

_OFFSET_MASK = np.uint64(layout.OFFSET_MASK)
_COPIED = np.uint64(layout.OFLAG_COPIED)
_COMPRESSED = np.uint64(layout.OFLAG_COMPRESSED)
_ZERO = np.uint64(layout.OFLAG_ZERO)
_SHIFT = np.uint64(layout.SUBCLUSTERS_ZERO_SHIFT)
_ALLOCATED = np.uint64(layout.SUBCLUSTERS_ALLOCATED_MASK)
_ALL_ZERO = np.uint64(layout.SUBCLUSTERS_ALLOCATED_MASK << layout.SUBCLUSTERS_ZERO_SHIFT)


class L2Editor:
    """Changes L2 tables where they stand, whoever refers to them."""

    def __init__(self, image: Qcow2Image) -> None:
        self.header = image.header
        self.node = image.file
        self.disk = Disk(image.file)
        self.changed = False

    def read(self, offset: int) -> tuple[Column, Column, Column]:
        """The table at a file offset: as a whole, its descriptors and its subcluster bitmaps, which are views."""
        self.node.note_event("l2_load")
        table = np.frombuffer(self.node.read_at(offset, self.header.cluster_size), layout.L2_DTYPE).astype(np.uint64)
        if self.header.extended_l2:
            return table, table[0::2], table[1::2]
        return table, table, np.zeros(len(table), np.uint64)

    def write(self, offset: int, old: Column, new: Column) -> None:
        """Write what differs of a table."""
        different = np.flatnonzero(old != new)
        if len(different):
            first, last = int(different[0]), int(different[-1]) + 1
            self.disk.write(offset + first * layout.L2_ENTRY_SIZE, stored(new[first:last]))
            self.changed = True

    def readable(self, l1: Column) -> list[int]:
        """File offsets of the L2 tables of an L1 table, once each; those that are not in the file are left out."""
        offsets = distinct(l1 & _OFFSET_MASK)
        size = np.uint64(self.header.cluster_size)
        sound = (offsets != 0) & (offsets % size == 0) & (offsets < np.uint64(self.node.size))
        found: list[int] = offsets[sound].tolist()
        return found


def repair_entries(image: Qcow2Image) -> bool:
    """Replace L2 entries that contradict themselves, of the disk and of all snapshots.

    :returns: whether any has changed.
    """
    editor = L2Editor(image)
    tables = [table.entries for table in inactive_l1(image, image.snapshots)]
    for offset in editor.readable(np.concatenate([image.l1, *tables])):
        table, entries, bitmaps = editor.read(offset)
        old = table.copy()
        if image.header.has_data_file:
            _replace_compressed(image.header, entries, bitmaps)
        _replace_unaligned(image.header, entries, bitmaps)
        if image.header.extended_l2:
            _replace_bitmaps(image.header, entries, bitmaps)
        compressed = entries & _COMPRESSED != 0
        entries[compressed] &= ~_COPIED
        editor.write(offset, old, table)
    if editor.changed:
        editor.disk.barrier()
    return editor.changed


def _replace_compressed(header: Header, entries: Column, bitmaps: Column) -> None:
    """With a data file no cluster can be compressed; nobody can read such ones."""
    bad = entries & _COMPRESSED != 0
    entries[bad] = 0 if header.extended_l2 else _ZERO
    bitmaps[bad] = _ALL_ZERO


def _replace_unaligned(header: Header, entries: Column, bitmaps: Column) -> None:
    """A preallocated cluster that is not at a cluster boundary: it reads as before without it."""
    bad = (entries & _COMPRESSED == 0) & (entries & _OFFSET_MASK & np.uint64(header.cluster_size - 1) != 0)
    bad &= bitmaps & _ALLOCATED == 0 if header.extended_l2 else entries & _ZERO != 0
    entries[bad] = 0 if header.extended_l2 else _ZERO


def _replace_bitmaps(header: Header, entries: Column, bitmaps: Column) -> None:
    """Subclusters that are both allocated and zero, or allocated nowhere, become zero; the others stay readable."""
    compressed = entries & _COMPRESSED != 0
    bitmaps[compressed] = 0
    # In a data file guest cluster 0 may be at offset 0: there the copied flag says that it is allocated.
    placed = entries & (_OFFSET_MASK | _COPIED if header.has_data_file else _OFFSET_MASK) != 0
    conflict = bitmaps & bitmaps >> _SHIFT & _ALLOCATED
    nowhere = np.where(placed, np.uint64(0), bitmaps & _ALLOCATED)
    bitmaps[:] = (bitmaps & ~(conflict | nowhere)) | nowhere << _SHIFT


def flag_copied(image: Qcow2Image) -> None:
    """Let the COPIED flags of the disk say what the refcounts say."""
    editor = L2Editor(image)
    header = image.header
    refcounts = StoredRefcounts(image, -(-image.file.size >> header.cluster_bits))
    l1 = image.l1.copy()
    used = l1 & _OFFSET_MASK != 0
    l1[used] = _flagged(refcounts, header, l1[used])
    for offset in editor.readable(l1):
        table, entries, _ = editor.read(offset)
        old = table.copy()
        placed = (entries & _COMPRESSED == 0) & (entries & _OFFSET_MASK != 0)
        if header.has_data_file:
            entries[placed] |= _COPIED
        else:
            entries[placed] = _flagged(refcounts, header, entries[placed])
        editor.write(offset, old, table)
    different = np.flatnonzero(l1 != image.l1)
    if len(different):
        first, last = int(different[0]), int(different[-1]) + 1
        editor.disk.write(header.l1_table_offset + first * layout.L1_ENTRY_SIZE, stored(l1[first:last]))
    editor.disk.barrier()


def _flagged(refcounts: StoredRefcounts, header: Header, entries: Column) -> Column:
    """Entries with the right COPIED flags; those whose refcount cannot be read stay as they are."""
    counts, readable = refcounts.of(((entries & _OFFSET_MASK) >> np.uint64(header.cluster_bits)).astype(np.int64))
    flagged = np.where(counts == 1, entries | _COPIED, entries & ~_COPIED)
    return np.where(readable, flagged, entries)
