"""The snapshot table."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from diskwright.hookspecs import Snapshot

from . import layout

if TYPE_CHECKING:
    from diskwright.bounded import BoundedReader

    from .header import Header


_FIXED_SIZE = layout.SNAPSHOT_HEADER.sizeof()
_EXTRA_SIZE = layout.SNAPSHOT_EXTRA.sizeof()


@dataclass(frozen=True)
class SnapshotEntry:
    """One entry of the snapshot table.

    :ivar l1_table_offset: bytes; neither it nor :attr:`l1_size` has been checked.
    :ivar l1_size: entries.
    :ivar disk_size: virtual disk size when the snapshot was taken, bytes.
    :ivar extra: the extra data as stored.
    :ivar offset: where the entry stands in the file, bytes.
    """

    l1_table_offset: int
    l1_size: int
    disk_size: int
    extra: bytes
    offset: int
    public: Snapshot


def read_snapshots(reader: BoundedReader, header: Header) -> list[SnapshotEntry]:
    """All entries of the snapshot table, in order.

    :raises InvalidImage: the table is longer than allowed or runs out of the file.
    """
    entries: list[SnapshotEntry] = []
    position = header.snapshots_offset
    for number in range(header.nb_snapshots):
        entry, position = _read_entry(reader, header, number, position)
        if position - header.snapshots_offset > layout.MAX_SNAPSHOT_TABLE_BYTES:
            raise reader.error("Snapshot table is too big", header.snapshots_offset)
        entries.append(entry)
    return entries


def _read_entry(reader: BoundedReader, header: Header, number: int, offset: int) -> tuple[SnapshotEntry, int]:
    """One entry and the offset of the next."""
    what = f"snapshot table entry {number}"
    fixed, _ = _parsers()
    fields = fixed.parse(reader.bytes(offset, _FIXED_SIZE, what))
    extra_size, id_size = fields.extra_data_size, fields.id_str_size
    if extra_size > layout.MAX_SNAPSHOT_EXTRA_BYTES:
        raise reader.error(f"Too much extra metadata in snapshot table entry {number}", offset)
    position = offset + _FIXED_SIZE
    data = reader.bytes(position, extra_size + id_size + fields.name_size, what)
    position += len(data)
    extra = data[:extra_size]
    vm_state_size, disk_size, icount = _extra_fields(extra, fields.vm_state_size, header.disk_size)
    public = Snapshot(
        id=data[extra_size : extra_size + id_size].decode("utf-8", "surrogateescape"),
        name=data[extra_size + id_size :].decode("utf-8", "surrogateescape"),
        date_sec=fields.date_sec,
        date_nsec=fields.date_nsec,
        vm_clock_nsec=fields.vm_clock_nsec,
        vm_state_size=vm_state_size,
        icount=None if icount == layout.NO_ICOUNT else icount,
    )
    entry = SnapshotEntry(fields.l1_table_offset, fields.l1_size, disk_size, extra, offset, public)
    return entry, position + -position % layout.SNAPSHOT_ALIGNMENT


def _extra_fields(extra: bytes, vm_state_size: int, disk_size: int) -> tuple[int, int, int]:
    """VM state size, disk size and instruction count: each from the extra data if that reaches so far."""
    if len(extra) < _EXTRA_SIZE:
        defaults: bytes = layout.SNAPSHOT_EXTRA.build(
            {"vm_state_size": vm_state_size, "disk_size": disk_size, "icount": layout.NO_ICOUNT}
        )
        # A field that is there only in part does not count.
        present = len(extra) // 8 * 8
        extra = extra[:present] + defaults[present:]
    _, parser = _parsers()
    fields = parser.parse(extra[:_EXTRA_SIZE])
    return fields.vm_state_size, fields.disk_size, fields.icount


@cache
def _parsers() -> tuple[Any, Any]:
    """The declarations of an entry and of its extra data, compiled: a table may have tens of thousands of them."""
    return layout.SNAPSHOT_HEADER.compile(), layout.SNAPSHOT_EXTRA.compile()
