"""All that an L1 table leads to, many L2 tables at once: for what is done to a whole disk, as taking a snapshot."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from . import layout
from .hostspace import Cause
from .packing import compressed_clusters

if TYPE_CHECKING:
    from .image import Qcow2Image
    from .l2 import L2Tables
    from .refcount import Column
    from .shadow import Shadow

BATCH_BYTES = 4 << 20
"""L2 tables in memory at once."""

_COPIED = np.uint64(layout.OFLAG_COPIED)
_COMPRESSED = np.uint64(layout.OFLAG_COMPRESSED)
_OFFSET_MASK = np.uint64(layout.OFFSET_MASK)


class Batch(NamedTuple):
    """Some L2 tables of an L1 table.

    :ivar indexes: the L1 entries that lead to them.
    :ivar hosts: the clusters that they stand in.
    :ivar tables: one in each row, as stored, in native byte order.
    :ivar descriptors: the part of each row without subcluster bitmaps; a view.
    """

    indexes: Column
    hosts: Column
    tables: Column
    descriptors: Column


class L1Tree:
    """An L1 table and all below it.

    :param l2: the tables; only its L1 table is used, as the L2 tables are read past its cache.
    """

    def __init__(self, image: Qcow2Image, l2: L2Tables) -> None:
        l2.require_distinct()
        self.image = image
        self.header = image.header
        self.l2 = l2

    def batches(self) -> Iterator[Batch]:
        """All L2 tables, in the order of the L1 table.

        :raises InvalidImage: one does not stand in a cluster of the file.
        """
        size = self.header.cluster_size
        offsets = (self.l2.l1 & _OFFSET_MASK).astype(np.int64)
        indexes = np.flatnonzero(offsets)
        step = max(1, BATCH_BYTES // size)
        for start in range(0, len(indexes), step):
            part = indexes[start : start + step]
            places = offsets[part]
            if (unaligned := places & (size - 1) != 0).any():
                self.l2.offset_of(int(part[unaligned][0]))
            tables = self._read(places)
            columns = self.header.l2_entry_size // layout.L2_ENTRY_SIZE
            yield Batch(part, places >> self.header.cluster_bits, tables, tables[:, ::columns])

    def _read(self, offsets: Column) -> Column:
        """The tables at the given offsets; neighbours in the file are read together."""
        entries = self.header.cluster_size // layout.L2_ENTRY_SIZE
        found = np.empty((len(offsets), entries), np.uint64)
        edges = np.flatnonzero(np.diff(offsets) != self.header.cluster_size) + 1
        starts, ends = [0, *edges.tolist()], [*edges.tolist(), len(offsets)]
        for start, end in zip(starts, ends, strict=True):
            count = (end - start) * entries
            table = self.image.reader.table(layout.L2_DTYPE, int(offsets[start]), count, "L2 tables", limit=count)
            found[start:end] = table.reshape(-1, entries)
        return found

    def clusters(self, descriptors: Column) -> Column:
        """The host clusters that L2 entries refer to, each as often as they do.

        :raises InvalidImage: one is not at a cluster boundary.
        """
        bits = self.header.cluster_bits
        compressed = descriptors & _COMPRESSED != 0
        hosts = (descriptors & _OFFSET_MASK).astype(np.int64)
        hosts[compressed] = 0
        plain: Column = hosts[hosts != 0]
        if (plain & (self.header.cluster_size - 1)).any():
            raise self.l2.corrupt("Cluster allocation offset unaligned")
        plain >>= bits
        if not compressed.any():
            return plain
        return np.concatenate((plain, compressed_clusters(descriptors[compressed], bits)))


def share(shadow: Shadow, tree: L1Tree) -> Column:
    """Let the next state's disk be what a tree says, while the tree stays in use elsewhere too.

    Every cluster gets one reference more. No cluster belongs to the disk alone then, so no L2 table that it uses may
    have a COPIED flag: tables that have any are copied, the others shared.

    :returns: the L1 table of the next state.
    :raises ImageError: the refcounts cannot count that.
    """
    l1 = tree.l2.l1 & ~_COPIED
    for batch in tree.batches():
        shadow.blocks.increase(tree.clusters(batch.descriptors))
        flagged = (batch.descriptors & _COPIED != 0).any(axis=1)
        shadow.blocks.increase(batch.hosts[~flagged])
        batch.descriptors[...] &= ~_COPIED
        l1[batch.indexes[flagged]] = _replaced(shadow, batch.tables[flagged])
        shadow.settle()
    return l1


def forget(shadow: Shadow, tree: L1Tree) -> None:
    """The next state does not have a tree any more: every cluster has one reference less."""
    for batch in tree.batches():
        shadow.drop(tree.clusters(batch.descriptors), Cause.SNAPSHOT)
        shadow.drop(batch.hosts, Cause.SNAPSHOT)
        shadow.settle()


def flag(shadow: Shadow, tree: L1Tree) -> Column:
    """Let the COPIED flags of the disk say what the refcounts of the next state say; tables that change are copied.

    :returns: the L1 table of the next state.
    """
    l1 = tree.l2.l1.copy()
    for batch in tree.batches():
        alone = shadow.blocks.counts(batch.hosts) == 1
        changed = _flag_entries(shadow, tree, batch)
        kept = ~changed
        l1[batch.indexes[kept]] = batch.hosts[kept].astype(np.uint64) << np.uint64(shadow.header.cluster_bits)
        l1[batch.indexes[kept & alone]] |= _COPIED
        l1[batch.indexes[changed]] = _replaced(shadow, batch.tables[changed])
        shadow.drop(batch.hosts[changed])
        shadow.settle()
    return l1


def _flag_entries(shadow: Shadow, tree: L1Tree, batch: Batch) -> Column:
    """Set and clear COPIED flags in a batch; whether each table has changed."""
    descriptors = batch.descriptors
    hosts = (descriptors & _OFFSET_MASK).astype(np.int64)
    hosts[descriptors & _COMPRESSED != 0] = 0
    used = hosts != 0
    tree.clusters(descriptors)  # refuses what is not at a cluster boundary
    flagged = np.zeros(descriptors.shape, bool)
    flagged[used] = shadow.blocks.counts(hosts[used] >> shadow.header.cluster_bits) == 1
    wrong = flagged != (descriptors & _COPIED != 0)
    descriptors[...] = descriptors ^ np.where(wrong, _COPIED, np.uint64(0))
    changed: Column = wrong.any(axis=1)
    return changed


def _replaced(shadow: Shadow, tables: Column) -> Column:
    """Write L2 tables to new places; the L1 entries that own them."""
    offsets = shadow.place_clusters(tables.astype(layout.L2_DTYPE))
    return offsets.astype(np.uint64) | _COPIED
