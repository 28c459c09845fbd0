"""Making guest ranges read as zeros without writing zeros, and discarding them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from diskwright.extent import distinct
from diskwright.zeroing import make_zeros

from . import layout
from .hostspace import Cause, give_back
from .placing import RangeWithinTable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .image import Qcow2Image
    from .refcount import Column
    from .writer import ImageWriter

_LITERAL = 1 << 20
"""Bytes of zeros written at once where they have to be written."""
_COPIED = np.uint64(layout.OFLAG_COPIED)
_COMPRESSED = np.uint64(layout.OFLAG_COMPRESSED)
_ZERO = np.uint64(layout.OFLAG_ZERO)
_OFFSET_MASK = np.uint64(layout.OFFSET_MASK)
_ALL_ZERO = np.uint64(layout.SUBCLUSTERS_ALLOCATED_MASK << layout.SUBCLUSTERS_ZERO_SHIFT)


def write_zeroes(image: Qcow2Image, writer: ImageWriter, offset: int, length: int, unmap: bool) -> None:
    """Make a guest range read as zeros.

    :param unmap: whether clusters that hold it may be given up.
    """
    _write_zeroes(image, writer, offset, length, unmap, mark=image.header.version > 2)


def _write_zeroes(image: Qcow2Image, writer: ImageWriter, offset: int, length: int, unmap: bool, *, mark: bool) -> None:
    """:param mark: whether clusters that are not there are noted as zeros even if nothing shows through them."""
    size = image.header.cluster_size
    end = offset + length
    inner_start = -(-offset // size) * size
    # What lies behind the end of the disk in its last cluster is nobody's.
    inner_end = end if end == image.header.disk_size else end // size * size
    if inner_start >= inner_end:
        _zero_bytes(image, offset, end)
        return
    _zero_bytes(image, offset, inner_start)
    if image.header.raw_data_file:
        zero_data_file(image, inner_start, inner_end, unmap)
    if image.header.version == 2 and (image.stands_on_another or not unmap):
        _zero_bytes(image, inner_start, inner_end)
    else:
        _zero_clusters(image, writer, inner_start, inner_end, unmap, mark or image.stands_on_another)
    _zero_bytes(image, inner_end, end)


def discard(image: Qcow2Image, writer: ImageWriter, offset: int, length: int) -> None:
    """Give up the clusters that lie wholly in a guest range; it reads as zeros then.

    Version 2 cannot say that a cluster is zero while a backing file may show through: there nothing happens.
    """
    size = image.header.cluster_size
    end = offset + length
    start = -(-offset // size) * size
    if end != image.header.disk_size:
        end = end // size * size
    if start < end and not (image.header.version == 2 and image.stands_on_another):
        _write_zeroes(image, writer, start, end - start, unmap=True, mark=False)


def _zero_bytes(image: Qcow2Image, start: int, end: int) -> None:
    """Write zeros as data, where the range does not read as zeros already."""
    while start < end:
        stop = min(end, start - start % _LITERAL + _LITERAL)
        if _any_set(image.read_at(start, stop - start)):
            image.write_verbatim(start, bytes(stop - start))
        start = stop


def _any_set(data: bytes) -> bool:
    """Whether not all bytes are zero."""
    return data.count(0) != len(data)


def zero_data_file(image: Qcow2Image, start: int, end: int, unmap: bool) -> None:
    """A raw data file is an image of the disk by itself: it must have the zeros too."""
    make_zeros(image.data_node, start, end - start, unmap=unmap)


def _zero_clusters(image: Qcow2Image, writer: ImageWriter, start: int, end: int, unmap: bool, mark: bool) -> None:
    """Change the L2 entries of whole clusters; without ``mark`` only of those that are there."""
    for part in _tables(image, start, end, mark):
        table = image.l2.get(part.l1_index)
        if table is None:
            table = image.l2.empty()
        old, old_bitmaps = part.entries(table)
        kept = unmap and image.runtime.keep_discarded
        new, bitmaps = _zeroed(image, old, old_bitmaps, unmap and not kept, mark)
        if (new != old).any() or (bitmaps != old_bitmaps).any():
            writer.replace(part, writer.own_table(part.l1_index), new, bitmaps, Cause.REQUEST)
            if kept and image.runtime.pass_request and not image.header.has_data_file:
                # The clusters may be written again at any time: their space goes before that.
                writer.flush()
                clusters = distinct((new & _OFFSET_MASK)[new & _COPIED != 0] >> np.uint64(image.header.cluster_bits))
                give_back(image.file, clusters.astype(np.int64), image.header.cluster_bits)
            elif writer.order.full:
                writer.flush()


def _tables(image: Qcow2Image, start: int, end: int, missing: bool) -> Iterator[RangeWithinTable]:
    """The parts of a range by L2 table, also where there is no table yet if ``missing``."""
    coverage = image.header.l1_coverage
    first, last = start // coverage, -(-end // coverage)
    if not missing:
        used = np.flatnonzero(image.l1[first:last] & _OFFSET_MASK) + first
        indexes: list[int] | range = used.tolist()
    else:
        indexes = range(first, last)
    for index in indexes:
        yield RangeWithinTable(image.header, max(start, index * coverage), min(end, (index + 1) * coverage))


def _zeroed(image: Qcow2Image, old: Column, bitmaps: Column, unmap: bool, mark: bool) -> tuple[Column, Column]:
    """L2 entries and subcluster bitmaps that read as zeros."""
    header = image.header
    compressed = old & _COMPRESSED != 0
    placed = ~compressed & (old & _OFFSET_MASK != 0)
    if header.has_data_file:
        placed |= old & _COPIED != 0
    untouched = np.zeros(len(old), bool) if mark else (old == 0) & (bitmaps == 0)
    new = np.where(placed & (not unmap), old, np.uint64(0))
    if header.extended_l2:
        return new, np.where(untouched, np.uint64(0), _ALL_ZERO)
    if header.version > 2:
        new = np.where(untouched, np.uint64(0), new | _ZERO)
    return new, bitmaps
