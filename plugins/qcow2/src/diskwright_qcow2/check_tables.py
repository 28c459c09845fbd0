"""Checking L1 and L2 tables: each L2 table is read once, however many L1 entries use it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from . import layout
from .check_references import References, StoredRefcounts, note_weighted
from .refcount import Column

if TYPE_CHECKING:
    from diskwright.hookspecs import CheckResult

    from .image import Qcow2Image

BATCH_BYTES = 1 << 20
"""L2 tables looked at together."""

MAX_GATHERED = 1 << 20
"""L1 entries of snapshots kept before those for the same table are joined."""

_OFFSET_MASK = np.uint64(layout.OFFSET_MASK)
_COPIED = np.uint64(layout.OFLAG_COPIED)
_COMPRESSED = np.uint64(layout.OFLAG_COMPRESSED)
_ZERO = np.uint64(layout.OFLAG_ZERO)
_SHIFT = np.uint64(layout.SUBCLUSTERS_ZERO_SHIFT)
_ALLOCATED = np.uint64(layout.SUBCLUSTERS_ALLOCATED_MASK)


@dataclass
class L1Use:
    """The L2 tables that L1 tables refer to.

    :ivar offsets: host offset of each table, once, in ascending order.
    :ivar uses: by how many L1 entries.
    :ivar active: by how many of the active L1 table.
    """

    offsets: Column
    uses: Column
    active: Column

    @classmethod
    def of(cls, l1: Column, *, active: bool) -> L1Use:
        """What one L1 table refers to."""
        offsets, uses = np.unique(l1[l1 != 0] & _OFFSET_MASK, return_counts=True)
        return cls(offsets.astype(np.int64), uses, uses if active else np.zeros_like(uses))

    @classmethod
    def total(cls, parts: list[L1Use]) -> L1Use:
        """What several L1 tables refer to together."""
        offsets, inverse = np.unique(np.concatenate([part.offsets for part in parts]), return_inverse=True)
        uses, active = (np.zeros(len(offsets), np.int64) for _ in range(2))
        np.add.at(uses, inverse, np.concatenate([part.uses for part in parts]))
        np.add.at(active, inverse, np.concatenate([part.active for part in parts]))
        return cls(offsets, uses, active)


@dataclass
class _Batch:
    """L2 entries of several tables, one behind the other.

    :ivar weights: for each entry, how often its table is used.
    :ivar active: the same by the active L1 table.
    :ivar copied: the same again, but 0 where the copied flags cannot be checked as the table's refcount is unknown.
    :ivar per_table: entries of a table.
    """

    entries: Column
    bitmaps: Column
    weights: Column
    active: Column
    copied: Column
    per_table: int


class TableCheck:
    """Walks over all L1 and L2 tables of an image.

    :ivar late: corruptions that are reported after the refcounts: (how many, lines, indexes).
    """

    def __init__(self, image: Qcow2Image, references: References, stored: StoredRefcounts, result: CheckResult) -> None:
        self.image = image
        self.header = image.header
        self.references = references
        self.stored = stored
        self.result = result
        self.late: list[tuple[int, list[str]]] = []

    def run(self, active: Column, inactive: Iterable[Column]) -> None:
        """Check the active L1 table and inactive ones, with all that they lead to."""
        self._check_l1(active)
        parts = [L1Use.of(active, active=True)]
        for l1 in inactive:
            self._check_l1(l1)
            parts.append(L1Use.of(l1, active=False))
            if sum(len(part.offsets) for part in parts[1:]) > MAX_GATHERED:
                parts = [L1Use.total(parts)]
        use = L1Use.total(parts)
        if len(use.offsets):
            length = self.header.cluster_size
            self.references.add_many(use.offsets, length, use.uses)
        self._check_copied_l1(active)
        for batch in self._batches(use):
            self._check_batch(batch)

    def _report(self, bad: Column, weights: Column, line: Callable[[int], str]) -> None:
        if bad.any():
            note_weighted(self.result, weights, line, np.flatnonzero(bad))

    def _check_l1(self, l1: Column) -> None:
        ones = np.broadcast_to(np.int64(1), l1.shape)
        reserved = (l1 & np.uint64(layout.L1_RESERVED_MASK)) != 0
        self._report(reserved, ones, lambda i: f"ERROR found L1 entry with reserved bits set: {int(l1[i]):x}")
        offsets = l1 & _OFFSET_MASK
        unaligned = (offsets & np.uint64(self.header.cluster_size - 1)) != 0
        self._report(
            unaligned,
            ones,
            lambda i: f"ERROR l2_offset={int(offsets[i]):x}: Table is not cluster aligned; L1 entry corrupted",
        )

    def _check_copied_l1(self, l1: Column) -> None:
        """The copied flag says that the refcount is one."""
        used = np.flatnonzero(l1 & _OFFSET_MASK)
        entries = l1[used]
        counts, readable = self.stored.of(
            ((entries & _OFFSET_MASK) >> np.uint64(self.header.cluster_bits)).astype(np.int64)
        )
        bad = np.flatnonzero(((counts == 1) != ((entries & _COPIED) != 0)) & readable)
        lines = [
            f"ERROR OFLAG_COPIED L2 cluster: l1_index={int(used[i])} l1_entry={int(entries[i]):x} "
            f"refcount={int(counts[i])}"
            for i in bad[: self.result.MAX_FINDINGS].tolist()
        ]
        self.late.append((len(bad), lines))

    def _batches(self, use: L1Use) -> Iterator[_Batch]:
        size = self.header.cluster_size
        step = max(1, BATCH_BYTES // size)
        node = self.image.file
        readable = np.flatnonzero(use.offsets < node.size)
        for start in range(0, len(readable), step):
            chosen = readable[start : start + step]
            data = bytearray(len(chosen) * size)
            view = memoryview(data)
            for place, offset in enumerate(use.offsets[chosen].tolist()):
                node.note_event("l2_load")
                node.read_into(offset, view[place * size : (place + 1) * size])
            table = np.frombuffer(data, layout.L2_DTYPE).astype(np.uint64)
            per_table = self.header.l2_entries
            active = use.active[chosen]
            _, known = self.stored.of(use.offsets[chosen] >> self.header.cluster_bits)
            if self.header.extended_l2:
                entries, bitmaps = table[0::2], table[1::2]
            else:
                entries, bitmaps = table, np.zeros(1, np.uint64)
            yield _Batch(
                entries,
                bitmaps,
                np.repeat(use.uses[chosen], per_table),
                np.repeat(active, per_table),
                np.repeat(active * known, per_table),
                per_table,
            )

    def _check_batch(self, batch: _Batch) -> None:
        entries = batch.entries
        used = (entries != 0) if not self.header.extended_l2 else ((entries | batch.bitmaps) != 0)
        if not used.any():
            return
        compressed = (entries & _COMPRESSED) != 0
        bad = used & ~compressed & ((entries & np.uint64(layout.L2_RESERVED_MASK)) != 0)
        self._report(bad, batch.weights, lambda i: f"ERROR found l2 entry with reserved bits set: {int(entries[i]):x}")
        if compressed.any():
            self._check_compressed(batch, compressed)
        placed = ~compressed & ((entries & _OFFSET_MASK) != 0)
        if self.header.has_data_file:
            zero = ((entries & _ZERO) != 0) & (not self.header.extended_l2)
            placed |= ~compressed & ~zero & ((entries & _COPIED) != 0)
        if self.header.extended_l2:
            self._check_bitmaps(batch, compressed, placed)
        if placed.any():
            self._check_placed(batch, placed)
            self._fragments(batch, placed)

    def _check_compressed(self, batch: _Batch, compressed: Column) -> None:
        entries = batch.entries
        shift = np.uint64(layout.compressed_size_shift(self.header.cluster_bits))
        offsets = entries & ((np.uint64(1) << shift) - np.uint64(1))
        self._report(
            compressed & ((entries & _COPIED) != 0),
            batch.weights,
            lambda i: f"ERROR: coffset=0x{int(offsets[i]):x}: copied flag must never be set for compressed clusters",
        )
        good = compressed
        if self.header.has_data_file:
            self._report(
                compressed,
                batch.weights,
                lambda i: (
                    f"ERROR compressed cluster {i % batch.per_table} with data file, "
                    f"entry={int(entries[i] & ~_COPIED):#x}"
                ),
            )
            return
        if self.header.extended_l2:
            bad = compressed & (batch.bitmaps != 0)
            self._report(
                bad,
                batch.weights,
                lambda i: (
                    f"ERROR compressed cluster {i % batch.per_table} with non-zero subcluster allocation bitmap, "
                    f"entry={int(entries[i] & ~_COPIED):#x}"
                ),
            )
            good = compressed & ~bad
        sector = np.uint64(layout.COMPRESSED_SECTOR)
        sectors = ((entries & np.uint64(layout.OFLAG_COMPRESSED - 1)) >> shift) + np.uint64(1)
        lengths = sectors * sector - offsets % sector
        self.references.add_many(offsets[good].astype(np.int64), lengths[good].astype(np.int64), batch.weights[good])
        number = int(batch.active[good].sum())
        self.result.allocated_clusters += number
        self.result.compressed_clusters += number
        self.result.fragmented_clusters += number

    def _check_bitmaps(self, batch: _Batch, compressed: Column, placed: Column) -> None:
        offsets = batch.entries & _OFFSET_MASK
        both = placed & ((batch.bitmaps >> _SHIFT & batch.bitmaps & _ALLOCATED) != 0)
        self._report(
            both,
            batch.weights,
            lambda i: f"ERROR offset={int(offsets[i]):x}: Allocated cluster has corrupted subcluster allocation bitmap",
        )
        nowhere = ~compressed & ~placed & ((batch.bitmaps & _ALLOCATED) != 0)
        self._report(
            nowhere,
            batch.weights,
            lambda i: "ERROR: Unallocated cluster has non-zero subcluster allocation map",
        )

    def _check_placed(self, batch: _Batch, placed: Column) -> None:
        places = np.flatnonzero(placed)
        entries, weights = batch.entries[places], batch.weights[places]
        offsets = (entries & _OFFSET_MASK).astype(np.int64)
        unaligned = (offsets & (self.header.cluster_size - 1)) != 0
        data = (batch.bitmaps[places] & _ALLOCATED) != 0 if self.header.extended_l2 else (entries & _ZERO) == 0
        self._report(
            unaligned,
            weights,
            lambda i: (
                f"ERROR offset={int(offsets[i]):x}: {'Data' if data[i] else 'Preallocated'} cluster is not properly "
                "aligned; L2 entry corrupted."
            ),
        )
        if self.header.has_data_file:
            counts: Column = np.ones(len(offsets), np.uint8)
            readable: Column = np.ones(len(offsets), bool)
        else:
            self.references.add_many(offsets, self.header.cluster_size, weights)
            counts, readable = self.stored.of(offsets >> self.header.cluster_bits)
        active = batch.copied[places]
        bad = np.flatnonzero(((counts == 1) != ((entries & _COPIED) != 0)) & (active > 0) & readable)
        if len(bad):
            lines = [
                f"ERROR OFLAG_COPIED data cluster: l2_entry={int(entries[i]):x} refcount={int(counts[i])}"
                for i in bad[: self.result.MAX_FINDINGS].tolist()
            ]
            self.late.append((int(active[bad].sum()), lines))

    def _fragments(self, batch: _Batch, placed: Column) -> None:
        """Statistics of the active L1 table: clusters that do not follow the one before them in their table."""
        places = np.flatnonzero(placed & (batch.active > 0))
        if not len(places):
            return
        active = batch.active[places]
        offsets = (batch.entries[places] & _OFFSET_MASK).astype(np.int64)
        same_table = places[1:] // batch.per_table == places[:-1] // batch.per_table
        apart = same_table & (offsets[1:] != offsets[:-1] + self.header.cluster_size)
        self.result.allocated_clusters += int(active.sum())
        self.result.fragmented_clusters += int(active[1:][apart].sum())
