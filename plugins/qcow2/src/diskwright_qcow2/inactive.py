"""The L1 tables of the snapshots, as far as they can be what they should be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from . import layout
from .refcount import Column

if TYPE_CHECKING:
    from .image import Qcow2Image
    from .snapshots import SnapshotEntry


class InactiveL1(NamedTuple):
    """The L1 table of a snapshot.

    :ivar offset: where it stands, bytes.
    :ivar length: bytes.
    :ivar entries: what there is of it.
    :ivar problem: the finding that it cannot be what it should be; the rest is empty then.
    """

    offset: int
    length: int
    entries: Column
    problem: str = ""


def inactive_l1(image: Qcow2Image, snapshots: Sequence[SnapshotEntry]) -> Iterator[InactiveL1]:
    """The L1 tables of all snapshots; none is read before it is asked for."""
    left = image.file.size
    nothing: Column = np.zeros(0, np.uint64)
    for snapshot in snapshots:
        offset, size = snapshot.l1_table_offset, snapshot.l1_size
        length = size * layout.L1_ENTRY_SIZE
        name = f"ERROR snapshot {snapshot.public.id} ({snapshot.public.name})"
        problem = ""
        if offset & (image.header.cluster_size - 1):
            problem = f"{name} l1_offset={offset:#x}: L1 table is not cluster aligned; snapshot table entry corrupted"
        elif length > layout.MAX_L1_BYTES:
            problem = f"{name} l1_size={size:#x}: L1 table is too large; snapshot table entry corrupted"
        elif length > left:
            # Tables that do not overlap fit into the file together: these are not worth endless work.
            problem = f"{name} l1_size={size:#x}: L1 tables of the snapshots are larger than the file"
        if problem:
            yield InactiveL1(0, 0, nothing, problem)
        elif length:
            inside = max(0, min(length, image.file.size - offset)) // layout.L1_ENTRY_SIZE
            left -= length
            l1 = nothing
            if inside:
                l1 = image.reader.table(layout.L1_DTYPE, offset, inside, "snapshot L1 table", limit=size)
            yield InactiveL1(offset, length, l1)
