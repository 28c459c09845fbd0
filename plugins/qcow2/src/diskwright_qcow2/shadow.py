"""The next state of an image, built beside the present one and switched to by one write of the header.

Everything that changes goes to clusters that are free: refcount blocks, refcount table, L1 and L2 tables, snapshot
table. Nothing that the present header leads to is written, so that a crash before the switch leaves the image as it
was and one after it the new image, neither with a lost reference, a wrong COPIED flag or a leak; nobody needs the dirty
bit, which version 2 does not have. See docs/design/0004-snapshots-switch-once.md.
"""

from __future__ import annotations

import errno
import os
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from diskwright.errors import ImageError, InvalidImage
from diskwright.extent import distinct

from . import layout
from .allocate import ClusterAllocator, Run
from .hostspace import Cause, give_back
from .layout import Autoclear
from .order import Disk
from .overlap import MetadataMap
from .refcount import RefcountBlocks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .image import Qcow2Image
    from .refcount import Column

_SWITCHED = 24
"""The header fields from the disk size on are written at the switch; they are in one sector."""


class ShadowBlocks(RefcountBlocks):
    """Refcount blocks that change in copies only; those that the image uses stay as they are."""

    _placed: set[int]

    def create(self, index: int, offset: int) -> None:
        """See :meth:`RefcountBlocks.create`; the block is new and needs no copy."""
        self._own_places().add(index)
        super().create(index, offset)

    def _own_places(self) -> set[int]:
        """Blocks whose place belongs to the next state."""
        if "_placed" not in self.__dict__:
            self._placed = set()
        return self._placed

    def unplaced(self) -> list[int]:
        """Blocks that have changed and have no place for that yet, in order."""
        return sorted(self._dirty - self._own_places())

    def move(self, index: int, offset: int) -> int:
        """Let a block have its place at ``offset``; its old one, in bytes."""
        old = int(self.table[index])
        self.table[index] = offset
        self._own_places().add(index)
        return old

    def _keep(self, index: int, counts: Column) -> None:
        """Evict what has a place; what has none stays in memory until :meth:`Shadow.settle` gives it one."""
        self._cache[index] = counts
        if len(self._cache) <= self._capacity:
            return
        for other in list(self._cache):
            if len(self._cache) <= self._capacity:
                return
            if other == index or (other in self._dirty and other not in self._own_places()):
                continue
            evicted = self._cache.pop(other)
            if other in self._dirty:
                self._write_block(other, evicted)

    def touch(self, clusters: Column) -> None:
        """The counts of these clusters are going to be lowered: their blocks change.

        :raises InvalidImage: a cluster is not counted at all.
        """
        for index, places, _ in self._groups(clusters):
            self._existing(index, places)
            self._dirty.add(index)

    def increase(self, clusters: Column) -> None:
        """Count one more reference to each of the clusters, which may repeat.

        :raises InvalidImage: a cluster had none, so that it may have been taken for free.
        :raises ImageError: a count would not fit into its field.
        """
        for index, places, times in self._groups(clusters):
            block = self._existing(index, places)
            before = block[places]
            if not before.all():
                cluster = int(places[before == 0][0]) + index * self.block_entries
                raise self._reader.error(f"Image is corrupt: cluster {cluster} is in use but counts as free")
            more = before.dtype.type(1) if times is None else times.astype(np.uint64)
            room = np.uint64(self.maximum) - before.astype(np.uint64)
            if (room < (np.uint64(1) if times is None else more)).any():
                raise ImageError(
                    os.strerror(errno.EINVAL),
                    hint=f"A cluster cannot have more than {self.maximum} references in an image with "
                    f"{1 << self.order} bits for each refcount.",
                )
            block[places] = before + np.asarray(more).astype(before.dtype)
            self._dirty.add(index)

    def decrease(self, clusters: Column) -> Column:
        """Count one reference less for each of the clusters, which may repeat, but keep at least one.

        :returns: the clusters whose last reference is to be dropped.
        :raises InvalidImage: a cluster has fewer references.
        """
        last = [np.zeros(0, np.int64)]
        for index, places, times in self._groups(clusters):
            block = self._existing(index, places)
            before = block[places].astype(np.uint64)
            less = np.ones(len(places), np.uint64) if times is None else times.astype(np.uint64)
            if (before < less).any():
                wrong = int(places[before < less][0]) + index * self.block_entries
                raise self._reader.error(f"Image is corrupt: cluster {wrong} has fewer references than it should have")
            gone = before == less
            block[places] = (before - less + gone).astype(block.dtype)
            self._dirty.add(index)
            last.append(places[gone] + index * self.block_entries)
        return np.concatenate(last)

    def counts(self, clusters: Column) -> Column:
        """The reference counts of clusters in any order."""
        found = np.zeros(len(clusters), np.uint64)
        order = np.argsort(clusters, kind="stable")
        ordered = clusters[order]
        indexes = ordered // self.block_entries
        edges = [0, *(np.flatnonzero(np.diff(indexes)) + 1).tolist(), len(ordered)]
        for start, stop in pairwise(edges if len(ordered) else []):
            index = int(indexes[start])
            places = ordered[start:stop] - index * self.block_entries
            found[order[start:stop]] = self._existing(index, places)[places]
        return found

    def _groups(self, clusters: Column) -> Iterator[tuple[int, Column, Column | None]]:
        """Block, places in it, and how often each is meant (``None``: once), for clusters that may repeat."""
        times: Column | None = None
        if len(clusters) > 1 and not (clusters[1:] > clusters[:-1]).all():
            clusters, times = np.unique(clusters, return_counts=True)
        indexes = clusters // self.block_entries
        edges = [0, *(np.flatnonzero(np.diff(indexes)) + 1).tolist(), len(clusters)]
        for start, stop in pairwise(edges if len(clusters) else []):
            index = int(indexes[start])
            places = clusters[start:stop] - index * self.block_entries
            yield index, places, None if times is None else times[start:stop]

    def _existing(self, index: int, places: Column) -> Column:
        block = self.block(index)
        if block is None:
            cluster = index * self.block_entries + int(places[0])
            raise self._reader.error(f"Image is corrupt: cluster {cluster} is in use but has no refcount block")
        return block


