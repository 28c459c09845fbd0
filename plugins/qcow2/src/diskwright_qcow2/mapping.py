"""The map of the guest disk: L1 and L2 entries as extents, whole tables at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from diskwright.extent import NO_OFFSET, Extent, ExtentTable, Flag, Kind, extent_dtype

from . import layout

if TYPE_CHECKING:
    from diskwright.errors import InvalidImage
    from diskwright.extent import Column

    from .image import Qcow2Image

BATCH_ENTRIES = 1 << 16
"""Most L2 entries turned into extents at once."""
BATCH_EXTENDED_ENTRIES = 1 << 13
"""The same with extended entries, each of which may become 32 extents."""
L1_WINDOW = 1 << 16
"""L1 entries searched at once."""

_OFFSET_MASK = np.uint64(layout.OFFSET_MASK)
_COPIED = np.uint64(layout.OFLAG_COPIED)
_COMPRESSED = np.uint64(layout.OFLAG_COMPRESSED)
_ZERO = np.uint64(layout.OFLAG_ZERO)
_ONE = np.uint64(1)
_ALL_ALLOCATED = np.uint64(layout.SUBCLUSTERS_ALLOCATED_MASK)
_ALL_ZERO = np.uint64(layout.SUBCLUSTERS_ALLOCATED_MASK << layout.SUBCLUSTERS_ZERO_SHIFT)


def map_range(image: Qcow2Image, offset: int, length: int) -> Iterator[Extent | ExtentTable]:
    """The extents of a guest range of this layer, in order and without gaps.

    :raises InvalidImage: a table entry points where it cannot.
    """
    image.l2.require_distinct()
    coverage = image.header.l1_coverage
    end = offset + length
    for first, last, present in _l1_runs(image.l1, offset // coverage, -(-end // coverage)):
        run_start, run_end = max(offset, first * coverage), min(end, last * coverage)
        if present:
            yield from _map_tables(image, run_start, run_end)
        else:
            yield Extent(run_start, run_end - run_start, Kind.ABSENT)


def _l1_runs(l1: Column, start: int, stop: int) -> Iterator[tuple[int, int, bool]]:
    """Runs of L1 entries with, or without, an L2 table, as long as they can be: (first, end, whether with)."""
    run_start, run_present = start, False
    for window_start in range(start, stop, L1_WINDOW):
        present = (l1[window_start : min(stop, window_start + L1_WINDOW)] & _OFFSET_MASK) != 0
        changes = np.flatnonzero(present != np.concatenate(([run_present], present[:-1])))
        for change in (changes + window_start).tolist():
            if change > run_start:
                yield run_start, change, run_present
            run_start, run_present = change, not run_present
    if stop > run_start:
        yield run_start, stop, run_present


def _map_tables(image: Qcow2Image, start: int, end: int) -> Iterator[ExtentTable]:
    """The map of a range all L2 tables of which exist: small tables several at once, large ones in parts."""
    header = image.header
    batch = BATCH_EXTENDED_ENTRIES if header.extended_l2 else BATCH_ENTRIES
    step = batch * header.cluster_size
    position = start
    while position < end:
        stop = min(end, (position // step + 1) * step)
        yield _map_entries(image, position, stop)
        position = stop


def _map_entries(image: Qcow2Image, start: int, end: int) -> ExtentTable:
    header = image.header
    first, last = start >> header.cluster_bits, -(-end >> header.cluster_bits)
    entries = _gather(image, first, last)
    guest = first << header.cluster_bits
    tabulate = _map_extended if header.extended_l2 else _map_standard
    return tabulate(image, guest, entries).clipped(start, end)


def _gather(image: Qcow2Image, first: int, last: int) -> Column:
    """The L2 entries of guest clusters ``first`` to ``last`` - 1."""
    count = image.header.l2_entries
    parts = []
    for index in range(first // count, -(-last // count)):
        table = image.l2.get(index)
        if table is None:  # a writer dropped it meanwhile
            table = image.l2.empty()
        parts.append(table[max(0, first - index * count) : last - index * count])
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _map_standard(image: Qcow2Image, guest: int, entries: Column) -> ExtentTable:
    """The extents of consecutive clusters from guest offset ``guest`` on."""
    header = image.header
    starts = _run_starts(entries, header.cluster_size)
    runs = Runs(starts, np.diff(starts, append=len(entries)), entries[starts])
    compressed = (runs.descriptors & _COMPRESSED) != 0
    zero = ((runs.descriptors & _ZERO) != 0) & ~compressed
    placed = (runs.offsets != 0) & ~compressed
    if header.has_data_file:
        # In a data file guest cluster 0 may be at offset 0: there the copied flag tells it from an unallocated one.
        placed |= ((runs.descriptors & _COPIED) != 0) & ~compressed & ~zero
    kinds = np.full(len(starts), Kind.ABSENT, np.uint8)
    kinds[placed] = Kind.DATA
    kinds[zero] = Kind.ZERO
    kinds[compressed] = Kind.ENCODED
    if header.version == 2 and zero.any():
        raise _corrupt(image, "Zero cluster entry found in pre-v3 image", guest, zero, runs)
    _validate(image, guest, kinds, placed, runs)
    rows = np.zeros(len(starts), extent_dtype())
    rows["offset"] = guest + (starts << header.cluster_bits)
    rows["length"] = runs.counts << header.cluster_bits
    rows["node_offset"] = np.where(placed, runs.offsets, NO_OFFSET)
    return _finish(image, rows, kinds)


def _map_extended(image: Qcow2Image, guest: int, entries: Column) -> ExtentTable:
    """The same for extended L2 entries; clusters whose subclusters are all alike are not taken apart."""
    header = image.header
    descriptors, bitmaps = entries[:, 0], entries[:, 1]
    uniform = (bitmaps == 0) | (bitmaps == _ALL_ALLOCATED) | (bitmaps == _ALL_ZERO)
    alike = (bitmaps[1:] == bitmaps[:-1]) & uniform[1:]
    starts = _run_starts(descriptors, header.cluster_size, alike)
    whole = uniform[starts] | ((descriptors[starts] & _COMPRESSED) != 0)
    pieces = np.where(whole, 1, layout.SUBCLUSTERS)
    run = np.repeat(np.arange(len(starts)), pieces)
    subcluster = np.arange(len(run)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    runs = Runs(starts[run], np.diff(starts, append=len(entries))[run], descriptors[starts][run])

    bits = bitmaps[runs.starts] >> subcluster.astype(np.uint64)
    allocated = (bits & _ONE) != 0
    zero = (bits >> np.uint64(layout.SUBCLUSTERS_ZERO_SHIFT) & _ONE) != 0
    compressed = (runs.descriptors & _COMPRESSED) != 0
    placed = (runs.offsets != 0) & ~compressed
    if header.has_data_file:
        placed |= ((runs.descriptors & _COPIED) != 0) & ~compressed
    if (bad := ~compressed & allocated & (zero | ~placed)).any():
        raise _corrupt(image, "Invalid cluster entry found", guest, bad, runs)

    kinds = np.full(len(run), Kind.ABSENT, np.uint8)
    kinds[allocated] = Kind.DATA
    kinds[zero] = Kind.ZERO
    kinds[compressed] = Kind.ENCODED
    _validate(image, guest, kinds, placed, runs)
    skipped = subcluster * header.subcluster_size
    rows = np.zeros(len(run), extent_dtype())
    rows["offset"] = guest + (runs.starts << header.cluster_bits) + skipped
    rows["length"] = np.where(whole[run], runs.counts << header.cluster_bits, header.subcluster_size)
    # An unallocated subcluster of an allocated cluster has its place too; it is told as QEMU tells it.
    rows["node_offset"] = np.where(placed, runs.offsets + skipped, NO_OFFSET)
    return _finish(image, rows, kinds)


class Runs:
    """Consecutive L2 entries that continue each other, by their first entry.

    :ivar starts: index of the first entry of each run.
    :ivar counts: number of entries.
    :ivar descriptors: the first entry, without subcluster bitmap.
    :ivar offsets: the host offset in it, bytes.
    """

    def __init__(self, starts: Column, counts: Column, descriptors: Column) -> None:
        self.starts = starts
        self.counts = counts
        self.descriptors = descriptors
        self.offsets: Column = (descriptors & _OFFSET_MASK).astype(np.int64)


def _run_starts(descriptors: Column, cluster_size: int, alike: Column | None = None) -> Column:
    """Index of the first entry of each run: in one pass over entries that mostly continue each other.

    :param alike: for each pair of neighbours whether they may be in one run; they all may if None.
    """
    left, right = descriptors[:-1], descriptors[1:]
    unplaced = (left & _OFFSET_MASK) == 0
    joins = np.where(unplaced, right == left, right - left == np.uint64(cluster_size))
    if alike is not None:
        joins &= alike
    return np.flatnonzero(np.concatenate(([True], ~joins)))


def _finish(image: Qcow2Image, rows: Column, kinds: Column) -> ExtentTable:
    rows["kind"] = kinds
    rows["flags"] = _flags(image, kinds)
    return ExtentTable(rows, (image.data_node,)).coalesced()


def _flags(image: Qcow2Image, kinds: Column) -> Column:
    flags = np.where(kinds == Kind.ENCODED, np.uint8(Flag.COMPRESSED), np.uint8(0))
    if image.metadata_preallocated:
        flags[kinds == Kind.DATA] = Flag.SPARSE
    return flags


def _validate(image: Qcow2Image, guest: int, kinds: Column, placed: Column, runs: Runs) -> None:
    """Refuse host offsets where no cluster can be.

    :param kinds: for each run or part of one, as :attr:`Runs.offsets`.
    """
    header, offsets = image.header, runs.offsets
    data = kinds == Kind.DATA
    if (bad := placed & (offsets & (header.cluster_size - 1) != 0)).any():
        which = "Preallocated zero cluster" if kinds[_first(bad)] == Kind.ZERO else "Cluster allocation"
        raise _corrupt(image, f"{which} offset {int(offsets[_first(bad)]):#x} unaligned", guest, bad, runs)
    if header.has_data_file and (bad := kinds == Kind.ENCODED).any():
        raise _corrupt(image, "Compressed cluster entry found in image with external data file", guest, bad, runs)
    if header.raw_data_file and (bad := data & (offsets != guest + (runs.starts << header.cluster_bits))).any():
        reason = f"External data file host cluster offset {int(offsets[_first(bad)]):#x} does not match guest offset"
        raise _corrupt(image, reason, guest, bad, runs)
    last = offsets + (runs.counts - 1 << header.cluster_bits)
    if (bad := data & (last >= image.data_node.size)).any():
        reason = f"Cluster offset {int(last[_first(bad)]):#x} is behind the end of the file"
        raise _corrupt(image, reason, guest, bad, runs)


def _corrupt(image: Qcow2Image, reason: str, guest: int, bad: Column, runs: Runs) -> InvalidImage:
    number = (guest >> image.header.cluster_bits) + int(runs.starts[_first(bad)])
    l1_index, l2_index = divmod(number, image.header.l2_entries)
    table = image.l2.offset_of(l1_index)
    return image.l2.corrupt(f"{reason} (L2 offset: {table:#x}, L2 index: {l2_index:#x})")


def _first(mask: Column) -> int:
    return int(np.argmax(mask))
