"""Checking an image: everything that refers to host clusters against the refcounts, and each table by itself.

The computed reference counts are the basis of any repair; nothing is changed here.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import numpy as np

from diskwright.errors import InvalidImage
from diskwright.facts import CheckResult
from diskwright.record import Record

from . import layout
from .check_blocks import BlockCheck
from .check_references import References, StoredRefcounts, note_all, outside_line
from .check_tables import TableCheck
from .compare import Comparison
from .snapshots import incomplete, read_snapshots

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .image import Qcow2Image
    from .refcount import Column
    from .snapshots import SnapshotEntry


class Examination(Record):
    """What a check found, with what a repair needs to know.

    :ivar result: the findings up to those of the refcounts, which :attr:`comparison` and :attr:`tables` have.
    :ivar references: the references to each cluster.
    :ivar stored: the refcounts of each cluster.
    :ivar lost: whether refcounts cannot be corrected where they stand: structures are broken, or clusters that are in
        use count as free.
    :ivar grown: file size that a repair has to set, so that refcount blocks are inside; 0 for the present one.
    :ivar tables: knows the COPIED flags that do not go with the refcounts.
    """

    result: CheckResult
    references: References
    stored: StoredRefcounts
    comparison: Comparison
    tables: TableCheck
    lost: bool
    grown: int

    @property
    def differs(self) -> bool:
        """Whether refcounts or COPIED flags are wrong, or refcounts cannot be read."""
        comparison = self.comparison
        return bool(comparison.leaks or comparison.low or comparison.unreadable or self.tables.wrong_flags)

    def conclude(self, image: Qcow2Image) -> CheckResult:
        """The result with all findings, when nothing is repaired."""
        self.comparison.report(self.result)
        self.result.corruptions += self.tables.wrong_flags
        for line in self.tables.flag_lines(image.l1, "ERROR"):
            self.result.note(line)
        return self.result


def check(image: Qcow2Image) -> CheckResult:
    """Check an image, see the ``check`` hook."""
    result = CheckResult()
    snapshots = readable_snapshots(image, result)
    return result if snapshots is None else examine(image, snapshots, result).conclude(image)


def unsound(image: Qcow2Image, result: CheckResult) -> InvalidImage:
    """The error of what cannot be done to an image in which a check has found errors."""
    reason = "; ".join(result.findings[:1])
    message = f"qcow2: The image has errors, check it first ({reason})"
    return InvalidImage(message, filename=image.file.filename)


def readable_snapshots(
    image: Qcow2Image, result: CheckResult, *, repairing: bool = False
) -> list[SnapshotEntry] | None:
    """The snapshots to be checked; ``None`` if what they use is not known, with which the check ends.

    :param repairing: whether entries that lack something are going to be completed.
    """
    header = image.header
    error = None
    if image.mended is not None:
        snapshots = image.mended.entries
    elif header.snapshots_offset % header.cluster_size:
        error = InvalidImage("ERROR snapshot table offset invalid")
    elif header.nb_snapshots > layout.MAX_SNAPSHOTS:
        left = header.nb_snapshots - layout.MAX_SNAPSHOTS
        hint = f"You can force-remove all {left} overhanging snapshots with qemu-img check -r all"
        error = InvalidImage("ERROR snapshot table too large", hint=hint)
    else:
        try:
            snapshots = read_snapshots(image.reader, header)
        except InvalidImage as problem:
            error = InvalidImage(f"ERROR failed to read the snapshot table: {problem}", hint=problem.hint)
    if error is not None:
        result.fail(os.strerror(errno.EFBIG if error.hint else errno.EINVAL), error)
        return None
    word = "Repairing" if repairing else "ERROR"
    for number in incomplete(header, snapshots):
        result.error(f"{word} snapshot table entry {number} is incomplete")
    return snapshots


def examine(
    image: Qcow2Image, snapshots: Sequence[SnapshotEntry], result: CheckResult, *, repairing: bool = False
) -> Examination:
    """Check an image.

    :param repairing: whether what a full repair replaces is taken for replaced.
    """
    header = image.header
    result.total_clusters = -(-header.disk_size >> header.cluster_bits)
    blocks = BlockCheck(image, repairing=repairing)
    references = References(image, result, blocks.grown)
    stored = StoredRefcounts(image, references.clusters)
    tables = TableCheck(image, references, stored, result, repairing=repairing)
    references.add_range(header.l1_table_offset, header.l1_size * layout.L1_ENTRY_SIZE)
    count_content(image, tables, image.l1, snapshots)
    references.add_range(header.refcount_table_offset, header.refcount_table_clusters << header.cluster_bits)
    broken = blocks.check(references, stored, result)
    comparison = Comparison(references, stored)
    tables.count_l1_flags(image.l1)
    result.image_end = (comparison.highest + 1) << header.cluster_bits
    return Examination(result, references, stored, comparison, tables, broken or comparison.lost, blocks.grown)


def count_content(image: Qcow2Image, tables: TableCheck, active: Column, snapshots: Sequence[SnapshotEntry]) -> None:
    """Check and count everything but the active L1 table itself and the refcount structures.

    :param active: the active L1 table.
    """
    header, references, result = image.header, tables.references, tables.result
    references.add_range(0, header.cluster_size)
    if snapshots and header.has_data_file:
        result.error(
            f"ERROR {len(snapshots)} snapshots in image with data file: "
            "Snapshots are not supported with an external data file"
        )
    tables.run(active, snapshots)
    if snapshots:
        references.add_range(header.snapshots_offset, snapshots[-1].end - header.snapshots_offset)
    if header.crypto is not None:
        references.add_range(header.crypto.offset, header.crypto.length)
    if header.bitmaps is not None:
        references.add_range(header.bitmaps.offset, header.bitmaps.size)
        _count_bitmaps(image, references)


def _count_bitmaps(image: Qcow2Image, references: References) -> None:
    """Count the tables and the data of all bitmaps."""
    for bitmap in image.bitmaps:
        references.add_range(bitmap.table_offset, bitmap.table_size * layout.BITMAP_TABLE_ENTRY_SIZE)
        table = image.reader.table(
            layout.BITMAP_TABLE_DTYPE,
            bitmap.table_offset,
            bitmap.table_size,
            "bitmap table",
            limit=layout.MAX_BITMAP_TABLE_ENTRIES,
        )
        _count_bitmap(references, table)


def _count_bitmap(references: References, table: Column) -> None:
    """Count the clusters of one bitmap's data."""
    reserved = (table & np.uint64(layout.BITMAP_TABLE_RESERVED_MASK)) != 0
    offsets = table & np.uint64(layout.OFFSET_MASK)
    reserved |= (offsets != 0) & ((table & np.uint64(layout.BITMAP_TABLE_ALL_ONES)) != 0)
    unaligned = (offsets & np.uint64(references.header.cluster_size - 1)) != 0
    bad = reserved | unaligned
    note_all(
        references.result,
        int(bad.sum()),
        lambda i: f"ERROR bitmap table entry {i} is invalid: {int(table[i]):#x}",
        np.flatnonzero(bad),
    )
    placed = offsets[(offsets != 0) & ~bad].astype(np.int64)
    if len(placed):
        size = references.header.cluster_size
        outside = references.add_many(placed, size, np.ones(len(placed), np.int64))
        places = placed[outside]
        note_all(references.result, len(places), lambda i: outside_line(int(places[i]), size), np.arange(len(places)))
