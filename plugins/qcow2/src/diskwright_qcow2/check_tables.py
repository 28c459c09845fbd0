"""Checking L1 and L2 tables: each L2 table is read once, however many L1 entries use it.

The lines about an L2 table are kept until all are read, and then reported where the L1 tables lead to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from . import layout
from .check_batches import Batch, L1Use, batches
from .check_lines import TableLines
from .check_references import References, StoredRefcounts, outside_line
from .inactive import inactive_l1
from .refcount import Column

if TYPE_CHECKING:
    from diskwright.facts import CheckResult

    from .image import Qcow2Image
    from .snapshots import SnapshotEntry

MAX_GATHERED = 1 << 20
"""L1 entries of snapshots kept before those for the same table are joined."""

_OFFSET_MASK = np.uint64(layout.OFFSET_MASK)
_COPIED = np.uint64(layout.OFLAG_COPIED)
_COMPRESSED = np.uint64(layout.OFLAG_COMPRESSED)
_ZERO = np.uint64(layout.OFLAG_ZERO)
_SHIFT = np.uint64(layout.SUBCLUSTERS_ZERO_SHIFT)
_ALLOCATED = np.uint64(layout.SUBCLUSTERS_ALLOCATED_MASK)


def _at(column: Column, places: Column) -> Column:
    """The rows of a column at some places, in order; the column itself if these are all."""
    return column if len(places) == len(column) else column[places]


class TableCheck:
    """Walks over all L1 and L2 tables of an image.

    :ivar wrong_flags: corruptions that are COPIED flags which do not go with the refcounts; not part of the result.
    :param repairing: whether what a repair replaces is taken for replaced.
    """

    def __init__(
        self,
        image: Qcow2Image,
        references: References,
        stored: StoredRefcounts,
        result: CheckResult,
        *,
        repairing: bool = False,
    ) -> None:
        self.image = image
        self.header = image.header
        self.references = references
        self.stored = stored
        self.result = result
        self.repairing = repairing
        self.wrong_flags = 0
        self._lines = TableLines()
        self._repaired = TableLines()
        self._flags = TableLines()

    def run(self, active: Column, snapshots: Sequence[SnapshotEntry]) -> None:
        """Check the active L1 table and those of snapshots, with all that they lead to."""
        before = self.result.corruptions, self.result.corruptions_fixed
        self._count_l1(active)
        parts = [L1Use.of(active, active=True)]
        gathered = 0
        for table in inactive_l1(self.image, snapshots):
            if table.problem or not self.references.count_range(table.offset, table.length):
                self.result.corruptions += 1
            self._count_l1(table.entries)
            parts.append(L1Use.of(table.entries, active=False))
            gathered += len(parts[-1].offsets)
            if gathered > MAX_GATHERED:
                parts, gathered = [L1Use.total(parts)], 0
        use = L1Use.total(parts)
        if len(use.offsets):
            outside = self.references.add_many(use.offsets, self.header.cluster_size, use.uses)
            self.result.corruptions += int(use.uses[outside].sum())
        for batch in batches(self.image, self.stored, use):
            self._check_batch(batch)
        if (self.result.corruptions, self.result.corruptions_fixed) != before:
            self._report_all(active, snapshots)

    def _report_all(self, active: Column, snapshots: Sequence[SnapshotEntry]) -> None:
        """Note the lines about all tables."""
        self._report_l1(active)
        for table in inactive_l1(self.image, snapshots):
            if len(self.result.findings) >= self.result.MAX_FINDINGS:
                return
            if table.problem:
                self.result.note(table.problem)
            elif not self.references.fits(table.offset, table.length):
                self.result.note(outside_line(table.offset, table.length))
            self._report_l1(table.entries)

    def _l1_faults(self, l1: Column) -> tuple[Column, Column, Column, Column]:
        """Offsets of the L2 tables, and which entries have reserved bits, are outside the file, are not aligned."""
        offsets = l1 & _OFFSET_MASK
        reserved = (l1 & np.uint64(layout.L1_RESERVED_MASK)) != 0
        unaligned = (offsets & np.uint64(self.header.cluster_size - 1)) != 0
        ends = offsets.astype(np.int64) + self.header.cluster_size
        outside = (l1 != 0) & (ends - self.references.file_size >= self.header.cluster_size)
        return offsets, reserved, outside, unaligned

    def _count_l1(self, l1: Column) -> None:
        _, reserved, _, unaligned = self._l1_faults(l1)
        self.result.corruptions += int(reserved.sum()) + int(unaligned.sum())

    def _report_l1(self, l1: Column) -> None:
        """Note the lines about an L1 table and those that it leads to."""
        result = self.result
        offsets, reserved, outside, unaligned = self._l1_faults(l1)
        wrong = reserved | outside | unaligned | self._lines.has(offsets) | self._repaired.has(offsets)
        for i in np.flatnonzero(wrong).tolist():
            if len(result.findings) >= result.MAX_FINDINGS:
                return
            offset = int(offsets[i])
            if reserved[i]:
                result.note(f"ERROR found L1 entry with reserved bits set: {int(l1[i]):x}")
            if outside[i]:
                result.note(outside_line(offset, self.header.cluster_size))
            if unaligned[i]:
                result.note(f"ERROR l2_offset={offset:x}: Table is not cluster aligned; L1 entry corrupted")
            lines = sorted(self._lines.of(offset) + self._repaired.tables.pop(offset, []))
            for _, _, line in lines:
                result.note(line)

    def flag_lines(self, l1: Column, word: str) -> list[str]:
        """The findings about COPIED flags of the active L1 table and the tables behind it.

        :param word: what they start with.
        """
        offsets = l1 & _OFFSET_MASK
        counts, bad = self._wrong_l1_flags(l1)
        lines: list[str] = []
        for i in np.flatnonzero(bad | self._flags.has(offsets)).tolist():
            if len(lines) >= self.result.MAX_FINDINGS:
                break
            if bad[i]:
                lines.append(
                    f"{word} OFLAG_COPIED L2 cluster: l1_index={i} l1_entry={int(l1[i]):x} refcount={int(counts[i])}"
                )
            lines += [f"{word} OFLAG_COPIED {line}" for _, _, line in self._flags.of(int(offsets[i]))]
        return lines

    def _wrong_l1_flags(self, l1: Column) -> tuple[Column, Column]:
        """Refcounts of the L2 tables, and which copied flags do not say whether that is one."""
        offsets = l1 & _OFFSET_MASK
        counts, readable = self.stored.of((offsets >> np.uint64(self.header.cluster_bits)).astype(np.int64))
        return counts, (offsets != 0) & ((counts == 1) != ((l1 & _COPIED) != 0)) & readable

    def count_l1_flags(self, l1: Column) -> None:
        """Count the wrong copied flags of the active L1 table itself."""
        self.wrong_flags += int(self._wrong_l1_flags(l1)[1].sum())

    def _report(self, batch: Batch, bad: Column, rank: int, line: Callable[[int], str], *, fixed: bool = False) -> None:
        """Count corruptions of L2 entries, and keep the lines about them.

        :param rank: their place among the lines about one entry.
        :param line: the line for an index of the batch, without the word at its start.
        :param fixed: whether a repair has replaced them, when the first L1 entry led there.
        """
        places = np.flatnonzero(bad)
        if not len(places):
            return
        if fixed:
            self.result.corruptions_fixed += len(places)
        else:
            self.result.corruptions += int(batch.weights[places].sum())
        word, lines = ("Repairing ", self._repaired) if fixed else ("ERROR", self._lines)
        for i in places[: lines.room].tolist():
            text = line(i)
            lines.add(
                batch.offsets[i // batch.per_table],
                i % batch.per_table,
                rank,
                word + (text.lstrip(": ") if fixed else text),
            )

    def _check_batch(self, batch: Batch) -> None:
        entries = batch.entries
        bits = np.bitwise_or.reduce(entries)  # all that any entry has: most batches have nothing out of the ordinary
        if not bits and not (self.header.extended_l2 and batch.bitmaps.any()):
            return
        compressed = (entries & _COMPRESSED) != 0 if bits & _COMPRESSED else np.zeros(len(entries), bool)
        if bits & np.uint64(layout.L2_RESERVED_MASK):
            bad = ~compressed & ((entries & np.uint64(layout.L2_RESERVED_MASK)) != 0)
            self._report(batch, bad, 0, lambda i: f" found l2 entry with reserved bits set: {int(entries[i]):x}")
        if bits & _COMPRESSED:
            self._check_compressed(batch, compressed)
        placed = ~compressed & ((entries & _OFFSET_MASK) != 0)
        if self.header.has_data_file:
            zero = ((entries & _ZERO) != 0) & (not self.header.extended_l2)
            placed |= ~compressed & ~zero & ((entries & _COPIED) != 0)
        if self.header.extended_l2:
            self._check_bitmaps(batch, compressed, placed)
        if bits & _OFFSET_MASK & np.uint64(self.header.cluster_size - 1):
            placed = self._check_alignment(batch, placed)
        if placed.any():
            self._check_placed(batch, placed)
            self._fragments(batch, placed)

    def _check_compressed(self, batch: Batch, compressed: Column) -> None:
        entries, fixed = batch.entries, self.repairing
        shift = np.uint64(layout.compressed_size_shift(self.header.cluster_bits))
        offsets = entries & ((np.uint64(1) << shift) - np.uint64(1))
        self._report(
            batch,
            compressed & ((entries & _COPIED) != 0),
            1,
            lambda i: f": coffset=0x{int(offsets[i]):x}: copied flag must never be set for compressed clusters",
            fixed=fixed,
        )

        def place(i: int) -> str:
            return f"entry={int(entries[i] & ~_COPIED):#x}"

        number = batch.per_table
        if self.header.has_data_file:
            self._report(
                batch,
                compressed,
                2,
                lambda i: f" compressed cluster {i % number} with data file, {place(i)}",
                fixed=fixed,
            )
            return
        good = compressed
        if self.header.extended_l2:
            bad = compressed & (batch.bitmaps != 0)
            what = "with non-zero subcluster allocation bitmap"
            self._report(batch, bad, 2, lambda i: f" compressed cluster {i % number} {what}, {place(i)}", fixed=fixed)
            good = compressed if fixed else compressed & ~bad
        self._count_compressed(batch, good, offsets, shift)

    def _count_compressed(self, batch: Batch, good: Column, offsets: Column, shift: np.uint64) -> None:
        places = np.flatnonzero(good)
        sector = np.uint64(layout.COMPRESSED_SECTOR)
        sectors = ((batch.entries & np.uint64(layout.OFLAG_COMPRESSED - 1)) >> shift) + np.uint64(1)
        lengths = (sectors * sector - offsets % sector)[places].astype(np.int64)
        starts = offsets[places].astype(np.int64)
        outside = self.references.add_many(starts, lengths, batch.weights[places])
        self._report_outside(batch, places, outside, starts, lengths)
        number = int(batch.active[places].sum())
        self.result.allocated_clusters += number
        self.result.compressed_clusters += number
        self.result.fragmented_clusters += number

    def _report_outside(
        self, batch: Batch, places: Column, outside: Column, starts: Column, lengths: Column | int
    ) -> None:
        """Report what is referred to behind the end of the file.

        :param places: indexes in the batch, of which ``outside`` says which ones are meant.
        """
        if not outside.any():
            return
        bad = np.zeros(len(batch.entries), bool)
        bad[places[outside]] = True
        sizes = np.broadcast_to(lengths, starts.shape)

        def line(i: int) -> str:
            at = int(np.searchsorted(places, i))
            return outside_line(int(starts[at]), int(sizes[at])).removeprefix("ERROR")

        self._report(batch, bad, 5, line)

    def _check_bitmaps(self, batch: Batch, compressed: Column, placed: Column) -> None:
        offsets = batch.entries & _OFFSET_MASK
        both = placed & ((batch.bitmaps >> _SHIFT & batch.bitmaps & _ALLOCATED) != 0)
        self._report(
            batch,
            both,
            3,
            lambda i: f" offset={int(offsets[i]):x}: Allocated cluster has corrupted subcluster allocation bitmap",
            fixed=self.repairing,
        )
        nowhere = ~compressed & ~placed & ((batch.bitmaps & _ALLOCATED) != 0)
        line = ": Unallocated cluster has non-zero subcluster allocation map"
        self._report(batch, nowhere, 3, lambda _: line, fixed=self.repairing)

    def _check_alignment(self, batch: Batch, placed: Column) -> Column:
        """Report clusters that are not at a cluster boundary; those that are left when what can be is replaced."""
        offsets = (batch.entries & _OFFSET_MASK).astype(np.int64)
        unaligned = placed & ((offsets & (self.header.cluster_size - 1)) != 0)
        if not unaligned.any():
            return placed
        data = (batch.bitmaps & _ALLOCATED) != 0 if self.header.extended_l2 else (batch.entries & _ZERO) == 0
        for what, bad, fixed in (
            ("Data", unaligned & data, False),
            ("Preallocated", unaligned & ~data, self.repairing),
        ):
            line = f": {what} cluster is not properly aligned; L2 entry corrupted."
            self._report(batch, bad, 4, lambda i, line=line: f" offset={int(offsets[i]):x}{line}", fixed=fixed)  # type: ignore[misc]
        return placed & ~(unaligned & ~data) if self.repairing else placed

    def _check_placed(self, batch: Batch, placed: Column) -> None:
        places = np.flatnonzero(placed)
        entries, weights = _at(batch.entries, places), _at(batch.weights, places)
        offsets = (entries & _OFFSET_MASK).view(np.int64)
        if self.header.has_data_file:
            counts: Column = np.ones(len(offsets), np.uint8)
            readable: Column = np.ones(len(offsets), bool)
        else:
            outside = self.references.add_many(offsets, self.header.cluster_size, weights)
            self._report_outside(batch, places, outside, offsets, self.header.cluster_size)
            counts, readable = self.stored.of(offsets >> self.header.cluster_bits)
        active = _at(batch.copied, places)
        bad = np.flatnonzero(((counts == 1) != ((entries & _COPIED) != 0)) & (active > 0) & readable)
        self.wrong_flags += int(active[bad].sum())
        for i in bad[: self._flags.room].tolist():
            table, entry = divmod(int(places[i]), batch.per_table)
            line = f"data cluster: l2_entry={int(entries[i]):x} refcount={int(counts[i])}"
            self._flags.add(batch.offsets[table], entry, 0, line)

    def _fragments(self, batch: Batch, placed: Column) -> None:
        """Statistics of the active L1 table: clusters that do not follow the one before them in their table."""
        places = np.flatnonzero(placed & (batch.active > 0))
        if not len(places):
            return
        active = _at(batch.active, places)
        offsets = (_at(batch.entries, places) & _OFFSET_MASK).view(np.int64)
        apart = offsets[1:] - offsets[:-1] != self.header.cluster_size
        # Tables begin anew: the first cluster of one may be anywhere.
        begins = np.searchsorted(places, np.arange(1, len(batch.offsets)) * batch.per_table)
        apart[begins[(begins > 0) & (begins < len(places))] - 1] = False
        self.result.allocated_clusters += int(active.sum())
        self.result.fragmented_clusters += int(active[1:][apart].sum())
