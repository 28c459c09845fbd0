"""The snapshot table."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from diskwright.errors import InvalidImage
from diskwright.facts import Snapshot

from . import layout
from .layout import SNAPSHOT_EXTRA_FIELDS, SNAPSHOT_FIELDS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from diskwright.bounded import BoundedReader

    from .header import Header

_FIRST_READ = 1 << 16
"""Bytes of the table read at first; each further read takes twice as many."""
_EXTRA_SIZE = 36
"""Where an entry says how much extra data it has."""
_MAX_TABLE_AS_STORED = 2 * layout.MAX_SNAPSHOT_TABLE_BYTES
"""Most bytes looked at: what is to be dropped counts here, unlike for the size that the table may have."""


class SnapshotEntry(NamedTuple):
    """One entry of the snapshot table.

    :ivar l1_table_offset: bytes; neither it nor :attr:`l1_size` has been checked.
    :ivar l1_size: entries.
    :ivar disk_size: virtual disk size when the snapshot was taken, bytes.
    :ivar extra: the extra data as stored.
    :ivar offset: where the entry stands in the file, bytes.
    :ivar end: where the next would, bytes.
    """

    l1_table_offset: int
    l1_size: int
    disk_size: int
    extra: bytes
    offset: int
    public: Snapshot
    end: int = 0


def require_table(reader: BoundedReader, header: Header) -> None:
    """What can be said of the snapshot table without reading it.

    :raises InvalidImage: even its shortest form is not in the file.
    """
    if header.nb_snapshots:
        reader.require(header.snapshots_offset, header.nb_snapshots * SNAPSHOT_FIELDS.size, "snapshot table")


class MendedTable(NamedTuple):
    """What a repair makes of a snapshot table.

    :ivar entries: those that can be kept.
    :ivar lines: what was found, a line each.
    :ivar faults: number of the things found.
    :ivar shortened: whether entries have to be written anew, not only their number.
    """

    entries: list[SnapshotEntry]
    lines: list[str]
    faults: int
    shortened: bool


def read_snapshots(reader: BoundedReader, header: Header) -> list[SnapshotEntry]:
    """All entries of the snapshot table, in order.

    :raises InvalidImage: the table is longer than allowed or runs out of the file.
    """
    table = _Window(reader, header.snapshots_offset)
    entries: list[SnapshotEntry] = []
    position = 0
    for number in range(header.nb_snapshots):
        entry, position = _read_entry(table, header.disk_size, number, position)
        if position > layout.MAX_SNAPSHOT_TABLE_BYTES:
            left = header.nb_snapshots - number
            raise _too_much(table, "Snapshot table is too big", f"all {left} overhanging snapshots")
        entries.append(entry)
    return entries


def mend_snapshots(reader: BoundedReader, header: Header) -> MendedTable:
    """The entries that can be kept when more metadata, or more snapshots, than there may be are dropped.

    No program that follows the format can use those snapshots.

    :raises InvalidImage: the table runs out of the file.
    """
    table = _Window(reader, header.snapshots_offset)
    mended = MendedTable([], [], 0, shortened=False)
    faults = max(0, header.nb_snapshots - layout.MAX_SNAPSHOTS)
    if faults:
        mended.lines.append(f"Discarding {faults} overhanging snapshots")
    count = header.nb_snapshots - faults
    position = kept = 0
    shortened = False
    for number in range(count):
        entry, position = _read_entry(table, header.disk_size, number, position, mended.lines)
        place = entry.offset - table.start + _EXTRA_SIZE
        extra = int.from_bytes(table.data[place : place + 4], "big")
        dropped = max(0, extra - layout.MAX_SNAPSHOT_EXTRA_BYTES)
        faults += dropped > 0
        shortened |= dropped > 0
        kept += entry.end - entry.offset - dropped
        if kept > layout.MAX_SNAPSHOT_TABLE_BYTES:
            mended.lines.append(f"Discarding {count - number} overhanging snapshots (snapshot table is too big)")
            faults += count - number
            break
        mended.entries.append(entry)
    return mended._replace(faults=faults, shortened=shortened)


def incomplete(header: Header, entries: Iterable[SnapshotEntry]) -> list[int]:
    """Numbers of the entries that lack what version 3 requires of each."""
    if header.version < 3:
        return []
    return [n for n, entry in enumerate(entries) if len(entry.extra) < layout.SNAPSHOT_EXTRA_MIN_V3]


def _too_much(table: _Window, problem: str, what: str) -> InvalidImage:
    """The error that a table has more of something than can be read."""
    return InvalidImage(
        problem,
        filename=table.reader.node.filename,
        offset=table.start,
        hint=f"You can force-remove {what} with qemu-img check -r all",
    )


class _Window:
    """The file from some offset on, read as far as it is asked for."""

    def __init__(self, reader: BoundedReader, start: int) -> None:
        self.reader = reader
        self.start = start
        self.data = b""

    def require(self, end: int, number: int) -> None:
        """Have everything before ``end`` in memory; it belongs to entry ``number``."""
        if end > len(self.data):
            self.reader.require(self.start, end, f"snapshot table up to entry {number}", limit=_MAX_TABLE_AS_STORED)
            wanted = max(end, 2 * len(self.data), _FIRST_READ)
            length = min(wanted, self.reader.node.size - self.start)
            self.data = self.reader.bytes(self.start, length, "snapshot table")


def _read_entry(
    table: _Window, disk_size: int, number: int, start: int, dropped: list[str] | None = None
) -> tuple[SnapshotEntry, int]:
    """One entry and the position of the next, both relative to the table.

    :param dropped: lines about extra data that is too long and not kept; without it that is an error.
    """
    position = start + SNAPSHOT_FIELDS.size
    table.require(position, number)
    (
        l1_table_offset,
        l1_size,
        id_size,
        name_size,
        date_sec,
        date_nsec,
        vm_clock_nsec,
        vm_state_size,
        extra_size,
    ) = SNAPSHOT_FIELDS.unpack_from(table.data, start)
    allowed = layout.MAX_SNAPSHOT_EXTRA_BYTES
    if extra_size > allowed:
        too_much = f"oo much extra metadata in snapshot table entry {number}"
        if dropped is None:
            raise _too_much(table, f"T{too_much}", "this extra metadata")
        dropped.append(f"Discarding t{too_much} ({extra_size} > {allowed})")
    names = position + extra_size
    end = names + id_size + name_size
    table.require(end, number)
    data = table.data
    extra = data[position : min(names, position + allowed)]
    vm_state_size, disk_size, icount = _extra_fields(extra, vm_state_size, disk_size)
    public = Snapshot(
        _text(data[names : names + id_size]),
        _text(data[names + id_size : end]),
        date_sec,
        date_nsec,
        vm_clock_nsec,
        vm_state_size,
        None if icount == layout.NO_ICOUNT else icount,
    )
    end += -end % layout.SNAPSHOT_ALIGNMENT
    entry = SnapshotEntry(l1_table_offset, l1_size, disk_size, extra, table.start + start, public, table.start + end)
    return entry, end


def _text(stored: bytes) -> str:
    """A name as every program shows and compares it: it ends at the first zero byte."""
    return stored.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _extra_fields(extra: bytes, vm_state_size: int, disk_size: int) -> tuple[int, int, int]:
    """VM state size, disk size and instruction count: each from the extra data if that reaches so far."""
    if len(extra) >= SNAPSHOT_EXTRA_FIELDS.size:
        return _three(extra)
    defaults = SNAPSHOT_EXTRA_FIELDS.pack(vm_state_size, disk_size, layout.NO_ICOUNT)
    # A field that is there only in part does not count.
    present = len(extra) // 8 * 8
    return _three(extra[:present] + defaults[present:])


def _three(extra: bytes) -> tuple[int, int, int]:
    fields: tuple[int, int, int] = SNAPSHOT_EXTRA_FIELDS.unpack_from(extra)
    return fields


def build_snapshots(entries: Iterable[SnapshotEntry]) -> bytes:
    """The snapshot table as stored; entries of older writers get all the extra data that is known here."""
    return b"".join(map(_build_entry, entries))


def _build_entry(entry: SnapshotEntry) -> bytes:
    public = entry.public
    icount = layout.NO_ICOUNT if public.icount is None else public.icount
    extra = SNAPSHOT_EXTRA_FIELDS.pack(public.vm_state_size, entry.disk_size, icount)
    extra += entry.extra[SNAPSHOT_EXTRA_FIELDS.size :]
    id = public.id.encode("utf-8", "surrogateescape")
    name = public.name.encode("utf-8", "surrogateescape")
    fixed = SNAPSHOT_FIELDS.pack(
        entry.l1_table_offset,
        entry.l1_size,
        len(id),
        len(name),
        public.date_sec,
        public.date_nsec,
        public.vm_clock_nsec,
        public.vm_state_size if public.vm_state_size < 1 << 32 else 0,
        len(extra),
    )
    data = fixed + extra + id + name
    return data + bytes(-len(data) % layout.SNAPSHOT_ALIGNMENT)
