"""Checking an image: everything that refers to host clusters against the refcounts, and each table by itself.

The computed reference counts are the basis of any repair; nothing is changed here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from diskwright.errors import InvalidImage
from diskwright.hookspecs import CheckResult

from . import layout
from .check_references import References, StoredRefcounts, note_all
from .check_tables import TableCheck
from .overlap import snapshot_table_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .image import Qcow2Image
    from .refcount import Column
    from .snapshots import SnapshotEntry

_COMPARED_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Examination:
    """What a check found, with what a repair needs to know.

    :ivar references: the references to each cluster.
    :ivar stored: the refcounts of each cluster.
    :ivar complete: whether all references could be counted.
    :ivar structures_broken: whether the refcount table or a refcount block cannot be what it should be.
    :ivar counts_low: whether there are refcounts lower than the references, or that cannot be read.
    :ivar wrong_flags: corruptions that are COPIED flags which do not go with the refcounts.
    :ivar flag_lines: the findings about those, the last of all.
    """

    result: CheckResult
    references: References
    stored: StoredRefcounts
    complete: bool
    structures_broken: bool
    counts_low: bool
    wrong_flags: int
    flag_lines: list[str]


def check(image: Qcow2Image) -> CheckResult:
    """Check an image, see the ``check`` hook."""
    return examine(image).result


def examine(image: Qcow2Image) -> Examination:
    """Check an image."""
    header = image.header
    result = CheckResult(total_clusters=-(-header.disk_size >> header.cluster_bits))
    references = References(image, result)
    stored = StoredRefcounts(image, references.clusters)
    references.add_range(header.l1_table_offset, header.l1_size * layout.L1_ENTRY_SIZE)
    tables = TableCheck(image, references, stored, result)
    count_content(image, tables, image.l1)
    complete = not result.check_errors
    references.add_range(header.refcount_table_offset, header.refcount_table_clusters << header.cluster_bits)
    sound = result.corruptions
    if stored.problem:
        result.error(f"ERROR {stored.problem}")
    _check_refcount_blocks(image, references, stored, result)
    structures_broken = result.corruptions > sound or bool(stored.unreadable)
    before = result.corruptions, result.check_errors
    highest = _compare(references, stored, result)
    counts_low = (result.corruptions, result.check_errors) != before
    wrong_flags = sum(number for number, _ in tables.late)
    flag_lines = [line for _, lines in tables.late for line in lines]
    result.corruptions += wrong_flags
    for line in flag_lines:
        result.note(line)
    result.image_end = (highest + 1) << header.cluster_bits
    return Examination(result, references, stored, complete, structures_broken, counts_low, wrong_flags, flag_lines)


def count_content(image: Qcow2Image, tables: TableCheck, active: Column) -> None:
    """Check and count everything but the active L1 table itself and the refcount structures.

    :param active: the active L1 table.
    """
    header, references, result = image.header, tables.references, tables.result
    references.add_range(0, header.cluster_size)
    try:
        snapshots = image.snapshots
    except InvalidImage as error:
        result.check_errors += 1
        result.note(f"ERROR failed to read the snapshot table: {error}")
        snapshots = []
    tables.run(active, inactive_l1(image, snapshots, references, result))
    if snapshots:
        references.add_range(header.snapshots_offset, snapshot_table_size(image))
    if header.crypto is not None:
        references.add_range(header.crypto.offset, header.crypto.length)
    if header.bitmaps is not None:
        references.add_range(header.bitmaps.offset, header.bitmaps.size)
        _count_bitmaps(image, references)


def inactive_l1(
    image: Qcow2Image, snapshots: Sequence[SnapshotEntry], references: References, result: CheckResult
) -> Iterator[Column]:
    """The L1 tables of all snapshots, each counted where it stands."""
    if snapshots and image.header.has_data_file:
        result.error(
            f"ERROR {len(snapshots)} snapshots in image with data file: "
            "Snapshots are not supported with an external data file"
        )
    left = image.file.size
    for snapshot in snapshots:
        offset, size = snapshot.l1_table_offset, snapshot.l1_size
        length = size * layout.L1_ENTRY_SIZE
        name = f"ERROR snapshot {snapshot.public.id} ({snapshot.public.name})"
        if offset & (image.header.cluster_size - 1):
            result.error(
                f"{name} l1_offset={offset:#x}: L1 table is not cluster aligned; snapshot table entry corrupted"
            )
        elif length > layout.MAX_L1_BYTES:
            result.error(f"{name} l1_size={size:#x}: L1 table is too large; snapshot table entry corrupted")
        elif length > left:
            # Tables that do not overlap fit into the file together: these are not worth endless work.
            result.error(f"{name} l1_size={size:#x}: L1 tables of the snapshots are larger than the file")
        elif length:
            references.add_range(offset, length)
            inside = max(0, min(length, image.file.size - offset)) // layout.L1_ENTRY_SIZE
            left -= length
            yield image.reader.table(layout.L1_DTYPE, offset, inside, "snapshot L1 table", limit=size)


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
        references.add_many(placed, references.header.cluster_size, np.ones(len(placed), np.int64))


def _check_refcount_blocks(
    image: Qcow2Image, references: References, stored: StoredRefcounts, result: CheckResult
) -> None:
    """Check and count the blocks that the refcount table refers to."""
    size = image.header.cluster_size
    table = stored.table
    used = np.flatnonzero(table)
    entries = table[used]
    reserved = (entries & np.uint64(layout.REFCOUNT_TABLE_RESERVED_MASK)) != 0
    note_all(
        result,
        int(reserved.sum()),
        lambda i: f"ERROR refcount table entry {i} has reserved bits set",
        used[reserved],
    )
    unaligned = ~reserved & ((entries & np.uint64(size - 1)) != 0)
    note_all(
        result,
        int(unaligned.sum()),
        lambda i: f"ERROR refcount block {i} is not cluster aligned; refcount table entry corrupted",
        used[unaligned],
    )
    outside = ~reserved & ~unaligned & (entries >= np.uint64(references.clusters << image.header.cluster_bits))
    note_all(result, int(outside.sum()), lambda i: f"ERROR refcount block {i} is outside image", used[outside])
    good = ~reserved & ~unaligned & ~outside
    offsets = entries[good].astype(np.int64)
    references.add_many(offsets, size, np.ones(len(offsets), np.int64))
    references.limit()
    counts = references.counts[offsets >> image.header.cluster_bits]
    wrong = np.flatnonzero(counts != 1)
    indexes = used[good]
    note_all(
        result,
        len(wrong),
        lambda i: f"ERROR refcount block {int(indexes[i])} refcount={int(counts[i])}",
        wrong,
    )


def _compare(references: References, stored: StoredRefcounts, result: CheckResult) -> int:
    """Compare computed with stored counts; the highest cluster in use."""
    highest = 0
    if not references.counts[-1]:
        # Behind the last cluster of the file only what is referred to is looked at.
        stored.counts[-1] = 0
    last = len(references.counts) - (not references.counts[-1])
    for start, end in stored.unreadable:
        result.check_errors += max(0, min(end, last) - start)
        for cluster in range(start, min(end, last, start + result.MAX_FINDINGS)):
            result.note(f"Can't get refcount for cluster {cluster}: Input/output error")
    for start, end in stored.covered(references.touched_ranges()):
        for position in range(start, end, _COMPARED_AT_ONCE):
            stop = min(end, position + _COMPARED_AT_ONCE)
            computed, on_disk = references.counts[position:stop], stored.counts[position:stop]
            used = np.flatnonzero((computed != 0) | (on_disk != 0))
            if len(used):
                highest = position + int(used[-1])
            _report_differences(position, computed, on_disk, result)
    return highest


def _report_differences(position: int, computed: Column, on_disk: Column, result: CheckResult) -> None:
    different = np.flatnonzero(computed != on_disk)
    if not len(different):
        return
    leaked = on_disk[different] > computed[different]
    result.leaks += int(leaked.sum())
    result.corruptions += len(different) - int(leaked.sum())
    for place, index in enumerate(different[: result.MAX_FINDINGS].tolist()):
        word = "Leaked" if leaked[place] else "ERROR"
        result.note(
            f"{word} cluster {position + index} refcount={int(on_disk[index])} reference={int(computed[index])}"
        )
