"""Finding out whether an image was created with metadata for clusters that have no space in the file yet."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from diskwright.errors import InvalidImage

from . import layout

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .image import Qcow2Image


def is_metadata_preallocated(image: Qcow2Image) -> bool:
    """Whether clearly more host clusters are in use than the file takes space.

    Then clusters that the tables call allocated may be holes of the file. Broken refcounts are no reason to fail here.
    Source: qemu ``qcow2_detect_metadata_preallocation``: a tenth and two clusters more than allocated do not count.
    """
    space = image.file.allocated_size()
    if space is None:
        return False
    allocated = space // image.header.cluster_size
    cutoff = max(allocated * 11 // 10, allocated + 2)
    clusters = -(-image.file.size // image.header.cluster_size)
    if clusters < cutoff:
        return False
    used = 0
    try:
        for count in _used_clusters(image, clusters):
            used += count
            if used >= cutoff:
                return True
    except InvalidImage:
        return False
    return False


def _used_clusters(image: Qcow2Image, clusters: int) -> Iterator[int]:
    """Host clusters with a refcount other than zero among the first ``clusters``, for each refcount block."""
    header = image.header
    in_table = header.refcount_table_clusters * header.cluster_size // layout.REFCOUNT_TABLE_ENTRY_SIZE
    table = image.reader.table(
        layout.REFCOUNT_TABLE_DTYPE,
        header.refcount_table_offset,
        min(in_table, -(-clusters // header.refcount_block_entries)),
        "refcount table",
        limit=layout.MAX_REFCOUNT_TABLE_BYTES // layout.REFCOUNT_TABLE_ENTRY_SIZE,
    )
    for offset in (table & np.uint64(layout.REFCOUNT_TABLE_OFFSET_MASK)).tolist():
        if offset:
            block = image.reader.bytes(offset, header.cluster_size, "refcount block")
            yield _count_nonzero(block, header.refcount_bits)


def _count_nonzero(block: bytes, bits: int) -> int:
    data = np.frombuffer(block, np.uint8)
    if bits >= 8:
        return int(np.count_nonzero(data.view(f"u{bits // 8}")))
    return int(np.count_nonzero(np.unpackbits(data).reshape(-1, bits).any(axis=1)))
