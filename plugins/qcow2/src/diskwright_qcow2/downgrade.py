"""Making a version 2 image of a version 3 image."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from diskwright.errors import InvalidOption

from . import layout
from .inactive import inactive_l1
from .layout import Autoclear, Compatible, CompressionType, CryptMethod, Incompatible
from .repair_tables import L2Editor
from .switching import switch_header

if TYPE_CHECKING:
    from collections.abc import Callable

    from .header import Header
    from .image import Qcow2Image
    from .refcount import Column

_BATCH_CLUSTERS = 1 << 12
"""Clusters filled with zeros before the tables that use them are written."""
_REPORTS = 256
"""How often progress is told of at most, but for tables that exist."""
_OFFSET_MASK = np.uint64(layout.OFFSET_MASK)
_COMPRESSED = np.uint64(layout.OFLAG_COMPRESSED)
_COPIED = np.uint64(layout.OFLAG_COPIED)
_ZERO = np.uint64(layout.OFLAG_ZERO)


def require_downgradable(image: Qcow2Image, header: Header, size: int) -> None:
    """Refuse what version 2 cannot say.

    :param header: what the image is to have of features before it is downgraded.
    :param size: the virtual size it is to have then, bytes.
    :raises InvalidOption: there is such a thing.
    """
    if header.refcount_order != layout.DEFAULT_REFCOUNT_ORDER:
        raise InvalidOption("compat=0.10 requires refcount_bits=16")
    if header.has_data_file:
        raise InvalidOption("Cannot downgrade an image with a data file")
    if header.crypt_method == CryptMethod.AES and header.backing_file is not None:
        # What a cluster of zeros would have to be depends on the guest offset, by which clusters are not listed here.
        raise InvalidOption("Cannot downgrade an image with encryption format 'aes' and a backing file")
    for entry in image.snapshots:
        if entry.disk_size != size or entry.public.vm_state_size >= 1 << 32:
            raise InvalidOption("Internal snapshots prevent downgrade of image")
    allowed = Incompatible.COMPRESSION_TYPE | Incompatible.DIRTY
    if others := int(header.incompatible_features) & ~int(allowed):
        raise InvalidOption(f"Cannot downgrade an image with incompatible features {others:#x} set")
    if header.bitmaps is not None:
        raise InvalidOption(
            "Cannot downgrade an image with persistent bitmaps", hint="Use the bitmap command to remove them first."
        )
    if header.compression_type is not CompressionType.ZLIB and _has_compressed(image):
        raise InvalidOption("Cannot downgrade an image with zstd compression type and existing compressed clusters")


def downgrade(image: Qcow2Image, progress: Callable[[int, int], None]) -> None:
    """Make a version 2 image of one for which :func:`require_downgradable` holds.

    :param progress: called with the L1 entries done and those that there are.
    """
    _materialise_zeros(image, progress)
    switch_header(
        image,
        version=2,
        incompatible_features=Incompatible.NONE,
        compatible_features=Compatible.NONE,
        autoclear_features=Autoclear.NONE,
        compression_type=CompressionType.ZLIB,
        unknown_fields=b"",
    )


class _Tables(NamedTuple):
    """The L2 tables of the disk and of all snapshots, each once.

    :ivar entries: how many L1 entries there are, used or not.
    :ivar positions: for each table the first of the L1 entries that lead to it, in order.
    :ivar offsets: where each stands in the file, bytes.
    :ivar uses: how many L1 entries lead to each.
    """

    entries: int
    positions: list[int]
    offsets: list[int]
    uses: list[int]

    @classmethod
    def of(cls, image: Qcow2Image) -> _Tables:
        inactive = [table.entries for table in inactive_l1(image, image.snapshots)]
        places = np.concatenate([image.l1, *inactive]) & _OFFSET_MASK
        used = np.flatnonzero(places)
        offsets, first, uses = np.unique(places[used], return_index=True, return_counts=True)
        order = np.argsort(first)
        return cls(len(places), used[first][order].tolist(), offsets[order].tolist(), uses[order].tolist())


def _has_compressed(image: Qcow2Image) -> bool:
    editor = L2Editor(image)
    return any((editor.read(offset)[1] & _COMPRESSED != 0).any() for offset in _Tables.of(image).offsets)


def _materialise_zeros(image: Qcow2Image, progress: Callable[[int, int], None]) -> None:
    """Replace zero clusters: by nothing where there is no backing file, else by clusters full of zeros."""
    tables = _Tables.of(image)
    step = max(1, tables.entries // _REPORTS)
    batch = _Batch(image)
    done = 0
    for position, offset, uses in zip(*tables[1:], strict=True):
        while done < position:
            done = min(position, done + step)
            progress(done, tables.entries)
        batch.add(offset, uses)
        if batch.taken > _BATCH_CLUSTERS:
            batch.finish()
            batch = _Batch(image)
    batch.finish()
    while done < tables.entries:
        done = min(tables.entries, done + step)
        progress(done, tables.entries)


class _Batch:
    """L2 tables that change together: what they will refer to is in the file before, what they referred to goes after.

    :ivar taken: clusters allocated.
    """

    def __init__(self, image: Qcow2Image) -> None:
        self.image = image
        self.writer = image.writer
        self.editor = L2Editor(image)
        self.taken = 0
        self._tables: list[tuple[int, Column, Column]] = []
        self._released: list[Column] = []

    def add(self, offset: int, uses: int) -> None:
        """Replace the zero clusters of a table.

        :param offset: where it stands in the file, bytes.
        :param uses: how many L1 entries lead to it.
        """
        table, entries, _ = self.editor.read(offset)
        old = table.copy()
        zero = (entries & _COMPRESSED == 0) & (entries & _ZERO != 0)
        if not zero.any():
            return
        hosts = (entries[zero] & _OFFSET_MASK).astype(np.int64) >> self.image.header.cluster_bits
        self._released.append(np.repeat(hosts[hosts != 0], uses))
        entries[zero] = 0
        if self.image.stands_on_another:
            entries[zero] = self._zero_clusters(int(zero.sum()), uses)
        self._tables.append((offset, old, table))

    def _zero_clusters(self, number: int, uses: int) -> Column:
        """L2 entries for new clusters full of zeros."""
        size = self.image.header.cluster_size
        found = np.zeros(number, np.uint64)
        done = 0
        while done < number:
            run = self.writer.allocator.take(min(number - done, max(1, (1 << 20) // size)))
            for _ in range(uses - 1):
                self.writer.allocator.blocks.add(run.first, run.length)
            zeros = bytes(run.length * size)
            if (cipher := self.image.cipher) is not None:
                zeros = cipher.sealed(run.first * size, zeros)
            self.writer.disk.write(run.first * size, zeros)
            found[done : done + run.length] = (run.first + np.arange(run.length)) * size
            done += run.length
        self.taken += number
        return found | (_COPIED if uses == 1 else np.uint64(0))

    def finish(self) -> None:
        """Write the tables."""
        if not self._tables:
            return
        self.image.flush()
        for offset, old, table in self._tables:
            self.editor.write(offset, old, table)
        self.editor.disk.barrier()
        self.writer.order.release(np.concatenate(self._released))
        self.image.flush()
        self.image.restart()
