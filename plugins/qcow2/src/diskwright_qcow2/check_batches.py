"""Which L2 tables an image has, and their entries in batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from diskwright.record import Record

from . import layout
from .refcount import Column

if TYPE_CHECKING:
    from .check_references import StoredRefcounts
    from .image import Qcow2Image

BATCH_BYTES = 1 << 20
"""L2 tables looked at together."""

_OFFSET_MASK = np.uint64(layout.OFFSET_MASK)


class L1Use(Record):
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


class Batch(Record):
    """L2 entries of several tables, one behind the other.

    :ivar offsets: host offset of each table.
    :ivar weights: for each entry, how often its table is used.
    :ivar active: the same by the active L1 table.
    :ivar copied: the same again, but 0 where the copied flags cannot be checked as the table's refcount is unknown.
    :ivar per_table: entries of a table.
    """

    offsets: list[int]
    entries: Column
    bitmaps: Column
    weights: Column
    active: Column
    copied: Column
    per_table: int


def batches(image: Qcow2Image, stored: StoredRefcounts, use: L1Use) -> Iterator[Batch]:
    """The L2 tables, each read once, several at a time; those that are outside the file are left out."""
    size = image.header.cluster_size
    step = max(1, BATCH_BYTES // size)
    node = image.file
    readable = np.flatnonzero(use.offsets < node.size)
    for start in range(0, len(readable), step):
        chosen = readable[start : start + step]
        data = bytearray(len(chosen) * size)
        view = memoryview(data)
        for place, offset in enumerate(use.offsets[chosen].tolist()):
            node.note_event("l2_load")
            node.read_into(offset, view[place * size : (place + 1) * size])
        table = np.frombuffer(data, layout.L2_DTYPE).astype(np.uint64)
        per_table = image.header.l2_entries
        active = use.active[chosen]
        _, known = stored.of(use.offsets[chosen] >> image.header.cluster_bits)
        if image.header.extended_l2:
            entries, bitmaps = table[0::2], table[1::2]
        else:
            entries, bitmaps = table, np.zeros(1, np.uint64)
        yield Batch(
            use.offsets[chosen].tolist(),
            entries,
            bitmaps,
            _repeated(use.uses[chosen], per_table),
            _repeated(active, per_table),
            _repeated(active * known, per_table),
            per_table,
        )


def _repeated(values: Column, times: int) -> Column:
    """Each value so many times; where all are the same, without taking memory for it."""
    if (values == values[0]).all():
        return np.broadcast_to(values[0], len(values) * times)
    return np.repeat(values, times)
