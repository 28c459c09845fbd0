"""Taking, applying, deleting and reading internal snapshots."""

from __future__ import annotations

import errno
import re
import time
from typing import TYPE_CHECKING

import numpy as np

from diskwright.errors import ImageError, NodeIOError
from diskwright.facts import Snapshot
from diskwright.node import Node, WritableImage

from . import layout
from .hostspace import Cause
from .image import Qcow2Image
from .l1_tree import L1Tree, flag, forget, share
from .l2 import L2Tables, stored
from .overlap import snapshot_table_size
from .shadow import Shadow, require_changeable, require_offset
from .snapshots import MendedTable, SnapshotEntry, build_snapshots
from .switching import switch_header

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .l2 import Table

_NUMBER = re.compile(r"[0-9]{1,18}")


def create_snapshot(image: Qcow2Image, name: str) -> None:
    """Keep the present content of the disk, see the ``snapshot_create`` hook.

    The present L1 table becomes the snapshot's and the disk gets a new one.
    """
    with image.lock:
        require_changeable(image)
        image.save()
        header = image.header
        if len(image.snapshots) >= layout.MAX_SNAPSHOTS:
            raise NodeIOError("", OSError(errno.EFBIG, "file too large"))
        entry = SnapshotEntry(
            header.l1_table_offset, header.l1_size, header.size, b"", 0, _new_snapshot(image.snapshots, name)
        )
        shadow = Shadow(image)
        l1 = share(shadow, L1Tree(image, image.l2))
        _switch(shadow, [*image.snapshots, entry], l1)


