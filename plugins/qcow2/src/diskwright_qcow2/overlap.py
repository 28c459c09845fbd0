"""Where metadata stands in the file, so that nothing is ever written over it by mistake."""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import TYPE_CHECKING

import numpy as np

from diskwright.extent import distinct

from . import layout
from .runtime import Overlap

if TYPE_CHECKING:
    from .allocate import Run
    from .image import Qcow2Image
    from .refcount import Column

_NAMES = (
    "qcow2_header",
    "active L1 table",
    "refcount table",
    "snapshot table",
    "bitmap directory",
    "inactive L1 table",
    "active L2 table",
    "refcount block",
    "encryption header",
    "inactive L2 table",
)
_HEADER, _L1, _TABLE, _SNAPSHOTS, _BITMAPS, _INACTIVE_L1, _L2, _BLOCK, _CRYPTO, _INACTIVE_L2 = range(len(_NAMES))
_SWITCHES = (
    Overlap.MAIN_HEADER,
    Overlap.ACTIVE_L1,
    Overlap.REFCOUNT_TABLE,
    Overlap.SNAPSHOT_TABLE,
    Overlap.BITMAP_DIRECTORY,
    Overlap.INACTIVE_L1,
    Overlap.ACTIVE_L2,
    Overlap.REFCOUNT_BLOCK,
    None,
    Overlap.INACTIVE_L2,
)
"""What turns the check for each kind on; there is none for the encryption header, which is always looked out for."""


class MetadataMap:
    """Clusters with metadata: those at the time of opening, and those added since.

    Only what the image's runtime options ask for is among them, usually everything but inactive L2 tables: only a
    snapshot refers to those, and their clusters have references.
    """

    def __init__(self, image: Qcow2Image, refcount_table: Column) -> None:
        self._looked_for = image.runtime.overlap
        starts, ends, kinds = _ranges(image, refcount_table)
        order = np.argsort(starts, kind="stable")
        self._starts, self._ends, self._kinds = starts[order], ends[order], kinds[order]
        self._highest = int(self._ends.max(initial=0))
        self._dropped: set[int] = set()
        self._added: list[int] = []

    def overlap(self) -> str | None:
        """What two structures of the image stand in each other's place, named by the second; ``None`` if none do."""
        reach = np.maximum.accumulate(self._ends)[:-1]
        bad = np.flatnonzero(self._starts[1:] < reach)
        return _NAMES[int(self._kinds[bad[0] + 1])] if len(bad) else None

    def conflict(self, run: Run) -> str | None:
        """What metadata stands in a run of clusters, ``None`` if there is none."""
        # Most runs are new, behind all that was there.
        index = int(self._starts.searchsorted(run.end)) - 1 if run.first < self._highest else -1
        while index >= 0 and self._ends[index] > run.first:
            if int(self._starts[index]) not in self._dropped:
                return _NAMES[int(self._kinds[index])]
            index -= 1
        place = bisect_left(self._added, run.first)
        if place < len(self._added) and self._added[place] < run.end:
            return "metadata"
        return None

    def add(self, run: Run, kind: Overlap) -> None:
        """These clusters hold metadata from now on."""
        if not kind & self._looked_for:
            return
        for cluster in range(run.first, run.end):
            insort(self._added, cluster)

    def drop(self, run: Run) -> None:
        """These clusters, a whole structure, hold metadata no longer."""
        place = bisect_left(self._added, run.first)
        if place < len(self._added) and self._added[place] == run.first:
            del self._added[place : bisect_left(self._added, run.end)]
        else:
            self._dropped.add(run.first)


def snapshot_table_size(image: Qcow2Image) -> int:
    """Bytes from the start of the snapshot table to the end of its last entry."""
    return image.snapshots[-1].end - image.header.snapshots_offset if image.snapshots else 0


def _ranges(image: Qcow2Image, refcount_table: Column) -> tuple[Column, Column, Column]:
    """First cluster, cluster behind the last, and kind of each structure."""
    header = image.header
    bits = header.cluster_bits
    fixed = [
        (0, 1, _HEADER),
        (header.l1_table_offset, header.l1_size * layout.L1_ENTRY_SIZE, _L1),
        (header.refcount_table_offset, header.refcount_table_clusters << bits, _TABLE),
    ]
    if image.snapshots:
        fixed.append((header.snapshots_offset, snapshot_table_size(image), _SNAPSHOTS))
    if header.bitmaps:
        fixed.append((header.bitmaps.offset, header.bitmaps.size, _BITMAPS))
    if header.crypto:
        fixed.append((header.crypto.offset, header.crypto.length, _CRYPTO))
    fixed += [(s.l1_table_offset, s.l1_size * layout.L1_ENTRY_SIZE, _INACTIVE_L1) for s in image.snapshots]
    # Sizes are within their limits or 32 bits wide, offsets 64: those that no file can have are cut.
    rows = [
        (min(offset, layout.MAX_HOST_OFFSET) >> bits, -(-min(offset + size, layout.MAX_HOST_OFFSET * 2) >> bits), kind)
        for offset, size, kind in fixed
        if size
    ]
    starts, ends, kinds = [np.array(column, np.int64) for column in zip(*rows, strict=True)]
    l2 = image.l1 & np.uint64(layout.OFFSET_MASK)
    blocks = refcount_table & np.uint64(layout.REFCOUNT_TABLE_OFFSET_MASK)
    for offsets, kind in ((l2, _L2), (blocks, _BLOCK), (_inactive_l2(image, l2), _INACTIVE_L2)):
        clusters = (offsets[offsets != 0] >> np.uint64(bits)).astype(np.int64)
        starts = np.concatenate((starts, clusters))
        ends = np.concatenate((ends, clusters + 1))
        kinds = np.concatenate((kinds, np.full(len(clusters), kind, np.int64)))
    wanted = np.array([switch is None or bool(switch & image.runtime.overlap) for switch in _SWITCHES])[kinds]
    return starts[wanted], ends[wanted], kinds[wanted]


def _inactive_l2(image: Qcow2Image, active: Column) -> Column:
    """Offsets of the L2 tables that only snapshots use, each once; none if nobody asks for them."""
    found = np.zeros(0, np.uint64)
    if image.runtime.overlap & Overlap.INACTIVE_L2:
        from .snapshot_ops import snapshot_tables

        for entry in image.snapshots:
            offsets = snapshot_tables(image, entry).l1 & np.uint64(layout.OFFSET_MASK)
            found = distinct(np.concatenate((found, offsets)))
    return found[~np.isin(found, active)] if len(found) else found
