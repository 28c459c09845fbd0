"""Changing the virtual size of an image.

The size in the header is the switch. When the disk grows, everything behind the old end is made to read as zeros
before; when it shrinks, what is cut off is given up after. So a crash leaves the disk as it was or as it was to be.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import numpy as np

from diskwright.errors import ImageError, InvalidOption, NodeIOError
from diskwright.node import SECTOR, Truncatable

from . import layout
from .bitmap_ops import resize_bitmaps
from .check import check, unsound
from .create import extend
from .hostspace import Cause, trim_file
from .l2 import stored
from .placing import RangeWithinTable
from .switching import switch_header
from .zeroing import write_zeroes, zero_data_file

if TYPE_CHECKING:
    from .header import Header
    from .image import Qcow2Image

_PREALLOCATIONS = ("off", "metadata", "falloc", "full")


def resize(image: Qcow2Image, size: int, preallocation: str) -> None:
    """See the ``resize`` hook."""
    with image.lock:
        if size == image.size:
            return
        require_resizable(image, image.header, size, preallocation)
        image.flush()
        image.make_clean()
        if size < image.size:
            _require_sound(image)
        if image.bitmaps:
            resize_bitmaps(image, size)
        if size < image.size:
            _shrink(image, size)
        else:
            _grow(image, size, preallocation)


def require_resizable(image: Qcow2Image, header: Header, size: int, preallocation: str) -> None:
    """Refuse what cannot be done, before anything is written.

    :param header: the features that the image has, or will have by then.
    :raises ImageError: it cannot have that size or mode.
    """
    if preallocation not in _PREALLOCATIONS:
        raise InvalidOption(f"Unsupported preallocation mode '{preallocation}'")
    if size % SECTOR:
        raise InvalidOption(f"The new size must be a multiple of {SECTOR}")
    if header.nb_snapshots and header.version < 3:
        raise InvalidOption("Can't resize a v2 image which has snapshots")
    if size < image.size:
        if preallocation != "off":
            raise InvalidOption("Preallocation can't be used for shrinking an image")
        return
    if header.replace(size=size).l1_entries_needed * layout.L1_ENTRY_SIZE > layout.MAX_L1_BYTES:
        raise NodeIOError("Failed to grow the L1 table", OSError(errno.EFBIG, "file too large"))
    if image.backing_file is not None and image.backing is None:
        raise ImageError("The backing file must be open while the image grows: it may be longer than the image")


def _grow(image: Qcow2Image, size: int, preallocation: str) -> None:
    former = image.size
    _grow_l1(image, image.header.replace(size=size).l1_entries_needed)
    if image.header.raw_data_file and preallocation == "off":
        preallocation = "metadata"  # a raw data file is always complete: so are the tables that lead to it
    if image.header.has_data_file:
        _grow_data_file(image, former, size, preallocation)
    header = image.header
    # What lies behind the old end can only be written when the disk has its new size in memory.
    image.restart(size=size)
    try:
        _clear(image, former, size)
        if preallocation != "off":
            _preallocate(image, former, size, preallocation)
        switch_header(image)
    except BaseException:
        image.restart(size=header.size)
        raise


def _grow_l1(image: Qcow2Image, entries: int) -> None:
    """Let the L1 table have room for so many entries, at a new place."""
    former = image.header
    if entries <= former.l1_size:
        return
    length = entries * layout.L1_ENTRY_SIZE
    table = np.zeros(entries, np.uint64)
    table[: former.l1_size] = image.l1
    writer = image.writer
    bits = former.cluster_bits
    image.file.note_event("l1_grow_alloc_table")
    run = writer.allocator.take_contiguous(-(-length >> bits))
    image.file.note_event("l1_grow_write_table")
    writer.disk.write(run.first << bits, stored(table))
    image.file.note_event("l1_grow_activate_table")
    switch_header(image, l1_size=entries, l1_table_offset=run.first << bits)
    if former.l1_size:
        old = former.l1_table_offset >> bits
        end = (former.l1_table_offset + former.l1_size * layout.L1_ENTRY_SIZE - 1 >> bits) + 1
        image.writer.order.release(np.arange(old, end))
        image.flush()


def _grow_data_file(image: Qcow2Image, former: int, size: int, preallocation: str) -> None:
    """Let the data file be as long as the disk; where the tables will lead to it, it reads as zeros."""
    node = image.data_node
    if preallocation != "off" and former < node.size:
        zero_data_file(image, former, min(size, node.size), True)
    if node.size < size and isinstance(node, Truncatable):
        node.truncate(size, preallocation if preallocation in ("falloc", "full") else "off")
    node.flush()


def _clear(image: Qcow2Image, start: int, end: int) -> None:
    """Make the range behind the old end of the disk read as zeros, whatever the tables and the backing layer say."""
    size = image.header.cluster_size
    boundary = -(-start // size) * size
    # A disk that was cut off in the midst of a crash may have entries there.
    drop_range(image, boundary, -(-end // size) * size)
    below = image.backing.size if image.backing is not None else 0
    stop = min(end, max(boundary, -(-below // SECTOR) * SECTOR))
    write_zeroes(image, image.writer, start, stop - start, unmap=False)


def _preallocate(image: Qcow2Image, start: int, end: int, mode: str) -> None:
    """Give all clusters behind the old end a place; in this file, one behind its end, where it reads as zeros."""
    header = image.header
    start = -(-start // header.cluster_size) * header.cluster_size
    own = not header.has_data_file
    writer = image.writer
    if own:
        image.flush()
        writer.allocator.search_from(-(-image.file.size >> header.cluster_bits))
    while start < end:
        stop = min(end, (start // header.l1_coverage + 1) * header.l1_coverage)
        behind = writer.reserve(start, stop)
        if own and behind > image.file.size:
            extend(image.file, behind, mode if mode in ("falloc", "full") else "off")
        # What a cluster that was never written decrypts to is not zeros.
        if image.encrypted or (header.extended_l2 and image.backing is not None):
            write_zeroes(image, writer, start, stop - start, unmap=False)
        start = stop
    if own:
        writer.allocator.search_from(0)


def _require_sound(image: Qcow2Image) -> None:
    """Refuse to cut an image with errors: what is cut off is gone before it turns out that it cannot be given back.

    :raises InvalidImage: it has some.
    """
    found = check(image)
    if found.corruptions or found.check_errors:
        raise unsound(image, found)


def _shrink(image: Qcow2Image, size: int) -> None:
    former = image.size
    switch_header(image, size=size)
    unit = image.header.cluster_size
    drop_range(image, -(-size // unit) * unit, -(-former // unit) * unit)
    image.flush()
    trim_file(image.writer)
    if image.header.raw_data_file and isinstance(image.data_node, Truncatable):
        image.data_node.truncate(size)
    image.flush()


def drop_range(image: Qcow2Image, start: int, end: int) -> None:
    """Let the tables forget a range of whole clusters, which may be behind the end of the disk."""
    header = image.header
    coverage = header.l1_coverage
    last = min(-(-end // coverage), header.l1_size)
    used = image.l1[start // coverage : last] & np.uint64(layout.OFFSET_MASK)
    for index in (np.flatnonzero(used) + start // coverage).tolist():
        part = RangeWithinTable(header, max(start, index * coverage), min(end, (index + 1) * coverage))
        _drop_part(image, part)
        if image.writer.order.full:
            image.flush()


def _drop_part(image: Qcow2Image, part: RangeWithinTable) -> None:
    writer = image.writer
    if part.last - part.first == image.header.l2_entries:
        writer.drop_table(part.l1_index)
        return
    table = image.l2.get(part.l1_index)
    if table is None or not table[part.first : part.last].any():
        return
    nothing = np.zeros(part.last - part.first, np.uint64)
    writer.replace(part, writer.own_table(part.l1_index), nothing, nothing, Cause.ALWAYS)