def apply_snapshot(image: Qcow2Image, snapshot: Snapshot) -> None:
    """Bring content and size of a snapshot back, see the ``snapshot_apply`` hook."""
    with image.lock:
        require_changeable(image)
        if image.bitmaps:
            raise ImageError("Device has active dirty bitmaps")
        image.save()
        header = image.header
        entry = image.snapshots[_position(image.snapshots, snapshot)]
        size = entry.disk_size
        needed = -(-size // header.l1_coverage)
        if needed * layout.L1_ENTRY_SIZE > layout.MAX_L1_BYTES:
            raise image.reader.error("Image is corrupt: the disk size of the snapshot is too large")
        shadow = Shadow(image)
        l1 = share(shadow, L1Tree(image, snapshot_tables(image, entry)))
        forget(shadow, L1Tree(image, image.l2))
        shadow.drop_range(header.l1_table_offset, header.l1_size * layout.L1_ENTRY_SIZE)
        padding = np.zeros(max(0, needed - len(l1)), np.uint64)
        _switch(shadow, image.snapshots, np.concatenate((l1, padding)), size)


def delete_snapshot(image: Qcow2Image, snapshot: Snapshot) -> None:
    """Remove a snapshot and what only it needs, see the ``snapshot_delete`` hook."""
    with image.lock:
        require_changeable(image)
        image.save()
        header = image.header
        position = _position(image.snapshots, snapshot)
        entry = image.snapshots[position]
        tree = L1Tree(image, snapshot_tables(image, entry))
        shadow = Shadow(image)
        forget(shadow, tree)
        shadow.drop_range(entry.l1_table_offset, entry.l1_size * layout.L1_ENTRY_SIZE, Cause.SNAPSHOT)
        l1 = flag(shadow, L1Tree(image, image.l2))
        changed = not np.array_equal(l1, image.l1)
        if changed:
            shadow.drop_range(header.l1_table_offset, header.l1_size * layout.L1_ENTRY_SIZE)
        others = [*image.snapshots[:position], *image.snapshots[position + 1 :]]
        _switch(shadow, others, l1 if changed else None)


def rewrite_table(image: Qcow2Image) -> None:
    """Write the snapshot table anew; the image has no other faults than those of the present table.

    That may reach into the place of something else: only its first cluster is looked at as its own, and when all is
    done each of its clusters has a reference less.
    """
    header, bits, entries = image.header, image.header.cluster_bits, image.snapshots
    end = header.snapshots_offset + snapshot_table_size(image)
    table = build_snapshots(entries)
    own = [*entries[:-1], entries[-1]._replace(end=header.snapshots_offset + 1)]
    image.mended = MendedTable(own, [], 0, shortened=True)
    image.restart()
    run = image.writer.allocator.take_contiguous(-(-len(table) >> bits))
    image.writer.disk.write(run.first << bits, table)
    image.flush()
    image.mended = None
    switch_header(image, snapshots_offset=run.first << bits)
    image.writer.order.release(np.arange(header.snapshots_offset >> bits, -(-end >> bits)))
    image.flush()


def _switch(shadow: Shadow, entries: Sequence[SnapshotEntry], l1: Table | None, size: int | None = None) -> None:
    """Write snapshot table and L1 table of the next state, and switch to it.

    :param l1: ``None`` if the L1 table stays where it is.
    :param size: the disk size from then on, bytes, if it changes.
    """
    image, fields = shadow.image, {}
    if list(entries) != image.snapshots:
        table = build_snapshots(entries)
        if len(table) > layout.MAX_SNAPSHOT_TABLE_BYTES:
            raise NodeIOError("", OSError(errno.EFBIG, "file too large"))
        shadow.drop_range(image.header.snapshots_offset, snapshot_table_size(image))
        fields["snapshots_offset"] = shadow.place(table) if entries else 0
        fields["nb_snapshots"] = len(entries)
    if l1 is not None:
        fields["l1_table_offset"] = shadow.place(stored(l1)) if len(l1) else 0
        fields["l1_size"] = len(l1)
    if size is not None:
        fields["size"] = size
    shadow.switch(**fields)


def _new_snapshot(present: Sequence[SnapshotEntry], name: str) -> Snapshot:
    """A snapshot of this moment, without VM state, with the next free number."""
    ids = [int(id) for id in (entry.public.id for entry in present) if _NUMBER.fullmatch(id)]
    seconds, nanoseconds = divmod(time.time_ns(), 10**9)
    cut = name.encode("utf-8", "surrogateescape")[: layout.MAX_SNAPSHOT_NAME_BYTES]
    return Snapshot(
        id=str(max(ids, default=0) + 1),
        name=cut.decode("utf-8", "surrogateescape"),
        date_sec=seconds,
        date_nsec=nanoseconds,
        vm_clock_nsec=0,
        vm_state_size=0,
        icount=0,
    )


def _position(entries: Sequence[SnapshotEntry], snapshot: Snapshot) -> int:
    """Where a snapshot stands in the table.

    :raises ImageError: it is not there (any more).
    """
    for position, entry in enumerate(entries):
        if entry.public == snapshot:
            return position
    raise ImageError("snapshot not found")


def snapshot_tables(image: Qcow2Image, entry: SnapshotEntry) -> L2Tables:
    """The L1 table of a snapshot and the L2 tables behind it.

    :raises InvalidImage: the L1 table is too large or not where it can be.
    """
    require_offset(image, entry.l1_table_offset, entry.l1_size * layout.L1_ENTRY_SIZE, "Snapshot L1 table")
    header = image.header.replace(l1_table_offset=entry.l1_table_offset, l1_size=entry.l1_size)
    return L2Tables(image.reader, header)


class SnapshotView(Qcow2Image):
    """What the disk was when a snapshot was taken; it lasts as long as the image stays open and keeps the snapshot."""

    def __init__(self, image: Qcow2Image, entry: SnapshotEntry) -> None:
        WritableImage.__init__(self)
        self.filename = image.filename
        self.file = image.file
        self.reader = image.reader
        self.data_node = image.data_node
        self.encrypted = image.encrypted
        self.crypt = image.crypt
        self.backing = image.backing
        self.backing_file = image.backing_file
        self.backing_format = image.backing_format
        self.cluster_size = image.cluster_size
        tables = snapshot_tables(image, entry)
        size = entry.disk_size
        self.header = image.header.replace(size=size, l1_table_offset=entry.l1_table_offset, l1_size=entry.l1_size)
        if entry.l1_size < self.header.l1_entries_needed:
            raise image.reader.error("Image is corrupt: the L1 table of the snapshot is too small for its disk size")
        self.l2 = tables
        self.bind(image.driver, image._block_status)

    def close(self) -> None:
        """The layers below, like the files, belong to the image."""
        Node.close(self)

    def release(self) -> None:
        """The files belong to the image."""


def view_snapshot(image: Qcow2Image, snapshot: Snapshot) -> SnapshotView:
    """See the ``snapshot_view`` hook."""
    return SnapshotView(image, image.snapshots[_position(image.snapshots, snapshot)])
