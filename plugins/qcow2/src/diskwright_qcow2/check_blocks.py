"""Checking the refcount table and the places of the refcount blocks."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import numpy as np

from diskwright.node import Truncatable
from diskwright.sizes import MAX_INT64

from . import layout
from .check_references import read_refcount_table

if TYPE_CHECKING:
    from diskwright.facts import CheckResult

    from .check_references import References, StoredRefcounts
    from .image import Qcow2Image

_MAX_GROWTH = 64 << 20
"""Bytes by which a repair makes a file longer for the sake of a refcount block behind its end, which counts nothing."""


class BlockCheck:
    """The refcount blocks as the refcount table names them.

    :ivar grown: file size with which all blocks are inside that a repair keeps, bytes; 0 if the file stays as it is.
    :param repairing: whether blocks a little behind the end of the file are brought inside by making it longer.
    """

    def __init__(self, image: Qcow2Image, *, repairing: bool) -> None:
        self.header = image.header
        self.repairing = repairing
        self.grown = 0
        if repairing and isinstance(image.file, Truncatable):
            table, _ = read_refcount_table(image)
            size = self.header.cluster_size
            limit = image.file.size + _MAX_GROWTH
            aligned = (table & np.uint64(layout.REFCOUNT_TABLE_RESERVED_MASK | size - 1)) == 0
            offsets = table[aligned & (table >= np.uint64(image.file.size)) & (table <= np.uint64(limit - size))]
            if len(offsets):
                self.grown = int(offsets.max()) + size

    def check(self, references: References, stored: StoredRefcounts, result: CheckResult) -> bool:
        """Check and count the blocks; whether the structures cannot stay as they are."""
        broken = bool(stored.problem)
        if broken:
            result.error(f"ERROR {stored.problem}")
        references.limit()
        bits = self.header.cluster_bits
        inside = -(-references.file_size >> bits)
        full = (1 << min(32, self.header.refcount_bits)) - 1
        for index in np.flatnonzero(stored.table).tolist():
            entry = int(stored.table[index])
            if problem := self._misplaced(index, entry):
                result.error(f"ERROR {problem}")
                broken = True
            elif entry >> bits >= inside:
                broken |= self._check_outside(index, entry, references, result)
            else:
                # Where one more reference has no room, the count is no higher, but the cluster is used twice as well.
                broken |= bool(references.counts[entry >> bits] == full)
                references.count_inside(entry)
                if (count := int(references.counts[entry >> bits])) != 1:
                    result.error(f"ERROR refcount block {index} refcount={count}")
                    broken = True
        return broken

    def _misplaced(self, index: int, entry: int) -> str:
        """Why a block cannot stand where the table says, empty if it can."""
        if entry & layout.REFCOUNT_TABLE_RESERVED_MASK:
            return f"refcount table entry {index} has reserved bits set"
        if entry & (self.header.cluster_size - 1):
            return f"refcount block {index} is not cluster aligned; refcount table entry corrupted"
        return ""

    def _check_outside(self, index: int, entry: int, references: References, result: CheckResult) -> bool:
        """A block behind the end of the file; whether it is in the way of keeping the structures."""
        text = f"refcount block {index} is outside image"
        if not self.repairing:
            result.error(f"ERROR {text}")
            return False
        result.note(f"Repairing {text}")
        size = self.header.cluster_size
        if entry + size <= self.grown:
            result.corruptions_fixed += 1
            references.count_inside(entry)
            return False
        reason = errno.EINVAL if entry > MAX_INT64 - size else errno.EFBIG
        result.error(f"ERROR could not resize image: {os.strerror(reason)}")
        return True