class Shadow:
    """The next state of an image. What is built here is garbage in free clusters until :meth:`switch`.

    :ivar blocks: the refcounts of the next state.
    """

    def __init__(self, image: Qcow2Image) -> None:
        image.make_clean()
        self.image = image
        self.header = image.header
        self.disk = Disk(image.file)
        self.blocks = ShadowBlocks(image.header, image.reader, self.disk.write, image.runtime.refcount_cache)
        metadata = MetadataMap(image, self.blocks.table)
        if overlap := metadata.overlap():
            raise image.reader.error(f"Image is corrupt: its {overlap} stands in the place of other metadata")
        self._metadata = metadata
        self._released: list[Column] = []
        self._passed: list[Column] = []
        self.allocator = ClusterAllocator(self.blocks, self._guard)

    def _guard(self, run: Run) -> None:
        if conflict := self._metadata.conflict(run):
            raise self.image.reader.error(f"Image is corrupt: {conflict} stands in a cluster that counts as free")

    def place(self, data: bytes) -> int:
        """Write a structure to neighbouring free clusters; its offset, bytes."""
        size = self.header.cluster_size
        run = self.allocator.take_contiguous(-(-len(data) // size))
        self.disk.write(run.first * size, data + bytes(-len(data) % size))
        return run.first * size

    def place_clusters(self, clusters: Column) -> Column:
        """Write clusters, one in each row, wherever there is room; the offset of each, bytes."""
        size = self.header.cluster_size
        offsets = np.zeros(len(clusters), np.int64)
        done = 0
        while done < len(clusters):
            run = self.allocator.take(len(clusters) - done)
            self.disk.write(run.first * size, clusters[done : done + run.length].tobytes())
            offsets[done : done + run.length] = (run.first + np.arange(run.length)) * size
            done += run.length
        return offsets

    def drop(self, clusters: Column, cause: Cause = Cause.OTHER) -> None:
        """The next state has one reference less to each of the clusters.

        Until the switch no count falls to zero, so that nothing of the present state is overwritten.
        """
        last = self.blocks.decrease(clusters)
        if len(last):
            self._released.append(last)
            if cause in Cause.of(self.image.runtime):
                self._passed.append(last)

    def drop_range(self, offset: int, length: int, cause: Cause = Cause.OTHER) -> None:
        """The next state does not have a structure of so many bytes any more."""
        if length:
            bits = self.header.cluster_bits
            self.drop(np.arange(offset >> bits, ((offset + length - 1) >> bits) + 1, dtype=np.int64), cause)

    def settle(self) -> None:
        """Find places for the refcount blocks that have changed, so that they need not stay in memory."""
        bits = self.header.cluster_bits
        while unplaced := self.blocks.unplaced():
            for index in unplaced:
                old = self.blocks.move(index, self.allocator.take(1).first << bits)
                self._release_last(Run(old >> bits, 1))

    def _release_last(self, run: Run) -> None:
        """Give up what only the refcount structures use."""
        clusters = np.arange(run.first, run.end, dtype=np.int64)
        self.blocks.touch(clusters)
        self._released.append(clusters)

    def _finish_refcounts(self) -> Run:
        """Write the refcounts of the next state; where their table stands."""
        blocks, allocator, bits = self.blocks, self.allocator, self.header.cluster_bits
        old = Run(blocks.table_offset >> bits, blocks.table_clusters)
        self._release_last(old)
        self.settle()
        if allocator.moved_table is None:
            moved = allocator.take_contiguous(blocks.table_clusters)
            allocator.moved_table = allocator.moved_table or moved
            if allocator.moved_table is not moved:
                allocator.outgrown.append(moved)
            self.settle()
        while allocator.outgrown:
            self._release_last(allocator.outgrown.pop())
            self.settle()
        table: Run = allocator.moved_table
        if self._released:
            blocks.subtract(np.concatenate(self._released))
        blocks.write_blocks()
        blocks.table_offset = table.first << bits
        blocks.write_table()
        return table

    def switch(self, **fields: Any) -> None:
        """Make the next state the present one, durably.

        :param fields: fields of the header that change, refcount table aside.
        """
        self.disk.node.note_event("cluster_free")  # what is dropped is not counted in the next state
        table = self._finish_refcounts()
        fields["refcount_table_offset"] = table.first << self.header.cluster_bits
        fields["refcount_table_clusters"] = table.length
        self.disk.barrier()
        features = self.header.autoclear_features & Autoclear.SUPPORTED
        if self.header.bitmaps is None:
            features &= ~Autoclear.BITMAPS
        length = layout.HEADER.sizeof()
        stored = layout.HEADER.parse(self.image.reader.bytes(0, length, "header"))
        head: bytes = layout.HEADER.build(vars(stored) | fields)
        if self.header.version > 2:
            head += self.image.reader.bytes(length, layout.AUTOCLEAR_FIELD - length, "header")
            head += int(features).to_bytes(8, "big")
        self.disk.write(_SWITCHED, head[_SWITCHED:])
        self.disk.barrier()
        self.image.restart(autoclear_features=features, **fields)
        if self._passed:
            passed = distinct(np.concatenate(self._passed))
            give_back(self.disk.node, passed[self.blocks.counts(passed) == 0], self.header.cluster_bits)


def require_changeable(image: Qcow2Image) -> None:
    """Refuse images whose snapshots cannot be changed; repair one that was not closed cleanly.

    :raises ImageError: the guest's clusters are not in this file, or it is not open for writing.
    """
    if image.read_only:
        raise ImageError("Image is read-only")
    if image.header.has_data_file:
        raise ImageError("Operation not supported")
    image.make_clean()


def require_offset(image: Qcow2Image, offset: int, length: int, name: str) -> None:
    """Refuse a table that is too large or not at a cluster boundary of the file.

    :param length: bytes.
    :raises InvalidImage: it is.
    """
    if length > layout.MAX_L1_BYTES:
        raise InvalidImage(f"{name} too large", filename=image.file.filename)
    if offset & (image.header.cluster_size - 1):
        raise InvalidImage(f"{name} offset invalid", filename=image.file.filename)
    image.reader.require(offset, length, name)
